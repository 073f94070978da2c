"""Tables 1 and 2 a of the paper (4.3), in its own arrangement, the paper's number beside ours.

    mixofshow paper table1          python: tables.table1(base, work, data); print(tables.text(study))

    paper             here
    rows              the methods: P+, Custom Diffusion, LoRA, Mix-of-Show; or LoRA and ED-LoRA by both fusions
    columns           objects, characters, scenes; the mean
    Single -> Fused   a concept's own model, and the one model that all concepts are fused into
    bounds            text: the base's pictures of the class word with the class prompt; image: the same pictures with
                      the concept's own ("a rabbit" is how much like Bibi?)

Text-alignment is CLIPScore's 2.5 cos, image-alignment the cosine, by Pocket CLIP on the pocket base and by the paper's
ViT-B/32 on Stable Diffusion. Pictures, reader, prompts and concepts are others than the paper's, so no value may be
compared with the one below it. What may be compared is the order of the methods and the sign and relative size
of the changes.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from tqdm.auto import tqdm

from ..engine.evaluation import Scorer, image_scores, load_scorer, plain_prompt, text_scores
from ..engine.fusion import gradient_fusion, weight_fusion
from ..files.concept import Concept
from ..files.data import ConceptData
from ..model import DiffusionModel
from ..rivals import constrained_fusion
from .fusions import PROMPTS, SEED
from .observations import about
from .readings import Readings, alone_key, fused_key, pictures_digest
from .study import Study, difference, tuned

CATEGORIES: dict[str, tuple[str, ...]] = {  # three of each where there are, in the paper's order
    "objects": ("beetle", "zigzag", "polka"),
    "characters": ("bibi", "rusty", "mochi"),
    "scenes": ("cove", "lava"),
}
SCENE_PROMPTS = ("photo of {}", "a cat in {}", "a blue robot in {}")
MEAN, BOUND = "mean", "bound"
NUMBERS = ("text", "image")


@dataclass(frozen=True)
class Method:
    """A row of a table: how concepts are tuned, and how they become one model."""

    recipe: str
    fuse: Callable[[DiffusionModel, list[Concept]], DiffusionModel]


def by_gradient(base: DiffusionModel, concepts: list[Concept]) -> DiffusionModel:
    """Gradient fusion with its defaults."""
    return gradient_fusion(base, concepts, progress=False)


def by_constraint(base: DiffusionModel, concepts: list[Concept]) -> DiffusionModel:
    """Custom Diffusion's merge with its defaults."""
    return constrained_fusion(base, concepts, progress=False)


TABLE_1: dict[str, Method] = {
    "P+": Method("p_plus", weight_fusion),  # words only: nothing to merge, they are joined
    "Custom Diffusion": Method("custom_diffusion", by_constraint),
    "LoRA": Method("lora", weight_fusion),
    "Mix-of-Show": Method("ed_lora", by_gradient),
}
TABLE_2A: dict[str, Method] = {
    "LoRA + weight fusion": Method("lora", weight_fusion),
    "ED-LoRA + weight fusion": Method("ed_lora", weight_fusion),
    "ED-LoRA + gradient fusion": Method("ed_lora", by_gradient),
}
# The paper's numbers: method -> number -> (single, fused) of objects, characters, scenes and the mean; one for a bound.
PUBLISHED: dict[str, dict[str, tuple]] = {
    BOUND: {"text": (0.811, 0.767, 0.834, 0.804), "image": (0.721, 0.471, 0.595, 0.596)},
    "P+": {
        "text": ((0.771, 0.771), (0.686, 0.686), (0.759, 0.759), (0.739, 0.739)),
        "image": ((0.790, 0.790), (0.670, 0.670), (0.796, 0.796), (0.752, 0.752)),
    },
    "Custom Diffusion": {
        "text": ((0.745, 0.747), (0.674, 0.650), (0.748, 0.738), (0.722, 0.712)),
        "image": ((0.842, 0.808), (0.714, 0.694), (0.804, 0.750), (0.787, 0.751)),
    },
    "LoRA": {
        "text": ((0.720, 0.795), (0.654, 0.700), (0.717, 0.760), (0.697, 0.752)),
        "image": ((0.864, 0.778), (0.761, 0.555), (0.824, 0.769), (0.816, 0.701)),
    },
    "Mix-of-Show": {
        "text": ((0.724, 0.745), (0.632, 0.662), (0.716, 0.736), (0.691, 0.714)),
        "image": ((0.868, 0.846), (0.802, 0.770), (0.858, 0.838), (0.843, 0.818)),
    },
    "ED-LoRA + weight fusion": {"image": ((0.868, 0.798), (0.802, 0.634), (0.858, 0.816), (0.843, 0.749))},
}
PUBLISHED["LoRA + weight fusion"] = {"image": PUBLISHED["LoRA"]["image"]}
PUBLISHED["ED-LoRA + gradient fusion"] = {"image": PUBLISHED["Mix-of-Show"]["image"]}


