"""The official implementation's ED-LoRA files (.pth), main and research branch.

    {"params": {"new_concept_embedding": {"<potter1>": (L, D), "<potter2>": (L, D)},
                "text_encoder": {<key>: down (r, d_in) | up (d_out, r)}, "unet": {...}}}

A .pth is a pickle, which could run any program when it is opened. It is read with `weights_only=True`, so that only
tensors and plain containers come in; anything else is refused.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from .concept import Factors
from .keys import NETS, match

WORDS = ("new_concept_embedding", "new_concept_token")  # the second is the research branch's older name


def read_official(file: str | Path, base) -> tuple[dict[str, Tensor], dict[str, Factors], str]:
    """(word -> (L, D), factors, a sentence that says how many tensors matched) of an official .pth.

    A word with one row for all layers (the official plain LoRA) is copied to every layer. Raises FileNotFoundError or
    ValueError with one sentence.
    """
    file = Path(file)
    params = read_pickle(file)
    params = params.get("params", params) if isinstance(params, dict) else None
    if not isinstance(params, dict) or not any(params.get(part) for part in (*WORDS, *NETS)):
        raise ValueError(f"{file.name} is no official Mix-of-Show file (no embeddings, no LoRA): give an ED-LoRA .pth.")
    if unknown := sorted(set(params) - {*WORDS, *NETS}, key=str):
        raise ValueError(f"{file.name} has parts that no ED-LoRA has, e.g. {unknown[0]!r}: give an ED-LoRA .pth.")
    rows = next((params[part] for part in WORDS if params.get(part)), {})
    words = {word: layer_rows(word, row, base, file.name) for word, row in rows.items()}
    tensors = {f"{net}.{key}": tensor for net in NETS for key, tensor in (params.get(net) or {}).items()}
    if any(not isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{file.name} holds something else than tensors in its LoRA: get the file again.")
    factors = match(tensors, base, file.name) if tensors else {}
    layers = "".join(f", {len(found)} layers of the {net}" for net, found in factors.items())
    total = len(tensors) + len(words)
    return words, factors, f"{file.name}: {total} of {total} tensors matched, {len(words)} words{layers}"


def read_pickle(file: Path):
    """What a .pth holds, tensors and containers only."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: check its name.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{file} holds more than tensors, or is no pickle at all, and was refused, because opening it could run "
            "somebody's program: ask its author for a safetensors file."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{file} is truncated or no .pth ({type(error).__name__}): copy or download it again."
        ) from error


def layer_rows(word: str, rows, base, source: str) -> Tensor:
    """A word's rows as (L, D) in float32."""
    L, D = len(base.layers), base.text_encoder.config.hidden_size
    if (
        not isinstance(rows, Tensor)
        or rows.ndim not in (1, 2)
        or tuple(rows.reshape(-1, rows.shape[-1]).shape)
        not in (
            (1, D),
            (L, D),
        )
    ):
        shape = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        raise ValueError(
            f"The word {word} in {source} is {shape} but {base.base_id or 'this base'} has {L} layers of width {D}: "
            "load the base it was tuned on."
        )
    if not torch.isfinite(rows).all():
        raise ValueError(f"The word {word} in {source} holds numbers that are not finite: get the file again.")
    return rows.detach().float().reshape(-1, D).expand(L, D).clone()
