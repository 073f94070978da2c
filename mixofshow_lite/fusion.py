"""The center node (paper 3.2 and 3.3.2): many concepts, one model.

    W = f(W0, dW_1, ..., dW_n)                                                            every fusion        (Eq. 3)
    W = W0 + sum_i w_i dW_i,   sum_i w_i = 1                                              weight fusion       (Eq. 2)
    W = argmin_W sum_i || (W0 + dW_i) X_i - W X_i ||_F^2                                  gradient fusion     (3.3.2)

Averaging mixes the concepts, because every update also acts on the other concepts' inputs. Gradient fusion asks for
less: on the inputs X_i that a layer sees while concept i is drawn, it should answer as concept i's own layer does.

    paper   here         shape
    W0      W0           (d_out, d_in)   one layer of the pretrained model, in float64
    dW_i    deltas[i]    (d_out, d_in)   the concept's update of that layer
    X_i     (streamed)   (d_in, rows)    rows = pictures x steps x pixels (or tokens): too many to keep
            grams[i]     (d_in, d_in)    G_i = X_i X_i^T, which is all that the problem needs of X_i
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .diffusion import Model, sample
from .lora import Concept, add_deltas, attention_linears, delta, with_words

Fusion = Callable[[Tensor, list[Tensor], list[Tensor]], Tensor]  # f of Eq. 3: (W0, deltas, grams) -> W


def average(
    W0: Tensor, deltas: list[Tensor], grams: Sequence[Tensor] = (), weights: Sequence[float] | None = None
) -> Tensor:
    """Weight fusion of one layer -> W (d_out, d_in). It does not look at any input; weights are equal unless given."""
    w = torch.ones(len(deltas)) if weights is None else torch.tensor(weights)
    w = w / w.sum()  # the constraint: sum_i w_i = 1
    W = W0.clone()
    for w_i, dW_i in zip(w.tolist(), deltas, strict=True):
        W = W + w_i * dW_i  # Eq. 2 weight fusion
    return W


def objective(W: Tensor, W0: Tensor, deltas: list[Tensor], grams: list[Tensor]) -> Tensor:
    """The loss of any W (d_out, d_in) -> (): how far it is from each concept's own layer, on that concept's inputs."""
    loss = torch.zeros((), dtype=W.dtype)
    for dW_i, G_i in zip(deltas, grams, strict=True):
        gap = W0 + dW_i - W  # (d_out, d_in)
        # || gap X ||_F^2 = tr(gap X X^T gap^T) = tr(gap G gap^T): the inputs are needed no more.
        loss = loss + ((gap @ G_i) * gap).sum()  # 3.3.2 least squares W = argmin sum_i ||(W0 + dW_i) X_i - W X_i||_F^2
    return loss


def closed_form(
    W0: Tensor, deltas: list[Tensor], grams: list[Tensor], ridge: float = 0.0, towards: str = "average"
) -> Tensor:
    """The minimum of the objective, exactly -> W (d_out, d_in): it is linear least squares.

    Setting the gradient to zero gives W G = sum_i (W0 + dW_i) G_i with G = sum_i G_i. Where nothing was recorded, any W
    is a minimum; then W stays at W_prior: "average" (Eq. 2), or "base" (W0), where the paper's LBFGS starts and leaves
    it. A ridge adds lam || W - W_prior ||_F^2 to the objective, lam = `ridge` times the mean diagonal of G: it pulls to
    W_prior everywhere, weakly where inputs are frequent. With 0, prompts that were not recorded may suffer. Together,

        (W - W_prior) (G + lam I) = sum_i (W0 + dW_i - W_prior) G_i

    W - W0 is B_1 .. B_n times something: it has at most rank sum_i r_i, and the fused model is an ordinary LoRA again.
    """
    W_prior = W0 if towards == "base" else average(W0, deltas)  # (d_out, d_in)
    right_side = torch.zeros_like(W0)  # (d_out, d_in)
    for dW_i, G_i in zip(deltas, grams, strict=True):
        right_side = right_side + (W0 + dW_i - W_prior) @ G_i
    G = torch.stack(grams).sum(dim=0)  # (d_in, d_in)
    lam = ridge * G.diagonal().mean()  # 3.3.2 ridge (ours)
    eye = torch.eye(len(G), dtype=G.dtype)
    # pinv is the inverse where there is one; in directions that no input has (few tokens, wide layers) it gives 0.
    return W_prior + right_side @ torch.linalg.pinv(G + lam * eye, hermitian=True)  # 3.3.2 closed form (ours)


def lbfgs(W0: Tensor, deltas: list[Tensor], grams: list[Tensor], iterations: int = 500) -> Tensor:
    """The paper's solver of the same problem (4.1: 500 iterations for text, 50 for the U-Net) -> W (d_out, d_in)."""
    start = objective(W0, W0, deltas, grams).clamp(min=1e-30)

    def loss(W: Tensor) -> Tensor:
        return objective(W, W0, deltas, grams) / start  # 1 at W0, so that tolerances mean the same in every layer

    return minimise(loss, W0, iterations)


