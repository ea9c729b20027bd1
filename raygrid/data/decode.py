"""One image file to uint8 RGB pixels of the chosen size, or the reason why not."""

from __future__ import annotations

import io
import warnings
from typing import Any

import numpy as np
from PIL import Image

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM")
"""what is tried, by content and never by the file's name; nothing that runs a program (no EPS)"""
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485
"""larger images are refused as decompression bombs (Pillow's limit)"""


class Unreadable(Exception):
    """The bytes are no image that can be used; `str` is the reason, for the list of unreadable images."""


def describe(size: int, keep_aspect: bool) -> dict[str, str]:
    """How `pixels` makes pixels, for the manifest."""
    shape = "centre square, then" if keep_aspect else "aspect not kept,"
    return {
        "resize": f"{shape} {size} x {size}, Pillow bilinear with antialiasing; JPEGs decoded at 1/2, 1/4 or 1/8 where "
        "that leaves twice the size or more",
        "colour": "RGB; grey repeated, CMYK converted, 16-bit grey scaled, transparency over white, EXIF turns ignored",
        "pillow": Image.__version__,
    }


def pixels(data: bytes, size: int, keep_aspect: bool = False) -> np.ndarray:
    """Decode one image: uint8 [size, size, 3] RGB. Raises Unreadable.

    Without `keep_aspect` the image is warped to a square (as the paper's data were); with it, its largest centred
    square is taken. Damage that leaves a JPEG decodable (flipped bits in its middle) cannot be seen.
    """
    if not data:
        raise Unreadable("empty file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's remarks about metadata; bombs are counted below
            with Image.open(io.BytesIO(data), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Unreadable(f"too large ({image.width} x {image.height} pixels: a decompression bomb?)")
                if image.format in ("JPEG", "MPO"):
                    image.draft(None, (2 * size, 2 * size))
                rgb = _rgb(image)
                box = None
                if keep_aspect:
                    side = min(rgb.size)
                    left, top = (rgb.width - side) / 2, (rgb.height - side) / 2
                    box = (left, top, left + side, top + side)
                return np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR, box=box))
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable("too large (a decompression bomb?)") from None
    except Image.UnidentifiedImageError:
        raise Unreadable(f"not an image ({', '.join(FORMATS)})") from None
    except Exception as error:  # Pillow's readers raise nearly any kind of error on damaged files
        raise Unreadable(f"damaged ({' '.join(str(error).split())[:100] or type(error).__name__})") from None


def _rgb(image: Any) -> Any:
    """The image in 8-bit RGB."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "F":
        raise Unreadable("floating-point pixels, whose scale is not known")
    if image.mode.startswith("I"):
        grey = np.asarray(image).astype(np.int64)
        if grey.min() < 0 or grey.max() > 65535:
            raise Unreadable("32-bit grey pixels, whose scale is not known")
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if "A" in image.mode.upper()[-1:] or "transparency" in image.info:
        over = image.convert("RGBA")
        white = Image.new("RGBA", over.size, "white")
        return Image.alpha_composite(white, over).convert("RGB")
    return image.convert("RGB")
