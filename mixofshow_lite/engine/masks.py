"""Where regions are (paper 3.4): boxes, masks and their weights on the feature maps of a U-Net.

    paper   here      shape
    M_i     mask      (H, W) in 0..1, or a box as fractions of the picture
            cover     (h, w)   how much of each cell of a feature map the region claims
            w_i       (R, T)   the covers with overlaps settled, T = h * w cells, at most 1 in sum

Boxes and hard masks follow the official rule for a box's edges, ceil(start) to floor(end) on every feature map: the
cells that lie entirely inside. Where no cell does (there the official code loses the region), the most covered cells
have twice their covered share, at most 1: a cell at least half covered counts fully, and thin regions get
proportionally less on coarse maps. Grey masks and feathered edges are soft: their cover is their exact mean over the
cell.
"""

import math
import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..files.mask_files import open_mask, picture_values, spread
from ..files.pictures import orientation_of, turned


@dataclass
class Region:
    """A prompt of its own for a part of the picture; give either a box or a mask. ValueError if anything is off."""

    prompt: str  # what is there, with concept words if wanted
    box: tuple[float, float, float, float] | None = None  # (left, top, right, bottom), fractions of the picture in 0..1
    mask: np.ndarray | Image.Image | str | Path | None = None  # (H, W), white or 1 inside, any size; or its PNG file
    negative_prompt: str | None = None  # for this part only; None: the picture's negative prompt
    weight: float = 1.0  # relative to other regions where they overlap; below 1 lets the global prompt through
    start: float = 0.0  # the region speaks from this fraction of the denoising steps ...
    end: float = 1.0  # ... up to this one
    feather: float = 0.0  # width over which its edges fade, in fractions of the picture; 0 is a hard edge

    def __post_init__(self):
        self.check()
        if self.mask is not None:
            self.mask = to_mask(self.mask, self.prompt)

    def check(self) -> None:
        """Raise TypeError or ValueError with one sentence if anything is off, also what was put there later."""
        for name, text in (("prompt", self.prompt), ("negative_prompt", self.negative_prompt or "")):
            if not isinstance(text, str):
                raise TypeError(f"The {name} of a region is {type(text).__name__}: give a text.")
        if (self.box is None) == (self.mask is None):
            raise ValueError(f"The region {called(self.prompt)} needs a box or a mask, and not both.")
        for name in ("weight", "start", "end", "feather"):
            if not isinstance(getattr(self, name), numbers.Real):
                kind = type(getattr(self, name)).__name__
                raise TypeError(f"The region {called(self.prompt)} has a {kind} as its {name}: give a number.")
        if not 0 < self.weight < math.inf:
            raise ValueError(f"The region {called(self.prompt)} has weight {self.weight}: give one above 0.")
        if not 0 <= self.start < self.end <= 1:
            raise ValueError(
                f"The region {called(self.prompt)} is active from {self.start} to {self.end}: "
                "give fractions of the steps with 0 <= start < end <= 1."
            )
        if not 0 <= self.feather <= 1:
            raise ValueError(
                f"The region {called(self.prompt)} has feather {self.feather}: give a fraction of the picture, 0..1."
            )
        if self.box is not None:
            self.box = to_box(self.box, self.prompt)

    @property
    def bounds(self) -> tuple[float, float, float, float]:
        """The box, or the smallest one around the mask where it is at least half of its maximum."""
        if self.box is not None:
            return self.box
        rows, columns = np.nonzero(self.mask >= self.mask.max() / 2)
        (H, W) = self.mask.shape
        return columns.min() / W, rows.min() / H, (columns.max() + 1) / W, (rows.max() + 1) / H

    def active(self, progress: float) -> bool:
        """Whether the region speaks at a step, `progress` being the steps before it over all steps."""
        return self.start - 1e-6 <= progress and (progress < self.end - 1e-6 or self.end == 1)

    def cover(self, h: int, w: int) -> Tensor:
        """What the region claims of each cell of an h x w feature map, (h, w) in 0..1 before overlaps are settled."""
        if self.box is not None:
            left, top, right, bottom = self.box
            rows, columns = overlap([top], [bottom], h, self.feather), overlap([left], [right], w, self.feather)
            share = rows @ columns.T  # (h, w)
        else:
            share = area_mean(torch.from_numpy(self.mask), h, w, self.feather)
            if ((self.mask > 0) & (self.mask < 1)).any():
                return share
        if self.feather:
            return share
        most = share.max()
        return torch.where(share >= most - 1e-4, (2 * share).clamp(max=1), torch.zeros(()))


