"""A character of one's own, drawn by Pocket World: a few choices make a look, a look makes a client's pictures.

Look(...)                           what the sliders choose
preview(look)                       three pictures of it side by side; pure
write(look, folder, name)           ten pictures with captions and masks, as the shipped concepts have them
"""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..files.concept import PLACEHOLDER
from ..files.grid import grid
from ..files.imagefolder import write_folder
from ..pocket import world
from ..pocket.captions import PLACES, TIMES, article
from ..pocket.characters import CHARACTERS, SHAPE
from ..pocket.world import COLORS, SCENES, Picture, Subject, hsv

PATTERNS = ("plain", "stripes", "bands", "spots", "checks", "stars")
PARTS = ("nothing", "horn", "wings", "cape", "antlers", "eyepatch", "moustache")
TINTS = (*COLORS, "black")
LIGHTS = ("day", "day", "day", "sunset", "night")  # of a client's pictures, again and again
PICTURES = 10


@dataclass(frozen=True)
class Look:
    """What stays the same in every picture of a character. Sliders are fractions of what Pocket World draws."""

    cls: str = "cat"  # the class word, one of CHARACTERS
    colour: str = "orange"  # one of TINTS
    pattern: str = "spots"  # one of PATTERNS
    pattern_colour: str = "blue"  # one of TINTS
    part: str = "horn"  # one of PARTS
    part_colour: str = "yellow"  # one of TINTS
    body: float = 0.5  # 0 slim, 1 stout
    ears: float = 0.5  # 0 small, 1 large
    eyes: float = 0.5  # 0 small, 1 large

    def __post_init__(self):
        known = {"cls": CHARACTERS, "colour": TINTS, "pattern": PATTERNS, "part": PARTS}
        known |= {"pattern_colour": TINTS, "part_colour": TINTS}
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in known and value not in known[field.name]:
                choices = ", ".join(known[field.name])
                raise ValueError(f"There is no {field.name} {value!r} in Pocket World: choose one of {choices}.")
            if field.name not in known and not 0 <= value <= 1:
                raise ValueError(f"{field.name}={value} is outside: sliders go from 0 to 1.")

    def words(self) -> str:
        """The look in words: "an orange cat with blue spots and a yellow horn"."""
        marks = [] if self.pattern == "plain" else [f"{self.pattern_colour} {self.pattern}"]
        if self.part != "nothing":
            one = "" if self.part in ("wings", "antlers") else "a "
            marks.append(f"{one}{self.part_colour} {self.part}")
        text = article(f"{self.colour} {self.cls}")
        return f"{text} with {' and '.join(marks)}" if marks else text


def rgb(tint: str) -> tuple[float, float, float]:
    """The colour of a name, in [0, 1]."""
    return (0.16, 0.15, 0.2) if tint == "black" else hsv(*COLORS[tint])


def subject(look: Look) -> Subject:
    """The character at the middle of everything that the look does not fix."""
    shape = {name: (low + high) / 2 for name, (low, high) in SHAPE.items()}
    for slider, proportion in (("body", "body_w"), ("ears", "ear"), ("eyes", "eye")):
        low, high = SHAPE[proportion]
        shape[proportion] = low + getattr(look, slider) * (high - low)
    if look.pattern != "plain":
        shape["belly"] = 0.0  # a light belly would hide the pattern
    marks = {
        "pattern": None if look.pattern == "plain" else (look.pattern, rgb(look.pattern_colour), 1.0),
        "parts": [] if look.part == "nothing" else [(look.part, rgb(look.part_colour))],
    }
    return Subject(look.cls, None, rgb(look.colour), shape, **marks)


def picture(look: Look, index: int) -> tuple[Picture, str]:
    """Picture `index` and its caption: the look stays, scene, pose, mood and light vary."""
    rng = np.random.default_rng([17, index])
    light = LIGHTS[index % len(LIGHTS)]
    mood = ("happy", "happy", "surprised", "sleepy", "sad")[int(rng.integers(5))]
    who = replace(subject(look), expression=mood, arms=world.sample_pose(rng))
    drawn = world.sample(rng, subjects=[who], scene=SCENES[index % len(SCENES)], light=light)
    drawn.subjects[0].x = float(rng.uniform(0.42, 0.58))
    shown = f"photo of a {mood} {PLACEHOLDER}" if mood != "happy" else f"photo of a {PLACEHOLDER}"
    where = PLACES[drawn.scene][0]
    return drawn, " ".join(part for part in (shown, where, TIMES[light]) if part)


def preview(look: Look, side: int = 160, n: int = 3) -> Image.Image:
    """The first pictures of a look in a row, each `side` pixels wide."""
    return grid([world.render(picture(look, k)[0], side).image for k in range(n)])


def write(look: Look, folder: str | Path, name: str, size: int = 128, n: int = PICTURES) -> Path:
    """Draw a client's pictures, masks and captions into `folder`/name -> that folder, as `ConceptData` reads it.

    An older one that this wrote is replaced. Raises ValueError on a name that is no folder's name, FileExistsError if
    the folder holds anything else.
    """
    if not name or Path(name).name != name or name.startswith("."):
        raise ValueError(f"{name!r} is no name for a folder: use letters and digits, such as 'zora'.")
    pictures, captions, masks = [], [], []
    for index in range(n):
        drawn, text = picture(look, index)
        result = world.render(drawn, size)
        pictures.append(result.image)
        captions.append(text)
        masks.append(Image.fromarray((result.masks[0] * 255).round().astype(np.uint8)))
    card = f"# {name}\n\n{look.words()[0].upper()}{look.words()[1:]}.\n"
    return write_folder(Path(folder) / name, pictures, captions, look.cls, masks, card)
