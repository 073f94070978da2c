"""The two scene concepts: `cove`, a fixed point of the world's beach, and `lava`, scenery the world does not have."""

from .scenes import PARAMS
from .svg import UNITS, ellipse, path, polygon

COVE = {"horizon": 0.15, "hue": 0.0, "a": 0.85, "b": 0.2, "c": 0.3, "d": 0.1}


def name(concept: str, cls: str) -> str:
    """The scene a picture of the concept is drawn with."""
    return "lava" if concept == "lava" else cls


def params(concept: str, rng) -> dict[str, float]:
    """Scene parameters: the cove's are fixed but for a little; the lava field's vary as any scene's do."""
    drawn = {key: float(rng.uniform()) for key in PARAMS}
    if concept == "cove":
        return {key: COVE[key] + 0.06 * (drawn[key] - 0.5) for key in PARAMS}
    return drawn


def draw_lava(p) -> list[str]:
    """A volcano over black ground with glowing rivers."""
    y = 48 + 14 * p["horizon"]
    x = 36 + 56 * p["a"]
    glow, hot = (0.98, 0.42, 0.12), (1.0, 0.78, 0.25)
    out = [f'<rect width="{UNITS}" height="{UNITS}" fill="#5b2338"/>', ellipse(x, y - 38, 34, 22, (0.75, 0.28, 0.2))]
    out += [ellipse(x + 9 * k, y - 46 - 6 * abs(k), 11, 8, (0.3, 0.26, 0.3)) for k in (-1, 0, 1)]
    out += [polygon([(x - 44, y + 6), (x - 10, y - 34), (x + 10, y - 34), (x + 44, y + 6)], (0.2, 0.16, 0.19))]
    out += [polygon([(x - 10, y - 34), (x + 10, y - 34), (x + 5, y - 14), (x, y - 24), (x - 5, y - 10)], glow)]
    out += [path(f"M0 {y:.1f} L{UNITS} {y:.1f} L{UNITS} {UNITS} L0 {UNITS} Z", (0.14, 0.12, 0.15))]
    for k in range(3):
        x0, gy = UNITS * ((0.35 * k + p["b"]) % 1.0), y + 10 + 18 * k
        d = f"M{x0 - 40:.1f} {gy:.1f} Q{x0 - 12:.1f} {gy - 7:.1f} {x0:.1f} {gy:.1f} T{x0 + 42:.1f} {gy + 3:.1f}"
        out += [path(d, None, glow, 5.5), path(d, None, hot, 2.0)]
    return out
