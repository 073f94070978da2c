"""Updates that leave the base's own inputs alone: against the inputs themselves, collected by hand."""

import warnings
from dataclasses import replace

import pytest
import torch

import mixofshow_lite as mos
from mixofshow_lite.engine import lora, null_space, tuning
from mixofshow_lite.engine.fusion.grams import CONTEXT_LINEAR
from mixofshow_lite.engine.fusion.settings import PLAIN_PROMPTS
from mixofshow_lite.engine.null_space import NullSpace
from mixofshow_lite.engine.recipes import FUSIBLE, RECIPES, SD15, Recipe
from mixofshow_lite.lora import attention_linears

SIZES = (3, 5, 2)
PROMPTS = [p.replace("{}", "rabbit") for p in null_space.CLASS_PROMPTS] + list(PLAIN_PROMPTS)


@pytest.fixture(scope="module")
def inputs(tiny_base):
    """Every attention linear's inputs as rows, while the base draws the prompts, (net, name) -> (rows, d_in)."""
    seen, handles = {}, []
    for net in ("text_encoder", "unet"):
        for name, module in attention_linears(getattr(tiny_base, net)).items():
            hook = lambda _, args, key=(net, name): seen.setdefault(key, []).append(args[0].flatten(0, -2))  # noqa: E731
            handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        for number, prompt in enumerate(PROMPTS):
            tiny_base.sample(prompt, seed=null_space.SEED + number, steps=null_space.STEPS, progress=False)
    for handle in handles:
        handle.remove()
    return {key: torch.cat(rows).double() for key, rows in seen.items()}


@pytest.fixture(scope="module")
def tuned(tiny_base, tmp_path_factory):
    """A concept tuned for two steps, with and without a null space."""
    from mixofshow_lite.pocket import concepts

    data = mos.ConceptData(concepts.write("momo", tmp_path_factory.mktemp("data"), size=64))
    recipe = replace(RECIPES["ed_lora"], batch=2, null_space=SIZES)
    free = replace(recipe, null_space=(0, 0, 0))
    return [mos.tune(tiny_base, data, r, steps=2, progress=False) for r in (recipe, free)]


def is_spatial(key):
    return key[0] == "unet" and not CONTEXT_LINEAR.search(key[1])


def test_a_spatial_update_does_nothing_along_the_inputs_that_the_base_uses_most(inputs, tuned):
    """The directions by another way: singular vectors of the inputs themselves."""
    held, free = tuned
    checked = 0
    for (net, name), x in inputs.items():
        if not is_spatial((net, name)):
            continue
        _, _, directions = torch.linalg.svd(x, full_matrices=False)
        first, after = directions[: SIZES[2]], directions[SIZES[2]]
        down = held.lora[net][name][0].double()
        assert (down @ first.T).abs().max() < 1e-4 * down.norm(), name
        checked += (down @ after).abs().max() > 1e-3 * down.norm()  # and no direction more
        down = free.lora[net][name][0].double()
        assert (down @ first.T).abs().max() > 1e-2 * down.norm(), name
    assert checked > 10


def test_text_updates_leave_the_mean_of_the_base_s_text_features_alone(tiny_base, tuned):
    """By hand: what keys and values see of prompts without a concept."""
    held, _ = tuned
    with torch.no_grad():
        x = torch.cat([tiny_base.context(p).flatten(0, 2) for p in [*PROMPTS, ""]]).double()  # the same in all layers
    _, directions = torch.linalg.eigh(x.T @ x)
    first = directions[:, -SIZES[1] :]
    names = [name for name in held.lora["unet"] if CONTEXT_LINEAR.search(name)]
    assert len(names) == 32
    for name in names:
        down, loose = (concept.lora["unet"][name][0].double() for concept in tuned)
        assert (down @ first).abs().max() < 1e-4 * down.norm() < 1e-2 * (loose @ first).norm()
    assert ((held.lora["unet"][names[0]][0].double() @ x.mean(0)).norm() < 0.1 * x.mean(0).norm()).item()


def test_the_text_encoder_s_updates_leave_its_own_inputs_alone(tiny_base, tuned):
    seen, handles = {}, []
    for name, module in attention_linears(tiny_base.text_encoder).items():
        hook = lambda _, args, name=name: seen.setdefault(name, []).append(args[0].flatten(0, -2).double())  # noqa: E731
        handles.append(module.register_forward_pre_hook(hook))
    with torch.no_grad():
        for prompt in [*PROMPTS, ""]:
            tiny_base.context(prompt)
    for handle in handles:
        handle.remove()
    for name, rows in seen.items():
        _, _, directions = torch.linalg.svd(torch.cat(rows), full_matrices=False)
        held, free = (concept.lora["text_encoder"][name][0].double() @ directions[: SIZES[0]].T for concept in tuned)
        assert held.abs().max() < 1e-4 < 1e-2 < free.abs().max(), name


