"""Text-to-image diffusion (paper 3.1): Eq. 1, layer-wise context, sampling, stock pipelines, and bad input."""

import hashlib
import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import make_concept
from transformers import CLIPTextModel, CLIPTokenizer

import mixofshow_lite as mos
from mixofshow_lite.attention import cross_attention
from mixofshow_lite.files import loading
from mixofshow_lite.model import denoising_loss, noising


def pixels(model, prompt="a red cat", **kwargs):
    """All pictures as one float array, few steps."""
    pictures = model.sample(prompt, **({"steps": 2, "progress": False, "seed": 0} | kwargs))
    return np.stack([np.asarray(picture, dtype=float) for picture in pictures])


def close(a, b):
    return a.shape == b.shape and np.abs(a - b).max() <= 1  # pictures are rounded to bytes


def test_sixteen_layers_in_the_order_a_sample_passes_them(tiny_base):
    seen, handles = [], []
    for name, module in cross_attention(tiny_base.unet).items():
        handles.append(module.register_forward_hook(lambda *_, name=name: seen.append(name)))
    with torch.no_grad():
        tiny_base.unet(torch.zeros(1, 4, 8, 8), 0, tiny_base.context("cat"))
    [handle.remove() for handle in handles]
    assert tuple(seen) == tiny_base.layers
    assert [name.split("_")[0] for name in seen] == ["down"] * 6 + ["mid"] + ["up"] * 9


@torch.no_grad()
def test_plain_context_is_the_text_encoders_and_the_same_for_every_layer(tiny_base):
    prompts = ["a red cat", "a dog on the beach", "a red cat"]
    context = tiny_base.context(prompts)
    tokens = tiny_base.tokenizer(prompts, padding="max_length", return_tensors="pt").input_ids
    wanted = tiny_base.text_encoder(tokens).last_hidden_state
    assert context.shape == (3, 16, tiny_base.tokens, tiny_base.text_encoder.config.hidden_size)
    assert all(torch.allclose(context[:, layer], wanted, atol=1e-6) for layer in range(16))


@torch.no_grad()
def test_layer_l_reads_row_l_as_if_it_were_a_real_token(tiny_base, concept):
    """The second way: grow a vocabulary by one token per word and layer, and let the tokenizer find it."""
    model = tiny_base.with_concept(concept, alpha=0)
    context = model.context("photo of <bibi1> <bibi2> on the beach")[0]
    stock = tiny_base.copy()
    for layer in range(16):
        table = stock.text_encoder.get_input_embeddings().weight.data
        rows = torch.stack([concept.embeddings[word][layer] for word in concept.words])
        grown = torch.nn.Embedding.from_pretrained(torch.cat([table, rows]))
        ids = stock.tokenizer("photo of cat dog on the beach", padding="max_length", return_tensors="pt").input_ids
        ids[0, 3], ids[0, 4] = len(table), len(table) + 1
        stock.text_encoder.set_input_embeddings(grown)
        assert torch.allclose(context[layer], stock.text_encoder(ids)[0][0], atol=1e-5)
        stock.text_encoder.set_input_embeddings(torch.nn.Embedding.from_pretrained(table))
    assert not torch.allclose(context[0], context[1], atol=1e-2)


@torch.no_grad()
def test_sixteen_equal_rows_are_textual_inversion(tiny_base, concept):
    concept.embeddings = {word: rows[:1].repeat(16, 1) for word, rows in concept.embeddings.items()}
    context = tiny_base.with_concept(concept, alpha=0).context("photo of <bibi1> <bibi2>")
    assert torch.allclose(context, context[:, :1].expand_as(context), atol=1e-6)


@torch.no_grad()
def test_the_unet_gives_each_layer_its_own_slice(tiny_base):
    """Perturbing slice l changes what layer l attends to, and no layer before it."""
    z, context = torch.randn(1, 4, 8, 8), tiny_base.context("a red cat").clone()
    modules = cross_attention(tiny_base.unet)

    def outputs(context):
        seen = {}
        handles = [
            m.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out}))
            for name, m in modules.items()
        ]
        tiny_base.unet(z, 10, context)
        [handle.remove() for handle in handles]
        return [seen[name] for name in tiny_base.layers]

    plain = outputs(context)
    for layer in (0, 5, 6, 7, 15):
        other = context.clone()
        other[:, layer] += torch.randn_like(other[:, layer])
        changed = [not torch.equal(a, b) for a, b in zip(plain, outputs(other), strict=True)]
        assert changed.index(True) == layer
    flat = outputs(context.flatten(1, 2))
    assert all(torch.equal(a, b) for a, b in zip(plain, flat, strict=True))


