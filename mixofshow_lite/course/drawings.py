"""The paper's Fig. 1 and 4 with our own characters: from clients' pictures to one picture of all."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

INK, FAINT, PAPER = "#30343c", "#9aa0aa", "#f1f3f6"
WIDE, HIGH, DPI = 9.0, 3.6, 100  # inches, inches, pixels an inch


def pipeline(clients: Mapping[str, Sequence[Image.Image]], together: Image.Image) -> Image.Image:
    """Each client's pictures, what it shares, the center node, and `together`: a picture of all of them.

    `clients` is name -> pictures, of which two are shown; up to three clients fit. Raises ValueError otherwise.
    """
    import matplotlib.pyplot as plt

    if not 1 <= len(clients) <= 3 or not all(len(pictures) for pictures in clients.values()):
        raise ValueError(f"{len(clients)} clients: the drawing has room for one to three, each with a picture.")
    figure = plt.figure(figsize=(WIDE, HIGH), dpi=DPI, layout="none")
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, WIDE), ylim=(0, HIGH))
    page.axis("off")
    _heads(page)
    middle = (HIGH - 0.5) / 2
    for row, (name, pictures) in enumerate(clients.items()):
        y = (HIGH - 0.5) * (1 - (row + 0.5) / len(clients))
        side = min(1.0, (HIGH - 0.7) / len(clients) - 0.1)
        for k, picture in enumerate(pictures[:2]):
            _picture(figure, picture, 0.2 + k * (side + 0.06), y - side / 2, side)
        _arrow(page, (0.3 + 2 * (side + 0.06), y), (3.0, y), "tune")
        _box(page, 3.0, y - 0.28, 1.25, 0.56, f"{name}\nwords + LoRA")
        _arrow(page, (4.25, y), (5.1, middle), "")
    _box(page, 5.1, middle - 0.45, 1.2, 0.9, "center node\nfuses them\ninto one model")
    _arrow(page, (6.3, middle), (6.95, middle), "sample")
    _picture(figure, together, 7.0, middle - 0.9, 1.8)
    figure.canvas.draw()
    drawn = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())
    plt.close(figure)
    return drawn


def _heads(page) -> None:
    """What each column is, and where the paper treats it."""
    heads = {1.3: "pictures stay at home", 3.6: "3.3.1: shared", 5.7: "3.3.2: fused", 7.9: "3.4: in one picture"}
    for x, text in heads.items():
        page.text(x, HIGH - 0.25, text, ha="center", va="center", color=INK, fontsize=10, weight="bold")


def _box(page, x: float, y: float, wide: float, high: float, text: str) -> None:
    from matplotlib.patches import FancyBboxPatch

    page.add_patch(
        FancyBboxPatch((x, y), wide, high, "round,pad=0,rounding_size=0.1", facecolor=PAPER, edgecolor=FAINT)
    )
    page.text(x + wide / 2, y + high / 2, text, ha="center", va="center", color=INK, fontsize=9)


def _arrow(page, start: tuple[float, float], end: tuple[float, float], text: str) -> None:
    page.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": FAINT, "lw": 1.6})
    page.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.1, text, ha="center", color=INK, fontsize=9)


def _picture(figure, picture: Image.Image, x: float, y: float, side: float) -> None:
    axes = figure.add_axes((x / WIDE, y / HIGH, side / WIDE, side / HIGH))
    axes.imshow(np.asarray(picture.convert("RGB")), interpolation="lanczos")
    axes.axis("off")
