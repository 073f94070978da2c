"""Mix-of-Show once from end to end (paper Fig. 4): two clients tune look-alikes, the center node fuses, both are drawn.

    row               left block                 right block
    references        concept A's own pictures   concept B's
    alone             each with its own LoRA
    weight fused      one model, Eq. 2
    gradient fused    one model, 3.3.2
    both, direct      weight fused               gradient fused      one prompt names both
    both, regions     weight fused               gradient fused      3.4: each has its own box, fenced (`isolate`)
    regions and pose  weight fused               gradient fused      and a drawn pose for each (a T2I-Adapter); only of
                                                                     concepts that Pocket World can draw

Interrupted, it goes on: tuned concepts and checkpoints lie in `out/concepts`.
"""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from .engine.evaluation import Scorer, image_scores, load_scorer
from .engine.fusion import gradient_fusion, weight_fusion
from .engine.regional import side_by_side
from .engine.resume import kept, tune_once
from .engine.spatial import keypose_layout, load_adapter
from .files.concept import Concept
from .files.data import ConceptData
from .files.grid import grid
from .files.resources import concepts_dir
from .files.writing import atomic_file, check_target
from .model import DiffusionModel, load_base

PLACE = "on the beach"  # where both are drawn together
COLUMNS = ("concept", "model", "image_alignment", "standard_deviation", "marks_kept", "pictures")  # of the table
READABLE = 0.8  # share of a concept's own pictures from which a mark must be read, to count at all
SMALLEST, LARGEST = 128, 256  # pixels: width of a picture in the figure
MODELS = ("alone", "weight fused", "gradient fused")


@dataclass
class Result:
    """What `demo` made."""

    pictures: dict[str, list[list[Image.Image]]]  # row of the figure -> its two blocks
    scores: dict[str, dict[str, np.ndarray]]  # concept -> model -> image-alignment of each picture (n,)
    marks: dict[str, dict[str, np.ndarray]]  # concept -> model -> share of its named marks in each picture (n,)
    figure: Path
    table: Path
    phrases: tuple[str, str]  # how a prompt names the two


def demo(
    out: str | Path = "out",
    concepts: tuple[str, ...] = (),
    base: str | DiffusionModel = "pocket",
    steps: int | None = None,
    seed: int = 0,
    n: int = 4,
    clip: str | None = None,
    progress: bool = True,
    class_words: tuple[str | None, str | None] = (None, None),
) -> Result:
    """Tune two concepts, fuse them both ways, draw and score; writes out/demo.png and out/demo.csv.

    concepts     two names under the shipped concepts, or folders; by default the first two look-alikes
    base         a name for `load_base`, or a model
    steps        of tuning each (None: the recipe's own)
    n            pictures per block, of seeds seed, seed + 1, ...
    clip         the CLIP that scores, see `evaluation.load_scorer`
    class_words  what each is, where its data does not say

    Raises FileExistsError before any work if something else than an older demo's results lies in `out`.
    """
    out = Path(out)
    data = [ConceptData(folder, word) for folder, word in zip(chosen(concepts), class_words, strict=True)]
    check_outputs(out)
    scorer = load_scorer(clip)  # first, so that a missing extra is said before minutes of tuning
    model = load_base(base) if isinstance(base, str) else base
    places = [out / "concepts" / d.name for d in data]
    order = [base, str(data[1].folder), class_words[1], str(places[1]), steps, seed]
    two = isinstance(base, str) and model.device.type == "cpu" and os.cpu_count() > 1
    with beside(order if two and not any((place / "concept.json").is_file() for place in places) else None):
        a = tuned(model, data[0], places[0], steps, seed, progress)
    b = tuned(model, data[1], places[1], steps, seed, progress)
    print(f"fusing {a.name} and {b.name} by averaging (Eq. 2) and by gradient fusion (3.3.2)")
    fused = {"weight fused": weight_fusion(model, [a, b]), "gradient fused": gradient_fusion(model, [a, b], seed=seed)}
    print(fused["gradient fused"].report)
    pictures = draw_rows(model, (a, b), fused, data, n, seed, progress)
    scores, marks = score(pictures, (a, b), data, scorer), count_marks(pictures, (a, b), data, scorer)
    result = Result(pictures, scores, marks, out / "demo.png", out / "demo.csv", (a.phrase, b.phrase))
    write_table(scores, marks, result.table)
    write_figure(pictures, (a.name, b.name), result.figure, marks)
    print(format_table(scores))
    if marks:
        print(format_table(marks, "marks kept"))
    print(f"the figure is {result.figure}, the table {result.table}, the concepts are in {out / 'concepts'}")
    return result


