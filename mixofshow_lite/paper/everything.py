"""All studies of the paper's claims, in pieces of any length: what is tuned stays, what is measured is saved at once.

    python -m mixofshow_lite.paper all --work runs/paper --minutes 100      # run again: it goes on

A study is a list of tunings (minutes each) and then its pictures and numbers. Studies that need little beyond the ones
before come first; with several seeds every study is first measured with one seed, then with two, and so on.
"""

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from ..engine.checkpoint import Checkpoint
from ..engine.evaluation import Scorer
from ..engine.recipes import RECIPES, Recipe
from ..engine.resume import kept
from ..engine.tuning import sample_strip
from ..files.data import ConceptData
from ..files.folder import strip
from ..files.resources import data_dir
from ..files.writing import CONCEPT, atomic_folder
from ..model import DiffusionModel
from .binding import binding
from .fusion_sweep import GROUPS, OPTIONS, fusion_sweep
from .fusions import WAYS, observation_3
from .head_to_head import SIZES, rivals
from .how_many import ORDER, how_many
from .observations import (
    DOMAINS,
    FREEZE_NORMS,
    LOOK_ALIKES,
    STAIRS,
    ablation,
    limit_label,
    observation_1,
    observation_2,
    stair_label,
    word_length,
)
from .study import Study, tuned
from .variants import CHANGES, changed, variants

Tuning = tuple[str, str | Recipe, str]  # name of the concept, recipe, label of the tuned concept


@dataclass(frozen=True)
class Job:
    """A study and the tunings that it will ask for."""

    measure: Callable[..., Study]
    tunings: tuple[Tuning, ...]
    pictures: int = 4  # of each concept, or of each prompt, unless asked for otherwise


def pairs(names: Sequence[str], recipes: Sequence[str]) -> tuple[Tuning, ...]:
    """Every concept with every recipe."""
    return tuple((name, recipe, recipe) for recipe in recipes for name in names)


def everyone(groups: Mapping[str, Sequence[str]]) -> tuple[str, ...]:
    """The names of all groups, one after the other."""
    return sum(map(tuple, groups.values()), ())


JOBS: dict[str, Job] = {
    "observation_2": Job(observation_2, pairs(everyone(GROUPS), ("ed_lora", "lora"))),
    "fusion_sweep": Job(fusion_sweep, pairs(everyone(GROUPS), ("ed_lora",)), pictures=3),
    "fusion_options": Job(
        partial(fusion_sweep, ways=OPTIONS, name="fusion_options", against="default"),
        pairs(everyone(GROUPS), ("ed_lora",)),
        pictures=3,
    ),
    "observation_3": Job(observation_3, pairs(LOOK_ALIKES, dict.fromkeys(recipe for recipe, _ in WAYS.values()))),
    "ablation": Job(
        ablation,
        tuple((name, recipe, stair_label(label, recipe)) for label, recipe in STAIRS.items() for name in LOOK_ALIKES),
    ),
    "observation_1": Job(
        observation_1,
        pairs(everyone(DOMAINS), ("textual_inversion", "p_plus", "lora", "ed_lora")),
    ),
    "binding": Job(partial(binding, names=LOOK_ALIKES), pairs(LOOK_ALIKES, ("ed_lora",)), pictures=3),
    "word_length": Job(
        word_length,
        tuple(
            (name, replace(RECIPES[recipe], freeze_norm=norm), limit_label(recipe, norm))
            for recipe in ("ed_lora", "lora")
            for norm in FREEZE_NORMS
            for name in everyone(GROUPS)
        ),
    ),
    "variants": Job(variants, tuple((name, *changed(each)) for each in CHANGES for name in LOOK_ALIKES)),
    "how_many": Job(how_many, pairs(ORDER, ("ed_lora",))),
    "rivals": Job(
        rivals,
        pairs(ORDER[: max(SIZES)], ("ed_lora",))
        + tuple(
            (name, replace(RECIPES["ed_lora"], name="orthogonal", slot=slot), f"orthogonal_{slot}")
            for slot, name in enumerate(ORDER[: max(SIZES)])
        ),
    ),
}


class TimeUp(Exception):
    """The minutes are used; everything so far is kept."""