def test_every_step_ends_orthogonal_and_the_first_one_starts_so(tiny_base):
    model = tiny_base.copy()
    tuning.attach(model, RECIPES["ed_lora"], 0)
    space = NullSpace(tiny_base, model, "rabbit", (2, 0, 0))
    layers = lora.attached(model.text_encoder)
    assert len(space.pairs) == len(layers)  # the U-Net is left free
    downs = [layer.lora_A["default"].weight for layer in layers.values()]
    for moved in (False, True):
        if moved:
            for down in downs:
                down.data.add_(1.0)
            assert any((down @ U).abs().max() > 0.1 for down, U in space.pairs)
            space.project()
        assert all((down @ U).abs().max() < 1e-5 for down, U in space.pairs)
    assert {id(down) for down, _ in space.pairs} == {id(down) for down in downs}


def test_without_directions_nothing_is_recorded_and_frozen_factors_stay(tiny_base, monkeypatch):
    model = tiny_base.copy()
    tuning.attach(model, replace(RECIPES["ed_lora"], slot=0), 0)
    before = {n: layer.lora_A["default"].weight.clone() for n, layer in lora.attached(model.unet).items()}
    assert NullSpace(tiny_base, model, "rabbit", (1, 1, 1)).pairs == []
    assert all(torch.equal(before[n], layer.lora_A["default"].weight) for n, layer in lora.attached(model.unet).items())
    monkeypatch.setattr(null_space, "recorded", None)  # would fail if it were called
    tuning.attach(model := tiny_base.copy(), RECIPES["ed_lora"], 0)
    assert NullSpace(tiny_base, model, "rabbit", (0, 0, 0)).pairs == []


def test_at_most_half_of_a_layer_s_directions_are_taken():
    gram = torch.diag(torch.arange(1.0, 9.0, dtype=torch.float64))
    assert null_space.frequent(gram, 100).shape == (8, 4)
    assert null_space.frequent(gram, 2).abs().argmax(0).tolist() == [6, 7]


def test_keys_and_values_and_spatial_layers_learn_at_their_own_rates(tiny_base):
    model = tiny_base.copy()
    recipe = replace(RECIPES["ed_lora"], lr_words=1.0, lr_text=2.0, lr_unet=3.0, lr_spatial=4.0)
    tuning.attach(model, recipe, 0)
    optimizer = tuning.make_optimizer(model, {"<a>": torch.zeros(1, 1)}, recipe)
    rates = {id(weight): group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    for name, layer in lora.attached(model.unet).items():
        own = {rates[id(factor["default"].weight)] for factor in (layer.lora_A, layer.lora_B)}
        assert own == {3.0 if name.endswith(("attn2.to_k", "attn2.to_v")) else 4.0}, name
    one = tuning.make_optimizer(model, {"<a>": torch.zeros(1, 1)}, replace(recipe, lr_spatial=None))
    assert [group["lr"] for group in one.param_groups] == [1.0, 2.0, 3.0]
    assert sum(len(group["params"]) for group in one.param_groups) == len(rates)


def test_only_pocket_s_loras_have_one_by_default():
    for name, recipe in RECIPES.items():
        own = {"null_space": recipe.null_space, "lr_spatial": recipe.lr_spatial}
        assert (own == FUSIBLE) is (name in ("lora", "ed_lora"))
    assert all(recipe.null_space == (0, 0, 0) and recipe.lr_spatial is None for recipe in SD15.values())


@pytest.mark.parametrize("sizes", [(1, 2), 3, (1, 2, -1), (1, 2, 0.5), "abc"])
def test_bad_sizes_are_one_sentence(sizes):
    with pytest.raises((ValueError, TypeError), match="mine.null_space"):
        Recipe("mine", null_space=sizes)
    with pytest.raises((ValueError, TypeError), match="mine.lr_spatial"):
        Recipe("mine", lr_spatial=-1)


def test_nobody_is_told_of_prompts_that_nobody_wrote(tiny_base):
    base = tiny_base.copy()
    base.known_words, base.warned = frozenset({"a", "rabbit"}), set()
    tuning.attach(model := base.copy(), RECIPES["ed_lora"], 0)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        NullSpace(base, model, "rabbit", (1, 1, 1))
        assert not [each for each in said if each.category is UserWarning] and base.warned == set()
        base.context("a rabbit in the forest")
    assert any("forest" in str(each.message) for each in said)
