"""Pocket World: pictures from continuous parameters, with captions, masks, keypoints and a sketch for free.

`sample(rng)` draws the parameters of a picture, `render(picture, size)` its pixels at any size and
`captions.caption(picture, rng)` its words. Everything comes from one `numpy.random.Generator`, so a seed is a picture
on any machine. The world these functions draw is the *domain* of Pocket Diffusion. It has no words for patterns, extra
parts and drawing styles (`Subject.pattern`, `.parts`, `.outline`): they belong to the out-domain concepts of
`concepts.py`, and pretraining draws others at random under the one word "odd" (since pocket-v2, which has seen none).
"""

from dataclasses import dataclass, field, replace

import numpy as np
from PIL import Image

from . import characters, objects, scenes
from .characters import ACCESSORIES, CHARACTERS, EXPRESSIONS
from .objects import OBJECTS
from .scenes import SCENES
from .svg import UNITS, group, hsv, mix, rasterise

CLASSES = CHARACTERS + OBJECTS
COLORS = {  # name -> hue (turns), saturation, value at the middle of the name
    "red": (0.99, 0.78, 0.86), "orange": (0.075, 0.82, 0.97), "yellow": (0.145, 0.72, 0.97), "green": (0.36, 0.6, 0.68),
    "blue": (0.6, 0.7, 0.86), "purple": (0.76, 0.55, 0.75), "pink": (0.92, 0.38, 0.98), "brown": (0.07, 0.58, 0.5),
    "white": (0.1, 0.04, 0.97), "gray": (0.6, 0.05, 0.6),
}  # fmt: skip
LIGHTS = ("day", "sunset", "night")
REACH = {"car": 0.86, "rabbit": 0.88}  # what is wider, or has longer ears, is drawn smaller to stay inside
HEIGHTS = {1: (0.74, 0.92), 2: (0.6, 0.74), 3: (0.44, 0.52)}  # by how many there are, fractions of the picture
SKETCH = (
    "ellipse,path,rect,polygon"
    "{fill:#fff !important;stroke:#000 !important;stroke-width:2 !important;opacity:1 !important}"
)


@dataclass
class Subject:
    """One character or object: what it is, how it looks, where it stands."""

    cls: str  # one of CLASSES
    colour: str | None  # a name of COLORS, or None for a colour in between
    rgb: tuple[float, float, float]  # the colour itself, in [0, 1]
    shape: dict[str, float]  # proportions, see SHAPE in characters.py and objects.py
    expression: str = "happy"  # one of EXPRESSIONS; objects have none
    accessories: list = field(default_factory=list)  # [(name, colour name, rgb)]
    arms: tuple[float, float] = (20.0, 20.0)  # degrees from hanging down, left and right
    flip: bool = False  # mirrored left to right
    x: float = 0.5  # centre, fraction of the picture's width
    y: float = 0.9  # ground contact, fraction of the picture's height
    height: float = 0.8  # of a 100-unit character, fraction of the picture's height
    eye_rgb: tuple | None = None  # coloured irises, or None for black pupils
    pattern: tuple | None = None  # out-domain: (kind, rgb, scale)
    parts: list = field(default_factory=list)  # out-domain: [(name, rgb)]
    outline: float = 1.0  # out-domain when not 1: thickness of the drawing's outlines
    odd: bool = False  # captions say that it has marks, and not which: "an odd red cat"

    @property
    def is_character(self) -> bool:
        return self.cls in CHARACTERS


@dataclass
class Picture:
    """Parameters of one picture; subjects are drawn in order, so later ones stand in front."""

    subjects: list[Subject]
    scene: str  # one of SCENES
    scene_params: dict[str, float]
    light: str = "day"  # one of LIGHTS


@dataclass
class Render:
    """What `render` returns; all arrays have the picture's size."""

    image: Image.Image  # RGB
    masks: list[np.ndarray]  # per subject, float32 (size, size) in [0, 1]: its visible part
    keypoints: list[dict[str, tuple[float, float]]]  # per subject, name -> (x, y) in fractions of the picture
    sketch: Image.Image  # "L", black lines of the subjects on white


def held_out(cls: str, colour: str | None, scene: str) -> bool:
    """True for the tenth of all class-colour-scene combinations that pretraining never sees: the bars are of them."""
    if colour is None:
        return False
    return (3 * CLASSES.index(cls) + 7 * list(COLORS).index(colour) + 4 * SCENES.index(scene)) % 10 == 0


