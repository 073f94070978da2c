"""Regions of any kind: a mask or box in 0..1 with weights that sum to at most 1, or one sentence."""

import random

import numpy as np
import pytest
import torch
from broken_pictures import ODD, mask_array, write_mask, write_picture
from harness import outcome, seeds

from mixofshow_lite.engine.masks import Region, check_regions, parse_regions, region_weights

NUMBERS = [0, 1, 0.5, 0.25, 1.5, -1, float("nan"), float("inf"), 10**400, True, np.float32(0.5), torch.tensor(0.5)]
FIELDS = ("box", "mask", "negative_prompt", "weight", "start", "end", "feather")


def some_mask(rng: random.Random, folder):
    """An array, tensor, picture or file."""
    array = mask_array(rng, (rng.randrange(1, 40), rng.randrange(1, 40)))
    kind = rng.randrange(6)
    if kind == 0:
        return torch.tensor(array.tolist(), requires_grad=array.dtype.kind == "f")
    if kind == 1:
        write_mask(rng, folder / "a")
        return next(folder.iterdir())
    if kind == 2:
        return write_picture(rng, folder / "a")
    if kind == 3:
        return array[None] if rng.random() < 0.5 else array[:0]
    return array


@pytest.mark.parametrize("seed", seeds(30))
def test_regions(seed, tmp_path):
    rng = random.Random(3000 + seed)
    fields = {"box": [rng.choice(NUMBERS[:4]) for _ in range(4)]} if rng.random() < 0.5 else {}
    if not fields or rng.random() < 0.1:
        fields["mask"] = some_mask(rng, tmp_path)
    for name in FIELDS:
        if rng.random() < 0.1:
            fields[name] = rng.choice([*NUMBERS, *ODD])
    found = outcome(lambda: Region(rng.choice(["a cat", "a cat", "", *ODD]), **fields))
    assert found.warned == []
    if found.error is None:
        weights = region_weights([found.value, Region("all", box=(0, 0, 1, 1))], 5, 7)
        assert weights.isfinite().all() and weights.min() >= 0 and weights.sum(0).max() <= 1.0001


@pytest.mark.parametrize("seed", seeds(15))
def test_lists_of_regions(seed):
    rng = random.Random(4000 + seed)
    region = Region("a cat", box=(0, 0, 1, 1))
    thing = rng.choice([*ODD, {"prompt": "a cat"}, (0, 0, 1, 1)])
    given = rng.choice([thing, [thing], [region, thing], region, [region], []])
    found = outcome(lambda: check_regions(given))
    fine = isinstance(given, list) and all(isinstance(entry, Region) for entry in given)
    assert (found.error is None) == (fine or given in ((), []))
    if found.error is not None:
        assert "Region" in str(found.error)


@pytest.mark.parametrize("seed", seeds(15))
def test_the_official_syntax(seed):
    rng = random.Random(5000 + seed)
    fields = ["[a cat]", "-*-", "[bad]", "[0, 0, 32, 32]", "|", "[]", "nan", "\n", "[1e400, 0, 1, 1]", "[x]"]
    whole = "[a cat]-*-[]-*-[0, 0, 32, 32]"
    text = rng.choice([whole, "".join(rng.choices(fields, k=rng.randrange(9))), *ODD])
    found = outcome(lambda: parse_regions(text, rng.choice([64, 64, 0, -1]), 64))
    if found.error is None:
        assert all(isinstance(region, Region) for region in found.value)
