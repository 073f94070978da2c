"""The characters of Pocket World: six classes from continuous parameters.

Local frame of a character: feet at the origin, y grows downwards (as in SVG), the crown of the head near y = -90.
Every proportion is a number in `shape` (1.0 is the middle of its range), so a concept is a point in this space.
"""

import math

from .svg import (
    INK,
    box,
    clip_path,
    curve,
    dark,
    ellipse,
    group,
    light,
    line,
    mix,
    path,
    polygon,
    star,
)

CHARACTERS = ("cat", "rabbit", "bear", "robot", "frog", "bird")

# name -> (low, high): the ranges of the pretraining world, in-domain by definition
SHAPE = {
    "body_w": (0.78, 1.28),
    "body_h": (0.85, 1.15),
    "head_w": (0.86, 1.18),
    "head_h": (0.86, 1.12),
    "ear": (0.75, 1.3),
    "ear_tilt": (-14.0, 14.0),
    "eye": (0.75, 1.3),
    "eye_gap": (0.8, 1.25),
    "pupil": (0.5, 0.85),
    "belly": (0.0, 0.75),
    "limb": (0.8, 1.25),
    "gaze": (-1.0, 1.0),
    "lean": (-7.0, 7.0),
}
EXPRESSIONS = ("happy", "sad", "surprised", "angry", "sleepy")
ACCESSORIES = ("hat", "scarf", "glasses", "bow", "crown")


def head_centre(shape) -> tuple[float, float]:
    return 0.0, -26 - 21 * shape["body_h"] - 17 * shape["head_h"]


def arm_tips(shape, arms) -> list[tuple[float, float]]:
    """Hands for arm angles in degrees (0 hangs down, 150 is straight up), left then right."""
    tips = []
    for side, angle in zip((-1, 1), arms, strict=True):
        shoulder = side * 15 * shape["body_w"], -26 - 12 * shape["body_h"]
        reach = 21 * shape["limb"]
        swing = math.radians(angle)
        tips.append((shoulder[0] + side * reach * math.sin(swing), shoulder[1] + reach * math.cos(swing)))
    return tips


def keypoints(subject) -> dict[str, tuple[float, float]]:
    """Named joints in the local frame: the pose skeleton used for keypose conditions."""
    shape = subject.shape
    hx, hy = head_centre(shape)
    left, right = arm_tips(shape, subject.arms)
    shoulder, neck = 15 * shape["body_w"], -26 - 12 * shape["body_h"]
    return {
        "head": (hx, hy),
        "neck": (0.0, neck - 6),
        "left_shoulder": (-shoulder, neck),
        "right_shoulder": (shoulder, neck),
        "left_hand": left,
        "right_hand": right,
        "hip": (0.0, -14.0),
        "left_foot": (-9.0, -3.0),
        "right_foot": (9.0, -3.0),
    }


def draw(subject, key: str) -> list[str]:
    """SVG elements of a character in its local frame; `key` makes clip ids unique in the picture."""
    shape, colour = subject.shape, subject.rgb
    edge, width = dark(colour), 1.9 * subject.outline
    hx, hy = head_centre(shape)
    head_rx, head_ry = 28 * shape["head_w"], 24 * shape["head_h"]
    body_rx, body_ry = 19 * shape["body_w"], 23 * shape["body_h"]
    robot = subject.cls == "robot"
    if robot:
        body = box(-body_rx, -26 - body_ry, 2 * body_rx, 2 * body_ry, 6, colour, edge, width)
        head = box(hx - head_rx, hy - head_ry, 2 * head_rx, 2 * head_ry, 8, colour, edge, width)
    else:
        body = ellipse(0, -26, body_rx, body_ry, colour, edge, width)
        head = ellipse(hx, hy, head_rx, head_ry, colour, edge, width)
    paint = _Paint(subject, colour, edge, width)
    parts = [*paint.tail(shape), *paint.back_parts(body_rx)]
    parts += [
        ellipse(side * 9 * shape["body_w"], -4, 9 * shape["limb"] ** 0.5, 5.5, colour, edge, width) for side in (-1, 1)
    ]
    parts += [body, *paint.belly(body_rx, body_ry), *paint.pattern(f"{key}b", body, (0, -26), (body_rx, body_ry))]
    parts += paint.arms()
    parts += [e for a in subject.accessories if a[0] == "scarf" for e in _scarf(a[1], hy + head_ry, body_rx)]
    parts += [*paint.ears(hx, hy, head_rx, head_ry), head]
    parts += paint.pattern(f"{key}h", head, (hx, hy), (head_rx, head_ry))
    parts += paint.face(hx, hy, head_rx, head_ry)
    parts += paint.front_parts(hx, hy, head_rx, head_ry)
    for name, tint in subject.accessories:
        if name == "glasses":
            parts += _glasses(tint, hx, hy, head_rx, head_ry, frog=subject.cls == "frog")
        elif name != "scarf":
            parts += _WEAR[name](tint, hx, hy, head_rx, head_ry)
    return parts


