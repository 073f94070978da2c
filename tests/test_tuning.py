"""Single-client tuning (paper 3.3.1): five recipes of one loop."""

import json
import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import sd15_shapes
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModel

import mixofshow_lite as mos
from mixofshow_lite.attention import cross_attention
from mixofshow_lite.diffusion import draw_noise
from mixofshow_lite.engine import parallel, tuning, wording
from mixofshow_lite.engine.checkpoint import Checkpoint, discard, steps_kept
from mixofshow_lite.engine.recipes import FREEZE_NORM
from mixofshow_lite.engine.tuning import RECIPES, Recipe, recipe_for, tune
from mixofshow_lite.engine.views import prepare
from mixofshow_lite.files.resources import data_dir
from mixofshow_lite.model import denoising_loss
from mixofshow_lite.prompts import embedding_std

FAST = {"batch": 2, "background": 1.0}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three pictures of coloured discs, with masks, one larger than the model's size."""
    folder = tmp_path_factory.mktemp("data") / "Ada Rabbit"
    folder.mkdir()
    rows = []
    for i, side in enumerate((64, 64, 96)):
        y, x = np.mgrid[:side, :side] / side - 0.5
        inside = (x**2 + y**2) < 0.1
        picture = np.where(inside[..., None], (255, 60 * i, 0), (30, 90, 200)).astype(np.uint8)
        Image.fromarray(picture).save(folder / f"{i}.png")
        Image.fromarray((inside * 255).astype(np.uint8)).save(folder / f"{i}_mask.png")
        caption = "a photo of <TOK> on the beach" if i else "<TOK>"
        rows.append({"file_name": f"{i}.png", "caption": caption, "mask": f"{i}_mask.png", "class_word": "rabbit"})
    (folder / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return mos.ConceptData(folder)


def quick(base, data, recipe="ed_lora", steps=2, **kwargs):
    if isinstance(recipe, str):
        recipe = replace(RECIPES[recipe], **FAST)
        recipe = replace(recipe, prior=min(recipe.prior, 2))
    return tune(base, data, recipe=recipe, steps=steps, progress=False, **kwargs)


def untouched(concept):
    """LoRA layers that have not moved; self-attention of the tiny model's 1x1 mid block looks at one pixel only."""
    still = [n for factors in concept.lora.values() for n, (_, up) in factors.items() if not up.any()]
    return [n for n in still if not re.search(r"mid_block.*attn1.to_[qk]$", n)]


@pytest.mark.parametrize(
    ("recipe", "words", "phrase", "text_layers", "unet_layers", "rank"),
    [
        ("textual_inversion", 1, "<ada_rabbit1>", 0, 0, 0),
        ("p_plus", 1, "<ada_rabbit1>", 0, 0, 0),
        ("lora", 1, "<ada_rabbit1>", 8, 128, 4),
        ("ed_lora", 2, "<ada_rabbit1> <ada_rabbit2>", 8, 128, 4),
        ("custom_diffusion", 1, "<ada_rabbit1> rabbit", 0, 32, 32),
    ],
)
def test_recipes(tiny_base, data, tmp_path, recipe, words, phrase, text_layers, unet_layers, rank):
    before = {n: w.clone() for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    concept = quick(tiny_base, data, recipe, steps=3)
    assert (len(concept.words), concept.phrase, concept.rank) == (words, phrase, rank)
    assert (concept.recipe, concept.class_word, concept.base_id) == (recipe, "rabbit", tiny_base.base_id)
    found = {net: len(factors) for net, factors in concept.lora.items()}
    assert found == {n: k for n, k in (("text_encoder", text_layers), ("unet", unet_layers)) if k}
    assert untouched(concept) == []
    layerwise = recipe in ("p_plus", "ed_lora")
    for rows in concept.embeddings.values():
        assert rows.shape == (16, 32) and not rows.requires_grad
        assert (rows.unique(dim=0).shape[0] > 1) == layerwise
    after = {n: w for net in (tiny_base.unet, tiny_base.text_encoder) for n, w in net.named_parameters()}
    assert list(after) == list(before) and all(torch.equal(after[n], w) for n, w in before.items())
    assert not any(w.requires_grad for w in after.values())
    again = mos.Concept.load(concept.save(tmp_path / "c"))
    one = tiny_base.with_concept(again)
    assert one.sample(f"a photo of {again.phrase}", steps=1, progress=False)[0].size == (64, 64)


@pytest.fixture(scope="module")
def sd15():
    """Stable Diffusion 1.5's networks without their numbers: shapes only."""
    text_encoder, unet = sd15_shapes.networks()
    return unet, text_encoder


@pytest.mark.parametrize(
    ("name", "tensors", "text", "unet", "words"),
    [
        ("ed_lora", 354, 294_912, 797_184, 24_576),
        ("lora", 353, 294_912, 797_184, 768),
        ("p_plus", 1, 0, 0, 16 * 768),
        ("textual_inversion", 1, 0, 0, 768),
        ("custom_diffusion", 33, 0, 19_169_280, 768),
    ],
)
def test_counts_on_stable_diffusion(sd15, name, tensors, text, unet, words):
    """What each recipe trains on SD 1.5; for ED-LoRA the official 354 tensors and 1,116,672 floats."""
    from mixofshow_lite.engine import lora

    model = SimpleNamespace(unet=lora.share(sd15[0]).requires_grad_(False), text_encoder=lora.share(sd15[1]))
    model.text_encoder.requires_grad_(False)
    recipe = RECIPES[name]
    tuning.attach(model, recipe, seed=0)
    rows = len(cross_attention(model.unet)) if recipe.layerwise else 1
    tuned = {n: [w for w in getattr(model, n).parameters() if w.requires_grad] for n in ("text_encoder", "unet")}
    assert sum(w.numel() for w in tuned["text_encoder"]) == text
    assert sum(w.numel() for w in tuned["unet"]) == unet
    assert len(recipe.init) * rows * model.text_encoder.config.hidden_size == words
    assert len(recipe.init) + len(tuned["text_encoder"]) + len(tuned["unet"]) == tensors
    if name == "ed_lora":
        assert text + unet + words == 1_116_672


def test_as_many_tensors_as_the_official_file(tiny_base, data):
    """Three steps on a narrow model with all of SD 1.5's layers: 48 text and 128 U-Net linears, two words."""
    torch.manual_seed(0)
    config = tiny_base.text_encoder.config.to_dict() | {"num_hidden_layers": 12}
    deep = replace(tiny_base, text_encoder=CLIPTextModel(CLIPTextConfig(**config)))
    concept = quick(deep, data, steps=3)
    assert sum(2 * len(f) for f in concept.lora.values()) + len(concept.embeddings) == 354
    assert {net: len(f) for net, f in concept.lora.items()} == {"text_encoder": 48, "unet": 128}


def test_the_loop_minimises_equation_1_on_what_it_saves(tiny_base, data):
    """With learning rates of 0 the concept is the start, so its loss in a plain model is the loop's first one."""
    seen = []
    recipe = replace(RECIPES["ed_lora"], **FAST, lr_words=0.0, lr_text=0.0, lr_unet=0.0, lr_spatial=0.0)
    start = quick(tiny_base, data, recipe, steps=1, callback=seen.append)
    views = prepare(tiny_base, data, recipe, start.phrase)
    generator = torch.Generator().manual_seed(0)
    pick = views.draw(2, generator)
    one = tiny_base.with_concept(start)
    t, noise = draw_noise(one, (2, *views.latents.shape[1:]), recipe.noise_offset, generator)
    with torch.no_grad():
        context = one.context([views.prompts[i] for i in pick])
        loss = denoising_loss(one, views.latents[pick], context, noise, t)
        predicted = one.unet(one_noisy(one, views.latents[pick], noise, t), t, context).sample
    assert seen[0]["loss"] == pytest.approx(loss.item(), rel=1e-4)
    quick(tiny_base, data, replace(recipe, background=0.25), steps=1, callback=seen.append)
    wanted = 0.0
    for i, entry in enumerate(pick):  # the mean of the pictures' weighted means, written out
        weight = 0.25 + 0.75 * views.inside[entry, 0]
        squares = ((predicted[i] - noise[i]) ** 2).mean(0)
        wanted += (squares * weight).sum().item() / weight.sum().item() / 2
    assert seen[1]["loss"] == pytest.approx(wanted, rel=1e-4)
    assert seen[1]["loss"] != pytest.approx(seen[0]["loss"], rel=1e-3)


def one_noisy(model, latents, noise, t):
    a = model.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


@torch.no_grad()
def fixed_loss(model, data, recipe, phrase):
    """Eq. 1 on all pictures for 16 fixed times and noises."""
    views = prepare(model, data, recipe, phrase)
    generator, context = torch.Generator().manual_seed(9), model.context(views.prompts)
    return sum(denoising_loss(model, views.latents, context, generator=generator).item() for _ in range(16)) / 16


def test_tuning_learns(tiny_base, data):
    # Pocket's null space would be half of this model's narrow layers.
    recipe = replace(RECIPES["ed_lora"], batch=3, null_space=(1, 1, 1), lr_spatial=None)
    seen = []
    concept = quick(tiny_base, data, recipe, steps=40, callback=seen.append)
    assert [set(record) for record in seen] == [{"step", "loss", "embedding_norm"}] * 40
    assert seen[-1]["embedding_norm"] != seen[0]["embedding_norm"]
    before = fixed_loss(tiny_base.with_concept(concept, alpha=0), data, recipe, concept.phrase)
    after = fixed_loss(tiny_base.with_concept(concept), data, recipe, concept.phrase)
    assert after < before - 0.02


def same(a, b, atol=1e-6):
    tensors = [
        [*c.embeddings.values(), *(t for f in c.lora.values() for pair in f.values() for t in pair)] for c in (a, b)
    ]
    return all(torch.allclose(x, y, atol=atol) for x, y in zip(*tensors, strict=True))


def test_the_same_seed_gives_the_same_concept(tiny_base, data):
    torch.manual_seed(5)
    first = quick(tiny_base, data)
    torch.manual_seed(6)
    assert same(first, quick(tiny_base, data)) and not same(first, quick(tiny_base, data, seed=1))


def test_an_interrupted_run_goes_on_where_it_stopped(tiny_base, data, tmp_path, monkeypatch):
    monkeypatch.setattr(Checkpoint, "every", 2)
    whole = quick(tiny_base, data, steps=5)
    file = tmp_path / "run" / "ada.ckpt"

    def stop(record):
        if record["step"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(tiny_base, data, steps=5, checkpoint=file, callback=stop)
    steps = []
    assert same(whole, quick(tiny_base, data, steps=5, checkpoint=file, callback=lambda r: steps.append(r["step"])))
    assert steps == [4]
    assert same(whole, quick(tiny_base, data, steps=5, checkpoint=file, callback=lambda r: steps.append(r["step"])))
    assert steps == [4]  # until it is discarded, the file holds the concept: a kill before it is saved loses nothing
    discard(file)
    assert not file.exists()

    with pytest.raises(KeyboardInterrupt):
        quick(tiny_base, data, steps=5, checkpoint=file, callback=stop)
    steps.clear()
    with pytest.warns(UserWarning, match="left by a run with other pictures"):
        quick(tiny_base, data, steps=5, seed=1, checkpoint=file, callback=lambda r: steps.append(r["step"]))
    assert steps == [0, 1, 2, 3, 4]  # the checkpoint was of another seed
    file.write_bytes(b"half")
    with pytest.warns(UserWarning, match="cannot be read"):
        assert same(whole, quick(tiny_base, data, steps=5, checkpoint=file))
    torch.save(torch.load(file, weights_only=True) | {"tensors": []}, file)
    with pytest.warns(UserWarning, match="cannot be read"):
        assert same(whole, quick(tiny_base, data, steps=5, checkpoint=file))


@pytest.fixture
def ctrl_c():
    """Ctrl-C as at a terminal: a process that was started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_waits_for_the_end_of_a_step_and_keeps_it(tiny_base, data, tmp_path, monkeypatch, ctrl_c):
    """Pressed in the middle of a step, long before the state is written by itself: the step is kept, none is lost."""
    whole, steps = quick(tiny_base, data, steps=4), []
    file, loss = tmp_path / "ada.ckpt", tuning.denoising_loss
    before = signal.getsignal(signal.SIGINT)

    def pressed(*args, times=1, **options):
        for _ in range(times if len(steps) == 1 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return loss(*args, **options)

    def run():
        return quick(tiny_base, data, steps=4, checkpoint=file, callback=lambda record: steps.append(record["step"]))

    monkeypatch.setattr(tuning, "denoising_loss", pressed)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps == [0, 1] and steps_kept(file) == 2 and signal.getsignal(signal.SIGINT) is before
    assert same(whole, run()) and steps == [0, 1, 2, 3]

    discard(file)
    steps.clear()
    monkeypatch.setattr(tuning, "denoising_loss", partial(pressed, times=2))
    with pytest.raises(KeyboardInterrupt):
        run()
    assert steps == [0] and steps_kept(file) == 0 and signal.getsignal(signal.SIGINT) is before  # the second: at once


def test_ctrl_c_stops_at_once_where_nothing_is_kept(tiny_base, data, monkeypatch, ctrl_c):
    monkeypatch.setattr(tuning, "denoising_loss", lambda *_, **__: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(KeyboardInterrupt):
        quick(tiny_base, data, steps=1)


def test_rows_start_from_the_models_own_embeddings(tiny_base):
    table = tiny_base.text_encoder.get_input_embeddings().weight
    token = tiny_base.tokenizer("rabbit", add_special_tokens=False).input_ids
    assert len(token) == 1
    rows = wording.init_rows(tiny_base, RECIPES["ed_lora"], ("<a1>", "<a2>"), "rabbit", seed=0)
    assert torch.equal(rows["<a2>"], table[token].expand(16, -1))
    assert torch.equal(rows["<a1>"], rows["<a1>"][:1].expand(16, -1))
    assert 0.5 < rows["<a1>"][0].std() / table.std() < 1.5
    again, other = (
        wording.init_rows(tiny_base, RECIPES["ed_lora"], (w, "<a2>"), "rabbit", seed=0) for w in ("<a1>", "<b1>")
    )
    assert torch.equal(again["<a1>"], rows["<a1>"]) and not torch.allclose(other["<b1>"], rows["<a1>"])
    one = wording.init_rows(tiny_base, RECIPES["textual_inversion"], ("<a1>",), "red cat", seed=0)["<a1>"]
    both = tiny_base.tokenizer("red cat", add_special_tokens=False).input_ids
    assert torch.allclose(one, table[both].mean(0, keepdim=True))


def test_rows_freeze_at_their_norm_and_the_rest_goes_on(tiny_base, data):
    recipe = replace(RECIPES["ed_lora"], **FAST, freeze_norm=0.01)
    concept = quick(tiny_base, data, recipe)
    start = wording.init_rows(tiny_base, recipe, concept.words, "rabbit", seed=0)
    assert all(torch.equal(concept.embeddings[word], rows.data) for word, rows in start.items())
    assert untouched(concept) == []


def test_rows_move_until_their_mean_norm_reaches_the_limit(tiny_base, data):
    """They are those of a run without a limit up to the step that passes it, and stay from there on."""
    free = replace(RECIPES["ed_lora"], **FAST, decay=False, weight_decay=0.0, freeze_norm=None)
    norms = []
    free_run = quick(tiny_base, data, free, steps=6, callback=lambda record: norms.append(record["embedding_norm"]))
    start = wording.init_rows(tiny_base, free, free_run.words, "rabbit", seed=0)
    assert norms[0] == pytest.approx(torch.cat(list(start.values())).norm(dim=1).mean().item())
    row = embedding_std(tiny_base.text_encoder) * tiny_base.text_encoder.config.hidden_size**0.5  # a random row's norm
    assert all(a < b for a, b in zip(norms, norms[1:], strict=False))  # each before its step's update
    limit, seen = (norms[2] + norms[3]) / 2 / row, []
    recipe = replace(free, freeze_norm=limit)
    limited = quick(tiny_base, data, recipe, steps=6, callback=lambda record: seen.append(record["embedding_norm"]))
    assert seen[:4] == norms[:4] and seen[3:] == [norms[3]] * 3
    stopped, short = (next(iter(c.embeddings.values())) for c in (limited, quick(tiny_base, data, free, steps=3)))
    assert torch.equal(stopped, short)


def test_shipped_words_ended_at_the_limit():
    weights = load_file(data_dir() / "pocket" / "text_encoder" / "model.safetensors")
    (table,) = (w.float() for name, w in weights.items() if name.endswith("token_embedding.weight"))
    limit = FREEZE_NORM * table.std() * table.shape[1] ** 0.5
    step = RECIPES["ed_lora"].lr_words * table.shape[1] ** 0.5  # the longest of AdamW's, which may be the last one
    places = sorted((data_dir() / "tuned").glob("*-0"))
    assert len(places) == 6
    for place in places:
        concept = mos.Concept.load(place)
        length = torch.cat(list(concept.embeddings.values())).norm(dim=1).mean()
        assert limit <= length < limit + step, (place.name, length)


def test_numbers_suit_the_base(tiny_base):
    pocket = replace(tiny_base, base_id="pocket-v1")
    assert recipe_for(pocket, "ed_lora") is RECIPES["ed_lora"]
    limits = {name: recipe.freeze_norm for name, recipe in RECIPES.items() if recipe.freeze_norm is not None}
    assert limits == {"lora": FREEZE_NORM, "ed_lora": FREEZE_NORM}
    mine = RECIPES["ed_lora"]  # what the card, the README and the shipped concepts say
    assert (mine.steps, mine.background, mine.lr_unet, mine.lr_text, mine.lr_words) == (400, 0.2, 6e-3, 1e-3, 1e-2)
    paper = recipe_for(tiny_base, "ed_lora")
    assert (paper.lr_words, paper.lr_text, paper.lr_unet, paper.batch) == (1e-3, 1e-5, 1e-4, 4)
    assert paper.freeze_norm and recipe_for(tiny_base, "p_plus").freeze_norm is None  # more in test_official.py
    assert recipe_for(pocket, "ed_lora").attention == 0.0
    mine = Recipe("mine", rank=1)
    assert recipe_for(pocket, mine) is mine
    groups = tuning.make_optimizer(tiny_base, {"<a1>": torch.zeros(1, 1)}, paper).param_groups
    assert [group["lr"] for group in groups] == [1e-3]  # nothing of the base itself is trainable


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"recipe": "dreambooth"}, "no recipe 'dreambooth'"),
        ({"words": ("<a1>",)}, "tunes 2 words but got 1"),
        ({"words": ("a1", "a2")}, "'a1' cannot be a concept word"),
        ({"words": ("<TOK>", "<a>")}, "'<TOK>' cannot be a concept word"),
        ({"steps": 0}, "steps=0"),
        ({"mixed_precision": "fp16"}, "fp16 tuning needs a GPU"),
        ({"mixed_precision": "int4"}, "choose 'no', 'bf16' or 'fp16'"),
    ],
)
def test_bad_arguments(tiny_base, data, arguments, match):
    with pytest.raises(ValueError, match=match):
        tune(tiny_base, data, progress=False, **arguments)


def test_missing_class_and_taken_words(tiny_base, data, concept, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "0.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "0.png", "caption": "<TOK>"}')
    with pytest.raises(ValueError, match="class word is missing"):
        tune(tiny_base, mos.ConceptData(tmp_path), progress=False)
    with pytest.raises(ValueError, match="already has a concept word <bibi1>"):
        tune(tiny_base.with_concept(concept), data, words=("<bibi1>", "<b>"), progress=False)


@pytest.fixture
def plain_descent(monkeypatch):
    """Gradient descent instead of AdamW, which turns the rounding of tiny gradients into whole steps."""
    monkeypatch.setattr(tuning, "make_optimizer", descent)


def descent(model, rows, recipe):
    weights = [w for net in (model.text_encoder, model.unet) for w in net.parameters() if w.requires_grad]
    return torch.optim.SGD([*rows.values(), *weights], lr=0.3)


def test_parts_and_recomputed_features_change_nothing(tiny_base, data, plain_descent):
    recipe = replace(RECIPES["ed_lora"], batch=3, background=0.0, attention=0.5, prior=2, prior_weight=0.5)
    seen = {}

    def run(key, **kwargs):
        seen[key] = []
        return quick(tiny_base, data, recipe, steps=3, callback=lambda r: seen[key].append(r["loss"]), **kwargs)

    whole = run("whole")
    assert same(whole, run("parts", accumulate=4), 1e-4)
    assert same(whole, run("recomputed", gradient_checkpointing=True), 1e-4)
    assert seen["parts"] == pytest.approx(seen["whole"], rel=1e-4)
    assert seen["recomputed"] == pytest.approx(seen["whole"], rel=1e-4)
    start = wording.init_rows(tiny_base, recipe, whole.words, "rabbit", 0)
    assert all((whole.embeddings[w] - start[w].data).abs().max() > 1e-3 for w in whole.words)


SCRIPT = """
import sys
sys.path[:0] = [sys.argv[3], sys.argv[3] + "/bench"]
from dataclasses import replace
import torch
import mixofshow_lite as mos
from mixofshow_lite.engine import tuning
from test_tuning import FAST, RECIPES, descent
torch.set_num_threads(1)
tuning.make_optimizer = descent
recipe = replace(RECIPES["ed_lora"], **FAST | {"batch": 3})
base = mos.load_base(sys.argv[1], device="cpu")
records = []
concept = tuning.tune(base, mos.ConceptData(sys.argv[2]), recipe, steps=2, progress=False, callback=records.append)
from accelerate import PartialState
assert PartialState().num_processes == 2
assert len(records) == (2 if PartialState().is_main_process else 0)
concept.save(f"{sys.argv[4]}/{PartialState().process_index}")
PartialState().destroy_process_group()
"""


def test_two_processes_tune_the_same_concept_as_one(tiny_base, tiny_folder, data, tmp_path, plain_descent):
    (tmp_path / "script.py").write_text(SCRIPT)
    here = str(__import__("pathlib").Path(__file__).parent)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    script = [str(tmp_path / "script.py"), str(tiny_folder), str(data.folder), here, str(tmp_path)]
    done = subprocess.run([*launch, *script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = quick(tiny_base, data, replace(RECIPES["ed_lora"], **FAST | {"batch": 3}), steps=2)
    alone = mos.Concept.load(alone.save(tmp_path / "alone"))
    for rank in (0, 1):
        assert same(alone, mos.Concept.load(tmp_path / str(rank)), 1e-4)


def test_the_prior_is_kept_with_the_checkpoint(tiny_base, data, tmp_path, monkeypatch):
    """A resumed run does not draw the class's pictures again, and ends as an uninterrupted one does."""
    monkeypatch.setattr(Checkpoint, "every", 2)
    drawn = []
    sample = mos.DiffusionModel.sample
    monkeypatch.setattr(mos.DiffusionModel, "sample", lambda *a, **k: drawn.append(k) or sample(*a, **k))
    whole = quick(tiny_base, data, "custom_diffusion", steps=3)
    assert len(drawn) == 1 and (drawn[0]["n"], drawn[0]["seed"]) == (2, 0)

    def stop(record):
        if record["step"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick(tiny_base, data, "custom_diffusion", steps=3, checkpoint=tmp_path / "a.ckpt", callback=stop)
    drawn.clear()
    quick(tiny_base, data, "custom_diffusion", steps=3, checkpoint=tmp_path / "a.ckpt", callback=stop)
    discard(tmp_path / "a.ckpt")
    assert not drawn and not list(tmp_path.iterdir())
    assert same(whole, quick(tiny_base, data, "custom_diffusion", steps=3))


def test_a_strip_of_samples_on_request_changes_nothing(tiny_base, data):
    seen = []
    concept = quick(tiny_base, data, steps=3, strip=2, callback=seen.append)
    assert [len(record.get("strip", [])) for record in seen] == [0, 3, 3]
    strip = seen[-1]["strip"]
    for alpha, picture in zip((0, 0.7, 1), strip, strict=True):
        model = tiny_base.with_concept(concept, alpha)
        wanted = model.sample(f"photo of a {concept.phrase}", seed=0, progress=False)[0]
        assert np.array_equal(np.asarray(picture), np.asarray(wanted))
    assert same(concept, quick(tiny_base, data, steps=3))


def test_bfloat16_and_back(tiny_base, data):
    """Mixed precision moves the losses by its rounding; concepts stay in float32, and float32 runs go on after it."""
    losses = {}
    for precision in ("no", "bf16", "no"):
        seen = []
        concept = quick(tiny_base, data, "custom_diffusion", mixed_precision=precision, callback=seen.append)
        assert {t.dtype for pair in concept.lora["unet"].values() for t in pair} == {torch.float32}
        losses.setdefault(precision, [record["loss"] for record in seen])
    assert losses["no"] == [record["loss"] for record in seen] != losses["bf16"]
    assert losses["bf16"] == pytest.approx(losses["no"], rel=0.05)


def test_shares_of_a_batch():
    for n, parts, processes in ((6, 1, 1), (6, 4, 2), (2, 3, 3), (1, 1, 2)):
        accelerators = [SimpleNamespace(process_index=i, num_processes=processes) for i in range(processes)]
        cut = [parallel.parts_of_batch(n, parts, accelerator) for accelerator in accelerators]
        assert sorted(torch.cat([part for of_one in cut for part in of_one]).tolist()) == list(range(n))
        assert all(len(of_one) <= parts and all(len(part) for part in of_one) for of_one in cut)


def test_prompts_are_read_once_and_the_untuned_ones_once_for_all(tiny_base, data, monkeypatch):
    calls = []
    encode = wording.encode
    monkeypatch.setattr(
        wording, "encode", lambda te, bound, *a, **k: calls.append(len(bound.ids)) or encode(te, bound, *a, **k)
    )
    rows = wording.init_rows(tiny_base, RECIPES["ed_lora"], ("<a1>", "<a2>"), "rabbit", 0)
    prompts = ["a photo of <a1> <a2>", "a red <a1> <a2>", "a photo of <a1> <a2>", "photo of a rabbit"]
    entries = torch.tensor([2, 0, 3, 1, 0])
    for tuned, wanted in ((True, [3, 3]), (False, [1, 2, 2])):
        calls.clear()
        encoder = wording.PromptEncoder(tiny_base, prompts, rows, tuned)
        context = encoder(entries)
        encoder(entries)
        assert calls == wanted
        plain = tiny_base.context([prompts[i] for i in entries], {w: row.data for w, row in rows.items()})
        assert torch.allclose(context, plain, atol=1e-4)
