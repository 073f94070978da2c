"""LoRA files of other programs: peft settings, old and foreign names, and every other kind of file by its name."""

import copy
import json
import re
import warnings

import pytest
import torch
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_formats import deltas, official, same, write
from tiny import make_concept

from mixofshow_lite.engine import lora
from mixofshow_lite.files import keys, lora_files
from mixofshow_lite.files.concept import Concept
from mixofshow_lite.files.patterns import ways


def refused(file, base, read=Concept.from_lora):
    """The one sentence with which a file is refused."""
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(file, base, class_word="rabbit")
    assert "\n" not in str(caught.value) and str(caught.value).endswith(".")
    return str(caught.value)


@pytest.mark.parametrize("rslora", [False, True])
def test_peft_settings_by_layer_mean_what_peft_makes_of_them(tiny_base, tmp_path, rslora):
    """Ranks and alphas by regular expressions, overlapping ones too: every layer acts as in peft itself, reloaded."""
    settings = LoraConfig(
        r=4,
        lora_alpha=8,
        use_rslora=rslora,
        init_lora_weights=False,
        target_modules=["to_q", "to_k", "to_v", "to_out.0"],
        rank_pattern={r"attn1\.to_[qk]": 2, r"^mid_block\..*to_v": 7},
        alpha_pattern={r"attn2\.to_[kv]": 2, r"up_blocks.*attn2\.to_k": 3, r"^mid_block.*to_q": 5, r"to_out\.0": 11},
    )
    own = get_peft_model(copy.deepcopy(tiny_base.unet), settings)
    own.save_pretrained(tmp_path)
    theirs = type(own).from_pretrained(copy.deepcopy(tiny_base.unet), tmp_path)
    read = Concept.from_lora(tmp_path, tiny_base, "rabbit", verbose=False)
    layers = lora.attached(theirs.base_model.model)
    assert len(layers) == 128
    for (net, module), delta in deltas(read).items():
        assert net == "unet" and torch.allclose(delta.float(), layers[module].get_delta_weight("default"), atol=1e-5)
    assert {len(down) for down, _ in read.lora["unet"].values()} == {2, 4, 7}


def test_text_encoder_patterns_with_and_without_text_model(tiny_base):
    scale = lora_files.scale_of({"text_encoder": {"lora_alpha": 4, "alpha_pattern": {r"^text_model\..*q_proj": 8}}})
    assert scale("text_encoder", "encoder.layers.0.self_attn.q_proj", 4) == 2
    assert scale("text_encoder", "encoder.layers.0.self_attn.k_proj", 4) == 1
    scale = lora_files.scale_of({"text_encoder": {"lora_alpha": 4, "alpha_pattern": {r"^encoder\..*q_proj": 8}}})
    assert scale("text_encoder", "encoder.layers.1.self_attn.q_proj", 4) == 2
    assert scale("unet", "mid_block.attentions.0.transformer_blocks.0.attn1.to_q", 4) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"alpha_pattern": ["to_q"]},
        {"alpha_pattern": "to_q"},
        {"alpha_pattern": {"to_q": "8"}},
        {"alpha_pattern": {"to_q": None}},
        {"alpha_pattern": {"to_(q": 8}},
        {"lora_alpha": 10**400},
        {"lora_alpha": float("nan")},
        {"lora_alpha": [4]},
        {"peft_type": ["LORA"]},
    ],
)
def test_settings_that_are_none(tiny_base, tmp_path, change):
    write(make_concept(tiny_base, nets=("unet",)), "peft", tmp_path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8} | change
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "adapter_model.safetensors" in refused(tmp_path, tiny_base)


