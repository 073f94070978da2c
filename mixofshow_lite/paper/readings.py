"""What a reader says of drawn pictures is measured once (4.3) and kept in the study's working folder.

    <folder>/readings/<key>.json    {"asked": what decides the numbers, "numbers": {"image": [one a picture]}, ...}

The key is a hash of `asked`: every weight of the base and of the CLIP, the concepts' words and LoRAs, the way they are
fused and its options, prompt, number and noise of the pictures, the references' pixels, the versions of torch and of
its neighbours, and the part of this library's code that draws, fuses and scores, without comments. So tables share what
they have in common, and an interrupted one goes on where it stopped.
"""

import ast
import hashlib
import inspect
import json
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..engine.evaluation import Scorer
from ..engine.fusion.memory import digest
from ..files.concept import Concept
from ..files.warn import warn
from ..files.writing import write_text
from ..model import DiffusionModel

PACKAGES = ("torch", "diffusers", "transformers", "peft")
CODE = (  # what decides the numbers once concepts are tuned; how they are tuned shows in the concepts themselves
    *(f"{name}.py" for name in ("attention", "diffusion", "evaluation", "lora", "model", "prompts")),
    *(f"engine/{name}.py" for name in ("evaluation", "layerwise", "lora", "regional", "spatial")),
    "engine/fusion/*.py",
    "files/concept.py",
    "rivals/*.py",
)


@dataclass
class Readings:
    """The kept readings of one base and one reader."""

    folder: Path | None  # None: nothing is kept
    common: dict  # what decides all of them: base, reader, code, versions

    @classmethod
    def of(cls, folder: str | Path | None, base: DiffusionModel, scorer: Scorer) -> "Readings":
        """Those in `folder`/readings; of a large base it takes seconds, since all its weights are read."""
        if folder is None:
            return cls(None, {})
        versions = {package: metadata.version(package) for package in PACKAGES}
        common = {"base": base_digest(base), "reader": reader_digest(scorer), "code": code_digest()}
        return cls(Path(folder) / "readings", common | {"versions": versions})

    def take(self, asked: Mapping, measure: Callable[[], Mapping[str, Sequence[float]]]) -> tuple[dict, bool]:
        """Number -> (n,) float32, one of each picture, and whether they were kept; else `measure` gives them now.

        `asked` are plain values; where its model is None, a way without a name, nothing is kept. Warns of a damaged
        file, which is measured anew. Raises OSError if a reading cannot be written.
        """
        if self.folder is None or asked["model"] is None:
            return as_arrays(measure()), False
        asked = json.loads(json.dumps(self.common | dict(asked)))
        file = self.folder / f"{hashed(asked)[:32]}.json"
        numbers = kept_numbers(file, asked)
        if numbers is not None:
            return as_arrays(numbers), True
        numbers = {name: [float(value) for value in values] for name, values in measure().items()}
        found = {"asked": asked, "numbers": numbers}
        write_text(file, json.dumps(found | {"check": hashed(found)}) + "\n")
        return as_arrays(numbers), False


def as_arrays(numbers: Mapping[str, Sequence[float]]) -> dict[str, np.ndarray]:
    """Numbers as the reader gives them, float32, so that a mean over kept ones is the same to the last digit."""
    return {name: np.asarray(values, dtype=np.float32) for name, values in numbers.items()}


def kept_numbers(file: Path, asked: Mapping) -> dict[str, list[float]] | None:
    """The numbers in a file if it is whole and is about what is asked; None, after a sentence if it is damaged."""
    if not file.is_file():
        return None
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found.pop("check") == hashed(found) and found["asked"] == asked:
            return found["numbers"]
    except (ValueError, KeyError, TypeError, AttributeError):
        pass  # cut off, or written by somebody else
    warn(f"The reading {file} is damaged: its pictures are drawn and measured anew.")
    return None


def hashed(plain) -> str:
    """A hash of plain values, the same for dictionaries in any order."""
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


# The parts of a key


def alone_key(concept: Concept, alpha: float = 1.0) -> list:
    """What names base + alpha * one concept."""
    return ["alone", concept.base_id, digest(concept), alpha]


def fused_key(way: Callable, concepts: Iterable[Concept]) -> list | None:
    """What names the base with all concepts fused in a way; None if the way has no name, see `way_key`."""
    named = way_key(way)
    return named and ["fused", named, [[concept.base_id, digest(concept)] for concept in concepts]]


def way_key(way: Callable) -> list | None:
    """The name, the source and the options of a fusion.

    None for what no name stands for, so that nothing of it may be kept: a lambda, a function inside another, and
    options that are no plain values.
    """
    options = {}
    while isinstance(way, partial) and not way.args:
        way, options = way.func, way.keywords | options
    name = f"{getattr(way, '__module__', '')}.{getattr(way, '__qualname__', '<nameless>')}"
    try:
        given = json.loads(json.dumps({key: value for key, value in options.items() if key != "progress"}))
        return None if "<" in name else [name, without_comments(textwrap.dedent(inspect.getsource(way))), given]
    except (TypeError, ValueError, OSError):  # no plain values; no source
        return None


def base_digest(base: DiffusionModel) -> str:
    """A hash of all that a base draws with: every weight, unlike its fingerprint, and how it is set up."""
    config = sorted(dict(base.scheduler.config).items())
    found = hashlib.sha256(repr((base.base_id, base.fingerprint, base.guidance, config)).encode())
    found.update(f"{base.dtype} {base.device.type}".encode())
    nets = [(net, getattr(base, net).state_dict()) for net in ("text_encoder", "unet", "vae")]
    for name, tensors in (*nets, ("words", base.words)):
        update(found, name, tensors)
    return found.hexdigest()


def reader_digest(scorer: Scorer) -> str:
    """A hash of the CLIP that reads: its name, its weights and how pictures and prompts are prepared."""
    found = hashlib.sha256(repr((scorer.name, scorer.opening, str(scorer.preprocess), scorer.device)).encode())
    update(found, "clip", scorer.model.state_dict() if scorer.model is not None else {})
    return found.hexdigest()


def pictures_digest(pictures: Iterable[Image.Image]) -> str:
    """A hash of the pixels of pictures."""
    found = hashlib.sha256()
    for picture in pictures:
        found.update(f"{picture.mode} {picture.size}".encode() + picture.tobytes())
    return found.hexdigest()


def update(found, name: str, tensors: Mapping[str, torch.Tensor]) -> None:
    """Add tensors to a hash, bit for bit."""
    for key, tensor in sorted(tensors.items()):
        found.update(f"{name} {key} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().flatten().contiguous().cpu().view(torch.uint8).numpy())


@cache
def code_digest() -> str:
    """A hash of the code that decides the numbers."""
    root = Path(__file__).parents[1]
    files = [file for part in CODE for file in sorted(root.glob(part))]
    return hashed([without_comments(file.read_text(encoding="utf-8")) for file in files])


def without_comments(source: str) -> str:
    """A hash of what Python code does: comments, docstrings and line breaks do not count."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        if documented and ast.get_docstring(node) is not None:
            node.body = node.body[1:]
    return hashed(ast.dump(tree))
