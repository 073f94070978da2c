"""Regions as a picture: what the canvas shows, for a README, a page on GitHub, a run without a browser."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ...engine.regional import Region
from .scene import PALETTE

PAPER, DOTS = (246, 247, 249), (222, 225, 231)


def render_regions(
    regions: Sequence[Region],
    background: Image.Image | None = None,
    size: tuple[int, int] = (384, 384),
    names: Sequence[str] | None = None,
    colors: Sequence[str] | None = None,
) -> Image.Image:
    """Draw regions over a background: masks tinted, boxes outlined, each with its name (by default its prompt).

    `size` is (height, width) of the drawing in pixels; the background is stretched to it, as masks are over a picture.
    `colors` are "#rrggbb". Nothing is changed, and the same arguments give the same pixels.
    """
    height, width = size
    names = [region.prompt for region in regions] if names is None else names
    colors = [PALETTE[i % len(PALETTE)] for i in range(len(regions))] if colors is None else colors
    if background is None:
        canvas = Image.new("RGB", (width, height), PAPER)
        draw = ImageDraw.Draw(canvas)
        for y in range(8, height, 16):
            draw.point([(x, y) for x in range(8, width, 16)], fill=DOTS)
    else:
        canvas = background.convert("RGB").resize((width, height), Image.Resampling.BICUBIC)
    for region, color in zip(regions, colors, strict=True):
        cover = Image.fromarray((255 * _cover(region, height, width)).round().astype(np.uint8))
        canvas.paste(Image.new("RGB", canvas.size, color), mask=cover.point(lambda value: round(value * 0.35)))
    draw = ImageDraw.Draw(canvas)
    line = max(2, round(max(size) / 160))
    for region, name, color in zip(regions, names, colors, strict=True):
        left, top, right, bottom = edges = extent(region, height, width)
        if region.box is not None:
            draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=color, width=line)
        _label(draw, name, edges, color, line)
    return canvas


def extent(region: Region, height: int, width: int) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) in pixels of a region's box, or of the box around its mask."""
    if region.box is not None:
        left, top, right, bottom = region.box
    else:
        ys, xs = np.nonzero(region.mask)
        rows, columns = region.mask.shape
        left, top, right, bottom = xs.min() / columns, ys.min() / rows, (xs.max() + 1) / columns, (ys.max() + 1) / rows
    return round(left * width), round(top * height), round(right * width), round(bottom * height)


def _cover(region: Region, height: int, width: int) -> np.ndarray:
    """(H, W) in 0..1: how much of each pixel of the drawing belongs to the region."""
    if region.mask is not None:
        picture = Image.fromarray((region.mask * 255).round().astype(np.uint8))
        return np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR), dtype=np.float32) / 255
    cover = np.zeros((height, width), dtype=np.float32)
    left, top, right, bottom = extent(region, height, width)
    cover[top:bottom, left:right] = 1
    return cover


def _label(draw: ImageDraw.ImageDraw, text: str, edges: tuple[int, int, int, int], color: str, line: int) -> None:
    """The name on a plate in the region's top left corner, cut to the region's width."""
    left, top, right, _ = edges
    font = ImageFont.load_default(size=max(10, line * 5))
    text = " ".join(text.split())
    room = right - left - 4 * line
    if draw.textlength(text, font) > room:
        while text and draw.textlength(text + "…", font) > room:
            text = text[:-1]
        text = text.rstrip() + "…" if text else ""
    if text:
        _, _, x1, y1 = draw.textbbox((left + 2 * line, top + 2 * line), text, font)
        draw.rectangle((left, top, x1 + 2 * line, y1 + 2 * line), fill=color)
        draw.text((left + 2 * line, top + 2 * line), text, fill=ink(color), font=font)


def ink(color: str) -> str:
    """Black or white, whichever reads better on "#rrggbb" (WCAG relative luminance)."""
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return "#000000" if 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] > 0.179 else "#ffffff"
