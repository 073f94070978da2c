"""The benchmark's own loops run and leave the model alone; what they measure is not tested, only that they do."""

import torch

from mixofshow_lite import bench, layerwise
from mixofshow_lite.data import ConceptData
from mixofshow_lite.recipes import RECIPES
from mixofshow_lite.resources import concepts_dir


def test_the_reference_loops_leave_the_base_alone(tiny_base):
    data = ConceptData(concepts_dir() / "bibi")
    before = {n: w.clone() for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    plain = layerwise.PLAIN
    for fused in (True, False):
        assert bench.official_seconds(tiny_base, data, RECIPES["ed_lora"], fused, steps=1) > 0
    assert bench.text_seconds(tiny_base, data.prompts("<v1> <v2>")[:2], ("<v1>", "<v2>")) > 0
    assert bench.unet_seconds(tiny_base, 2, backward=True) > 0
    assert layerwise.PLAIN == plain
    after = {n: w for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    assert list(after) == list(before) and all(torch.equal(after[n], w) for n, w in before.items())
    assert tiny_base.text_encoder.config._attn_implementation == "sdpa"


def test_what_is_compared_is_measured_in_turns_and_the_fastest_counts():
    order, times = [], {"a": iter((3.0, 1.0, 2.0)), "b": iter((5.0, 6.0, 4.0))}

    def measure(name):
        order.append(name)
        return next(times[name])

    found = bench.in_turns(3, a=lambda: measure("a"), b=lambda: measure("b"))
    assert found == {"a": 1.0, "b": 4.0} and order == ["a", "b"] * 3
