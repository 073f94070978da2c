"""Arguments that mean nothing, at every public entry: one sentence of the library's own, before anything is done."""

import json
import math
from dataclasses import replace

import pytest
import torch
from harness import check_error
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import make_concept

import mixofshow_lite as mos
from mixofshow_lite.center import CenterNode
from mixofshow_lite.course.widgets import scene
from mixofshow_lite.engine.arguments import as_path, is_number, is_whole, shown
from mixofshow_lite.engine.recipes import RECIPES
from mixofshow_lite.files.concept import Concept

EXPECTED = (ValueError, TypeError, FileNotFoundError)
LONG = "x" * 5000


@pytest.fixture
def small(tiny_base):
    concept = make_concept(tiny_base)
    concept.lora = {net: dict(list(factors.items())[:2]) for net, factors in concept.lora.items()}
    return concept


@pytest.fixture
def data(tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "data/a.png")
    (tmp_path / "data/a.txt").write_text("a <TOK>")
    return mos.ConceptData(tmp_path / "data", "rabbit")


def refused(call, *args, **options):
    with pytest.raises(EXPECTED) as caught:
        call(*args, **options)
    check_error(caught.value, EXPECTED)
    return str(caught.value)


def pairs(**values):
    """name=[...], ... -> (name, value) pairs."""
    return [(name, value) for name, several in values.items() for value in several]


SAMPLE = pairs(
    steps=[math.inf, math.nan, 1.5, True, "x"],
    n=[1.5, "x", 10**9],
    batch=[0, -1, 1.5, "8", None],
    seed=[1.5, math.nan, "3", None, 2**64],
    size=[(64,), (64, 64, 64), 64.0, "64", 10_000_000, (64, None)],
    guidance=[math.nan, 1e30, 1 + 2j, "x"],
    negative_prompt=[["a", "b"], [], 3, None],
    callback=[3],
    spatial=[3, "x"],
    isolate=["x", None, 1],
    base_ratio=["x", math.nan, 2],
    regions=[3, "x"],
)


@pytest.mark.parametrize(("name", "value"), SAMPLE)
def test_sample(tiny_base, name, value):
    assert name.rstrip("s") in refused(tiny_base.sample, "a", **({"steps": 1, "progress": False} | {name: value}))


def test_the_share_of_the_prompt_inside_regions(tiny_base):
    region = mos.Region("a", box=(0, 0, 1, 1))
    for ratio in ("x", math.nan, 1, -0.1):
        assert "base_ratio" in refused(tiny_base.sample, "a", steps=1, regions=[region], base_ratio=ratio)


TUNE = pairs(
    seed=[1.5, "3", None, 2**64],
    name=[3],
    checkpoint=[3, LONG],
    words=["<a> <b>", 3],
    steps=[1.5, "x"],
    accumulate=[0, -1, 1.5],
    strip=[-1, 1.5],
    callback=[3],
    gradient_checkpointing=["x", 1],
    class_word=[3, ["a"]],
)


@pytest.mark.parametrize(("name", "value"), TUNE)
def test_tune(tiny_base, data, name, value):
    refused(mos.tune, tiny_base, data, **({"steps": 1, "progress": False} | {name: value}))


def test_tune_without_a_base_or_data(tiny_base, data):
    assert "no model" in refused(mos.tune, None, data) and "no ConceptData" in refused(mos.tune, tiny_base, "folder")


RECIPE = pairs(
    batch=[0, 1.5, 10**9],
    rank=[0, -1, 10**9],
    noises=[0, 7],
    variants=[0],
    steps=[0, 1.5],
    init=[(), "class", (3,)],
    unet_lora=["(", 3],
    lr_words=[math.nan, math.inf, -1, "x"],
    weight_decay=[-1],
    zoom=[(2, 1), (0, 0), (1,), 3, "x"],
    framing=["x", None, 3],
    templates=["x", 3],
    down_std=[math.nan, -1, 0],
    layerwise=["x", None],
    flip=[1],
    freeze_norm=[0, math.nan],
    background=[-1, math.nan],
    attention=[math.nan],
    noise_offset=[math.nan],
)


