"""What the paper's measurements share: tuned concepts kept on disk, rows of numbers, paired differences, saved results.

A row is one measurement: dict(concept=..., recipe=..., seed=..., value=...). Two settings are compared on the rows they
have in common (same concept, same seed), so that easy and hard concepts do not blur the difference; its uncertainty is
a bootstrap over concepts first and their rows second, since the seeds of one concept are no independent concepts.
"""

import csv
import io
import json
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from ..engine.recipes import Recipe
from ..engine.resume import tune_once
from ..files.concept import Concept
from ..files.data import ConceptData
from ..files.writing import atomic_file, write_text
from ..model import DiffusionModel


@dataclass
class Difference:
    """Mean of paired differences with a 90 % interval over concepts and seeds."""

    mean: float
    low: float
    high: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass
class Study:
    """One claim, measured."""

    name: str  # file-friendly, e.g. "observation_1"
    rows: list[dict]  # one measurement each
    verdicts: dict[str, bool] = field(default_factory=dict)  # claim in words -> does it show here?
    differences: dict[str, Difference] = field(default_factory=dict)  # claim in words -> the number behind it
    figure: object = None  # a PIL picture or a matplotlib Figure
    pictures: dict = field(default_factory=dict)  # what the figure shows, label -> list of PIL pictures
    about: dict = field(default_factory=dict)  # base, fingerprint, recipes, seeds: what is needed to reproduce it
    quality: int = 55  # of the saved figure; pictures that are looked at closely want 90

    def claim(self, words: str, found: Difference) -> None:
        """Record a claim "more is better": shown if the whole interval lies above 0."""
        self.differences[words], self.verdicts[words] = found, found.low > 0

    def verdict(self) -> str:
        """The claims, one a line, in words that round what varies between machines."""
        return "\n".join(f"{'shown    ' if ok else 'not shown'}  {words}" for words, ok in self.verdicts.items())

    def table(self, *keys: str, value: str = "value") -> dict[tuple, tuple[float, float, int]]:
        """Rows grouped by `keys` -> (mean, standard deviation, count)."""
        groups = defaultdict(list)
        for row in self.rows:
            groups[tuple(row[k] for k in keys)].append(row[value])
        return {k: (float(np.mean(v)), float(np.std(v)), len(v)) for k, v in groups.items()}

    def save(self, folder: str | Path) -> Path:
        """Write <name>.csv (rows), <name>.json (claims, and how to reproduce them) and <name>.webp into `folder`.

        An older result of that name is replaced; raises FileExistsError if the .json there is none.
        """
        folder = Path(folder)
        old = folder / f"{self.name}.json"
        if old.is_file() and b'"claims"' not in old.read_bytes():
            raise FileExistsError(f"{old} is no result of a study: move it, or choose another folder.")
        table, note, figure = (folder / f"{self.name}.{kind}" for kind in ("csv", "json", "webp"))
        with atomic_file(table) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
            writer = csv.DictWriter(stream, list(dict.fromkeys(k for row in self.rows for k in row)))
            writer.writeheader()
            writer.writerows({k: short(v) if isinstance(v, float) else v for k, v in row.items()} for row in self.rows)
        if self.figure is not None:
            with atomic_file(figure) as temporary:  # at 55 a quarter of a PNG's size
                to_image(self.figure).save(temporary, "WEBP", quality=self.quality, method=6)
        claims = {w: {"shown": self.verdicts[w], **vars(d)} for w, d in self.differences.items()}
        text = json.dumps({"name": self.name, "claims": claims, "about": self.about}, indent=2)
        write_text(note, text + "\n")  # last: with it the result is there
        return note

    @classmethod
    def load(cls, folder: str | Path, name: str) -> "Study":
        """What `save` wrote: rows, claims, `about`; `figure` is a PIL picture (or None), `pictures` stay empty.

        Raises FileNotFoundError when <name>.json or <name>.csv is not there, ValueError when one of them is damaged.
        """
        folder = Path(folder)
        try:
            saved = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
            with open(folder / f"{name}.csv", newline="", encoding="utf-8") as stream:
                rows = [{k: number(v) for k, v in row.items()} for row in csv.DictReader(stream)]
            verdicts = {words: bool(claim.pop("shown")) for words, claim in saved["claims"].items()}
            differences = {words: Difference(**claim) for words, claim in saved["claims"].items()}
            study = cls(saved["name"], rows, verdicts, differences, about=saved["about"])
        except FileNotFoundError as error:
            raise FileNotFoundError(
                f"{folder} holds no result {name!r}: measure it with `{command_of(name)}`."
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"The result {name!r} in {folder} is damaged ({error!r}): measure it again.") from error
        if (folder / f"{name}.webp").is_file():
            with Image.open(folder / f"{name}.webp") as picture:
                study.figure = picture.convert("RGB")
        return study


