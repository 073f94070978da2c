"""A client's pictures at one glance, before they are tuned on (paper 3.2): what tuning will see of each."""

import textwrap

import numpy as np
from PIL import Image

from .data import ConceptData, crop_box, fit, too_small

SHOWN = 400  # pixels on the long side of a picture on the sheet


def contact_sheet(data: ConceptData, size: int | tuple[int, int] | None = None, columns: int = 4):
    """Every picture with its crop, caption and mask as a matplotlib Figure; a pure function of its arguments.

    Above, the whole picture with a frame around what tuning sees; below, that crop, dimmed outside the mask. `size` is
    an int or (height, width) in pixels; None: a square of the smallest picture's side. Pictures that are too small for
    it are shown as well, and say so. Raises ValueError on a size that is none.
    """
    from matplotlib.figure import Figure

    size = sides(data, size)
    columns = min(columns, len(data))
    rows = -(-len(data) // columns)
    figure = Figure(figsize=(2.2 * columns, 5.0 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i in range(len(data)):
        row, column = 2 * (i // columns), i % columns
        draw_whole(axes[row, column], data.files[i], data.pictures[i], size)
        draw_crop(axes[row + 1, column], data.captions[i], data.pictures[i], data.masks[i], size)
    return figure


def sides(data: ConceptData, size: int | tuple[int, int] | None) -> tuple[int, int]:
    """What `size` means, (height, width)."""
    if size is None:
        size = min(min(picture.size) for picture in data.pictures)
    given = (size, size) if isinstance(size, int) else size
    numbers = isinstance(given, (tuple, list)) and all(isinstance(side, int) and side > 0 for side in given)
    if not (numbers and len(given) == 2):
        raise ValueError(f"size={size!r} is no size: give pixels, an int or (height, width), e.g. base.size.")
    return tuple(given)


def draw_whole(axis, name: str, picture: Image.Image, size: tuple[int, int]) -> None:
    """The whole picture, in its own coordinates, with a frame around the crop."""
    from matplotlib.patches import Rectangle

    left, top, right, bottom = crop_box(picture, size)
    small = picture.copy()
    small.thumbnail((SHOWN, SHOWN))
    axis.imshow(np.asarray(small), extent=(0, picture.width, picture.height, 0))
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="crimson", lw=2))
    note = ", too small" if too_small(picture, size) else ""
    axis.set_title(f"{name}\n{picture.width}x{picture.height}{note}", fontsize=8, color="crimson" if note else "black")


def draw_crop(axis, caption: str, picture: Image.Image, mask: Image.Image | None, size: tuple[int, int]) -> None:
    """What tuning sees, dimmed where the mask is black."""
    by = min(1.0, SHOWN / max(size))
    shown = tuple(max(1, round(side * by)) for side in size)
    axis.imshow(dimmed(fit(picture, shown), mask and fit(mask, shown)))
    axis.set_title(textwrap.fill(caption if mask else f"{caption} (no mask)", 32), fontsize=8)


def dimmed(picture: Image.Image, mask: Image.Image | None) -> np.ndarray:
    """(H, W, 3) bytes of a picture, at a quarter of its contrast outside the mask."""
    if mask is None:
        return np.asarray(picture)
    inside = 0.25 + 0.75 * np.asarray(mask, dtype=np.float32)[..., None] / 255  # (H, W, 1)
    return (255 - (255 - np.asarray(picture, dtype=np.float32)) * inside).round().astype(np.uint8)
