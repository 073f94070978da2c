"""What a fusion says about itself (paper 3.3.2): per layer and concept, how much of the concept's update is lost.

The residual of concept i in a layer is || (dW_i - U) X_i ||^2 / || dW_i X_i ||^2: 0 when the fused layer does what
the concept's own layer did on its own inputs, 1 when it does what the base did. `before` is weight fusion (Eq. 2),
`after` this fusion, both measured on the same recorded inputs. NaN where a concept does not change the layer.
"""

import math
from dataclasses import dataclass, field

from ...files.concept import LoRAFactors
from .drift import Drift

STAGES = ("text encoder", "keys and values", "spatial layers")
NOTHING = 1e-12  # residuals below this are rounding


@dataclass(frozen=True)
class LayerReport:
    """One fused layer. Tuples are in the order of FusionReport.concepts."""

    stage: str  # one of STAGES
    name: str  # module name
    before: tuple[float, ...]  # residual of each concept under weight fusion
    after: tuple[float, ...]  # residual of each concept under this fusion
    energy: tuple[float, ...]  # || dW_i X_i ||^2 per row, what the residuals are relative to
    rows: tuple[int, ...]  # rows recorded of each concept
    rank: int  # of the stored factors, at most the sum of the r_i
    ridge: float = math.nan  # lam, absolute
    condition: float = math.nan  # of G + lam I
    freedom: float = math.nan  # how many of the d_in directions the recordings decide
    relative: float = math.nan  # lam over the mean diagonal of G


@dataclass
class FusionReport:
    """How the fused model came about; `print(report)` shows the table, `factors` is the fused update itself."""

    method: str  # e.g. "gradient fusion (closed_form)"
    concepts: tuple[str, ...]  # names, sorted
    settings: dict = field(default_factory=dict)  # as passed
    layers: list[LayerReport] = field(default_factory=list)  # empty for weight fusion, which records nothing
    factors: dict[str, LoRAFactors] = field(
        default_factory=dict
    )  # "text_encoder" | "unet" -> module -> (down, up), float64, rotated: no concept's own, see algebra.compact
    drift: Drift | None = None  # of prompts without any concept, where asked for

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

    def cell(self, concept: str, stage: str) -> str:
        before, after = self.residual(concept, stage, "before"), self.residual(concept, stage)
        return "no update" if math.isnan(before) else f"{before:.3f} -> {after:.3f}"

    def lost_most(self, concept: str) -> str:
        """In words: where the concept lost most, how much of it there, and how much of all it lost that is."""
        layer, index = self.worst(concept), self.concepts.index(concept)
        if layer is None:
            return f"{concept}: nothing was recorded"
        lost = layer.after[index] * layer.energy[index]
        total = sum(each.after[index] * each.energy[index] for each in self.layers if each.energy[index] > 0)
        if total <= NOTHING * sum(each.energy[index] for each in self.layers):
            return f"{concept} lost nothing"
        return (
            f"{concept} lost most in {layer.name} ({layer.stage}): {layer.after[index]:.0%} of its update there, "
            f"{lost / total:.0%} of all that it lost"
        )

    def plot(self, which: str | None = None):
        """A matplotlib Figure: heat maps layer x concept of the residuals, 0 (kept) to 1 (lost).

        Weight fusion is on the left, this fusion on the right; `which`, "before" or "after", draws one of the two.
        Raises ValueError if nothing was recorded.
        """
        from matplotlib.figure import Figure

        if not self.layers:
            raise ValueError(f"{self.method} records nothing, so there is nothing to plot: use gradient_fusion.")
        kinds = {"before": "weight fusion", "after": self.method}
        chosen = [which] if which else list(kinds)
        height = min(12.0, 2.0 + 0.07 * len(self.layers))
        figure = Figure(figsize=(1.5 + len(chosen) * (1.2 + 0.45 * len(self.concepts)), height), layout="constrained")
        axes = figure.subplots(1, len(chosen), sharey=True, squeeze=False)[0]
        for axis, kind in zip(axes, chosen, strict=True):
            values = [getattr(layer, kind) for layer in self.layers]
            image = axis.imshow(values, aspect="auto", vmin=0, vmax=1, cmap="magma", interpolation="nearest")
            axis.set_title(kinds[kind], fontsize=9)
            axis.set_xticks(range(len(self.concepts)), self.concepts, rotation=45, ha="right")
        starts = [i for i, layer in enumerate(self.layers) if i == 0 or layer.stage != self.layers[i - 1].stage]
        ends = [*starts[1:], len(self.layers)]
        for start in starts[1:]:
            for axis in axes:
                axis.axhline(start - 0.5, color="white", linewidth=1)
        middles = [(a + b - 1) / 2 for a, b in zip(starts, ends, strict=True)]
        axes[0].set_yticks(middles, [self.layers[start].stage for start in starts], rotation=90, va="center")
        axes[0].set_ylabel("layers, first to last")
        figure.colorbar(image, ax=list(axes), label="share of the concept's update lost on its own inputs")
        return figure

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
            cells = (self.cell(name, stage) for stage in STAGES)
            lines.append(f"{name:<{width}}" + "".join(f"{cell:>20}" for cell in cells))
        lines += [self.lost_most(name) for name in self.concepts]
        if self.drift is not None:
            lines.append(str(self.drift))
        return "\n".join(lines)
