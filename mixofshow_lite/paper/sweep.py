"""The recorded sweep behind the pocket model's recipe numbers: one knob at a time, judged on places never seen.

    python -m mixofshow_lite.paper sweep --recipe ed_lora --minutes 100     # run again: it goes on

identity    image-alignment of the pictures with the concept's own, at places and times of no caption of its data
follows     share of the pictures in which Pocket CLIP reads the very place and time that was asked for, out of all 18
text        text-alignment with the class word in the concept's place

The row "base" is the untuned model with the class word: it bounds identity from below and following from above (Table
1). The best trial is the one of highest identity that still follows nearly as well as the base. Every row is written
to data/results/sweep.csv as soon as it is measured, and never measured twice on the same weights. A trial is named by
where it leaves the defaults of today: rows that were measured under others have been renamed.
"""

import csv
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..engine.evaluation import Scorer, choose, image_scores, load_scorer, text_scores
from ..engine.recipes import RECIPES, Recipe
from ..files.data import ConceptData
from ..model import DiffusionModel
from ..pocket.captions import PLACES, TIMES
from .everything import Clock, TimeUp
from .observations import FREEZE_NORMS
from .study import number, tuned

GRID: dict[str, tuple] = {  # field of Recipe -> values to try, all others at their defaults
    "lr_words": (3e-3, 1e-2, 3e-2),
    "lr_unet": (1e-3, 2e-3, 4e-3, 8e-3),
    "lr_text": (1e-4, 5e-4, 2e-3),
    "steps": (100, 200, 300),
    "noises": (1, 2, 3),
    "background": (0.3, 1.0),
    "freeze_norm": FREEZE_NORMS,
}
NAMES = ("mochi", "bibi")  # one in-domain, one out-domain
ASKED = (("forest", "night"), ("moon", "sunset"), ("desert", "day"), ("city", "day"))  # in no concept's captions
PLENTY = 0.9  # a trial must follow this share of the prompts that the base follows
FIELDS = ("fingerprint", "recipe", "trial", "concept", "seed", "pictures", "identity", "follows", "text")
KEY = FIELDS[:6]


def trials(recipe: str, grid: Mapping[str, Sequence] = GRID) -> dict[str, Recipe]:
    """Label -> recipe: the default, then each knob's other values; knobs of what it does not tune are left out."""
    default = RECIPES[recipe]
    idle = {"lr_text"} if not default.text_lora else set()
    idle |= {"lr_unet"} if default.unet_lora is None else set()
    idle |= {"freeze_norm"} if default.freeze_norm is None else set()
    knobs = {knob: values for knob, values in grid.items() if knob not in idle}
    changes = [{knob: value} for knob, values in knobs.items() for value in values if value != getattr(default, knob)]
    labelled = {" ".join(f"{k}={v:g}" for k, v in change.items()): replace(default, **change) for change in changes}
    return {"default": default} | labelled


def prompt_at(what: str, scene: str, light: str) -> str:
    """ "a rabbit in the forest at night" """
    return " ".join(part for part in (f"a {what}", PLACES[scene][0], TIMES[light]) if part)


def measure(model: DiffusionModel, phrase: str, data: ConceptData, n: int, scorer: Scorer, steps: int = 25) -> dict:
    """identity, follows and text of n pictures at each of the ASKED places."""
    options = [(scene, light) for scene in PLACES for light in TIMES]
    readings = [prompt_at(data.class_word, *option) for option in options]
    pictures, hits, text = [], [], []
    for asked in ASKED:
        drawn = model.sample(prompt_at(phrase, *asked), n=n, seed=100, steps=steps, progress=False)
        hits += list(choose(drawn, readings, scorer) == options.index(asked))
        text += list(text_scores(drawn, prompt_at(data.class_word, *asked), scorer))
        pictures += drawn
    identity = image_scores(pictures, data.pictures, scorer)
    return {"identity": float(np.mean(identity)), "follows": float(np.mean(hits)), "text": float(np.mean(text))}