def known(name: str, alphabet, kind: str) -> str:
    """The name itself; raises ValueError with the names there are if it is none of them."""
    if name not in alphabet:
        raise ValueError(f"Pocket World has no {kind} {name!r}: choose one of {', '.join(alphabet)}.")
    return name


def sample_colour(rng, name: str | None = None):
    """A named colour with a little jitter, or a blend of two neighbours when `name` is None -> (r, g, b)."""
    if name is None:
        a, b = rng.choice(len(COLORS), 2, replace=False)
        names = list(COLORS)
        return mix(sample_colour(rng, names[a]), sample_colour(rng, names[b]), rng.uniform(0.35, 0.65))
    h, s, v = COLORS[known(name, COLORS, "colour")]
    return hsv(h + rng.uniform(-0.014, 0.014), s + rng.uniform(-0.07, 0.07) * (s > 0.1), v + rng.uniform(-0.04, 0.04))


def sample_shape(rng, cls: str) -> dict[str, float]:
    ranges = characters.SHAPE if cls in CHARACTERS else objects.SHAPE
    return {name: float(rng.uniform(low, high)) for name, (low, high) in ranges.items()}


def sample_pose(rng):
    """Arm angles in degrees: mostly hanging, often one or both raised."""
    return tuple(float(rng.uniform(95, 150) if rng.random() < 0.25 else rng.uniform(8, 60)) for _ in range(2))


def sample_subject(rng, cls: str | None = None, colour: str | None = "any") -> Subject:
    """A subject without a place. `colour` is a name, None for one in between, "any" to draw one (1 in 8 in between)."""
    cls = known(cls, CLASSES, "class") if cls else str(rng.choice(CLASSES, p=_CLASS_ODDS))
    if colour == "any":
        colour = None if rng.random() < 0.125 else str(rng.choice(list(COLORS)))
    subject = Subject(cls, colour, sample_colour(rng, colour), sample_shape(rng, cls), flip=bool(rng.random() < 0.5))
    if subject.is_character:
        subject.expression = str(rng.choice(EXPRESSIONS, p=(0.4, 0.15, 0.15, 0.15, 0.15)))
        subject.arms = sample_pose(rng)
        subject.eye_rgb = hsv(rng.uniform(), 0.6, 0.6) if rng.random() < 0.3 else None
        count = rng.choice(3, p=(0.5, 0.4, 0.1))
        for name in rng.choice(ACCESSORIES, count, replace=False):
            tint = str(rng.choice([c for c in COLORS if c != colour]))
            subject.accessories.append((str(name), tint, sample_colour(rng, tint)))
        if {"hat", "crown"} <= {name for name, *_ in subject.accessories}:
            subject.accessories.pop()
    return subject


_CLASS_ODDS = [0.115] * len(CHARACTERS) + [0.31 / len(OBJECTS)] * len(OBJECTS)


def place(rng, subjects: list[Subject], apart: bool = False) -> list[Subject]:
    """Give subjects sizes and places: one fills the picture, several stand as large as fits side by side.

    A tenth of the pairs stand closer, one behind the other (Section 3.4 needs overlaps); farther ones come first.
    apart   never closer, each in a column of its own, as regions have them
    """
    n = len(subjects)
    low, high = HEIGHTS[n]
    slots = rng.permutation(n)
    roll = rng.uniform()
    span = (0.0, 0.42 + 0.08 * roll, 0.6 + 0.04 * roll)[n - 1]  # between the outer two, fraction of the width
    if n == 2 and not apart and rng.random() < 0.1:
        span = 0.24 + 0.1 * roll
    left = 0.5 - span / 2 + rng.uniform(-1, 1) * (0.1, 0.03, 0.01)[n - 1]
    for subject, slot in zip(subjects, slots, strict=True):
        subject.height = float(rng.uniform(low, high))
        subject.height *= REACH.get(subject.cls, 1.0)
        jitter = rng.uniform(-0.02, 0.02)
        subject.x = float(left if n == 1 else left + span * slot / (n - 1) + jitter)
        floor = max(0.84, 1.11 * subject.height)  # ears and hats stay inside
        subject.y = float(rng.uniform(min(floor, 0.97), 0.98))
        if subject.cls == "balloon":
            subject.y -= float(rng.uniform(0.0, 0.12))
    return sorted(subjects, key=lambda s: s.y)


