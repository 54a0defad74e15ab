"""Pictures as the web has them: each is read as it is meant, or refused with its reason, and none takes the memory."""

import io
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from siglightning.data.images import BadSampleError, ImageLimits, decode
from siglightning.data.pictograms import PictogramArchive


@pytest.fixture(scope="module")
def drawing():
    """A real picture, uint8 ``[64, 64, 3]``."""
    return PictogramArchive.open().read_image(100).permute(1, 2, 0).numpy()


def encoded(array, kind, **options):
    buffer = io.BytesIO()
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def as_array(content, **options):
    return decode(content, **options).permute(1, 2, 0).numpy()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "GIF", "WEBP"])
def test_lossless_formats_give_their_pixels(drawing, kind):
    array = np.asarray(Image.fromarray(drawing).quantize(200).convert("RGB")) if kind == "GIF" else drawing
    options = {"lossless": True} if kind == "WEBP" else {}
    np.testing.assert_array_equal(as_array(encoded(array, kind, **options)), array)


def test_jpeg_is_what_pillow_reads(drawing):
    content = encoded(drawing, "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"), dtype=int)
    assert np.abs(as_array(content).astype(int) - expected).max() <= 4  # two decoders may round colours differently


def test_gray_palette_and_cmyk_become_rgb(drawing):
    gray = np.asarray(Image.fromarray(drawing).convert("L"))
    np.testing.assert_array_equal(as_array(encoded(gray, "PNG")), np.repeat(gray[..., None], 3, axis=2))
    palette = Image.fromarray(drawing).quantize(16)
    np.testing.assert_array_equal(as_array(encoded(palette, "PNG")), np.asarray(palette.convert("RGB")))
    cmyk = encoded(Image.fromarray(drawing).convert("CMYK"), "TIFF")
    assert np.abs(as_array(cmyk).astype(int) - drawing).max() <= 1


def test_sixteen_bits_become_eight_and_are_not_clipped(drawing):
    gray = np.asarray(Image.fromarray(drawing).convert("L")).astype(np.uint16) * 257
    for kind in ("PNG", "TIFF"):
        np.testing.assert_array_equal(as_array(encoded(gray, kind))[..., 0], (gray >> 8).astype(np.uint8))


def test_what_is_transparent_is_white(drawing):
    alpha = np.zeros((64, 64, 1), np.uint8)
    alpha[:32] = 255
    array = as_array(encoded(np.concatenate([drawing, alpha], axis=2), "PNG"))
    np.testing.assert_array_equal(array[:32], drawing[:32])
    assert (array[32:] == 255).all()


def test_the_camera_was_turned(drawing):
    exif = Image.Exif()
    exif[0x0112] = 6  # the top of the picture is at the right
    content = encoded(drawing[:48], "PNG", exif=exif)
    np.testing.assert_array_equal(as_array(content), np.rot90(drawing[:48], k=-1))


def test_the_first_frame_of_an_animation(drawing):
    frames = [Image.fromarray(drawing).quantize(64), Image.fromarray(255 - drawing).quantize(64)]
    content = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert np.abs(as_array(content).astype(int) - np.asarray(frames[0].convert("RGB"))).max() <= 1


def png_bomb(side):
    """A PNG that claims ``side x side`` pixels in under a megabyte."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    body = zlib.compress(b"\0" * 10**6)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def bad(drawing):
    jpeg = encoded(np.kron(drawing, np.ones((8, 8, 1), np.uint8)), "JPEG")
    return {
        "nothing": (b"", "empty"),
        "HTML": (b"<!DOCTYPE html><html><body>404</body></html>", "no picture"),
        "noise": (bytes(range(256)) * 9, "no picture"),
        "half a JPEG": (jpeg[: len(jpeg) // 2], "damaged"),
        "half a PNG": (encoded(drawing, "PNG")[:2000], "damaged"),
        "half a TIFF": (encoded(drawing, "TIFF")[:3000], "damaged"),
        "600 megapixels": (png_bomb(24500), "too large"),
        "one pixel": (encoded(drawing[:1, :1], "PNG"), "too small"),
    }


NAMES = ("nothing", "HTML", "noise", "half a JPEG", "half a PNG", "half a TIFF", "600 megapixels", "one pixel")


@pytest.mark.parametrize("name", NAMES)
def test_bad_pictures_are_refused_with_their_reason(bad, name):
    content, reason = bad[name]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadSampleError) as caught:
        decode(content)
    assert caught.value.reason == reason, caught.value
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 * 1024  # KiB; the bomb would take 600 MB


def test_limits_are_the_users(drawing):
    assert decode(encoded(drawing[:1, :1], "PNG"), ImageLimits(min_side=1)).shape == (3, 1, 1)
    with pytest.raises(BadSampleError, match="too large: 64 x 64 pixels"):
        decode(encoded(drawing, "PNG"), ImageLimits(max_pixels=4095))
    with pytest.raises(ValueError, match="at least 1, got 0 and 8"):
        ImageLimits(max_pixels=0)


def test_the_result_is_bytes_however_they_lie_in_memory(drawing):
    for kind in ("PNG", "BMP"):
        image = decode(encoded(drawing, kind))
        assert image.dtype == torch.uint8
        np.testing.assert_array_equal(image.permute(1, 2, 0), drawing)
