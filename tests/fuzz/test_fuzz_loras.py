"""LoRA files, their settings, pickles and prompts with something wrong in them: a result, or one sentence."""

import json
import pickle
import random
import string

import pytest
import torch
from harness import outcome, seeds
from safetensors.torch import save_file
from test_formats import DIALECTS, official, write
from tiny import make_concept

from mixofshow_lite.files import prompt_check
from mixofshow_lite.files.concept import Concept

DTYPES = (torch.int8, torch.int32, torch.bool, torch.complex64, torch.float16, torch.bfloat16, torch.float8_e4m3fn)
VALUES = (None, True, 3, -1, 0.5, float("nan"), 10**400, "x", "", [], [1], {}, {"to_q": 2}, {"to_(": 1}, {"a": "b"})
FRAGMENTS = (
    "a cat <bibi1> <bibi2> <BIBI1> <x> (cat:1.2) ((a)) [a:b:.5] <lora:x:1> BREAK , \0 \N{RABBIT} é < > ( ) [ ]".split()
)


def spoil_tensors(state, draw):
    """One change to one tensor or key of a file."""
    key = draw.choice(sorted(state))
    tensor, kind = state.pop(key), draw.randrange(9)
    if kind == 0:
        return state  # missing
    if kind == 1:
        key = key[: draw.randrange(len(key))] or "x"
    if kind == 2:
        key = "".join(draw.choices(string.printable, k=draw.randrange(1, 60)))
    if kind == 3:
        tensor = tensor.to(draw.choice(DTYPES))
    if kind == 4:
        tensor = tensor * draw.choice((float("nan"), float("inf"), 1e38, 0))
    if kind == 5:
        tensor = torch.ones([draw.randrange(4) for _ in range(draw.randrange(5))])
    if kind == 6:
        tensor = tensor.T.contiguous()
    if kind == 7:
        key = key.replace(draw.choice(("unet", "lora", "attn", "_", ".")), draw.choice(("", "te2", "..", "\0", "é")))
    if kind == 8:
        state[key.replace("weight", "bias")] = tensor.clone()
    return {**state, key or "x": tensor}


@pytest.fixture(scope="module")
def small(tiny_base):
    """A concept of four layers: its files are small and read fast."""
    concept = make_concept(tiny_base)
    concept.lora = {net: dict(list(factors.items())[:2]) for net, factors in concept.lora.items()}
    return concept


@pytest.mark.parametrize("seed", seeds(40))
def test_lora_files(tiny_base, small, tmp_path, seed):
    draw = random.Random(seed)
    file = tmp_path / draw.choice(("x.safetensors", "adapter_model.safetensors"))
    state = write(small, draw.choice(DIALECTS), file)
    settings = {draw.choice(("lora_alpha", "alpha_pattern", "peft_type", "use_dora", "r")): draw.choice(VALUES)}
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings if draw.random() < 0.7 else draw.choice(VALUES)))
    prefixed = {f"unet.{name}": value for name, value in settings.items()}
    save_file(spoil_tensors(dict(state), draw), file, {"lora_adapter_metadata": json.dumps(prefixed)})
    if draw.random() < 0.2:
        data = bytearray(file.read_bytes())
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        file.write_bytes(data[: draw.choice((len(data), draw.randrange(len(data))))])
    found = outcome(lambda: Concept.from_lora(file, tiny_base, "rabbit", verbose=False))
    if found.error is None:
        assert all(torch.isfinite(t).all() for f in found.value.lora.values() for pair in f.values() for t in pair)


@pytest.mark.parametrize("seed", seeds(30))
def test_pickles(tiny_base, small, tmp_path, seed):
    draw, content = random.Random(seed), official(small)
    rows = content["params"]["new_concept_embedding"]
    things = (*VALUES, torch.ones(0), torch.ones(16, 0), torch.ones(3, 32), torch.ones(16, 32, device="meta"))
    things += tuple(torch.ones(16, 32).to(dtype) for dtype in DTYPES[:5])
    kind = draw.randrange(5)
    if kind == 0:
        rows[draw.choice(("<bibi1>", "", "a", 3, "<new>"))] = draw.choice(things)
    if kind == 1:
        content["params"][draw.choice(("new_concept_embedding", "new_concept_token", "unet", "x"))] = draw.choice(
            things
        )
    if kind == 2:
        content = draw.choice((*things, {"params": draw.choice(things)}))
    if kind == 3:
        content["params"]["unet"] = spoil_tensors(content["params"]["unet"], draw)
    file = tmp_path / draw.choice(("x.pth", "x.pt", "x.bin"))
    torch.save(content, file) if kind < 4 else file.write_bytes(pickle.dumps(draw.choice((3, ValueError, {"a": 1}))))
    read = draw.choice((Concept.from_official, Concept.from_lora))
    outcome(lambda: read(file, tiny_base, class_word="rabbit", verbose=False))


@pytest.mark.parametrize("seed", seeds(30))
def test_prompts(tiny_base, small, seed):
    draw, model = random.Random(seed), tiny_base.with_words(small)
    model.warned = set()
    prompts = [" ".join(draw.choices(FRAGMENTS, k=draw.randrange(12))) for _ in range(draw.randrange(1, 3))]
    given = draw.choice((prompts, prompts[0], [*prompts, draw.choice((None, 3, b"a", []))]))
    found = outcome(lambda: model.context(given))
    if found.error is None:
        assert found.value.isfinite().all()
        assert not outcome(lambda: model.context(given)).warned  # each is told once
    words = draw.choices(FRAGMENTS, k=5)
    assert set(prompt_check.named_together(words, draw.choice(VALUES))) == set(words)
