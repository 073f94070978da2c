"""Notebook 05: the region rewrite, the full-picture identity, a row of friends, a fence between regions."""

import numpy as np
import torch
from torch import Tensor

from ...engine.masks import Region, region_weights
from . import close, exercise

CELLS, WIDTH = 12, 5  # of the random features


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
    mine, wanted = function(attend, x.clone(), prompt, regions), cell_by_cell(x, prompt, regions)
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
def _identity(function, model) -> None:
    prompt = "a red cat in the snow"
    region = function(prompt)
    if region is None or region is ...:
        raise AssertionError("The function returns nothing yet: replace the ... by a Region.")
    if not isinstance(region, Region):
        raise AssertionError(f"That is a {type(region).__name__}: return mos.Region(...).")
    if region.prompt != prompt:
        raise AssertionError(f"The region says {region.prompt!r} where the plain sample says {prompt!r}.")
    weights = region_weights([region], 8, 8)
    if weights.min() < 0.999:
        what = "its weight is below 1" if region.weight < 1 else "it does not cover every cell"
        raise AssertionError(f"Somewhere the global prompt still speaks, because {what}.")
    if region.start > 0 or region.end < 1:
        raise AssertionError("At some steps the global prompt speaks alone: leave start and end as they are.")
    options = {"seed": 1, "steps": 3, "progress": False}
    plain = model.sample(prompt, **options)[0]
    regional = model.sample("the desert at night", regions=[region], **options)[0]
    close(np.asarray(regional, float), np.asarray(plain, float), "The two pictures differ.", 0.01)


@exercise("5.3")
def _friends(regions) -> None:
    if not isinstance(regions, (list, tuple)) or not all(isinstance(region, Region) for region in regions):
        raise AssertionError("Give a list of mos.Region.")
    if len(regions) != 3:
        raise AssertionError(f"There are {len(regions)} regions: three friends need three.")
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
    mine = function(inside)
    if mine is None or mine is ...:
        raise AssertionError("The function returns nothing yet: replace the ... by your lines.")
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
