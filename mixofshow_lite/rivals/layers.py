"""What the rivals share: a merge of one layer becomes a merged model, and what a center node may record for one.

    here       shape
    own        n x (down (r_i, d_in), up (d_out, r_i))   one layer's update dW_i = up_i down_i of every concept
    grams      n x (d_in, d_in)                          X_i X_i^T / rows_i of the inputs that concept i's model saw
    rows       n                                         how many there were

A merge of factors looks at `own` alone; a merge of recordings at the Grams as well. The rivals' authors take the inputs
from each task's data. A center node has none (paper 3.2), so here they are what each concept's own model sees while it
draws its words, in the prompts of `engine.fusion.settings`: what gradient fusion records too, and no picture.
"""

from collections.abc import Callable, Sequence

from torch import Tensor
from tqdm.auto import tqdm

from ..engine.fusion import algebra
from ..engine.fusion.gradient import record, stage_layers
from ..engine.fusion.grams import Statistics, feed
from ..engine.fusion.report import STAGES, FusionReport
from ..engine.fusion.settings import Settings
from ..engine.fusion.weight import NETS, check_concepts, layer_factors, updated_layers, updating, with_factors
from ..files.concept import Concept, LoRAFactors
from ..model import DiffusionModel

Merge = Callable[[list[algebra.LowRankPair]], algebra.LowRankPair]
RecordedMerge = Callable[[list[algebra.LowRankPair], list[Tensor], list[int]], algebra.LowRankPair]


def merge_factors(
    base: DiffusionModel, concepts: Sequence[Concept], merge: Merge, method: str, **settings
) -> DiffusionModel:
    """The base with `merge` of every layer's updates and all words. Nothing is recorded.

    Concepts that leave a layer alone are not handed to the merge of that layer. Raises ValueError on unusable concepts.
    """
    concepts, w = check_concepts(base, concepts)
    members, _ = updating(concepts, w)
    factors: dict[str, LoRAFactors] = {net: {} for net in NETS}
    for net in NETS:
        for name in updated_layers(members, net):
            own = [pair for pair in layer_factors(base, members, net, name) if changes(pair)]
            factors[net][name] = algebra.compact(merge(own) if own else no_change(base, members, net, name))
    return merged_model(base, concepts, factors, method, **settings)


def merge_recorded(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    merge: RecordedMerge,
    method: str,
    recording: Settings | None = None,
    progress: bool = True,
    **settings,
) -> DiffusionModel:
    """The base with `merge` of every layer's updates and recordings, and all words.

    Each concept is recorded under its own model in all layers, as these rivals' authors have it; gradient fusion
    records each stage with the earlier ones fused. Raises ValueError on unusable concepts.
    """
    concepts, w = check_concepts(base, concepts)
    members, _ = updating(concepts, w)
    recording, factors = recording or Settings(), {net: {} for net in NETS}
    with tqdm(total=len(STAGES) * len(members), disable=not progress, desc="merging", leave=False) as bar:
        for stage in STAGES:  # one after the other, so that only one stage's Grams are held at once
            net, names = stage_layers(members, stage)
            if not names:
                continue
            seen = []
            for member in members:
                seen.append(record_own(own_model(base, concepts, member), member, stage, names, recording))
                bar.update()
            for name in names:
                factors[net][name] = algebra.compact(merge_layer(base, members, seen, net, name, merge))
    return merged_model(base, concepts, factors, method, **settings)


def merge_layer(
    base: DiffusionModel,
    members: list[Concept],
    seen: Sequence[Statistics],
    net: str,
    name: str,
    merge: RecordedMerge,
) -> algebra.LowRankPair:
    """One layer's merge of recordings, by those concepts that change the layer at all."""
    found = layer_factors(base, members, net, name)
    kept = [i for i, pair in enumerate(found) if changes(pair)]
    if not kept:
        return no_change(base, members, net, name)
    key = feed(name)
    return merge([found[i] for i in kept], [seen[i].grams[key] for i in kept], [seen[i].rows[key] for i in kept])


def record_own(model: DiffusionModel, concept: Concept, stage: str, names: list[str], recording: Settings):
    """The inputs of a stage's layers while the concept's own model reads and draws the concept's prompts."""
    return record(model, None, stage, names, recording.contexts(concept, stage), recording)


def own_model(base: DiffusionModel, concepts: Sequence[Concept], concept: Concept) -> DiffusionModel:
    """W0 + dW_i of one concept, with the words of all."""
    scaled = {
        net: {name: (down, concept.scale * up) for name, (down, up) in found.items()}
        for net, found in concept.lora.items()
    }
    return with_factors(base.with_words(*concepts), scaled)


def merged_model(
    base: DiffusionModel, concepts: Sequence[Concept], factors: dict[str, LoRAFactors], method: str, **settings
) -> DiffusionModel:
    """The base with merged factors and all words, and a report of how it came about."""
    merged = with_factors(base.with_words(*concepts), factors)
    merged.report = FusionReport(method, tuple(c.name for c in concepts), settings, factors=factors)
    return merged


def changes(pair: algebra.LowRankPair) -> bool:
    """Whether an update is there and not zero."""
    down, up = pair
    return bool(down.any()) and bool(up.any())


def no_change(base: DiffusionModel, concepts: Sequence[Concept], net: str, name: str) -> algebra.LowRankPair:
    """Factors of rank 0 for a layer that no concept changes in effect."""
    down, up = layer_factors(base, concepts[:1], net, name)[0]
    return algebra.no_update(down.shape[1], up.shape[0])


def stacked(own: Sequence[algebra.LowRankPair]) -> algebra.LowRankPair:
    """The plain sum of all updates, factored: down (R, d_in), up (d_out, R), R = sum r_i."""
    return algebra.average(list(own), own[0][0].new_ones(len(own)))