def sample_scene_params(rng) -> dict[str, float]:
    return {name: float(rng.uniform()) for name in scenes.PARAMS}


def sample(
    rng, n_subjects=None, subjects=None, scene=None, light=None, allow_held_out: bool = False, apart: bool = False
) -> Picture:
    """Draw the parameters of a picture from the pretraining world.

    rng             numpy.random.Generator
    n_subjects      1, 2 or 3; by default drawn (64, 31, 5 %)
    subjects        given subjects, placed anew (their look is kept); by default drawn
    scene, light    names, by default drawn
    allow_held_out  False skips class-colour-scene combinations that are kept for measuring
    apart           see `place`
    """
    scene = known(scene, SCENES, "scene") if scene else str(rng.choice(SCENES))
    light = known(light, LIGHTS, "light") if light else str(rng.choice(LIGHTS, p=(0.66, 0.16, 0.18)))
    if subjects is None:
        n = n_subjects or int(rng.choice((1, 2, 3), p=(0.64, 0.31, 0.05)))
        subjects = []
        while len(subjects) < n:
            subject = sample_subject(rng)
            if allow_held_out or not held_out(subject.cls, subject.colour, scene):
                subjects.append(subject)
    placed = place(rng, [replace(s) for s in subjects], apart)
    return Picture(placed, scene, sample_scene_params(rng), light)


def draw_subject(subject: Subject, key: str, size_of_world: int = UNITS) -> str:
    """One SVG group in picture coordinates."""
    module = characters if subject.is_character else objects
    worn = [(name, tint) for name, _, tint in subject.accessories]
    elements = module.draw(replace(subject, accessories=worn), key)
    scale = subject.height * size_of_world / 100
    lean = subject.shape.get("lean", subject.shape.get("turn", 0.0))
    flip = -1 if subject.flip else 1
    where = f"translate({subject.x * size_of_world:.3f} {subject.y * size_of_world:.3f})"
    return group(elements, f"{where} scale({flip * scale:.4f} {scale:.4f}) rotate({lean:.2f})")


_TINT = {"sunset": ("#ff7a30", 0.3), "night": ("#101a5c", 0.5)}  # a veil over the scene; subjects keep their colours


def elements(picture: Picture) -> list[str]:
    """The SVG elements of the whole picture."""
    back = scenes.draw(picture.scene, picture.scene_params)
    front = [draw_subject(s, f"s{i}") for i, s in enumerate(picture.subjects)]
    if picture.light == "day":
        return back + front
    tint, strength = _TINT[picture.light]
    return [*back, f'<rect width="{UNITS}" height="{UNITS}" fill="{tint}" opacity="{strength}"/>', *front]


def draw_image(picture: Picture, size: int = 128) -> np.ndarray:
    """Pixels alone (what pretraining needs): uint8 (size, size, 3)."""
    return rasterise(elements(picture), size)[..., :3].copy()


def render(picture: Picture, size: int = 128) -> Render:
    """Pixels, each subject's visible mask and keypoints, a sketch, at `size` x `size`: one layout at any size."""
    groups = [draw_subject(s, f"s{i}") for i, s in enumerate(picture.subjects)]
    cover = [rasterise([g], size)[..., 3].astype(np.float32) / 255 for g in groups]
    masks = []
    for i, alpha in enumerate(cover):
        for nearer in cover[i + 1 :]:
            alpha = alpha * (1 - nearer)
        masks.append(alpha)
    lines = rasterise(groups, size, SKETCH) if groups else np.zeros((size, size, 4), np.uint8)
    white = Image.new("RGBA", (size, size), "white")
    sketch = Image.alpha_composite(white, Image.fromarray(lines)).convert("L")
    points = [keypoints(s) for s in picture.subjects]
    return Render(Image.fromarray(draw_image(picture, size)), masks, points, sketch)


def keypoints(s: Subject) -> dict[str, tuple[float, float]]:
    module = characters if s.is_character else objects
    lean = np.deg2rad(s.shape.get("lean", s.shape.get("turn", 0.0)))
    flip, scale = (-1 if s.flip else 1), s.height / 100
    out = {}
    for name, (x, y) in module.keypoints(s).items():
        rx, ry = x * np.cos(lean) - y * np.sin(lean), x * np.sin(lean) + y * np.cos(lean)
        out[name] = float(s.x + flip * scale * rx), float(s.y + scale * ry)
    return out
