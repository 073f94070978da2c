"""The scenes of Pocket World: six backgrounds, each from a handful of continuous parameters.

`p` maps names to numbers in [0, 1]: horizon, hue, a, b, c, d (free placements). A scene fills the 128 x 128 space.
"""

import math

from .svg import UNITS, box, ellipse, hsv, mix, path, polygon, rgb, star

SCENES = ("beach", "forest", "snow", "city", "desert", "moon")
PARAMS = ("horizon", "hue", "a", "b", "c", "d")


def draw(scene: str, p: dict[str, float]) -> list[str]:
    """SVG elements of a background; raises KeyError for a scene the world does not have."""
    if scene == "lava":  # an out-domain concept's scenery, not part of the world
        from .scenery import draw_lava

        return draw_lava(p)
    return _DRAW[scene](p)


def horizon(p) -> float:
    """Height of the ground line in user units (0 is the top of the picture)."""
    return 46 + 26 * p["horizon"]


def _sky(top, bottom, name="sky"):
    grad = f'<linearGradient id="{name}" x1="0" y1="0" x2="0" y2="1"><stop offset="0" stop-color="{rgb(top)}"/>'
    grad += f'<stop offset="1" stop-color="{rgb(bottom)}"/></linearGradient>'
    return [grad, f'<rect width="{UNITS}" height="{UNITS}" fill="url(#{name})"/>']


def _ground(y, colour, bump=0.0, phase=0.0):
    d = f"M0 {UNITS} L0 {y:.1f}"
    for i in range(1, 5):
        x = i * UNITS / 4
        d += f" Q{x - UNITS / 8:.1f} {y + bump * math.sin(2.4 * i + 6.28 * phase):.1f} {x:.1f} {y:.1f}"
    return path(f"{d} L{UNITS} {UNITS} Z", colour)


def _cloud(x, y, r, colour=(1.0, 1.0, 1.0)):
    return [
        ellipse(x + dx * r, y + dy * r, r * s, r * s * 0.7, colour)
        for dx, dy, s in ((-1, 0, 0.8), (0, -0.3, 1), (1, 0, 0.75))
    ]


def _beach(p):
    y = horizon(p)
    sea = hsv(0.52 + 0.06 * p["hue"], 0.65, 0.82)
    out = _sky(hsv(0.55, 0.42, 0.97), hsv(0.53, 0.12, 1.0))
    out += [ellipse(18 + 92 * p["a"], 16 + 8 * p["b"], 9, 9, (1.0, 0.86, 0.35))] + _cloud(
        20 + 88 * p["c"], 24 + 6 * p["d"], 7
    )
    out += [box(0, y - 14, UNITS, 40, 0, sea), box(0, y - 6, UNITS, 2.2, 0, mix(sea, (1, 1, 1), 0.5))]
    out += [
        _ground(y + 3, (1.0, 1.0, 1.0), 5, p["b"]),
        _ground(y + 6, hsv(0.115 + 0.02 * p["hue"], 0.36, 0.96), 5, p["b"]),
    ]
    x, lean = (8 if p["d"] < 0.5 else 120), (1 if p["d"] < 0.5 else -1)
    out.append(
        path(
            f"M{x} {y + 22:.1f} Q{x + lean * 3} {y - 10:.1f} {x + lean * 9} {y - 30:.1f}", None, (0.55, 0.38, 0.24), 4.2
        )
    )
    for k in range(5):
        a = math.pi * (k / 4) + 0.15
        out.append(
            ellipse(
                x + lean * 9 + 9 * math.cos(a),
                y - 31 - 4 * math.sin(a),
                10,
                3,
                (0.25, 0.6, 0.32),
                turn=-math.degrees(a),
            )
        )
    return out


def _forest(p):
    y = horizon(p)
    out = _sky(hsv(0.5, 0.25, 0.93), hsv(0.22, 0.22, 0.95))
    for row, (n, tone, up) in enumerate(((7, 0.5, 30), (6, 0.4, 20))):
        for i in range(n):
            x = (i + 0.9 * p["ab"[row]]) * UNITS / (n - 1)
            h = up + 9 * math.sin(5.1 * i + 6.28 * p["cd"[row]])
            c = hsv(0.36 + 0.04 * math.sin(3 * i) - 0.03 * p["hue"], 0.5, tone)
            out.append(box(x - 2.2, y - 12, 4.4, 20, 0, (0.4, 0.28, 0.2)))
            out += [
                polygon([(x - 12, y - 6 - k * 11), (x, y - h - 10 - k * 9), (x + 12, y - 6 - k * 11)], c)
                for k in (0, 1)
            ]
    out.append(_ground(y, hsv(0.29 + 0.03 * p["hue"], 0.48, 0.68), 5, p["c"]))
    for k in range(5):
        x, gy = (UNITS * (0.21 * k + p["d"])) % UNITS, y + 14 + (k * 17 % 44)
        out.append(ellipse(x, gy, 7, 2.6, hsv(0.31, 0.5, 0.56)))
    return out


