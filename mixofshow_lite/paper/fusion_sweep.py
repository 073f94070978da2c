"""The recorded sweep behind gradient fusion's defaults (paper 3.3.2): ridge, solver and options, on held-out prompts.

    python -m mixofshow_lite.paper fusion_sweep      # WAYS: the ridge, the solver
    python -m mixofshow_lite.paper fusion_options    # OPTIONS: one change of the default each

Two groups of look-alikes are fused in every way of WAYS; each concept is drawn at places and from seeds that no fusion
records and that observation_3 does not use either, so that nothing is chosen on the pictures that prove it.

identity     image-alignment with the concept's own pictures
identified   share of the pictures nearest to the right one of the group (chance: 1 / its size)
drift        how far prompts without any concept moved, relative to the difference between two seeds (one per group)
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ..engine.evaluation import Scorer, image_scores, load_scorer
from ..engine.fusion import DRIFT_PROMPTS, drift, gradient_fusion, weight_fusion
from ..engine.fusion.settings import default_ridge
from ..files.data import ConceptData
from ..model import DiffusionModel
from .observations import GROUPS, about, identified
from .study import Study, difference, tuned

ALONE, AVERAGE = "alone", "average"
WAYS: dict[str, dict] = {  # label -> settings of gradient_fusion, all others at their defaults
    **{f"ridge {ridge:g}": {"ridge": ridge} for ridge in (1.0, 0.3, 0.1, 0.03)},
    "ridge auto": {"ridge": "auto"},
    "towards W0 0.1": {"ridge": 0.1, "towards": "base"},
    "two prompts": {"ridge": 0.1, "prompts": ("photo of a {}", "{}"), "guidance": 1.0},  # what the paper records
    "LBFGS 20/20/5": {"solver": "lbfgs", "iterations": (20, 20, 5)},
    "LBFGS 500/500/50": {"solver": "lbfgs"},
}
OPTIONS: dict[str, dict] = {
    "default": {},
    "no guidance": {"guidance": 1.0},
    "preserve 1": {"preserve": 1.0},
    "balanced": {"balance": True},
    "in the span": {"span": True},
    "refined once": {"refine": 1},
    "keys, values 0.01": {"ridge": (default_ridge(3), 0.01, default_ridge(3))},
    "spatial layers 0.1": {"ridge": (default_ridge(3), default_ridge(3), 0.1)},
}
HELD_OUT = ("a {} on the moon", "a {} in the desert at sunset")
SEED = 300
DRAWN_FOR_DRIFT = DRIFT_PROMPTS[:2]  # of the drift


def fusion_sweep(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    groups: Mapping[str, Sequence[str]] = GROUPS,
    ways: Mapping[str, dict] = WAYS,
    prompts: Sequence[str] = HELD_OUT,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
    name: str = "fusion_sweep",
    against: str = AVERAGE,
) -> Study:
    """Rows per way, concept and tuning seed: group, identity, identified, drift; the ways include `alone`, `average`.

    The claims compare every way with `against`, identity only; `about["means"]` has all three numbers of each way. The
    figure sets identity against drift.
    """
    scorer, labels = load_scorer(scorer), (ALONE, AVERAGE, *ways)
    options = {"groups": {k: list(v) for k, v in groups.items()}, "ways": dict(ways), "prompts": list(prompts)}
    study = Study(name, [], about=about(base, **options, seeds=list(seeds), pictures=n))
    for group, names in groups.items():
        references = {member: scorer.image_features(data[member].pictures) for member in names}
        for seed in seeds:
            concepts = {member: tuned(base, data[member], "ed_lora", seed, folder, steps=steps) for member in names}
            for way in labels:
                fused, moved = fuse(base, list(concepts.values()), way, ways.get(way, {}))
                for member, concept in concepts.items():
                    drawn = draw_held_out(fused or base.with_concept(concept), concept.phrase, prompts, n)
                    study.pictures.setdefault((member, way), [drawn[0], drawn[n]])
                    row = {"group": group, "way": way, "concept": member, "seed": seed}
                    row["identity"] = float(image_scores(drawn, data[member].pictures, scorer).mean())
                    row["identified"] = identified(scorer.image_features(drawn), references, member)
                    study.rows.append(row | {"drift": moved})
                found = [row for row in study.rows if row["way"] == way and row["group"] == group]
                print(f"{group} {way:18}" + "".join(f"  {k} {v:.3f}" for k, v in means(found).items()), flush=True)
    conclude(study, tuple(groups), tuple(ways), against)
    return study


def fuse(base: DiffusionModel, concepts: list, way: str, settings: Mapping) -> tuple[DiffusionModel | None, float]:
    """One way's fused model and its drift; (None, 0) for `alone`, where each concept is drawn by itself."""
    if way == ALONE:
        return None, 0.0
    if way == AVERAGE:
        fused = weight_fusion(base, concepts)
    else:
        fused = gradient_fusion(base, concepts, progress=False, **settings)
    return fused, drift(base, fused, DRAWN_FOR_DRIFT, seeds=(0, 1), progress=False).share


