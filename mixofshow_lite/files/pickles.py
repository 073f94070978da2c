"""Pickles (.pth, .pt, .bin, .ckpt) of other programs. Opening one could run any program that its author put in.

So they are read with `weights_only=True`: tensors and plain containers come in, anything else is refused.
"""

import pickle
from pathlib import Path

import torch
from torch import Tensor

from .kinds import ADVICE, EMBEDDING

ENDINGS = (".pth", ".pt", ".bin", ".ckpt")
BEGINNING = 2**16  # bytes at the start of a pickle in which its names stand, before the tensors


def read_pickle(file: Path):
    """What a pickle holds, tensors and containers only. Raises FileNotFoundError or ValueError with one sentence."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: check its name.")
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        with open(file, "rb") as opened:  # an embedding of the first programs keeps its rows in a ParameterDict
            if b"string_to_param" in opened.read(BEGINNING):
                raise ValueError(f"{file.name} is {EMBEDDING}: {ADVICE[EMBEDDING]}.") from error
        raise ValueError(
            f"{file} holds more than tensors, or is no pickle at all, and was refused, because opening it could run "
            "somebody's program: ask its author for a safetensors file."
        ) from error
    except Exception as error:
        raise ValueError(
            f"{file} is truncated or no {file.suffix} ({type(error).__name__}): copy or download it again."
        ) from error


def read_state(file: Path) -> dict[str, Tensor]:
    """The tensors of a LoRA that an older program pickled: one flat dict, or one under "state_dict".

    Raises FileNotFoundError or ValueError with one sentence; an official Mix-of-Show file is said to be one.
    """
    content = read_pickle(file)
    content = content.get("state_dict", content) if isinstance(content, dict) else content
    if not isinstance(content, dict):
        raise ValueError(f"{file.name} holds a {type(content).__name__}, no tensors with names: give a LoRA file.")
    if "params" in content or "new_concept_embedding" in content:
        raise ValueError(f"{file.name} is an official Mix-of-Show file: read it with Concept.from_official.")
    return {str(key): value for key, value in content.items()}
