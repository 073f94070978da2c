"""The concepts that ship with the kit, drawn by the renderer: 15 of them, two groups of three look-alikes among them.

In-domain concepts are points of the pretraining world. Out-domain concepts wear what that world never shows: patterns,
extra parts, other outlines, other scenery. Every folder is a Hugging Face imagefolder with captions (`<TOK>` stands for
the concept) and masks.

    python -m mixofshow_lite.pocket.concepts data/concepts            # 128 px
    python -m mixofshow_lite.pocket.concepts out/concepts512 --size 512   # the same pictures, for SD 1.5
"""

import argparse
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from ..files.imagefolder import write_folder
from . import captions, scenery, world
from .world import Picture, Subject

PICTURES = 10


@dataclass(frozen=True)
class Spec:
    """What a concept is: its class, its domain, its fixed look."""

    cls: str  # class word: a class of the world, or a scene
    domain: str  # "in" or "out"
    story: str  # one line for the card
    rgb: tuple[float, float, float] = (0.5, 0.5, 0.5)
    shape: dict = field(default_factory=dict)  # proportions that differ from the middle
    accessories: tuple = ()  # ((name, colour name), ...)
    eye_rgb: tuple | None = None
    pattern: tuple | None = None
    parts: tuple = ()
    outline: float = 1.0
    group: str | None = None  # look-alikes share a group


WHITE, BLACK, GOLD, TEAL = (0.96, 0.95, 0.94), (0.16, 0.15, 0.2), (0.97, 0.78, 0.25), (0.16, 0.6, 0.62)

CONCEPTS = {
    "bibi": Spec("rabbit", "out", "A white rabbit with a red scarf and a red star.",
        WHITE, {"ear": 1.15, "eye": 1.1, "belly": 0.0}, (("scarf", "red"),),
        parts=(("star", (0.88, 0.2, 0.2)),), group="rabbits"),
    "momo": Spec("rabbit", "out", "A white rabbit in a blue hat and a blue cape.",
        WHITE, {"ear": 0.9, "body_w": 1.15, "belly": 0.0}, (("hat", "blue"),),
        parts=(("cape", (0.2, 0.4, 0.85)),), group="rabbits"),
    "kiki": Spec("rabbit", "out", "A white rabbit with pink wings and a yellow crown.",
        WHITE, {"ear": 1.05, "body_w": 0.9, "belly": 0.0}, (("crown", "yellow"),),
        parts=(("wings", (0.97, 0.6, 0.75)),), group="rabbits"),
    "rusty": Spec("robot", "out", "An orange robot in black bands, with a moustache.",
        (0.95, 0.55, 0.2), {"body_w": 1.2, "belly": 0.0},
        pattern=("bands", BLACK, 1.0), parts=(("moustache", WHITE),), group="robots"),
    "volt": Spec("robot", "out", "A purple robot full of yellow stars, with antlers.",
        (0.5, 0.3, 0.7), {"head_w": 1.1, "belly": 0.6},
        pattern=("stars", GOLD, 1.1), parts=(("antlers", (0.65, 0.45, 0.25)),), group="robots"),
    "pixel": Spec("robot", "out", "A green robot in black checks, wearing a red cape.",
        (0.45, 0.8, 0.4), {"body_w": 0.9, "belly": 0.6},
        pattern=("checks", BLACK, 1.1), parts=(("cape", (0.85, 0.18, 0.2)),), group="robots"),
    "mochi": Spec("cat", "in", "A slim white cat with green eyes and a red scarf.",
        WHITE, {"body_w": 0.82, "head_w": 0.95, "ear": 1.2, "eye": 1.1},
        (("scarf", "red"),), eye_rgb=(0.25, 0.65, 0.4)),
    "bruno": Spec("bear", "in", "A stout brown bear with small ears and a blue hat.",
        (0.5, 0.34, 0.22), {"body_w": 1.24, "ear": 0.8, "belly": 0.7},
        (("hat", "blue"),)),
    "fern": Spec("frog", "in", "A teal frog, between green and blue, with a yellow crown.",
        (0.25, 0.62, 0.62), {"body_w": 1.1, "eye": 1.15}, (("crown", "yellow"),)),
    "tango": Spec("bird", "out", "A red bird in thick ink, with white spots and a cape.",
        (0.85, 0.2, 0.2), {"belly": 0.0, "limb": 1.2},
        pattern=("spots", WHITE, 1.0), parts=(("cape", TEAL),), outline=1.6),
    "beetle": Spec("car", "in", "A long low pink car.",
        (0.97, 0.62, 0.76), {"wide": 1.22, "tall": 0.85, "part": 0.8}),
    "zigzag": Spec("mug", "out", "A white mug in teal stripes.",
        WHITE, {"wide": 1.1}, pattern=("stripes", TEAL, 1.0)),
    "polka": Spec("umbrella", "out", "A blue umbrella with golden stars.",
        (0.25, 0.35, 0.75), {"wide": 1.15}, pattern=("stars", GOLD, 1.0)),
    "cove": Spec("beach", "in", "A turquoise cove at a low horizon, always the same palm."),
    "lava": Spec("desert", "out", "A black desert with a volcano and rivers of lava."),
}  # fmt: skip