def called(prompt: str) -> str:
    """A region's name in messages: its prompt, or the beginning of it."""
    return repr(shorten(prompt, 60, placeholder=" ..."))


def to_box(box: Sequence[float], prompt: str) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in fractions of the picture; ValueError on anything else."""
    try:
        left, top, right, bottom = (float(side) for side in box)
    except (TypeError, ValueError, OverflowError):
        left = top = right = bottom = math.nan
    if not (0 <= top < bottom <= 1 and 0 <= left < right <= 1):
        raise ValueError(
            f"The box {shorten(repr(box), 80)} of the region {called(prompt)} is not (left, top, right, bottom) with "
            "0 <= left < right <= 1 and 0 <= top < bottom <= 1: give fractions of the picture."
        )
    return left, top, right, bottom


def check_regions(regions: Sequence[Region]) -> list[Region]:
    """The regions as a list, each checked again; TypeError on what is none, ValueError on what is off in one."""
    if isinstance(regions, (Region, str, bytes, Mapping)) or not isinstance(regions, Iterable):
        raise TypeError(f"regions is a {type(regions).__name__}: give a list, regions=[Region(...), ...].")
    regions = list(regions)
    wrong = [region for region in regions if not isinstance(region, Region)]
    if wrong:
        shown = shorten(repr(wrong[0]), 80)
        raise TypeError(f"{shown} is no Region: write Region(prompt, box=(left, top, right, bottom)), or with a mask.")
    for region in regions:
        region.check()
        if region.mask is not None and not is_read(region.mask):
            region.mask = to_mask(region.mask, region.prompt)
    return regions


def is_read(mask) -> bool:
    """Whether a mask is as `to_mask` leaves it."""
    plain = isinstance(mask, np.ndarray) and mask.dtype == np.float32 and mask.ndim == 2 and mask.size > 0
    return plain and 0 <= mask.min() and 0 < mask.max() <= 1


def to_mask(mask: np.ndarray | Image.Image | str | Path, prompt: str) -> np.ndarray:
    """An array, picture or picture file -> (H, W) float32 in 0..1; bytes count 255 as 1, a single label counts as 1.

    A picture that is transparent somewhere is read by its opacity, as painting programs save strokes; any other by its
    brightness, upright as its EXIF says. Raises FileNotFoundError, or ValueError on what is no mask.
    """
    try:
        if isinstance(mask, (str, Path)):
            mask = np.asarray(open_mask(mask), dtype=np.float32) / 255
        elif isinstance(mask, Image.Image):
            mask = picture_values(turned(mask, orientation_of(mask)))
        array = spread(np.asarray(mask.detach().cpu() if isinstance(mask, Tensor) else mask))
    except (FileNotFoundError, ValueError) as error:
        why = str(error).rstrip(".")
        raise type(error)(f"The mask of the region {called(prompt)} cannot be used, {why}.") from None
    if array.max() == 0:
        raise ValueError(f"The mask of the region {called(prompt)} is empty: paint where the region is.")
    return array


def overlap(starts, ends, n: int, feather: float = 0.0) -> Tensor:
    """The share of each of n equal cells of 0..1 that each of K intervals covers, (n, K).

    With a feather the intervals are first blurred by a box of that width, so that an edge is a ramp with one half in
    its middle; what touches the border of the picture goes on beyond it and does not fade there.
    """
    starts, ends = (torch.as_tensor(side, dtype=torch.float64) for side in (starts, ends))
    edges = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None]  # (n + 1, 1)
    if feather:
        starts, ends = torch.where(starts <= 0, -feather, starts), torch.where(ends >= 1, 1 + feather, ends)
        area = ramp_area(edges - starts, feather) - ramp_area(edges - ends, feather)  # (n + 1, K)
        return (n * area.diff(dim=0)).clamp(0, 1).float()
    covered = torch.minimum(edges[1:], ends) - torch.maximum(edges[:-1], starts)
    return (n * covered.clamp(min=0)).float()


def ramp_area(x: Tensor, width: float) -> Tensor:
    """The integral up to x of a step at 0 that is blurred to a ramp of that width: 0 before the ramp, x behind it."""
    inside = (x / width + 0.5).clamp(0, 1)
    return torch.where(x > width / 2, x, width * inside**2 / 2)


def area_mean(mask: Tensor, h: int, w: int, feather: float = 0.0) -> Tensor:
    """Mean of a mask (H, W) over each of h x w equal cells, exact also where the cells cut through pixels; (h, w)."""
    pixels = [torch.arange(k + 1, dtype=torch.float64) / k for k in mask.shape]
    rows, columns = (overlap(p[:-1], p[1:], n, feather) for p, n in zip(pixels, (h, w), strict=True))  # (h, H), (w, W)
    return rows @ mask @ columns.T


def region_weights(regions: Sequence[Region], h: int, w: int, base_ratio: float = 0.0) -> Tensor:
    """w_i: (R, h * w), at every cell at most 1 - base_ratio in sum; what is missing to 1 is the global prompt's."""
    if not regions:
        return torch.zeros(0, h * w)
    cover = torch.stack([region.weight * region.cover(h, w) for region in regions]).flatten(1)  # (R, T)
    return (1 - base_ratio) * cover / cover.sum(dim=0, keepdim=True).clamp(min=1)


