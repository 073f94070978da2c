"""Observation 3 (paper 3.3.2, Fig. 3 e-f, Fig. 7 a-b, Table 2a): what each way to fuse keeps of every identity.

    paper                       here
    single -> fused             image-alignment of (Phi_0 + dPhi_i)(P_i) and of Phi(P_i), the same seeds
    identity loss               single - fused, per concept
    LoRA + weight fusion        ("lora", "weight")
    ED-LoRA + weight fusion     ("ed_lora", "weight")
    ED-LoRA + gradient fusion   ("ed_lora", "gradient")      Mix-of-Show

Seeds and prompts are not the ones that gradient fusion records.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..engine.evaluation import Scorer, image_scores, load_scorer
from ..engine.fusion import gradient_fusion, weight_fusion
from ..files.data import ConceptData
from ..model import DiffusionModel
from .observations import LOOK_ALIKES, about, grid_figure, identified
from .study import Study, difference, tuned

WAYS: dict[str, tuple[str, Callable]] = {  # label -> (recipe, how to fuse)
    "LoRA, weight": ("lora", weight_fusion),
    "ED-LoRA, weight": ("ed_lora", weight_fusion),
    "ED-LoRA, gradient": ("ed_lora", lambda base, concepts: gradient_fusion(base, concepts, progress=False)),
}
PROMPTS = ("photo of a {}", "a {} in the snow", "a {} in the desert")  # the last two are never recorded
SEED = 100  # recordings use seeds from 0


def observation_3(
    base: DiffusionModel,
    folder,
    data: Mapping[str, ConceptData],
    names: Sequence[str] = LOOK_ALIKES,
    ways: Mapping[str, tuple[str, Callable]] = WAYS,
    prompts: Sequence[str] = PROMPTS,
    seeds: Sequence[int] = (0,),
    n: int = 4,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
) -> Study:
    """Fuse look-alikes in every way and compare each concept before and after.

    Rows, one per way, concept and tuning seed: `single` and `fused` image-alignment over all prompts, `kept` (fused -
    single, 0 is no loss), `identified` (share of fused pictures nearest to the right one of the look-alikes).
    """
    scorer, rows, pictures = load_scorer(scorer), [], {}
    references = {name: scorer.image_features(data[name].pictures) for name in names}

    def draw(model, concept) -> list:
        drawn = [model.sample(p.format(concept.phrase), n=n, seed=SEED, progress=False) for p in prompts]
        return [picture for row in drawn for picture in row]

    for seed in seeds:
        alone: dict[tuple[str, str], list] = {}
        for way, (recipe, fuse) in ways.items():
            concepts = {name: tuned(base, data[name], recipe, seed, folder, steps=steps) for name in names}
            fused = fuse(base, list(concepts.values()))
            for name, concept in concepts.items():
                if (recipe, name) not in alone:
                    alone[recipe, name] = draw(base.with_concept(concept), concept)
                before, after = alone[recipe, name], draw(fused, concept)
                pictures.setdefault((name, recipe), [before[0], before[n]])
                pictures.setdefault((name, way), [after[0], after[n]])
                single, together = (float(image_scores(p, data[name].pictures, scorer).mean()) for p in (before, after))
                row = {"way": way, "concept": name, "seed": seed, "single": single, "fused": together}
                row |= {"kept": together - single}
                rows.append(row | {"identified": identified(scorer.image_features(after), references, name)})
    study = Study(
        "observation_3",
        rows,
        pictures=pictures,
        about=about(base, prompts=list(prompts), seeds=list(seeds), pictures=n),
    )
    averaged, gradient = "ED-LoRA, weight", "ED-LoRA, gradient"
    if {averaged, gradient} <= set(ways):
        found = difference(rows, "way", gradient, averaged, "fused")
        study.claim("gradient fusion keeps more of an identity than averaging", found)
        found = difference(rows, "way", gradient, averaged, "identified")
        study.claim("gradient fusion's pictures are more often nearest to the right look-alike", found)
    if {"LoRA, weight", averaged} <= set(ways):
        found = difference(rows, "way", averaged, "LoRA, weight", "kept")
        study.claim("averaged ED-LoRAs lose less than averaged LoRAs", found)
    columns = list(dict.fromkeys(label for way, (recipe, _) in ways.items() for label in (recipe, way)))
    study.figure = grid_figure(pictures, list(names), columns)
    study.about["loss"] = {w: float(np.mean([r["single"] - r["fused"] for r in rows if r["way"] == w])) for w in ways}
    return study
