"""Every way to bring concepts together, head to head (beside the paper's 3.3.2): same concepts, same places.

    python -m mixofshow_lite.paper rivals

The first 3 and the first 8 concepts of `how_many`'s order are brought together in every way of `rivals.WAYS`.

identity    image-alignment with the concept's own pictures, at places that no way records and from the same noise;
            kept = identity - that of the concept's own model, 0 is no loss
identified  share of the pictures nearest to the right one of all concepts of the study
marks       share of the concept's named marks that Pocket CLIP, or a reader that is given, finds in the pictures
together    image-alignment of two neighbours in one picture, each cropped to its region: with regional sampling on a
            fused model, or with LoRAs that act inside their regions only. Is fusion needed where regions are known?
drift       how far prompts without any concept moved, relative to the difference between two seeds
seconds     to bring the concepts together; `a picture` to draw one
memory      MB by which the process grew at most while they were brought together (Linux only)
needs       recordings, slots, regions, all LoRAs: see `rivals.table`

A way that has to be told where its concepts are has no identity alone; one without regions has none together.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..engine.evaluation import Scorer, crop, image_scores, load_scorer
from ..engine.fusion import DRIFT_PROMPTS, drift
from ..engine.masks import side_by_side
from ..files.concept import Concept
from ..files.data import ConceptData
from ..model import DiffusionModel
from ..pocket.concepts import CONCEPTS
from ..pocket.marks import marks_kept
from ..rivals.orthogonal import capacity
from ..rivals.table import ALL, SLOTS, WAYS, Way
from .fusions import SEED
from .how_many import ORDER, UNRECORDED
from .observations import about, draw_at, identified
from .study import Study, difference, tuned

SIZES = (3, 8)
AVERAGED = "averaging"
DRAWN_FOR_DRIFT = DRIFT_PROMPTS[:2]
PLACE = "on the beach"  # of the pictures of two
NUMBERS = ("identity", "kept", "identified", "marks", "together", "drift", "seconds", "a picture", "memory")
Marks = Callable[[str, list], float]  # name of the concept, pictures -> share of its marks


@dataclass(frozen=True)
class Judge:
    """What a picture is measured with."""

    data: Mapping[str, ConceptData]
    scorer: Scorer
    names: Sequence[str]  # all concepts of the study
    prompts: Sequence[str]
    n: int  # pictures of each concept
    marks: Marks | None = None

    def draw(self, model, concept: Concept) -> list:
        """n pictures of a concept, from the same noise for every model."""
        return draw_at(model, concept, self.prompts, self.n, SEED)

    def alike(self, name: str, pictures: list) -> float:
        """Image-alignment with the concept's own pictures."""
        return float(image_scores(pictures, self.data[name].pictures, self.scorer).mean())

    def read(self, name: str, pictures: list) -> dict:
        """Identity, identified and marks of a concept's pictures."""
        references = {other: self.scorer.image_features(self.data[other].pictures) for other in self.names}
        found = {"identity": self.alike(name, pictures)}
        found["identified"] = identified(self.scorer.image_features(pictures), references, name)
        found["marks"] = self.marks(name, pictures) if self.marks else float("nan")
        return found


def rivals(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    names: Sequence[str] = ORDER,
    sizes: Sequence[int] = SIZES,
    ways: Mapping[str, Way] = WAYS,
    prompts: Sequence[str] = UNRECORDED,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
    marks: Marks | None = None,
) -> Study:
    """Rows per size, way, member and tuning seed, with the numbers above; NaN where a way has none.

    The claims: every way keeps more than averaging, at every size. A way is left out, with a line that says so, where
    more concepts are asked for than it has room for. Raises ValueError on sizes that the names cannot fill.
    """
    if not sizes or min(sizes) < 1 or max(sizes) > len(names):
        raise ValueError(f"sizes {tuple(sizes)} with {len(names)} concepts: give sizes from 1 to {len(names)}.")
    names = list(names[: max(sizes)])
    scorer = load_scorer(scorer)
    if marks is None and scorer.name == "pocket":
        marks = shipped_marks(scorer)
    judge, rows, pictures = Judge(data, scorer, names, prompts, n, marks), [], {}
    for seed in seeds:
        alone: dict[tuple[str, str], float] = {}
        for size in sorted(sizes):
            for label, way in ways.items():
                concepts = [
                    tuned(base, data[name], way.recipe(base, i), seed, folder, label=tuning_label(way, i), steps=steps)
                    for i, name in enumerate(names[:size])
                ]
                if SLOTS in way.needs and size > capacity(base, max(concept.rank for concept in concepts)):
                    print(f"{size:3} {label:26} has no room for so many", flush=True)
                    continue
                for concept in concepts:
                    own = way.tuned, concept.name
                    if own not in alone:
                        alone[own] = judge.alike(concept.name, judge.draw(base.with_concept(concept), concept))
                singles = {concept.name: alone[way.tuned, concept.name] for concept in concepts}
                found, drawn = measure(base, concepts, way, judge, singles)
                pictures |= {(name, f"{label}, {size}"): own for name, own in drawn.items()}
                setting = {"size": size, "way": label, "setting": f"{label}, {size}", "seed": seed}
                rows += [setting | row for row in found]
                print(f"{size:3} {label:26} " + says(found), flush=True)
    options = {"names": names, "prompts": list(prompts), "seeds": list(seeds), "pictures": n}
    return judged(base, rows, pictures, ways, **options)


