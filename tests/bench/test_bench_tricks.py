"""Every trick is off in its own steps alone, and on again afterwards; seconds are not tested."""

import bench_tricks as bench
import pytest
from peft.tuners.lora import Linear

from mixofshow_lite.engine import layerwise, lora, wording
from mixofshow_lite.engine.recipes import RECIPES
from mixofshow_lite.files.data import ConceptData
from mixofshow_lite.files.resources import concepts_dir


def state():
    return {
        "prompts share their beginnings": wording.encode is not layerwise.encode,
        "attention written out": layerwise.LARGEST_WRITTEN_OUT == 0,
        "low-rank products in one function": lora.LowRankLinear.forward is Linear.forward,
    }


def test_every_second_step_has_one_trick_off_and_afterwards_all_are_on():
    with bench.switches(list(bench.OFF)) as set_for:
        for step in range(2 * len(bench.OFF) + 2):
            name = set_for(step)
            assert state() == {each: each == name for each in bench.OFF}
            assert (name is None) == (step % 2 == 0)
        assert set_for(1) == next(iter(bench.OFF))
    assert not any(state().values())


def test_an_error_on_the_way_leaves_all_tricks_on():
    with pytest.raises(KeyError), bench.switches(["no such trick"]) as set_for:
        set_for(1)
    assert not any(state().values())


def test_each_trick_is_compared_with_the_step_before(tiny_base, monkeypatch):
    """A clock by hand: every step takes 2 seconds, those without the first trick 3."""
    clock, off = [0.0], list(bench.OFF)
    monkeypatch.setattr(bench.time, "perf_counter", lambda: clock[0])
    plain = bench.tune

    def slow(*args, callback, **options):
        def timed(record):
            name = bench_name(record["step"], off)
            clock[0] += 3.0 if name == off[0] else 2.0
            callback(record)

        return plain(*args, callback=timed, **options)

    monkeypatch.setattr(bench, "tune", slow)
    data = ConceptData(concepts_dir() / "bibi")
    found = bench.measure(tiny_base, data, RECIPES["ed_lora"], rounds=2)
    assert found == {name: [1.5 if name == off[0] else 1.0] * 2 for name in off}
    assert bench.summary(found)[off[0]] == {"median": 1.5, "quartiles": [1.5, 1.5], "steps": 2}


def bench_name(step: int, names: list[str]):
    """Which trick is off in a step: none in the even ones."""
    return None if step % 2 == 0 else names[step // 2 % len(names)]
