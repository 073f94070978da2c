"""The characters of Pocket World: six classes from continuous parameters.

Local frame of a character: feet at the origin, y grows downwards (as in SVG), the crown of the head near y = -90.
Every proportion is a number in `shape` (1.0 is the middle of its range), so a concept is a point in this space.
"""

import math

from .svg import INK, box, clip_path, curve, dark, ellipse, group, light, line, mix, path, polygon, star, unfilled

CHARACTERS = ("cat", "rabbit", "bear", "robot", "frog", "bird")

# name -> (low, high): the ranges of the pretraining world, in-domain by definition
SHAPE = {
    "body_w": (0.8, 1.25),
    "body_h": (0.9, 1.1),
    "head_w": (0.92, 1.12),
    "head_h": (0.92, 1.08),
    "ear": (0.78, 1.25),
    "ear_tilt": (-8.0, 8.0),
    "eye": (0.88, 1.2),
    "eye_gap": (0.92, 1.12),
    "pupil": (0.6, 0.8),
    "belly": (0.0, 0.75),
    "limb": (0.9, 1.15),
    "gaze": (-0.8, 0.8),
    "lean": (-5.0, 5.0),
}
OUTLINE = 2.7  # units; with it no outline is thinner than a latent can carry
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
    edge, width = dark(colour, 0.55), OUTLINE * subject.outline
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
    for side in (-1, 1):
        parts.append(ellipse(side * 10 * shape["body_w"], -5, 10 * shape["limb"] ** 0.5, 6.5, colour, edge, width))
    parts += [body, *paint.belly(body_rx, body_ry), *paint.pattern(f"{key}b", body, (0, -26), (body_rx, body_ry))]
    parts += paint.arms()
    parts += [e for a in subject.accessories if a[0] == "scarf" for e in _scarf(a[1], hy + head_ry, body_rx)]
    parts += [*paint.ears(hx, hy, head_rx, head_ry), head]
    parts += paint.pattern(f"{key}h", head, (hx, hy), (head_rx, head_ry))
    parts += paint.face(hx, hy, head_rx, head_ry)
    parts += paint.front_parts(hx, hy, head_rx, head_ry)
    for name, tint in subject.accessories:
        if name != "scarf":
            parts += _WEAR[name](tint, hx, hy, head_rx, head_ry, frog=subject.cls == "frog")
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
                return [path(d, None, e, 9.0), path(d, None, c, 9.0 - 2 * w)]
            case "rabbit":
                return [ellipse(x + 4, -14, 9, 9, light(c, 0.5), e, w)]
            case "bear":
                return [ellipse(x + 3, -14, 7, 7, c, e, w)]
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
                    x, top = hx + side * rx * 0.45, hy - ry * 0.7 - 13 * ear
                    out += [ellipse(x, top, 8.8, 17 * ear, c, e, w, side * (10 + tilt))]
                    out += [ellipse(x, top + 1, 4.4, 11 * ear, inner, turn=side * (10 + tilt))]
                case "bear":
                    y = hy - ry * 0.72
                    out += [
                        ellipse(x + side * 2, y, 9 * ear, 9 * ear, c, e, w),
                        ellipse(x + side * 2, y, 5 * ear, 5 * ear, inner),
                    ]
                case "frog":
                    x, y = hx + side * rx * 0.7, hy - ry * 0.85
                    out += [ellipse(x, y, 10 * ear**0.5, 10 * ear**0.5, c, e, w)]
        if self.s.cls == "robot":
            tip = hx + tilt * 0.5, hy - ry - 13 * ear
            out += [line([(hx, hy - ry), tip], e, 4.0), ellipse(*tip, 5.4, 5.4, (0.95, 0.78, 0.25), e, w)]
            out += [box(hx + side * rx - 4, hy - 8, 8, 16, 3, dark(c, 0.3), e, w) for side in (-1, 1)]
        if self.s.cls == "bird":
            for k in (-1, 0, 1):
                out += [ellipse(hx + 6 * k, hy - ry - 5 * ear, 4.2, 9 * ear, c, e, w, 24 * k + tilt)]
        return out

    def arms(self):
        c, e, w, limb = self.colour, self.edge, self.width, self.s.shape["limb"]
        out = []
        for side, (x, y) in zip((-1, 1), arm_tips(self.s.shape, self.s.arms), strict=True):
            sx, sy = side * 15 * self.s.shape["body_w"], -26 - 12 * self.s.shape["body_h"]
            if self.s.cls == "bird":
                turn = math.degrees(math.atan2(y - sy, x - sx))
                out.append(ellipse((sx + x) / 2, (sy + y) / 2, 14 * limb, 8, dark(c, 0.14), e, w, turn))
                continue
            out += [line([(sx, sy), (x, y)], e, 11.6), line([(sx, sy), (x, y)], c, 11.6 - 2 * w)]
            if self.s.cls == "robot":
                out.append(ellipse(x, y, 6.2, 6.2, (0.75, 0.77, 0.8), e, w))
        return out

    def belly(self, rx, ry):
        size, c = self.s.shape["belly"], self.colour
        if self.s.cls == "robot":
            if self.s.pattern is not None:  # a panel would hide the marks
                return []
            tone = (0.95, 0.8, 0.35) if size > 0.4 else (0.55, 0.85, 0.9)
            return [
                box(-rx * 0.62, -36, rx * 1.24, 17, 3, light(c, 0.6), self.edge, 1.6),
                ellipse(-5, -27.5, 3.6, 3.6, tone),
                ellipse(5, -27.5, 3.6, 3.6, (0.92, 0.35, 0.35)),
            ]
        return [ellipse(0, -22, rx * size, ry * size, light(c, 0.55))] if size > 0.25 else []

    def face(self, hx, hy, rx, ry):
        s, shape, out = self.s, self.s.shape, []
        eye, mood = 8.2 * shape["eye"], s.expression
        gap = rx * 0.43 * shape["eye_gap"]
        ey = hy - ry * 0.08
        if s.cls == "robot":
            out += [box(hx - rx * 0.82, hy - ry * 0.62, rx * 1.64, ry * 1.34, 5, (0.14, 0.17, 0.24), self.edge, 1.6)]
        if s.cls == "frog":
            gap, ey = rx * 0.7, hy - ry * 0.85
        if s.cls == "bear":
            out += [ellipse(hx, hy + ry * 0.42, rx * 0.44, ry * 0.42, light(self.colour, 0.6))]
        if s.cls != "robot":
            cheek = mix(self.colour, (1.0, 0.45, 0.5), 0.5)
            out += [ellipse(hx + k * rx * 0.7, hy + ry * 0.4, 5.0, 3.6, cheek) for k in (-1, 1)]
        for side in (-1, 1):
            out += self._eye(hx + side * gap, ey, eye, side, mood)
        return out + self._muzzle(hx, hy, rx, ry, mood)

    def _eye(self, x, y, r, side, mood):
        white = (0.75, 0.97, 1.0) if self.s.cls == "robot" else (1.0, 1.0, 1.0)
        if mood == "sleepy":
            ink = white if self.s.cls == "robot" else INK
            return [curve(x - r, y, x, y + r * 1.1, x + r, y, ink, 3.4)]
        tall = 1.3 if mood == "surprised" else 1.12
        p = r * self.s.shape["pupil"] * (0.75 if mood == "surprised" else 1.0)
        px = x + self.s.shape["gaze"] * (r - p) * 0.8
        out = [
            ellipse(x, y, r, r * tall, white, INK, 1.8),
            ellipse(px, y + r * 0.12, p, p * 1.12, self.s.eye_rgb or INK),
        ]
        out += [ellipse(px, y + r * 0.12, p * 0.55, p * 0.62, INK)] if self.s.eye_rgb else []
        out.append(ellipse(px - p * 0.3, y - p * 0.3, p * 0.38, p * 0.38, (1.0, 1.0, 1.0)))
        if mood in ("angry", "sad"):
            slope = 3.4 if mood == "angry" else -3.0
            ink = white if self.s.cls == "robot" else INK
            out.append(line([(x - side * r, y - r * 1.5 + slope), (x + side * r, y - r * 1.5 - slope)], ink, 3.2))
        return out

    def _muzzle(self, hx, hy, rx, ry, mood):
        cls, out = self.s.cls, []
        ink = (0.75, 0.97, 1.0) if cls == "robot" else INK
        my = hy + ry * (0.42 if cls == "robot" else 0.56)
        wide = rx * (0.6 if cls == "frog" else 0.3)
        if cls == "bird":
            gape = 5.0 if mood in ("happy", "surprised") else 1.0
            orange = (0.98, 0.68, 0.18)
            out += (
                [polygon([(hx - 9, my - 4), (hx + 9, my - 4), (hx, my + 6 + gape)], dark(orange, 0.25), INK, 1.6)]
                if gape > 2
                else []
            )
            return [
                *out,
                polygon([(hx - 11, my - 4), (hx, my - 10), (hx + 11, my - 4), (hx, my + 5)], orange, INK, 1.6),
            ]
        if cls in ("cat", "rabbit", "bear"):
            nose = (0.95, 0.5, 0.55) if cls != "bear" else INK
            size = 5.2 if cls == "bear" else 4.2
            out.append(ellipse(hx, hy + ry * 0.3, size, size * 0.72, nose))
        if cls == "cat":
            for side in (-1, 1):
                x = hx + side * rx * 0.62
                out += [line([(x, my - 4 + k), (x + side * 16, my - 8 + 2.4 * k)], INK, 2.2) for k in (0, 6)]
        if cls == "rabbit":
            out.append(box(hx - 4.4, my + 1.2, 8.8, 7.4, 1.6, (1.0, 1.0, 1.0), INK, 1.4))
        match mood:
            case "surprised":
                out.append(ellipse(hx, my + 2, 4.4, 5.4, (0.55, 0.15, 0.2), ink, 1.8))
            case "sad" | "angry":
                out.append(curve(hx - wide, my + 4.5, hx, my - 3.5, hx + wide, my + 4.5, ink, 3.2))
            case "sleepy":
                out.append(line([(hx - wide * 0.6, my + 1), (hx + wide * 0.6, my + 1)], ink, 3.2))
            case _:
                out.append(curve(hx - wide, my - 1, hx, my + 8, hx + wide, my - 1, ink, 3.2))
        return out

    # ---- out-domain parts and patterns: the pretraining world never shows these (see concepts.py) ----
    def pattern(self, key, shape, centre, radii):
        if self.s.pattern is None:
            return []
        kind, tint, scale = self.s.pattern
        return [
            clip_path(key, [shape]),
            group(pattern_marks(kind, tint, scale, centre, radii), clip=key),
            unfilled(shape),
        ]

    def back_parts(self, body_rx):
        out = []
        for name, tint in self.s.parts:
            if name == "wings":
                for k in (-1, 1):
                    out.append(ellipse(k * (body_rx + 15), -47, 20, 12, tint, dark(tint), self.width, k * -35))
                    out.append(
                        ellipse(k * (body_rx + 11), -29, 14, 9, light(tint, 0.3), dark(tint), self.width, k * 15)
                    )
            if name == "cape":
                out.append(
                    polygon(
                        [(-16, -46), (16, -46), (body_rx + 22, -3), (-body_rx - 22, -3)], tint, dark(tint), self.width
                    )
                )
        return out

    def front_parts(self, hx, hy, rx, ry):
        out = []
        for name, tint in self.s.parts:
            if name == "horn":
                out.append(
                    polygon(
                        [(hx - 8, hy - ry + 5), (hx, hy - ry - 23), (hx + 8, hy - ry + 5)], tint, dark(tint), self.width
                    )
                )
            if name == "moustache":
                y = hy + ry * 0.38
                d = f"M{hx:.1f} {y:.1f} Q{hx - 10:.1f} {y - 8:.1f} {hx - 23:.1f} {y + 6:.1f}"
                d += f" Q{hx - 11:.1f} {y + 12:.1f} {hx:.1f} {y + 5:.1f}"
                d += f" Q{hx + 11:.1f} {y + 12:.1f} {hx + 23:.1f} {y + 6:.1f}"
                d += f" Q{hx + 10:.1f} {y - 8:.1f} {hx:.1f} {y:.1f} Z"
                out.append(path(d, tint, dark(tint), 1.8))
            if name == "eyepatch":
                x, y = hx + rx * 0.42, hy - ry * 0.08
                out += [
                    line([(hx - rx * 0.84, hy - ry * 0.55), (hx + rx * 0.98, hy + ry * 0.1)], tint, 3.4),
                    ellipse(x, y, 12.0, 12.0, tint),
                ]
            if name == "star":
                out.append(star(0, -25, 14, tint, dark(tint), 1.8))
            if name == "antlers":
                for k in (-1, 1):
                    x = hx + k * rx * 0.4
                    out += [
                        line([(x, hy - ry + 3), (x + k * 8, hy - ry - 18)], tint, 5.6),
                        line([(x + k * 3.5, hy - ry - 7), (x + k * 17, hy - ry - 14)], tint, 5.0),
                    ]
        return out


