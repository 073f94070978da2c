"""What a fusion has recorded, in memory or on disk (paper 3.2): per concept and stage the Grams of layer inputs.

    file                                  holds
    <name>.<hash>.<stage>.safetensors     "<feed>" (d_in, d_in) float32, "<part>|<feed>" the same of one prompt alone
    its header                            concept, stage, key, made_with, rows of every Gram

A Gram is a sum of outer products over thousands of rows (pixels or tokens, steps, prompts): no picture, prompt or
feature of a single pixel is kept. On disk every Gram is read when it is looked at, one at a time, so that memory does
not grow with the number of concepts (at Stable Diffusion 1.5's size a concept's Grams are 0.3 GB).
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ...files.concept import Concept
from ...files.warn import warn
from ...files.writing import atomic_file, make_folder
from ..arguments import as_path
from .grams import Statistics, feed


class StoredGrams(Mapping):
    """The Grams of one file as a mapping feed -> (d_in, d_in) float64, each read from disk when asked for."""

    def __init__(self, file: Path, prefix: str = ""):
        self.file, self.prefix = file, prefix
        with safe_open(file, "pt") as stored:
            self.names = [k.removeprefix(prefix) for k in stored.keys() if k.rpartition("|")[0] == prefix.rstrip("|")]

    def __getitem__(self, key: str) -> Tensor:
        if key not in self.names:
            raise KeyError(key)
        with safe_open(self.file, "pt") as stored:
            return stored.get_tensor(self.prefix + key).double()

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class Column(Sequence):
    """One feed's Gram of every concept, read when it is looked at."""

    def __init__(self, statistics: Sequence[Statistics], key: str):
        self.statistics, self.key = statistics, key

    def __getitem__(self, index: int) -> Tensor:
        return self.statistics[index].grams[self.key]

    def __len__(self) -> int:
        return len(self.statistics)


@dataclass
class Memory:
    """Recorded statistics by (concept name, stage): what is in it is used, what is missing is recorded and added.

    With a `folder` they are written there, each file all or nothing, and found there again by `Memory(folder)`.
    """

    folder: Path | None = None
    kept: dict[tuple[str, str], Statistics] = field(default_factory=dict)

    def __post_init__(self):
        if self.folder is not None:
            self.folder = as_path(self.folder)
            make_folder(self.folder)
            for file in sorted(self.folder.glob("*.safetensors")):
                self._read(file)

    def get(self, name: str, stage: str, layers: list[str], key: str = "") -> Statistics | None:
        """What is kept of one concept in a stage, if it covers the layers and was recorded for `key`."""
        found = self.kept.get((name, stage))
        usable = found is not None and found.key == key and all(feed(layer) in found.grams for layer in layers)
        return found if usable else None

    def put(self, name: str, stage: str, statistics: Statistics) -> Statistics:
        """Keep statistics, rounded to float32 as they would be on disk; returns what is kept."""
        statistics = rounded(statistics) if self.folder is None else self._write(name, stage, statistics)
        self.kept[name, stage] = statistics
        return statistics

    def forget(self, concept: str | None = None, stage: str | None = None) -> None:
        """Drop the statistics of one concept (or all) in one stage (or all), from the disk as well."""
        for name, at in [key for key in self.kept if concept in (None, key[0]) and stage in (None, key[1])]:
            del self.kept[name, at]
            if self.folder is not None:
                self.file(name, at).unlink(missing_ok=True)

    def copy(self, folder: Path | None = None) -> "Memory":
        """A memory that starts with the same statistics: what it records or forgets does not touch this one's."""
        other = Memory(folder)
        other.kept |= self.kept
        return other

    def file(self, name: str, stage: str) -> Path:
        return self.folder / f"{file_name(name)}.{stage.replace(' ', '_')}.safetensors"

    def _write(self, name: str, stage: str, statistics: Statistics) -> Statistics:
        parts = {"": statistics, **{f"{i}|": part for i, part in enumerate(statistics.parts)}}
        tensors = {p + k: gram.float().contiguous() for p, part in parts.items() for k, gram in part.grams.items()}
        about = {"concept": name, "stage": stage, "key": statistics.key, "made_with": statistics.made_with}
        about["rows"] = json.dumps({p + k: rows for p, part in parts.items() for k, rows in part.rows.items()})
        file = self.file(name, stage)
        with atomic_file(file) as temporary:
            save_file(tensors, temporary, metadata=about)
        return read_statistics(file)[2]

    def _read(self, file: Path) -> None:
        try:
            name, stage, statistics = read_statistics(file)
        except Exception:
            warn(f"{file} cannot be read: what it held will be recorded again.")
            file.unlink(missing_ok=True)
            return
        self.kept[name, stage] = statistics


def read_statistics(file: Path) -> tuple[str, str, Statistics]:
    """(concept name, stage, statistics) of one file; the Grams stay on disk until they are looked at."""
    with safe_open(file, "pt") as stored:
        about = stored.metadata()
    rows = json.loads(about["rows"])
    parts = []
    while any(key.startswith(f"{len(parts)}|") for key in rows):
        mark = f"{len(parts)}|"
        parts.append(
            Statistics(StoredGrams(file, mark), {k[len(mark) :]: n for k, n in rows.items() if k.startswith(mark)})
        )
    whole = {k: n for k, n in rows.items() if "|" not in k}
    kept = Statistics(StoredGrams(file), whole, tuple(parts), about["key"], about["made_with"])
    return about["concept"], about["stage"], kept


def rounded(statistics: Statistics) -> Statistics:
    """The same Grams as they come back from a file: rounded to float32, the precision of the products they add up."""
    grams = {key: gram.float().double() for key, gram in statistics.grams.items()}
    parts = tuple(rounded(part) for part in statistics.parts)
    return Statistics(grams, dict(statistics.rows), parts, statistics.key, statistics.made_with)


def file_name(name: str) -> str:
    """A concept's name as part of a file name: readable, and different for different names."""
    return re.sub(r"[^\w-]+", "_", name)[:40] + "." + hashlib.sha256(name.encode()).hexdigest()[:8]


def digest(concept: Concept) -> str:
    """A short hash of all that a fusion reads of a concept."""
    named = (concept.name, concept.words, concept.class_word, concept.phrase, concept.scale, concept.fingerprint)
    found = hashlib.sha256(repr(named).encode())
    tensors = {f"word {word}": rows for word, rows in concept.embeddings.items()}
    for net, factors in concept.lora.items():
        for module, (down, up) in factors.items():
            tensors |= {f"{net} {module} down": down, f"{net} {module} up": up}
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().float().contiguous()
        found.update(f"{key} {tuple(tensor.shape)}".encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()[:16]


def gram_bytes(widths: Sequence[int], concepts: int) -> int:
    """Bytes of one Gram a feed of the given widths, for every concept, in float64."""
    return concepts * sum(8 * width * width for width in widths)