class _Paint:
    """The brushes of one character: its colours and outline width, and a method per part of the body."""

    def __init__(self, subject, colour, edge, width):
        self.s, self.colour, self.edge, self.width = subject, colour, edge, width

    def tail(self, shape):
        c, e, w, x = self.colour, self.edge, self.width, 17 * shape["body_w"]
        match self.s.cls:
            case "cat":
                d = f"M{x:.1f} -14 C{x + 22:.1f} -10 {x + 8:.1f} -40 {x + 18:.1f} -46"
                return [path(d, None, e, 6.5), path(d, None, c, 6.5 - 2 * w)]
            case "rabbit":
                return [ellipse(x + 3, -14, 7, 7, light(c, 0.5), e, w)]
            case "bear":
                return [ellipse(x + 2, -14, 5, 5, c, e, w)]
            case "bird":
                return [polygon([(x - 4, -18), (x + 14, -22), (x + 12, -10)], c, e, w)]
        return []

    def ears(self, hx, hy, rx, ry):
        c, e, w, ear, tilt = self.colour, self.edge, self.width, self.s.shape["ear"], self.s.shape["ear_tilt"]
        inner, out = mix(light(c, 0.4), (1.0, 0.62, 0.68), 0.55), []
        for side in (-1, 1):
            x = hx + side * rx * 0.62
            match self.s.cls:
                case "cat":
                    tip = x + side * (5 + tilt * 0.35), hy - ry - 13 * ear
                    out += [polygon([(x - 10, hy - ry * 0.55), tip, (x + 10, hy - ry * 0.5)], c, e, w)]
                    out += [polygon([(x - 5, hy - ry * 0.7), (tip[0], tip[1] + 6), (x + 5, hy - ry * 0.7)], inner)]
                case "rabbit":
                    x, top = hx + side * rx * 0.42, hy - ry * 0.7 - 17 * ear
                    out += [ellipse(x, top, 7.2, 20 * ear, c, e, w, side * (8 + tilt))]
                    out += [ellipse(x, top + 1, 3.6, 14 * ear, inner, turn=side * (8 + tilt))]
                case "bear":
                    y = hy - ry * 0.72
                    out += [
                        ellipse(x + side * 2, y, 9 * ear, 9 * ear, c, e, w),
                        ellipse(x + side * 2, y, 5 * ear, 5 * ear, inner),
                    ]
                case "frog":
                    y = hy - ry * 0.85
                    out += [ellipse(x, y, 10 * ear**0.5, 10 * ear**0.5, c, e, w)]
        if self.s.cls == "robot":
            tip = hx + tilt * 0.5, hy - ry - 13 * ear
            out += [line([(hx, hy - ry), tip], e, 2.4), ellipse(*tip, 4.4, 4.4, (0.95, 0.78, 0.25), e, w)]
            out += [box(hx + side * rx - 3, hy - 6, 6, 12, 2, dark(c, 0.3), e, w) for side in (-1, 1)]
        if self.s.cls == "bird":
            for k in (-1, 0, 1):
                out += [ellipse(hx + 4 * k, hy - ry - 5 * ear, 2.6, 8 * ear, c, e, w, 22 * k + tilt)]
        return out

    def arms(self):
        c, e, w, limb = self.colour, self.edge, self.width, self.s.shape["limb"]
        out = []
        for side, (x, y) in zip((-1, 1), arm_tips(self.s.shape, self.s.arms), strict=True):
            sx, sy = side * 15 * self.s.shape["body_w"], -26 - 12 * self.s.shape["body_h"]
            if self.s.cls == "bird":
                turn = math.degrees(math.atan2(y - sy, x - sx))
                out.append(ellipse((sx + x) / 2, (sy + y) / 2, 13 * limb, 6.5, dark(c, 0.14), e, w, turn))
                continue
            out += [line([(sx, sy), (x, y)], e, 8.4), line([(sx, sy), (x, y)], c, 8.4 - 2 * w)]
            if self.s.cls == "robot":
                out.append(ellipse(x, y, 5.2, 5.2, (0.75, 0.77, 0.8), e, w))
        return out

    def belly(self, rx, ry):
        size, c = self.s.shape["belly"], self.colour
        if self.s.cls == "robot":
            tone = (0.95, 0.8, 0.35) if size > 0.4 else (0.55, 0.85, 0.9)
            return [
                box(-rx * 0.55, -34, rx * 1.1, 13, 3, light(c, 0.6), self.edge, 1.0),
                ellipse(-4, -27.5, 2.3, 2.3, tone),
                ellipse(4, -27.5, 2.3, 2.3, (0.92, 0.35, 0.35)),
            ]
        return [ellipse(0, -22, rx * size, ry * size, light(c, 0.55))] if size > 0.25 else []

    def face(self, hx, hy, rx, ry):
        s, shape, out = self.s, self.s.shape, []
        eye, mood = 6.6 * shape["eye"], s.expression
        gap = rx * 0.42 * shape["eye_gap"]
        ey = hy - ry * 0.08
        if s.cls == "robot":
            out += [box(hx - rx * 0.8, hy - ry * 0.55, rx * 1.6, ry * 1.15, 5, (0.14, 0.17, 0.24), self.edge, 1.0)]
        if s.cls == "frog":
            gap, ey = rx * 0.62, hy - ry * 0.85
        if s.cls == "bear":
            out += [ellipse(hx, hy + ry * 0.42, rx * 0.42, ry * 0.36, light(self.colour, 0.6))]
        if s.cls != "robot":
            cheek = mix(self.colour, (1.0, 0.45, 0.5), 0.5)
            out += [ellipse(hx + k * rx * 0.68, hy + ry * 0.35, 3.8, 2.6, cheek) for k in (-1, 1)]
        for side in (-1, 1):
            out += self._eye(hx + side * gap, ey, eye, side, mood)
        return out + self._muzzle(hx, hy, rx, ry, mood)

    def _eye(self, x, y, r, side, mood):
        white = (0.75, 0.97, 1.0) if self.s.cls == "robot" else (1.0, 1.0, 1.0)
        if mood == "sleepy":
            ink = white if self.s.cls == "robot" else INK
            return [curve(x - r, y, x, y + r * 1.1, x + r, y, ink, 2.4)]
        tall = 1.3 if mood == "surprised" else 1.12
        p = r * self.s.shape["pupil"] * (0.75 if mood == "surprised" else 1.0)
        px = x + self.s.shape["gaze"] * (r - p) * 0.8
        out = [
            ellipse(x, y, r, r * tall, white, INK, 1.0),
            ellipse(px, y + r * 0.12, p, p * 1.12, self.s.eye_rgb or INK),
        ]
        out += [ellipse(px, y + r * 0.12, p * 0.55, p * 0.62, INK)] if self.s.eye_rgb else []
        out.append(ellipse(px - p * 0.35, y - p * 0.3, p * 0.32, p * 0.32, (1.0, 1.0, 1.0)))
        if mood in ("angry", "sad"):
            slope = 2.6 if mood == "angry" else -2.4
            ink = white if self.s.cls == "robot" else INK
            out.append(
                line([(x - side * r, y - r * 1.55 + slope * 0.9), (x + side * r, y - r * 1.55 - slope * 0.9)], ink, 2.0)
            )
        return out

    def _muzzle(self, hx, hy, rx, ry, mood):
        cls, out = self.s.cls, []
        ink = (0.75, 0.97, 1.0) if cls == "robot" else INK
        my = hy + ry * (0.33 if cls == "robot" else 0.5)
        wide = rx * (0.6 if cls == "frog" else 0.25)
        if cls == "bird":
            gape = 5.0 if mood in ("happy", "surprised") else 1.0
            orange = (0.98, 0.68, 0.18)
            out += (
                [polygon([(hx - 7, my - 4), (hx + 7, my - 4), (hx, my + 5 + gape)], dark(orange, 0.25), INK, 1.1)]
                if gape > 2
                else []
            )
            return [*out, polygon([(hx - 8, my - 4), (hx, my - 8), (hx + 8, my - 4), (hx, my + 4)], orange, INK, 1.1)]
        if cls in ("cat", "rabbit", "bear"):
            nose = (0.95, 0.5, 0.55) if cls != "bear" else INK
            size = 4.4 if cls == "bear" else 3.2
            out.append(ellipse(hx, hy + ry * 0.25, size, size * 0.72, nose))
        if cls == "cat":
            for side in (-1, 1):
                x = hx + side * rx * 0.5
                out += [line([(x, my - 3 + k), (x + side * 15, my - 6 + 3.2 * k)], INK, 1.3) for k in (0, 3)]
        if cls == "rabbit":
            out.append(box(hx - 3.2, my + 1.4, 6.4, 6, 1, (1.0, 1.0, 1.0), INK, 0.8))
        match mood:
            case "surprised":
                out.append(ellipse(hx, my + 2, 3.0, 3.8, (0.55, 0.15, 0.2), ink, 1.2))
            case "sad" | "angry":
                out.append(curve(hx - wide, my + 3, hx, my - 3, hx + wide, my + 3, ink, 2.4))
            case "sleepy":
                out.append(line([(hx - wide * 0.5, my + 1), (hx + wide * 0.5, my + 1)], ink, 2.4))
            case _:
                out.append(curve(hx - wide, my, hx, my + 6.5, hx + wide, my, ink, 2.4))
        return out

    # ---- out-domain parts and patterns: the pretraining world never shows these (see concepts.py) ----
    def pattern(self, key, shape, centre, radii):
        if self.s.pattern is None:
            return []
        kind, tint, scale = self.s.pattern
        return [
            clip_path(key, [shape]),
            group(pattern_marks(kind, tint, scale, centre, radii), clip=key),
            shape.replace(f'fill="{fill_of(shape)}"', 'fill="none"'),
        ]

    def back_parts(self, body_rx):
        out = []
        for name, tint in self.s.parts:
            if name == "wings":
                for k in (-1, 1):
                    out.append(ellipse(k * (body_rx + 12), -44, 17, 9, tint, dark(tint), self.width, k * -35))
                    out.append(ellipse(k * (body_rx + 9), -32, 12, 7, light(tint, 0.3), dark(tint), self.width, k * 15))
            if name == "cape":
                out.append(
                    polygon(
                        [(-14, -46), (14, -46), (body_rx + 14, -4), (-body_rx - 14, -4)], tint, dark(tint), self.width
                    )
                )
        return out

    def front_parts(self, hx, hy, rx, ry):
        out = []
        for name, tint in self.s.parts:
            if name == "horn":
                out.append(
                    polygon(
                        [(hx - 5, hy - ry + 2), (hx, hy - ry - 20), (hx + 5, hy - ry + 2)], tint, dark(tint), self.width
                    )
                )
            if name == "moustache":
                y = hy + ry * 0.45
                d = f"M{hx:.1f} {y:.1f} Q{hx - 8:.1f} {y - 6:.1f} {hx - 16:.1f} {y + 3:.1f}"
                d += f" Q{hx - 8:.1f} {y + 6:.1f} {hx:.1f} {y + 2:.1f}"
                d += (
                    f" Q{hx + 8:.1f} {y + 6:.1f} {hx + 16:.1f} {y + 3:.1f} Q{hx + 8:.1f} {y - 6:.1f} {hx:.1f} {y:.1f} Z"
                )
                out.append(path(d, tint, dark(tint), 0.8))
            if name == "eyepatch":
                x, y = hx + rx * 0.42, hy - ry * 0.08
                out += [
                    line([(hx - rx * 0.8, hy - ry * 0.6), (hx + rx * 0.95, hy + ry * 0.1)], tint, 1.8),
                    ellipse(x, y, 9.0, 9.0, tint),
                ]
            if name == "star":
                out.append(star(0, -24, 9, tint, dark(tint), 1.2))
            if name == "antlers":
                for k in (-1, 1):
                    x = hx + k * rx * 0.4
                    out += [
                        line([(x, hy - ry + 2), (x + k * 7, hy - ry - 16)], tint, 3.2),
                        line([(x + k * 3.5, hy - ry - 7), (x + k * 13, hy - ry - 11)], tint, 2.8),
                    ]
        return out


