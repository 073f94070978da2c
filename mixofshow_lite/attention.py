"""Cross-attention (paper 3.1 and 3.4): where a prompt meets the picture, and the one way to change what happens there.

    A = softmax(Q(z) K(c)^T / sqrt(d)),    h = A V(c)

    paper     here            shape
    z         hidden_states   (B, T, C)              T = h * w pixels of one layer's feature map, C channels
    c         context         (B, N, D)              N tokens of width D; layer-wise context is (B, L, N, D)
    Q, K, V   q, k, v         (B, heads, T or N, d)  d = C / heads
    A         weights         (B, heads, T, N)       for every pixel, how much it looks at each token: sums to 1
    h         h               (B, heads, T, d)       what the pixels read from the prompt

The U-Net of Stable Diffusion 1.5 has L = 16 such layers, at four sizes. They are counted down -> mid -> up, the order
in which a sample passes through them. P+ gives every layer its own prompt, so their numbering must be fixed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn


def attention_weights(q: Tensor, k: Tensor) -> Tensor:
    """A: queries (B, heads, T, d) and keys (B, heads, N, d) -> (B, heads, T, N), a distribution over N tokens."""
    d = q.shape[-1]
    # The scalar product of two vectors of d random numbers has variance d: without the root, softmax would saturate.
    scores = q @ k.transpose(-1, -2) / d**0.5  # (B, heads, T, N)
    return scores.softmax(dim=-1)  # 3.4 A = softmax(QK^T / sqrt(d))


def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """h: every pixel's mean of the values (B, heads, N, d), weighted by A -> (B, heads, T, d)."""
    return attention_weights(q, k) @ v  # 3.4 h = A V


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, T, C) -> (B, heads, T, d): each head attends by itself, in its own d of the C channels."""
    return x.unflatten(2, (heads, -1)).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, heads, T, d) -> (B, T, C), the inverse of `split_heads`."""
    return x.transpose(1, 2).flatten(2)


