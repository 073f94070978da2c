"""The center node (paper 3.2, Fig. 1): clients join with a Concept and leave again; nobody else is asked.

What a client sends is its Concept: words and low-rank updates. What the node keeps beside it are Grams of layer
inputs that it recorded itself by sampling from the Concept (`memory`): never a picture, a caption or a prompt of the
client.

    folder/                      written when                    holds
    center.json                  join, leave, reweight           base, settings, members and weights
    concepts/<name>.<hash>/      join                            a member's Concept, without its preview pictures
    statistics/*.safetensors     a stage of a member is recorded its Gram matrices and row counts

center.json is what counts: it is replaced in one step, a Concept is complete before it is named there, and what is not
named there is swept away by `load`. So a node that is killed at any moment restarts with every member that had joined
and every recording that was finished.

After a join, a leave or a new weight, compared with a fresh `gradient_fusion` of the same members:
- text encoder: the kept Grams depend on the base and the client alone, so the result is exact;
- keys and values: their inputs are the *fused* text encoder's features, cheap to read again, so it is exact as well;
- spatial layers: kept Grams saw the text encoder and keys of those who were members then; the newcomer alone is
  sampled. They are exact for members who are not `stale()` and an approximation for those who are.
`approximation()` measures how far the quick result is from the exact one, `fuse(exact=True)` samples stale members
again and equals a fresh fusion.
"""

import copy
import json
import math
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..engine.arguments import as_path, is_number, shown
from ..engine.fusion import algebra
from ..engine.fusion.gradient import CONTEXT, NO_CONCEPT, SPATIAL, gradient_fusion, state
from ..engine.fusion.memory import Memory, digest, file_name
from ..engine.fusion.report import FusionReport
from ..engine.fusion.settings import Settings
from ..engine.fusion.weight import check_concepts
from ..files.concept import Concept, check_is_model
from ..files.writing import make_folder, write_text
from ..model import DiffusionModel


@dataclass(frozen=True)
class Approximation:
    """The quick fuse against the exact one."""

    weights: float  # || U_quick - U_exact ||_F / || U_exact ||_F over all layers; 0: the same model
    residual: dict[str, tuple[float, float]]  # concept -> share of its spatial updates lost (quick, exact), each
    # on what it was fused on itself

    def __str__(self) -> str:
        lines = [f"the quick update differs from the exact one by {self.weights:.2%} of its size"]
        lines += [
            f"{name}: lost in the spatial layers {q:.3f} (exact {e:.3f})" for name, (q, e) in self.residual.items()
        ]
        return "\n".join(lines)


