"""Spatial conditions drawn: keyposes (coloured limbs and dots on black) and sketches (black lines on white).

`draw_keypose` and the world's own sketches are what the pocket adapters are trained on (`adapters.py`); the layouts
place a figure in the box of every region, so that the canvas of regions is a pose or a sketch as well.
"""

import re
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from . import characters, objects, world
from .svg import UNITS, ellipse, hsv, line, rasterise

KINDS = {"keypose": 3, "sketch": 1}  # of conditions -> channels of their pictures
PARTS = {  # figure -> the joints of its limbs
    "character": (
        ("neck", "head"), ("neck", "left_shoulder"), ("neck", "right_shoulder"), ("left_shoulder", "left_hand"),
        ("right_shoulder", "right_hand"), ("neck", "hip"), ("hip", "left_foot"), ("hip", "right_foot"),
    ),
    "object": (
        ("top_left", "top_right"), ("top_right", "bottom_right"), ("bottom_right", "bottom_left"),
        ("bottom_left", "top_left"),
    ),
    "person": (  # OpenPose, what the adapters of Stable Diffusion 1.5 know
        ("neck", "right_shoulder"), ("neck", "left_shoulder"), ("right_shoulder", "right_elbow"),
        ("right_elbow", "right_wrist"), ("left_shoulder", "left_elbow"), ("left_elbow", "left_wrist"),
        ("neck", "right_hip"), ("right_hip", "right_knee"), ("right_knee", "right_ankle"), ("neck", "left_hip"),
        ("left_hip", "left_knee"), ("left_knee", "left_ankle"), ("neck", "nose"), ("nose", "right_eye"),
        ("right_eye", "right_ear"), ("nose", "left_eye"), ("left_eye", "left_ear"),
    ),
}  # fmt: skip
PERSON = {  # OpenPose's joints in its order, standing in a 1 x 1 box; the person's right is on the left of the picture
    "nose": (0.5, 0.1), "neck": (0.5, 0.2), "right_shoulder": (0.3, 0.2), "right_elbow": (0.18, 0.37),
    "right_wrist": (0.12, 0.53), "left_shoulder": (0.7, 0.2), "left_elbow": (0.82, 0.37), "left_wrist": (0.88, 0.53),
    "right_hip": (0.38, 0.53), "right_knee": (0.36, 0.75), "right_ankle": (0.35, 0.97), "left_hip": (0.62, 0.53),
    "left_knee": (0.64, 0.75), "left_ankle": (0.65, 0.97), "right_eye": (0.46, 0.08), "left_eye": (0.54, 0.08),
    "right_ear": (0.4, 0.1), "left_ear": (0.6, 0.1),
}  # fmt: skip
Figure = dict[str, tuple[float, float]]  # joint -> (x, y) in fractions of the picture


def kind_of(figure: Figure) -> str:
    return "object" if "top_left" in figure else "person" if "nose" in figure else "character"


def draw_keypose(figures: Sequence[Figure], size: int = UNITS) -> Image.Image:
    """The skeletons of figures (`Render.keypoints`, or OpenPose's joints) -> RGB picture of size x size pixels."""
    elements = []
    for figure in figures:
        kind = kind_of(figure)
        width, radius = (1.2, 1.0) if kind == "person" else (3.0, 2.6)
        at = {name: (x * UNITS, y * UNITS) for name, (x, y) in figure.items()}
        limbs, n = PARTS[kind], len(at)
        first, span = (0.5, 0.3) if kind == "object" else (0.0, 1.0)  # hues; objects in blues, not to look like limbs
        tints = [hsv(first + span * k / n, 1.0, 1.0) for k in range(n)]
        dim = [tuple(0.6 * c for c in tint) for tint in tints]  # limbs are darker than joints, as OpenPose draws them
        elements += [line([at[a], at[b]], dim[k], width) for k, (a, b) in enumerate(limbs)]
        elements += [ellipse(*at[name], radius, radius, tints[k]) for k, name in enumerate(at)]
    black = Image.new("RGBA", (size, size), "black")
    return Image.alpha_composite(black, Image.fromarray(rasterise(elements, size))).convert("RGB")


