"""Folders of base models with something wrong in them: one sentence, or the right model."""

import json
import math
import shutil
import warnings

import pytest
import torch
from harness import check_error
from safetensors.torch import load_file, save_file

import mixofshow_lite as mos

EXPECTED = (ValueError, TypeError, FileNotFoundError)


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "base")


def refused(folder, **options):
    """The one sentence with which a folder is refused."""
    with pytest.raises(EXPECTED) as caught:
        mos.load_base(folder, **({"device": "cpu"} | options))
    check_error(caught.value, EXPECTED)
    return str(caught.value)


def change(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


SCHEDULER, UNET, VAE = "scheduler/scheduler_config.json", "unet/config.json", "vae/config.json"
SETTINGS = [
    *(("model_index.json", "unet", value, "has nothing as its unet") for value in ("text", ["a"], None, 3)),
    *((SCHEDULER, "_class_name", value, "cannot be read as a scheduler") for value in ("Foo", "os", "__builtins__", 3)),
    (SCHEDULER, "_class_name", "UNet2DConditionModel", "cannot be read as a scheduler"),
    (SCHEDULER, "_class_name", "FlowMatchEulerDiscreteScheduler", "adds noise in another way"),
    *((SCHEDULER, "num_train_timesteps", value, "no whole number above 0") for value in (0, -1, "x", None)),
    *((UNET, "sample_size", value, "no whole number above 0") for value in (None, "x", [1], -8)),
    *((VAE, "scaling_factor", value, "no number above 0") for value in (0, math.nan, "x")),
    ("text_encoder/config.json", "num_hidden_layers", 0, "num_hidden_layers of the text encoder"),
    ("tokenizer/tokenizer_config.json", "model_max_length", 1, "leaves no room for a prompt"),
]


@pytest.mark.parametrize(("file", "name", "value", "says"), SETTINGS)
def test_settings_that_are_none(folder, file, name, value, says):
    change(folder, file, **{name: value})
    assert says in refused(folder)


@pytest.mark.parametrize("text", ["[]", "null", "3", "[" * 99_999, '{"a":' * 9_999, "{"])
@pytest.mark.parametrize("file", ["model_index.json", "mixofshow.json"])
def test_files_that_are_no_names_and_values(folder, file, text):
    (folder / file).write_text(text)
    assert file in refused(folder)


@pytest.mark.parametrize("about", [{"guidance": "x"}, {"guidance": math.nan}, {"dtype": "x"}, {"base_id": 3}])
def test_what_a_folder_says_of_itself(folder, about):
    (folder / "mixofshow.json").write_text(json.dumps(about))
    assert "leave it out" in refused(folder)


@pytest.mark.parametrize(
    "listed",
    [[], {"<a>": {}}, {"<a>": {"concept_token_ids": [10**9]}}, {"<a>": 3}, {"a": {"concept_token_ids": [1] * 16}}],
)
def test_concept_words_that_are_no_tokens(folder, listed):
    (folder / "new_concept_cfg.json").write_text(json.dumps(listed))
    assert "new_concept_cfg.json" in refused(folder)


@pytest.mark.parametrize("net", ["unet", "text_encoder", "vae"])
def test_a_missing_tensor_is_never_a_random_one(folder, net):
    file = next((folder / net).glob("*.safetensors"))
    tensors = load_file(file)
    name = sorted(tensors)[3]
    save_file({key: tensor for key, tensor in tensors.items() if key != name}, file, {"format": "pt"})
    assert f"lacks 1 tensors, e.g. {name.removeprefix('text_model.')}" in refused(folder).replace("text_model.", "")


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
def test_a_tokenizer_that_cannot_be_read(folder, file):
    (folder / "tokenizer" / file).write_bytes(b"")
    assert "no tokenizer that can be read" in refused(folder)
    shutil.rmtree(folder / "tokenizer")
    assert "no tokenizer that can be read" in refused(folder)


def test_prompts_are_as_long_as_the_text_encoder_reads(folder, tiny_base):
    """Without tokenizer_config.json transformers takes a prompt of any length."""
    (folder / "tokenizer/tokenizer_config.json").unlink()
    assert mos.load_base(folder, device="cpu").tokens == tiny_base.tokens == 16


def test_devices_precisions_names_and_checksums(folder):
    assert "no device 'x'" in refused(folder, device="x")
    if not torch.cuda.is_available():
        assert "no device cuda" in refused(folder, device="cuda")
    assert "no precision" in refused(folder, dtype="float32")
    assert "no base model" in refused("x" * 5000) and "no base model" in refused("x" * 300)
    (folder / "SHA256SUMS").write_text("0" * 64 + "  unet/config.json")
    assert "is damaged" in refused(folder)
    for line in (b"\xff\xfe  unet/config.json", b"unet/config.json", b"\xff\xfe\xff"):
        (folder / "SHA256SUMS").write_bytes(line)
        assert "a line that is no checksum" in refused(folder)


def store(file, dtype):
    """Write a network's weights again in another dtype."""
    save_file({name: tensor.to(dtype) for name, tensor in load_file(file).items()}, file, {"format": "pt"})


@pytest.mark.parametrize("net", ["unet", "text_encoder", "vae"])
def test_weights_of_8_bits_are_told_and_whole_numbers_refused(folder, net):
    """torch makes numbers of both without a word; of whole numbers they are not the model's."""
    file = next((folder / net).glob("*.safetensors"))
    store(file, torch.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        mos.load_base(folder, device="cpu")
    store(file, torch.float8_e4m3fn)
    with pytest.warns(UserWarning, match=f"weights of .*{net}.* have 8 bits") as told:
        mos.load_base(folder, device="cpu")
    assert len([w for w in told if "8 bits" in str(w.message)]) == 1
    plain = load_file(file)
    scale = next(name for name in plain if name.endswith("weight")) + "_scale"
    save_file(plain | {scale: torch.ones(())}, file, {"format": "pt"})
    assert "is stored as F8_E4M3 and means nothing" in refused(folder)
    store(file, torch.int8)
    assert "is stored as I8 and means nothing without the program that packed it" in refused(folder)
