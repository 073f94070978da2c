"""Concept words, and the prompt of every layer (paper 3.1 and 3.3.1).

    V                        one word, one embedding for all layers            Textual Inversion (Gal et al. 2022)
    V+                       one word, one embedding for each of the L layers  P+ (Voynov et al. 2023)
    V = V_rand+ V_class+     two such words, written one after the other       ED-LoRA, the paper's

One prompt becomes L prompts in three steps: `bind` finds the concept words, `embed` puts layer l's embedding of each
word into prompt l, `encode` runs the text encoder psi on all L prompts. They differ in the concept words alone.

    paper        here           shape
    P*           prompts        B strings, e.g. "photo of a <bibi1> <bibi2> on the beach"
                 bound.ids      (B, N)        token ids, N the tokenizer's length
                 bound.slots    (B, N)        which concept word stands at a place, -1: none
    V, V+        table          (W, 1, D), (W, L, D)   embeddings of W concept words
                 embeddings     (B, L, N, D)  what the text encoder starts from
    c = psi(P*)  context        (B, L, N, D)  what cross-attention layer l reads is context[:, l]
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass
class Bound:
    """Prompts as token ids, with the places where concept words stand."""

    ids: Tensor  # (B, N) long; a concept word's place holds the unknown token
    slots: Tensor  # (B, N) long; index of the concept word at that place, -1 elsewhere


def bind(tokenizer, prompts: Sequence[str], words: Sequence[str]) -> Bound:
    """Tokenize prompts to the tokenizer's full length, every concept word as exactly one token -> (B, N) twice."""
    all_ids = []
    all_slots = []
    for prompt in prompts:
        ids, slots = fill_up(tokenizer, *tokenize(tokenizer, prompt, list(words)))
        all_ids.append(ids)
        all_slots.append(slots)
    return Bound(torch.tensor(all_ids), torch.tensor(all_slots))


def tokenize(tokenizer, prompt: str, words: list[str]) -> tuple[list[int], list[int]]:
    """One prompt -> its token ids and slots, as many as the text has."""
    ids = []
    slots = []
    for piece in split_at_words(prompt, words):
        if piece in words:
            # The tokenizer would break "<bibi1>" into pieces. Any id does here: `embed` overwrites its embedding.
            ids.append(tokenizer.unk_token_id)
            slots.append(words.index(piece))
        elif piece.strip():
            plain = tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
            ids += plain
            slots += [-1] * len(plain)
    return ids, slots


def fill_up(tokenizer, ids: list[int], slots: list[int]) -> tuple[list[int], list[int]]:
    """N ids and N slots: begin, text, end, padding. What does not fit is cut off."""
    room = tokenizer.model_max_length - 2  # begin and end take two places
    ids = ids[:room]
    slots = slots[:room]
    padding = room - len(ids)
    ids = [tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] + [tokenizer.pad_token_id] * padding
    slots = [-1, *slots, -1] + [-1] * padding
    return ids, slots


def split_at_words(prompt: str, words: list[str]) -> list[str]:
    """A prompt cut into concept words and the text between: "a <v>!" -> ["a ", "<v>", "!"]."""
    if not words:
        return [prompt]
    longest_first = sorted(words, key=len, reverse=True)  # a word may begin like a longer one
    pattern = "|".join(re.escape(word) for word in longest_first)
    return re.split(f"({pattern})", prompt)  # the brackets make `split` keep the words themselves


def embed(text_encoder: nn.Module, bound: Bound, table: Tensor | None, L: int) -> Tensor:
    """Token embeddings of all layer prompts, (B, L, N, D): prompt l holds row l of every concept word.

    `table` is (W, L, D), or (W, 1, D) for words that have one embedding for all layers, or None without words.
    """
    device = text_encoder.device
    plain = text_encoder.get_input_embeddings()(bound.ids.to(device))  # (B, N, D), the model's own embeddings
    if table is None:
        return plain[:, None].expand(-1, L, -1, -1)
    table = table.to(device, plain.dtype).expand(-1, L, -1)  # 3.1 V: the same embedding in every layer
    slots = bound.slots.to(device)
    is_word = (slots >= 0)[..., None]  # (B, N, 1)
    layer_embeddings = []
    for layer in range(L):
        rows = table[:, layer]  # 3.1 V+ (P+): (W, D), this layer's embedding of each word
        layer_embeddings.append(torch.where(is_word, rows[slots.clamp(min=0)], plain))
    return torch.stack(layer_embeddings, dim=1)


def encode(text_encoder: nn.Module, bound: Bound, table: Tensor | None, L: int) -> Tensor:
    """psi: all layer prompts through the text encoder, (B, L, N, D). Gradients flow into `table`."""
    B = len(bound.ids)
    embeddings = embed(text_encoder, bound, table, L)  # (B, L, N, D)
    # The encoder only needs the ids' shape, and the place of the end token for an output that is not used here.
    ids = bound.ids.to(text_encoder.device).repeat_interleave(L, dim=0)  # (B * L, N)
    with given_embeddings(text_encoder, embeddings.flatten(0, 1)):
        features = text_encoder(ids)[0]  # 3.1 c = psi(P*): (B * L, N, D)
    return features.unflatten(0, (B, L))


@contextmanager
def given_embeddings(text_encoder: nn.Module, embeddings: Tensor) -> Iterator[None]:
    """While on, the text encoder starts from these embeddings (batch, N, D), whatever ids it is called with.

    transformers' CLIP has no argument for them, and a token's place in the vocabulary can hold one embedding, not L.
    """
    handle = text_encoder.get_input_embeddings().register_forward_hook(lambda module, args, output: embeddings)
    try:
        yield
    finally:
        handle.remove()


def embedding_std(text_encoder: nn.Module) -> float:
    """Standard deviation of the numbers in the model's own token embeddings; 0.013 in Stable Diffusion 1.5."""
    return text_encoder.get_input_embeddings().weight.detach().float().std().item()


def random_embedding(text_encoder: nn.Module, word: str, seed: int) -> Tensor:
    """How V_rand+ starts: random numbers (D,) with the spread of the token embeddings, and no meaning yet."""
    # The word is part of the seed: two clients who both take seed 0 must not start from the same vector.
    digest = hashlib.sha256(f"{seed} {word}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    D = text_encoder.get_input_embeddings().weight.shape[1]
    return torch.randn(D, generator=generator) * embedding_std(text_encoder)  # 3.3.1 V_rand+


def class_embedding(text_encoder: nn.Module, tokenizer, class_word: str) -> Tensor:
    """How V_class+ starts: the embedding (D,) of the class word, so that its meaning is kept."""
    tokens = tokenizer(class_word, add_special_tokens=False).input_ids
    rows = text_encoder.get_input_embeddings().weight.detach().float()[tokens]  # (pieces, D)
    return rows.mean(dim=0).cpu()  # 3.3.1 V_class+; a rare word has several pieces


def word_places(slots: Tensor, words: int) -> Tensor:
    """Where each of W concept words stands: slots (B, N) -> (B, W, N); the weights of a word sum to 1."""
    found = []
    for word in range(words):
        places = (slots == word).float()  # (B, N)
        found.append(places / places.sum(dim=1, keepdim=True).clamp(min=1))  # a prompt without the word stays all 0
    return torch.stack(found, dim=1)
