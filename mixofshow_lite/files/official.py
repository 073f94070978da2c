"""The official implementation's ED-LoRA files (.pth), main and research branch.

{"params": {"new_concept_embedding": {"<potter1>": (L, D), "<potter2>": (L, D)},
            "text_encoder": {<key>: down (r, d_in) | up (d_out, r)}, "unet": {...}}}
"""

from pathlib import Path

import torch
from torch import Tensor

from ..engine.arguments import as_path
from .concept import LoRAFactors, is_word
from .keys import NETS, match, ordinary, warn_of_8_bits
from .kinds import refuse_other_kinds
from .pickles import read_pickle

WORDS = ("new_concept_embedding", "new_concept_token")  # the second is the research branch's older name


def is_official(file: Path) -> bool:
    """Whether a pickle is an official ED-LoRA, by the names of its parts; raises as `read_pickle` does."""
    content = read_pickle(file)
    return isinstance(content, dict) and any(part in content for part in ("params", *WORDS))


def read_official(file: str | Path, base) -> tuple[dict[str, Tensor], dict[str, LoRAFactors], str]:
    """(word -> (L, D), factors, a sentence that says how many tensors matched) of an official .pth.

    A word with one row for all layers (the official plain LoRA) is copied to every layer. Raises FileNotFoundError or
    ValueError with one sentence.
    """
    file = as_path(file)
    params = parts_of(read_pickle(file), file.name)
    rows = next((params[part] for part in WORDS if params.get(part)), {})
    words = {word: layer_rows(word, row, base, file.name) for word, row in rows.items()}
    warn_of_8_bits(rows, f"the words in {file.name}")
    tensors = {f"{net}.{key}": tensor for net in NETS for key, tensor in (params.get(net) or {}).items()}
    factors = match(tensors, base, file.name) if tensors else {}
    layers = "".join(f", {len(found)} layers of the {net}" for net, found in factors.items())
    total = len(tensors) + len(words)
    return words, factors, f"{file.name}: {total} of {total} tensors matched, {len(words)} words{layers}"


def parts_of(content, source: str) -> dict[str, dict]:
    """The parts of an ED-LoRA, each a dict or None; raises ValueError with one sentence on anything else."""
    params = content.get("params", content) if isinstance(content, dict) else None
    if isinstance(params, dict):
        refuse_other_kinds(params.get("state_dict", params), source)
    if not isinstance(params, dict) or not any(part in params for part in (*WORDS, *NETS)):
        raise ValueError(
            f"{source} is no official Mix-of-Show file (no embeddings, no LoRA): give an ED-LoRA .pth, or read another "
            "LoRA with Concept.from_lora."
        )
    if unknown := sorted(set(params) - {*WORDS, *NETS}, key=str):
        raise ValueError(f"{source} has parts that no ED-LoRA has, e.g. {unknown[0]!r}: give an ED-LoRA .pth.")
    for part, found in params.items():
        if found is not None and not isinstance(found, dict):
            raise ValueError(f"{part} in {source} is a {type(found).__name__}, no dict: get the file again.")
    if all(params.get(part) for part in WORDS):
        raise ValueError(f"{source} holds its words twice ({' and '.join(WORDS)}): get the file again.")
    if not any(params.values()):
        raise ValueError(f"{source} is an official Mix-of-Show file without words and LoRA: get the file again.")
    return params


def layer_rows(word: str, rows, base, source: str) -> Tensor:
    """A word's rows as (L, D) in float32."""
    L, D = len(base.layers), base.text_encoder.config.hidden_size
    if not is_word(word):
        raise ValueError(f"{word!r} in {source} is no concept word, which is written like <bibi1>: get the file again.")
    if not isinstance(rows, Tensor) or not ordinary(rows):
        raise ValueError(f"The word {word} in {source} is no tensor of decimal numbers: get the file again.")
    if tuple(rows.shape) not in ((D,), (1, D), (L, D)):
        raise ValueError(
            f"The word {word} in {source} is {tuple(rows.shape)} but {base.base_id or 'this base'} has {L} layers of "
            f"width {D}: load the base it was tuned on."
        )
    rows = rows.detach().float()
    if not torch.isfinite(rows).all():
        raise ValueError(f"The word {word} in {source} holds numbers that are not finite: get the file again.")
    return rows.reshape(-1, D).expand(L, D).clone()
