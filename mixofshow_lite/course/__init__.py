"""What the notebooks share: one set-up line, labelled picture grids, the library's own source, exercise checks.

Nothing in the library imports this module. A notebook starts with

    from mixofshow_lite import course
    kit = course.setup()

and runs on the pocket model or, with MIXOFSHOW_BASE=sd15 in the environment, on Stable Diffusion 1.5: what differs
between the two is in the `Kit`.
"""

from ..threads import wait_passively

wait_passively()  # before torch is loaded

import inspect
import os
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from PIL import Image

from ..engine.allocator import keep_freed_memory
from ..engine.evaluation import Scorer, load_scorer
from ..files.concept import slug
from ..files.grid import grid, named_rows, to_picture
from ..files.resources import concepts_dir, data_dir
from ..model import DiffusionModel, load_base
from . import exercises

PAGE, SMALLEST, INCH = 900, 128, 96  # pixels: width of a notebook's page, of a picture at least, of an inch


@dataclass
class Kit:
    """What a notebook works with."""

    base: DiffusionModel  # the model everything starts from
    steps: int  # denoising steps of a picture
    size: int  # of a picture, in pixels
    concepts: Path  # folder of the shipped concepts, drawn at that size
    tuned: Path  # folder of tuned concepts: on Pocket Diffusion the shipped ones, else where notebooks keep theirs
    results: Path  # folder of the saved results that long cells fall back to

    @cached_property
    def scorer(self) -> Scorer:
        """The CLIP that reads this base's pictures (4.1); loaded when it is first asked for."""
        return load_scorer("pocket" if self.base.base_id.startswith("pocket") else "sd15")

    def __repr__(self) -> str:
        return f"Kit({self.base.base_id}, {self.size} px, {self.steps} steps, {self.base.device})"


def setup(base: str | None = None) -> Kit:
    """Load the base, quieten the rest and say in one line what runs where.

    `base` is "pocket" (the default), "sd15", a folder or a hub id; the environment variable MIXOFSHOW_BASE says the
    same for a whole session. Raises what `load_base` raises.
    """
    import matplotlib.pyplot as plt
    from transformers.utils import logging

    logging.disable_progress_bar()  # of reading weights, which takes a second
    base = base or os.environ.get("MIXOFSHOW_BASE", "pocket")
    warnings.filterwarnings("ignore", category=FutureWarning)
    plt.rcParams.update({"figure.dpi": 80, "savefig.dpi": 80, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.titlesize": 10, "font.size": 9, "figure.constrained_layout.use": True})  # fmt: skip
    small_figures()
    keep_freed_memory()  # of this kernel; MIXOFSHOW_KEEP_MEMORY=0 leaves it alone
    model = load_base(base)
    size = model.size[0]
    own = model.base_id.startswith("pocket")
    tuned = data_dir() / "tuned" if own else Path("out") / f"tuned-{slug(model.base_id)}"
    kit = Kit(model, 25, size, concepts_at(size), tuned, data_dir() / "results")
    where = torch.cuda.get_device_name() if model.device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    print(f"{model.base_id}: {size} px pictures, {len(model.layers)} cross-attention layers, on {where}")
    print(f"torch {torch.__version__.split('+')[0]}, Python {sys.version_info.major}.{sys.version_info.minor}")
    return kit


def on_t4(kit: Kit, wanted: bool) -> DiffusionModel | None:
    """Stable Diffusion 1.5 for a notebook's optional cell, or None and one sentence that says why it is skipped.

    It is loaded only if it is `wanted`, since that is a download of about 4 GB, and only where there is a CUDA GPU: a
    Colab T4 is enough. A kit whose base it is already gives that base.
    """
    if kit.base.base_id == "sd15":
        return kit.base
    if not wanted:
        print("Skipped: this cell is optional; set WANTED = True to download Stable Diffusion 1.5 (4 GB) for it.")
    elif not torch.cuda.is_available():
        print("Skipped: Stable Diffusion 1.5 takes a GPU; on Colab choose a T4 (Runtime, Change runtime type).")
    else:
        try:
            return load_base("sd15")
        except (OSError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            print(f"Skipped: Stable Diffusion 1.5 could not be loaded here, is there a network? ({reason})")
    return None


def small_figures() -> None:
    """In a notebook, figures are kept as JPEG: a third of PNG's size for pictures, so that notebooks stay small."""
    try:
        from IPython import get_ipython
        from matplotlib_inline.backend_inline import set_matplotlib_formats
    except ImportError:
        return
    if get_ipython() is not None:
        set_matplotlib_formats("jpeg", pil_kwargs={"quality": 60})


def concepts_at(size: int) -> Path:
    """The shipped concepts at the model's picture size: 128 px ship, others are drawn once into out/concepts-<size>."""
    shipped = concepts_dir()
    first = next(iter(sorted(shipped.glob("*/00.png"))), None)
    if first is None or Image.open(first).width == size:
        return shipped
    from ..pocket import concepts

    folder = Path("out") / f"concepts-{size}"
    for name in concepts.CONCEPTS:
        if not (folder / name / "metadata.jsonl").exists():
            concepts.write(name, folder, size)
    return folder


def show(
    rows: Sequence | Mapping[str, Sequence],
    titles: Sequence[str] = (),
    width: float | None = None,
    suptitle: str = "",
) -> None:
    """Show pictures as a labelled grid (`files.pictures.grid`): a list is one row, a dict has one row per label.

    Pictures have their own size, at least 128 pixels and at most what fits on the page; `width` is that of a picture in
    inches.
    """
    from IPython.display import display

    display(grid(rows, titles, side_of(rows) if width is None else round(INCH * width), heading=suptitle))


def side_of(rows: Sequence | Mapping[str, Sequence]) -> int:
    """The width of a picture in pixels that a row of a grid has on the page."""
    _, table = named_rows(rows)
    widest = max((to_picture(cell).width for row in table for cell in row if cell is not None), default=0)
    return min(max(widest, SMALLEST), PAGE // max(map(len, table)))


def show_source(*things: Callable) -> None:
    """Show the library's own source of functions or classes: the library is the answer key."""
    from IPython.display import Code, display

    for thing in things:
        module = inspect.getmodule(thing)
        print(f"# {module.__name__.replace('.', '/')}.py")
        display(Code(inspect.getsource(thing), language="python"))


def check(number: str, answer, *more) -> None:
    """Check an answer to exercise `number` (a function or a value): says well done, or what is probably wrong."""
    function = exercises.find_exercise(number)
    if answer is None or answer is ... or answer is NotImplemented:
        raise AssertionError(f"Exercise {number} is still empty: write your answer above, then run the cell again.")
    function(answer, *more)
    print(f"✓ Exercise {number}: right.")
