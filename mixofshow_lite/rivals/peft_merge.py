"""peft's own ways to merge adapters, for comparison (paper 3.2): they look at the weights alone, never at the inputs.

    method         what peft does                                              peft's reference
    cat            the sum of the updates, exactly (stacks the factors)        -
    linear         sums the factors, not the updates: a rough approximation    -
    svd            the best approximation of the sum of rank max r_i           -
    ties           trims small entries, elects signs, merges what agrees       TIES-Merging
    dare_linear    drops entries at random and rescales the others             DARE

`ties` and `dare_linear` act on the factors A and B; with `_svd` appended they act on the updates. Nothing is rewritten
here: the concepts become adapters of a copy of the network and `add_weighted_adapter` merges them.
"""

from collections.abc import Sequence

import torch
from peft import LoraConfig, LoraModel
from torch import Tensor, nn

from ..engine import lora
from ..engine.arguments import SEEDS, check_number, check_whole, shown
from ..engine.fusion import algebra
from ..engine.fusion.report import FusionReport
from ..engine.fusion.weight import NETS, check_concepts, layer_factors, updated_layers, with_factors
from ..files.concept import Concept, LoRAFactors
from ..model import DiffusionModel

MERGED = "merged"
ONE_RANK = ("linear", "ties", "dare_ties", "dare_linear", "magnitude_prune")  # add or compare factors entry by entry
DENSITY = 0.5  # share of the entries that ties, dare and magnitude_prune keep


def peft_fusion(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    method: str = "ties",
    weights: Sequence[float] | None = None,
    seed: int = 0,
    **options,
) -> DiffusionModel:
    """The base with the concepts' updates merged by peft's `add_weighted_adapter` and all their words.

    `weights` default to 1 each, as peft's users have it: `cat` is then the plain sum. `options` go to peft: density
    (default 0.5), svd_rank, majority_sign_method. `seed` decides what `dare` drops. Raises ValueError in one sentence
    on unusable concepts and on what peft refuses, such as `ties` of different ranks.
    """
    concepts, w = check_concepts(base, concepts, weights, normalise=False)
    check_whole("seed", seed, *SEEDS)
    check_number("density", options.get("density", DENSITY), 0, 1)
    if not isinstance(method, str):
        raise ValueError(f"There is no method {shown(method)}: give the name of one of peft's, such as 'ties'.")
    if not method.startswith(("cat", "linear", "svd")):
        options.setdefault("density", DENSITY)
    factors = {}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        for net in NETS:
            names = updated_layers(concepts, net)
            members = [i for i, concept in enumerate(concepts) if concept.lora.get(net)]
            own = {name: layer_factors(base, concepts, net, name) for name in names}
            own = {name: [found[i] for i in members] for name, found in own.items()}
            factors[net] = merge(getattr(base, net), own, w[members].tolist(), method, options) if names else {}
    fused = with_factors(base.with_words(*concepts), factors)
    settings = {"weights": tuple(w.tolist()), "seed": seed, **options}
    fused.report = FusionReport(
        f"peft's {method}", tuple(c.name for c in concepts), settings, factors={n: f for n, f in factors.items()}
    )
    return fused


def merge(
    net: nn.Module, own: dict[str, list[algebra.LowRankPair]], weights: list[float], method: str, options: dict
) -> LoRAFactors:
    """One network's layers through peft: `own` holds every concept's factors of every layer, the scale inside `up`."""
    n = len(weights)
    ranks = [max(found[i][0].shape[0] for found in own.values()) for i in range(n)]
    if method in ONE_RANK and len(set(ranks)) > 1:
        instead = "svd" if method == "linear" else f"{method}_svd"
        raise ValueError(
            f"peft's {method!r} needs concepts of one rank, these have {' and '.join(map(str, ranks))}: "
            f"take {instead!r}, which merges the updates themselves, or 'cat', their sum."
        )
    used = [[name for name, found in own.items() if found[i][0].shape[0]] for i in range(n)]
    configs = {
        f"concept{i}": LoraConfig(r=r, lora_alpha=r, lora_dropout=0.0, target_modules=used[i])
        for i, r in enumerate(ranks)
    }
    model = LoraModel(lora.core(lora.share(net)), configs, "concept0")
    for number in range(1, n):
        model.inject_adapter(model.model, f"concept{number}")
    layers = lora.attached(model.model)
    if sorted(layers) != sorted(own):
        raise RuntimeError(f"peft attached {len(layers)} LoRA layers where {len(own)} were expected.")
    for name, layer in layers.items():
        for i, factors in enumerate(own[name]):
            if f"concept{i}" in layer.lora_A:
                put(layer, f"concept{i}", factors, ranks[i])
    try:
        model.add_weighted_adapter(list(configs), weights, MERGED, combination_type=method, **options)
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"peft cannot merge these concepts by {method!r} (ranks {', '.join(map(str, ranks))}): {error}"
        ) from error
    return {name: algebra.compact(take(layer)) for name, layer in layers.items()}


def put(layer: nn.Module, adapter: str, factors: algebra.LowRankPair, rank: int) -> None:
    """Set one adapter of a layer; zero rows make up for a layer of smaller rank than its concept's largest."""
    down, up = (factor.to(torch.float32) for factor in factors)
    missing = rank - len(down)
    down, up = nn.functional.pad(down, (0, 0, 0, missing)), nn.functional.pad(up, (0, missing))
    layer.lora_A[adapter].weight.data = down.to(layer.lora_A[adapter].weight.device)
    layer.lora_B[adapter].weight.data = up.to(layer.lora_B[adapter].weight.device)


def take(layer: nn.Module) -> tuple[Tensor, Tensor]:
    """The merged factors of a layer in float64, peft's scaling inside `up`."""
    down, up = layer.lora_A[MERGED].weight, layer.lora_B[MERGED].weight
    down, up = algebra.as_double((down.detach().cpu(), up.detach().cpu()))
    return down, layer.scaling[MERGED] * up
