"""Cross-attention maps (paper 3.1 and 3.4): which cells of the picture listen to which word of the prompt.

    A = softmax(Q(z) K(c)^T / sqrt(d))

    paper   here         shape
    z       hidden       (B, T, C)        T = h * w cells of one layer
    A       maps[name]   (B, h, w, N)     the mean over heads; sums to 1 over the N tokens

A picture of them explains a prompt, and why two concepts in one prompt mix: their words look at the same cells.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from ..files.concept import bind
from ..model import DiffusionModel
from .layerwise import LayerAttention, cross_attention


class RecordingAttention(LayerAttention):
    """A LayerAttention that also adds up its probabilities; what it computes stays the same."""

    def __init__(self, plain: LayerAttention):
        super().__init__(plain.layer, plain.layers, plain.tokens)
        self.total: Tensor | None = None  # (B, T, N), summed over calls
        self.calls = 0

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        context = self.own_slice(encoder_hidden_states)
        query = attn.head_to_batch_dim(attn.to_q(hidden_states))  # (B * heads, T, d)
        key = attn.head_to_batch_dim(attn.to_k(context))  # (B * heads, N, d)
        shares = attn.get_attention_scores(query, key).detach().float()  # (B * heads, T, N)
        shares = shares.unflatten(0, (len(hidden_states), -1)).mean(1)
        self.total = shares if self.total is None else self.total + shares
        self.calls += 1
        return super().__call__(attn, hidden_states, encoder_hidden_states, *args, **kwargs)


@contextmanager
def recording(model: DiffusionModel) -> Iterator[dict[str, RecordingAttention]]:
    """While on, every cross-attention layer of `model.unet` keeps its probabilities: layer name -> recorder."""
    modules = cross_attention(model.unet)
    plain = {name: module.processor for name, module in modules.items()}
    recorders = {name: RecordingAttention(processor) for name, processor in plain.items()}
    for name, module in modules.items():
        module.set_processor(recorders[name])
    try:
        yield recorders
    finally:
        for name, module in modules.items():
            module.set_processor(plain[name])


def attention_maps(
    model: DiffusionModel, prompt: str, seed: int = 0, steps: int = 25, size: int | None = None
) -> tuple[object, list[str], dict[str, Tensor]]:
    """Draw one picture and keep its cross-attention -> (picture, the words, layer name -> (h, w, N)).

    The maps are means over steps and heads, of the positive half under guidance. `words` are the N tokens as text;
    each map sums to 1 over them, and "<start>" takes most of it.
    """
    with recording(model) as recorders:
        picture = model.sample(prompt, seed=seed, steps=steps, size=size, progress=False)[0]
    height, width = picture.size[1] // model.factor, picture.size[0] // model.factor
    maps = {}
    for name, recorder in recorders.items():
        share = recorder.total[-1] / recorder.calls  # (T, N); the positive half comes last
        h, w = height, width
        while h * w > len(share):
            h, w = -(-h // 2), -(-w // 2)
        maps[name] = share.unflatten(0, (h, w))
    return picture, tokens_of(model, prompt), maps


def tokens_of(model: DiffusionModel, prompt: str) -> list[str]:
    """The prompt's N tokens as readable text, concept words whole."""
    bound, known = bind(model.tokenizer, [prompt], list(model.words)), list(model.words)
    ids, slots = bound.ids[0].tolist(), bound.slots[0].tolist()
    end = next(i for i, s in enumerate(slots) if i and s < 0 and ids[i] == model.tokenizer.eos_token_id)
    words = [known[s] if s >= 0 else model.tokenizer.decode([i]).strip() for i, s in zip(ids, slots, strict=True)]
    return ["<start>", *words[1:end], "<end>", *["<pad>"] * (len(ids) - end - 1)]


def word_maps(words: Sequence[str], maps: dict[str, Tensor], side: int = 16) -> dict[str, Tensor]:
    """Mean over the layers per word of the prompt, each stretched to 0..1: word -> (side, side)."""
    resized = [F.interpolate(m.permute(2, 0, 1)[None], (side, side), mode="bilinear")[0] for m in maps.values()]
    mean = torch.stack(resized).mean(0)  # (N, side, side)
    found = {}
    for i, word in enumerate(words):
        if not word.startswith(("<start>", "<end>", "<pad>")):
            low, high = mean[i].min(), mean[i].max()
            found[word] = (mean[i] - low) / (high - low).clamp(min=1e-12)
    return found