def subject(name: str) -> Subject:
    """The subject of a character or object concept, at the middle of everything its look does not fix."""
    spec = CONCEPTS[name]
    rng = np.random.default_rng(0)
    shape = {k: 1.0 for k in world.sample_shape(rng, spec.cls)}
    shape |= {
        k: v
        for k, v in {"ear_tilt": 3.0, "pupil": 0.7, "belly": 0.55, "gaze": 0.0, "lean": 0.0, "turn": 0.0}.items()
        if k in shape
    }
    worn = [(item, tint, world.hsv(*world.COLORS[tint])) for item, tint in spec.accessories]
    marks = {"pattern": spec.pattern, "parts": list(spec.parts), "outline": spec.outline}
    return Subject(spec.cls, None, spec.rgb, shape | spec.shape, accessories=worn, eye_rgb=spec.eye_rgb, **marks)


def picture(name: str, index: int) -> tuple[Picture, str]:
    """Picture `index` of a concept and its caption: the look stays, scene, place, size, pose, mood and light vary."""
    spec = CONCEPTS[name]
    rng = np.random.default_rng([11, list(CONCEPTS).index(name), index])
    light = ("day", "day", "day", "sunset", "night")[index % 5]
    when = captions.TIMES[light]
    if spec.cls in world.SCENES:
        inside = world.sample_subject(rng) if index % 2 else None
        scene = Picture(
            world.place(rng, [inside]) if inside else [], scenery.name(name, spec.cls), scenery.params(name, rng), light
        )
        text = f"{captions.full_name(inside)} in <TOK>" if inside else "photo of <TOK>"
        return scene, " ".join(p for p in (text, when) if p)
    look = subject(name)
    shape = dict(look.shape)
    for key, spread in (("lean", 5.0), ("turn", 5.0), ("gaze", 0.8)):
        if key in shape:
            shape[key] = float(rng.uniform(-spread, spread))
    look = replace(look, shape=shape, flip=bool(rng.random() < 0.3), arms=world.sample_pose(rng))
    look.expression = ("happy", "happy", "surprised", "sleepy", "sad")[int(rng.integers(5))]
    drawn = world.sample(rng, subjects=[look], scene=world.SCENES[index % len(world.SCENES)], light=light)
    close = rng.uniform(0.82, 0.92)  # a client's photos show the concept well
    drawn.subjects[0].height = float(close) * world.REACH.get(spec.cls, 1.0)
    drawn.subjects[0].y = float(rng.uniform(0.95, 0.98))
    drawn.subjects[0].x = float(rng.uniform(0.42, 0.58))
    mood = f"{look.expression} " if look.is_character and look.expression != "happy" else ""
    where = captions.PLACES[drawn.scene][0]
    return drawn, " ".join(p for p in (f"photo of a {mood}<TOK>", where, when) if p)


def write(name: str, folder, size: int = 128) -> Path:
    """Draw one concept into `folder`/name: pictures, masks, metadata.jsonl and its card; an older one is replaced."""
    cls = CONCEPTS[name].cls
    pictures, texts, masks = [], [], []
    for index in range(PICTURES):
        drawn, text = picture(name, index)
        result = world.render(drawn, size)
        if cls in world.SCENES:  # the scene without its visitor
            cover = 1 - np.clip(sum(result.masks, np.zeros((size, size), np.float32)), 0, 1)
        else:
            cover = result.masks[0]
        pictures.append(result.image)
        texts.append(text)
        masks.append(Image.fromarray((cover * 255).round().astype(np.uint8)))
    return write_folder(Path(folder) / name, pictures, texts, cls, masks, card(name), optimize=True)


def card(name: str) -> str:
    spec = CONCEPTS[name]
    kin = [n for n, s in CONCEPTS.items() if spec.group and s.group == spec.group and n != name]
    lines = [
        f"# {name}",
        "",
        spec.story,
        "",
        f"- class word: `{spec.cls}`",
        f"- domain: {spec.domain}-domain of Pocket Diffusion",
    ]
    lines += [f"- look-alikes: {', '.join(kin)}"] if kin else []
    lines += [
        f"- {PICTURES} pictures drawn by `mixofshow_lite.pocket.concepts`, licence Apache-2.0, with subject masks",
        "",
    ]
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description="Draw the kit's concepts.")
    parser.add_argument("folder")
    parser.add_argument("--size", type=int, default=128, help="pixels, 128 for pocket, 512 for SD 1.5")
    args = parser.parse_args()
    for name in CONCEPTS:
        print(write(name, args.folder, args.size))


if __name__ == "__main__":
    main()
