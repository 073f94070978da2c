"""How many concepts fit into one model? Identity loss against their number, which the paper does not show (3.2, 3.3.2).

    python -m mixofshow_lite.paper how_many

The first k concepts of an order in which neighbours are no look-alikes are fused in every way, k = 2 ... 14, and every
member is drawn from the same seeds, at places that no fusion records, by its own model and by the fused one. Places
and seeds are observation_3's, not those that fusion_sweep chose the defaults on.

single, fused   image-alignment before and after;  kept = fused - single, 0 is no loss
identified      share of the pictures nearest to the right one of *all* concepts of the study (chance: 1 / their number)
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..engine.evaluation import Scorer, image_scores, load_scorer
from ..engine.fusion import gradient_fusion, weight_fusion
from ..files.data import ConceptData
from ..model import DiffusionModel
from ..rivals import constrained_fusion, peft_fusion
from .fusions import PROMPTS, SEED
from .observations import about, draw_at, identified
from .study import Study, difference, tuned

ORDER = ("bibi", "rusty", "mochi", "kiki", "volt", "fern", "momo", "pixel", "bruno", "tango", "lava", "polka", "beetle",
         "zigzag")  # fmt: skip
SIZES = (2, 3, 5, 8, 14)
COLOURS = ("tab:gray", "tab:green", "tab:olive", "tab:orange", "tab:blue", "tab:red", "tab:purple", "tab:brown")
UNRECORDED = PROMPTS[1:]
WAYS: dict[str, Callable] = {
    "averaging": weight_fusion,
    "gradient fusion": lambda base, concepts: gradient_fusion(base, concepts, progress=False),
    "a ridge of 0.03": lambda base, concepts: gradient_fusion(base, concepts, ridge=0.03, progress=False),
    "LBFGS 20/20/5": lambda base, concepts: gradient_fusion(
        base, concepts, solver="lbfgs", iterations=(20, 20, 5), progress=False
    ),
    "LBFGS 500/500/50": lambda base, concepts: gradient_fusion(base, concepts, solver="lbfgs", progress=False),
    "Custom Diffusion's merge": lambda base, concepts: constrained_fusion(base, concepts, progress=False),
    "peft's TIES": lambda base, concepts: peft_fusion(base, concepts, "ties"),
}


def how_many(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    names: Sequence[str] = ORDER,
    sizes: Sequence[int] = SIZES,
    ways: Mapping[str, Callable] = WAYS,
    prompts: Sequence[str] = UNRECORDED,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """Rows per size, way, member and tuning seed: size, single, fused, kept, identified.

    `n` pictures of each member, dealt out to the prompts. The claims: every way above averaging at every size, and, on
    the concepts of the smallest model, whether a way loses more in the largest one. Raises ValueError on sizes that
    the names cannot fill.
    """
    if not sizes or min(sizes) < 1 or max(sizes) > len(names):
        raise ValueError(f"sizes {tuple(sizes)} with {len(names)} concepts: give sizes from 1 to {len(names)}.")
    sizes, scorer, rows = sorted(sizes), load_scorer(scorer), []
    references = {name: scorer.image_features(data[name].pictures) for name in names}

    for seed in seeds:
        concepts = {name: tuned(base, data[name], "ed_lora", seed, folder, steps=steps) for name in names[: max(sizes)]}
        singles = {}
        for name, concept in concepts.items():
            drawn = draw_at(base.with_concept(concept), concept, prompts, n, SEED)
            singles[name] = float(image_scores(drawn, data[name].pictures, scorer).mean())
        for size in sizes:
            members = [concepts[name] for name in names[:size]]
            for way, fuse in ways.items():
                fused = fuse(base, members)
                for name, concept in zip(names[:size], members, strict=True):
                    drawn = draw_at(fused, concept, prompts, n, SEED)
                    after = float(image_scores(drawn, data[name].pictures, scorer).mean())
                    row = {"size": size, "way": way, "setting": f"{way}, {size}", "concept": name, "seed": seed}
                    row |= {"single": singles[name], "fused": after, "kept": after - singles[name]}
                    rows.append(row | {"identified": identified(scorer.image_features(drawn), references, name)})
                own = [row for row in rows if row["way"] == way and row["size"] == size]
                print(f"{size:3} {way:22} kept {np.mean([row['kept'] for row in own]):+.3f}", flush=True)
    options = {"names": list(names), "prompts": list(prompts), "seeds": list(seeds), "pictures": n}
    return judged(base, rows, **options)


def judged(base: DiffusionModel, rows: Sequence[dict], **options) -> Study:
    """The study of such rows: every way above the first one, averaging, at every size; losses of few and of many."""
    ways, sizes = list(dict.fromkeys(row["way"] for row in rows)), sorted({row["size"] for row in rows})
    study = Study("how_many", list(rows), about=about(base, sizes=sizes, ways=ways, **options))
    averaged = ways[0]
    for way in ways[1:]:
        for size in sizes:
            found = difference(rows, "setting", f"{way}, {size}", f"{averaged}, {size}", "kept")
            study.claim(f"{size} concepts: {way} keeps more than {averaged}", found)
    few, many = sizes[0], sizes[-1]
    if few < many:
        for way in ways:
            found = difference(rows, "setting", f"{way}, {few}", f"{way}, {many}", "kept")
            study.claim(f"{way}: {many} concepts in one model lose more than {few}", found)
    table = study.table("way", "size", value="kept")
    study.about["kept"] = {way: {size: round(table[way, size][0], 4) for size in sizes} for way in ways}
    study.figure = figure(study, sizes, ways)
    return study


def figure(study: Study, sizes: Sequence[int], ways: Sequence[str]):
    """Identity kept against the number of concepts: the mean over members with its standard error, one line a way."""
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(8.6, 2.8), layout="constrained")
    axes = drawn.subplots(1, 2)
    for ax, value, label in zip(
        axes, ("kept", "identified"), ("fused - single (0: no loss)", "nearest to the right concept"), strict=True
    ):
        for way, colour in zip(ways, COLOURS, strict=False):
            table = study.table("way", "size", value=value)
            mean = [table[way, size][0] for size in sizes]
            error = [table[way, size][1] / table[way, size][2] ** 0.5 for size in sizes]
            ax.errorbar(sizes, mean, error, marker="o", ms=4, capsize=2, color=colour, label=way)
        ax.set(xlabel="concepts in one model", ylabel=label, xticks=list(sizes))
    axes[0].axhline(0, color="black", lw=0.5)
    drawn.legend(*axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False, fontsize=8)
    return drawn
