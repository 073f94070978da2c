"""Pocket Diffusion's tokenizer: a stock CLIPTokenizer whose byte-pair merges were learned on the world's own captions.

Every word the world uses is one token; any other word is split into bytes and pieces, so nothing crashes. `words.txt`
beside the tokenizer lists the words the model knows.
"""

import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
from tokenizers import pre_tokenizers
from transformers import CLIPTokenizer

from ...files.writing import write_text
from .. import captions, world
from .anatomy import TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"


def known_words(pictures: int = 4000) -> list[str]:
    """All words of the world's captions (by drawing many of them), sorted."""
    words = {w for phrases in captions.COUNTS.values() for phrase in phrases for w in phrase.split()}
    words |= set(world.CLASSES) | set(world.SCENES) | set(world.COLORS) | {captions.ODD}
    for index in range(pictures):
        rng = np.random.default_rng([7, index])
        words |= set(re.findall(r"[a-z]+|,", captions.caption(world.sample(rng), rng)))
    return sorted(words)


def learn_merges(words: list[str]) -> list[tuple[str, str]]:
    """Byte-pair merges, the most frequent first, until every word is one piece.

    Ties go to the first pair in the alphabet: the `tokenizers` trainer breaks them at random, and a token's number must
    not change between two builds.
    """
    pieces = [[*word[:-1], word[-1] + "</w>"] for word in words]
    merges = []
    while counts := Counter(pair for word in pieces for pair in itertools.pairwise(word)):
        best = min(counts, key=lambda pair: (-counts[pair], pair))
        merges.append(best)
        pieces = [merge(word, best) for word in pieces]
    return merges


def merge(word: list[str], pair: tuple[str, str]) -> list[str]:
    """The pieces of a word with every occurrence of `pair` joined, left to right."""
    out: list[str] = []
    for piece in word:
        if out and (out[-1], piece) == pair:
            out[-1] += piece
        else:
            out.append(piece)
    return out


def build_tokenizer(folder, words: list[str] | None = None, length: int = TOKENS) -> CLIPTokenizer:
    """The tokenizer in `folder`; if there is none, learn one and write its vocabulary, merges, words and settings.

    words     by default `known_words()`
    length    tokens a prompt may have
    A tokenizer that is there is kept: the embeddings of a half-trained text encoder belong to its numbers.
    """
    folder = Path(folder)
    if (folder / "tokenizer_config.json").is_file():
        return CLIPTokenizer.from_pretrained(folder, local_files_only=True)
    folder.mkdir(parents=True, exist_ok=True)
    words = words or known_words()
    merges = learn_merges(words)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges] + [START, END]
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(vocabulary)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END, "model_max_length": length}
    settings = json.dumps({"tokenizer_class": "CLIPTokenizer", **special}, indent=2)
    write_text(folder / "tokenizer_config.json", settings)  # last: with it the folder is complete
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=length)
    split = [w for w in words if len(tokenizer(w).input_ids) != 3]
    if split:
        raise ValueError(f"the tokenizer splits words the world uses: {split[:5]}")
    tokenizer.save_pretrained(folder)
    return tokenizer
