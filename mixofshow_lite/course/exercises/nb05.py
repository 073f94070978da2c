"""Notebook 05: the region rewrite, a box on maps of cells, a row of friends, a fence between regions."""

import re

import numpy as np
import torch
from torch import Tensor

from ...engine.masks import Region
from . import called, close, exercise

CELLS, WIDTH = 12, 5  # of the random features
SILENT = {"an", "the", "and", "on", "in", "left", "right"}  # words that draw nothing, as single letters do


def attend(x: Tensor, context: Tensor) -> Tensor:
    """A cross-attention to try rewrites on: every cell of x (T, C) looks at the tokens of context (N, C)."""
    return (x @ context.T).softmax(-1) @ context.flip(-1)


def features():
    """Random x (T, C), a global context, two regions' contexts and disjoint masks (T,), some cells in none."""
    g = torch.Generator().manual_seed(5)
    x, prompt, left, right = (torch.randn(n, WIDTH, generator=g) for n in (CELLS, 3, 4, 4))
    masks = torch.zeros(2, CELLS, dtype=torch.bool)
    masks[0, 1:4], masks[1, 6:11] = True, True
    return x, prompt, [(left, masks[0]), (right, masks[1])]


def cell_by_cell(x: Tensor, prompt: Tensor, regions) -> Tensor:
    """The paper's rule by the slowest way: every cell asks the prompt that is in charge of it."""
    rows = []
    for p in range(len(x)):
        mine = [context for context, mask in regions if mask[p]]
        rows.append(attend(x[p : p + 1], mine[0] if mine else prompt))
    return torch.cat(rows)


@exercise("5.1")
def _rewrite(function) -> None:
    x, prompt, regions = features()
    hint = "attend takes (cells, context) and gives (cells, width); a mask picks rows of x."
    mine, wanted = called(function, attend, x.clone(), prompt, regions, hint=hint), cell_by_cell(x, prompt, regions)
    if isinstance(mine, Tensor) and mine.shape == wanted.shape:
        inside = torch.stack([mask for _, mask in regions]).any(0)
        if torch.allclose(mine, attend(x, prompt)):
            raise AssertionError("That is the global prompt everywhere: the regions have not said anything yet.")
        if not mine[~inside].any():
            raise AssertionError("Outside the regions there is nothing: start from the global prompt's h.")
        summed = attend(x, prompt) + sum(mask[:, None] * attend(x, context) for context, mask in regions)
        if torch.allclose(mine, summed, atol=1e-5):
            raise AssertionError("The regions' h_i is ADDED to h: the paper replaces, h[M_i] = h_i.")
        if torch.allclose(mine, attend(x, regions[-1][0])):
            raise AssertionError("The last region has taken the whole picture: write only into h[mask].")
    close(mine, wanted, "Inside a mask the cells ask the region's context, everywhere else the global one.")


@exercise("5.2")
def _first_rows(answer, region, sides) -> None:
    """The first row of cells inside the region's box, on square maps of these sides."""
    try:
        mine = tuple(int(row) for row in answer)
    except (TypeError, ValueError):
        raise AssertionError("Give one number of a row for each map, as a tuple: (0, 0, 0, 0).") from None
    if len(mine) != len(sides):
        raise AssertionError(f"There are {len(mine)} numbers for {len(sides)} maps.")
    inside = [region.cover(side, side) >= 0.5 for side in sides]
    wanted = tuple(int(cells.any(1).nonzero().min()) for cells in inside)
    top = region.bounds[1]
    if mine == wanted:
        return
    if mine == tuple(row + 1 for row in wanted):
        raise AssertionError("Count from 0: the uppermost row of a map is row 0.")
    if mine == tuple(int(top * side) for side in sides):
        raise AssertionError("Those rows lie partly above the box: a cell counts if it is ENTIRELY inside.")
    if mine == tuple(round(top * side) for side in sides) or any(
        row > first for row, first in zip(mine, wanted, strict=True)
    ):
        raise AssertionError("Round the edge inwards on every map: the first row that begins at or below 0.15.")
    wrong = next(side for side, row, first in zip(sides, mine, wanted, strict=True) if row != first)
    raise AssertionError(f"Not on the map of {wrong} x {wrong}: where does each of its rows begin, in fractions?")


@exercise("5.3")
def _friends(regions) -> None:
    if not isinstance(regions, (list, tuple)) or not all(isinstance(region, Region) for region in regions):
        raise AssertionError("Give a list of mos.Region.")
    if len(regions) != 3:
        raise AssertionError(f"There are {len(regions)} regions: three friends need three.")
    for region in regions:
        spoken = [
            word for word in re.findall(r"[\w<>]+", region.prompt.lower()) if len(word) > 1 and word not in SILENT
        ]
        if not spoken:
            raise AssertionError(f"Nobody knows what to draw for {region.prompt!r}: name a friend, and the place.")
    if len({region.prompt for region in regions}) < 3:
        raise AssertionError("Two of them have the same prompt: give each friend its own.")
    cover = torch.stack([region.cover(16, 16) for region in regions])  # (3, 16, 16)
    if (cover > 0).sum(0).max() > 1:
        raise AssertionError("Two boxes overlap, and where they do two friends are averaged: keep them apart.")
    left, top, right, bottom = (np.array(side) for side in zip(*(region.bounds for region in regions), strict=True))
    if not (right[:-1] <= left[1:] + 1e-6).all():
        raise AssertionError(
            "They do not stand in a row: order the boxes from left to right, (left, top, right, bottom)."
        )
    if (right - left).min() < 0.2 or (bottom - top).min() < 0.4:
        raise AssertionError("A box is narrower than 0.2 or lower than 0.4: on coarse feature maps it has no cell.")
    if np.ptp(bottom) > 0.2:
        raise AssertionError("Their feet are at different heights: let the boxes end at about the same bottom.")


@exercise("5.4")
def _fence(function) -> None:
    inside = torch.tensor(
        [[1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 0]], dtype=torch.bool
    )  # (R, T): a shared cell, a free one
    cells = range(inside.shape[1])
    wanted = torch.tensor([[_may(inside, p, q) for q in cells] for p in cells])
    mine = called(function, inside.clone(), hint="inside is (R, T) of booleans; for counting make it .float().")
    mine = torch.as_tensor(mine)
    if mine.shape != wanted.shape:
        raise AssertionError(f"The shape is {tuple(mine.shape)} where (T, T) = {tuple(wanted.shape)} is wanted.")
    mine = mine.bool()
    if not mine.diagonal().all():
        raise AssertionError("Some cell may not even look at itself: cells of no region look everywhere.")
    if not torch.equal(mine, mine.T):
        raise AssertionError("p may look at q but q not at p: the rule is the same both ways.")
    if mine.all():
        raise AssertionError("Everyone may look at everyone: nothing is kept apart.")
    if not mine[5].all():
        raise AssertionError("A cell of no region is shut out: it looks at all, and all look at it.")
    if not (mine[2, 0] and mine[2, 3]):
        raise AssertionError("A cell of both regions may look into both: it is enough to share one.")
    close(mine.float(), wanted.float(), "Two cells see each other if they share a region or one of them is in none.")


def _may(inside: Tensor, p: int, q: int) -> bool:
    """The fence in words, for one pair of cells."""
    of_p, of_q = ({r for r in range(len(inside)) if inside[r, cell]} for cell in (p, q))
    return bool(of_p & of_q) or not of_p or not of_q