class CenterNode:
    """Holds the members of one fusion. `settings` are those of `gradient_fusion` and the same for every fuse.

    With a `folder` everything is written there as it happens; `CenterNode.load(folder, base)` goes on from there.
    """

    def __init__(self, base: DiffusionModel, folder: str | Path | None = None, **settings):
        check_is_model(base)
        self.base = base
        self.settings = Settings.of(**settings)
        self.members: dict[str, Concept] = {}  # name -> concept
        self.weights: dict[str, float] = {}  # name -> weight before normalisation
        self.folder: Path | None = None
        self.memory = Memory()
        if folder is not None:
            if (as_path(folder) / "center.json").exists():
                raise FileExistsError(f"{folder} holds a center node already: use CenterNode.load, or another folder.")
            self.save(folder)

    def __repr__(self) -> str:
        return f"CenterNode({self.base.base_id!r}, members: {', '.join(sorted(self.members)) or 'none'})"

    def join(self, concept: Concept, weight: float = 1.0) -> None:
        """Take a client in; raises ValueError if it does not fit the base or clashes with a member."""
        check_concepts(self.base, [*self.members.values(), concept], [*self.weights.values(), weight])
        if any(concept.lora.values()):
            self.settings.contexts(concept)  # fails now rather than at the next fuse
        concept = copy.deepcopy(replace(concept, preview=None))
        self.memory.forget(concept=concept.name)
        if self.folder is not None:
            concept.save(concept_folder(self.folder, concept))
        self._commit(self.members | {concept.name: concept}, self.weights | {concept.name: float(weight)})

    def leave(self, concept: Concept | str) -> None:
        """Let a client go and forget all that was kept of it.

        Raises ValueError if it is no member, OSError if the node's folder is not as it left it.
        """
        name = self._member(concept)
        gone = self.members[name]
        self._commit(
            {n: c for n, c in self.members.items() if n != name}, {n: w for n, w in self.weights.items() if n != name}
        )
        self.memory.forget(concept=name)
        if self.folder is not None:
            shutil.rmtree(concept_folder(self.folder, gone), ignore_errors=True)

    def reweight(self, concept: Concept | str, weight: float) -> None:
        """Give a member another weight (1 at first); raises ValueError if it is no member or the weight is none."""
        weights = self.weights | {self._member(concept): weight}
        check_concepts(self.base, list(self.members.values()), list(weights.values()))
        self._commit(self.members, {name: float(number) for name, number in weights.items()})

    def fuse(self, exact: bool = False, progress: bool = True) -> DiffusionModel:
        """The members' fused model; `exact` samples again those members whose recordings other members have changed."""
        self.memory.forget(stage=CONTEXT)
        if exact:
            for name in self._stale():
                self.memory.forget(concept=name, stage=SPATIAL)
        return self._fuse(self.memory, progress)

    def stale(self) -> list[str]:
        """Members whose spatial layers were recorded among other members, weights or settings than now."""
        return [name for name in self._stale() if name != NO_CONCEPT]

    def approximation(self, progress: bool = True) -> Approximation:
        """How far `fuse()` is from `fuse(exact=True)` now. Samples stale members again, but keeps nothing of that."""
        with tempfile.TemporaryDirectory() as quick, tempfile.TemporaryDirectory() as fresh:
            on_disk = self.folder is not None
            first, second = (self.memory.copy(Path(p) if on_disk else None) for p in (quick, fresh))
            for memory in (first, second):
                memory.kept = {k: s for k, s in memory.kept.items() if k[1] != CONTEXT}
            stale = self._stale()
            second.kept = {k: s for k, s in second.kept.items() if k[1] != SPATIAL or k[0] not in stale}
            a, b = (self._fuse(memory, progress).report for memory in (first, second))
        residual = {name: (a.residual(name, SPATIAL), b.residual(name, SPATIAL)) for name in a.concepts}
        return Approximation(distance(a, b), residual)

    def save(self, folder: str | Path) -> Path:
        """Write the whole node to `folder`; from now on it is kept up to date there. Raises OSError on a full disk."""
        folder = as_path(folder)
        if folder == self.folder:
            self._commit(self.members, self.weights)
            return folder
        if (folder / "center.json").exists():
            raise FileExistsError(f"{folder} holds another center node: choose another folder.")
        make_folder(folder / "concepts")
        memory = Memory(folder / "statistics")
        memory.forget()
        for concept in self.members.values():
            concept.save(concept_folder(folder, concept))
        for (name, stage), statistics in self.memory.kept.items():
            memory.put(name, stage, statistics)
        self.folder, self.memory = folder, memory
        self._commit(self.members, self.weights)
        return folder

    @classmethod
    def load(cls, folder: str | Path, base: DiffusionModel) -> "CenterNode":
        """The node as it was when it was last heard of; raises OSError or ValueError with one sentence."""
        folder, node = as_path(folder), cls(base)
        node.settings, members, made_for, fingerprint = read_about(folder)
        if fingerprint and base.fingerprint and fingerprint != base.fingerprint:
            raise ValueError(
                f"The center node in {folder} was made for {made_for}, the base here is {base.base_id}: load that base."
            )
        node.folder = folder
        make_folder(folder / "concepts")  # a copy of a node without members may have lost it
        for name, weight in members.items():
            concept = Concept.load(folder / "concepts" / name)
            if concept.name in node.members:
                raise ValueError(
                    f"{folder} has two members called {concept.name!r}: restore its center.json from a copy."
                )
            node.members[concept.name], node.weights[concept.name] = concept, weight
        node.memory = Memory(folder / "statistics")
        node._sweep()
        return node

    def _fuse(self, memory: Memory, progress: bool) -> DiffusionModel:
        members, weights = list(self.members.values()), list(self.weights.values())
        settings = {name: getattr(self.settings, name) for name in self.settings.__dataclass_fields__}
        return gradient_fusion(
            self.base, members, weights=weights or None, progress=progress, memory=memory, **settings
        )

    def _stale(self) -> list[str]:
        """Names as `stale`, and NO_CONCEPT for the prompts without concepts."""
        if not self.members:
            return []
        concepts, w = check_concepts(self.base, list(self.members.values()), list(self.weights.values()))
        now = state(self.base, concepts, w, self.settings)
        return sorted(name for (name, at), s in self.memory.kept.items() if at == SPATIAL and s.made_with != now)

    def _member(self, concept: Concept | str) -> str:
        name = concept.name if isinstance(concept, Concept) else concept
        if not isinstance(name, str):
            raise TypeError(f"{shown(concept)} is no member of a center node: give a Concept or its name.")
        if name not in self.members:
            raise ValueError(
                f"{shown(name)} is no member of this center node: its members are {', '.join(self.members) or 'none'}."
            )
        return name

    def _commit(self, members: dict[str, Concept], weights: dict[str, float]) -> None:
        """Make this the membership: on disk first, in one step, then here; what it names there has to be there."""
        if self.folder is not None:
            kept = {name: concept_folder(self.folder, concept) for name, concept in members.items()}
            make_folder(self.folder / "concepts")
            lost = next((name for name, place in kept.items() if not (place / "concept.json").is_file()), None)
            if lost is not None:
                raise FileNotFoundError(
                    f"{kept[lost]}, where {lost!r} was kept, is gone: put it back, or save the node to another folder."
                )
            listed = [{"folder": place.name, "weight": weights[name]} for name, place in kept.items()]
            about = {"format": "mixofshow-center", "version": 1, "base_id": self.base.base_id}
            about |= {"fingerprint": self.base.fingerprint, "settings": self.settings.as_dict(), "members": listed}
            write_text(self.folder / "center.json", json.dumps(about, indent=2) + "\n")
        self.members, self.weights = members, weights

    def _sweep(self) -> None:
        """Remove what an interrupted join, leave or recording left behind."""
        named = {concept_folder(self.folder, concept).name for concept in self.members.values()}
        for path in (self.folder / "concepts").iterdir():
            if path.name not in named:
                shutil.rmtree(path, ignore_errors=True)
        for name in {name for name, _ in self.memory.kept} - set(self.members) - {NO_CONCEPT}:
            self.memory.forget(concept=name)
        for path in [*(self.folder / "statistics").glob("*.part"), *self.folder.glob("*.part")]:
            path.unlink(missing_ok=True)


