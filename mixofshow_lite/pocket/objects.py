"""The objects of Pocket World: five classes from continuous parameters, in the same local frame as the characters.

`shape` holds wide (width), tall (height), part (size of the second part) around 1.0, and turn in degrees.
"""

from .characters import pattern_marks
from .svg import INK, box, clip_path, curve, dark, ellipse, group, light, line, path, polygon, unfilled

OBJECTS = ("car", "mug", "chair", "balloon", "umbrella")
SHAPE = {"wide": (0.8, 1.25), "tall": (0.82, 1.2), "part": (0.75, 1.3), "turn": (-8.0, 8.0)}


def keypoints(subject) -> dict[str, tuple[float, float]]:
    """Corners of the object's frame in its local coordinates."""
    w, h = 34 * subject.shape["wide"], 70 * subject.shape["tall"]
    return {"top_left": (-w, -h), "top_right": (w, -h), "bottom_left": (-w, 0.0), "bottom_right": (w, 0.0)}


def draw(subject, key: str) -> list[str]:
    """SVG elements of an object in its local frame; `key` makes clip ids unique in the picture."""
    return _DRAW[subject.cls](subject, key)


def _skin(subject, key, shape, centre, radii):
    """The main surface, with an out-domain pattern on it if the subject has one."""
    if subject.pattern is None:
        return [shape]
    kind, tint, scale = subject.pattern
    outline = unfilled(shape)
    return [shape, clip_path(key, [shape]), group(pattern_marks(kind, tint, scale, centre, radii), clip=key), outline]


def _car(s, key):
    c, e, w, h, k = s.rgb, dark(s.rgb, 0.55), 46 * s.shape["wide"], 22 * s.shape["tall"], s.shape["part"]
    base = -9
    d = f"M{-w:.1f} {base} L{-w:.1f} {base - h * 0.7:.1f} Q{-w:.1f} {base - h:.1f} {-w * 0.8:.1f} {base - h:.1f}"
    d += f" L{w * 0.75:.1f} {base - h:.1f} Q{w:.1f} {base - h * 0.9:.1f} {w:.1f} {base - h * 0.4:.1f} L{w:.1f} {base} Z"
    roof = base - h - 20 * k
    cabin = [(-w * 0.55, base - h + 1), (-w * 0.35, roof), (w * 0.28, roof), (w * 0.55, base - h + 1)]
    glass = [(-w * 0.42, base - h - 1), (-w * 0.28, roof + 4), (w * 0.22, roof + 4), (w * 0.4, base - h - 1)]
    out = [
        polygon(cabin, c, e),
        polygon(glass, (0.78, 0.92, 0.98), e, 1.8),
        line([(-2, roof + 3), (-2, base - h)], e, 2.8),
    ]
    out += _skin(s, key, path(d, c, e), (0, base - h / 2), (w, h))
    out += [ellipse(w * 0.88, base - h * 0.6, 4.6, 5.0, (1.0, 0.93, 0.55), e, 1.6)]
    for x in (-w * 0.58, w * 0.58):
        out += [ellipse(x, -10, 11.5, 11.5, (0.2, 0.2, 0.24), INK, 1.6), ellipse(x, -10, 5.4, 5.4, (0.8, 0.82, 0.85))]
    return out


def _mug(s, key):
    c, e, w, h, k = s.rgb, dark(s.rgb, 0.55), 22 * s.shape["wide"], 52 * s.shape["tall"], s.shape["part"]
    handle = [
        ellipse(w + 5 * k, -h * 0.5, 13 * k, 14 * k, None, e, 10.0),
        ellipse(w + 5 * k, -h * 0.5, 13 * k, 14 * k, None, c, 5.0),
    ]
    skin = _skin(s, key, box(-w, -h, 2 * w, h, 7, c, e), (0, -h / 2), (w, h / 2))
    rim = [ellipse(0, -h, w, 6, light(c, 0.35), e), ellipse(0, -h + 0.6, w - 4, 3.6, (0.36, 0.22, 0.16))]
    steam = [curve(x, -h - 7, x + 6, -h - 13, x, -h - 20, (1.0, 1.0, 1.0), 4.0) for x in (-8, 7)]
    return [*handle, *skin, *rim, *steam]


def _chair(s, key):
    c, e, w, h, k = s.rgb, dark(s.rgb, 0.55), 22 * s.shape["wide"], 78 * s.shape["tall"], s.shape["part"]
    seat = -h * 0.45
    legs = [line([(x, seat), (x * 1.12, -1)], p, q) for x in (-w + 3, w - 3) for p, q in ((e, 9.6), (c, 4.6))]
    back = box(-w, -h, 2 * w, h * 0.5 * k**0.5, 6, c, e)
    skin = _skin(s, key, back, (0, -h * 0.75), (w, h * 0.3))
    posts = [line([(x, seat), (x, -h * 0.6)], e, 6.0) for x in (-w + 6, w - 6)]
    return [*legs, *posts, *skin, box(-w - 4, seat - 5, 2 * w + 8, 11, 5, light(c, 0.2), e)]


def _balloon(s, key):
    c, e, w, h, k = s.rgb, dark(s.rgb, 0.55), 25 * s.shape["wide"], 29 * s.shape["tall"], s.shape["part"]
    y = -26 - 10 * k - h
    string = path(f"M0 {y + h + 4:.1f} C8 {y + h + 14:.1f} -8 -18 2 0", None, INK, 2.6)
    knot = polygon([(-4, y + h + 5), (4, y + h + 5), (0, y + h - 2)], c, e, 1.2)
    skin = _skin(s, key, ellipse(0, y, w, h, c, e), (0, y), (w, h))
    return [string, knot, *skin, ellipse(-w * 0.4, y - h * 0.4, w * 0.16, h * 0.24, light(c, 0.7), turn=25)]


def _umbrella(s, key):
    c, e, w, h, k = s.rgb, dark(s.rgb, 0.55), 40 * s.shape["wide"], 84 * s.shape["tall"], s.shape["part"]
    dome = 27 * k**0.5
    rim = -h + dome + 4
    pole = path(f"M0 {-h:.1f} L0 -8 Q0 0 8 0 Q14 0 14 -7", None, INK, 4.4)
    scallops = "".join(
        f" Q{w - w * (2 * i + 1) / 4:.1f} {rim - 7:.1f} {w - w * (2 * i + 2) / 4:.1f} {rim:.1f}" for i in range(4)
    )
    d = f"M{-w:.1f} {rim:.1f} Q{-w * 0.8:.1f} {-h:.1f} 0 {-h:.1f} Q{w * 0.8:.1f} {-h:.1f} {w:.1f} {rim:.1f}{scallops} Z"
    skin = _skin(s, key, path(d, c, e), (0, -h + dome / 2), (w, dome))
    ribs = [
        path(f"M0 {-h:.1f} Q{x * 0.7:.1f} {-h + 6:.1f} {x:.1f} {rim:.1f}", None, e, 2.2)
        for x in (-w * 0.5, 0.01, w * 0.5)
    ]
    return [pole, *skin, *ribs, ellipse(0, -h - 2, 3, 4, INK)]


_DRAW = {"car": _car, "mug": _mug, "chair": _chair, "balloon": _balloon, "umbrella": _umbrella}