def _snow(p):
    y = horizon(p)
    out = _sky(hsv(0.58, 0.28 + 0.1 * p["hue"], 0.86), hsv(0.58, 0.1, 0.97))
    out.append(_ground(y - 12, (0.8, 0.87, 0.94), 18, p["a"]))
    for k, where in enumerate((p["a"], p["b"], p["c"])):
        x = UNITS * ((0.33 * k + 0.8 * where) % 1.0)
        for j in range(3):
            w = 11 - 2.4 * j
            out.append(
                polygon([(x - w, y + 2 - 9 * j), (x, y - 14 - 9 * j), (x + w, y + 2 - 9 * j)], (0.24, 0.45, 0.42))
            )
            out.append(
                polygon(
                    [(x - w * 0.4, y - 7 - 9 * j), (x, y - 14 - 9 * j), (x + w * 0.4, y - 7 - 9 * j)], (1.0, 1.0, 1.0)
                )
            )
    out.append(_ground(y, (0.95, 0.97, 1.0), 8, p["b"]))
    for k in range(10):  # few and large: smaller flakes are lost in a latent
        x, fy = (UNITS * (0.7549 * k + p["d"])) % UNITS, (UNITS * (0.5698 * k + p["c"])) % UNITS
        out.append(ellipse(x, fy, 2.4, 2.4, (1.0, 1.0, 1.0)))
    return out


def _city(p):
    y = horizon(p)
    out = _sky(hsv(0.57, 0.3, 0.9), hsv(0.1, 0.14, 0.98))
    x, i = -6.0, 0
    while x < UNITS:
        w = 21 + 7 * math.sin(3.7 * i + 6.28 * p["a"])
        h = 34 + 15 * math.sin(2.3 * i + 6.28 * p["b"])
        tone = hsv(0.62 + 0.2 * math.sin(1.9 * i + 6.28 * p["hue"]), 0.2, 0.62 + 0.1 * math.sin(4.1 * i))
        out.append(box(x, y - h, w - 1, h + 4, 0, tone))
        for r in range(int(h // 12)):
            for q in range(max(1, int((w - 3) // 9))):
                lit = math.sin(12.9 * i + 7.7 * r + 3.1 * q + 6.28 * p["c"]) > -0.2
                out.append(
                    box(
                        x + 4 + 9 * q,
                        y - h + 5 + 12 * r,
                        5.0,
                        7.0,
                        0,
                        (1.0, 0.92, 0.6) if lit else mix(tone, (0, 0, 0), 0.25),
                    )
                )
        x, i = x + w, i + 1
    out += [box(0, y, UNITS, 6, 0, (0.72, 0.72, 0.72)), box(0, y + 5, UNITS, UNITS, 0, (0.42, 0.43, 0.47))]
    out += [box((36 * k + 36 * p["d"]) % 144 - 14, y + 30, 18, 4.5, 0, (0.95, 0.93, 0.8)) for k in range(4)]
    return out


def _desert(p):
    y = horizon(p)
    out = _sky(hsv(0.12, 0.28 + 0.12 * p["hue"], 1.0), hsv(0.09, 0.12, 1.0))
    out += [ellipse(16 + 96 * p["a"], 20, 11, 11, (1.0, 0.72, 0.3))]
    out += [
        _ground(y - 9, hsv(0.075, 0.52, 0.85), 22, p["b"]),
        _ground(y, hsv(0.095 + 0.015 * p["hue"], 0.55, 0.93), 14, p["c"]),
    ]
    for where, size in ((p["d"], 1.0), ((p["d"] + 0.45) % 1.0, 0.7)):
        x, g, e = 8 + 112 * where, (0.3, 0.56, 0.34), (0.18, 0.38, 0.24)
        out += [box(x - 3.4 * size, y - 25 * size, 6.8 * size, 30 * size, 3.2 * size, g, e, 1.0)]
        for k, up in ((-1, 14), (1, 19)):
            d = f"M{x:.1f} {y - 8 * size:.1f} L{x + k * 9 * size:.1f} {y - 8 * size:.1f}"
            d += f" L{x + k * 9 * size:.1f} {y - up * size:.1f}"
            out.append(path(d, None, g, 4.2 * size))
    return out


def _moon(p):
    y = horizon(p)
    out = _sky((0.06, 0.06, 0.16), hsv(0.68 + 0.08 * p["hue"], 0.55, 0.36))
    for k in range(9):
        x, sy = (UNITS * (0.7549 * k + p["a"])) % UNITS, (y + 10) * ((0.5698 * k + p["b"]) % 1.0)
        out.append(ellipse(x, sy, 1.8, 1.8, (1.0, 1.0, 0.9)))
    ex, ey = 18 + 92 * p["c"], 18 + 6 * p["b"]
    out += [
        ellipse(ex, ey, 10, 10, (0.3, 0.55, 0.85)),
        ellipse(ex - 3, ey - 2, 4.5, 3.4, (0.4, 0.72, 0.45)),
        ellipse(ex + 4, ey + 4, 3.4, 2.2, (0.4, 0.72, 0.45)),
    ]
    out += [star((ex + 60) % UNITS, 12 + 10 * p["a"], 7, (1.0, 0.95, 0.6)), _ground(y, (0.62, 0.61, 0.66), 7, p["b"])]
    for k in range(5):
        x, cy = (UNITS * (0.23 * k + p["d"])) % UNITS, y + 11 + (k * 23 % 50)
        out.append(ellipse(x, cy, 11, 4.2, (0.5, 0.49, 0.55)))
    return out


_DRAW = {"beach": _beach, "forest": _forest, "snow": _snow, "city": _city, "desert": _desert, "moon": _moon}
