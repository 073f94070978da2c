"""Observations 1 and 2 and the ablation (paper 3.3.1, Fig. 3 a-d): what embeddings carry and what LoRA carries.

paper                         here
Phi_0(P*)                     base.with_concept(concept, alpha=0)      the words alone
(Phi_0 + dPhi)(P*)            base.with_concept(concept, alpha=1)
in-domain, out-domain         concepts inside the base's world, and with marks that it never saw
identity                      image-alignment with the concept's own pictures; and which look-alike a picture is
                              nearest to (`identified`: 1 / the number of look-alikes is chance)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
from PIL import Image

from ..engine.evaluation import Scorer, image_scores, load_scorer
from ..engine.recipes import FREEZE_NORM, RECIPES, Recipe
from ..files.concept import Concept
from ..files.data import ConceptData
from ..files.grid import grid
from ..model import DiffusionModel
from ..prompts import embedding_std
from .study import Difference, Study, difference, tuned

EMBEDDINGS = ("textual_inversion", "p_plus")
DOMAINS = {"in": ("mochi", "bruno", "fern"), "out": ("bibi", "kiki", "rusty")}
LOOK_ALIKES = ("bibi", "momo", "kiki")
GROUPS: dict[str, tuple[str, ...]] = {"rabbits": LOOK_ALIKES, "robots": ("rusty", "volt", "pixel")}
ALPHAS = (0.0, 0.35, 0.7, 1.0)
PROMPT = "photo of a {}"
PAIR = 192  # pixels: width of two pictures in a figure
FREEZE_NORMS = (3.25, FREEZE_NORM, math.inf)  # 1.5 times as long as the model's own words, 1.9 times, no limit


def draw_concept(
    model: DiffusionModel, concept: Concept, n: int, prompt: str = PROMPT, seed: int = 100
) -> list[Image.Image]:
    """n pictures of the concept; the same seeds for every model and concept."""
    return model.sample(prompt.format(concept.phrase), n=n, seed=seed, progress=False)


def draw_at(model, concept: Concept, prompts: Sequence[str], n: int, seed: int) -> list[Image.Image]:
    """n pictures of the concept, dealt out to the prompts; the same noise for every model."""
    asked = [prompts[i % len(prompts)] for i in range(n)]
    drawn = []
    for prompt in dict.fromkeys(asked):
        drawn += model.sample(prompt.format(concept.phrase), n=asked.count(prompt), seed=seed, progress=False)
    return drawn


def observation_1(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    domains: Mapping[str, Sequence[str]] = DOMAINS,
    recipes: Sequence[str] = ("textual_inversion", "p_plus", "lora", "ed_lora"),
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """Observation 1: words capture in-domain concepts; out-domain ones need LoRA. Rows: image-alignment of n pictures.

    The claims are about the gap between LoRA and words alone (the mean of Textual Inversion and P+): it is there
    out-domain, and larger than in-domain.
    """
    scorer, rows, pictures = load_scorer(scorer), [], {}
    for domain, names in domains.items():
        for name in names:
            pictures[name, "references"] = data[name].pictures[:n]
            for recipe in recipes:
                for seed in seeds:
                    concept = tuned(base, data[name], recipe, seed, folder, steps=steps)
                    drawn = draw_concept(base.with_concept(concept), concept, n)
                    pictures.setdefault((name, recipe), drawn)
                    value = float(image_scores(drawn, data[name].pictures, scorer).mean())
                    rows.append({"domain": domain, "concept": name, "recipe": recipe, "seed": seed, "value": value})
    study = Study(
        "observation_1",
        rows,
        pictures=pictures,
        about=about(base, recipes=list(recipes), seeds=list(seeds), pictures=n),
    )
    compare_domains(study)
    study.figure = grid_figure(pictures, [n for names in domains.values() for n in names], ("references", *recipes))
    return study


def compare_domains(study: Study) -> None:
    """Observation 1's claims, from its rows. "Farther outside" takes the two intervals at their worst: no domain shares
    a concept with the other, so that there are no pairs to draw."""
    rows = [row | {"recipe": "embedding"} for row in study.rows if row["recipe"] in EMBEDDINGS] + study.rows
    gaps = {}
    for domain in dict.fromkeys(row["domain"] for row in rows):
        gaps[domain] = difference([row for row in rows if row["domain"] == domain], "recipe", "lora", "embedding")
        study.claim(f"{domain}-domain: LoRA above the words alone", gaps[domain])
    inside, outside = gaps["in"], gaps["out"]
    worst = Difference(
        outside.mean - inside.mean, outside.low - inside.high, outside.high - inside.low, outside.pairs + inside.pairs
    )
    study.claim("LoRA is farther above the words alone out-domain than in-domain", worst)


def observation_2(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    groups: Mapping[str, Sequence[str]] = GROUPS,
    recipes: Sequence[str] = ("lora", "ed_lora"),
    alphas: Sequence[float] = ALPHAS,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """Observation 2: in LoRA, identity sits in the weights; ED-LoRA's words already carry it. Look-alikes only.

    Rows: per recipe, alpha and concept, against the others of its group, `value` (identified: share of pictures nearest
    to their own concept's references), `apart` (1 - cosine between the mean features of one concept's pictures and of
    each other's) and `alignment` (image-alignment with the concept's own pictures).
    """
    scorer, rows, pictures = load_scorer(scorer), [], {}
    for recipe, (group, names) in product(recipes, groups.items()):
        references = {name: scorer.image_features(data[name].pictures) for name in names}
        for seed in seeds:
            concepts = {name: tuned(base, data[name], recipe, seed, folder, steps=steps) for name in names}
            for alpha in alphas:
                features = {}
                for name, concept in concepts.items():
                    drawn = draw_concept(base.with_concept(concept, alpha), concept, n)
                    pictures.setdefault((name, f"{recipe} {alpha:g}"), drawn)
                    features[name] = scorer.image_features(drawn)
                for name, x in features.items():
                    own = {"recipe": recipe, "alpha": alpha, "setting": f"{recipe} {alpha:g}", "seed": seed}
                    rows.append(own | {"group": group, "concept": name, "value": identified(x, references, name),
                                       "apart": apart(features, name),
                                       "alignment": float((x @ references[name].T).mean())})  # fmt: skip
    study = Study(
        "observation_2",
        rows,
        pictures=pictures,
        about=about(base, recipes=list(recipes), seeds=list(seeds), pictures=n),
    )
    if {"lora", "ed_lora"} <= set(recipes) and 0.0 in alphas:
        claims = {"value": "identified more often", "apart": "farther apart", "alignment": "more like themselves"}
        for value, words in claims.items():
            found = difference(rows, "setting", "ed_lora 0", "lora 0", value)
            study.claim(f"with LoRA weight 0, look-alikes are {words} by ED-LoRA's words than by LoRA's", found)
    columns = [f"{recipe} {alpha:g}" for recipe in recipes for alpha in alphas]
    study.figure = grid_figure(pictures, [name for names in groups.values() for name in names], columns)
    return study


def word_length(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    groups: Mapping[str, Sequence[str]] = GROUPS,
    freeze_norms: Sequence[float] = FREEZE_NORMS,
    recipes: Sequence[str] = ("lora", "ed_lora"),
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """What observation 2 (3.3.1) hangs on: how long tuning may make a word. The official code's main branch limits it;
    its research branch, from which the paper's baselines seem to come, does not, nor does the paper say so. Look-alikes
    only.

    `freeze_norms` are values of `Recipe.freeze_norm`, in lengths of a random row. Rows: per recipe, limit and concept,
    image-alignment and `identified` (see `observation_2`) by the words alone (_0) and with the whole LoRA (_1). The
    claims are about the words alone, at each limit.
    """
    scorer, rows, pictures = load_scorer(scorer), [], {}
    for recipe, norm, (group, names) in product(recipes, freeze_norms, groups.items()):
        references = {name: scorer.image_features(data[name].pictures) for name in names}
        label, settings = limit_label(recipe, norm), replace(RECIPES[recipe], freeze_norm=norm)
        for seed, name in product(seeds, names):
            concept = tuned(base, data[name], settings, seed, folder, label=label, steps=steps)
            row = {"recipe": recipe, "freeze_norm": norm, "setting": f"{recipe} {norm:g}", "seed": seed}
            row |= {"group": group, "concept": name}
            for alpha in (0.0, 1.0):
                drawn = draw_concept(base.with_concept(concept, alpha), concept, n)
                pictures.setdefault((name, f"{recipe} {norm:g}, alpha {alpha:g}"), drawn)
                features = scorer.image_features(drawn)
                row[f"alignment_{alpha:g}"] = float((features @ references[name].T).mean())
                row[f"identified_{alpha:g}"] = identified(features, references, name)
            rows.append(row)
    study = Study(
        "word_length",
        rows,
        pictures=pictures,
        about=about(
            base, recipes=list(recipes), freeze_norms=[f"{x:g}" for x in freeze_norms], seeds=list(seeds), pictures=n
        ),
    )
    random_row = embedding_std(base.text_encoder) * base.text_encoder.config.hidden_size**0.5  # its length
    limits = {x: "no limit" if math.isinf(x) else f"{x * random_row:.3g}" for x in freeze_norms}
    if {"lora", "ed_lora"} <= set(recipes):
        for norm, limit in limits.items():
            found = difference(rows, "setting", f"ed_lora {norm:g}", f"lora {norm:g}", "alignment_0")
            study.claim(f"a word's length, {limit}: ED-LoRA's words alone are more like the concept than LoRA's", found)
    study.figure = limit_figure(study, limits, recipes)
    return study


def limit_figure(study: Study, limits: Mapping[float, str], recipes: Sequence[str]):
    """Image-alignment by the words alone and with the LoRA against the limit, mean and standard error over concepts.

    `limits` are Recipe.freeze_norm -> the length it stops at, or "no limit".
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.5), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    for ax, alpha, title in zip(axes, (0, 1), ("the words alone", "words and LoRA"), strict=True):
        table = study.table("recipe", "freeze_norm", value=f"alignment_{alpha}")
        for recipe, mark in zip(recipes, "os^v", strict=False):
            means, errors = zip(*((m, s / n**0.5) for m, s, n in (table[recipe, x] for x in limits)), strict=True)
            ax.errorbar(list(limits.values()), means, errors, marker=mark, capsize=3, label=recipe)
        ax.set(title=title, xlabel="limit on the mean length of its rows")
        ax.margins(x=0.12)
    axes[0].set(ylabel="image-alignment")
    axes[0].legend(frameon=False)
    return figure


