"""One door for every picture that somebody brings: upright, of 8 bits a channel, of a bounded size, or one sentence.

what a file holds                       what comes out
EXIF orientation                        turned as viewers show it; `info["turned"]` remembers
16 bits, 32 bits, floats                8 bits: 0..65535, 0..255 and 0..1 are told apart by the largest number
palettes, CMYK, one bit                 RGB or grey
transparency of any kind                RGBA; `flatten` puts it on white
several frames                          the first
more than LARGEST pixels                shrunk, a JPEG already while it is decoded
"""

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

LARGEST = 2048 * 2048  # pixels that are kept: four times what the largest bases draw
READABLE = 100_000_000  # pixels that are decoded at once, 400 MB at most; a JPEG may have 64 times as many
NUMBERS = ("I", "F")  # modes of more than 8 bits; I;16, I;16B and the like begin with I too
ORIENTATION = 0x0112  # the EXIF tag
TURNS = {  # its values but 1 (upright), and what puts such a picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(file: str | Path) -> Image.Image:
    """A picture file -> its first frame, upright, mode L, RGB or RGBA, at most LARGEST pixels.

    `info["turned"]` is the EXIF orientation, 1 to 8, that the file had. Raises FileNotFoundError or ValueError,
    one sentence that names the file.
    """
    picture = decode(file)
    with naming(file):
        return plain(picture)


def open_rgb(file: str | Path) -> Image.Image:
    """The same on white, mode RGB."""
    return flatten(open_picture(file))[0]


def plain(picture: Image.Image) -> Image.Image:
    """A PIL picture of any kind -> a new one: upright, mode L, RGB or RGBA, at most LARGEST pixels."""
    orientation = orientation_of(picture)
    if picture.mode in ("1", "P", "PA"):  # their pixels are no brightness and cannot be averaged
        picture = eight_bits(picture)
    picture = turned(eight_bits(shrunk(picture)), orientation).copy()
    picture.info = {"turned": orientation}
    return picture


def flatten(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A picture of any mode -> (RGB on white, opacity in grey or None if all is opaque)."""
    picture = eight_bits(picture)
    if picture.mode != "RGBA":
        return picture.convert("RGB"), None
    opacity = picture.getchannel("A")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    return flat, None if opacity.getextrema()[0] == 255 else opacity


def decode(file: str | Path) -> Image.Image:
    """The pixels of a file as they are stored; of a large JPEG, an eighth, a quarter or half of them a side."""
    if not os.path.isfile(file):
        what = "is a folder, no picture: give a file in it" if os.path.isdir(file) else "does not exist: check its name"
        raise FileNotFoundError(f"The picture {file} {what}.")
    try:
        with unlimited(), Image.open(file) as picture:
            picture.draft(None, bounded(picture.size))
            width, height = picture.size
            if width * height <= READABLE:
                picture.load()
                picture.info["orientation"] = orientation_of(picture)
                return picture
    except Exception as error:  # decoders raise anything on a broken file
        raise ValueError(f"{file} is no readable picture ({reason(error)}): save it again as PNG or JPEG.") from error
    raise ValueError(f"{file} has {width}x{height} pixels, more than fit in memory: make it smaller, 2048 a side do.")


@contextmanager
def unlimited() -> Iterator[None]:
    """Pillow neither warns of large pictures nor of odd files while it is on: READABLE is the limit here."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextmanager
def naming(file: str | Path) -> Iterator[None]:
    """Put the file's name before what is wrong with its pixels."""
    try:
        yield
    except ValueError as error:
        raise ValueError(f"{file} cannot be used, {error}.") from None


def reason(error: Exception) -> str:
    """A few words on why a file could not be decoded."""
    if isinstance(error, UnidentifiedImageError):
        return "no format that is known here"
    if not isinstance(error, (OSError, SyntaxError)):
        return "its content is damaged"
    words = getattr(error, "strerror", None) or str(error) or "its content is damaged"
    return words.splitlines()[0][:100]


def orientation_of(picture: Image.Image) -> int:
    """The EXIF orientation of a PIL picture, 1 if there is none or it cannot be read."""
    if "orientation" in picture.info:  # of a file that `decode` has closed
        return picture.info["orientation"]
    try:
        found = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # as for pixels: a broken EXIF block raises anything, and is no reason to refuse the picture
        return 1
    return found if found in TURNS else 1


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """Put a picture with that EXIF orientation upright."""
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def bounded(size: tuple[int, int]) -> tuple[int, int]:
    """A size of the same shape, of at most LARGEST pixels."""
    by = min(1.0, (LARGEST / (size[0] * size[1])) ** 0.5)
    return max(1, round(size[0] * by)), max(1, round(size[1] * by))


def shrunk(picture: Image.Image, way: Image.Resampling = Image.Resampling.BICUBIC) -> Image.Image:
    """The picture with at most LARGEST pixels."""
    size = bounded(picture.size)
    return picture if size == picture.size else picture.resize(size, way)


def eight_bits(picture: Image.Image) -> Image.Image:
    """A picture of any mode -> L, RGB, or RGBA if it can be transparent."""
    if picture.mode.startswith(NUMBERS):
        return Image.fromarray(to_bytes(np.asarray(picture)))
    if picture.has_transparency_data:
        return picture.convert("RGBA")
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def to_bytes(numbers: np.ndarray) -> np.ndarray:
    """Numbers of any range -> (H, W) bytes; ValueError, worded to stand after a file's name, on what is no brightness.

    Up to 1 they are fractions, and a little above in pictures of high dynamic range, which are clipped; up to 255 they
    are bytes; up to 65535 they are 16 bits. So a picture whose 16 bits hold no more than a byte is no black one.
    """
    high = numbers.max(initial=0)
    if not np.isfinite(numbers).all() or high > 65535:
        raise ValueError(f"its numbers go up to {high:g}: save it as PNG or JPEG of 8 bits")
    if numbers.dtype.kind == "f" and high < 4:
        whole = 1
    else:
        whole = 255 if high <= 255 else 65535
    return (numbers.astype(np.float32) * (255 / whole)).clip(0, 255).round().astype(np.uint8)
