"""A client's pictures at one glance, before they are tuned on (paper 3.2): what tuning will see of each."""

import numpy as np
from PIL import Image, ImageDraw

from .data import ConceptData, crop_box, fit, too_small
from .grid import grid, resized

SHOWN = 224  # pixels: width of a picture on the sheet


def contact_sheet(data: ConceptData, size: int | tuple[int, int] | None = None, columns: int = 4) -> Image.Image:
    """Every picture with its crop, caption and mask as one PIL picture; a pure function of its arguments.

    Above, the whole picture with a frame around what tuning sees; below, that crop, dimmed outside the mask. `size` is
    an int or (height, width) in pixels; None: a square of the smallest picture's side. Pictures that are too small for
    it are shown as well, and say so. Raises ValueError on a size that is none.
    """
    size = sides(data, size)
    rows, titles, captions = [], {}, {}
    for start in range(0, len(data), columns):
        here = range(start, min(start + columns, len(data)))
        titles[len(rows)] = [title_of(data.files[i], data.pictures[i], size) for i in here]
        for j, i in enumerate(here):
            captions[len(rows) + 1, j] = data.captions[i] if data.masks[i] else f"{data.captions[i]} (no mask)"
        rows.append([whole(data.pictures[i], size) for i in here])
        rows.append([crop(data.pictures[i], data.masks[i], size) for i in here])
    return grid(rows, titles, side=SHOWN, captions=captions)


def sides(data: ConceptData, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """What `size` means, (height, width)."""
    if size is None:
        size = min(min(picture.size) for picture in data.pictures)
    given = (size, size) if isinstance(size, int) else size
    numbers = isinstance(given, (tuple, list)) and all(isinstance(side, int) and side > 0 for side in given)
    if not (numbers and len(given) == 2):
        raise ValueError(f"size={size!r} is no size: give pixels, an int or (height, width), e.g. base.size.")
    return tuple(given)


def title_of(name: str, picture: Image.Image, size: tuple[int, int]) -> str:
    """The file's name and the picture's size, and whether that is too small to tune on."""
    note = ", too small" if too_small(picture, size) else ""
    return f"{name}\n{picture.width}x{picture.height}{note}"


def whole(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole picture as it is on the sheet, with a frame around the crop."""
    drawn = resized(picture, width_of(picture.size)).copy()
    scale = drawn.width / picture.width
    left, top, right, bottom = (round(edge * scale) for edge in crop_box(picture, size))
    box = left, top, max(right - 1, left), max(bottom - 1, top)
    ImageDraw.Draw(drawn).rectangle(box, outline="crimson", width=3)
    return on_paper(drawn)


def crop(picture: Image.Image, mask: Image.Image | None, size: tuple[int, int]) -> Image.Image:
    """What tuning sees, as it is on the sheet, dimmed where the mask is black."""
    width = width_of(size[::-1])
    shown = max(1, round(size[0] * width / size[1])), width
    return on_paper(dimmed(fit(picture, shown), mask and fit(mask, shown)))


def width_of(size: tuple[int, int]) -> int:
    """How wide a picture of (width, height) pixels is on the sheet: SHOWN, less if it would be too high."""
    return max(1, round(min(SHOWN, 2 * SHOWN * size[0] / size[1])))


def on_paper(picture: Image.Image) -> Image.Image:
    """The picture in the middle of white paper that is SHOWN pixels wide."""
    paper = Image.new("RGB", (SHOWN, picture.height), "white")
    paper.paste(picture, ((SHOWN - picture.width) // 2, 0))
    return paper


def dimmed(picture: Image.Image, mask: Image.Image | None) -> Image.Image:
    """The picture at a quarter of its contrast outside the mask."""
    if mask is None:
        return picture
    inside = 0.25 + 0.75 * np.asarray(mask, dtype=np.float32)[..., None] / 255  # (H, W, 1)
    pale = 255 - (255 - np.asarray(picture, dtype=np.float32)) * inside
    return Image.fromarray(pale.round().astype(np.uint8))