def table1(base: DiffusionModel, folder, data: Mapping[str, ConceptData], **options) -> Study:
    """Table 1; `options` are `compare`'s. The claims are the paper's: who loses least, who is most like the concept."""
    study = compare(base, folder, data, TABLE_1, "table1", **options)
    claim(study, "Mix-of-Show loses less of an identity than LoRA", "Mix-of-Show", "LoRA", "image_change")
    for other in ("P+", "Custom Diffusion", "LoRA"):
        words = f"fused, Mix-of-Show is more like the concept than {other}"
        claim(study, words, "Mix-of-Show", other, "image_fused")
        claim(study, f"alone, ED-LoRA is more like the concept than {other}", "Mix-of-Show", other, "image_single")
    return study


def table2a(base: DiffusionModel, folder, data: Mapping[str, ConceptData], **options) -> Study:
    """Table 2 a; `options` are `compare`'s. The claims: each step loses less of an identity than the one before."""
    study = compare(base, folder, data, TABLE_2A, "table2a", **options)
    first, second, third = TABLE_2A
    claim(study, "averaged ED-LoRAs lose less than averaged LoRAs", second, first, "image_change")
    claim(study, "gradient fusion loses less than averaging", third, second, "image_change")
    return study


def claim(study: Study, words: str, more: str, less: str, number: str) -> None:
    """Record "`more` has the higher number" over all concepts of the table."""
    study.claim(words, difference([row for row in study.rows if row["method"] != BOUND], "method", more, less, number))