def side_by_side(
    subjects: Sequence[str], place: str = "", *, friends: float = 0.4, start: float = 0.0, top: float = 0.15
) -> list[Region]:
    """Regions (paper 3.4) for subjects next to each other, from left to right: columns of equal width.

    friends   fraction of the steps, from the first, in which the prompts tell of the others
    start     fraction of the steps before which no region speaks
    top       upper edge of the columns, as a fraction of the picture; they end at its lower edge

    While `friends` lasts each prompt says where its subject stands and that it is not alone, "a red cat
    on the left and a friend on the beach": that early it is decided how many bodies there are, and a model that is told
    of one draws one. After that it names its subject only, "a red cat on the beach", as in the paper. 0 does so from
    the start, 1 never. Raises ValueError on `friends` outside 0..1 or an empty subject, and where a Region does.

        subjects "a red cat", "a blue robot"    place "on the beach"    -> 4 regions: 2 with friends, 2 without
    """
    if not 0 <= friends <= 1:
        raise ValueError(f"friends is {friends}: give the fraction of the steps that tells of them, 0 <= friends <= 1.")
    if not 0 <= start < 1:
        raise ValueError(f"start is {start}: give the fraction of the steps before the regions, 0 <= start < 1.")
    if isinstance(subjects, str) or not subjects or not all(isinstance(text, str) for text in (*subjects, place)):
        raise TypeError('The subjects are a list of texts, and the place is a text: side_by_side(["a cat", "a dog"]).')
    if not all(who.strip() for who in subjects):
        raise ValueError(f"A subject of {list(subjects)} is empty: say who stands there, such as 'a red cat'.")
    n, regions = len(subjects), []
    others = {1: "", 2: " and a friend", 3: " and two friends"}.get(n, " and friends")
    friends = friends if n > 1 else 0.0
    for company, begin, end in ((others, start, friends), ("", max(start, friends), 1.0)):
        if begin >= end:
            continue
        for i, who in enumerate(subjects):
            where = {0: " on the left", n - 1: " on the right"}.get(i, "") if company else ""
            prompt = f"{who}{where}{company} {place}".strip()
            regions.append(Region(prompt, box=(i / n, top, (i + 1) / n, 1.0), start=begin, end=end))
    return regions


def parse_regions(text: str, height: int, width: int) -> list[Region]:
    """The official command line's regions, "[prompt]-*-[negative]-*-[y1, x1, y2, x2]|...", for a picture in pixels.

    An empty box is the whole picture and an empty negative prompt is empty, as there. The text is read, never
    evaluated; raises ValueError with the region that cannot be read.
    """
    if not isinstance(text, str) or min(height, width) < 1:
        raise ValueError("The regions must be a text, for a picture of at least one pixel a side.")
    regions = []
    for part in filter(None, (part.strip() for part in text.split("|"))):
        fields = [field.strip().removeprefix("[").removesuffix("]").strip() for field in part.split("-*-")]
        try:
            prompt, negative, place = fields
            y1, x1, y2, x2 = (float(side) for side in place.split(",")) if place else (0, 0, height, width)
        except ValueError:
            raise ValueError(
                f"The region {called(part)} cannot be read: "
                "write [prompt]-*-[negative prompt]-*-[y1, x1, y2, x2] in pixels."
            ) from None
        if not (0 <= x1 < x2 <= width and 0 <= y1 < y2 <= height):
            raise ValueError(
                f"The region {called(prompt)} has the box [{place}]: give [y1, x1, y2, x2] with "
                f"0 <= y1 < y2 <= {height} and 0 <= x1 < x2 <= {width}, pixels of this picture."
            )
        box = (x1 / width, y1 / height, x2 / width, y2 / height)
        regions.append(Region(prompt, box=box, negative_prompt=negative))
    return regions