def pattern_marks(kind: str, tint, scale: float, centre, radii) -> list[str]:
    """Marks of an out-domain pattern over a box around `centre`; `scale` is about 1, larger is coarser."""
    (cx, cy), (rx, ry), step = centre, radii, 13.0 * scale
    n = int(math.ceil(1.5 * max(rx, ry) / step)) + 1
    cells = [(i, j) for j in range(-n, n + 1) for i in range(-n, n + 1)]
    match kind:
        case "stripes":
            return [
                line([(cx + step * i - 14, cy - 45), (cx + step * i + 14, cy + 45)], tint, step * 0.42)
                for i in range(-n - 2, n + 3)
            ]
        case "bands":
            return [
                line([(cx - 45, cy + step * j), (cx + 45, cy + step * j)], tint, step * 0.48) for j in range(-n, n + 1)
            ]
        case "spots":
            return [
                ellipse(cx + step * (i + 0.5 * (j % 2)), cy + step * 0.9 * j, step * 0.3, step * 0.3, tint)
                for i, j in cells
            ]
        case "checks":
            return [box(cx + step * i, cy + step * j, step, step, 0, tint) for i, j in cells if (i + j) % 2 == 0]
        case "stars":
            return [star(cx + step * 1.1 * (i + 0.5 * (j % 2)), cy + step * j, step * 0.46, tint) for i, j in cells]
        case "half":
            return [box(cx, cy - 60, 60, 120, 0, tint)]
    raise ValueError(f"unknown pattern {kind!r}: use stripes, bands, spots, checks, stars or half")