class Clock:
    """Called between pieces of work, or as a tuning's callback: raises TimeUp once the minutes are used.

    A tuning is only stopped where its checkpoint has just been written, so that nothing is lost.
    """

    def __init__(self, minutes: float | None, now: Callable[[], float] = time.monotonic):
        self.now, self.end = now, None if minutes is None else now() + 60 * minutes

    def __call__(self, record: dict | None = None) -> None:
        kept = record is None or (record["step"] + 1) % Checkpoint.every == 0
        if kept and self.end is not None and self.now() >= self.end:
            raise TimeUp


def run(
    base: DiffusionModel,
    data: Mapping[str, ConceptData],
    work: str | Path,
    out: str | Path,
    minutes: float | None = None,
    seeds: int = 1,
    n: int | None = None,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
    jobs: Mapping[str, Job] = JOBS,
    shipped: str | Path | None = None,
) -> list[str]:
    """Tune what is missing in `work`, save each study to `out` when its tunings are there -> studies still to be done.

    Stops when the minutes are used, at most 50 tuning steps or one study's pictures late. Concepts that ship with the
    kit (`shipped`) and fit the base are taken as they are. `n` pictures per concept instead of each study's own number;
    `steps` of tuning overrides the recipes'.
    """
    clock, todo = Clock(minutes), [(count, name) for count in range(1, seeds + 1) for name in jobs]
    shipped = data_dir() / "tuned" if shipped is None else Path(shipped)
    try:
        while todo:
            count, name = todo[0]
            job = jobs[name]
            each = job.pictures if n is None else n
            if not done(out, name, base, count, each):
                for seed in range(count):
                    for concept, recipe, label in job.tunings:
                        place = Path(work) / f"{concept}-{label}-{seed}"
                        if kept(place, base) is None and not take(base, shipped, place, steps):
                            clock()
                            tuned(base, data[concept], recipe, seed, work, label=label, steps=steps, callback=clock)
                clock()
                study = job.measure(base, work, data, seeds=range(count), n=each, steps=steps, scorer=scorer)
                print(f"{name}, {count} seeds:\n{study.verdict()}\nsaved as {study.save(out)}")
            todo.pop(0)
    except TimeUp:
        print("The time is used: run it again to go on.")
    return list(dict.fromkeys(name for _, name in todo))


def ship(
    base: DiffusionModel,
    work: str | Path,
    out: str | Path | None = None,
    names: Sequence[str] = LOOK_ALIKES,
    recipes: Sequence[str] = ("ed_lora", "lora"),
    seed: int = 0,
) -> list[Path]:
    """Write the tuned concepts of `work` that notebooks show to data/tuned: half precision, with a strip of pictures.

    Raises FileNotFoundError if one has not been tuned on this base yet.
    """
    out, written = data_dir() / "tuned" if out is None else Path(out), []
    for place in (f"{name}-{recipe}-{seed}" for recipe in recipes for name in names):
        concept = kept(Path(work) / place, base)
        if concept is None:
            raise FileNotFoundError(
                f"{work} has no {place} tuned on this base: run `python -m mixofshow_lite.paper all`."
            )
        picture = strip(sample_strip(base, concept, seed)).quantize(96)
        written.append(concept.save(out / place, preview=picture, dtype=torch.float16))
    return written


def done(out: str | Path, name: str, base: DiffusionModel, seeds: int, n: int) -> bool:
    """Whether the study lies in `out`, measured on this base with at least as many seeds and pictures."""
    try:
        about = Study.load(out, name).about
    except (FileNotFoundError, ValueError):
        return False
    enough = len(about.get("seeds", ())) >= seeds and about.get("pictures", 0) >= n
    return enough and about.get("fingerprint") == base.fingerprint


def take(base: DiffusionModel, shipped: Path, place: Path, steps: int | None) -> bool:
    """Copy a shipped concept to `place` if there is one that fits the base and was tuned in full; says whether."""
    if steps is not None or kept(shipped / place.name, base) is None:
        return False
    with atomic_folder(place, CONCEPT) as temporary:
        shutil.copytree(shipped / place.name, temporary, dirs_exist_ok=True)
    return True
