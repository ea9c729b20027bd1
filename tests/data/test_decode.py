"""Laws: every kind of image becomes the RGB that a person sees; what cannot is refused with its reason."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from made_files import encoded
from PIL import Image

from raygrid.data.arrays import Arrays
from raygrid.data.decode import Unreadable, pixels

COLOUR = (200, 100, 50)


def saved(image: Image.Image, form: str, **options: object) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def grey16(form: str) -> bytes:
    values = np.full((20, 30), 200 * 257, np.uint16)
    return saved(Image.fromarray(values), form)


plain = Image.new("RGB", (30, 20), COLOUR)
clear = Image.new("RGBA", (30, 20), (*COLOUR, 0))
READABLE = {
    "jpeg": (encoded(np.full((20, 30, 3), COLOUR, np.uint8)), COLOUR),
    "png": (saved(plain, "PNG"), COLOUR),
    "webp": (saved(plain, "WEBP", lossless=True), COLOUR),
    "bmp": (saved(plain, "BMP"), COLOUR),
    "tiff": (saved(plain, "TIFF"), COLOUR),
    "palette": (saved(plain.quantize(4), "PNG"), COLOUR),
    "gif": (saved(plain.quantize(4), "GIF"), COLOUR),
    "grey jpeg": (saved(Image.new("L", (30, 20), 77), "JPEG"), (77, 77, 77)),
    "grey": (saved(Image.new("L", (30, 20), 77), "PNG"), (77, 77, 77)),
    "black and white": (saved(Image.new("1", (30, 20), 1), "PNG"), (255, 255, 255)),
    "cmyk": (saved(Image.new("CMYK", (30, 20), (0, 255, 255, 0)), "JPEG", quality=100), (255, 0, 0)),
    "ycbcr": (saved(plain.convert("YCbCr"), "JPEG", quality=100), COLOUR),
    "16-bit png": (grey16("PNG"), (200, 200, 200)),
    "16-bit tiff": (grey16("TIFF"), (200, 200, 200)),
    "transparent": (saved(clear, "PNG"), (255, 255, 255)),
    "half transparent": (saved(Image.new("RGBA", (30, 20), (0, 0, 0, 128)), "PNG"), (127, 127, 127)),
    "grey and alpha": (saved(Image.new("LA", (30, 20), (9, 0)), "PNG"), (255, 255, 255)),
    "transparent palette": (saved(clear.quantize(2), "PNG", transparency=0), (255, 255, 255)),
    "huge jpeg": (saved(Image.new("RGB", (3000, 2000), COLOUR), "JPEG"), COLOUR),
    "one pixel": (saved(Image.new("RGB", (1, 1), COLOUR), "PNG"), COLOUR),
    "long": (saved(Image.new("RGB", (9000, 1), COLOUR), "PNG"), COLOUR),
}


@pytest.mark.parametrize("keep_aspect", [False, True])
@pytest.mark.parametrize("kind", READABLE)
def test_readable(kind: str, keep_aspect: bool) -> None:
    data, colour = READABLE[kind]
    got = pixels(data, 16, keep_aspect)
    assert got.shape == (16, 16, 3) and got.dtype == np.uint8
    assert np.abs(got.astype(int) - colour).max() <= 3, got[8, 8]


def bomb() -> bytes:
    """A PNG of a few hundred bytes that says it has 400 million pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 60_001)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def smaller_bomb() -> bytes:
    """Above Pillow's limit, where it only warns."""
    return saved(Image.new("1", (10_000, 9_500)), "PNG")


BIG = saved(Image.effect_noise((200, 200), 80).convert("RGB"), "JPEG")
UNREADABLE = {
    "empty": (b"", "empty file"),
    "not numbers": (b"P6 abc def 255\n", "damaged"),
    "text": (b"this is no image, whatever its name says", "not an image"),
    "zeros": (bytes(1000), "not an image"),
    "html": (b"<html><body>404</body></html>", "not an image"),
    "program": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    "truncated jpeg": (BIG[: len(BIG) // 2], "damaged"),
    "head only": (BIG[:300], "damaged|not an image"),
    "truncated png": (saved(plain.resize((200, 200)), "PNG")[:-30], "damaged"),
    "flipped png": ((lambda d: d[:60] + bytes([d[60] ^ 255]) + d[61:])(saved(plain, "PNG")), "damaged"),
    "bomb": (bomb(), "too large"),
    "smaller bomb": (smaller_bomb(), "too large"),
    "floats": (saved(Image.new("F", (9, 9), 0.5), "TIFF"), "floating-point"),
    "32 bits": (saved(Image.new("I", (9, 9), 1 << 20), "TIFF"), "32-bit"),
}


@pytest.mark.fault("an image that is damaged, huge, or no image")
@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable(kind: str) -> None:
    data, reason = UNREADABLE[kind]
    with pytest.raises(Unreadable, match=reason) as caught:
        pixels(data, 16)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


@pytest.mark.fault("images damaged at random")
def test_no_bytes_raise_anything_else(icons: Arrays, record_property: Any) -> None:
    """A thousand damaged files: pixels or Unreadable, never another error."""
    random = np.random.default_rng(0)
    sources = [
        encoded(p, f)
        for p in icons.train.gather(np.arange(5))
        for f in ("JPEG", "PNG", "GIF", "TIFF", "WEBP", "BMP", "PPM")
    ]
    for _ in range(1000):
        data = bytearray(sources[random.integers(len(sources))])
        for at in random.integers(0, len(data), 4):
            data[at] = random.integers(256)
        if random.random() < 0.3:
            del data[random.integers(len(data)) :]
        try:
            assert pixels(bytes(data), 8).shape == (8, 8, 3)
        except Unreadable:
            continue
    record_property("faults", 1000)


def test_aspect(icons: Arrays) -> None:
    """Warped: both ends are seen. Kept: only the centre."""
    wide = np.zeros((20, 60, 3), np.uint8)
    wide[:, :20], wide[:, 20:40], wide[:, 40:] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
    data = encoded(wide, "PNG")
    warped, kept = pixels(data, 20), pixels(data, 20, keep_aspect=True)
    assert warped[10, 0].tolist() == [255, 0, 0] and warped[10, -1].tolist() == [0, 0, 255]
    assert kept[:, 1:-1].reshape(-1, 3).tolist() == [[0, 255, 0]] * 360
    same = icons.train.gather(np.array([3]))[0]
    assert np.array_equal(pixels(encoded(same, "PNG"), 32), same), "an image of the right size was changed"


def test_large_jpegs_are_seen_whole(tmp_path: Path) -> None:
    """Decoding at reduced scale gives nearly what decoding whole gives."""
    photograph = np.asarray(Image.effect_noise((400, 300), 60).resize((100, 75)).resize((400, 300)).convert("RGB"))
    data = encoded(photograph, quality=95)
    with Image.open(io.BytesIO(data)) as image:
        whole = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR)).astype(int)
    assert np.abs(pixels(data, 64).astype(int) - whole).mean() < 3
