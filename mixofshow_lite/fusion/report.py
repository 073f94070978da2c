"""What a fusion says about itself (paper 3.3.2): per layer and concept, how much of the concept's update is lost.

The residual of concept i in a layer is || (dW_i - U) X_i ||^2 / || dW_i X_i ||^2: 0 when the fused layer does what
the concept's own layer did on its own inputs, 1 when it does what the base did. `before` is weight fusion (Eq. 2),
`after` this fusion, both measured on the same recorded inputs. NaN where a concept does not change the layer.
"""

import math
from dataclasses import dataclass, field

from ..concept import Factors

STAGES = ("text encoder", "keys and values", "spatial layers")


@dataclass(frozen=True)
class LayerReport:
    """One fused layer. Tuples are in the order of FusionReport.concepts."""

    stage: str  # one of STAGES
    name: str  # module name
    before: tuple[float, ...]  # residual of each concept under weight fusion
    after: tuple[float, ...]  # residual of each concept under this fusion
    energy: tuple[float, ...]  # || dW_i X_i ||^2 per row, what the residuals are relative to
    rows: tuple[int, ...]  # rows recorded of each concept
    rank: int  # of the stored factors, sum of the r_i
    ridge: float  # lam, absolute
    condition: float  # of G + lam I
    freedom: float  # how many of the d_in directions the recordings decide


@dataclass
class FusionReport:
    """How the fused model came about; `print(report)` shows the table, `factors` is the fused update itself."""

    method: str  # e.g. "gradient fusion (closed_form)"
    concepts: tuple[str, ...]  # names, sorted
    settings: dict = field(default_factory=dict)  # as passed
    layers: list[LayerReport] = field(default_factory=list)  # empty for weight fusion, which records nothing
    factors: dict[str, Factors] = field(
        default_factory=dict
    )  # "text_encoder" | "unet" -> module -> (down, up), float64

    def residual(self, concept: str, stage: str | None = None, which: str = "after") -> float:
        """Residual of one concept over the layers of a stage (or all), weighted by its energy in each."""
        index = self.concepts.index(concept)
        chosen = [layer for layer in self.layers if stage in (None, layer.stage) and layer.energy[index] > 0]
        total = sum(layer.energy[index] for layer in chosen)
        lost = sum(getattr(layer, which)[index] * layer.energy[index] for layer in chosen)
        return lost / total if total > 0 else math.nan

    def worst(self, concept: str) -> LayerReport | None:
        """The layer that accounts for most of what the concept lost, None if nothing was recorded."""
        index = self.concepts.index(concept)
        chosen = [layer for layer in self.layers if layer.energy[index] > 0]
        return max(chosen, key=lambda layer: layer.after[index] * layer.energy[index], default=None)

    def __str__(self) -> str:
        rank = max((down.shape[0] for factors in self.factors.values() for down, _ in factors.values()), default=0)
        layers = sum(len(factors) for factors in self.factors.values())
        lines = [f"{self.method} of {', '.join(self.concepts)}: {layers} layers, rank at most {rank}"]
        if not self.layers:
            return lines[0]
        lines.append("share of each concept's update lost on its own inputs, weight fusion -> this fusion")
        width = max(map(len, self.concepts)) + 2
        lines.append(" " * width + "".join(f"{stage:>20}" for stage in STAGES))
        for name in self.concepts:
            cells = (f"{self.residual(name, s, 'before'):.3f} -> {self.residual(name, s):.3f}" for s in STAGES)
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
        for name in self.concepts:
            if (layer := self.worst(name)) is not None:
                lines.append(f"{name} lost most in {layer.name} ({layer.stage})")
        return "\n".join(lines)