def project(attn: Attention, hidden_states: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """q of the picture (B, T, C), k and v of the prompt (B, N, D) -> three tensors (B, heads, T or N, d)."""
    q = split_heads(attn.to_q(hidden_states), attn.heads)  # (B, heads, T, d)
    k = split_heads(attn.to_k(context), attn.heads)  # (B, heads, N, d)
    v = split_heads(attn.to_v(context), attn.heads)  # (B, heads, N, d)
    return q, k, v


class LayerAttention:
    """The processor of cross-attention layer `layer`: plain attention to this layer's own prompt."""

    def __init__(self, layer: int):
        self.layer = layer

    def __call__(self, attn: Attention, hidden_states: Tensor, encoder_hidden_states: Tensor, attention_mask=None):
        """hidden_states (B, T, C), encoder_hidden_states (B, N, D) or (B, L, N, D) -> (B, T, C).

        The names of the arguments are those by which diffusers calls a processor.
        """
        q, k, v = project(attn, hidden_states, self.layer_prompt(encoder_hidden_states))
        h = self.attend(q, k, v)  # (B, heads, T, d)
        return attn.to_out[0](merge_heads(h))  # to_out[1] is a dropout of 0

    def layer_prompt(self, context: Tensor) -> Tensor:
        """This layer's slice of a layer-wise context: (B, L, N, D) -> (B, N, D); a plain (B, N, D) suits all layers."""
        if context.ndim == 4:
            return context[:, self.layer]  # 3.1 layer l reads prompt l
        return context

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """What a subclass may replace: (B, heads, T or N, d) -> (B, heads, T, d)."""
        return attend(q, k, v)


def cross_attention(unet: nn.Module) -> dict[str, Attention]:
    """The L cross-attention modules, name -> module, in the order down, mid, up. ValueError if there is none."""
    # diffusers lists the mid block last, after the up blocks: sort by where a sample comes first.
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    found = []
    # Found by name and counted: patching by class name silently finds nothing once a library renames the class.
    for name, module in unet.named_modules():
        if name.endswith("attn2"):  # attn1 is self-attention: pixels look at pixels
            found.append((order[name.split(".")[0]], name, module))
    if not found:
        raise ValueError(f"{type(unet).__name__} has no cross-attention (attn2): give a Stable Diffusion 1.x U-Net.")
    found.sort(key=lambda entry: entry[0])  # 3.1 layers down -> mid -> up; sort() keeps the order inside a block
    return {name: module for _, name, module in found}


def install(unet: nn.Module) -> tuple[str, ...]:
    """Make every cross-attention layer read its own prompt, for good; returns the L names."""
    layers = cross_attention(unet)
    for layer, module in enumerate(layers.values()):
        module.set_processor(LayerAttention(layer))
    return tuple(layers)


@contextmanager
def swapped(
    unet: nn.Module, make: Callable[[int], object], find: Callable[[nn.Module], dict[str, Attention]] = cross_attention
) -> Iterator[list]:
    """While on, the layers that `find` gives compute with the processors make(0), make(1), ...

    Raises RuntimeError if a processor was not accepted, or if other code replaced one meanwhile. Without these checks a
    wrong processor would still draw a picture, and nobody would notice.
    """
    # `find` may also give self-attention: the engine keeps regions apart there.
    modules = list(find(unet).values())
    before = [module.processor for module in modules]
    ours = [make(layer) for layer in range(len(modules))]
    try:
        for module, processor in zip(modules, ours, strict=True):
            module.set_processor(processor)
        check_processors(modules, ours)
        yield ours
        check_processors(modules, ours)
    finally:
        # Also after an error in the body, so that the model is always left as it was.
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(processor)


def check_processors(modules: list[Attention], expected: list) -> None:
    """Raise RuntimeError unless every module computes with the processor that was put on it."""
    wrong = 0
    for module, processor in zip(modules, expected, strict=True):
        if module.processor is not processor:
            wrong += 1
    if wrong:
        raise RuntimeError(
            f"{wrong} of {len(modules)} attention layers compute with another processor than was put on: "
            "do not change processors inside the `with`, and nest such blocks instead of crossing them."
        )


def layer_size(T: int, h: int, w: int) -> tuple[int, int]:
    """(h, w) of a layer with T pixels, for latents of h x w: halved, rounding up, until they fit.

    Raises ValueError if no halving has T pixels.
    """
    latents = (h, w)
    while h * w > T:
        h = (h + 1) // 2  # as the U-Net's strided convolutions round
        w = (w + 1) // 2
    if h * w != T:
        raise ValueError(f"A layer has {T} pixels, to which latents of {latents} do not halve: give their real size.")
    return h, w


class AttentionStore:
    """Which pixel looks at which token, in every layer: A, averaged over heads and over calls of the U-Net."""

    def __init__(self):
        self.sums: dict[int, Tensor] = {}  # layer -> (B, T, N)
        self.calls: dict[int, int] = {}  # layer -> how often it was called

    def add(self, layer: int, weights: Tensor) -> None:
        """Add A (B, heads, T, N) of one call. It is not detached, because a loss may need its gradient."""
        self.sums[layer] = self.sums.get(layer, 0) + weights.mean(dim=1).float()
        self.calls[layer] = self.calls.get(layer, 0) + 1

    def maps(self) -> list[Tensor]:
        """For every layer, down to up, its mean A, (B, T, N)."""
        return [self.sums[layer] / self.calls[layer] for layer in sorted(self.sums)]

    def token_map(self, token: int, h: int, w: int) -> Tensor:
        """Where the picture looks at one token: the mean over all layers, enlarged to the latents' (B, h, w)."""
        enlarged = []
        for weights in self.maps():
            size = layer_size(weights.shape[1], h, w)
            small = weights[:, :, token].unflatten(1, size)[:, None]  # (B, 1, h_layer, w_layer)
            # The layers have four sizes: enlarge all of them to one before averaging.
            enlarged.append(F.interpolate(small, (h, w), mode="bilinear")[:, 0])
        return torch.stack(enlarged).mean(dim=0)


class StoringAttention(LayerAttention):
    """A LayerAttention that also hands its weights to a store; what it computes stays the same."""

    def __init__(self, layer: int, store: AttentionStore):
        super().__init__(layer)
        self.store = store

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        # The same as `attend`, in two steps because the weights are wanted in between.
        weights = attention_weights(q, k)  # (B, heads, T, N)
        self.store.add(self.layer, weights)
        return weights @ v


@contextmanager
def stored_attention(unet: nn.Module) -> Iterator[AttentionStore]:
    """While on, every pass of the U-Net adds its attention weights to the store that this gives."""
    store = AttentionStore()
    with swapped(unet, lambda layer: StoringAttention(layer, store)):
        yield store


def outside_attention(maps: list[Tensor], masks: Tensor) -> Tensor:
    """Attention regularisation (official main branch, not the paper): how much the concept's words look outside, (B,).

    For each feature-map size: the mean map (B, W, T) over its layers, relative to its peak, averaged outside the masks
    (B, 1, h, w); summed over words and sizes. The official code takes the peak of the whole batch; here each picture
    has its own, so that it does not depend on its neighbours.
    """
    h, w = masks.shape[-2:]
    penalty = torch.zeros(len(masks), device=masks.device)
    for T in sorted({weights.shape[2] for weights in maps}):
        mean = torch.stack([weights for weights in maps if weights.shape[2] == T]).mean(dim=0)  # (B, W, T)
        relative = mean / mean.amax(dim=2, keepdim=True).clamp(min=1e-8)
        inside = F.adaptive_avg_pool2d(masks, layer_size(T, h, w)).flatten(2)  # (B, 1, T)
        outside = 1 - inside
        per_word = (relative * outside).sum(dim=2) / outside.sum(dim=2).clamp(min=1e-8)  # (B, W)
        penalty = penalty + per_word.sum(dim=1)  # 3.3.1 attention regularisation (official code)
    return penalty