def chosen(names: tuple[str, ...]) -> list[Path]:
    """Folders of the two concepts to use; without names, the first two of the class that has most concepts."""
    if not names:
        names = look_alikes(concepts_dir())
    if len(names) != 2 or Path(names[0]).resolve().name == Path(names[1]).resolve().name:
        raise ValueError(f"the demo fuses two different concepts, not {' and '.join(names)}: name two")
    return [Path(n) if Path(n).is_dir() else concepts_dir() / n for n in names]


def look_alikes(folder: Path) -> tuple[str, str]:
    """The first two concepts (in the order of their names) of the class that has most of them."""
    groups = defaultdict(list)
    for path in sorted(folder.glob("*/metadata.jsonl")):
        first = json.loads(path.read_text(encoding="utf-8").splitlines()[0])
        groups[first.get("class_word")].append(path.parent.name)
    best = max(groups.values(), key=len, default=[])
    if len(best) < 2:
        raise FileNotFoundError(f"{folder} has no two concepts of one class: name two concept folders")
    return best[0], best[1]


def check_outputs(out: Path) -> None:
    """Raise OSError unless demo.png and demo.csv can be written there: new, or those of an older demo."""
    figure, table = out / "demo.png", out / "demo.csv"
    for file in (figure, table):
        check_target(file)
    first = table.read_bytes()[:99] if table.is_file() else b""
    if (figure.exists() or table.exists()) and not first.startswith(",".join(COLUMNS[:4]).encode()):
        raise FileExistsError(f"{out} holds a demo.png or demo.csv that no demo has written: choose another folder.")


def tuned(
    base: DiffusionModel, data: ConceptData, place: Path, steps: int | None, seed: int, progress: bool
) -> Concept:
    """The concept in the folder `place`, tuned there if it is not yet.

    Raises FileExistsError on a concept that is not of a demo and was tuned on another base or otherwise.
    """
    foreign = (place / "concept.json").is_file() and not (place / "tuned.json").is_file()
    if foreign and (steps is not None or kept(place, base) is None):
        raise FileExistsError(f"{place} holds a concept of your own: move it, or choose another folder.")
    return tune_once(base, data, place, seed=seed, steps=steps, progress=progress)


@contextmanager
def beside(order: list | None):
    """The second client tunes in a process of its own while the block runs, one thread each: two threads on one small
    model are hardly faster than one. Whatever it leaves undone, `tuned` goes on with afterwards.

    order   arguments of `tune_alone`, as JSON has them; None: nothing runs beside
    """
    if order is None:
        yield
        return
    print("the second concept is tuned beside the first, in a process of its own", flush=True)
    command = [sys.executable, "-c", f"from {__name__} import tune_alone; tune_alone()", json.dumps(order)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    other = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                             env=os.environ | {"OMP_NUM_THREADS": "1"})  # fmt: skip
    try:
        yield
        other.wait()
    finally:
        torch.set_num_threads(threads)
        other.stdin.close()  # it stops, if it has not ended yet
        other.wait()


def tune_alone() -> None:
    """What the process of `beside` does; it ends when the one that started it does."""
    base, folder, class_word, place, steps, seed = json.loads(sys.argv[1])
    threading.Thread(target=stop_with_the_other, daemon=True).start()
    tuned(load_base(base), ConceptData(folder, class_word), Path(place), steps, seed, False)


