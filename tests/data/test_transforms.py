"""Augmentation and resizing on real pictures, against loops over single pixels."""

import math

import numpy as np
import pytest
import torch
from PIL import Image

from siglightning.data import Augmentation, PictogramArchive, augment, recolour, resize
from siglightning.data.draws import uniform

OFF = Augmentation(0, 0, 0, 0, 0, 0, 0, 0, 0)


@pytest.fixture(scope="module")
def pictures():
    archive = PictogramArchive.open()
    return [archive.read_image(row) for row in range(100, 9400, 400)]


def run(images, augmentation, size=64, epoch=0, first=0):
    index = np.arange(first, first + len(images))
    placed, colour = augment(images, size, augmentation, seed=9, epoch=epoch, index=index)
    assert (colour is None) == (not augmentation.varies_colour)
    return placed if colour is None else recolour(placed, colour)


def looked_at(picture, y, x, fill):
    """Bilinear value at pixel coordinates; a loop over the four neighbours, `fill` beyond the border."""
    top, left = math.floor(y), math.floor(x)
    value = np.zeros(3)
    for row, column in [(top, left), (top, left + 1), (top + 1, left), (top + 1, left + 1)]:
        inside = 0 <= row < picture.shape[0] and 0 <= column < picture.shape[1]
        weight = (1 - abs(y - row)) * (1 - abs(x - column))
        value += weight * (picture[row, column] if inside else fill)
    return value


def geometry_reference(picture, numbers, augmentation, size):
    """Crop, turn about the crop's centre, mirror: pixel by pixel in float64."""
    height, width = picture.shape[:2]
    area = 1 - augmentation.crop * numbers[0]
    stretch = (1 + augmentation.stretch) ** (2 * numbers[1] - 1)
    h, w = min(1, math.sqrt(area / stretch)), min(1, math.sqrt(area * stretch))
    cy, cx = (h / 2 + (1 - h) * numbers[2]) * height, (w / 2 + (1 - w) * numbers[3]) * width
    angle = math.radians((2 * numbers[4] - 1) * augmentation.rotation)
    mirror = -1 if numbers[5] < augmentation.flip else 1
    result = np.zeros((size, size, 3))
    for i in range(size):
        for j in range(size):
            dy = ((i + 0.5) / size - 0.5) * h * height
            dx = ((j + 0.5) / size - 0.5) * w * width * mirror
            y = cy + math.sin(angle) * dx + math.cos(angle) * dy
            x = cx + math.cos(angle) * dx - math.sin(angle) * dy
            result[i, j] = looked_at(picture, y - 0.5, x - 0.5, augmentation.fill)
    return result


@pytest.mark.parametrize(
    "augmentation",
    [
        Augmentation(0.5, 0.3, 1e-4, 0, 0, 0, 0, 0, 0),
        Augmentation(0, 0, 40, 0, 0, 0, 0, 0, 0, fill=60),
        Augmentation(0.5, 0.3, 25, 0.5, 0, 0, 0, 0, 0),
    ],
    ids=["crop", "rotation", "all"],
)
def test_geometry_equals_a_loop_over_pixels(pictures, augmentation):
    wide = [picture[:, 10:50] for picture in pictures[:4]]  # 64 x 40: height and width must not be mixed up
    result = run(wide, augmentation, size=48)
    for i, picture in enumerate(wide):
        numbers = uniform("picture", 9, 0, np.array([i]), 10)[0]
        expected = geometry_reference(picture.permute(1, 2, 0).double().numpy(), numbers, augmentation, 48)
        assert np.abs(result[i].permute(1, 2, 0).numpy() - expected).max() <= 0.51  # rounding to whole numbers


@pytest.mark.parametrize("shape", [(40, 64), (200, 150), (64, 64)])
def test_without_turns_it_is_a_crop_that_pillow_would_resize_the_same(pictures, shape):
    augmentation = Augmentation(0.5, 0.3, 0, 0.5, 0, 0, 0, 0, 0)
    large = [resize([picture], 256)[0][:, : shape[0], : shape[1]] for picture in pictures]
    result, mirrored = run(large, augmentation, size=48), 0
    for i, picture in enumerate(large):
        numbers = uniform("picture", 9, 0, np.array([i]), 10)[0]
        area, stretch = 1 - 0.5 * numbers[0], 1.3 ** (2 * numbers[1] - 1)
        h, w = min(1, math.sqrt(area / stretch)), min(1, math.sqrt(area * stretch))
        top, left = round(numbers[2] * (1 - h) * shape[0]), round(numbers[3] * (1 - w) * shape[1])
        box = (left, top, left + round(w * shape[1]), top + round(h * shape[0]))
        cropped = Image.fromarray(picture.permute(1, 2, 0).numpy()).crop(box)
        expected = np.asarray(cropped.resize((48, 48), Image.Resampling.BICUBIC)).astype(int)
        expected = expected[:, ::-1] if numbers[5] < 0.5 else expected
        mirrored += int(numbers[5] < 0.5)
        # Both round after the first of two passes; two levels is what their fixed-point weights differ by.
        assert np.abs(result[i].permute(1, 2, 0).numpy() - expected).max() <= 2
    assert 5 <= mirrored <= 19  # half of 24