def compare(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    methods: Mapping[str, Method],
    name: str,
    categories: Mapping[str, Sequence[str]] = CATEGORIES,
    prompts: Sequence[str] = PROMPTS,
    scene_prompts: Sequence[str] = SCENE_PROMPTS,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """Every method on every concept, alone and fused into one model of all, and the base for the bounds.

    Rows per method, concept and tuning seed: text and image, each _single, _fused and _change; of the bounds text and
    image. `n` pictures of each prompt, from the same noise for all. What is measured stays in `folder` (`readings`).
    """
    scorer, rows = load_scorer(scorer), []
    places = {concept: category for category, own in categories.items() for concept in own}
    asked = {concept: scene_prompts if places[concept] == "scenes" else prompts for concept in places}
    total = sum(map(len, asked.values())) * (1 + 2 * len(seeds) * len(methods))
    with tqdm(total=total, desc=name, unit="reading", smoothing=0) as bar:
        score = partial(scored, Readings.of(folder, base, scorer), scorer, n, bar)
        for concept_name, category in places.items():
            word = data[concept_name].class_word
            bound = score(lambda: base, ["base"], word, word, asked[concept_name], data[concept_name].pictures)
            rows.append({"method": BOUND, "category": category, "concept": concept_name, "seed": 0} | bound)
        for seed in seeds:
            for label, method in methods.items():
                concepts = {c: tuned(base, data[c], method.recipe, seed, folder, steps=steps) for c in places}
                fuse = cache(partial(method.fuse, base, list(concepts.values())))  # made when it is first drawn with
                together = fused_key(method.fuse, concepts.values())
                for concept_name, concept in concepts.items():
                    alone = partial(base.with_concept, concept)
                    shown = concept.phrase, plain_prompt(concept.phrase, [concept]), asked[concept_name]
                    single = score(alone, alone_key(concept), *shown, data[concept_name].pictures)
                    fused = score(fuse, together, *shown, data[concept_name].pictures)
                    row = {"method": label, "category": places[concept_name], "concept": concept_name, "seed": seed}
                    for number in NUMBERS:
                        row |= {f"{number}_single": single[number], f"{number}_fused": fused[number]}
                        row[f"{number}_change"] = fused[number] - single[number]
                    rows.append(row)
    names = {category: list(own) for category, own in categories.items()}
    options = {"methods": list(methods), "categories": names, "prompts": list(prompts), "seeds": list(seeds)}
    study = Study(name, rows, about=about(base, **options, pictures=n, reader=scorer.name))
    study.figure = figure(study)
    return study


def scored(
    readings: Readings,
    scorer: Scorer,
    n: int,
    bar: tqdm,
    model: Callable[[], DiffusionModel],
    key: list | None,
    phrase: str,
    word: str,
    prompts: Sequence[str],
    references: Sequence,
) -> dict[str, float]:
    """Text- and image-alignment of n pictures of each prompt; the model is asked for only where a reading is missing.

    `phrase` stands in the prompts that are drawn, `word` in those that the scorer reads; `key` names the model.
    """
    found = {number: [] for number in NUMBERS}
    for prompt in prompts:

        def measure(drawn_of: str = prompt.format(phrase), read_as: str = prompt.format(word)) -> dict:
            drawn = model().sample(drawn_of, n=n, seed=SEED, progress=False)
            return {"text": text_scores(drawn, read_as, scorer), "image": image_scores(drawn, references, scorer)}

        asked = {"model": key, "prompt": prompt.format(phrase), "read as": prompt.format(word), "n": n, "seed": SEED}
        numbers, kept = readings.take(asked | {"references": pictures_digest(references)}, measure)
        bar.initial += kept  # the time left is told from what is measured now
        bar.update()
        for number in NUMBERS:
            found[number].append(float(numbers[number].mean()))
    return {number: float(np.mean(values)) for number, values in found.items()}


def cell(study: Study, method: str, category: str, number: str) -> tuple[float, float] | float:
    """Ours for one cell: (single, fused), or one number for a bound; the mean over concepts, of categories for MEAN."""
    rows = [row for row in study.rows if row["method"] == method]
    if category == MEAN:
        found = [cell(study, method, each, number) for each in dict.fromkeys(row["category"] for row in rows)]
        mean = np.mean(found, axis=0)
    else:
        keys = [number] if method == BOUND else [f"{number}_single", f"{number}_fused"]
        mean = np.mean([[row[key] for key in keys] for row in rows if row["category"] == category], axis=0)
    return float(np.ravel(mean)[0]) if method == BOUND else (float(mean[0]), float(mean[1]))


def text(study: Study) -> str:
    """The table as the paper prints it, single → fused (change), under each line of ours the paper's own."""
    categories = [*dict.fromkeys(row["category"] for row in study.rows), MEAN]
    methods = list(dict.fromkeys(row["method"] for row in study.rows))  # the bound first
    numbers = [n for n in NUMBERS if any(n in PUBLISHED.get(m, {}) for m in methods if m != BOUND)]
    lines = []
    for number in numbers:
        lines.append(line(f"{number}-alignment", categories))
        for method in methods:
            label = f"{'upper' if number == 'text' else 'lower'} bound" if method == BOUND else method
            lines.append(line(label, [says(cell(study, method, category, number), 2) for category in categories]))
            theirs = PUBLISHED.get(method, {}).get(number)
            if theirs:
                own = dict(zip((*CATEGORIES, MEAN), theirs, strict=True))
                lines.append(line("  the paper", [says(own[category], 3) for category in categories]))
    lines.append("Only orders and signs compare: other pictures, another reader, other prompts.")
    return "\n".join(lines)


def line(label: str, cells: Sequence[str]) -> str:
    """A line of the table, at most 122 columns: a label of 26, then cells of 24."""
    return f"{label:26}" + "".join(f"{each:24}" for each in cells).rstrip()


def says(value: tuple[float, float] | float, digits: int) -> str:
    """One cell: "0.84 → 0.82 (-0.02)", or a bound's one number."""
    if not isinstance(value, tuple):
        return f"{value:.{digits}f}"
    single, fused = value
    return f"{single:.{digits}f} → {fused:.{digits}f} ({fused - single:+.{digits}f})"


def figure(study: Study):
    """The table as arrows from single to fused, ours beside the paper's; a dotted line is the bound."""
    from matplotlib.figure import Figure

    methods = [m for m in dict.fromkeys(row["method"] for row in study.rows) if m != BOUND]
    numbers = [n for n in NUMBERS if any(n in PUBLISHED.get(m, {}) for m in methods)]
    drawn = Figure(figsize=(8.6, 0.9 + 1.6 * len(numbers)), layout="constrained")
    axes = drawn.subplots(len(numbers), 2, squeeze=False)
    for row, number in zip(axes, numbers, strict=True):
        for ax, whose in zip(row, ("ours", "the paper"), strict=True):
            for y, method in enumerate(reversed(methods)):
                published = PUBLISHED.get(method, {}).get(number)
                if whose == "the paper" and published is None:
                    continue
                pair = cell(study, method, MEAN, number) if whose == "ours" else published[-1]
                ax.annotate("", (pair[1], y), (pair[0], y), arrowprops={"arrowstyle": "->", "color": "tab:blue"})
                ax.plot(pair, (y, y), "o", color="tab:blue", ms=3)
            bound = cell(study, BOUND, MEAN, number) if whose == "ours" else PUBLISHED[BOUND][number][-1]
            ax.axvline(bound, color="gray", ls=":", lw=1)
            ax.set(title=f"{number}-alignment, {whose}", yticks=range(len(methods)), ylim=(-0.6, len(methods) - 0.4))
            ax.set_yticklabels(reversed(methods), fontsize=8)
    return drawn
