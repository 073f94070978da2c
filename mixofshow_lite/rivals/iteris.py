"""IterIS (Chen et al., "Iterative Inference-Solving Alignment", CVPR 2025): refine on what the merged model sees.

    U* = (sum_i c_i dW_i X_i Y_i^T) (sum_i c_i Y_i Y_i^T)^-1,    c_i = || W_i ||_F^2 / || W_i X_i ||_F^2

    paper   here             shape
    X_i     (streamed)       (d_in, rows)      inputs of a layer under model i, W_i = W0 + dW_i
    Y_i     (streamed)       (d_in, rows)      under the merged model, row for row on the same inputs; X_i at first
            moments.own      (d_in, d_in)      X_i X_i^T
            moments.cross    (d_in, d_in)      X_i Y_i^T
            moments.merged   (d_in, d_in)      Y_i Y_i^T

Solve, let the merged model run, solve again. To X_i Y_i^T and Y_i Y_i^T a ridge times their own norm is added, as in
the authors' code, which solves for updates and not for whole weights (its option `with_pretrain_matrix` = 0). Ours: the
inputs are drawn from words (`drawn`), 3 rounds instead of up to 24, and the ridge 1e-4 of the upper end of theirs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..engine import lora
from ..engine.fusion import algebra
from ..engine.fusion.grams import GramRecorder, feed
from ..engine.fusion.settings import Settings
from ..engine.fusion.weight import NETS, check_concepts, layer_factors, updated_layers, updating
from ..files.concept import Concept, LoRAFactors
from ..model import DiffusionModel
from .drawn import Drawn, draw_inputs, run
from .layers import changes, merged_model, no_change, own_model

RIDGE, ROUNDS = 1e-4, 3


@dataclass
class Moments:
    """Second moments of one layer's inputs under a concept's own model and under the merged one."""

    own: Tensor
    cross: Tensor
    merged: Tensor


def iteris_fusion(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    rounds: int = ROUNDS,
    ridge: float = RIDGE,
    recording: Settings | None = None,
    progress: bool = True,
) -> DiffusionModel:
    """The base with the concepts merged by IterIS; `rounds` is how often the layers are solved.

    Raises ValueError on rounds below 1 or unusable concepts.
    """
    if rounds < 1:
        raise ValueError(f"rounds={rounds}: solve at least once.")
    concepts, w = check_concepts(base, concepts)
    members, _ = updating(concepts, w)
    recording, merged = recording or Settings(), None
    models = [own_model(base, concepts, member) for member in members]
    drawn = [draw_inputs(model, member, recording) for model, member in zip(models, members, strict=True)]
    names = {net: updated_layers(members, net) for net in NETS}
    for _ in tqdm(range(rounds), disable=not progress, desc="merging", leave=False):
        seen = [record_pair(model, merged, inputs, names) for model, inputs in zip(models, drawn, strict=True)]
        factors: dict[str, LoRAFactors] = {net: {} for net in NETS}
        for net in NETS:
            weights = lora.adaptable(getattr(base, net))
            for name in names[net]:
                own = layer_factors(base, members, net, name)
                kept = [i for i, pair in enumerate(own) if changes(pair)]
                pair = no_change(base, members, net, name)
                if kept:
                    W0 = algebra.double(weights[name].weight.detach().flatten(1)).cpu()
                    pair = iteris([own[i] for i in kept], [seen[i][feed(name)] for i in kept], W0, ridge)
                factors[net][name] = algebra.compact(pair)
        merged = merged_model(base, concepts, factors, "IterIS", rounds=rounds, ridge=ridge)
    return merged


def iteris(
    own: list[algebra.LowRankPair], seen: list[Moments], W0: Tensor, ridge: float = RIDGE
) -> algebra.LowRankPair:
    """One layer, solved once, factored: down (R, d_in), up (d_out, R)."""
    downs, total = [], torch.zeros_like(seen[0].merged)
    for (down, up), moments in zip(own, seen, strict=True):
        weight = W0 + up @ down
        c = weight.square().sum() / ((weight @ moments.own) * weight).sum()
        downs.append(c * (down @ regular(moments.cross, ridge)))
        total = total + c * regular(moments.merged, ridge)
    solved = torch.linalg.solve(total.T, torch.cat(downs).T).T  # (R, d_in)
    return solved, torch.cat([up for _, up in own], dim=1)


def regular(moment: Tensor, ridge: float) -> Tensor:
    """A moment (d_in, d_in) with `ridge` times its norm added to the diagonal."""
    return moment + ridge * moment.norm() * torch.eye(len(moment), dtype=moment.dtype)


class RowRecorder(GramRecorder):
    """The inputs of the named linears as they are, one feed after the other: what Grams of two models need."""

    def __init__(self, linears: dict[str, nn.Module]):
        super().__init__(linears)
        self.rows_of: dict[str, list[Tensor]] = {}

    def add(self, key: str, x: Tensor) -> None:
        """Keep the rows of x (B, N, d_in) or (B, d_in, h, w)."""
        if x.ndim == 4:
            x = x.flatten(2).transpose(1, 2)
        self.rows_of.setdefault(key, []).append(x.detach().flatten(0, -2).float())
        self.sums[key] = x.new_zeros(())  # it was seen


def record_pair(
    model: DiffusionModel, merged: DiffusionModel | None, inputs: Drawn, names: dict[str, list[str]]
) -> dict[str, Moments]:
    """Moments by feed, summed over the prompts; one prompt's rows are held at once. Without a merged model Y = X."""
    found: dict[str, Moments] = {}
    for number, prompt in enumerate(inputs.prompts):
        one = Drawn((prompt,), inputs.latents[number : number + 1], inputs.times[number : number + 1], inputs.guided)
        first = rows_of(model, one, names)
        second = first if merged is None else rows_of(merged, one, names)
        for key, x in first.items():
            y = second[key]
            moments = [algebra.double(a.T @ b).cpu() for a, b in ((x, x), (x, y), (y, y))]
            before = found.get(key)
            if before is not None:
                moments = [new + old for new, old in zip(moments, vars(before).values(), strict=True)]
            found[key] = Moments(*moments)
    return found


def rows_of(model: DiffusionModel, inputs: Drawn, names: dict[str, list[str]]) -> dict[str, Tensor]:
    """feed -> the rows (rows, d_in) that every layer sees of the inputs."""
    linears = {}
    for net in NETS:
        layers = lora.adaptable(getattr(model, net))
        linears |= {name: layers[name] for name in names[net]}
    with RowRecorder(linears) as recorder:
        run(model, inputs)
    return {key: torch.cat(rows) for key, rows in recorder.rows_of.items()}