def minimise(loss: Callable[[Tensor], Tensor], start: Tensor, iterations: int) -> Tensor:
    """The best W (d_out, d_in) that LBFGS sees on its way from `start`; `loss` gives the number () of a W."""
    W = start.clone().requires_grad_()
    optimizer = torch.optim.LBFGS(  # 3.3.2 LBFGS
        [W],
        lr=1,
        max_iter=iterations,
        history_size=25,
        tolerance_grad=1e-16,
        tolerance_change=1e-16,
        line_search_fn="strong_wolfe",
    )
    best = [float("inf"), start]

    def closure() -> Tensor:
        optimizer.zero_grad()
        now = loss(W)
        now.backward()
        if now.item() < best[0]:
            best[:] = [now.item(), W.detach().clone()]  # a line search may end on a worse point than it saw
        return now

    with torch.enable_grad():
        optimizer.step(closure)
    return best[1]


@contextmanager
def recorded_grams(linears: dict[str, nn.Module]) -> Iterator[dict[str, Tensor]]:
    """While on, add up X X^T of the named layers' inputs -> name -> (d_in, d_in).

    Memory is d_in^2 a layer, whatever the number of steps, pictures and prompts; the official code keeps every X_i, 5.5
    GB a concept. Raises RuntimeError if a layer saw nothing.
    """
    grams: dict[str, Tensor] = {}

    def record(name: str, x: Tensor) -> None:
        rows = x.detach().flatten(0, -2).cpu().double()  # 3.3.2 X_i: as rows, (rows, d_in)
        grams[name] = grams.get(name, 0) + rows.T @ rows  # float64, so that pinv can tell unseen directions from seen

    handles = []
    for name, linear in linears.items():
        hook = lambda module, args, name=name: record(name, args[0])  # noqa: E731
        handles.append(linear.register_forward_pre_hook(hook))
    try:
        yield grams
    finally:
        for handle in handles:
            handle.remove()
    if len(grams) < len(linears):
        raise RuntimeError(f"{len(linears) - len(grams)} layers saw no input while recording: draw with this model.")


@dataclass(frozen=True)
class Recording:
    """What the center node draws to see a concept's inputs. The defaults are the official code's."""

    prompts: tuple[str, ...] = ("photo of a {}", "{}")  # {} becomes the concept's phrase; for the text stages
    spatial_prompts: tuple[str, ...] = ("photo of a {}",)  # for the pictures of the last stage
    steps: int = 20
    guidance: float = 1.0  # 1: without; else the empty prompt's inputs are recorded too
    seed: int = 0  # of the first picture
    size: tuple[int, int] | None = None  # (height, width) of the pictures in pixels; None: the model's


def weight_fusion(base: Model, concepts: Sequence[Concept], weights: Sequence[float] | None = None) -> Model:
    """The average of all updates, and all words: the community's way (Eq. 2)."""

    def fusion(W0: Tensor, deltas: list[Tensor], grams: list[Tensor]) -> Tensor:
        return average(W0, deltas, weights=weights)

    fused = with_words(base, concepts)
    for net in ("text_encoder", "unet"):
        fused = fuse_layers(fused, concepts, net, updated_layers(concepts, net), None, fusion)
    return fused


def gradient_fusion(
    base: Model,
    concepts: Sequence[Concept],
    fusion: Fusion = closed_form,
    recording: Recording = Recording(),  # noqa: B008 (it is frozen)
) -> Model:
    """The paper's way: every concept is drawn by its own LoRA, and every layer is fused on the inputs that it saw.

    Three stages, as in the official code, each recorded with the earlier ones in place, because in the fused model a
    layer's inputs come out of fused layers. No client is asked for data. The defaults are the paper's problem and the
    official recording; `mixofshow_lite.gradient_fusion` has a ridge, more prompts and guidance by default. Here a ridge
    is fusion=partial(closed_form, ridge=0.005).
    """
    # Embeddings are joined, not fused: "seamlessly integrated without conflicts" (3.2).
    fused = with_words(base, concepts)
    fused = fuse_text_encoder(fused, concepts, fusion, recording)  # 3.3.2 stage 1 (official code)
    fused = fuse_keys_and_values(fused, concepts, fusion, recording)  # 3.3.2 stage 2 (official code)
    return fuse_spatial_layers(fused, concepts, fusion, recording)  # 3.3.2 stage 3 (official code)


def fuse_text_encoder(fused: Model, concepts: Sequence[Concept], fusion: Fusion, recording: Recording) -> Model:
    """Stage 1: what the text encoder's layers see while it reads each concept's prompts, with the concept's LoRA."""
    names = updated_layers(concepts, "text_encoder")
    grams = []
    for concept in concepts:
        own = with_concept_layers(fused, concept, "text_encoder", names)
        with torch.no_grad(), recorded_grams(layers_of(own.text_encoder, names)) as seen:
            own.context(prompts_of(concept, recording.prompts))
        grams.append(seen)
    return fuse_layers(fused, concepts, "text_encoder", names, grams, fusion)