def fill_of(element: str) -> str:
    return element.split('fill="', 1)[1].split('"', 1)[0]


def _hat(tint, hx, hy, rx, ry):
    top = hy - ry
    return [
        polygon([(hx - 12, top + 4), (hx, top - 20), (hx + 12, top + 4)], tint, dark(tint), 1.4),
        ellipse(hx, top - 20, 3.6, 3.6, (1.0, 1.0, 1.0), dark(tint), 1.0),
    ]


def _crown(tint, hx, hy, rx, ry):
    top = hy - ry
    xs = [(-13, 4), (-13, -11), (-6.5, -3), (0, -13), (6.5, -3), (13, -11), (13, 4)]
    return [polygon([(hx + x, top + y) for x, y in xs], tint, dark(tint), 1.4)]


def _glasses(tint, hx, hy, rx, ry, frog=False):
    y, gap = (hy - ry * 0.85, rx * 0.62) if frog else (hy - ry * 0.08, rx * 0.42)
    return [ellipse(hx + k * gap, y, 9.6, 9.6, None, tint, 2.8) for k in (-1, 1)] + [
        line([(hx - gap + 9.6, y), (hx + gap - 9.6, y)], tint, 2.8)
    ]


def _bow(tint, hx, hy, rx, ry):
    x, y = hx + rx * 0.55, hy - ry * 0.85
    wings = [polygon([(x, y), (x + k * 11, y - 7), (x + k * 11, y + 7)], tint, dark(tint), 1.3) for k in (-1, 1)]
    return [*wings, ellipse(x, y, 3.4, 3.4, tint, dark(tint), 1.2)]


def _scarf(tint, y, body_rx):
    w = max(15.0, body_rx * 0.95)
    return [box(-w, y - 5, 2 * w, 8.5, 4, tint, dark(tint), 1.3), box(w * 0.25, y, 8, 17, 3, tint, dark(tint), 1.3, -8)]


_WEAR = {"hat": _hat, "crown": _crown, "bow": _bow}