def test_noising_is_the_schedulers(tiny_base):
    z, eps = torch.randn(3, 4, 8, 8), torch.randn(3, 4, 8, 8)
    t = torch.tensor([0, 400, 999])
    wanted = DDPMScheduler.from_config(tiny_base.scheduler.config).add_noise(z, eps, t)
    assert torch.allclose(noising(tiny_base, z, eps, t), wanted, atol=1e-6)


@torch.no_grad()
def test_denoising_loss_is_equation_1(tiny_base):
    z, eps, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    context = tiny_base.context(["a red cat", "a blue dog"])
    loss = denoising_loss(tiny_base, z, context, noise=eps, t=t)
    predicted = tiny_base.unet(noising(tiny_base, z, eps, t), t, context).sample
    assert torch.allclose(loss, sum(((eps[i] - predicted[i]) ** 2).mean() for i in range(2)) / 2)
    mask = torch.zeros(2, 1, 8, 8)
    mask[0, :, 2:5, 1:4] = 1
    masked = denoising_loss(tiny_base, z, context, noise=eps, t=t, mask=mask)
    assert torch.allclose(masked, ((eps - predicted)[0, :, 2:5, 1:4] ** 2).mean())
    draws = [denoising_loss(tiny_base, z, context, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]


def test_sampling_is_stock_diffusers_sampling(tiny_base):
    pipeline = tiny_base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        "a red cat",
        negative_prompt="dog",
        latents=tiny_base.noise(1, seed=5),
        num_inference_steps=4,
        guidance_scale=3.0,
    ).images
    ours = pixels(tiny_base, seed=5, steps=4, guidance=3.0, negative_prompt="dog")
    assert close(ours, np.stack([np.asarray(picture, dtype=float) for picture in stock]))


def test_more_pictures_never_change_the_first_ones(tiny_base):
    four = pixels(tiny_base, n=4)
    assert close(four[:1], pixels(tiny_base)) and close(four[2:3], pixels(tiny_base, seed=2))
    assert not close(four[:1], four[1:2])
    assert close(four, pixels(tiny_base, n=4, batch=3))
    both = pixels(tiny_base, ["a red cat", "a blue dog"], n=2)
    assert close(both[:2], four[:2]) and close(both[2:], pixels(tiny_base, "a blue dog", n=2))


def test_callback_sees_every_step(tiny_base):
    seen = []
    last = pixels(tiny_base, steps=3, callback=seen.append)
    assert [set(record) for record in seen] == [{"step", "t", "latents", "model"}] * 3
    assert [record["step"] for record in seen] == [0, 1, 2] and seen[0]["t"] > seen[2]["t"]
    assert seen[0]["latents"].shape == (1, 4, 8, 8) and seen[0]["model"] is tiny_base
    assert close(np.asarray(tiny_base.decode(seen[-1]["latents"])[0], dtype=float)[None], last)


def test_sizes(tiny_base):
    assert tiny_base.size == (64, 64) and tiny_base.factor == 8
    assert pixels(tiny_base, size=(64, 128)).shape == (1, 64, 128, 3)
    latents = tiny_base.encode_images(tiny_base.sample("cat", n=2, steps=1, progress=False))
    assert latents.shape == (2, 4, 8, 8)
    assert [picture.size for picture in tiny_base.decode(latents)] == [(64, 64)] * 2


