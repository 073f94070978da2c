"""Layer-wise context (P+, paper 3.1): every cross-attention layer of the U-Net reads its own encoding of the prompt.

    paper   here      shape
    V+      table     (W, L, D)       W concept words, one row per cross-attention layer
    c       context   (B, L, N, D)    layer l attends to context[:, l]

Layers are counted down -> mid -> up, as a sample passes through them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from diffusers.models.attention_processor import Attention, AttnProcessor2_0
from torch import Tensor, nn

from .concept import Bound


def cross_attention(unet: nn.Module) -> dict[str, Attention]:
    """The L cross-attention modules, name -> module, in the order down, mid, up (diffusers itself lists mid last)."""
    found = [(name, m) for name, m in unet.named_modules() if isinstance(m, Attention) and name.endswith("attn2")]
    order = {"down_blocks": 0, "mid_block": 1, "up_blocks": 2}
    return dict(sorted(found, key=lambda item: order[item[0].split(".")[0]]))  # sorted() is stable inside a block


class LayerAttention(AttnProcessor2_0):
    """Cross-attention of layer l that takes its own slice of a layer-wise context.

    The context may be (B, L, N, D), or (B, L * N, D) as stock pipelines pass it on; a plain (B, N, D) fits all layers.
    """

    def __init__(self, layer: int, layers: int, tokens: int):
        super().__init__()
        self.layer, self.layers, self.tokens = layer, layers, tokens

    def own_slice(self, context: Tensor) -> Tensor:
        """(B, L, N, D) | (B, L * N, D) | (B, N, D) -> (B, N, D)"""
        if context.ndim == 3 and self.layers > 1 and context.shape[1] == self.layers * self.tokens:
            context = context.unflatten(1, (self.layers, self.tokens))
        return context[:, self.layer] if context.ndim == 4 else context

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        return super().__call__(attn, hidden_states, self.own_slice(encoder_hidden_states), *args, **kwargs)


def install(unet: nn.Module, tokens: int) -> tuple[str, ...]:
    """Put a LayerAttention on each cross-attention layer; returns the names of the L layers."""
    found = cross_attention(unet)
    for layer, module in enumerate(found.values()):
        module.set_processor(LayerAttention(layer, len(found), tokens))
    return tuple(found)


def encode(text_encoder: nn.Module, bound: Bound, table: Tensor | None, L: int) -> list[Tensor]:
    """psi(P) of B bound prompts, a list of (L, N, D).

    A prompt without concept words is encoded once and expanded; one with them becomes L layer prompts, in which prompt
    l holds row l of each word, and is encoded L times.
    """
    device = text_encoder.device
    ids, slots = bound.ids.to(device), bound.slots.to(device)
    layered = (bound.slots >= 0).any(dim=1)
    once, often = (~layered).nonzero().flatten().tolist(), layered.nonzero().flatten().tolist()
    contexts: dict[int, Tensor] = {}
    if once:
        features = text_encoder(ids[once])[0]  # (b, N, D)
        contexts |= {i: of_prompt.expand(L, -1, -1) for i, of_prompt in zip(once, features, strict=True)}
    if often:
        places = slots[often].repeat_interleave(L, dim=0)  # (b * L, N)
        layer = torch.arange(L, device=device).repeat(len(often))[:, None]  # (b * L, 1)
        rows = table.to(device)[places.clamp(min=0), layer]  # (b * L, N, D)
        with word_rows(text_encoder, places >= 0, rows):
            features = text_encoder(ids[often].repeat_interleave(L, dim=0))[0]
        contexts |= dict(zip(often, features.split(L), strict=True))
    return [contexts[i] for i in range(len(ids))]


@contextmanager
def word_rows(text_encoder: nn.Module, places: Tensor, rows: Tensor) -> Iterator[None]:
    """While on, the token embedding gives `rows` (B, N, D) where `places` (B, N) is true."""

    def put_in(module, args, output):
        return torch.where(places[..., None], rows.to(output.dtype), output)

    handle = text_encoder.get_input_embeddings().register_forward_hook(put_in)
    try:
        yield
    finally:
        handle.remove()
