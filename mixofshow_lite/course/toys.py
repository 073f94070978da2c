"""The toys of notebooks 04 and 04b: two clients in a plane, a layer whose concepts share directions, real layers."""

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..engine import lora
from ..engine.fusion import algebra
from ..engine.fusion.grams import GramRecorder, feed


def draw_lines(changes: np.ndarray, solve: Callable, degrees: Sequence[float]):
    """A panel for each angle between two clients' inputs: their lines of no loss, the average, least squares, ridges.

    `changes` are two rows (2, 2); `solve(x, ridge)` is the fused row (2,) for inputs x (2, 2). Returns the figure.
    """
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(degrees), figsize=(2.6 * len(degrees), 2.9), sharey=True)
    for ax, angle in zip(axes, np.radians(degrees), strict=True):
        x = np.array([[1, 0], [np.cos(angle), np.sin(angle)]])
        for dw, v, color in zip(changes, x, ("tab:blue", "tab:orange"), strict=True):
            along = 30 * np.array([-v[1], v[0]])  # U may move here without any loss to this client
            ax.plot(*np.stack([dw - along, dw + along]).T, color=color, lw=1)
            ax.plot(*dw, "o", color=color)
        ax.plot(*np.stack([solve(x, ridge) for ridge in np.geomspace(1e-5, 1e2, 90)]).T, ":", color="tab:green")
        ax.plot(*changes.mean(axis=0), "s", color="gray")
        ax.plot(*solve(x, 0.0), "*", color="tab:green", ms=13)
        ax.set(xlim=(-4, 6), ylim=(-5, 5), title=f"inputs at {np.degrees(angle):.0f} degrees", aspect="equal")
    return figure


def toy_layer(shared: int, seed: int = 0, d: int = 24, k: int = 8, r: int = 2, rows: int = 300):
    """Two concepts whose inputs fill k of d directions each and have `shared` of them in common.

    Returns their factors, two of (down (r, d), up (d, r)), and their Grams, two of (d, d), in float64.
    """
    g = torch.Generator().manual_seed(seed)
    X = torch.zeros(2, d, rows, dtype=torch.float64)
    for i, start in enumerate((0, k - shared)):
        X[i, start : start + k] = torch.randn(k, rows, generator=g, dtype=torch.float64)
    factors = [(torch.randn(r, d, generator=g).double(), torch.randn(d, r, generator=g).double()) for _ in range(2)]
    return factors, [x @ x.T / rows for x in X]


def lost(update: algebra.LowRankPair, factors: Sequence[algebra.LowRankPair], grams: Sequence[Tensor]) -> list[float]:
    """Share of each concept's update that is lost on its own inputs: 0 is kept, 1 is gone."""
    pairs = zip(factors, grams, strict=True)
    return [float(algebra.difference_energy(update, own, G) / algebra.energy(own, G)) for own, G in pairs]


def overlap_frame(shared: int, curves: np.ndarray) -> Image.Image:
    """One position of the slider: the two Grams, and what averaging and least squares lose (curves, (9, 2))."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8.6, 2.3), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for i, ax in enumerate((left, middle)):
        ax.imshow(toy_layer(shared)[1][i], cmap="magma", vmin=0, vmax=1)
        ax.set(title=f"G_{i + 1}: inputs of concept {i + 1}", xticks=[], yticks=[])
    for line, label, color in zip(curves.T, ("averaging", "least squares"), ("gray", "tab:green"), strict=True):
        right.plot(line, color=color, label=label)
        right.plot(shared, line[shared], "o", color=color)
    right.set(xlabel="shared directions of 8", title="share of the update lost", ylim=(-0.03, 1))
    right.legend(frameon=False, fontsize=8)
    file = io.BytesIO()
    figure.savefig(file, dpi=80)
    return Image.open(file)


def record(model, layers: dict[str, str], prompts: Sequence[str], seed: int, steps: int = 12) -> dict[str, Tensor]:
    """Grams (d_in, d_in) of the named layers' inputs while the model draws the prompts; no guidance, officially."""
    linears = lora.adaptable(model.unet)
    with GramRecorder({layer: linears[layer] for layer in layers.values()}) as recorder:
        for i, prompt in enumerate(prompts):
            model.sample(prompt, seed=seed + i, steps=steps, guidance=1, progress=False)
    grams = recorder.statistics().grams
    return {kind: grams[feed(layer)] for kind, layer in layers.items()}