def test_settings_nested_too_deep(tiny_base, tmp_path):
    write(make_concept(tiny_base, nets=("unet",)), "peft", tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("[" * 100_000 + "]" * 100_000)
    assert "no readable JSON" in refused(tmp_path, tiny_base)


def ldm_names(base):
    """diffusers' path of each transformer block -> its path in Stable Diffusion's first code, by diffusers' own
    conversion of a checkpoint in which every block holds its number."""
    blocks = [f"input_blocks.{i}.1" for i in (1, 2, 4, 5, 7, 8)] + ["middle_block.1"]
    blocks += [f"output_blocks.{i}.1" for i in range(3, 12)]
    needed = [f"{end}.{i}.{part}" for end in ("time_embed", "out") for i in (0, 2) for part in ("weight", "bias")]
    needed += [f"{side}_blocks.{i}.0.in_layers.0.weight" for side in ("input", "output") for i in range(12)]
    needed += ["input_blocks.0.0.weight", "input_blocks.0.0.bias", "middle_block.0.x", "middle_block.2.x"]
    checkpoint = {f"model.diffusion_model.{key}": torch.full((1,), -1.0) for key in needed}
    inside = ".transformer_blocks.0.attn1.to_q.weight"
    for number, block in enumerate(blocks):
        checkpoint[f"model.diffusion_model.{block}{inside}"] = torch.full((1,), float(number))
    converted = convert_ldm_unet_checkpoint(checkpoint, {**base.unet.config, "layers_per_block": 2})
    return {key.removesuffix(inside): blocks[int(t.item())] for key, t in converted.items() if key.endswith(inside)}


@pytest.mark.parametrize("style", ["lora_unet_", "diffusion_model."])
def test_names_of_stable_diffusions_first_code_are_read(tiny_base, tmp_path, style):
    """Some programs write input_blocks_1_1 for down_blocks_0_attentions_0: SD 1.x's own names, no SDXL."""
    concept, names = make_concept(tiny_base, nets=("unet",)), ldm_names(tiny_base)
    assert len(names) == 16
    state = {}
    for module, (down, up) in concept.lora["unet"].items():
        block, rest = module.split(".transformer_blocks.0.")
        path = f"{names[block]}.transformer_blocks.0.{rest}"
        path = style + (path.replace(".", "_") if style.endswith("_") else path)
        state |= {f"{path}.lora_down.weight": down, f"{path}.lora_up.weight": up}
    save_file(state, tmp_path / "x.safetensors")
    assert same(Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit", verbose=False), concept)


def renamed(state, old, new):
    return {re.sub(old, new, key): tensor for key, tensor in state.items()}


@pytest.mark.parametrize("adapter", ["default_0", "my-lora", "v1.5", "style.v2-final"])
def test_adapter_names_of_any_spelling(tiny_base, concept, tmp_path, adapter):
    state = write(concept, "peft", tmp_path / "x.safetensors")
    state = renamed(state, r"\.lora_([AB])\.weight$", rf".lora_\1.{adapter}.weight")
    save_file(state, tmp_path / "x.safetensors")
    assert same(Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit", verbose=False), concept)
    two = {key.replace(adapter, "other"): tensor.clone() for key, tensor in state.items()}
    save_file(state | two, tmp_path / "x.safetensors")
    assert f"2 LoRAs at once ({', '.join(sorted([adapter, 'other']))})" in refused(
        tmp_path / "x.safetensors", tiny_base
    )


@pytest.mark.parametrize(
    "level", ["wrapped_transformer_text_model_", "text_model_text_model_", "transformer_text_model_"]
)
def test_wrapped_text_encoders(tiny_base, concept, tmp_path, level):
    state = write(concept, "kohya", tmp_path / "x.safetensors")
    save_file(renamed(state, "lora_te_text_model_", f"lora_te_{level}"), tmp_path / "x.safetensors")
    assert same(Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit", verbose=False), concept)


@pytest.mark.parametrize("all_four", [False, True])
def test_the_text_encoder_of_diffusers_0_15(tiny_base, concept, tmp_path, all_four):
    """Each projection had four LoRAs and used the one of its own name; the other three never acted and are left."""
    state, parts = {}, {"q_proj": "to_q", "k_proj": "to_k", "v_proj": "to_v", "out_proj": "to_out"}
    for module, (down, up) in concept.lora["text_encoder"].items():
        leaf = module.rsplit(".", 1)[1]
        for part in parts.values() if all_four else (parts[leaf],):
            path = f"text_encoder.text_model.{module}.{part}_lora"
            use = 1 if part == parts[leaf] else torch.nan
            state |= {f"{path}.down.weight": use * down, f"{path}.up.weight": use * up}
    save_file(state | unet_of(concept), tmp_path / "x.safetensors")
    read = Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit", verbose=False)
    assert same(read, concept)
    assert ("48 of an old layout, which no program ever used" in read.source) == all_four
    total = len(state) + len(unet_of(concept))
    assert f"{total - (48 if all_four else 0)} of {total} tensors matched" in read.source


def unet_of(concept):
    return {
        f"unet.{module}.lora.{part}.weight": tensor
        for module, pair in concept.lora["unet"].items()
        for part, tensor in zip(("down", "up"), pair, strict=True)
    }


def test_a_folder_with_one_folder_for_each_network(tiny_base, concept, tmp_path):
    """peft's own example saves unet/ and text_encoder/, each with its own settings."""
    for net, alpha in (("unet", 4), ("text_encoder", 1)):
        (tmp_path / net).mkdir()
        only = make_concept(tiny_base, nets=())
        only.lora = {net: concept.lora[net]}
        write(only, "peft", tmp_path / net / "adapter_model.safetensors")
        config = {"peft_type": "LORA", "r": 2, "lora_alpha": alpha}
        (tmp_path / net / "adapter_config.json").write_text(json.dumps(config))
    read, wanted = deltas(Concept.from_lora(tmp_path, tiny_base, "rabbit", verbose=False)), deltas(concept)
    assert read.keys() == wanted.keys()
    for layer, delta in wanted.items():
        assert torch.allclose(read[layer], delta * (2 if layer[0] == "unet" else 0.5), atol=1e-5)
    (tmp_path / "unet" / "adapter_model.safetensors").unlink()
    assert "unet holds no LoRA file" in refused(tmp_path, tiny_base)


def test_folders_with_other_names(tiny_base, concept, tmp_path):
    assert "holds no LoRA file" in refused(tmp_path, tiny_base)
    write(concept, "kohya", tmp_path / "mine.safetensors")
    assert same(Concept.from_lora(tmp_path, tiny_base, "rabbit", verbose=False), concept)
    write(concept, "kohya", tmp_path / "yours.safetensors")
    assert "2 safetensors files (mine.safetensors, yours.safetensors ...)" in refused(tmp_path, tiny_base)


@pytest.mark.parametrize("name", ["x.bin", "x.pt", "x.ckpt"])
def test_pickled_loras_of_older_programs(tiny_base, concept, tmp_path, name):
    state = write(concept, "old diffusers", tmp_path / "x.safetensors")
    for content in (state, {"state_dict": state}):
        torch.save(content, tmp_path / name)
        assert same(Concept.from_lora(tmp_path / name, tiny_base, "rabbit", verbose=False), concept)
    torch.save([state], tmp_path / name)
    assert "no tensors with names" in refused(tmp_path / name, tiny_base)
    torch.save(state, tmp_path / name)
    assert "Concept.from_lora" in refused(tmp_path / name, tiny_base, Concept.from_official)


FLUX = [
    f"transformer.{kind}transformer_blocks.{i}.attn.to_q.lora_A.weight" for kind in ("", "single_") for i in (0, 12)
]
XL = "lora_unet_input_blocks_4_1_transformer_blocks_{}_attn1_to_q.lora_down.weight"
KINDS = {
    "Flux, diffusers": (FLUX, "a LoRA for Flux"),
    "Flux, later blocks alone": (FLUX[1:2], "a transformer such as Flux or SD 3"),
    "Flux, peft folder": (
        ["base_model.model.transformer_blocks.12.attn.to_q.lora_A.weight"],
        "a transformer such as Flux",
    ),
    "Flux, kohya": (["lora_unet_double_blocks_18_img_attn_proj.lora_down.weight"], "a LoRA for Flux"),
    "Flux, comfy": (["diffusion_model.single_blocks.3.linear1.lora_down.weight"], "a LoRA for Flux"),
    "SD 3, diffusers": (["transformer.transformer_blocks.20.attn.add_q_proj.lora_A.weight"], "such as Flux or SD 3"),
    "SD 3, kohya": (["lora_unet_joint_blocks_3_x_block_attn_qkv.lora_down.weight"], "a LoRA for SD 3"),
    "T5": (["lora_te3_encoder_block_0_layer_0_SelfAttention_q.lora_down.weight"], "such as Flux or SD 3"),
    "SDXL, kohya": ([XL.format(i) for i in (0, 1)], "a LoRA for SDXL"),
    "SDXL, diffusers": (
        ["unet.mid_block.attentions.0.transformer_blocks.9.attn1.to_q.lora_A.weight"],
        "a LoRA for SDXL",
    ),
    "SDXL, second text encoder": (["text_encoder_2.text_model.encoder.layers.0.mlp.fc1.lora_A.weight"], "for SDXL"),
    "SD checkpoint": (["model.diffusion_model.input_blocks.1.1.proj_in.weight", "first_stage_model.x"], "whole model"),
    "SDXL checkpoint": (["conditioner.embedders.0.x", "model.diffusion_model.label_emb.0.0.weight"], "a whole model"),
    "VAE": (["encoder.conv_in.weight"], "part of a whole model"),
    "diffusers U-Net": (["conv_in.weight", "down_blocks.0.resnets.0.conv1.weight"], "part of a whole model"),
    "text encoder": (["text_model.embeddings.token_embedding.weight"], "part of a whole model"),
    "ControlNet": (["controlnet_cond_embedding.conv_in.weight"], "a ControlNet"),
    "IP-Adapter": (["image_proj.norm.weight"], "an IP-Adapter"),
    "A1111 embedding": (["emb_params"], "a textual-inversion embedding"),
    "SDXL embedding": (["clip_g", "clip_l"], "a textual-inversion embedding"),
    "diffusers embedding": (["<cat-toy>"], "a textual-inversion embedding"),
    "LoHa": (["lora_unet_mid_block_attentions_0_proj_in.hada_t1"], "a LoHa"),
    "LoKr": (["lora_unet_mid_block_attentions_0_proj_in.lokr_t2"], "a LoKr"),
    "IA3": (["lora_unet_mid_block_attentions_0_proj_in.on_input"], "a LyCORIS file"),
    "DoRA": (["base_model.model.mid_block.attentions.0.proj_in.lora_magnitude_vector.default.weight"], "a DoRA"),
    "biases": (["base_model.model.mid_block.attentions.0.proj_in.lora_B.default.bias"], "lora_bias"),
    "whole layers": (["base_model.model.conv_out.weight"], "modules_to_save"),
    "LoCon": (["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"], "a LoCon"),
    "LoCon, first names": (["lora_unet_input_blocks_3_0_op.lora_down.weight"], "a LoCon"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_other_kinds_of_files_are_called_by_their_name(tiny_base, tmp_path, kind):
    names, message = KINDS[kind]
    save_file({key: torch.zeros(4, 4) for key in names}, tmp_path / "x.safetensors")
    said = refused(tmp_path / "x.safetensors", tiny_base)
    assert said.startswith("x.safetensors is a") or "part of a whole model" in said
    assert message in said and any(name in said for name in names)


@pytest.mark.parametrize(
    ("width", "family"), [(1024, "Stable Diffusion 2"), (2048, "SDXL"), (768, 'load_base("sd15")')]
)
@pytest.mark.parametrize("dialect", ["kohya", "diffusers"])
def test_other_text_widths_name_the_model(tiny_base, concept, tmp_path, width, family, dialect):
    """SD 2 has SD 1.x's names, with one more text layer than fits: the width of its text features tells."""
    concept.lora["unet"] = {
        name: (torch.ones(2, width), up) if "attn2.to_k" in name else (down, up)
        for name, (down, up) in concept.lora["unet"].items()
    }
    concept.lora["text_encoder"]["encoder.layers.22.self_attn.q_proj"] = (torch.ones(2, 32), torch.ones(32, 2))
    write(concept, dialect, tmp_path / "x.safetensors")
    assert family in refused(tmp_path / "x.safetensors", tiny_base)


def test_textual_inversion_pickles(tiny_base, tmp_path):
    """A1111's .pt, the first programs' (a ParameterDict, which is refused unopened) and diffusers' .bin."""
    rows = torch.zeros(2, 768)
    table = torch.nn.ParameterDict({"*": torch.nn.Parameter(rows)})
    for name, content in {
        "a.pt": {"string_to_token": {"*": 265}, "string_to_param": {"*": rows}, "name": "x"},
        "b.pt": {"string_to_token": {"*": 265}, "string_to_param": table},
        "c.bin": {"<cat-toy>": rows[0]},
        "d.bin": {"sks": rows[0]},
    }.items():
        torch.save(content, tmp_path / name)
        for read in (Concept.from_lora, Concept.from_official):
            said = refused(tmp_path / name, tiny_base, read)
            assert "textual-inversion embedding" in said and "load_textual_inversion" in said


def test_alpha_zero_is_said(tiny_base, concept, tmp_path):
    write(concept, "kohya", tmp_path / "x.safetensors", alpha=0.0)
    with pytest.warns(UserWarning) as told:
        read = Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit", verbose=False)
    assert len(told) == 1 and "alpha is 0 in 136 of 136 layers of x.safetensors" in str(told[0].message)
    assert told[0].filename == __file__  # it points at the line that read the file
    assert not any(up.any() for _, up in read.lora["unet"].values())


@pytest.mark.parametrize(
    ("prefix", "message"), [("lora_te_", "use it if it was trained so"), ("lora_te1_", "SDXL or Flux")]
)
def test_half_a_lora_is_said(tiny_base, tmp_path, prefix, message):
    concept = make_concept(tiny_base, nets=("text_encoder",))
    state = write(concept, "kohya", tmp_path / "x.safetensors")
    save_file(renamed(state, "^lora_te_", prefix), tmp_path / "x.safetensors")
    with pytest.warns(UserWarning, match=message) as told:
        assert same(Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit", verbose=False), concept)
    assert len(told) == 1 and "the text encoder only" in str(told[0].message)


def test_a_whole_lora_is_read_without_a_word(tiny_base, concept, tmp_path):
    write(concept, "kohya", tmp_path / "x.safetensors", alpha=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Concept.from_lora(tmp_path / "x.safetensors", tiny_base, "rabbit", verbose=False)


@pytest.mark.parametrize("name", ["a\nb", "te2\x0b\x1b[31m", "\u2028lora_te2_"])
def test_names_that_cannot_be_printed_are_escaped(tiny_base, concept, tmp_path, name):
    """A stranger's file may hold anything as a name: the sentence stays one line and colours no terminal."""
    state = write(concept, "kohya", tmp_path / "x.safetensors")
    for key in (name, f"lora_unet_x.lora_A.{name}.weight"):
        save_file(state | {key: torch.ones(2, 2)}, tmp_path / "x.safetensors")
        said = refused(tmp_path / "x.safetensors", tiny_base)
        assert said.isprintable() and name.encode("unicode_escape").decode() in said
    file = concept.save(tmp_path / "bibi") / "concept.safetensors"
    for tensor in (torch.ones(2), torch.ones(2, dtype=torch.int8)):
        save_file({name: tensor}, file)
        with pytest.raises(ValueError) as caught:
            Concept.load(tmp_path / "bibi")
        assert str(caught.value).isprintable()


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_numbers_of_another_kind(tiny_base, concept, tmp_path, dtype):
    state = write(concept, "kohya", tmp_path / "x.safetensors")
    key = next(key for key in state if key.endswith("down.weight"))
    save_file(state | {key: state[key].to(dtype)}, tmp_path / "x.safetensors")
    assert f"a tensor of {str(dtype).removeprefix('torch.')}" in refused(tmp_path / "x.safetensors", tiny_base)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_numbers_of_8_bits_are_told_wherever_they_come_in(tiny_base, concept, tmp_path, dtype):
    """They are read, rounded: a file of 16 or 32 bits says nothing, one of 8 bits one sentence."""
    write(concept, "kohya", tmp_path / "x.safetensors")
    folder = concept.save(tmp_path / "bibi")
    words = official(concept)
    readers = {
        tmp_path / "x.safetensors": lambda file: Concept.from_lora(file, tiny_base, "rabbit", verbose=False),
        folder / "concept.safetensors": lambda file: Concept.load(file.parent),
    }
    for file, read in readers.items():
        stored = load_file(file)
        for kind, count in ((torch.float16, 0), (dtype, 1)):
            save_file({name: tensor.to(kind) for name, tensor in stored.items()}, file)
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always")
                read(file)
            assert len([w for w in said if f"have 8 bits ({str(kind)[6:]})" in str(w.message)]) == count
    rows = words["params"]["new_concept_embedding"]
    words["params"]["new_concept_embedding"] = {word: row.to(dtype) for word, row in rows.items()}
    torch.save(words, tmp_path / "x.pth")
    with pytest.warns(match="2 of 2 tensors of the words in x.pth have 8 bits"):
        Concept.from_official(tmp_path / "x.pth", tiny_base, verbose=False)


@pytest.mark.parametrize(
    ("part", "value", "message"),
    [
        ("new_concept_embedding", 3, "is a int, no dict"),
        ("new_concept_embedding", [1], "is a list, no dict"),
        ("new_concept_embedding", torch.ones(2, 2), "is a Tensor, no dict"),
        ("unet", "x", "is a str, no dict"),
        ("new_concept_embedding", {"": torch.ones(16, 32)}, "is no concept word"),
        ("new_concept_embedding", {"a": torch.ones(16, 32)}, "is no concept word"),
        ("new_concept_embedding", {"<a>": torch.ones(0)}, r"\(0,\) but tiny_base has 16 layers"),
        ("new_concept_embedding", {"<a>": torch.ones(16, 0)}, r"\(16, 0\)"),
        ("new_concept_embedding", {"<a>": torch.ones(16, 32).to_sparse()}, "no tensor of decimal numbers"),
        ("new_concept_embedding", {"<a>": torch.ones(16, 32, dtype=torch.bool)}, "no tensor of decimal numbers"),
        ("new_concept_embedding", {"<a>": torch.ones(16, 32, dtype=torch.complex64)}, "no tensor of decimal"),
        ("new_concept_embedding", {"<a>": torch.ones(16, 32, device="meta")}, "no tensor of decimal numbers"),
        ("new_concept_token", {"<a>": torch.ones(16, 32)}, "holds its words twice"),
    ],
)
def test_official_files_with_a_part_of_another_kind(tiny_base, tmp_path, concept, part, value, message):
    content = official(concept)
    content["params"][part] = value
    torch.save(content, tmp_path / "x.pth")
    assert re.search(message, refused(tmp_path / "x.pth", tiny_base, Concept.from_official))


def test_an_official_file_given_as_a_lora(tiny_base, tmp_path, concept):
    torch.save(official(concept), tmp_path / "x.pth")
    assert "read it with Concept.from_official" in refused(tmp_path / "x.pth", tiny_base)


HOSTILE = [
    "(a+)+$",
    "(.*)*x",
    "(a|a)*$",
    "(?:a?){40}",
    ".*.*.*.*.*x",
    "a+)+(b",
    "([a-z]+)*[0-9]",
    "(?x: a + )+",
    "a?" * 40,
]


@pytest.mark.parametrize("pattern", HOSTILE)
def test_patterns_that_could_take_years_are_refused(tiny_base, tmp_path, concept, pattern):
    """In both kinds of settings, before the pattern is tried."""
    write(concept, "peft", tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "alpha_pattern": {pattern: 8}}))
    said = refused(tmp_path, tiny_base)
    assert "could take years to match" in said and repr(pattern)[:9] in said
    metadata = {lora_files.METADATA: json.dumps({"unet.r": 2, "unet.alpha_pattern": {"x": 1, pattern: 8}})}
    write(concept, "diffusers", tmp_path / "x.safetensors", metadata=metadata)
    assert "could take years to match" in refused(tmp_path / "x.safetensors", tiny_base)


def test_a_great_many_patterns_are_refused_too(tiny_base, tmp_path, concept):
    write(concept, "peft", tmp_path / "adapter_model.safetensors")
    config = {"lora_alpha": 4, "alpha_pattern": {f"layer{n}": 1 for n in range(20_000)}}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert "could take years" in refused(tmp_path, tiny_base)
    config = {"lora_alpha": 4, "rank_pattern": {"(a+)+$": 8}}  # ranks are those of the tensors, no pattern is tried
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    assert Concept.from_lora(tmp_path, tiny_base, "rabbit", verbose=False).rank == 2


@pytest.mark.parametrize("pattern", ["(a", "*a", "a{4294967296}", "(?i)to_q", "(" * 5000])
def test_what_is_no_pattern_is_said(tiny_base, tmp_path, concept, pattern):
    write(concept, "peft", tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_alpha": 4, "alpha_pattern": {pattern: 8}}))
    assert "is no regular expression" in refused(tmp_path, tiny_base)


@pytest.mark.parametrize("key", ["lora.A" * 12_000, ".lora_A." * 9_000 + "bias"], ids=["ending", "bias"])
def test_a_name_of_thousands_of_characters_is_refused_at_once(tiny_base, tmp_path, key):
    save_file({key: torch.zeros(4, 4)}, tmp_path / "x.safetensors")
    assert f"a tensor whose name is {len(key)} characters long" in refused(tmp_path / "x.safetensors", tiny_base)
    assert keys.split(key) == (key, "")


def test_ways_of_ordinary_patterns_are_few():
    for pattern, most in {
        r"mid_block\.attentions\.0\.transformer_blocks\.0\.attn1\.to_q": 1,
        r"attn2\.to_[kv]": 1,
        r"^(down|up)_blocks\.\d+\.attentions\.\d+\..*to_(q|k|v|out\.0)": 2 * 3 * 3 * 40 * 4,
        r".*attn1.*to_q.*": 40**3,
        r"(a\)|[)|(+*]?|\|)b{2}": 4,
    }.items():
        assert ways(pattern) == most, pattern
    everything = "|".join(rf"block\.{n}\.to_q" for n in range(300))
    assert ways(everything) == 300


def test_no_key_of_a_plain_lora_looks_like_another_kind(tiny_base, tmp_path):
    """The names of every layer in every dialect pass the rules for other kinds."""
    whole = make_concept(tiny_base)
    for net, module in keys.layers_of(tiny_base):
        whole.lora[net][module] = (torch.ones(1, 1), torch.ones(1, 1))
    for format in ("diffusers", "kohya"):
        keys.refuse_other_kinds(load_file(whole.to_lora(tmp_path / "x.safetensors", format)), "x")
