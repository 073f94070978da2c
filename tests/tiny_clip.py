"""A CLIP of our own format with random weights, for tests that only need one to be there."""

from mixofshow_lite.engine.evaluation import folder_tokenizer
from mixofshow_lite.pocket.train import clip
from mixofshow_lite.pocket.train.clip_data import reader_tokenizer


def build_clip(folder):
    """Write an untrained Pocket CLIP that sees 32 px -> its folder."""
    import torch

    torch.manual_seed(0)
    words = reader_tokenizer(folder / "words")
    length = clip._length(words)
    tokenize = folder_tokenizer(words, length)
    config = clip.model_config(32, tokenize.vocab_size, tokenize.eos_id, length)
    return clip.export(clip.build(config).eval(), config, words, folder / "clip")
