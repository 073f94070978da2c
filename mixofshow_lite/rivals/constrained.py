"""Custom Diffusion's merge of several concepts (paper 4.2, its reference [11], Eq. 4 there): keys and values only.

    W* = argmin_W || W C_reg^T - W0 C_reg^T ||_F   such that   W c = (W0 + dW_i) c  for the words c of every concept i

    Custom Diffusion   here         shape
    C_reg              regular      (d_in, d_in)   Gram of the context of prompts without concepts
    C                  rows[i]      (s_i, d_in)    context at concept i's words and at the end of its prompts
    V                  (implied)    (d_out, s_i)   what concept i's own keys or values make of its rows

The constraint is met exactly and the rest of the language is disturbed least. It says nothing about the text encoder
and the spatial layers, which Custom Diffusion does not tune: where a concept updates them they are averaged (Eq. 2).

Not as in the official research branch: C_reg is made of 8 prompts with their begin token and padding, with a ridge of
1e-4 (officially of 200 captions, without both and without a ridge; `plain` and `ridge` change that), and the words
are read in one template instead of two (`prompts`). Given the same rows, the merged weights are the same.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..engine.fusion import algebra
from ..engine.fusion.gradient import CONTEXT, TEXT, layer_report, stage_layers
from ..engine.fusion.grams import feed, record_context
from ..engine.fusion.report import STAGES, FusionReport
from ..engine.fusion.settings import PLAIN_PROMPTS, Settings
from ..engine.fusion.weight import NETS, averaged, check_concepts, layer_factors, updating, with_factors
from ..files.concept import Concept, bind
from ..files.warn import warn
from ..model import DiffusionModel

PROMPTS = ("photo of a {}",)
MET = 1e-6  # a larger residual means that the concepts' constraints contradict each other


def constrained_fusion(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    prompts: Sequence[str] | Mapping[str, Sequence[str]] = PROMPTS,
    plain: Sequence[str] = PLAIN_PROMPTS,
    ridge: float = 1e-4,
    progress: bool = True,
) -> DiffusionModel:
    """The base with keys and values merged under Custom Diffusion's constraint and all words; the rest averaged.

    `prompts` name the concepts, `plain` none: the more of them, the better the base is kept. `ridge` is relative to
    the mean diagonal of their Gram. Raises ValueError on unusable concepts and when the constraints outnumber the
    width of the text features; warns where concepts contradict each other.
    """
    chosen = Settings(prompts=prompts, plain=plain, ridge=ridge)
    concepts, w = check_concepts(base, concepts)
    worded = base.with_words(*concepts)
    concepts, w = updating(concepts, w)
    contexts = {concept.name: chosen.contexts(concept) for concept in concepts}
    names = stage_layers(concepts, CONTEXT)[1]
    others = [n for stage in STAGES if stage not in (TEXT, CONTEXT) for n in stage_layers(concepts, stage)[1]]
    factors = {
        "text_encoder": averaged(base, concepts, "text_encoder", stage_layers(concepts, TEXT)[1], w),
        "unet": averaged(base, concepts, "unet", others, w),
    }
    reader = with_factors(worded, {"text_encoder": factors["text_encoder"]})
    regular = record_context(reader, names, list(plain)) if names else None
    rows = [word_rows(reader, contexts[c.name], c) for c in concepts] if names else []  # n x (L, s_i, D)
    places = {f"{layer}.context": index for index, layer in enumerate(base.layers)}
    layers = []
    for name in tqdm(names, disable=not progress, desc="fusing", leave=False):
        own = layer_factors(base, concepts, "unet", name)
        here = [each[places[feed(name)]] for each in rows]  # n x (s_i, D)
        pair, condition = algebra.constrained(regular.grams[feed(name)], here, own, ridge)
        grams, counts = [c.T @ c / len(c) for c in here], tuple(len(c) for c in here)
        report = layer_report(CONTEXT, name, own, grams, pair, w, counts, relative=ridge, condition=condition)
        factors["unet"][name] = algebra.compact(pair)
        layers.append(report)
    warn_if_unmet(layers, concepts)
    fused = with_factors(worded, {net: factors[net] for net in NETS})
    settings = {"weights": tuple(w.tolist()), "ridge": ridge}
    fused.report = FusionReport("constrained fusion", tuple(c.name for c in concepts), settings, layers, factors)
    return fused


@torch.no_grad()
def word_rows(model: DiffusionModel, prompts: list[str], concept: Concept) -> Tensor:
    """(L, s, D) float64: context at the concept's phrase and at the end token after it, of every prompt.

    A concept without words has the whole prompt up to its end, without the begin token, which all prompts share.
    """
    found = []
    for prompt in prompts:
        context = model.context(prompt)[0]  # (L, N, D)
        phrase = concept.phrase or concept.class_word
        start, stop = prompt.find(phrase), prompt.find(phrase) + len(phrase)
        end = count(model, prompt) + 1  # position of the end token
        if phrase and start >= 0:
            kept = [*range(count(model, prompt[:start]) + 1, count(model, prompt[:stop]) + 1), end]
        else:
            kept = list(range(1, end + 1))
        found.append(context[:, sorted({min(k, model.tokens - 1) for k in kept})])
    rows = algebra.double(torch.cat(found, dim=1)).cpu()
    if rows.shape[1] > rows.shape[2]:
        raise ValueError(
            f"{rows.shape[1]} constraints of {concept.name!r} do not fit into text features of width {rows.shape[2]}: "
            "give fewer prompts."
        )
    return rows


def count(model: DiffusionModel, prompt: str) -> int:
    """Tokens of a prompt, without its begin and end, as far as they fit."""
    bound = bind(model.tokenizer, [prompt], list(model.words))
    ends = (bound.ids[0] == model.tokenizer.eos_token_id) & (bound.slots[0] < 0)
    return int(ends[1:].nonzero()[0])


def warn_if_unmet(layers: list, concepts: list[Concept]) -> None:
    """One sentence if some concept's constraint is not met: two concepts want different outputs for the same rows."""
    for index, concept in enumerate(concepts):
        worst = max((layer.after[index] for layer in layers if layer.energy[index] > 0), default=0.0)
        if worst > MET:
            warn(
                f"{worst:.1%} of what {concept.name!r} asks for is not met, because other concepts ask for something "
                "else at nearly the same words: give fewer prompts, or other words."
            )
            return
