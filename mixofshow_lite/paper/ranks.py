"""What a LoRA's rank is worth, alone and fused: look-alikes tuned at several ranks, each brought together in every way.

    python -m mixofshow_lite.paper ranks

The paper (3.1, 3.3.2) has rank 4, in layers of 320 to 1280; the pocket model's are 64 to 128 wide. A higher rank
learns more of a concept, and leaves less of a narrow layer to the others: a recipe is judged by both.

identity    image-alignment of the pictures with the concept's own
marks       share of the concept's own marks that Pocket CLIP reads from them
identified  share of them nearest to the right one of the look-alikes
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from ..engine.evaluation import Scorer, image_scores, load_scorer
from ..engine.fusion import gradient_fusion, weight_fusion
from ..engine.fusion.settings import default_ridge
from ..engine.recipes import RECIPES, Recipe
from ..files.data import ConceptData
from ..model import DiffusionModel
from .fusions import SEED
from .head_to_head import shipped_marks
from .observations import LOOK_ALIKES, about, grid_figure, identified
from .study import Study, difference, tuned

RANKS = (4, 8, 16)  # the first is what the others are compared with
ALONE, AVERAGED, GRADIENT = "alone", "averaged", "gradient fusion"
LOW_RIDGE = "gradient fusion, a third of the ridge"
WAYS: dict[str, Callable] = {
    AVERAGED: weight_fusion,
    GRADIENT: lambda base, concepts: gradient_fusion(base, concepts, progress=False),
    LOW_RIDGE: lambda base, concepts: gradient_fusion(
        base, concepts, ridge=default_ridge(len(concepts)) / 3, progress=False
    ),
}
PROMPTS = ("a {} in the snow", "a {} on the moon", "a {} in the desert")  # never recorded by a fusion


def ranked(rank: int) -> tuple[Recipe, str]:
    """ED-LoRA at a rank, and what its tuned concepts are called on disk: as every ED-LoRA's at the default rank."""
    default = RECIPES["ed_lora"]
    return (default, default.name) if rank == default.rank else (replace(default, rank=rank), f"ed_lora_rank={rank}")


def ranks(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    names: Sequence[str] = LOOK_ALIKES,
    tried: Sequence[int] = RANKS,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """Rows, one per rank, way, concept and tuning seed: `identity`, `marks` (NaN where a concept has none) and
    `identified`, shares in [0, 1], of n pictures at each place; the claims compare every rank with the first, and
    gradient fusion with averaging. Raises what `tune` raises.
    """
    scorer, rows, pictures = load_scorer(scorer), [], {}
    marks = shipped_marks(scorer)
    references = {name: scorer.image_features(data[name].pictures) for name in names}
    for seed in seeds:
        for rank in tried:
            recipe, label = ranked(rank)
            concepts = {name: tuned(base, data[name], recipe, seed, folder, label, steps) for name in names}
            models = {way: fuse(base, list(concepts.values())) for way, fuse in WAYS.items()}
            for way in (ALONE, *WAYS):
                for name, concept in concepts.items():
                    model = base.with_concept(concept) if way == ALONE else models[way]
                    drawn = [model.sample(p.format(concept.phrase), n=n, seed=SEED, progress=False) for p in prompts]
                    pictures.setdefault((f"{name}, rank {rank}", way), [drawn[0][0], drawn[-1][0]])
                    drawn = sum(drawn, [])
                    row = {"rank": rank, "way": way, "setting": f"{rank}, {way}", "concept": name, "seed": seed}
                    row |= {"identity": float(image_scores(drawn, data[name].pictures, scorer).mean())}
                    row |= {"identified": identified(scorer.image_features(drawn), references, name)}
                    rows.append(row | {"marks": marks(name, drawn)})
    options = {"prompts": list(prompts), "seeds": list(seeds), "pictures": n, "ranks": list(tried)}
    study = Study("ranks", rows, pictures=pictures, about=about(base, **options))
    study.figure = grid_figure(pictures, [f"{name}, rank {rank}" for name in names for rank in tried], [ALONE, *WAYS])
    for value in ("marks", "identity", "identified"):
        for rank in tried:
            claim(study, value, rank, tried[0])
    return study


def claim(study: Study, value: str, rank: int, first: int) -> None:
    """What a rank has more of than the first one, and gradient fusion than averaging at this rank."""
    if rank != first:
        for way in (ALONE, AVERAGED, GRADIENT):
            found = difference(study.rows, "setting", f"{rank}, {way}", f"{first}, {way}", value)
            study.claim(f"{value}, {way}: rank {rank} has more than rank {first}", found)
    for way in (GRADIENT, LOW_RIDGE):
        found = difference(study.rows, "setting", f"{rank}, {way}", f"{rank}, {AVERAGED}", value)
        study.claim(f"{value}, rank {rank}: {way} keeps more than averaging", found)