@pytest.mark.parametrize(("name", "value"), RECIPE)
def test_recipes(name, value):
    assert f"ed_lora.{name}" in refused(replace, RECIPES["ed_lora"], **{name: value})


def test_a_recipe_has_a_name():
    for name in ("", " ", None, 3):
        assert "The recipe is called" in refused(replace, RECIPES["ed_lora"], name=name)


GRADIENT = pairs(
    seed=[1.5],
    steps=[1.5, 0],
    guidance=[math.nan, math.inf],
    iterations=[[-1, -1, -1], [1.5, 1, 1], list("abc")],
    plain=[3, [3]],
    prompts=[3, [3]],
    size=[(64,)],
    memory=["x", 3],
)


@pytest.mark.parametrize(("name", "value"), GRADIENT)
def test_gradient_fusion(tiny_base, small, name, value):
    refused(mos.gradient_fusion, tiny_base, [small], **({"progress": False, "steps": 1} | {name: value}))


@pytest.mark.parametrize("thing", [None, "bibi", 3])
def test_what_is_no_concept(tiny_base, thing):
    for call in (tiny_base.with_concept, CenterNode(tiny_base).join):
        assert "is no Concept" in refused(call, thing)
    for fusion in (mos.weight_fusion, mos.gradient_fusion, mos.constrained_fusion, mos.peft_fusion):
        assert "is no Concept" in refused(fusion, tiny_base, [thing])


def test_merging_and_joining(tiny_base, small):
    for options in ({"method": None}, {"method": 3}, {"seed": "x"}, {"density": 2}):
        refused(mos.peft_fusion, tiny_base, [small], **options)
    for weights in (["a"], [math.nan], [None]):
        assert "weights=" in refused(mos.weight_fusion, tiny_base, [small], weights=weights)
    for scale in ("x", None):
        refused(mos.weight_fusion, tiny_base, [replace(small, scale=scale)])
    for alpha in (math.nan, math.inf, None, "x", 1e30, 10**400):
        assert "alpha=" in refused(tiny_base.with_concept, small, alpha=alpha)


ABOUT = pairs(
    scale=[10**400, math.nan, True, "x"],
    rank=["x", -1],
    words=[["bibi1", "bibi2"], ["<TOK>", "<a>"], ["<" + LONG + ">", "<b>"], ["<a\n>", "<b>"]],
    name=["", 3],
)


@pytest.mark.parametrize(("name", "value"), ABOUT)
def test_a_concept_s_json(small, tmp_path, name, value):
    file = small.save(tmp_path / "bibi") / "concept.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {name: value}))
    refused(Concept.load, tmp_path / "bibi")
    file.write_text("[" * 99_999)
    assert "does not describe a concept" in refused(Concept.load, tmp_path / "bibi")


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.bool, torch.complex64, torch.uint8])
def test_a_concept_of_other_numbers(small, tmp_path, dtype):
    file = small.save(tmp_path / "bibi") / "concept.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file)
    assert "no decimal numbers" in refused(Concept.load, tmp_path / "bibi")


def test_a_concept_whose_update_has_no_rank_or_whose_json_is_a_list(small, tmp_path):
    file = small.save(tmp_path / "bibi") / "concept.safetensors"
    ends = {"lora_A.weight": lambda t: t[:0], "lora_B.weight": lambda t: t[:, :0]}
    tensors = {n: ends.get(n[-13:], lambda t: t)(t).contiguous() for n, t in load_file(file).items()}
    save_file(tensors, file)
    assert "the folder is damaged" in refused(Concept.load, tmp_path / "bibi")
    for text in ("[]", "null", "3"):
        (tmp_path / "bibi/concept.json").write_text(text)
        assert "does not describe a concept" in refused(Concept.load, tmp_path / "bibi")


def test_paths_previews_and_precisions(tiny_base, small, tmp_path):
    for path in (None, 3, LONG, "x" * 300, "a\0b"):
        for call in (Concept.load, small.save, lambda p: Concept.from_lora(p, tiny_base, "a")):
            refused(call, path)
        refused(Concept.from_official, path, tiny_base)
        refused(mos.ConceptData, path)
    for preview in ([], "x.png", 3):
        assert "preview" in refused(small.save, tmp_path / "x", preview=preview)
    for dtype in (torch.int8, torch.float8_e4m3fn, "float32"):
        assert "cannot hold a concept" in refused(small.save, tmp_path / "x", dtype=dtype)
    assert not list(tmp_path.iterdir())


