"""The cost benchmark of fusion: its shapes are the real ones, its two solvers see the same Grams."""

import json

import bench_fusion as bench
import pytest
import torch

from mixofshow_lite.engine.fusion import Memory
from mixofshow_lite.engine.fusion.report import STAGES


def test_sd15s_shapes_are_the_official_ones():
    """FACTS: 48 text layers, 32 keys and values, 96 spatial layers; rows recorded of one concept."""
    groups = bench.feeds("sd15")
    layers = {stage: sum(g.count * len(g.d_outs) for g in groups if g.stage == stage) for stage in STAGES}
    assert layers == {"text encoder": 48, "keys and values": 32, "spatial layers": 96}
    rows = {(g.d_in, g.rows) for g in groups if g.stage == "spatial layers"}
    assert rows == {(320, 81_920), (640, 20_480), (1280, 5_120), (1280, 1_280)}
    rank_4 = sum(g.count * bench.RANK * (g.d_in + d_out) for g in groups for d_out in g.d_outs)
    assert rank_4 == 797_184 + 294_912  # the floats of an ED-LoRA without its embeddings


def test_both_solvers_see_the_same_grams(tmp_path):
    groups = [
        bench.Feed("text encoder", 12, (10, 8), 300, count=3),
        bench.Feed("keys and values", 16, (6, 6), 6, count=2),
        bench.Feed("spatial layers", 8, (8,), 5000),
    ]
    memory = Memory(tmp_path)
    bench.record(groups, 2, memory)
    x = torch.cat(list(bench.features(groups[2], 1))).double()
    kept = memory.kept["1", "spatial layers"]
    assert x.shape == (5000, 8) and kept.rows == {groups[2].name: 5000}
    assert torch.allclose(kept.grams[groups[2].name], x.T @ x / 5000, rtol=1e-4, atol=1e-6)
    exact = bench.solve(groups, 2, memory, "closed_form", {})
    early, late = (bench.solve(groups, 2, memory, "lbfgs", dict.fromkeys(STAGES, k)) for k in (2, 200))
    assert 0 < exact["loss"] <= late["loss"] * (1 + 1e-9) < early["loss"]
    assert exact["loss"] <= exact["loss_with_default_ridge"] and exact["seconds"] > 0


def test_an_interrupted_benchmark_keeps_the_cases_it_has(monkeypatch, tmp_path):
    solved = {"seconds": 1.0, "loss": 0.5, "peak_mb": 1.0}

    def measure(shapes, n, quick, steps=bench.STEPS, solvers=("closed_form", "lbfgs")):
        if solvers and n == 5:
            raise KeyboardInterrupt
        return {"shapes": shapes, "concepts": n, "steps": steps, "record": {}, **dict.fromkeys(solvers, solved)}

    monkeypatch.setattr(bench, "measure", measure)
    with pytest.raises(KeyboardInterrupt):
        bench.main(["--shapes", "pocket", "--concepts", "2", "5", "--out", str(tmp_path / "f.json")])
    kept = json.loads((tmp_path / "f.json").read_text())
    assert [case["concepts"] for case in kept["cases"]] == [2] and len(kept["recording by steps"]) == 2
    assert kept["command"].endswith("--concepts 2 5 --out " + str(tmp_path / "f.json"))