def stop_with_the_other() -> None:
    """Ends this process once the one that started it closes its pipe, or is gone."""
    while os.read(0, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def draw_rows(base, concepts, fused: dict[str, DiffusionModel], data, n: int, seed: int, progress: bool) -> dict:
    """All pictures of the figure: row -> two blocks of n, the same seeds everywhere."""
    rows = {"references": [d.pictures[:n] for d in data]}
    settings = {"n": n, "seed": seed, "progress": progress}
    for name in MODELS:
        models = [base.with_concept(c) for c in concepts] if name == "alone" else [fused[name]] * 2
        rows[name] = [m.sample(f"a photo of a {c.phrase}", **settings) for m, c in zip(models, concepts, strict=True)]
    a, b = (f"a {c.phrase}" for c in concepts)
    rows["both, direct"] = [m.sample(f"{a} and {b} {PLACE}", **settings) for m in fused.values()]
    fenced = settings | {"regions": side_by_side((a, b), PLACE), "isolate": True}
    rows["both, regions"] = [m.sample(f"two friends {PLACE}", **fenced) for m in fused.values()]
    pose = drawn_pose(base, fenced["regions"], [c.class_word for c in concepts])
    if pose is not None:
        rows["regions and pose"] = [m.sample(f"two friends {PLACE}", spatial=pose, **fenced) for m in fused.values()]
    return rows


def drawn_pose(base: DiffusionModel, regions, class_words: list[str]) -> tuple | None:
    """What `spatial` of a sample takes: the pocket model's keypose adapter, a body for each region, its weight.

    None on another base, whose adapters would have to be downloaded, and for classes that Pocket World cannot draw.
    """
    from .pocket.world import CLASSES

    if not base.base_id.startswith("pocket") or not set(class_words) <= set(CLASSES):
        return None
    adapter = load_adapter("pocket-keypose", base.device, base.dtype)
    return adapter, keypose_layout(regions[: len(class_words)], classes=class_words), 1.0


def score(pictures: dict, concepts, data, scorer: Scorer) -> dict[str, dict[str, np.ndarray]]:
    """Image-alignment (4.3) of each picture with its concept's references: concept -> model -> (n,)."""
    return {
        c.name: {m: image_scores(pictures[m][i], data[i].pictures, scorer) for m in MODELS}
        for i, c in enumerate(concepts)
    }


def count_marks(pictures: dict, concepts, data, scorer: Scorer) -> dict[str, dict[str, np.ndarray]]:
    """Share of a concept's named marks that Pocket CLIP reads from each picture: concept -> model -> (n,).

    Only of shipped concepts, whose marks are known (see `pocket.marks`), and only of marks that it reads from at least
    `READABLE` of the concept's own pictures.
    """
    from .pocket.concepts import CONCEPTS
    from .pocket.marks import marks_kept

    found = {}
    for i, concept in enumerate(concepts):
        if concept.name not in CONCEPTS:
            continue
        own, kinds = marks_kept(data[i].pictures, concept.name, scorer)  # (pictures, kinds)
        readable = own.mean(0) >= READABLE
        if readable.any():
            told = [kind for kind, can in zip(kinds, readable, strict=True) if can]
            print(f"marks of {concept.name} that Pocket CLIP reads from its own pictures: {', '.join(told)}")
            found[concept.name] = {
                m: marks_kept(pictures[m][i], concept.name, scorer)[0][:, readable].mean(1) for m in MODELS
            }
    return found


def format_table(scores: dict[str, dict[str, np.ndarray]], measure: str = "image-alignment") -> str:
    """The table as text: mean and standard deviation over the pictures (the same seeds in every column)."""
    lines = [f"{measure:<24}" + "".join(f"{m:>18}" for m in MODELS)]
    for name, row in scores.items():
        lines.append(f"{name:<24}" + "".join(f"{f'{row[m].mean():.3f} ± {row[m].std():.3f}':>18}" for m in MODELS))
    return "\n".join(lines)


def write_table(scores: dict, marks: dict, file: Path) -> None:
    """One line per concept and model: mean and standard deviation of image-alignment, marks kept, pictures."""
    with atomic_file(file) as temporary, open(temporary, "w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(COLUMNS)
        for name, row in scores.items():
            for model, values in row.items():
                kept = f"{marks[name][model].mean():.4f}" if name in marks else ""
                table.writerow((name, model, f"{values.mean():.4f}", f"{values.std():.4f}", kept, len(values)))


def write_figure(
    pictures: dict[str, list[list[Image.Image]]], names: tuple[str, str], file: Path, marks: dict | None = None
) -> None:
    """The labelled figure: a line per row of `pictures`, two blocks of pictures side by side.

    marks   as `count_marks` gives them: their mean over both concepts stands under a row's name
    """
    n = max(len(block) for blocks in pictures.values() for block in blocks)
    rows, titles = {}, {}
    for number, (row, (left, right)) in enumerate(pictures.items()):
        label = row
        if marks and row in MODELS:
            label += f"\n{np.mean([kept[row].mean() for kept in marks.values()]):.0%} of the marks"
        rows[label] = [*left, *[None] * (n - len(left)), None, *right]  # a gap between the blocks
        if row in ("references", "both, direct"):
            a, b = names if row == "references" else MODELS[1:]
            titles[number] = [a, *[""] * n, b]
    widest = max(picture.width for row in rows.values() for picture in row if picture is not None)
    side = min(max(widest, SMALLEST), LARGEST)
    with atomic_file(file) as temporary:
        grid(rows, titles, side).save(temporary, "PNG")