def to_image(figure) -> Image.Image:
    """A PIL picture as it is, a matplotlib Figure drawn."""
    if isinstance(figure, Image.Image):
        return figure.convert("RGB")
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=95)
    with Image.open(drawn) as picture:
        return picture.convert("RGB")


def short(value: float) -> str:
    """Four decimals without trailing zeros: 0.8343, 0.5, 1, inf."""
    return f"{value:.4f}".rstrip("0").rstrip(".")


def number(text: str) -> int | float | str:
    """A csv cell as it was before: a number where it reads as one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def saved(folder: str | Path, name: str, base: DiffusionModel) -> Study | None:
    """The saved study, if it was measured on this very base; else None, after a line that says what to run.

    One of an earlier version of the same base ("pocket-v1" for "pocket-v2") comes too, after a line that says so.
    """
    try:
        study = Study.load(folder, name)
    except FileNotFoundError:
        study = None
    if study is not None and study.about.get("fingerprint") == base.fingerprint:
        return study
    if study is not None and family(study.about.get("base", "")) == family(base.base_id):
        print(
            f"{name} below is of {study.about['base']}, an earlier {family(base.base_id)} model with other concepts; "
            f"to measure it on {base.base_id}: {command_of(name)}"
        )
        return study
    why = "has not been measured on" if study is None else "was measured on other weights than those of"
    print(f"{name} {why} this {base.base_id}: {command_of(name)}")
    return None


def command_of(name: str) -> str:
    """What measures a result: the paper's tables and figures have a command of their own."""
    if name.startswith(("table", "figure")):
        return f"mixofshow paper {name} --out data/results"
    return f"python -m mixofshow_lite.paper {name}"


def family(base_id: str) -> str:
    """A base's name without its version: "pocket" of "pocket-v2"."""
    return re.sub(r"-v\d+$", "", base_id)


def difference(
    rows: Sequence[dict], key: str, more: str, less: str, value: str = "value", rounds: int = 2000, seed: int = 0
) -> Difference:
    """Mean of value[key == more] - value[key == less] over pairs with the same concept and seed, 5-95 % bootstrap.

    Raises ValueError when the two have no concept and seed in common.
    """
    sides: dict[tuple, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        sides[row["concept"], row.get("seed", 0)][row[key]].append(row[value])
    pairs = defaultdict(list)  # concept -> differences
    for (concept, _), found in sides.items():
        if more in found and less in found:
            pairs[concept].append(float(np.mean(found[more]) - np.mean(found[less])))
    if not pairs:
        raise ValueError(f"{more!r} and {less!r} were not measured on the same concepts and seeds.")
    each = [np.array(v) for v in pairs.values()]
    rng = np.random.default_rng(seed)
    means = []
    for _ in range(rounds):
        drawn = [each[i] for i in rng.integers(len(each), size=len(each))]
        means.append(np.mean([rng.choice(v, len(v)).mean() for v in drawn]))
    low, high = np.quantile(means, (0.05, 0.95))
    return Difference(float(np.mean([v.mean() for v in each])), float(low), float(high), sum(map(len, each)))


def tuned(
    base: DiffusionModel,
    data: ConceptData,
    recipe: str | Recipe,
    seed: int,
    folder: str | Path,
    label: str | None = None,
    steps: int | None = None,
    progress: bool = True,
    callback: Callable[[dict], None] | None = None,
) -> Concept:
    """The concept from `folder`/<name>-<label>-<seed>, tuned there if it is not yet (see `tune_once`).

    `label` is the recipe's name by default; give changed recipes their own.
    """
    label = label or (recipe if isinstance(recipe, str) else recipe.name)
    place = Path(folder) / f"{data.name}-{label}-{seed}"
    return tune_once(base, data, place, recipe, seed, steps, progress, callback)