def test_a_concept_changes_its_copy_and_never_the_base(tiny_base, concept):
    before = {n: w.clone() for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    plain = pixels(tiny_base)
    one = tiny_base.with_concept(concept)
    assert type(one) is type(tiny_base) and list(one.words) == ["<bibi1>", "<bibi2>"] and not tiny_base.words
    assert not close(pixels(one), plain)
    embedding_only = tiny_base.with_concept(concept, alpha=0)
    assert np.array_equal(pixels(embedding_only), plain)  # a prompt without the words knows nothing of the concept
    assert not close(pixels(embedding_only, "photo of <bibi1> <bibi2>"), pixels(one, "photo of <bibi1> <bibi2>"))
    assert np.array_equal(pixels(tiny_base), plain)
    after = {n: w for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    assert all(torch.equal(after[n], w) for n, w in before.items())
    pairs = zip(one.unet.parameters(), tiny_base.unet.parameters(), strict=True)
    shared = sum(a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert shared == len(list(tiny_base.unet.parameters())) - 128


def test_alpha_and_scale_multiply_the_update(tiny_base, concept):
    half = tiny_base.with_concept(concept, alpha=0.5)
    concept.scale = 0.5
    scaled = tiny_base.with_concept(concept)
    pairs = zip(half.unet.parameters(), scaled.unet.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_two_concepts_keep_their_words_and_clashes_are_refused(tiny_base, concept):
    other = make_concept(tiny_base, "momo", seed=1)
    both = tiny_base.with_concept(concept).with_concept(other)
    assert list(both.words) == ["<bibi1>", "<bibi2>", "<momo1>", "<momo2>"]
    assert list(both.with_concept(concept, alpha=0).words) == list(both.words)
    with pytest.raises(ValueError, match="<bibi1> of 'bibi' is taken"):
        both.with_concept(make_concept(tiny_base, "bibi", seed=7))


def test_concepts_of_other_bases_are_refused_or_warned_of(tiny_base, concept):
    concept.base_id = "pocket-v9"
    concept.fingerprint = "other weights"
    with pytest.warns(UserWarning, match=r"tuned on pocket-v9 \(fingerprint other weights\), the base is tiny_base"):
        tiny_base.with_concept(concept)
    concept.embeddings["<bibi1>"] = torch.zeros(16, 768)
    with pytest.raises(
        ValueError,
        match=r"tuned on pocket-v9, the base is tiny_base .* load it with load_base\(.pocket-v9.\)",
    ):
        tiny_base.with_concept(concept)


def test_stock_pipelines_draw_concepts_from_prompt_embeds(tiny_base, concept):
    one = tiny_base.with_concept(concept)
    prompt = "photo of <bibi1> <bibi2>"
    pipeline = one.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        prompt_embeds=one.prompt_embeds(prompt),
        negative_prompt_embeds=one.prompt_embeds(""),
        latents=one.noise(1, seed=0),
        num_inference_steps=2,
    ).images[0]
    assert close(np.asarray(stock, dtype=float)[None], pixels(one, prompt))


def test_a_saved_pipeline_is_a_plain_diffusers_folder_and_comes_back_whole(tiny_base, concept, tmp_path):
    one = tiny_base.with_concept(concept)
    folder = one.save_pipeline(tmp_path / "saved")
    again = mos.load_base(folder, device="cpu")
    assert (again.base_id, again.fingerprint, again.guidance) == (one.base_id, one.fingerprint, one.guidance)
    assert all(torch.equal(again.words[word], rows) for word, rows in one.words.items())
    prompt = "photo of <bibi1> <bibi2>, on the beach"
    assert close(pixels(again, prompt), pixels(one, prompt))
    listing = json.loads((folder / "new_concept_cfg.json").read_text())
    assert set(listing) == {"<bibi1>", "<bibi2>"} and len(set(listing["<bibi1>"]["concept_token_ids"])) == 16

    stock = StableDiffusionPipeline.from_pretrained(folder, local_files_only=True)
    for word, entry in listing.items():
        assert stock.tokenizer.convert_tokens_to_ids(entry["concept_token_names"]) == entry["concept_token_ids"]
        assert torch.equal(
            stock.text_encoder.get_input_embeddings().weight[entry["concept_token_ids"]], concept.embeddings[word]
        )
    ids = stock.tokenizer("photo of <bibi1>, <bibi2_3>", add_special_tokens=False).input_ids
    assert (
        ids[2] == stock.tokenizer.convert_tokens_to_ids("<bibi1>")
        and ids[-1] == listing["<bibi2>"]["concept_token_ids"][3]
    )
    stock.set_progress_bar_config(disable=True)
    plain = stock("a red cat", latents=one.noise(1, seed=0), num_inference_steps=2).images[0]
    assert close(np.asarray(plain, dtype=float)[None], pixels(one))
    twice = mos.load_base(again.save_pipeline(tmp_path / "twice"), device="cpu")
    assert all(torch.equal(twice.words[word], rows) for word, rows in one.words.items())


def test_a_saved_pipeline_has_what_transformers_before_5_reads(tiny_base, concept, tmp_path):
    """The vocabulary files and the weights' old prefix, beside what the present transformers reads bit for bit."""
    one = tiny_base.with_concept(concept)
    folder = one.save_pipeline(tmp_path / "saved")
    with safe_open(folder / "text_encoder" / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert "text_model.embeddings.token_embedding.weight" in names
    assert all(name.startswith("text_model.") for name in names)
    again = CLIPTextModel.from_pretrained(folder / "text_encoder", local_files_only=True)
    before = {name.removeprefix("text_model."): w for name, w in one.text_encoder.state_dict().items()}
    after = {name.removeprefix("text_model."): w for name, w in again.state_dict().items()}
    assert before.keys() == after.keys()
    for name, weight in after.items():  # the table has the concept's rows at its end
        assert torch.equal(weight[: len(before[name])], before[name]), name

    vocabulary = json.loads((folder / "tokenizer" / "vocab.json").read_text(encoding="utf-8"))
    added = json.loads((folder / "tokenizer" / "added_tokens.json").read_text(encoding="utf-8"))
    first, *merges = (folder / "tokenizer" / "merges.txt").read_text(encoding="utf-8").splitlines()
    assert first.startswith("#version") and all(len(merge.split(" ")) == 2 for merge in merges)
    assert sorted(added.values()) == list(range(len(vocabulary), len(vocabulary) + 2 * 17))  # consecutive, as it wants
    old = tmp_path / "old_files"
    old.mkdir()
    for name in ("vocab.json", "merges.txt"):
        shutil.copy(folder / "tokenizer" / name, old / name)
    old = CLIPTokenizer.from_pretrained(old)
    for prompt in ("a photo of a red cat, on the beach!", "ü 12 robots"):
        assert old(prompt).input_ids == one.tokenizer(prompt).input_ids


def test_a_pipeline_replaces_only_one_of_ours(tiny_base, concept, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").write_text("ten years")
    with pytest.raises(FileExistsError, match="holds thesis.txt"):
        tiny_base.save_pipeline(tmp_path / "mine")
    assert (tmp_path / "mine/thesis.txt").read_text() == "ten years"
    tiny_base.pipeline().save_pretrained(tmp_path / "theirs")
    with pytest.raises(FileExistsError, match="is not a model saved by this library"):
        tiny_base.save_pipeline(tmp_path / "theirs")
    folder = tiny_base.with_concept(concept).save_pipeline(tmp_path / "ours")
    tiny_base.save_pipeline(folder)
    assert not mos.load_base(folder, device="cpu").words and sorted(p.name for p in tmp_path.iterdir()) == [
        "mine",
        "ours",
        "theirs",
    ]


def test_a_full_disk_leaves_no_half_pipeline(tiny_base, tmp_path, monkeypatch):
    def full(self, folder, **kwargs):
        (folder / "unet").mkdir()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(StableDiffusionPipeline, "save_pretrained", full)
    with pytest.raises(OSError, match="free some space"):
        tiny_base.save_pipeline(tmp_path / "saved")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"n": 0}, "n=0"),
        ({"n": -3}, "n=-3"),
        ({"steps": 0}, "steps=0"),
        ({"prompt": []}, "0 prompts"),
        ({"size": 60}, "multiples of 8 pixels"),
        ({"size": (64, 100)}, "multiples of 8 pixels"),
        ({"size": (64, 64, 64)}, "multiples of 8 pixels"),
        ({"size": 0}, "multiples of 8 pixels"),
    ],
)
def test_arguments_out_of_range(tiny_base, arguments, match):
    with pytest.raises(ValueError, match=match):
        tiny_base.sample(**({"prompt": "a red cat", "progress": False} | arguments))


def test_prompts_the_model_cannot_follow_are_told_once(tiny_base):
    model = tiny_base.copy()
    model.known_words, model.warned = frozenset({"red", "cat"}), set()
    with pytest.warns(UserWarning, match="draws whatever it likes"):
        pixels(model, "", steps=1)
    with pytest.warns(UserWarning, match="longer than 14 tokens, this was cut off: 'dog dog'; shorten it"):
        pixels(model, "cat " * 14 + "dog dog", steps=1)
    with pytest.warns(UserWarning, match="<bibi1> is no concept word of this model"):
        pixels(model, "a <bibi1>", steps=1)
    with pytest.warns(UserWarning, match=r"does not know: purple, zebra\. It knows: cat, red\."):
        pixels(model, "a red Zebra purple", steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pixels(model, ["a purple zebra", "a <bibi1>"], steps=1)


def test_import_is_light():
    light = "import sys, mixofshow_lite as mos; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", f"{light}; mos.load_base; assert 'open_clip' not in sys.modules"], check=True)
    assert mos.Concept.__module__ == "mixofshow_lite.files.concept" and "tune" in dir(mos)
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        mos.nonsense  # noqa: B018


