"""Photos of one's own, made ready for tuning: collect, crop, mask with a click, caption, write the folder.

collect(folder)                 the pictures in a folder; on Colab it asks for an upload first if there are none
crop(picture, centre, zoom)     the square around the subject
mask_of(picture, clicks)        what looks like the places that were clicked, and hangs together with them
write(folder, ...)              an imagefolder that `ConceptData` reads
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from ..files.concept import PLACEHOLDER
from ..files.imagefolder import write_folder
from ..files.listing import pictures_in
from ..files.pictures import flatten, open_picture

Point = tuple[float, float]  # x, y in fractions of the picture, from its upper left corner


def collect(folder: str | Path) -> list[Image.Image]:
    """The pictures in a folder, upright and in RGB; [] where there is none (the folder is made).

    On Colab, where it is empty, a button asks for files first. Raises ValueError on a file that is no picture.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if not pictures_in(folder) and "google.colab" in sys.modules:
        from google.colab import files

        for name, content in files.upload().items():
            (folder / Path(name).name).write_bytes(content)
    return [flatten(open_picture(file))[0] for file in pictures_in(folder)]


def crop(picture: Image.Image, centre: Point = (0.5, 0.5), zoom: float = 1.0) -> Image.Image:
    """The square around `centre`: the picture's shorter side at zoom 1, half of it at 2. It stays inside the picture.

    Raises ValueError on a zoom below 1 or a centre outside.
    """
    if not zoom >= 1 or not all(0 <= part <= 1 for part in centre):
        raise ValueError(f"centre={centre}, zoom={zoom}: the centre lies in the picture, a zoom is 1 or more.")
    side = min(picture.size) / zoom
    left, top = (
        min(max(part * whole - side / 2, 0), whole - side) for part, whole in zip(centre, picture.size, strict=True)
    )
    return picture.crop((round(left), round(top), round(left + side), round(top + side)))


def mask_of(picture: Image.Image, clicks: Sequence[Point], tolerance: float = 0.15) -> Image.Image:
    """What hangs together with a clicked place and differs from its colour by at most `tolerance`, in white on black.

    The difference is the largest over red, green and blue, 1 from black to white; clicks add up. Raises ValueError
    without a click, on one outside the picture, or on a tolerance that is none.
    """
    if not clicks or not all(0 <= part < 1 for click in clicks for part in click) or not 0 <= tolerance <= 1:
        raise ValueError(f"clicks={list(clicks)}, tolerance={tolerance}: click at least once, inside the picture.")
    pixels = np.asarray(picture.convert("RGB"), float) / 255
    mask = np.zeros(pixels.shape[:2], bool)
    for x, y in clicks:
        column, row = int(x * picture.width), int(y * picture.height)
        alike = np.abs(pixels - pixels[row, column]).max(-1) <= tolerance
        mask |= connected(alike, (column, row))
    return Image.fromarray((mask * 255).astype(np.uint8))


def connected(alike: np.ndarray, start: tuple[int, int]) -> np.ndarray:
    """The part of a mask (H, W) that hangs together with the pixel `start` (column, row), side by side."""
    flooded = Image.fromarray(np.where(alike, 128, 0).astype(np.uint8)).copy()  # else it shares the array, read only
    ImageDraw.floodfill(flooded, start, 255)
    return np.asarray(flooded) == 255


def write(
    folder: str | Path,
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    class_word: str,
    masks: Sequence[Image.Image | None] | None = None,
) -> Path:
    """Write pictures, captions and masks as an imagefolder -> the folder; an older one that this wrote is replaced.

    Raises ValueError unless there is one caption a picture, which names the concept by <TOK>, and a class word,
    FileExistsError if the folder holds anything else, such as the photos themselves.
    """
    masks = [None] * len(pictures) if masks is None else list(masks)
    if not len(pictures) == len(captions) == len(masks) or not pictures:
        raise ValueError(f"{len(pictures)} pictures, {len(captions)} captions, {len(masks)} masks: give one each.")
    silent = [caption for caption in captions if PLACEHOLDER not in caption]
    if silent or not class_word.strip():
        what = f"the caption {silent[0]!r} does not name the concept" if silent else "there is no class word"
        raise ValueError(f"{what}: write {PLACEHOLDER} where it is named, and in one word what it is, such as 'dog'.")
    return write_folder(folder, pictures, captions, class_word, masks)
