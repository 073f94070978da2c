"""The few SVG shapes Pocket World is drawn with, and one call into resvg that turns them into pixels.

A drawing is a list of SVG elements (strings) in a 128 x 128 user space, so one drawing renders at any size.
"""

import colorsys
import io
import math

import numpy as np
import resvg_py
from PIL import Image

UNITS = 128  # side of the user space every scene is drawn in
INK = "#2b2530"  # outlines, pupils and mouths


def rgb(colour) -> str:
    """`(r, g, b)` floats in [0, 1] -> `#rrggbb`; strings pass through."""
    if isinstance(colour, str):
        return colour
    return "#" + "".join(f"{round(255 * min(1.0, max(0.0, c))):02x}" for c in colour)


def mix(a, b, t: float) -> tuple[float, float, float]:
    """Colour `t` of the way from `a` to `b` (both (r, g, b) in [0, 1])."""
    return tuple((1 - t) * x + t * y for x, y in zip(a, b, strict=True))


def hsv(h: float, s: float, v: float) -> tuple[float, float, float]:
    """Hue (turns), saturation and value in [0, 1] -> (r, g, b)."""
    return colorsys.hsv_to_rgb(h % 1.0, min(1.0, max(0.0, s)), min(1.0, max(0.0, v)))


def dark(colour, t: float = 0.45):
    """The outline colour that goes with a fill."""
    return mix(colour, (0.12, 0.10, 0.16), t)


def light(colour, t: float = 0.45):
    return mix(colour, (1.0, 1.0, 1.0), t)


def _paint(fill, stroke, width) -> str:
    text = f'fill="{rgb(fill) if fill is not None else "none"}"'
    if stroke is not None:
        text += f' stroke="{rgb(stroke)}" stroke-width="{width:.2f}" stroke-linecap="round" stroke-linejoin="round"'
    return text


def ellipse(x, y, rx, ry, fill, stroke=None, width=2.4, turn=0.0):
    spin = f' transform="rotate({turn:.2f} {x:.2f} {y:.2f})"' if turn else ""
    return f'<ellipse cx="{x:.2f}" cy="{y:.2f}" rx="{rx:.2f}" ry="{ry:.2f}" {_paint(fill, stroke, width)}{spin}/>'


def box(x, y, w, h, r, fill, stroke=None, width=2.4, turn=0.0):
    """Rounded rectangle with its top-left corner at (x, y)."""
    spin = f' transform="rotate({turn:.2f} {x + w / 2:.2f} {y + h / 2:.2f})"' if turn else ""
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{w:.2f}" height="{h:.2f}" rx="{r:.2f}" '
        f"{_paint(fill, stroke, width)}{spin}/>"
    )


def path(d: str, fill, stroke=None, width=2.4):
    return f'<path d="{d}" {_paint(fill, stroke, width)}/>'


def polygon(points, fill, stroke=None, width=2.4):
    d = "M" + " L".join(f"{x:.2f} {y:.2f}" for x, y in points) + " Z"
    return path(d, fill, stroke, width)


def line(points, stroke, width=2.4):
    d = "M" + " L".join(f"{x:.2f} {y:.2f}" for x, y in points)
    return path(d, None, stroke, width)


def curve(x0, y0, cx, cy, x1, y1, stroke, width=2.4):
    return path(f"M{x0:.2f} {y0:.2f} Q{cx:.2f} {cy:.2f} {x1:.2f} {y1:.2f}", None, stroke, width)


def star(x, y, r, fill, stroke=None, width=1.2, points=5, inner=0.45):
    corners = []
    for i in range(2 * points):
        radius = r if i % 2 == 0 else r * inner
        angle = math.pi * (i / points - 0.5)
        corners.append((x + radius * math.cos(angle), y + radius * math.sin(angle)))
    return polygon(corners, fill, stroke, width)


def group(elements, transform="", clip=""):
    """One <g>; `clip` is the id of a clipPath, `transform` an SVG transform."""
    attrs = (f' transform="{transform}"' if transform else "") + (f' clip-path="url(#{clip})"' if clip else "")
    return f"<g{attrs}>" + "".join(elements) + "</g>"


def unfilled(element: str) -> str:
    """The outline of an element alone."""
    fill = element.split('fill="', 1)[1].split('"', 1)[0]
    return element.replace(f'fill="{fill}"', 'fill="none"')


def clip_path(name, shapes):
    return f'<clipPath id="{name}">' + "".join(shapes) + "</clipPath>"


def rasterise(elements, size: int, style: str | None = None) -> np.ndarray:
    """Draw elements on a transparent `size` x `size` picture -> uint8 array (size, size, 4), anti-aliased RGBA."""
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {UNITS} {UNITS}">' + "".join(elements) + "</svg>"
    png = resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size, skip_system_fonts=True, style_sheet=style)
    return np.asarray(Image.open(io.BytesIO(bytes(png))).convert("RGBA"))
