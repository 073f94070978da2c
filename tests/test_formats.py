"""LoRA files of every dialect: read with the right scale, written so that stock diffusers draws the same."""

import copy
import json
import pickle
import warnings
from dataclasses import replace
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import sd15_shapes
import torch
from diffusers import StableDiffusionPipeline
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import make_concept

from mixofshow_lite.attention import cross_attention
from mixofshow_lite.cli import main
from mixofshow_lite.engine import lora
from mixofshow_lite.engine.fusion import gradient_fusion, weight_fusion
from mixofshow_lite.files import keys, lora_writing
from mixofshow_lite.files.concept import Concept
from mixofshow_lite.model import noising

FILES = ("diffusers", "kohya")  # the formats that are a file; peft's is a folder
KOHYA_TEXT = {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}


def spelled(dialect, net, module):
    """The two keys (down, up) of a layer as each dialect writes them, spelled out here a second time."""
    unet = net == "unet"
    inside = module if unet else f"text_model.{module}"
    if dialect in ("kohya", "kohya without text_model"):
        inside = module if dialect != "kohya" else inside
        stem = ("lora_unet_" if unet else "lora_te_") + inside.replace(".", "_")
        return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"
    if dialect == "diffusers":
        stem = f"{net}.{inside}." + ("lora" if unet else "lora_linear_layer")
        return f"{stem}.down.weight", f"{stem}.up.weight"
    if dialect == "diffusers without text_model":
        return f"{net}.{module}.lora.down.weight", f"{net}.{module}.lora.up.weight"
    if dialect == "diffusers with peft names":
        return f"{net}.{inside}.lora_A.weight", f"{net}.{inside}.lora_B.weight"
    if dialect == "peft":
        return f"base_model.model.{inside}.lora_A.weight", f"base_model.model.{inside}.lora_B.weight"
    if dialect == "peft with an adapter name":
        return f"base_model.model.{inside}.lora_A.default.weight", f"base_model.model.{inside}.lora_B.default.weight"
    parent, leaf = (module.removesuffix(".0") if unet else inside).rsplit(".", 1)
    stem = f"{net}.{parent}.processor.{leaf}_lora" if unet else f"{net}.{parent}.{KOHYA_TEXT[leaf]}_lora"
    assert dialect == "old diffusers"
    return f"{stem}.down.weight", f"{stem}.up.weight"


DIALECTS = (
    "kohya",
    "kohya without text_model",
    "diffusers",
    "diffusers without text_model",
    "diffusers with peft names",
    "peft",
    "peft with an adapter name",
    "old diffusers",
)


def write(concept, dialect, file, alpha=None, metadata=None):
    """A LoRA file of that dialect; with an alpha for each layer where it is given."""
    state = {}
    for net, factors in concept.lora.items():
        for module, pair in factors.items():
            state |= zip(spelled(dialect, net, module), pair, strict=True)
            if alpha is not None:
                stem = spelled(dialect, net, module)[0].split(".lora")[0].split("_lora.")[0]
                state[f"{stem}.alpha"] = torch.tensor(alpha)
    save_file(state, file, metadata)
    return state


def deltas(concept):
    return {
        (net, module): concept.scale * up.double() @ down.double()
        for net, factors in concept.lora.items()
        for module, (down, up) in factors.items()
    }


def same(one, two, by=1.0, atol=1e-5):
    one, two = deltas(one), deltas(two)
    return one.keys() == two.keys() and all(torch.allclose(one[k], by * two[k], atol=atol) for k in one)


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("nets", [("text_encoder", "unet"), ("unet",), ("text_encoder",)])
def test_every_dialect_is_read(tiny_base, tmp_path, dialect, nets, capsys):
    concept = make_concept(tiny_base, rank=3, nets=nets)
    state = write(concept, dialect, tmp_path / "Some LoRA.safetensors")
    read = Concept.from_lora(tmp_path / "Some LoRA.safetensors", tiny_base, class_word="rabbit")
    assert same(read, concept)
    assert (read.name, read.words, read.phrase, read.rank, read.scale) == ("some_lora", (), "rabbit", 3, 1.0)
    assert f"{len(state)} of {len(state)} tensors matched" in capsys.readouterr().out
    assert f"{len(state)} of {len(state)} tensors matched" in read.source


