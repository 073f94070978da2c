"""The center node (paper 3.2, Fig. 1): clients join with a Concept and leave again; nobody else is asked.

What a client sends is its Concept: words and low-rank updates. What the node keeps beside it are Grams of layer
inputs that it recorded itself by sampling from the Concept (`grams.Statistics`): never a picture, a caption or a
prompt of the client.

After a join or a leave, compared with a fresh `gradient_fusion` of the same members:
- text encoder: the kept Grams depend on the base and the client alone, so the result is exact;
- keys and values: their inputs are the *fused* text encoder's features, cheap to read again, so it is exact as well;
- spatial layers: Grams kept from an earlier fuse saw the text encoder and keys of those who were members then. They
  are an approximation once the membership has changed; the newcomer alone is sampled. `fuse(exact=True)` samples
  everybody again.
"""

from ..base import DiffusionModel
from ..concept import Concept
from .gradient import CONTEXT, SPATIAL, Memory, gradient_fusion
from .weight import check


class CenterNode:
    """Holds the members of one fusion. `settings` are those of `gradient_fusion` and the same for every fuse."""

    def __init__(self, base: DiffusionModel, **settings):
        self.base = base
        self.settings = settings
        self.members: dict[str, Concept] = {}  # name -> concept
        self.weights: dict[str, float] = {}  # name -> weight before normalisation
        self.memory = Memory()

    def join(self, concept: Concept, weight: float = 1.0) -> None:
        """Take a client in; raises ValueError if it does not fit the base or clashes with a member."""
        check(self.base, [*self.members.values(), concept], [*self.weights.values(), weight])
        self.memory.forget(concept=concept.name)
        self.members[concept.name] = concept
        self.weights[concept.name] = weight

    def leave(self, concept: Concept | str) -> None:
        """Let a client go and forget all that was kept of it; raises KeyError if it is no member."""
        name = concept if isinstance(concept, str) else concept.name
        if name not in self.members:
            raise KeyError(
                f"{name!r} is no member of this center node: its members are {', '.join(self.members) or 'none'}."
            )
        del self.members[name], self.weights[name]
        self.memory.forget(concept=name)

    def fuse(self, exact: bool = False, progress: bool = True) -> DiffusionModel:
        """The members' fused model; `exact` repeats the recordings that other members have an influence on."""
        self.memory.forget(stage=CONTEXT)
        if exact:
            self.memory.forget(stage=SPATIAL)
        members, weights = list(self.members.values()), list(self.weights.values())
        return gradient_fusion(
            self.base, members, weights=weights or None, progress=progress, memory=self.memory, **self.settings
        )