def shipped_marks(scorer: Scorer) -> Marks:
    """Reads the marks of shipped concepts; NaN for a concept that has none, or is none of them."""

    def read(name: str, pictures: list) -> float:
        shown = marks_kept(pictures, name, scorer)[0] if name in CONCEPTS else np.zeros((0, 0))
        return float(shown.mean()) if shown.size else float("nan")

    return read


def tuning_label(way: Way, number: int) -> str:
    """What the tuned concepts of a way are called on disk: one tuning for all ways of a recipe, one for each slot."""
    return f"{way.tuned}_{number}" if way.tuned == "orthogonal" else way.tuned


def measure(
    base: DiffusionModel, concepts: Sequence[Concept], way: Way, judge: Judge, singles: Mapping[str, float]
) -> tuple[list[dict], dict[str, list]]:
    """One way's rows, a member each, and its pictures by member."""
    with peak_memory() as grown:
        start = time.perf_counter()
        brought = way.bring(base, concepts)
        seconds = time.perf_counter() - start
    moved = drift(base, brought, DRAWN_FOR_DRIFT, seeds=(0, 1), progress=False).share if way.solo else float("nan")
    together = in_regions(brought, concepts, judge) if regional(way) else {}
    rows, drawn = [], {}
    for concept in concepts:
        row = {"concept": concept.name, "single": singles[concept.name], "drift": moved, "needs": " ".join(way.needs)}
        row |= dict.fromkeys(("identity", "kept", "identified", "marks", "a picture"), float("nan"))
        if way.solo:
            start = time.perf_counter()
            drawn[concept.name] = judge.draw(brought, concept)
            row["a picture"] = (time.perf_counter() - start) / judge.n
            row |= judge.read(concept.name, drawn[concept.name])
            row["kept"] = row["identity"] - row["single"]
        row["together"] = together.get(concept.name, float("nan"))
        rows.append(row | {"seconds": seconds, "memory": grown[0]})
    return rows, drawn


def regional(way: Way) -> bool:
    """Whether a way draws regions: fused models do, and LoRAs that act inside them."""
    return not way.solo or ALL not in way.needs


def in_regions(brought, concepts: Sequence[Concept], judge: Judge) -> dict[str, float]:
    """Image-alignment of every concept beside its neighbour, cropped to its region; the mean over its pictures."""
    found: dict[str, list[float]] = {}
    for a, b in zip(concepts, concepts[1:], strict=False):
        regions = side_by_side([f"a {a.phrase}", f"a {b.phrase}"], PLACE, friends=0.0)
        drawn = brought.sample(f"two friends {PLACE}", regions=regions, n=judge.n, seed=SEED, progress=False)
        for concept, region in zip((a, b), regions, strict=True):
            crops = [crop(picture, region.box) for picture in drawn]
            found.setdefault(concept.name, []).append(judge.alike(concept.name, crops))
    return {name: float(np.mean(values)) for name, values in found.items()}


class peak_memory:
    """`with peak_memory() as grown`: grown[0] is then by how many MB the process grew at most; NaN where unknown."""

    def __enter__(self) -> list[float]:
        self.grown = [float("nan")]
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here on
            self.before = resident("VmRSS")
        except OSError:
            self.before = None
        return self.grown

    def __exit__(self, *error) -> None:
        if self.before is not None:
            self.grown[0] = resident("VmHWM") - self.before


