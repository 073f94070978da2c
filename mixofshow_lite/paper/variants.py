"""What the pocket recipe is worth, alone and fused: look-alikes tuned by variants of it, fused in every way.

    python -m mixofshow_lite.paper variants

The paper's ED-LoRA is free to change a layer's answer to anything. Pocket's leaves alone what all prompts have in
common (engine/null_space.py); its rank is the paper's, 4, though pocket's layers are 64 to 128 wide. A recipe is judged
by what it learns and by what is left of that in one model.

identity    image-alignment of the pictures with the concept's own
marks       share of the concept's own marks that Pocket CLIP reads from them
identified  share of them nearest to the right one of the look-alikes
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..engine.evaluation import Scorer, image_scores, load_scorer
from ..engine.fusion import gradient_fusion, weight_fusion
from ..engine.recipes import RECIPES, Recipe
from ..files.data import ConceptData
from ..model import DiffusionModel
from .fusions import SEED
from .head_to_head import shipped_marks
from .observations import LOOK_ALIKES, about, grid_figure, identified
from .study import Study, difference, tuned

SHIPPED, FREE = "as shipped", "free"
CHANGES: dict[str, dict] = {  # of the recipe that ships; the first is what the others are compared with
    SHIPPED: {},
    FREE: {"null_space": (0, 0, 0), "lr_spatial": None},
    "rank 8": {"rank": 8},
}
ALONE, AVERAGED, GRADIENT = "alone", "averaged", "gradient fusion"
WAYS: dict[str, Callable] = {
    AVERAGED: weight_fusion,
    GRADIENT: lambda base, concepts: gradient_fusion(base, concepts, progress=False),
}
PROMPTS = ("a {} in the snow", "a {} on the moon", "a {} in the desert")  # never recorded by a fusion


def changed(variant: str) -> tuple[Recipe, str]:
    """A variant of ED-LoRA, and what its tuned concepts are called on disk: as every ED-LoRA if it is unchanged."""
    default = RECIPES["ed_lora"]
    if not CHANGES[variant]:
        return default, default.name
    return replace(default, **CHANGES[variant]), f"{default.name}_{variant.replace(' ', '_')}"


def variants(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    names: Sequence[str] = LOOK_ALIKES,
    tried: Sequence[str] = tuple(CHANGES),
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """Rows, one per variant, way, concept and tuning seed: `identity`, `marks` (NaN where a concept has none) and
    `identified`, shares in [0, 1], of n pictures at each place; the claims compare every variant with the first, and
    gradient fusion with averaging. Raises what `tune` raises.
    """
    scorer, rows, pictures = load_scorer(scorer), [], {}
    marks = shipped_marks(scorer)
    references = {name: scorer.image_features(data[name].pictures) for name in names}
    for seed in seeds:
        for variant in tried:
            recipe, label = changed(variant)
            concepts = {name: tuned(base, data[name], recipe, seed, folder, label, steps) for name in names}
            models = {way: fuse(base, list(concepts.values())) for way, fuse in WAYS.items()}
            for way in (ALONE, *WAYS):
                for name, concept in concepts.items():
                    model = base.with_concept(concept) if way == ALONE else models[way]
                    drawn = [model.sample(p.format(concept.phrase), n=n, seed=SEED, progress=False) for p in prompts]
                    pictures.setdefault((f"{name}, {variant}", way), [drawn[0][0], drawn[-1][0]])
                    drawn = sum(drawn, [])
                    row = {
                        "variant": variant,
                        "way": way,
                        "setting": f"{variant}, {way}",
                        "concept": name,
                        "seed": seed,
                    }
                    row |= {"identity": float(image_scores(drawn, data[name].pictures, scorer).mean())}
                    row |= {"identified": identified(scorer.image_features(drawn), references, name)}
                    rows.append(row | {"marks": marks(name, drawn)})
    options = {"prompts": list(prompts), "seeds": list(seeds), "pictures": n, "variants": list(tried)}
    study = Study("variants", rows, pictures=pictures, about=about(base, **options))
    study.figure = grid_figure(pictures, [f"{name}, {variant}" for name in names for variant in tried], [ALONE, *WAYS])
    for value in ("marks", "identity", "identified"):
        for variant in tried:
            claim(study, value, variant, tried[0])
    return study


def claim(study: Study, value: str, variant: str, first: str) -> None:
    """What the first variant has more of than this one, and gradient fusion than averaging with this one."""
    if variant != first:
        for way in (ALONE, AVERAGED, GRADIENT):
            found = difference(study.rows, "setting", f"{first}, {way}", f"{variant}, {way}", value)
            study.claim(f"{value}, {way}: {first} has more than {variant}", found)
    found = difference(study.rows, "setting", f"{variant}, {GRADIENT}", f"{variant}, {AVERAGED}", value)
    study.claim(f"{value}, {variant}: {GRADIENT} keeps more than averaging", found)
