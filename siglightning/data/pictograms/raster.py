"""From a drawing to a small WebP: 64 x 64 pixels, on white, centred, aspect kept."""

import io
from pathlib import Path

from PIL import Image, ImageChops

SIDE = 64  # pixels
QUALITY = 75  # WebP; about 0.7 kB a picture
MAX_PIXELS = 4_000_000  # two clip arts have 623 megapixels; nine are over four


def rasterise_svg(path: Path) -> Image.Image:
    """Renders an SVG at the final size, without the fonts of this machine so that every build agrees.

    Raises:
        ValueError: the file is no SVG that the renderer understands.
    """
    import resvg_py  # of the extra `data-build`; nobody else needs it

    png = resvg_py.svg_to_bytes(svg_path=str(path), width=SIDE, height=SIDE, skip_system_fonts=True)
    return Image.open(io.BytesIO(bytes(png)))


def open_picture(path: Path) -> Image.Image | None:
    """Opens a raster file, or gives ``None`` where it is too large to be a sensible picture."""
    try:
        image = Image.open(path)
    except Image.DecompressionBombError:
        return None
    return None if image.width * image.height > MAX_PIXELS else image


def on_white(image: Image.Image) -> Image.Image:
    """Fits a picture into ``SIDE x SIDE`` pixels: transparent parts become white, the aspect is kept, centred."""
    flat = _flatten(image)
    scale = SIDE / max(flat.size)
    size = (max(1, round(flat.width * scale)), max(1, round(flat.height * scale)))
    small = flat if size == flat.size else flat.resize(size, Image.Resampling.LANCZOS)
    canvas = Image.new("RGB", (SIDE, SIDE), "white")
    canvas.paste(small, ((SIDE - size[0]) // 2, (SIDE - size[1]) // 2))
    return canvas


def crop_to_ink(image: Image.Image) -> Image.Image:
    """Cuts a white border away; many clip arts are small drawings on a whole page."""
    flat = _flatten(image)
    box = ImageChops.difference(flat, Image.new("RGB", flat.size, "white")).getbbox()
    return flat if box is None else flat.crop(box)


def _flatten(image: Image.Image) -> Image.Image:
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def encode(image: Image.Image) -> bytes:
    """WebP bytes of an RGB picture. The same picture and library version give the same bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=QUALITY, method=6)
    return buffer.getvalue()
