"""What tuning looks at (paper 3.3.1): the client's pictures as cached latents, and the class as the base knows it.

    symbol   here       shape
    z        latents    (V * P + K, C, h, w)   V views of P pictures, then K prior pictures
             counted    (V * P + K, 1, h, w)   where the loss counts: the mask's weights, 0 on borders
             inside     (V * P + K, 1, h, w)   the mask alone, 1 everywhere if there is none
             deviation  (V * P + K, C, h, w)   of the VAE's posterior around z, 0 for the prior; None: z itself
    P        prompts    V * P + K strings

The official code encodes a freshly cropped picture at every step; here each picture has a few views, encoded once, each
with its own wording of the caption. View 0 is the centred crop; the others are framed at random, and where they leave
the frame empty nothing counts:

    framing             a random view
    zoom                at a random zoom and place
    person              half of the time the top of a portrait or a random square of a landscape, else the whole; that
                        is shown whole at a random place, so that a standing figure keeps its head
    custom_diffusion    a quarter small in the frame ("very small"), a quarter as it is, a third zoomed in ("close up");
                        the official code also squeezes pictures to squares, here they keep their shape
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..files.data import ConceptData, check_sizes, crop_box, fit
from ..files.writing import atomic_file
from ..model import DiffusionModel
from .captions import reworded
from .finite import is_finite, weights_not_finite
from .recipes import Recipe

SMALL, CLOSE = ("a far away ", "very small "), ("zoomed in ", "close up ")  # before the caption, Custom Diffusion's


@dataclass
class Views:
    """All that the loop draws batches from; the entries of one picture are P apart, the prior's come last."""

    latents: Tensor
    counted: Tensor
    inside: Tensor
    prompts: list[str]
    pictures: int  # P
    prior: int  # K
    masked: bool  # whether any picture has a mask
    deviation: Tensor | None = None

    def latents_of(self, entries: Tensor, generator: torch.Generator) -> Tensor:
        """The latents of some entries (b, C, h, w), drawn from the posterior if its deviation is known."""
        mean = self.latents[entries]
        if self.deviation is None:
            return mean
        return mean + self.deviation[entries] * torch.randn(mean.shape, generator=generator).to(mean.device)

    def draw(self, batch: int, generator: torch.Generator, noises: int = 1) -> list[int]:
        """Entries of one step: `batch` views of the concept, each picture `noises` times before others come."""
        of = shuffled(self.pictures, -(-batch // noises), generator).repeat_interleave(noises)[:batch]
        count = (len(self.prompts) - self.prior) // self.pictures
        view = torch.randint(count, (batch,), generator=generator)
        first = len(self.prompts) - self.prior
        beside = first + shuffled(self.prior, batch, generator) if self.prior else of[:0]
        return [*(view * self.pictures + of).tolist(), *beside.tolist()]


def shuffled(n: int, k: int, generator: torch.Generator) -> Tensor:
    """k of n numbers, (k,): each comes once before any comes again."""
    return torch.cat([torch.randperm(n, generator=generator) for _ in range(-(-k // n))])[:k]


def prepare(base: DiffusionModel, data: ConceptData, recipe: Recipe, phrase: str, seed: int = 0) -> Views:
    """Encode all views once, without the prior; ValueError on pictures too small for the base."""
    check_sizes(data, base.size)
    found = list(views(base.size, data, recipe, torch.Generator().manual_seed(seed)))
    encoded = [base.posterior([view[0]]) for view in found]
    latents, deviation = (torch.cat(part).float() for part in zip(*encoded, strict=True))
    if not is_finite(latents + deviation):
        lost = (~(latents + deviation).isfinite()).flatten(1).any(dim=1).nonzero()[0].item() % len(data)
        what = weights_not_finite(base.vae, "VAE") or f"the VAE's latents of picture {lost + 1} of {data.name}"
        raise ValueError(f"{what} are not finite, so nothing can be tuned: load the base in float32, or again.")
    cells = latents.shape[-2:]
    inside, frame = (
        torch.cat([F.adaptive_avg_pool2d(view[i][None], cells) for view in found]).to(latents.device) for i in (1, 2)
    )
    # a cell that the border cuts through mixes picture and border in its code: it does not count
    counted = (frame > 0.999) * (recipe.background + (1 - recipe.background) * inside)
    generator = torch.Generator().manual_seed(seed)
    captions = data.prompts(phrase) * (len(found) // len(data))
    prompts = []
    for caption, (_, _, _, opening) in zip(captions, found, strict=True):
        prompts.append(opening + reworded(caption, phrase, recipe, generator))
    masked = any(mask is not None for mask in data.masks)
    return Views(latents, counted, inside, prompts, len(data), 0, masked, deviation if recipe.posterior else None)


def views(
    size: tuple[int, int], data: ConceptData, recipe: Recipe, generator: torch.Generator
) -> Iterator[tuple[Image.Image, Tensor, Tensor, str]]:
    """Every view of every picture: (RGB of `size` (height, width), mask (1, H, W), frame (1, H, W), both in 0..1, what
    its caption opens with).
    """
    for number in range(recipe.variants):
        for mirrored in (False, True) if recipe.flip else (False,):
            for picture, mask in zip(data.pictures, data.masks, strict=True):
                mask = mask or Image.new("L", picture.size, 255)
                opening = ""
                if number == 0:
                    view, shown = fit(picture, size), fit(mask, size)
                    frame = Image.new("L", view.size, 255)
                elif recipe.framing == "person":
                    view, shown, frame = person_view(picture, mask, size, generator)
                else:
                    zoom = recipe.zoom
                    if recipe.framing == "custom_diffusion":
                        zoom, opening = custom_zoom(generator)
                    view, shown, frame = random_view(picture, mask, size, zoom, generator)
                trio = (ImageOps.mirror(x) for x in (view, shown, frame)) if mirrored else (view, shown, frame)
                view, shown, frame = trio
                yield view, to_tensor(shown), to_tensor(frame), opening


def random_view(
    picture: Image.Image,
    mask: Image.Image,
    size: tuple[int, int],
    zoom: tuple[float, float],
    generator: torch.Generator,
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A picture at a random zoom and place in a frame of `size`: (view, mask, where the view shows the picture).

    Zoom 1 just fills the frame, more cuts something off, less leaves a grey border. What lies on the border is outside
    the mask too.
    """
    u, x, y = torch.rand(3, generator=generator).tolist()
    left, _, right, _ = crop_box(picture, size)
    scale = (zoom[0] + u * (zoom[1] - zoom[0])) * size[1] / (right - left)
    return placed(picture, mask, size, scale, x, y)


def person_view(
    picture: Image.Image, mask: Image.Image, size: tuple[int, int], generator: torch.Generator
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A picture as the official code frames characters, in a frame of `size`: (view, mask, where the picture is).

    Half of the time a portrait keeps its top, from a square on to all of it, and a landscape a random square. What is
    left is shown whole, as large as the frame allows, at a random place.
    """
    cropped, u, x, y = torch.rand(4, generator=generator).tolist()
    short, long = min(picture.size), max(picture.size)
    if cropped < 0.5:
        kept = short + round(u * (long - short))  # rows of a portrait, from the top: the head stays
        start = round(u * (long - short))  # of a landscape's square
        box = (0, 0, short, kept) if picture.height > picture.width else (start, 0, start + short, short)
        picture, mask = picture.crop(box), mask.crop(box)
    scale = min(size[1] / picture.width, size[0] / picture.height)
    return placed(picture, mask, size, scale, x, y)


def custom_zoom(generator: torch.Generator) -> tuple[tuple[float, float], str]:
    """Custom Diffusion's zoom of one view, and what it puts before the caption.

    Two thirds are 1/3 to 1 of the frame, where from 0.6 on it is just filled; a third is 1.2 to 1.4 of it.
    """
    larger, u, which = torch.rand(3, generator=generator).tolist()
    zoom = 1 / 3 + u * 2 / 3 if larger < 2 / 3 else 1.2 + u * 0.2
    if zoom > 1:
        return (zoom, zoom), CLOSE[round(which)]
    if zoom < 0.6:
        return (zoom, zoom), SMALL[round(which)]
    return (1.0, 1.0), ""


def placed(
    picture: Image.Image, mask: Image.Image, size: tuple[int, int], scale: float, x: float, y: float
) -> tuple[Image.Image, Image.Image, Image.Image]:
    """A picture resized by `scale` in a frame of `size`, at x, y in 0..1: (view, mask, where the view shows it)."""
    w, h = max(1, round(picture.width * scale)), max(1, round(picture.height * scale))
    corner = round(x * (size[1] - w)), round(y * (size[0] - h))  # negative where the picture is larger than the frame
    view, shown, frame = (
        Image.new("RGB", size[::-1], (127, 127, 127)),
        Image.new("L", size[::-1]),
        Image.new("L", size[::-1]),
    )
    view.paste(picture.resize((w, h), Image.Resampling.BICUBIC), corner)
    shown.paste(mask.resize((w, h), Image.Resampling.BICUBIC), corner)
    frame.paste(255, (*corner, corner[0] + w, corner[1] + h))
    return view, shown, frame


def to_tensor(mask: Image.Image) -> Tensor:
    """A grey picture -> (1, H, W) in 0..1."""
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None] / 255


def add_prior(
    found: Views,
    base: DiffusionModel,
    class_word: str,
    n: int,
    seed: int,
    file: Path | None = None,
    progress: bool = True,
) -> Views:
    """Append n pictures of the class that the base draws itself, Custom Diffusion's regularisation; all of them count.

    The same seed draws the same pictures. With a `file` their latents are kept there for a run that goes on later.
    """
    prompt = f"photo of a {class_word}"
    key = f"{base.fingerprint} {prompt} {seed} {n}"
    if file and file.is_file() and key in (saved := load_file(file)):
        latents = saved[key]
    else:
        pictures = base.sample(prompt, n=n, seed=seed, progress=progress)
        latents = torch.cat([base.encode_images([picture]) for picture in pictures]).float().cpu().contiguous()
        if file:
            with atomic_file(file) as temporary:
                save_file({key: latents}, temporary)
    ones = torch.ones(n, 1, *latents.shape[-2:])
    joined = (
        torch.cat([a, b.to(a.device)])
        for a, b in ((found.latents, latents), (found.counted, ones), (found.inside, ones))
    )
    deviation = found.deviation
    if deviation is not None:  # what the base itself has drawn stays as it is
        deviation = torch.cat([deviation, torch.zeros_like(latents).to(deviation)])
    return Views(*joined, found.prompts + [prompt] * n, found.pictures, n, found.masked, deviation)
