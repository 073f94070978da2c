"""Layer-wise context (P+, paper 3.1): every cross-attention layer of the U-Net reads its own encoding of the prompt.

    paper   here      shape
    V+      table     (W, K, D)       W concept words; K = L rows, one per cross-attention layer, or K = 1 for all
    c       context   (B, L, N, D)    layer l attends to context[:, l]

Layers are counted down -> mid -> up, as a sample passes through them.

The text encoder is causal: a token's features depend on what stands before it and on nothing behind it. So the L layer
prompts, which differ only in the concept's rows, share everything before the first concept word, and prompts share
their common beginnings. `encode(..., share=True)` computes each distinct beginning once. What follows a concept word
differs from layer to layer, the padding too, and the U-Net attends to all N places: that work cannot be shared.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention, AttnProcessor, AttnProcessor2_0
from torch import Tensor, nn
from transformers import AttentionInterface

from .. import attention
from ..attention import cross_attention
from ..files.concept import Bound
from ..files.warn import warn

PREFIX_ATTENTION = "mixofshow_prefixes"  # the name under which transformers finds `attend_over_prefixes`
LARGEST_WRITTEN_OUT = 2**20  # largest T * N for which attention's (T, N) probabilities are kept for a backward pass


def faster_written_out(query_length: int, key_length: int, device: torch.device) -> bool:
    """Whether softmax(QK)V is better written out: on a CPU, where the fused kernel's backward pass is the slower one.

    Measured on the pocket U-Net, forward and backward: 0.75 s written out, 1.04 s fused. Without gradients, on a GPU,
    and where the probabilities would fill the memory, the fused kernel is used.
    """
    return device.type == "cpu" and torch.is_grad_enabled() and query_length * key_length <= LARGEST_WRITTEN_OUT


class QuickAttention(AttnProcessor2_0):
    """Diffusers' own attention, fused or written out, whichever is faster where it runs."""

    written_out = AttnProcessor()

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        T = hidden_states.shape[1]
        N = T if encoder_hidden_states is None else encoder_hidden_states.shape[1]
        attend = self.written_out if faster_written_out(T, N, hidden_states.device) else super().__call__
        return attend(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


class LayerAttention(QuickAttention):
    """Cross-attention of layer l that takes its own slice of a layer-wise context.

    The context may be (B, L, N, D), or (B, L * N, D) as stock pipelines pass it on; a plain (B, N, D) fits all layers.
    """

    def __init__(self, layer: int, layers: int, tokens: int):
        super().__init__()
        self.layer, self.layers, self.tokens = layer, layers, tokens

    def own_slice(self, context: Tensor) -> Tensor:
        """(B, L, N, D) | (B, L * N, D) | (B, N, D) -> (B, N, D)"""
        if not is_layerwise(context, self.layers, self.tokens):
            return context
        return (context if context.ndim == 4 else context.unflatten(1, (self.layers, self.tokens)))[:, self.layer]

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        return super().__call__(attn, hidden_states, self.own_slice(encoder_hidden_states), *args, **kwargs)


READ_LAYERS = (LayerAttention, attention.LayerAttention)  # those that find their slice of a context (B, L, N, D)


@dataclass
class Guard:
    """A forward pre-hook: layer-wise contexts need LayerAttention, any other processor would misread them.

    Attention slicing, xformers, `set_attn_processor` and `fuse_qkv_projections` replace the processors of a pipeline at
    any time, and some of theirs attend to all L * N tokens without a word. So does a ControlNet that draws along
    without `layerwise_controlnet`; of that one only its features are seen here.
    """

    modules: dict[str, Attention]  # the cross-attention layers of a U-Net, or of a ControlNet
    layers: int  # L
    tokens: int  # N
    title: str = "U-Net"
    controlled: int = 0  # how many ControlNets are known to read layer-wise contexts
    told: bool = False

    def __call__(self, unet: nn.Module, args: tuple, kwargs: dict) -> None:
        context = kwargs.get("encoder_hidden_states", args[2] if len(args) > 2 else None)
        if not isinstance(context, Tensor) or not is_layerwise(context, self.layers, self.tokens):
            return
        # Flattened as stock pipelines pass it on, only the engine's own processors find their slice.
        check_processors(self.modules, READ_LAYERS if context.ndim == 4 else LayerAttention, self.title)
        if kwargs.get("mid_block_additional_residual") is not None and not self.controlled and not self.told:
            self.told = True
            warn(
                "A ControlNet draws along that is not known to read layer-wise prompts, it may look at tokens of all "
                "layers at once: draw inside `with layerwise_controlnet(model, controlnet):` of engine.spatial."
            )

    @contextmanager
    def knowing(self, controlnets: int) -> Iterator[None]:
        """While on, so many ControlNets read the same layer-wise contexts."""
        self.controlled += controlnets
        try:
            yield
        finally:
            self.controlled -= controlnets


def is_layerwise(context: Tensor, layers: int, tokens: int) -> bool:
    """Whether a context is (B, L, N, D) or (B, L * N, D) and not a plain (B, N, D)."""
    return context.ndim == 4 or (context.ndim == 3 and layers > 1 and context.shape[1] == layers * tokens)


def check_processors(
    modules: dict[str, Attention], reads: type | tuple[type, ...] = LayerAttention, title: str = "U-Net"
) -> None:
    """Raise ValueError unless every cross-attention layer's processor is one that takes its own slice of a context."""
    others = {type(m.processor).__name__ for m in modules.values() if not isinstance(m.processor, reads)}
    if others:
        raise ValueError(
            f"The {title}'s cross-attention has other processors on ({', '.join(sorted(others))}), which read neither "
            "layer-wise words nor regions: draw with model.copy(), whose processors are its own, and without attention "
            "slicing, xformers, set_attn_processor or fuse_qkv_projections."
        )


def install(unet: nn.Module, tokens: int) -> tuple[str, ...]:
    """Put a LayerAttention on each cross-attention layer and a Guard on the U-Net; returns the names of the L layers.

    Self-attention that still has diffusers' default gets QuickAttention, the same function.
    """
    found = cross_attention(unet)
    for layer, module in enumerate(found.values()):
        module.set_processor(LayerAttention(layer, len(found), tokens))
    for module in unet.modules():
        if isinstance(module, Attention) and type(module.processor) is AttnProcessor2_0:
            module.set_processor(QuickAttention())
    if not hasattr(unet, "layerwise_guard"):  # a copied U-Net has its own already
        unet.layerwise_guard = Guard(found, len(found), tokens)
        unet.register_forward_pre_hook(unet.layerwise_guard, with_kwargs=True)
    return tuple(found)


def encode(text_encoder: nn.Module, bound: Bound, table: Tensor | None, L: int, share: bool = False) -> list[Tensor]:
    """psi(P) of B bound prompts, a list of (L, N, D).

    A prompt without concept words is encoded once and expanded; one with them becomes K layer prompts, in which prompt
    l holds row l of each word. With `share` every beginning that prompts have in common is computed once: the same
    features up to rounding, and hooks on the text encoder see (rows, 1, D) instead of (prompts, N, D).
    """
    table = None if (bound.slots < 0).all() else table
    copies = [1 if table is None or (slots < 0).all() else table.shape[1] for slots in bound.slots]
    features = (
        encode_shared(text_encoder, bound, table, copies) if share else encode_all(text_encoder, bound, table, copies)
    )
    return [of_prompt.expand(L, -1, -1) for of_prompt in features.split(copies)]


def encode_all(text_encoder: nn.Module, bound: Bound, table: Tensor | None, copies: list[int]) -> Tensor:
    """Every layer prompt from its first token to its last, (S, N, D) with S = sum(copies)."""
    device, repeats = text_encoder.device, torch.tensor(copies)
    ids, slots = (x.repeat_interleave(repeats, dim=0).to(device) for x in (bound.ids, bound.slots))  # (S, N)
    layer = torch.cat([torch.arange(K) for K in copies]).to(device)[:, None]  # (S, 1)
    with word_rows(text_encoder, slots, layer, table):
        return text_encoder(ids)[0]


@contextmanager
def word_rows(text_encoder: nn.Module, slots: Tensor, layer: Tensor, table: Tensor | None) -> Iterator[None]:
    """While on, the token embedding gives table[slot, layer] where `slots` (S, N) is not -1; `layer` broadcasts."""
    if table is None:
        yield
        return
    rows = table.to(slots.device)[slots.clamp(min=0), layer]  # (S, N, D)

    def put_in(module, args, output):
        return torch.where((slots >= 0)[..., None], rows.to(output.dtype), output)

    handle = text_encoder.get_input_embeddings().register_forward_hook(put_in)
    try:
        yield
    finally:
        handle.remove()


@dataclass
class PrefixTree:
    """The distinct beginnings of S sequences, one row each: the last token of a beginning, and where it is needed."""

    places: Tensor  # (S, N) the row of the beginning that ends at each place
    first_place: Tensor  # (rows,) one place s * N + n where the row is needed
    ids: Tensor  # (rows,) token id
    slots: Tensor  # (rows,) concept word, or -1
    layers: Tensor  # (rows,) which of the word's K rows


def prefix_tree(bound: Bound, copies: list[int]) -> PrefixTree:
    """Sort the layer prompts of bound prompts into a tree of beginnings; copies[b] is how many prompt b becomes."""
    known: dict[tuple, int] = {}  # (row of the beginning one token shorter, id, slot, layer) -> row
    first_place: list[int] = []
    places: list[int] = []
    for ids, slots, K in zip(bound.ids.tolist(), bound.slots.tolist(), copies, strict=True):
        for layer in range(K):
            row = -1
            for token, slot in zip(ids, slots, strict=True):
                row = known.setdefault((row, token, slot, layer if slot >= 0 else 0), len(known))
                if row == len(first_place):
                    first_place.append(len(places))
                places.append(row)
    _, ids, slots, layers = torch.tensor(list(known)).unbind(1)
    return PrefixTree(torch.tensor(places).view(sum(copies), -1), torch.tensor(first_place), ids, slots, layers)


def encode_shared(text_encoder: nn.Module, bound: Bound, table: Tensor | None, copies: list[int]) -> Tensor:
    """As `encode_all`, (S, N, D), computing each distinct beginning once.

    All rows go through the encoder as a batch of one-token prompts, each at its own position; only in attention does a
    row meet the ones before it, see `attend_over_prefixes`.
    """
    tree, N, device = prefix_tree(bound, copies), bound.ids.shape[1], text_encoder.device
    places, first_place, ids, slots, layers = (
        x.to(device) for x in (tree.places, tree.first_place, tree.ids, tree.slots, tree.layers)
    )
    before = text_encoder.config._attn_implementation  # there is no public way to read what the next line sets
    text_encoder.set_attn_implementation(PREFIX_ATTENTION)
    try:
        with word_rows(text_encoder, slots[:, None], layers[:, None], table):
            features = text_encoder(
                ids[:, None], position_ids=(first_place % N)[:, None], places=places, first_place=first_place
            ).last_hidden_state  # (rows, 1, D)
    finally:
        text_encoder.set_attn_implementation(before)
    return features[:, 0].index_select(0, places.flatten()).unflatten(0, places.shape)


def attend_over_prefixes(
    module, query: Tensor, key: Tensor, value: Tensor, mask, scaling: float, places: Tensor, first_place: Tensor, **_
) -> tuple[Tensor, None]:
    """Causal attention of rows (rows, heads, 1, d) laid out as sequences by `places`; returns (rows, 1, heads, d)."""
    S, N = places.shape
    laid_out = (x[:, :, 0].index_select(0, places.flatten()).unflatten(0, (S, N)) for x in (query, key, value))
    query, key, value = (x.transpose(1, 2) for x in laid_out)  # (S, heads, N, d)
    if faster_written_out(N, N, query.device):
        future = torch.full((N, N), -torch.inf, device=query.device, dtype=query.dtype).triu(1)
        out = (query @ key.mT * scaling + future).softmax(dim=-1) @ value
    else:
        out = F.scaled_dot_product_attention(query, key, value, is_causal=True, scale=scaling)
    return out.transpose(1, 2).flatten(0, 1).index_select(0, first_place)[:, None], None


AttentionInterface.register(PREFIX_ATTENTION, attend_over_prefixes)