def fuse_keys_and_values(fused: Model, concepts: Sequence[Concept], fusion: Fusion, recording: Recording) -> Model:
    """Stage 2: the inputs of cross-attention's keys and values are text features, now of the fused text encoder.

    The official code keeps the rows of the concept's words and the end token only; here all N tokens count, because
    the U-Net attends to all of them.
    """
    names = [name for name in updated_layers(concepts, "unet") if is_key_or_value(name)]
    grams = []
    for concept in concepts:
        with torch.no_grad():
            context = fused.context(prompts_of(concept, recording.prompts)).cpu().double()  # (B, L, N, D)
        seen = {}
        for layer, name in enumerate(fused.layers):
            rows = context[:, layer].flatten(0, 1)  # (B * N, D)
            seen[f"{name}.to_k"] = rows.T @ rows
            seen[f"{name}.to_v"] = rows.T @ rows
        grams.append(seen)
    return fuse_layers(fused, concepts, "unet", names, grams, fusion)


def fuse_spatial_layers(fused: Model, concepts: Sequence[Concept], fusion: Fusion, recording: Recording) -> Model:
    """Stage 3: what all other layers of the U-Net see while each concept is drawn from noise."""
    names = [name for name in updated_layers(concepts, "unet") if not is_key_or_value(name)]
    grams = []
    for concept in concepts:
        own = with_concept_layers(fused, concept, "unet", names)
        with recorded_grams(layers_of(own.unet, names)) as seen:
            for number, prompt in enumerate(prompts_of(concept, recording.spatial_prompts)):
                seed = recording.seed + number
                drawn = {"steps": recording.steps, "guidance": recording.guidance, "size": recording.size}
                sample(own, prompt, seed=seed, **drawn)
        grams.append(seen)
    return fuse_layers(fused, concepts, "unet", names, grams, fusion)


def fuse_layers(
    fused: Model,
    concepts: Sequence[Concept],
    net: str,
    names: list[str],
    grams: list[dict[str, Tensor]] | None,
    fusion: Fusion,
) -> Model:
    """A copy of the model whose named layers are fused by Eq. 3; their weights must still be the base's.

    `grams` has for each concept name -> (d_in, d_in), or is None for a fusion that looks at no inputs.
    """
    fused = fused.copy()
    layers = layers_of(getattr(fused, net), names)
    changes = {}
    for name in names:
        W0 = layers[name].weight.detach().cpu().double()  # (d_out, d_in)
        deltas = [concept_delta(concept, net, name, W0) for concept in concepts]
        seen = [] if grams is None else [of_concept[name] for of_concept in grams]
        changes[name] = fusion(W0, deltas, seen) - W0  # Eq. 3 W = f(W0, dW_1, ..., dW_n)
    if changes:
        add_deltas(getattr(fused, net), changes)
    return fused


def with_concept_layers(model: Model, concept: Concept, net: str, names: list[str]) -> Model:
    """A copy with one concept's updates in the named layers of one network, W0 + dW_i: what its client would run."""
    model = model.copy()
    layers = layers_of(getattr(model, net), names)
    deltas = {name: concept_delta(concept, net, name, layer.weight.cpu().double()) for name, layer in layers.items()}
    if deltas:
        add_deltas(getattr(model, net), deltas)
    return model


def concept_delta(concept: Concept, net: str, name: str, W0: Tensor) -> Tensor:
    """dW_i of one layer (d_out, d_in), on the CPU in float64, which no Apple GPU has; zero without a LoRA there."""
    factors = concept.lora.get(net, {}).get(name)
    if factors is None:
        return torch.zeros_like(W0)
    down, up = factors
    return delta(down.cpu().double(), up.cpu().double(), concept.scale)


def updated_layers(concepts: Sequence[Concept], net: str) -> list[str]:
    """The names of the layers that any concept updates, sorted."""
    names = set()
    for concept in concepts:
        names |= set(concept.lora.get(net, {}))
    return sorted(names)


def layers_of(net: nn.Module, names: list[str]) -> dict[str, nn.Linear]:
    """The named attention linears of a network."""
    if not names:
        return {}
    linears = attention_linears(net)
    return {name: linears[name] for name in names}


def is_key_or_value(name: str) -> bool:
    """Whether a U-Net layer reads the prompt: to_k or to_v of cross-attention."""
    return name.endswith(("attn2.to_k", "attn2.to_v"))


def prompts_of(concept: Concept, templates: Sequence[str]) -> list[str]:
    """The recorded prompts of one concept: "photo of a {}" -> "photo of a <bibi1> <bibi2>"."""
    return [template.replace("{}", concept.phrase) for template in templates]
