"""The memory estimate counts what autograd keeps: a known answer, and shapes alone against real tensors."""

import json

import bench_memory
import pytest
import torch
from bench_fusion import networks
from torch import nn

from mixofshow_lite.engine import layerwise, lora


def test_kept_counts_each_storage_once_and_no_weights():
    linear, x = nn.Linear(3, 4), torch.ones(2, 3, requires_grad=True)  # its gradient needs the weights
    with bench_memory.Kept(linear) as kept:
        linear(x).relu().square().sum()
    assert kept.bytes == x.nbytes + 2 * 4 * 4  # the input, and one output that relu and square share


def test_attention_is_counted_without_its_probabilities():
    query, key = (torch.ones(1, 2, n, 8, requires_grad=True) for n in (50, 60))
    with bench_memory.fused_attention(), bench_memory.Kept() as kept:
        out = nn.functional.scaled_dot_product_attention(query, key, key)
    assert out.shape == query.shape and kept.bytes == 2 * query.nbytes + key.nbytes
    out.sum().backward()
    assert query.grad.shape == query.shape and key.grad.shape == key.shape
    real = nn.functional.scaled_dot_product_attention(query, key, key)  # outside it is the real one again
    assert torch.allclose(real, torch.ones_like(real))


def test_shapes_alone_keep_as_much_as_real_tensors(tiny_base, monkeypatch):
    monkeypatch.setattr(layerwise, "LARGEST_WRITTEN_OUT", 0)  # no written-out attention on the CPU
    monkeypatch.setattr(bench_memory, "TOKENS", tiny_base.tokenizer.model_max_length)
    monkeypatch.setattr(bench_memory, "WORDS_AT", (2, 3))
    configs = tiny_base.text_encoder.config, tiny_base.unet.config
    found = {}
    for device in ("meta", "cpu"):
        with torch.device(device):
            nets = type(tiny_base.text_encoder)(configs[0]), type(tiny_base.unet).from_config(configs[1])
        with bench_memory.fused_attention(), bench_memory.Kept(*nets) as kept:
            loss = bench_memory.forward(*nets, batch=2, cells=8, rank=2, device=device)
        found[device] = kept.bytes
        if device == "cpu":
            loss.backward()  # the counted step is one that can be worked back through
            assert all(w.grad is not None for net in nets for w in net.parameters() if w.requires_grad)
    assert found["meta"] == pytest.approx(found["cpu"], rel=0.01)  # a kernel may keep a few indices more


def test_twice_the_pictures_keep_about_twice_as_much_and_full_precision_more():
    rows = {
        key: bench_memory.step_memory(*networks("pocket"), *key)
        for key in ((2, 16, "fp16"), (4, 16, "fp16"), (2, 16, "mixed"))
    }
    kept = [row["kept for backward"] for row in rows.values()]
    assert 1.8 < kept[1] / kept[0] < 2.05 and 1.3 < kept[2] / kept[0] <= 2
    for row in rows.values():
        assert row["peak"] == pytest.approx(sum(v for k, v in row.items() if k != "peak"))
        assert row["weights"] == rows[2, 16, "fp16"]["weights"]
    linears = [m for net in networks("pocket") for m in lora.attention_linears(net).values()]
    factors = 4 * sum(m.in_features + m.out_features for m in linears)  # rank 4; each with a gradient and two moments
    assert rows[2, 16, "fp16"]["LoRA, gradients, AdamW"] == pytest.approx(4 * 4 * factors / 1e9)


def test_the_estimate_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(bench_memory, "networks", lambda shapes: networks("pocket"))
    bench_memory.main(["--size", "128", "--batch", "2", "--out", str(tmp_path / "m.json")])
    saved = json.loads((tmp_path / "m.json").read_text())
    assert [row["precision"] for row in saved["rows"]] == ["fp16", "mixed"] and "estimate" in saved["what"]
