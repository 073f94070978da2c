"""Pocket Diffusion's tokenizer: a stock CLIPTokenizer whose byte-pair merges were learned on the world's own captions.

Every word the world uses is one token; any other word is split into bytes and pieces, so nothing crashes. `words.txt`
beside the tokenizer lists the words the model knows.
"""

import json
import re
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

from . import captions, world
from .anatomy import TOKENS

START, END = "<|startoftext|>", "<|endoftext|>"


def known_words(pictures: int = 4000) -> list[str]:
    """All words of the world's captions (by drawing many of them), sorted."""
    words = set(world.CLASSES) | set(world.SCENES) | set(world.COLORS)
    for index in range(pictures):
        rng = np.random.default_rng([7, index])
        words |= set(re.findall(r"[a-z]+|,", captions.caption(world.sample(rng), rng)))
    return sorted(words)


def build_tokenizer(folder) -> CLIPTokenizer:
    """Learn merges until every known word is one token, write folder/{vocab.json, merges.txt, words.txt, …}."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    words = known_words()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(
        words, trainers.BpeTrainer(vocab_size=20000, min_frequency=1, end_of_word_suffix="</w>", show_progress=False)
    )
    learned = json.loads(bpe.to_str())["model"]
    merges = [tuple(m) if isinstance(m, list) else tuple(m.split(" ")) for m in learned["merges"]]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = letters + [c + "</w>" for c in letters] + ["".join(m) for m in merges] + [START, END]
    vocabulary = list(dict.fromkeys(vocabulary))
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(vocabulary)}, ensure_ascii=False))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(m) for m in merges) + "\n")
    (folder / "words.txt").write_text("\n".join(words) + "\n")
    special = {"bos_token": START, "eos_token": END, "unk_token": END, "pad_token": END, "model_max_length": TOKENS}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer", **special}, indent=2))
    tokenizer = CLIPTokenizer.from_pretrained(folder, model_max_length=TOKENS)
    split = [w for w in words if len(tokenizer(w).input_ids) != 3]
    if split:
        raise ValueError(f"the tokenizer splits words the world uses: {split[:5]}")
    tokenizer.save_pretrained(folder)
    return tokenizer
