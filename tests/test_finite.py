"""Numbers that are none: every NaN and infinity is told where it enters, in one sentence that names the place."""

import copy
import math
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import make_concept
from torch import nn

import mixofshow_lite as mos
from mixofshow_lite.engine import finite, tuning
from mixofshow_lite.engine.checkpoint import Checkpoint
from mixofshow_lite.engine.finite import is_finite
from mixofshow_lite.engine.fusion import weight_fusion
from mixofshow_lite.engine.recipes import RECIPES
from mixofshow_lite.files.concept import Concept

BAD = pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])


def broken(model, net="vae", name="post_quant_conv.weight", value=math.nan):
    """A copy with one weight of one network set to a number that is none, in memory of its own."""
    model = model.copy()
    module = getattr(model, net).get_submodule(name.rpartition(".")[0])
    weight = module.weight.detach().clone()
    weight.view(-1)[0] = value
    module.weight = nn.Parameter(weight, requires_grad=False)
    return model


def spoilt(concept, part, value=math.nan):
    """A concept of which one number is none."""
    concept = copy.deepcopy(concept)
    layer = next(iter(concept.lora["unet"]))
    tensors = {"words": concept.embeddings["<bibi2>"], "down": concept.lora["unet"][layer][0]}
    tensors["up"] = concept.lora["unet"][layer][1]
    if part == "scale":
        return replace(concept, scale=value)
    tensors[part].view(-1)[3] = value
    return concept


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "rabbit"
    folder.mkdir()
    Image.new("RGB", (64, 64), "red").save(folder / "a.png")
    (folder / "a.txt").write_text("a <TOK>")
    return mos.ConceptData(folder, class_word="rabbit")


@BAD
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_one_number_among_many_is_seen(bad, dtype):
    x = torch.randn(1000).to(dtype)
    assert is_finite(x) and is_finite(x[:0]) and is_finite(torch.tensor([1, 2]))
    for place in (0, 500, 999):
        y = x.clone()
        y[place] = bad
        assert not is_finite(y)


@pytest.mark.parametrize(
    ("net", "name", "where"),
    [
        ("vae", "post_quant_conv.weight", "the VAE's weights post_quant_conv.weight"),
        ("unet", "conv_in.weight", "the U-Net's weights conv_in.weight"),
        ("text_encoder", "final_layer_norm.weight", "the text encoder's weights .*final_layer_norm.weight"),
    ],
)
def test_a_black_picture_names_the_weight(tiny_base, net, name, where):
    name = "text_model." + name if hasattr(tiny_base.text_encoder, "text_model") and net == "text_encoder" else name
    with pytest.warns(UserWarning, match=f"1 of 1 pictures are black, because {where} are not finite"):
        picture = broken(tiny_base, net, name).sample("a cat", steps=1, progress=False)[0]
    assert not np.asarray(picture).any()


def test_a_black_picture_names_words_features_latents_and_what_to_do(tiny_base):
    model = tiny_base.with_concept(make_concept(tiny_base))
    model.words["<bibi1>"][3] = torch.nan
    with pytest.warns(UserWarning, match="the rows of <bibi1> are not finite: tune the concept again"):
        model.sample("a <bibi1>", steps=1, progress=False)
    bad, good = torch.full((2, 4, 8, 8), torch.nan), torch.zeros(2, 4, 8, 8)
    with pytest.warns(UserWarning, match="1 of 2 pictures are black, because the U-Net's latents are not finite"):
        pictures = tiny_base.decode(torch.cat([bad[:1], good[:1]]))
    alone = np.asarray(tiny_base.decode(good[:1])[0], dtype=float)
    assert not np.asarray(pictures[0]).any() and np.abs(pictures[1] - alone).max() <= 1
    assert finite.culprit(tiny_base, bad, bad)[0] == "the text encoder's features"
    assert finite.culprit(tiny_base, good, good) == (
        "the VAE's pictures",
        "use a smaller guidance or LoRA weight",
    )
    half = tiny_base.copy()
    half.unet.half()
    assert "load the base in float32" in finite.culprit(half, good, bad)[1]


def test_a_good_picture_is_drawn_without_a_word(tiny_base):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        tiny_base.sample("a cat", steps=1, progress=False)


@BAD
def test_arguments_that_are_no_numbers(tiny_base, bad):
    with pytest.raises(ValueError, match=f"guidance={bad}"):
        tiny_base.sample("a cat", steps=1, guidance=bad, progress=False)
    with pytest.raises(ValueError, match=f"alpha={bad}"):
        tiny_base.with_concept(make_concept(tiny_base), alpha=bad)


