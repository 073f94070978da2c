"""The region canvas (paper 3.4): paint where each prompt belongs, sample, see the picture grow, try again.

`RegionCanvas` only wires: what regions are is in `scene.py`, sampling in `sampling.py`, the static picture in
`drawing.py`, the page in `page.py` and the JavaScript that it joins. Sampling runs in a thread, because the kernel
reads the page's messages, "cancel" among them, only while its main thread is free.
"""

import base64
import io
import random
from collections.abc import Sequence
from pathlib import Path
from threading import Event, Lock, Thread

import numpy as np
from PIL import Image

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError("The canvas needs anywidget: pip install 'mixofshow_lite[lab]'.") from error

from ...engine.arguments import check_number, check_whole, is_whole, shown
from ...engine.regional import Region
from ...files.pictures import open_picture, plain
from . import scene
from .drawing import render_regions
from .page import STYLE, module
from .sampling import Cancelled, Sample, data_url, draw_picture, to_bytes

HISTORY = 24  # samples kept
THUMBNAIL = 160  # pixels
MOST_STEPS, LARGEST_SEED = 1000, 2**32 - 1


class RegionCanvas(anywidget.AnyWidget):
    """A canvas to paint regions on and to sample with them.

        canvas = RegionCanvas(fused, prompt="two friends on the beach")
        canvas                      # show it; the page and Python hold the same state
        canvas.regions              # list of Region; assign to it as well
        canvas.history[-1].picture  # what was drawn last

    `model` is a DiffusionModel (or anything with its `sample`), None for a canvas that only paints. `background` is a
    picture, an array or a file: a pose, a sketch; every sample replaces it. `size` = (height, width) of the pictures
    defaults to the model's. `every` decodes each n-th step for the page, by default about eight times a picture.
    Raises TypeError or ValueError on arguments, regions, presets or JSON that make no sense; set later, seeds and steps
    out of range are a traitlets.TraitError.
    """

    _esm = module()
    _css = STYLE

    prompt = traitlets.Unicode().tag(sync=True)
    negative_prompt = traitlets.Unicode().tag(sync=True)
    seed = traitlets.Int(0, min=0, max=LARGEST_SEED).tag(sync=True)
    seed_locked = traitlets.Bool(True).tag(sync=True)  # unlocked: a new seed for every sample
    steps = traitlets.Int(25, min=1, max=MOST_STEPS).tag(sync=True)

    _regions = traitlets.List().tag(sync=True)  # entries of scene.py
    _background = traitlets.Unicode().tag(sync=True)  # data URL
    _history = traitlets.List().tag(sync=True)  # oldest first; what the strip shows and restores
    _running = traitlets.Bool(False).tag(sync=True)
    _can_sample = traitlets.Bool(False).tag(sync=True)
    _size = traitlets.List([1, 1]).tag(sync=True)  # height, width
    _raster = traitlets.List([scene.RASTER, scene.RASTER]).tag(sync=True)  # width, height of masks
    _presets = traitlets.List().tag(sync=True)  # [name, [[region's name, box, weight], ...]]
    _palette = traitlets.List(list(scene.PALETTE)).tag(sync=True)
    _header = traitlets.Dict(scene.HEADER).tag(sync=True)  # how a file of regions begins

    def __init__(
        self,
        model=None,
        regions: Sequence[Region] = (),
        prompt: str = "",
        negative_prompt: str = "",
        seed: int = 0,
        steps: int = 25,
        background=None,
        size: int | tuple[int, int] | None = None,
        guidance: float | None = None,
        every: int | None = None,
    ):
        chosen = (size, size) if isinstance(size, int) else size
        if chosen is not None:
            check_size(chosen)
        height, width = chosen or getattr(model, "size", (1, 1))
        check_settings(model, prompt, negative_prompt, seed, steps, guidance, every)
        super().__init__(
            prompt=prompt,
            negative_prompt=negative_prompt,
            seed=seed,
            steps=steps,
            _size=[height, width],
            _raster=list(scene.raster((height, width))),
            _presets=[[name, [list(part) for part in parts]] for name, parts in scene.PRESETS.items()],
            _can_sample=model is not None,
        )
        self.model, self.guidance, self.every = model, guidance, every
        self.history: list[Sample] = []
        self._chosen, self._stop, self._thread, self._starting = chosen, Event(), None, Lock()
        self.regions = regions
        self.background = background
        self.on_msg(self._receive)

    # Regions, settings, background

    @property
    def regions(self) -> list[Region]:
        """What is painted, in the list's order; masks are arrays whose longer side has 256 pixels."""
        return scene.to_regions(self._regions)

    @regions.setter
    def regions(self, regions: Sequence[Region]) -> None:
        self._regions = scene.from_regions(regions, self._pixels, self._regions)

    @property
    def names(self) -> list[str]:
        """What each region is called in the list."""
        return [entry["name"] for entry in self._regions]

    @names.setter
    def names(self, names: Sequence[str]) -> None:
        if len(names) != len(self._regions):
            raise ValueError(f"There are {len(self._regions)} regions and {len(names)} names: give one each.")
        self._regions = [{**entry, "name": name} for entry, name in zip(self._regions, names, strict=True)]

    @property
    def background(self) -> Image.Image | None:
        """The picture behind the regions: set a picture, an array (H, W[, 3]), a file's path, or None."""
        if not self._background:
            return None
        return Image.open(io.BytesIO(base64.b64decode(self._background.partition(",")[2]))).convert("RGB")

    @background.setter
    def background(self, picture: Image.Image | np.ndarray | str | Path | None) -> None:
        if isinstance(picture, (str, Path)):
            picture = open_picture(picture)
        elif isinstance(picture, Image.Image):
            picture = plain(picture)
        elif picture is not None:
            picture = array_picture(np.asarray(picture))
        self._background = "" if picture is None else data_url(picture)

    def to_json(self) -> str:
        """Prompts, seed, steps and regions as a text that `from_json` and the page's Import read."""
        return scene.to_json(self._settings(), self._regions)

    def from_json(self, text: str | bytes) -> None:
        """Take over what `to_json` wrote; raises ValueError with one sentence, and changes nothing, on other texts."""
        settings, entries = scene.from_json(text, self._pixels)
        try:
            with self.hold_trait_notifications():
                self.set_trait("_regions", entries)
                for key, value in settings.items():
                    self.set_trait(key, value)
        except traitlets.TraitError as error:
            raise ValueError(f"These regions hold a setting that is out of range: {error}") from error

    @traitlets.validate("_regions")
    def _check(self, proposal):
        try:
            return scene.clean(proposal["value"], self._pixels)
        except ValueError as error:
            raise traitlets.TraitError(str(error)) from error

    @property
    def _pixels(self) -> tuple[int, int]:
        return tuple(self._raster)

    def _settings(self) -> dict:
        return {key: getattr(self, key) for key in ("prompt", "negative_prompt", "seed", "steps")}

    # Sampling

    def sample(self) -> None:
        """Start sampling with what is set, as the button does, and return; see `wait`, `cancel`, `history`.

        Raises ValueError without a model, RuntimeError while a sample is being drawn.
        """
        if self.model is None:
            raise ValueError("This canvas has no model: make it with RegionCanvas(model, ...).")
        with self._starting:
            if self._running:
                raise RuntimeError("The canvas is sampling already: wait, or cancel it.")
            self._running = True
        if not self.seed_locked:
            self.seed = random.randrange(2**31)
        self._stop = Event()
        request = {**self._settings(), "regions": self.regions, "stop": self._stop}
        self._thread = Thread(target=self._work, args=(request, list(self._regions)), daemon=True)
        self._thread.start()

    def cancel(self) -> None:
        """Stop sampling after the step at hand; nothing enters the history."""
        self._stop.set()

    def wait(self, timeout: float | None = None) -> None:
        """Return when the sample is finished or cancelled; raises TimeoutError after `timeout` seconds."""
        if self._thread is not None:
            self._thread.join(timeout)
            if self._thread.is_alive():
                raise TimeoutError(f"The canvas is still sampling after {timeout} s: wait longer, or cancel it.")

    def _work(self, request: dict, entries: list[dict]) -> None:
        steps = request["steps"]
        options = {"guidance": self.guidance, "size": self._chosen}
        options = {key: value for key, value in options.items() if value is not None}

        def show(step: int, picture: Image.Image | None) -> None:
            buffers = [] if picture is None else [to_bytes(picture)]
            self.send({"type": "step", "step": step, "steps": steps}, buffers)

        last = {"type": "stopped"}
        try:
            show(0, None)
            made = draw_picture(self.model, **request, show=show, every=self.every or max(1, steps // 8), **options)
            self._keep(made, entries)
            last = {"type": "done", "silent": [e["name"] for e in entries if not e["prompt"].strip()]}
        except Cancelled:
            pass
        except Exception as error:  # whatever the model raises belongs on the page: a thread has no cell to show it in
            last = {"type": "error", "message": f"Sampling failed: {error}"}
        finally:
            self._running = False
            self.send(last)

    def _keep(self, made: Sample, entries: list[dict]) -> None:
        self.history = [*self.history, made][-HISTORY:]
        self._background = data_url(made.picture)
        thumbnail = base64.b64encode(to_bytes(made.picture.copy(), THUMBNAIL, "JPEG")).decode()
        shown = {key: getattr(made, key) for key in ("prompt", "negative_prompt", "seed", "steps")}
        shown |= {"picture": f"data:image/jpeg;base64,{thumbnail}", "regions": entries}
        self._history = [*self._history, shown][-HISTORY:]

    def restore(self, index: int) -> None:
        """Put a sample of the history back: its picture, prompts, regions, seed and steps."""
        if not is_whole(index, -len(self.history), len(self.history) - 1):
            raise IndexError(f"There is no sample {shown(index)}: the history has {len(self.history)}.")
        made, kept = self.history[index], self._history[index]
        self._regions = kept["regions"]
        self.prompt, self.negative_prompt, self.seed, self.steps = (
            made.prompt,
            made.negative_prompt,
            made.seed,
            made.steps,
        )
        self._background = data_url(made.picture)

    # Messages of the page

    def _receive(self, _, message: dict, buffers) -> None:
        try:
            match message:
                case {"type": "sample", "state": dict(state)}:
                    # The state rides along: ipywidgets may send a change later than the message that follows it.
                    names = {"prompt", "negative_prompt", "seed", "seed_locked", "steps", "_regions"}
                    for name in names & set(state):
                        self.set_trait(name, state[name])
                    self.sample()
                case {"type": "cancel"}:
                    self.cancel()
                case {"type": "restore", "index": int(index)}:
                    self.restore(index)
                case {"type": "import", "text": str(text)}:
                    self.from_json(text)
                    self.send({"type": "imported", "regions": len(self._regions)})
        except (ValueError, IndexError, RuntimeError, traitlets.TraitError) as error:
            self.send({"type": "error", "message": str(error)})

    # Without a front end

    def figure(self, side: int = 384) -> Image.Image:
        """The canvas as a static picture, `side` pixels on its longer side."""
        height, width = (max(1, round(side * edge / max(self._size))) for edge in self._size)
        colors = [entry["color"] for entry in self._regions]
        return render_regions(self.regions, self.background, (height, width), self.names, colors)

    def __repr__(self) -> str:
        parts = [f"prompt={self.prompt!r}"]
        parts += [f"negative_prompt={self.negative_prompt!r}"] if self.negative_prompt else []
        parts += [f"seed={self.seed}", f"steps={self.steps}", f"regions=[{', '.join(map(describe, self._regions))}]"]
        return f"RegionCanvas({', '.join(parts)})"

    def _repr_mimebundle_(self, **kwargs):
        """The widget, and beside it the static picture for readers that know no widgets."""
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is None:
            return None
        data, metadata = bundle
        return {**data, "image/png": base64.b64encode(to_bytes(self.figure())).decode()}, metadata


def check_settings(model, prompt, negative_prompt, seed, steps, guidance, every) -> None:
    """Raise TypeError or ValueError with one sentence on what a canvas cannot be made with."""
    if model is not None and not callable(getattr(model, "sample", None)):
        raise TypeError(f"model={shown(model)} cannot sample: give what load_base(...) returned, or None.")
    if not isinstance(prompt, str) or not isinstance(negative_prompt, str):
        raise TypeError("The prompt and the negative prompt of a canvas are texts: give strings.")
    check_whole("seed", seed, 0, LARGEST_SEED)
    check_whole("steps", steps, 1, MOST_STEPS)
    check_whole("every", 1 if every is None else every)
    check_number("guidance", 1 if guidance is None else guidance)


def check_size(size) -> None:
    """Raise ValueError on what is no (height, width) of a picture."""
    if not isinstance(size, tuple | list) or len(size) != 2 or not all(is_whole(side, 1, 16384) for side in size):
        raise ValueError(f"size={shown(size)} is no picture: give (height, width) in pixels.")


def describe(entry: dict) -> str:
    """One entry in a line, the same for the same entry: 'Left' 'a cat' box (0, 0, 0.5, 1)."""
    if entry["box"] is not None:
        shape = f"box ({', '.join(f'{side:.3g}' for side in entry['box'])})"
    else:
        shape = f"mask of {scene.decode_mask(entry['mask']).mean():.0%}"
    weight = "" if entry["weight"] == 1 else f" weight {entry['weight']:g}"
    return f"{entry['name']!r} {entry['prompt']!r} {shape}{weight}"


def array_picture(array: np.ndarray) -> Image.Image:
    """An array (H, W) or (H, W, 3 or 4), bytes or fractions of 1, as a picture; ValueError on any other."""
    shape = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if not (shape and array.size and array.dtype.kind in "buif"):
        raise ValueError(f"A background of shape {array.shape} is no picture: give (height, width[, 3]) numbers.")
    if array.dtype != np.uint8:
        array = np.clip(np.nan_to_num(array * 255.0), 0, 255).round().astype(np.uint8)
    return Image.fromarray(array)
