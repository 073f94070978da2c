"""Cross-attention maps (paper 3.1 and 3.4): which cells of the picture listen to which word of the prompt.

    A = softmax(Q(z) K(c)^T / sqrt(d)), stored by `attention.stored_attention`

    paper   here         shape
    A       maps[name]   (h, w, N)     the mean over heads and steps; sums to 1 over the N tokens

A picture of them explains a prompt, and why two concepts in one prompt mix: their words look at the same cells.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention import layer_size, stored_attention
from ..files.concept import bind
from ..model import DiffusionModel


def attention_maps(
    model: DiffusionModel, prompt: str, seed: int = 0, steps: int = 25, size: int | None = None
) -> tuple[object, list[str], dict[str, Tensor]]:
    """Draw one picture and keep its cross-attention -> (picture, the words, layer name -> (h, w, N)).

    The maps are means over steps and heads, of the positive half under guidance. `words` are the N tokens as text;
    each map sums to 1 over them, and "<start>" takes most of it.
    """
    with stored_attention(model.unet) as store:
        picture = model.sample(prompt, seed=seed, steps=steps, size=size, progress=False)[0]
    height, width = picture.size[1] // model.factor, picture.size[0] // model.factor
    maps = {}
    for name, weights in zip(model.layers, store.maps(), strict=True):
        positive = weights[-1]  # (T, N); the negative half comes first
        maps[name] = positive.unflatten(0, layer_size(len(positive), height, width))
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