def read_about(folder: Path) -> tuple[Settings, dict[str, float], str, str]:
    """center.json of a node: settings, folder of each member -> its weight, and the base's id and fingerprint."""
    file = folder / "center.json"
    if not file.is_file():
        raise FileNotFoundError(f"{folder} holds no center node (center.json is missing): give the folder it saved.")
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if (about["format"], about["version"]) != ("mixofshow-center", 1):
            raise ValueError("unknown format")
        settings, made_for, fingerprint = Settings(**about["settings"]), about["base_id"], about["fingerprint"]
        members = {entry["folder"]: entry["weight"] for entry in about["members"]}
        if len(members) < len(about["members"]) or any(Path(name).name != name for name in members):
            raise ValueError("a member is there twice or elsewhere")
        if not all(is_number(weight, 0) for weight in members.values()):
            raise ValueError("a weight is no number >= 0")
        if not isinstance(made_for, str) or not isinstance(fingerprint, str):
            raise ValueError("its base is no text")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        why = error if type(error) is ValueError else type(error).__name__
        raise ValueError(f"{file} cannot be read ({why}): restore it from a copy.") from error
    return settings, {name: float(weight) for name, weight in members.items()}, made_for, fingerprint


def concept_folder(folder: Path, concept: Concept) -> Path:
    """Where a node keeps a Concept; another content has another folder, so that none is ever overwritten."""
    return folder / "concepts" / f"{file_name(concept.name)}.{digest(concept)[:8]}"


def distance(a: FusionReport, b: FusionReport) -> float:
    """|| U_a - U_b ||_F / || U_b ||_F over all layers, from the factors."""
    gap = size = 0.0
    for net, layers in b.factors.items():
        for name, pair in layers.items():
            eye = torch.eye(pair[0].shape[1], dtype=torch.float64)
            gap += algebra.difference_energy(a.factors[net][name], pair, eye)
            size += algebra.energy(pair, eye)
    return math.sqrt(gap / size) if size > 0 else 0.0