def pattern_marks(kind: str, tint, scale: float, centre, radii) -> list[str]:
    """Marks of an out-domain pattern over a box around `centre`; `scale` is about 1, larger is coarser."""
    (cx, cy), (rx, ry), step = centre, radii, 20.0 * scale
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
                ellipse(cx + step * (i + 0.5 * (j % 2)), cy + step * 0.9 * j, step * 0.32, step * 0.32, tint)
                for i, j in cells
            ]
        case "checks":
            return [box(cx + step * i, cy + step * j, step, step, 0, tint) for i, j in cells if (i + j) % 2 == 0]
        case "stars":
            return [star(cx + step * 1.1 * (i + 0.5 * (j % 2)), cy + step * j, step * 0.5, tint) for i, j in cells]
        case "half":
            return [box(cx, cy - 60, 60, 120, 0, tint)]
    raise ValueError(f"unknown pattern {kind!r}: use stripes, bands, spots, checks, stars or half")


def _hat(tint, hx, hy, rx, ry, frog=False):
    top = hy - ry
    if frog:  # between the eyes
        return [polygon([(hx - 11, top + 6), (hx, top - 24), (hx + 11, top + 6)], tint, dark(tint), 2.2),
                ellipse(hx, top - 24, 5.0, 5.0, (1.0, 1.0, 1.0), dark(tint), 1.8)]  # fmt: skip
    return [
        polygon([(hx - 16, top + 6), (hx, top - 20), (hx + 16, top + 6)], tint, dark(tint), 2.2),
        ellipse(hx, top - 20, 5.0, 5.0, (1.0, 1.0, 1.0), dark(tint), 1.8),
    ]