def draw_sketch(subjects: Sequence[world.Subject], size: int = UNITS) -> Image.Image:
    """The outlines of subjects, black on white, "L", size x size pixels: `Render.sketch` without the rest."""
    white = Image.new("RGBA", (size, size), "white")
    groups = [world.draw_subject(subject, f"s{i}") for i, subject in enumerate(subjects)]
    lines = [Image.fromarray(rasterise(groups, size, world.SKETCH))] if groups else []
    return (Image.alpha_composite(white, *lines) if lines else white).convert("L")


def draw_condition(kind: str, picture: world.Picture, size: int = UNITS) -> Image.Image:
    """The keypose ("RGB") or sketch ("L") of a picture of the world, size x size pixels."""
    if kind == "keypose":
        return draw_keypose([world.keypoints(subject) for subject in picture.subjects], size)
    if kind == "sketch":
        return draw_sketch(picture.subjects, size)
    raise ValueError(f"There is no condition {kind!r}: say {' or '.join(KINDS)}.")


def default_subject(cls: str) -> world.Subject:
    """The class in the middle of its ranges, arms a little raised."""
    ranges = characters.SHAPE if cls in world.CHARACTERS else objects.SHAPE
    middle = {name: (low + high) / 2 for name, (low, high) in ranges.items()}
    return world.Subject(cls, None, (0.7, 0.7, 0.7), middle, arms=(35.0, 35.0))


def fit(subject: world.Subject, box: tuple[float, float, float, float]) -> world.Subject:
    """The subject as large as the box (left, top, right, bottom) holds, standing on its lower edge, in its middle."""
    left, top, right, bottom = box
    trial = replace(subject, x=0.5, y=0.75, height=0.4)
    seen = np.nonzero(rasterise([world.draw_subject(trial, "fit")], 4 * UNITS)[..., 3] > 127)
    (y0, x0), (y1, x1) = (
        [axis.min() / (4 * UNITS) for axis in seen],
        [(axis.max() + 1) / (4 * UNITS) for axis in seen],
    )
    scale = min((right - left) / (x1 - x0), (bottom - top) / (y1 - y0))
    x = (left + right) / 2 - scale * ((x0 + x1) / 2 - trial.x)
    return replace(subject, x=x, y=bottom - scale * (y1 - trial.y), height=scale * trial.height)


def class_of(prompt: str) -> str | None:
    """The first class of the world that a prompt names."""
    return next((word for word in re.findall(r"[a-z]+", prompt.lower()) if word in world.CLASSES), None)


def layout(regions: Sequence, classes: Sequence[str | None] | None = None, default: str | None = None) -> list:
    """A default subject for every region, fitted to its bounds -> [Subject].

    The class of a region is that of `classes`, else the one its prompt names, else `default`. Raises ValueError if
    there is none, or `classes` has another length.
    """
    classes = list(classes) if classes is not None else [None] * len(regions)
    if len(classes) != len(regions):
        raise ValueError(f"There are {len(classes)} classes for {len(regions)} regions: give one for each, or None.")
    subjects = []
    for region, cls in zip(regions, classes, strict=True):
        cls = cls or class_of(region.prompt) or default
        if cls not in world.CLASSES:
            raise ValueError(
                f"The region {region.prompt!r} names no class to draw: give classes=[...], one for each region, "
                f"of {', '.join(world.CLASSES)}."
            )
        subjects.append(fit(default_subject(cls), region.bounds))
    return subjects


def keypose_layout(
    regions: Sequence, size: int = UNITS, classes: Sequence[str | None] | None = None, person: bool = False
) -> Image.Image:
    """A keypose condition for regions: a default skeleton in the box of each (or around each mask).

    Regions whose prompt names an object of the world, and those whose class in `classes` is one, get an object's frame.
    `person=True` draws standing people with OpenPose's joints and colours instead, for the adapters of SD 1.5.
    """
    if not person:
        return draw_keypose([world.keypoints(s) for s in layout(regions, classes, world.CHARACTERS[0])], size)
    figures = []
    for region in regions:
        left, top, right, bottom = region.bounds
        width = min(right - left, 0.5 * (bottom - top))
        x, height = (left + right - width) / 2, 2 * width
        figures.append({name: (x + u * width, bottom - (1 - v) * height) for name, (u, v) in PERSON.items()})
    return draw_keypose(figures, size)


def sketch_layout(regions: Sequence, size: int = UNITS, classes: Sequence[str | None] | None = None) -> Image.Image:
    """A sketch condition for regions: the outlines of a default subject of each region's class in its box."""
    return draw_sketch(layout(regions, classes), size)