def colour_reference(pixel, mean_luma, numbers, augmentation):
    """One pixel in float64: hue and saturation turn and scale the chroma, then contrast, then brightness."""
    to_yiq = np.array([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
    luma, i, q = to_yiq @ pixel
    gray = numbers[9] < augmentation.grayscale
    rest = max(0.0, (numbers[9] - augmentation.grayscale) / (1 - augmentation.grayscale))
    turn = 2 * math.pi * augmentation.hue * (2 * rest - 1)
    chroma = 0.0 if gray else 1 + augmentation.saturation * (2 * numbers[8] - 1)
    turned = [chroma * (i * math.cos(turn) - q * math.sin(turn)), chroma * (i * math.sin(turn) + q * math.cos(turn))]
    rgb = np.linalg.inv(to_yiq) @ np.array([luma, *turned])
    contrast = 1 + augmentation.contrast * (2 * numbers[7] - 1)
    brightness = 1 + augmentation.brightness * (2 * numbers[6] - 1)
    return np.clip(brightness * (mean_luma + contrast * (rgb - mean_luma)), 0, 255)


def test_colour_equals_a_loop_over_pixels(pictures):
    augmentation = Augmentation(0, 0, 0, 0, 0.4, 0.5, 0.6, 0.2, grayscale=0.3)
    result = run(pictures, augmentation)
    grays = 0
    for i, picture in enumerate(pictures):
        numbers = uniform("picture", 9, 0, np.array([i]), 10)[0]
        pixels = picture.double().flatten(1).T.numpy()
        mean_luma = float((pixels @ [0.299, 0.587, 0.114]).mean())
        got = result[i].flatten(1).T.numpy()
        for position in range(0, len(pixels), 97):
            expected = colour_reference(pixels[position], mean_luma, numbers, augmentation)
            assert np.abs(got[position] - expected).max() <= 0.52  # rounding to whole numbers
        grays += int((got.max(axis=1).astype(int) - got.min(axis=1) <= 1).all())
    assert 3 <= grays <= 14  # 30 % of 24, and some pictures have no colour


def test_colours_do_not_depend_on_the_precision_of_a_run(pictures):
    """Lightning casts the floats of a batch, and makes its precision torch's default."""
    placed, colour = augment(pictures, 64, Augmentation(), seed=9, epoch=0, index=np.arange(len(pictures)))
    expected = recolour(placed, colour)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(recolour(placed, colour.double()), expected)
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(recolour(placed, colour), expected)


def test_everything_off_changes_no_pixel(pictures):
    assert torch.equal(run(pictures, OFF), torch.stack(pictures))


def test_a_picture_is_augmented_the_same_in_any_batch(pictures):
    mixed = [picture if i % 3 else picture[:, :50] for i, picture in enumerate(pictures)]
    together = run(mixed, Augmentation(flip=0.5, grayscale=0.1), size=40, epoch=2)
    for i, picture in enumerate(mixed):
        alone = run([picture], Augmentation(flip=0.5, grayscale=0.1), size=40, epoch=2, first=i)
        assert torch.equal(alone[0], together[i])


def test_epoch_and_sample_change_the_picture(pictures):
    assert not torch.equal(run(pictures[:1], Augmentation()), run(pictures[:1], Augmentation(), epoch=1))
    assert not torch.equal(run(pictures[:1], Augmentation()), run(pictures[:1], Augmentation(), first=1))


def test_large_pictures_are_shrunk_without_aliasing():
    stripes = torch.zeros(3, 256, 256, dtype=torch.uint8)
    stripes[:, :, ::2] = 255  # one pixel wide: properly shrunk it is even gray
    result = run([stripes], OFF, size=32).float()
    assert result.std() < 3
    assert abs(result.mean() - 127.5) < 3


def test_evaluation_resizes_as_pillow_does(pictures):
    for size in (32, 96):
        result = resize(pictures[:6], size)
        for i, picture in enumerate(pictures[:6]):
            image = Image.fromarray(picture.permute(1, 2, 0).numpy())
            expected = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC)).astype(int)
            assert np.abs(result[i].permute(1, 2, 0).numpy() - expected).max() <= 2
    assert torch.equal(resize(pictures, 64), torch.stack(pictures))


@pytest.mark.parametrize(("field", "value"), [("crop", 1.0), ("rotation", -5), ("hue", 0.6), ("flip", 1.5)])
def test_impossible_strengths_are_refused(field, value):
    with pytest.raises(ValueError, match=rf"`augmentation\.{field}` must lie between 0 and .*, got {value}"):
        Augmentation(**{field: value})