def limit_label(recipe: str, freeze_norm: float) -> str:
    """The label of concepts tuned with such a limit: the recipe's name where it is the recipe's own."""
    return recipe if freeze_norm == RECIPES[recipe].freeze_norm else f"{recipe}_freeze_norm={freeze_norm:g}"


def identified(features, references: Mapping, name: str) -> float:
    """Share of pictures (n, D) whose mean cosine with a concept's references is highest for the right concept."""
    scores = np.stack([(features @ other.T).mean(1).numpy() for other in references.values()])  # (concepts, n)
    return float((scores.argmax(0) == list(references).index(name)).mean())


def apart(features: Mapping, name: str) -> float:
    """1 - cosine between the mean feature of `name`'s pictures and each other concept's, averaged; 0 is the same."""
    means = {k: f.mean(0) / f.mean(0).norm() for k, f in features.items()}
    return float(np.mean([1 - float(means[name] @ m) for k, m in means.items() if k != name]))


STAIRS = {  # from LoRA to ED-LoRA, one ingredient at a time
    "LoRA": RECIPES["lora"],
    "+ layer-wise": replace(RECIPES["lora"], layerwise=True),
    "+ second word": replace(RECIPES["lora"], layerwise=True, init=("rand", "rand")),
    "+ class word (ED-LoRA)": RECIPES["ed_lora"],
}