def resident(name: str) -> float:
    """MB of this process by Linux: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024


def judged(base: DiffusionModel, rows: Sequence[dict], drawn: Mapping, ways: Mapping[str, Way], **options) -> Study:
    """The study of such rows: every way against averaging, the means of all numbers, the map."""
    study = Study("rivals", list(rows), pictures=dict(drawn))
    sizes, labels = sorted({row["size"] for row in rows}), list(dict.fromkeys(row["way"] for row in rows))
    for size in sizes:
        for label in labels:
            own = [row for row in rows if row["size"] == size and np.isfinite(row["kept"])]
            if label != AVERAGED and {label, AVERAGED} <= {row["way"] for row in own}:
                found = difference(own, "way", label, AVERAGED, "kept")
                study.claim(f"{size} concepts: {label} keeps more than averaging", found)
    means = {size: {label: means_of(rows, size, label) for label in labels} for size in sizes}
    means = {size: {label: found for label, found in own.items() if found} for size, own in means.items()}
    papers = {label: {"paper": ways[label].paper, "needs": list(ways[label].needs),
                      "authors need": list(ways[label].authors_need)} for label in labels}  # fmt: skip
    study.about = about(base, sizes=sizes, ways=papers, means=means, **options)
    study.figure = map_of(rows, means, ways)
    return study


def means_of(rows: Sequence[dict], size: int, label: str) -> dict[str, float | None]:
    """The mean of every number over the members of one size; None where a way has none. {} if it was not measured."""
    own = [row for row in rows if row["size"] == size and row["way"] == label]
    found = {}
    if not own:
        return found
    for number in NUMBERS:
        values = [row[number] for row in own if np.isfinite(row[number])]
        found[number] = round(float(np.mean(values)), 4) if values else None
    return found


def map_of(rows: Sequence[dict], means: Mapping[int, Mapping[str, Mapping]], ways: Mapping[str, Way] = WAYS):
    """Identity against drift, a panel a size: up is kept, left is left alone; the dotted line is each concept alone.

    Points are numbered from the best identity of the first size down, and coloured by what a way needs; ways that need
    regions have no place on it.
    """
    from matplotlib.figure import Figure

    placed = {size: {w: m for w, m in own.items() if None not in (m["identity"], m["drift"])}
              for size, own in means.items()}  # fmt: skip
    order = dict.fromkeys(w for own in placed.values() for w in sorted(own, key=lambda w: -own[w]["identity"]))
    numbers = {way: number for number, way in enumerate(order, 1)}
    drawn = Figure(figsize=(5.2 * len(placed) + 2.6, 5.4), layout="constrained")
    axes = drawn.subplots(1, len(placed), sharex=True, sharey=True, squeeze=False)[0]
    needed = dict.fromkeys(", ".join(ways[way].needs) or "the files alone" for way in numbers)
    colours = {need: f"C{i}" for i, need in enumerate(needed)}
    for ax, (size, own) in zip(axes, placed.items(), strict=True):
        single = float(np.mean([row["single"] for row in rows if row["size"] == size]))
        ax.axhline(single, color="black", lw=0.7, ls=":")
        for way, found in own.items():
            colour = colours[", ".join(ways[way].needs) or "the files alone"]
            ax.plot(found["drift"], found["identity"], "o", color=colour, ms=13, alpha=0.75)
            ax.annotate(numbers[way], (found["drift"], found["identity"]), color="white", fontsize=7, weight="bold",
                        ha="center", va="center")  # fmt: skip
        ax.set(title=f"{size} concepts", xlabel="drift of prompts without a concept")
        ax.set_xlim(left=0)
    axes[0].set_ylabel("identity kept (image-alignment)")
    handles = []
    for need, colour in colours.items():
        of_it = [way for way in numbers if (", ".join(ways[way].needs) or "the files alone") == need]
        handles += axes[-1].plot([], [], " ", label=f"needs {need}:") + [
            axes[-1].plot([], [], "o", color=colour, label=f"{numbers[way]}  {way}")[0] for way in of_it
        ]
    drawn.legend(handles=handles, loc="outside right upper", fontsize=8, frameon=False)
    return drawn


def says(found: Sequence[dict]) -> str:
    """One way's numbers in a line."""
    parts = []
    for number in ("kept", "together", "drift", "seconds"):
        values = [row[number] for row in found if np.isfinite(row[number])]
        if values:
            parts.append(f"{number} {np.mean(values):+.3f}")
    return "  ".join(parts)


def table(study: Study) -> str:
    """The means as text, one line a way and size, for the terminal and a README."""
    lines = []
    for size, own in study.about["means"].items():
        lines.append(f"{f'{size} concepts':26}" + "".join(f"{number:>11}" for number in NUMBERS) + "  needs")
        for label, found in own.items():
            cells = "".join(" " * 10 + "–" if found[k] is None else f"{found[k]:11.3f}" for k in NUMBERS)
            lines.append(f"{label:26}{cells}  {', '.join(study.about['ways'][label]['needs']) or 'nothing'}")
    return "\n".join(lines)