@pytest.fixture
def damaged(tiny_folder, tmp_path):
    """A copy of the tiny base's folder, to be damaged."""
    return shutil.copytree(tiny_folder, tmp_path / "copy")


def test_missing_and_truncated_files(damaged):
    weights = damaged / "unet" / "diffusion_pytorch_model.safetensors"
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    (damaged / "SHA256SUMS").write_text(f"{digest}  unet/diffusion_pytorch_model.safetensors\n")
    assert mos.load_base(damaged, device="cpu").base_id == "copy"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors is damaged"):
        mos.load_base(damaged)
    (damaged / "SHA256SUMS").unlink()
    with pytest.raises(ValueError, match="diffusion_pytorch_model.safetensors cannot be read"):
        mos.load_base(damaged)
    weights.unlink()
    with pytest.raises(FileNotFoundError, match="diffusion_pytorch_model.safetensors is missing"):
        mos.load_base(damaged)
    weights.write_bytes(whole)
    (damaged / "scheduler" / "scheduler_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="scheduler_config.json is missing"):
        mos.load_base(damaged)


def test_other_architectures(damaged, tmp_path):
    index = json.loads((damaged / "model_index.json").read_text())
    index["unet"] = ["diffusers", "UNet2DModel"]
    (damaged / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="has UNet2DModel as its unet, this library needs UNet2DConditionModel"):
        mos.load_base(damaged)
    (damaged / "model_index.json").unlink()
    with pytest.raises(ValueError, match="no diffusers pipeline"):
        mos.load_base(damaged)
    with pytest.raises(FileNotFoundError, match="no base model 'pockett'"):
        mos.load_base("pockett")
    with pytest.raises(FileNotFoundError, match="There is no base model"):
        mos.load_base(tmp_path / "nowhere")


def test_v_prediction_is_refused(damaged):
    path = damaged / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    with pytest.raises(ValueError, match="predicts v_prediction"):
        mos.load_base(damaged)


def test_no_network_for_sd15(monkeypatch, tmp_path):
    def offline(*args, **kwargs):
        raise OSError("Network is unreachable")

    monkeypatch.setattr("huggingface_hub.snapshot_download", offline)
    with pytest.raises(ConnectionError, match='connect to the internet once.*load_base\\("pocket"\\)'):
        mos.load_base("sd15", device="cpu")
    with pytest.raises(ConnectionError, match="me/my-model is not on this machine"):
        mos.load_base("me/my-model", device="cpu")


def test_the_hub_is_asked_for_the_pinned_revision_and_only_what_is_needed(monkeypatch, tiny_folder):
    asked = []

    def snapshot(hub_id, revision, allow_patterns):
        asked.append((hub_id, revision, allow_patterns))
        return tiny_folder

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    assert mos.load_base("sd15", device="cpu").base_id == "sd15"
    assert asked[0][:2] == (loading.SD15, loading.SD15_REVISION) and "*" not in asked[0][2]
    assert "unet/diffusion_pytorch_model.safetensors" in asked[0][2]
    mos.load_base("sd15", device="cpu", dtype=torch.float16)  # no half-precision files there: asks for the full ones
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in asked[1][2]
    assert "unet/diffusion_pytorch_model.safetensors" in asked[2][2]


def test_the_fingerprint_knows_the_weights_not_their_precision(tiny_base, tiny_folder):
    half = mos.load_base(tiny_folder, device="cpu", dtype=torch.float16)
    assert half.dtype == torch.float16 and half.fingerprint == tiny_base.fingerprint
    other = tiny_base.copy()
    other.unet.conv_in.weight = torch.nn.Parameter(other.unet.conv_in.weight + 0.1, requires_grad=False)
    assert loading.fingerprint_of(other.text_encoder, other.unet) != tiny_base.fingerprint


def test_a_base_takes_its_own_concepts_in_every_precision(tiny_base, tiny_folder, concept):
    """bfloat16 keeps fewer digits than the fingerprint looks at: they are read from the file."""
    rounded = mos.load_base(tiny_folder, device="cpu", dtype=torch.bfloat16)
    assert rounded.dtype == torch.bfloat16 and rounded.fingerprint == tiny_base.fingerprint
    assert loading.fingerprint_of(rounded.text_encoder, rounded.unet) != tiny_base.fingerprint
    fused = mos.weight_fusion(rounded, [concept])
    assert pixels(fused, "a <bibi1> <bibi2>", steps=1).std() > 0


def test_a_folder_stored_in_bfloat16_is_drawn_in_float32_and_says_that_it_is_rounded(tiny_base, tmp_path, concept):
    model = tiny_base.copy()
    model.pipeline().to(torch.bfloat16).save_pretrained(tmp_path / "stock")  # no mixofshow.json
    rounded = mos.load_base(tmp_path / "stock", device="cpu")
    assert rounded.dtype == torch.float32 and rounded.fingerprint.startswith("bf16-")
    assert np.abs(pixels(rounded, steps=2) - pixels(tiny_base, steps=2)).max() < 20
    with pytest.warns(UserWarning, match="unless one is the other rounded to bfloat16"):
        mos.weight_fusion(rounded, [concept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_shipped_concepts_are_the_pocket_models_own(dtype):
    folder = loading.find_base("pocket", dtype)[0]
    nets = loading.read_networks(folder, dtype)
    files = [loading.weights_file(folder / net, net, dtype) for net in loading.NAMED]
    concepts = Path(__file__).parents[1].glob("data/tuned/*/concept.json")
    made_on = {json.loads(file.read_text())["fingerprint"] for file in concepts}
    assert made_on == {loading.fingerprint_of(*(nets[net] for net in loading.NAMED), files=files)}


def test_weights_under_other_names_in_the_file_are_taken_as_they_are_loaded(tiny_base, tmp_path):
    save_file({"strange.weight": torch.ones(3)}, tmp_path / "other.safetensors")
    nets = (tiny_base.text_encoder, tiny_base.unet)
    for files in ([tmp_path / "other.safetensors"] * 2, [tmp_path / "nothing.safetensors"] * 2):
        assert loading.fingerprint_of(*nets, files=files) == loading.fingerprint_of(*nets) == tiny_base.fingerprint


@pytest.mark.parametrize("size", [(64, 96), (72, 88), (8, 8), 40])
def test_every_size_of_whole_cells_is_drawn_as_in_a_stock_pipeline(tiny_base, size):
    height, width = size if isinstance(size, tuple) else (size, size)
    pipeline = tiny_base.pipeline()
    pipeline.set_progress_bar_config(disable=True)
    stock = pipeline(
        "a red cat",
        height=height,
        width=width,
        latents=tiny_base.noise(1, seed=0, size=size),
        num_inference_steps=2,
        guidance_scale=tiny_base.guidance,
    ).images[0]
    assert close(np.asarray(stock, dtype=float)[None], pixels(tiny_base, size=size))
    whole = [mos.Region("a red cat", box=(0, 0, 1, 1))]
    assert close(pixels(tiny_base, "a blue dog", size=size, regions=whole, isolate=True), pixels(tiny_base, size=size))