def stair_label(label: str, recipe: Recipe) -> str:
    """The label of a stair's tuned concepts: the recipe's name where it is one of RECIPES, which others tune too."""
    if recipe == RECIPES.get(recipe.name):
        return recipe.name
    return "stair_" + label.strip("+ ").split(" (")[0].replace(" ", "_")


def ablation(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    names: Sequence[str] = LOOK_ALIKES,
    stairs: Mapping[str, Recipe] = STAIRS,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """From LoRA to ED-LoRA one ingredient at a time: identity at LoRA weight 1 and 0 (image-alignment, identified)."""
    scorer, rows, pictures = load_scorer(scorer), [], {}
    references = {name: scorer.image_features(data[name].pictures) for name in names}
    for label, recipe in stairs.items():
        for seed in seeds:
            for name in names:
                concept = tuned(base, data[name], recipe, seed, folder, label=stair_label(label, recipe), steps=steps)
                row = {"stair": label, "concept": name, "seed": seed}
                for alpha in (0.0, 1.0):
                    drawn = draw_concept(base.with_concept(concept, alpha), concept, n)
                    pictures.setdefault((name, f"{label} {alpha:g}"), drawn)
                    row[f"alignment_{alpha:g}"] = float(image_scores(drawn, data[name].pictures, scorer).mean())
                    row[f"identified_{alpha:g}"] = identified(scorer.image_features(drawn), references, name)
                rows.append(row)
    study = Study("ablation", rows, pictures=pictures, about=about(base, seeds=list(seeds), pictures=n))
    for less, more in zip(stairs, list(stairs)[1:], strict=False):
        words = f"{more}: the words alone (LoRA weight 0) look more like the concept than with {less}"
        study.claim(words, difference(rows, "stair", more, less, "alignment_0"))
    study.figure = grid_figure(pictures, list(names), [f"{label} {alpha}" for label in stairs for alpha in (0, 1)])
    return study


def about(base: DiffusionModel, **more) -> dict:
    """Metadata needed to reproduce a result."""
    return {"base": base.base_id, "fingerprint": base.fingerprint, **more}


def grid_figure(pictures: Mapping[tuple[str, str], list[Image.Image]], names: Sequence[str], columns: Sequence[str]):
    """One row per concept, one column per setting; each cell shows two pictures side by side."""
    rows = {name: [grid(pictures[name, column][:2], gap=0) for column in columns] for name in names}
    return grid(rows, columns, side=PAIR)