def sweep(
    base: DiffusionModel,
    data: Mapping[str, ConceptData],
    work: str | Path,
    out: str | Path,
    recipe: str = "ed_lora",
    names: Sequence[str] = NAMES,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    grid: Mapping[str, Sequence] = GRID,
    minutes: float | None = None,
    scorer: Scorer | str | None = None,
    sampling_steps: int = 25,
) -> list[dict]:
    """Tune and measure every trial on every concept -> all rows of this recipe and base, see the module's docstring.

    Stops when the minutes are used, at most 50 tuning steps late. Raises ValueError on an unknown recipe.
    """
    if recipe not in RECIPES:
        raise ValueError(f"There is no recipe {recipe!r}: choose one of {', '.join(RECIPES)}.")
    file, clock, scorer = Path(out) / "sweep.csv", Clock(minutes), load_scorer(scorer)
    known = {tuple(row[k] for k in KEY) for row in read_rows(file)}
    try:
        for seed in seeds:
            for label, settings in {"base": None, **trials(recipe, grid)}.items():
                for name in names:
                    row = dict(zip(KEY, (base.fingerprint, recipe, label, name, seed, n), strict=True))
                    if tuple(row.values()) in known:
                        continue
                    clock()
                    model, phrase = base, data[name].class_word
                    if settings is not None:
                        place = recipe if label == "default" else f"{recipe}_{label.replace(' ', '_')}"
                        concept = tuned(base, data[name], settings, seed, work, label=place, callback=clock)
                        model, phrase = base.with_concept(concept), concept.phrase
                    found = measure(model, phrase, data[name], n, scorer, sampling_steps)
                    append(file, row | found)
                    print(f"{label:20} {name:8} " + "  ".join(f"{k} {v:.3f}" for k, v in found.items()))
    except TimeUp:
        print("The time is used: run it again to go on.")
    return [row for row in read_rows(file) if row["fingerprint"] == base.fingerprint and row["recipe"] == recipe]


def read_rows(file: str | Path) -> list[dict]:
    """The rows of a sweep so far; none if there is no file. A row that an interruption cut is left out."""
    if not Path(file).is_file():
        return []
    with open(file, newline="", encoding="utf-8") as stream:
        rows = [row for row in csv.DictReader(stream) if all(row.get(k) for k in FIELDS)]
    return [{k: v if k == "fingerprint" else number(v) for k, v in row.items()} for row in rows]


def append(file: Path, row: dict) -> None:
    """Add one row; a file that does not exist yet begins with the names of the columns."""
    file.parent.mkdir(parents=True, exist_ok=True)
    before = file.read_text(encoding="utf-8") if file.is_file() else ""
    with open(file, "a", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, FIELDS)
        if not before:
            writer.writeheader()
        elif not before.endswith("\n"):  # an interruption cut the last row
            stream.write("\n")
        writer.writerow({k: f"{v:.4f}" if isinstance(v, float) else v for k, v in row.items()})


def summary(rows: Sequence[dict]) -> dict[str, tuple[float, float]]:
    """Trial -> mean (identity, follows) over concepts and seeds, in the order of measuring."""
    groups = defaultdict(list)
    for row in rows:
        groups[row["trial"]].append((row["identity"], row["follows"]))
    return {trial: tuple(np.mean(values, axis=0).tolist()) for trial, values in groups.items()}


def best(rows: Sequence[dict]) -> str | None:
    """The trial of highest identity among those that follow at least PLENTY of what the base follows.

    Only trials measured on as many concepts and seeds as the base count; None if there is none.
    """
    means, count = summary(rows), {t: sum(row["trial"] == t for row in rows) for t in summary(rows)}
    whole = {t: m for t, m in means.items() if t != "base" and count[t] == count.get("base", 0)}
    enough = [t for t, (_, follows) in whole.items() if follows >= PLENTY * means["base"][1]]
    return max(enough, key=lambda t: means[t][0], default=None)