@BAD
@pytest.mark.parametrize("part", ["words", "down", "up", "scale"])
def test_a_concept_that_is_not_finite_is_not_saved_loaded_exported_or_fused(tiny_base, tmp_path, bad, part):
    concept = spoilt(make_concept(tiny_base), part, bad)
    with pytest.raises(ValueError, match="'bibi' holds weights that are not finite"):
        concept.save(tmp_path / "bibi")
    with pytest.raises(ValueError, match="not finite"):
        weight_fusion(tiny_base, [concept])
    if part != "words":  # a LoRA file has none
        with pytest.raises(ValueError, match="not finite"):
            concept.to_lora(tmp_path / "bibi.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_concept_that_joins_is_finite(tiny_base):
    for part in ("down", "up", "scale", "words"):
        with pytest.raises(ValueError, match="not finite"):
            tiny_base.with_concept(spoilt(make_concept(tiny_base), part))


def test_a_folder_that_is_not_finite_is_not_loaded(tiny_base, tmp_path):
    folder = make_concept(tiny_base).save(tmp_path / "bibi")
    tensors = load_file(folder / "concept.safetensors")
    tensors["embeddings.<bibi1>"][2, 2] = torch.nan
    save_file(tensors, folder / "concept.safetensors")
    with pytest.raises(ValueError, match=r"'bibi' holds weights that are not finite \(in embeddings.<bibi1>\)"):
        Concept.load(folder)


def test_a_concept_too_large_for_float16_says_float32(tiny_base, tmp_path):
    concept = spoilt(make_concept(tiny_base), "up", 1e6)
    with pytest.raises(ValueError, match=r"too large for torch\.float16: save it in torch\.float32"):
        concept.save(tmp_path / "bibi", dtype=torch.float16)
    assert concept.save(tmp_path / "bibi").is_dir()


def test_an_update_that_overflows_is_told(tiny_base):
    model = tiny_base.copy()
    model.unet.half()
    with pytest.raises(ValueError, match=r"the sum in torch\.float16.*smaller alpha"):
        model.with_concept(make_concept(tiny_base), alpha=1e7)


def test_a_model_that_is_not_finite_is_not_saved_or_loaded(tiny_base, tiny_folder, tmp_path):
    model = broken(tiny_base, "unet", "conv_in.weight")
    with pytest.raises(ValueError, match="weights conv_in.weight are not finite, so the model was not saved"):
        model.save_pipeline(tmp_path / "saved")
    assert not list(tmp_path.iterdir())
    model.pipeline().save_pretrained(tmp_path / "stock")
    with pytest.raises(ValueError, match=r"conv_in.weight in .*unet.*is not finite in torch\.float32"):
        mos.load_base(tmp_path / "stock", device="cpu")


def test_a_base_that_is_not_finite_is_not_tuned_on(tiny_base, pictures, tmp_path):
    options = {"steps": 1, "progress": False, "checkpoint": tmp_path / "run.pt"}
    with pytest.raises(ValueError, match="the VAE's weights quant_conv.weight are not finite"):
        mos.tune(broken(tiny_base, "vae", "quant_conv.weight"), pictures, **options)
    with pytest.raises(ValueError, match="stopped at step 1, nothing was saved: .*weights conv_in.weight"):
        mos.tune(broken(tiny_base, "unet", "conv_in.weight"), pictures, **options)
    assert [path.name for path in tmp_path.iterdir()] == ["rabbit"]


def test_a_loss_that_is_lost_on_the_way_stops_the_run(tiny_base, pictures):
    recipe, seen = replace(RECIPES["ed_lora"], lr_words=1e38), []
    with pytest.raises(ValueError, match="nothing was saved.*smaller learning rates"):
        mos.tune(tiny_base, pictures, recipe, steps=4, progress=False, callback=seen.append)
    assert len(seen) < 4 and all(math.isfinite(record["loss"]) for record in seen)


def test_a_last_step_that_is_lost_makes_no_concept(tiny_base, pictures, monkeypatch):
    kept = tuning.lora.extract

    def extract(net):
        return {name: (down, up * torch.nan) for name, (down, up) in kept(net).items()}

    monkeypatch.setattr(tuning.lora, "extract", extract)
    with pytest.raises(ValueError, match="'rabbit' holds weights that are not finite"):
        mos.tune(tiny_base, pictures, steps=1, progress=False)


def test_a_blank_class_word_is_none(tiny_base, pictures):
    with pytest.raises(ValueError, match="class word"):
        mos.tune(tiny_base, pictures, class_word="  ", steps=1, progress=False)


def test_a_checkpoint_of_lost_numbers_is_not_written(tmp_path):
    row = nn.Parameter(torch.ones(3))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer := torch.optim.AdamW([row]), lambda step: 1.0)
    parts = {"schedule": schedule, "scaler": torch.amp.GradScaler("cpu", enabled=False), "generator": torch.Generator()}
    state = Checkpoint(tmp_path / "run.pt", "key", optimizer, **parts)
    state.save(50)
    row.data.fill_(torch.nan)
    state.save(100)
    assert torch.load(tmp_path / "run.pt", weights_only=True)["step"] == 50
