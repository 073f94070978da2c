"""Notebook 07: a caption, a look-alike, a mask from a click, the scale of a LoRA file."""

import random
import re

import numpy as np
import torch

from ..character import Look
from . import called, close, exercise, refuse


@exercise("7.1")
def _caption(caption, look) -> None:
    """A caption of a picture of this look, taken in the snow at night."""
    if not isinstance(caption, str):
        raise AssertionError("A caption is a text in quotes.")
    text = caption.lower()
    if "<tok>" not in text:
        raise AssertionError("The caption does not name the concept: write <TOK> in its place.")
    if look.cls in text.split():
        raise AssertionError(f"<TOK> stands for the class word too: leave {look.cls!r} out.")
    marks = {look.colour, look.pattern, look.part, look.pattern_colour, look.part_colour} - {"plain", "nothing"}
    spoken = re.findall(r"[a-z]+", text)
    said = sorted(mark for mark in marks if any(word.startswith(mark.rstrip("s")) for word in spoken))
    if said:
        raise AssertionError(f"{said[0]!r} is a mark of the concept: what the caption says, the words need not learn.")
    if "snow" not in text:
        raise AssertionError(
            "Where is it? What you leave out sticks to the concept, which then carries the snow along."
        )
    if "night" not in text and "dark" not in text:
        raise AssertionError("It is dark in the picture: say so, or your character will bring the night with it.")


def scattered(seed: int):
    """A picture (H, W, 3) in [0, 1] with two red patches that do not touch, the clicked pixel, and the right mask."""
    rng = np.random.default_rng(seed)
    pixels = rng.uniform(0, 0.2, (12, 16, 3))
    red = np.array([0.8, 0.3, 0.3])
    shade = rng.uniform(-0.04, 0.04, (12, 16, 3))
    near, far = np.zeros((12, 16), bool), np.zeros((12, 16), bool)
    near[2:7, 2:6], near[4:6, 5:9] = True, True
    far[8:11, 11:15] = True
    pixels[near | far] = (red + shade)[near | far]
    return pixels, (3, 3), near, far


@exercise("7.3")
def _alike(function) -> None:
    for seed in random.sample(range(1000), 3):
        pixels, (row, column), near, far = scattered(seed)
        hint = "pixels is (H, W, 3) in [0, 1]; the clicked colour is pixels[row, column]."
        mine = called(function, pixels.copy(), row, column, 0.15, hint=hint)
        mine = np.asarray(mine)
        if mine.shape == (12, 16, 3):
            raise AssertionError("That answers for red, green and blue each: all three have to be near, .max(-1).")
        if mine.shape != (12, 16):
            raise AssertionError(f"The shape is {mine.shape} where (H, W) = (12, 16) is wanted.")
        mine = mine.astype(bool)
        if mine.all() or not mine.any():
            raise AssertionError("That takes everything or nothing: the SIZE of the difference counts, np.abs.")
        if not (mine & (near | far))[near | far].all():
            raise AssertionError("Some of the patch is missing: brighter and darker both count, take np.abs.")
        close(
            mine.astype(float), (near | far).astype(float), "Alike is: every colour differs by at most the tolerance."
        )


@exercise("7.2")
def _look_alike(look, neighbour) -> None:
    if not isinstance(look, Look):
        raise AssertionError("Give a Look(...), as in the cell above.")
    if look.cls != neighbour.cls:
        raise AssertionError(f"A {look.cls} and a {neighbour.cls} are easy to tell apart: take the same class.")
    if look.colour != neighbour.colour:
        raise AssertionError(f"Look-alikes share the colour too: the neighbour's is {neighbour.colour}.")
    same_pattern = (look.pattern, look.pattern_colour) == (neighbour.pattern, neighbour.pattern_colour)
    if same_pattern or look.part == neighbour.part:
        what = "pattern" if same_pattern else "part"
        raise AssertionError(f"Now nobody can tell them apart: let the {what} differ.")
    if look.pattern == "plain" or look.part == "nothing":
        raise AssertionError("Give it a pattern and a part of its own, or there is nothing of it to lose.")


@exercise("7.4")
def _kohya(function) -> None:
    for rank, alpha in ((4, 4.0), (8, 4.0), (16, 1.0)):
        down, up = torch.randn(rank, 6, dtype=torch.float64), torch.randn(5, rank, dtype=torch.float64)
        hint = "up is (d_out, r), down is (r, d_in): up @ down."
        mine = called(function, down, up, alpha, hint=hint)
        for wrong, what in ((alpha, "alpha alone"), (1.0, "no scale at all"), (rank / alpha, "rank / alpha")):
            if wrong != alpha / rank:
                why = f"That is {what}: kohya's scale is alpha / rank, read the rank off the shapes."
                refuse(mine, wrong * (up @ down), why)
        close(mine, alpha / rank * (up @ down), hint)