def draw_held_out(model: DiffusionModel, phrase: str, prompts: Sequence[str], n: int) -> list:
    """n pictures of a concept at every held-out place."""
    return [p for prompt in prompts for p in model.sample(prompt.format(phrase), n=n, seed=SEED, progress=False)]


def conclude(study: Study, groups: Sequence[str], ways: Sequence[str], against: str) -> None:
    """Give a study of complete rows its claims, its means and its figure."""
    than = "by averaging" if against == AVERAGE else f"by {against}"
    for way in ways:
        if way != against:
            found = difference(study.rows, "way", way, against, "identity")
            study.claim(f"{way}: more of each identity than {than}", found)
    by_group = {group: [row for row in study.rows if row["group"] == group] for group in groups}
    study.about["means"] = means_by_way(study.rows, ways)
    study.about["means by group"] = {group: means_by_way(rows, ways) for group, rows in by_group.items()}
    study.figure = figure(study.about["means by group"])


def means_by_way(rows: Sequence[dict], ways: Sequence[str]) -> dict[str, dict[str, float]]:
    """Way -> the means of its rows."""
    return {way: means([row for row in rows if row["way"] == way]) for way in (ALONE, AVERAGE, *ways)}


def figure(found: Mapping[str, Mapping[str, Mapping]]):
    """Identity against drift, a panel per group: up is kept, left is left alone; the dotted line is each one alone."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(4.6 * len(found), 3.8), layout="constrained")
    axes = drawn.subplots(1, len(found), sharex=True, sharey=True, squeeze=False)[0]
    far = max(point["drift"] for ways in found.values() for point in ways.values())
    top = max(point["identity"] for ways in found.values() for point in ways.values())
    for ax, (group, ways) in zip(axes, found.items(), strict=True):
        ax.axhline(ways[ALONE]["identity"], color="black", lw=0.7, ls=":")
        last = {"left": -1.0, "right": -1.0}  # heights of the labels below, on either side of their points
        for way, point in sorted(ways.items(), key=lambda item: item[1]["identity"]):
            if way == ALONE:
                continue
            x, y = point["drift"], point["identity"]
            ax.plot(x, y, "s" if way == AVERAGE else "o", color="gray" if way == AVERAGE else "tab:green", ms=5)
            side = "right" if x > 0.6 * far else "left"  # of the label that touches the point
            last[side] = max(y, last[side] + 0.016)
            shift = (-0.025 if side == "right" else 0.025) * far
            leader = {"arrowstyle": "-", "lw": 0.4, "color": "gray"} if last[side] > y else None
            ax.annotate(way, (x, y), (x + shift, last[side]), fontsize=7, va="center", ha=side, arrowprops=leader)
            top = max(top, last[side])
        ax.set(title=group, xlabel="drift of prompts without a concept", xlim=(0, 1.05 * far))
    axes[0].set_ylim(top=top + 0.02)
    axes[0].set_ylabel("identity kept (image-alignment)")
    return drawn


def means(rows: Sequence[dict]) -> dict[str, float]:
    """Mean identity, identified and drift of some rows."""
    return {key: round(float(np.mean([row[key] for row in rows])), 4) for key in ("identity", "identified", "drift")}