def _crown(tint, hx, hy, rx, ry, frog=False):
    top, k = hy - ry, 0.62 if frog else 1.0
    xs = [(-16, 6), (-17, -13), (-8, -3), (0, -16), (8, -3), (17, -13), (16, 6)]
    return [polygon([(hx + k * x, top + y) for x, y in xs], tint, dark(tint), 2.2)]


def _glasses(tint, hx, hy, rx, ry, frog=False):
    y, gap = (hy - ry * 0.85, rx * 0.7) if frog else (hy - ry * 0.08, rx * 0.43)
    return [ellipse(hx + k * gap, y, 11.4, 11.4, None, tint, 4.0) for k in (-1, 1)] + [
        line([(hx - gap + 11.4, y), (hx + gap - 11.4, y)], tint, 4.0)
    ]


def _bow(tint, hx, hy, rx, ry, frog=False):
    x, y = (hx, hy - ry * 0.98) if frog else (hx + rx * 0.55, hy - ry * 0.85)
    wings = [polygon([(x, y), (x + k * 15, y - 10), (x + k * 15, y + 10)], tint, dark(tint), 2.2) for k in (-1, 1)]
    return [*wings, ellipse(x, y, 4.8, 4.8, tint, dark(tint), 2.0)]


def _scarf(tint, y, body_rx):
    w = max(16.0, body_rx * 1.0)
    tail = box(w * 0.2, y, 11, 20, 4, tint, dark(tint), 2.2, -8)
    return [tail, box(-w, y - 6, 2 * w, 12, 6, tint, dark(tint), 2.2)]


_WEAR = {"hat": _hat, "crown": _crown, "bow": _bow, "glasses": _glasses}
