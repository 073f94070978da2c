"""The toys of notebooks 04 and 04b are what the text says of them."""

import matplotlib
import numpy as np
import pytest
import torch

from mixofshow_lite.course import toys
from mixofshow_lite.engine.fusion import algebra

matplotlib.use("Agg")
HALF = torch.tensor([0.5, 0.5], dtype=torch.float64)


@pytest.mark.parametrize("shared", [0, 3, 8])
def test_two_concepts_share_as_many_directions_as_asked(shared):
    factors, grams = toys.toy_layer(shared)
    used = [set(G.diagonal().nonzero().flatten().tolist()) for G in grams]
    assert [len(one) for one in used] == [8, 8] and len(used[0] & used[1]) == shared
    assert [tuple(t.shape) for t in factors[0]] == [(2, 24), (24, 2)]


def test_lost_is_nothing_for_the_own_update_and_all_for_none():
    """A second way: the norms of what the dense matrices answer."""
    factors, grams = toys.toy_layer(3)
    assert toys.lost(factors[0], factors[:1], grams[:1]) == pytest.approx([0], abs=1e-12)
    none = (torch.zeros(2, 24, dtype=torch.float64), torch.zeros(24, 2, dtype=torch.float64))
    assert toys.lost(none, factors, grams) == pytest.approx([1, 1])
    average = algebra.average(factors, HALF)
    for found, own, G in zip(toys.lost(average, factors, grams), factors, grams, strict=True):
        dense, gap = own[1] @ own[0], own[1] @ own[0] - average[1] @ average[0]
        assert found == pytest.approx(float(torch.trace(gap @ G @ gap.T) / torch.trace(dense @ G @ dense.T)))


def test_the_lines_cross_in_the_star():
    changes = np.array([[2.0, 1.0], [-1.0, 3.0]])
    figure = toys.draw_lines(
        changes, lambda x, ridge: np.linalg.solve(x, (changes * x).sum(1)) if ridge == 0 else x[0], (90, 25)
    )
    assert [ax.get_title() for ax in figure.axes] == ["inputs at 90 degrees", "inputs at 25 degrees"]
    stars = [ax.lines[-1].get_xydata()[0] for ax in figure.axes]
    np.testing.assert_allclose(stars, [(2, 3), (2, 3 - 3 / np.tan(np.radians(25)))])


def test_a_frame_is_a_picture():
    assert toys.overlap_frame(2, np.zeros((9, 2))).size[0] > 400


def test_recorded_grams_are_those_of_the_inputs(tiny_base):
    """One step of one prompt, hooked by hand."""
    name = next(name for name in tiny_base.layers if name.startswith("up")) + ".to_k"
    linear, seen = tiny_base.unet.get_submodule(name), []
    handle = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().flatten(0, -2).double()))
    found = toys.record(tiny_base, {"keys": name}, ["a red cat", "a dog"], seed=1, steps=2)
    handle.remove()
    rows = torch.cat(seen)
    scale = found["keys"].diagonal().sum() / (rows.T @ rows).diagonal().sum()  # a Gram may be a sum or a mean
    torch.testing.assert_close(found["keys"].double(), scale * (rows.T @ rows), atol=1e-4, rtol=1e-3)