@pytest.mark.parametrize("dialect", ["kohya", "diffusers", "old diffusers"])
def test_alpha_over_rank(tiny_base, tmp_path, dialect):
    concept = make_concept(tiny_base, rank=4)
    write(concept, dialect, tmp_path / "x.safetensors", alpha=3.0)
    assert same(Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit"), concept, by=3 / 4)


def test_alpha_of_peft(tiny_base, tmp_path):
    concept = make_concept(tiny_base, rank=4, nets=("unet",))
    first, *_ = concept.lora["unet"]
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    write(concept, "peft", tmp_path / "adapter_model.safetensors")
    assert same(Concept.from_lora(tmp_path, tiny_base, "rabbit"), concept, by=2.0)
    config = {"unet.r": 4, "unet.lora_alpha": 2, "unet.use_rslora": True, "unet.alpha_pattern": {first: 12}}
    metadata = {"format": "pt", "lora_adapter_metadata": json.dumps(config)}
    write(concept, "diffusers with peft names", tmp_path / "x.safetensors", metadata=metadata)
    read, wanted = deltas(Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit")), deltas(concept)
    for layer, delta in wanted.items():
        assert torch.allclose(read[layer], delta * (6.0 if layer == ("unet", first) else 1.0), atol=1e-5), layer


def official(concept, research=False):
    """The content of an official .pth."""
    end = "_lora.{}.weight" if research else ".lora_{}.weight"
    params = {"new_concept_embedding": dict(concept.embeddings)}
    for net, factors in concept.lora.items():
        level = "text_model." if net == "text_encoder" else ""
        params[net] = {
            level + module + end.format(part): tensor
            for module, pair in factors.items()
            for part, tensor in zip(("down", "up"), pair, strict=True)
        }
    return {"params": params}


@pytest.mark.parametrize("research", [False, True])
def test_official_files_are_read(tiny_base, tmp_path, concept, research, capsys):
    torch.save(official(concept, research), tmp_path / "potter.pth")
    read = Concept.from_official(tmp_path / "potter.pth", tiny_base, class_word="rabbit")
    assert same(read, concept) and (read.words, read.phrase, read.name) == (concept.words, concept.phrase, "potter")
    assert all(torch.equal(read.embeddings[word], rows) for word, rows in concept.embeddings.items())
    total = 2 + 2 * sum(map(len, concept.lora.values()))
    assert f"{total} of {total} tensors matched, 2 words" in capsys.readouterr().out
    one_row = official(concept)
    one_row["params"]["new_concept_embedding"] = {"<bibi1>": concept.embeddings["<bibi1>"][0]}
    torch.save(one_row, tmp_path / "plain.pth")
    rows = Concept.from_official(tmp_path / "plain.pth", tiny_base, verbose=False).embeddings["<bibi1>"]
    assert rows.shape == (16, 32) and (rows == rows[0]).all()
    assert capsys.readouterr().out == ""


class Hostile:
    """Unpickling one of these runs a program."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return exec, (f"open({str(self.trace)!r}, 'w').close()",)


def test_a_hostile_pickle_is_refused_and_does_nothing(tiny_base, tmp_path, concept):
    evil = official(concept)
    evil["params"]["extra"] = Hostile(tmp_path / "ran")
    torch.save(evil, tmp_path / "evil.pth")
    (tmp_path / "bare.pth").write_bytes(pickle.dumps(Hostile(tmp_path / "ran")))
    for name in ("evil.pth", "bare.pth"):
        with pytest.raises(ValueError, match="holds more than tensors") as caught:
            Concept.from_official(tmp_path / name, tiny_base)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_bad_official_files(tiny_base, tmp_path, concept):
    good = official(concept)

    def fails(match, change):
        params = {part: dict(content) for part, content in good["params"].items()}
        change(params)
        torch.save({"params": params}, tmp_path / "x.pth")
        with pytest.raises(ValueError, match=match) as caught:
            Concept.from_official(tmp_path / "x.pth", tiny_base)
        assert "\n" not in str(caught.value)

    key = next(iter(good["params"]["unet"]))
    fails(
        r"\(15, 32\) but tiny_base has 16 layers",
        lambda p: p["new_concept_embedding"].update({"<a>": torch.ones(15, 32)}),
    )
    fails("not finite", lambda p: p["new_concept_embedding"].update({"<a>": torch.ones(16, 32) * np.nan}))
    fails("has no down weight", lambda p: p["unet"].pop(key))
    fails("1 did not, e.g. unet.nonsense", lambda p: p["unet"].update(nonsense=torch.ones(1)))
    fails("another base model", lambda p: p["unet"].update({key: torch.ones(2, 5)}))
    fails("parts that no ED-LoRA has", lambda p: p.update(optimizer={}))
    fails("no official Mix-of-Show file", lambda p: p.clear())
    fails("something else than tensors", lambda p: p["unet"].update({key: 3}))
    data = (tmp_path / "x.pth").read_bytes()
    (tmp_path / "x.pth").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="truncated"):
        Concept.from_official(tmp_path / "x.pth", tiny_base)
    with pytest.raises(FileNotFoundError, match="There is no file"):
        Concept.from_official(tmp_path / "nowhere.pth", tiny_base)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight", "a LoRA for SDXL"),
        ("lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q.lora_down.weight", "a LoRA for SDXL"),
        ("lora_unet_double_blocks_0_img_attn_qkv.lora_down.weight", "Flux"),
        ("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight", "Flux"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.hada_w1_a", "a LoHa"),
        ("lora_unet_down_blocks_0_attentions_0_proj_in.lokr_w1", "a LoKr"),
        ("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.dora_scale", "a DoRA"),
        ("lora_unet_down_blocks_0_resnets_0_conv1.lora_down.weight", "a LoCon"),
        ("emb_params", "textual-inversion"),
        ("model.diffusion_model.input_blocks.0.0.weight", "whole model|SDXL"),
        ("unet.down_blocks.0.attentions.0.nonsense.lora_A.weight", "1 did not, e.g. unet.down_blocks.0"),
        ("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q.lora_A.bias", "lora_bias"),
    ],
)
def test_other_kinds_of_files_are_named(tiny_base, tmp_path, concept, key, message):
    state = write(concept, "kohya", tmp_path / "good.safetensors")
    save_file({**state, key: torch.ones(2, 2)}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=message) as caught:
        Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit")
    assert "\n" not in str(caught.value) and key in str(caught.value)


def test_bad_lora_files(tiny_base, tmp_path, concept):
    file = tmp_path / "x.safetensors"
    state = write(concept, "kohya", file)

    def fails(match, tensors=None, error=ValueError):
        if tensors is not None:
            save_file(tensors, file)
        with pytest.raises(error, match=match) as caught:
            Concept.from_lora(file, tiny_base, "rabbit")
        assert "\n" not in str(caught.value)

    down = next(key for key in state if key.endswith("down.weight"))
    fails("none belongs to a layer of tiny_base, e.g. a", {"a": torch.ones(1)})
    fails("0 tensors and none belongs", {})
    fails("1 tensor and none belongs", {"a": torch.ones(1)})
    fails("has no down weight", {k: t for k, t in state.items() if k != down})
    fails("another base model", {**state, down: torch.ones(2, 48)})
    fails("another base model", {**state, down: torch.ones(3, 32)})
    fails("not finite", {**state, down: state[down] * np.nan})
    fails("1 did not", {**state, "unet." + down: state[down].clone()})
    file.write_bytes(file.read_bytes()[:-100])
    fails("truncated or no safetensors")
    torch.save(official(concept), tmp_path / "x.pth")
    file = tmp_path / "x.pth"
    fails("Concept.from_official")
    file = tmp_path / "nothing.safetensors"
    fails("There is no file", error=FileNotFoundError)
    (tmp_path / "peft").mkdir()
    save_file(state, tmp_path / "peft" / "adapter_model.safetensors")
    for config, message in ({"peft_type": "LOHA"}, "is a LoHa"), ({"use_dora": True}, "is a DoRA"):
        (tmp_path / "peft" / "adapter_config.json").write_text(json.dumps(config))
        file = tmp_path / "peft"
        fails(message)
    (tmp_path / "peft" / "adapter_config.json").write_text("{")
    fails("no readable JSON")


@pytest.mark.parametrize("format", FILES)
def test_written_files_come_back(tiny_base, tmp_path, concept, format):
    concept.scale = 0.7
    uneven = {n: (d[:1], u[:, :1]) if "attn1" in n else (d, u) for n, (d, u) in concept.lora["unet"].items()}
    for lora_ in (concept.lora, {"unet": uneven}, {"text_encoder": concept.lora["text_encoder"]}):
        made = replace(concept, lora=lora_)
        file = made.to_lora(tmp_path / "deep" / "x.safetensors", format)
        assert same(Concept.from_lora(file, tiny_base, "rabbit", verbose=False), made)
    assert [p.name for p in file.parent.iterdir()] == ["x.safetensors"]
    with pytest.raises(ValueError, match="words only"):
        replace(concept, lora={}).to_lora(tmp_path / "x.safetensors", format)
    with pytest.raises(ValueError, match="no LoRA format 'A1111'"):
        concept.to_lora(tmp_path / "x.safetensors", "A1111")
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(OSError, match="is a folder: give the name of a file"):
        concept.to_lora(tmp_path / "x.safetensors", format)


def test_peft_reads_what_is_written_for_it(tiny_base, tmp_path, concept):
    """PeftModel.from_pretrained, without a warning: every layer's update, no other layer; and it is read back."""
    concept.scale = 0.7
    uneven = {n: (d[:1], u[:, :1]) if "attn1" in n else (d, u) for n, (d, u) in concept.lora["unet"].items()}
    made = replace(concept, lora={"text_encoder": concept.lora["text_encoder"], "unet": uneven})
    folder = made.to_lora(tmp_path / "deep" / "bibi", "peft")
    wanted = deltas(made)
    for net in made.lora:
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # such as peft's of missing keys
            theirs = PeftModel.from_pretrained(copy.deepcopy(getattr(tiny_base, net)), folder / net)
        layers = {n.removeprefix("text_model."): m for n, m in lora.attached(theirs.base_model.model).items()}
        assert layers.keys() == made.lora[net].keys()
        for module, layer in layers.items():
            delta = layer.get_delta_weight("default")
            assert delta.abs().max() > 0.01 and torch.allclose(delta, wanted[net, module].float(), atol=1e-5), module
    assert same(Concept.from_lora(folder, tiny_base, "rabbit", verbose=False), made)
    unet = {"unet": concept.lora["unet"]}
    assert replace(concept, lora=unet).to_lora(folder, "peft") == folder  # our own folder may be replaced
    assert sorted(p.name for p in folder.iterdir()) == ["lora.json", "unet"]
    (folder / "thesis.txt").write_text("ten years")
    with pytest.raises(FileExistsError, match=r"holds thesis\.txt"):
        concept.to_lora(folder, "peft")
    with pytest.raises(ValueError, match="words only"):
        replace(concept, lora={}).to_lora(tmp_path / "x", "peft")


def test_peft_folders_hold_convolutions_too(tiny_base, tmp_path, whole):
    folder = whole.to_lora(tmp_path / "whole", "peft")
    theirs = PeftModel.from_pretrained(copy.deepcopy(tiny_base.unet), folder / "unet")
    layers, wanted = lora.attached(theirs.base_model.model), deltas(whole)
    assert layers.keys() == whole.lora["unet"].keys() and any(name.endswith("proj_in") for name in layers)
    for module, layer in layers.items():
        delta = layer.get_delta_weight("default").flatten(1)
        assert torch.allclose(delta, wanted["unet", module].float(), atol=1e-5), module


def test_kohya_files_look_like_kohyas(tmp_path, concept):
    state = load_file(concept.to_lora(tmp_path / "x.safetensors", "kohya"))
    stem = "lora_te_text_model_encoder_layers_1_self_attn_out_proj"
    assert {k for k in state if k.startswith(stem)} == {
        f"{stem}.{end}" for end in ("lora_down.weight", "lora_up.weight", "alpha")
    }
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"
    assert state[f"{stem}.alpha"].item() == len(state[f"{stem}.lora_down.weight"]) == 2
    diffusers_state = load_file(concept.to_lora(tmp_path / "y.safetensors"))
    assert not any("alpha" in key for key in diffusers_state)
    # Diffusers 0.19 asks for the names of processors in the U-Net, and for the level text_model in the text encoder.
    attention = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.processor"
    parts = {f"{attention}.to_{p}_lora.{end}.weight" for p in ("q", "k", "v", "out") for end in ("down", "up")}
    assert {k for k in diffusers_state if k.startswith(attention)} == parts
    level = "text_encoder.text_model.encoder.layers.1.self_attn.out_proj.lora_linear_layer.up.weight"
    assert (level in diffusers_state) == (not lora_writing.older(diffusers, 0, 41))


@pytest.mark.parametrize("format", FILES)
def test_stock_diffusers_draws_what_with_concept_draws(tiny_base, tiny_folder, tmp_path, format):
    """The plain prompt through a stock pipeline: same text features, same noise prediction, same picture."""
    concept = make_concept(tiny_base, rank=3)
    concept.scale = 0.6
    file = concept.to_lora(tmp_path / "x.safetensors", format)
    ours = tiny_base.with_concept(concept)
    stock = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, local_files_only=True)
    stock.load_lora_weights(str(tmp_path), weight_name=file.name, local_files_only=True)
    prompt = "a red cat in the forest"
    text, _ = stock.encode_prompt(prompt, "cpu", 1, False)  # (1, N, D)
    context = ours.context(prompt)  # (1, L, N, D)
    assert torch.allclose(text, context[:, 0], atol=1e-4)
    assert (text - tiny_base.context(prompt)[:, 0]).abs().max() > 0.05
    z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([500])
    z = noising(tiny_base, z, z.flip(-1), t)
    with torch.no_grad():
        wanted = ours.unet(z, t, context).sample
        assert torch.allclose(stock.unet(z, t, text).sample, wanted, atol=1e-4)
        assert (tiny_base.unet(z, t, tiny_base.context(prompt)).sample - wanted).abs().max() > 0.01
    quick = {
        "num_inference_steps": 2,
        "guidance_scale": 5.0,
        "latents": tiny_base.noise(1, seed=0),
        "output_type": "np",
    }
    pictures = [pipeline(prompt, **quick).images for pipeline in (stock, stock_like(ours, stock))]
    assert np.allclose(*pictures, atol=1e-3)


def stock_like(model, stock):
    pipeline = model.pipeline()
    pipeline.scheduler = stock.scheduler
    pipeline.set_progress_bar_config(disable=True)
    stock.set_progress_bar_config(disable=True)
    return pipeline


def test_words_and_lora_file_together_are_the_concept(tiny_base, concept, tmp_path):
    """The embeddings travel in the folder, the LoRA in a stock file: put together they draw what the concept draws."""
    file = concept.to_lora(tmp_path / "x.safetensors", "kohya")
    model = tiny_base.with_words(concept)
    model.pipeline().load_lora_weights(str(tmp_path), weight_name=file.name, local_files_only=True)
    drawn = [
        np.asarray(m.sample(f"a {concept.phrase}", steps=2, progress=False)[0], dtype=int)
        for m in (model, tiny_base.with_concept(concept), tiny_base)
    ]
    assert abs(drawn[0] - drawn[1]).max() <= 1 and abs(drawn[1] - drawn[2]).max() > 1


def test_a_lora_without_words_fuses(tiny_base, tmp_path, concept):
    """A kohya file and an ED-LoRA in one model; the file is recorded on the prompts its phrase makes."""
    other = make_concept(tiny_base, "kiki", seed=5)
    file = other.to_lora(tmp_path / "kiki.safetensors", "kohya")
    bought = Concept.from_lora(file, tiny_base, class_word="rabbit", phrase="kk rabbit", verbose=False)
    assert bought.words == () and bought.phrase == "kk rabbit"
    fused = gradient_fusion(tiny_base, [concept, bought], steps=1, prompts=["a {}"], progress=False)
    assert set(fused.words) == set(concept.words)
    assert fused.report.residual("kiki") < fused.report.residual("kiki", which="before")
    alone = weight_fusion(tiny_base, [bought])
    direct = tiny_base.with_concept(other)
    for name, linear in lora.attention_linears(alone.unet).items():
        assert torch.allclose(linear.weight, lora.attention_linears(direct.unet)[name].weight, atol=1e-5)


def test_spellings_are_unambiguous(tiny_base):
    layers = keys.layers_of(tiny_base)
    assert len({module.replace(".", "_") for _, module in layers}) == len(layers) == 192 + 6 * 2
    assert keys.split("conv_in.weight")[1] == keys.split("x.lora_B.bias")[1] == ""
    assert keys.split("unet.a.lora_A.my_style.weight") == ("unet.a", "down")


@pytest.mark.parametrize("format", FILES)
def test_convert_from_the_shell(tiny_folder, concept, tmp_path, capsys, format):
    folder, file, again = concept.save(tmp_path / "bibi"), tmp_path / "x.safetensors", tmp_path / "again"
    assert main(["convert", str(folder), str(file), "--format", format]) == 0
    convert = ["convert", str(file), str(again), "--base", str(tiny_folder)]
    assert main(convert) == 1 and "say what it draws with --class-word" in capsys.readouterr().err
    assert main([*convert, "--class-word", "rabbit", "--phrase", "bb rabbit", "--name", "bunny"]) == 0
    read = Concept.load(again)
    assert same(read, concept) and (read.name, read.phrase, read.class_word) == ("bunny", "bb rabbit", "rabbit")
    assert "tensors matched" in read.source and "tensors matched" in (again / "README.md").read_text()
    torch.save(official(concept), tmp_path / "potter.pth")
    redo = ["convert", str(tmp_path / "potter.pth"), str(again), "--base", str(tiny_folder)]
    assert main(redo) == 1 and "--overwrite" in capsys.readouterr().err
    assert main([*redo, "--overwrite"]) == 0
    assert Concept.load(again).words == concept.words


@pytest.fixture(scope="module")
def sd15():
    """Stable Diffusion 1.5's nets without weights: names and shapes are all that a reader asks of a base."""
    text_encoder, unet = sd15_shapes.networks()
    return SimpleNamespace(base_id="sd15", unet=unet, text_encoder=text_encoder, layers=tuple(cross_attention(unet)))


def test_the_official_counts_on_stable_diffusion_15(sd15, tmp_path):
    """FACTS: U-Net 797,184 + text encoder 294,912 + embeddings 24,576 floats in 354 tensors."""
    factors = {
        net: {n: (torch.ones(4, m.in_features), torch.ones(m.out_features, 4)) for n, m in found.items()}
        for net in ("text_encoder", "unet")
        for found in [lora.attention_linears(getattr(sd15, net))]
    }
    rows = {"<potter1>": torch.ones(16, 768), "<potter2>": torch.ones(16, 768)}
    made = Concept("potter", tuple(rows), "man", "ed_lora", rows, factors)
    torch.save(official(made), tmp_path / "potter.pth")
    read = Concept.from_official(tmp_path / "potter.pth", sd15, class_word="man", verbose=False)
    assert read.source == (
        "potter.pth: 354 of 354 tensors matched, 2 words, 48 layers of the text_encoder, 128 layers of the unet"
    )
    numbers = {n: sum(t.numel() for pair in f.values() for t in pair) for n, f in read.lora.items()}
    assert numbers == {"unet": 797_184, "text_encoder": 294_912}
    assert (
        sum(t.numel() for t in load_file(read.save(tmp_path / "potter") / "concept.safetensors").values()) == 1_116_672
    )
    again = Concept.from_lora(read.to_lora(tmp_path / "x.safetensors", "kohya"), sd15, "man", verbose=False)
    assert again.source.startswith("x.safetensors: 528 of 528 tensors matched")


@pytest.fixture
def whole(tiny_base):
    """A LoRA of all the layers that kohya's trainer changes: attention, feed-forward, 1x1 projections."""
    generator = torch.Generator().manual_seed(7)
    made = make_concept(tiny_base, "whole")
    for (net, module), shape in keys.layers_of(tiny_base).items():
        down, up = torch.randn(2, shape[1], generator=generator), torch.randn(shape[0], 2, generator=generator)
        made.lora[net][module] = (down / shape[1] ** 0.5, 0.2 * up)
    return made


@pytest.mark.parametrize("format", FILES)
def test_a_whole_kohya_lora_draws_as_in_stock_diffusers(tiny_base, tiny_folder, whole, tmp_path, format):
    """192 layers of the U-Net and 6 of each text layer, as in files from the wild."""
    file = whole.to_lora(tmp_path / "x.safetensors", format)
    projections = [t for k, t in load_file(file).items() if "proj_in" in k and "alpha" not in k]
    assert len(projections) == 32 and all(t.shape[2:] == (1, 1) for t in projections)
    read = Concept.from_lora(file, tiny_base, "rabbit", verbose=False)
    assert same(read, whole) and {net: len(f) for net, f in read.lora.items()} == {"text_encoder": 12, "unet": 192}
    stock = StableDiffusionPipeline.from_pretrained(tiny_folder, safety_checker=None, local_files_only=True)
    stock.load_lora_weights(str(tmp_path), weight_name=file.name, local_files_only=True)
    text, _ = stock.encode_prompt("a red cat", "cpu", 1, False)
    ours = tiny_base.with_concept(read)
    context = ours.context("a red cat")
    assert torch.allclose(text, context[:, 0], atol=1e-4)
    z, t = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3)), torch.tensor([500])
    with torch.no_grad():
        wanted = ours.unet(z, t, context).sample
        assert torch.allclose(stock.unet(z, t, text).sample, wanted, atol=1e-3)
    attention_only = replace(
        whole, lora={n: {m: p for m, p in f.items() if "ff" not in m} for n, f in whole.lora.items()}
    )
    assert (tiny_base.with_concept(attention_only).unet(z, t, context).sample - wanted).abs().max() > 0.01


def test_a_whole_kohya_lora_fuses(tiny_base, whole, concept):
    """One concept alone is itself, in every layer; two lose less than their average does."""
    direct = tiny_base.with_concept(whole)
    for net in ("text_encoder", "unet"):
        wanted = lora.adaptable(getattr(direct, net))
        for model in (weight_fusion(tiny_base, [whole]), gradient_fusion(tiny_base, [whole], steps=1, progress=False)):
            for name, layer in lora.adaptable(getattr(model, net)).items():
                assert torch.allclose(layer.weight, wanted[name].weight, atol=1e-4), name
    fused = gradient_fusion(tiny_base, [whole, concept], steps=1, prompts=["a {}"], progress=False)
    assert len([layer for layer in fused.report.layers if layer.name.endswith("proj_in")]) == 16
    for name in ("whole", "bibi"):
        assert fused.report.residual(name) < fused.report.residual(name, which="before")
