"""Masks as programs write them: where something is in a picture, read from a file and laid on that picture.

White means the subject, or opaque in a picture that is transparent somewhere. Programs also write labels: 0 and 1, a
class number, a colour on black. One label on black can only mean one thing and becomes white; where there are several,
nobody but the reader knows which is meant, and a sentence asks.
"""

from pathlib import Path

import numpy as np
from PIL import Image

from .pictures import decode, naming, orientation_of, shrunk, to_bytes, turned

SMALLEST = 32  # pixels on the short side of a mask that is smaller than its picture
ANSWER = "make what is meant white and the rest black"
TURNED = (
    "{n} of {total} pictures in {folder} are stored turned (EXIF) and their masks fit both ways, e.g. that of {file}: "
    "they are taken as drawn on the upright picture, look at show()."
)
INVERTED = (
    "{n} of {total} masks in {folder} are white around a black middle, e.g. that of {file}: the concept should be "
    "white, look at show() and invert them if they are the other way round."
)


def open_mask(file: str | Path) -> Image.Image:
    """A mask file -> mode L, white where it means, upright, at most LARGEST pixels; errors as of `open_picture`."""
    picture = decode(file)
    orientation = orientation_of(picture)
    with naming(file):
        values = spread(picture_values(picture))
    mask = turned(Image.fromarray((255 * values).round().astype(np.uint8)), orientation)
    mask.info["turned"] = orientation
    return mask


def laid_on(mask: Image.Image, picture: Image.Image, orientation: int, file: Path) -> tuple[Image.Image, str | None]:
    """A mask at the size of its picture, and what it may be; ValueError unless it has the picture's shape.

    A program that knows no EXIF draws masks on the pixels as they are stored. Such a mask of another shape than the
    upright picture is turned as the picture was.
    """
    stored = turned(mask, orientation) if mask.info["turned"] == 1 else mask
    fits, fits_stored = same_shape(mask.size, picture.size), same_shape(stored.size, picture.size)
    if not (fits or fits_stored):
        raise ValueError(
            f"{file} is {mask.width}x{mask.height} but its picture is {picture.width}x{picture.height}: "
            "make the mask the picture's size."
        )
    either = fits and fits_stored and mask.tobytes() != stored.tobytes()
    mask = mask if fits else stored
    if mask.size != picture.size:
        mask = mask.resize(picture.size, Image.Resampling.BILINEAR)
    return mask, TURNED if either else INVERTED if looks_inverted(mask) else None


def same_shape(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether two sizes differ by nothing but a scale and a rounded pixel of the smaller one."""
    off = abs(size[0] * other[1] - size[1] * other[0])  # in pixels of the smaller, times a side of the larger
    return size == other or (off <= max(*size, *other) and min(*size, *other) >= SMALLEST)


def looks_inverted(mask: Image.Image) -> bool:
    """Whether the rim of a mask is white and most of its middle black."""
    inside = np.asarray(mask, dtype=np.float32) / 255  # (H, W)
    h, w = inside.shape
    rim = np.concatenate([inside[0], inside[-1], inside[:, 0], inside[:, -1]])
    middle = inside[h // 4 : h - h // 4, w // 4 : w - w // 4]
    return bool(rim.mean() > 0.9 and middle.mean() < 0.5)


def picture_values(picture: Image.Image) -> np.ndarray:
    """The numbers of a mask, (H, W): opacity as fractions of 1, labels and brightness as they are stored."""
    picture = shrunk(picture, Image.Resampling.NEAREST)  # which invents no label between two
    if picture.has_transparency_data:
        opacity = picture.convert("RGBA").getchannel("A")
        if opacity.getextrema()[0] < 255:
            return np.asarray(opacity, dtype=np.float32) / 255
    if picture.mode == "F":
        return to_bytes(np.asarray(picture))
    if picture.mode in ("1", "L") or picture.mode.startswith("I"):
        return np.asarray(picture)
    if picture.mode == "P":
        picture = without_border(picture)
    return shades(np.asarray(picture.convert("RGB")))


def without_border(labels: Image.Image) -> Image.Image:
    """Label 255 is drawn around objects where nobody is sure (Pascal VOC): it becomes background, label 0."""
    used = {label for _, label in labels.getcolors()}
    coloured = any(len(set(labels.getpalette()[3 * label : 3 * label + 3])) > 1 for label in used)
    if not (coloured and used - {0, 255}):
        return labels
    return labels.point([*range(255), 0])


def shades(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) bytes in shades of one colour on black -> (H, W) bytes; grey keeps its brightness.

    Raises ValueError, worded to stand after a file's name, on several colours.
    """
    brightness = rgb.max(axis=2)  # (H, W)
    colour = rgb.reshape(-1, 3)[brightness.argmax()].astype(np.float32)  # the brightest pixel's
    top = max(colour.max(), 1)
    off = np.abs(rgb - brightness[..., None] * (colour / top)).max()
    if off > 24:  # what JPEG and antialiasing do to one colour
        raise ValueError(f"its colours do not say where the mask is: {ANSWER}")
    if colour.max() - colour.min() <= 8:
        return brightness
    return (brightness * (255 / top)).round().astype(np.uint8)


def spread(values: np.ndarray) -> np.ndarray:
    """The numbers of a mask, (H, W) -> float32 in 0..1; ValueError, worded to stand after a name, on what is none.

    Floats count as they are. Whole numbers are labels if none is bright: a single one on 0 becomes 1, several raise.
    """
    if values.dtype.kind not in "buif" or values.ndim != 2 or not values.size:
        raise ValueError("it is no (height, width) array of numbers in 0..1 or of bytes")
    low, high = values.min(), values.max()
    if not np.isfinite(values).all() or low < 0 or high > (1 if values.dtype.kind in "bf" else 65535):
        raise ValueError(f"its numbers go from {low:g} to {high:g}: give numbers in 0..1, or bytes")
    if values.dtype.kind in "bf":
        return values.astype(np.float32)
    whole = 255 if high <= 255 else 65535
    labels, counts = np.unique(values[values > 0], return_counts=True)
    if len(labels) == 2 and labels[0] < 32 and labels[1] == whole and counts[0] > counts[1]:
        return (values == labels[0]).astype(np.float32)  # one class and a border of 255 around it, as Pascal VOC has
    if high < whole / 2 and len(labels) == 1:
        return (values > 0).astype(np.float32)
    if high < whole / 2 and len(labels) > 1:
        shown = ", ".join(str(label) for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
        raise ValueError(f"it holds the values {shown} and none is white: {ANSWER}")
    return values.astype(np.float32) / whole
