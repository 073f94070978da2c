"""Sampling for a widget: the picture while it grows, stoppable between two steps."""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from threading import Event

from PIL import Image

from ...engine.regional import Region


class Cancelled(Exception):
    """Raised inside `sample`'s callback to leave its loop; the model is as it was."""


@dataclass(frozen=True)
class Sample:
    """One picture and all that is needed to draw it again."""

    picture: Image.Image
    prompt: str
    negative_prompt: str
    seed: int
    steps: int
    regions: tuple[Region, ...]  # those that were sampled with

    def __repr__(self) -> str:
        size = "x".join(map(str, self.picture.size))
        return (
            f"Sample({size}, prompt={self.prompt!r}, seed={self.seed}, steps={self.steps}, {len(self.regions)} regions)"
        )


def draw_picture(
    model,
    prompt: str,
    regions: Sequence[Region] = (),
    *,
    negative_prompt: str = "",
    seed: int = 0,
    steps: int = 25,
    stop: Event | None = None,
    show: Callable[[int, Image.Image | None], None] = lambda step, picture: None,
    every: int = 3,
    **options,
) -> Sample:
    """Sample one picture; `show(step, picture)` follows it, with a decoded picture on every `every`-th step.

    Steps count from 1. Raises Cancelled at the first step after `stop` is set. `options` go to the model's `sample`
    (guidance, size). Regions without a prompt say nothing and are left out. The model is copied first where it can be
    (weights are shared), so that a cell may use it at the same time.
    """
    regions = tuple(region for region in regions if region.prompt.strip())
    stop = stop or Event()
    model = model.copy() if hasattr(model, "copy") else model

    def follow(info: dict) -> None:
        if stop.is_set():
            raise Cancelled
        step = info["step"] + 1
        due = step % every == 0 and step < steps
        show(step, info["model"].decode(info["latents"][:1])[0] if due else None)

    picture = model.sample(
        prompt,
        seed=seed,
        steps=steps,
        negative_prompt=negative_prompt,
        regions=list(regions) or None,
        callback=follow,
        progress=False,
        **options,
    )[0]
    if stop.is_set():
        raise Cancelled
    return Sample(picture, prompt, negative_prompt, seed, steps, regions)


def to_bytes(picture: Image.Image, side: int | None = None, kind: str = "PNG") -> bytes:
    """A picture as a PNG or JPEG file, at most `side` pixels on its longer side."""
    picture = picture.convert("RGB")
    if side is not None:
        picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    file = io.BytesIO()
    picture.save(file, kind, **({"quality": 90} if kind == "JPEG" else {}))
    return file.getvalue()


def data_url(picture: Image.Image) -> str:
    """A picture as a page's <img> takes it, without any name."""
    return "data:image/png;base64," + base64.b64encode(to_bytes(picture)).decode()