def test_side_by_side():
    for subjects in ([], "ab", [1], [None], ["a", " "]):
        refused(mos.side_by_side, subjects)
    refused(mos.side_by_side, ["a", "b"], place=3)
    for start in (1, 2, -1):
        refused(mos.side_by_side, ["a", "b"], start=start)


@pytest.mark.parametrize("text", ["[" * 99_999, '{"format": "mixofshow-center", "version": 1, "members": []}'])
def test_a_center_node_s_file(tiny_base, small, tmp_path, text):
    CenterNode(tiny_base, tmp_path / "node").join(small)
    file = tmp_path / "node/center.json"
    about = json.loads(file.read_text())
    file.write_text(text)
    assert "cannot be read" in refused(CenterNode.load, tmp_path / "node", tiny_base)
    for members in (about["members"] * 2, [{"folder": str(tmp_path), "weight": 1}], [{"folder": "../x", "weight": 1}]):
        file.write_text(json.dumps(about | {"members": members}))
        assert "a member is there twice or elsewhere" in refused(CenterNode.load, tmp_path / "node", tiny_base)
    for members in (None, 3, "x", [3], [{"folder": 3, "weight": 1}], [about["members"][0] | {"weight": math.nan}]):
        file.write_text(json.dumps(about | {"members": members}))
        assert "center.json cannot be read" in refused(CenterNode.load, tmp_path / "node", tiny_base)


def test_a_center_node_s_arguments(tiny_base, small, tmp_path):
    for folder in (3, LONG, "a\0b"):
        for call in (lambda f: CenterNode(tiny_base, f), lambda f: CenterNode.load(f, tiny_base)):
            refused(call, folder)
    assert "no model" in refused(CenterNode, None)
    node = CenterNode(tiny_base)
    node.join(small)
    for gone in (None, 3, "nobody", small.words):
        for call in (node.leave, lambda who: node.reweight(who, 2)):
            assert "no member" in refused(call, gone)
    for weight in ("x", None, math.nan, -1):
        assert "weights=" in refused(node.reweight, "bibi", weight)


CANVAS = pairs(
    model=["x", 3],
    prompt=[None],
    seed=[-1, 1.5, "x"],
    steps=[0, 5000],
    guidance=["x", math.nan],
    every=[0],
    background=[3, (3,), "nowhere.png", "/etc/passwd"],
    size=["x", (0, 4), (64,), 10**6, 1.5],
    regions=[3, "x", mos.Region("a", box=(0, 0, 1, 1))],
)


@pytest.mark.parametrize(("name", "value"), CANVAS)
def test_a_canvas(name, value):
    pytest.importorskip("anywidget")
    refused(mos.RegionCanvas, **{name: value})


HEAD = '{"format": "mixofshow-regions", "version": 1, "regions": '
TEXTS = (
    None,
    "9" * 5000,
    HEAD + '[{"prompt": "a", "box": [' + "9" * 400 + ", 0, 1, 1]}]}",
    HEAD + "[0" + ",0" * 2000 + "]}",
)


@pytest.mark.parametrize("text", [*TEXTS, HEAD + '[{"name": "' + "n" * 100_000 + '", "box": [0, 0, 1, 1]}]}'])
def test_the_text_of_a_canvas(text):
    refused(scene.from_json, text, (64, 64))


def test_what_a_number_is():
    assert is_number(1.5) and is_number(True) and not any(map(is_number, (math.nan, math.inf, 10**400, "1", 1j, None)))
    assert is_whole(3) and not any(map(is_whole, (3.0, True, 0, -1, 2**40, "3", None)))
    assert shown(LONG) == "'" + "x" * 56 + "..." and shown(10**9999) == "a int" and "\n" not in shown("a\nb")
    assert as_path("a/b").name == "b"
