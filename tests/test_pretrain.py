"""Pretraining: tokenizer, optimizer, schedule and loss computed a second way, caches and interrupted runs."""

import functools
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from argparse import Namespace
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler
from safetensors.torch import load_file, save_file

import mixofshow_lite as mos
from mixofshow_lite.files.resources import pocket_dir
from mixofshow_lite.pocket import world
from mixofshow_lite.pocket.captions import caption
from mixofshow_lite.pocket.train import anatomy, data, gpu, muon, pretrain, tokens


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """The tokenizer of all 4000 captions, as pretraining builds it."""
    folder = tmp_path_factory.mktemp("tokenizer")
    made = tokens.build_tokenizer(folder)
    made.folder = folder
    return made


# ---- tokenizer ----


def test_every_known_word_is_one_token(tokenizer):
    words = (tokenizer.folder / "words.txt").read_text().split()
    assert {*world.CLASSES, *world.COLORS, *world.SCENES, *world.ACCESSORIES, *world.EXPRESSIONS, ","} <= set(words)
    ids = [tokenizer(word).input_ids for word in words]
    assert all(len(i) == 3 for i in ids) and len({i[1] for i in ids}) == len(words)


def test_captions_come_back_as_they_went_in(tokenizer):
    rng = np.random.default_rng(12)
    cut = 0
    for _ in range(100):
        text = caption(world.sample(rng), rng)
        ids = tokenizer(text).input_ids
        assert tokenizer.decode(ids, skip_special_tokens=True).strip() == text.replace(",", " ,")
        assert len(ids) == 2 + len(re.findall(r"[a-z]+|,", text))
        cut += len(ids) > anatomy.TOKENS
    assert cut <= 8  # a few captions of three dressed-up friends are longer than the model reads


@pytest.mark.parametrize("text", ["a zebra", "Übergröße", "猫", "🦊!?", "a red cat,a mug", "<bibi1>", "x" * 300, ""])
def test_unknown_text_is_split_and_never_crashes(tokenizer, text):
    ids = tokenizer(text, padding="max_length", truncation=True, max_length=anatomy.TOKENS).input_ids
    assert len(ids) == anatomy.TOKENS and max(ids) < len(tokenizer) and ids[0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id in ids


def test_unknown_words_differ_from_each_other_and_from_known_ones(tokenizer):
    zebra, zebu, cat = (tokenizer(w).input_ids[1:-1] for w in ("zebra", "zebu", "Cat"))
    assert len(zebra) > 1 and zebra != zebu and cat == tokenizer("cat").input_ids[1:-1]
    assert tokenizer.unk_token_id not in zebra


def test_a_rebuilt_tokenizer_gives_the_same_ids(tokenizer, tmp_path, monkeypatch):
    words = (tokenizer.folder / "words.txt").read_text().split()
    monkeypatch.setattr(tokens, "known_words", lambda pictures=0: words)
    assert tokens.build_tokenizer(tmp_path).get_vocab() == tokenizer.get_vocab()


def test_a_tokenizer_that_is_there_is_kept(tokenizer, tmp_path, monkeypatch):
    """A resumed or continued pretraining has embeddings that belong to its ids."""
    monkeypatch.setattr(tokens, "known_words", lambda: ["one", "two"])
    small = tokens.build_tokenizer(tmp_path).get_vocab()
    monkeypatch.setattr(tokens, "known_words", lambda: ["one", "three", "two"])
    assert tokens.build_tokenizer(tmp_path).get_vocab() == small
    assert "three</w>" not in small and "three</w>" in tokenizer.get_vocab()


# ---- Muon ----


@pytest.mark.parametrize("shape", [(3, 8, 40), (2, 40, 8), (1, 16, 16)])
def test_orthogonalise_pulls_singular_values_to_one(shape):
    g = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 7
    q = muon.orthogonalise(g)
    assert q.shape == g.shape and q.dtype == g.dtype
    values = torch.linalg.svdvals(q.float())
    assert values.max() < 1.3 and values.min() > (0.6 if shape[1] != shape[2] else 0.2)
    u, _, vt = torch.linalg.svd(g, full_matrices=False)  # the exact answer
    cosine = (q * (u @ vt)).sum((1, 2)) / q.norm(dim=(1, 2)) / (u @ vt).norm(dim=(1, 2))
    assert cosine.min() > 0.93
    one = muon.orthogonalise(g[:1])
    assert torch.allclose(one, q[:1], atol=0.02)  # matrices of a batch do not mix


def test_muon_lowers_a_quadratic():
    generator = torch.Generator().manual_seed(1)
    weight, target = torch.nn.Parameter(torch.zeros(12, 6)), torch.randn(12, 6, generator=generator)
    optimizer = muon.Muon([weight], lr=0.05)
    losses = []
    for _ in range(150):
        loss = (weight - target).square().sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.02 * losses[0]


def test_a_convolution_is_its_flattened_matrix():
    torch.manual_seed(0)
    kernel = torch.nn.Parameter(torch.randn(8, 4, 3, 3))
    matrix = torch.nn.Parameter(kernel.detach().flatten(1).clone())
    optimizer = muon.Muon([kernel, matrix], lr=0.1, weight_decay=0.5)
    before, grad = kernel.detach().clone(), torch.randn_like(kernel)
    kernel.grad, matrix.grad = grad, grad.flatten(1).clone()
    optimizer.step()
    assert torch.allclose(kernel.flatten(1), matrix, atol=1e-6)
    direction = muon.orthogonalise(1.95 * grad.flatten(1)[None])[0].view_as(grad)  # Nesterov: g + 0.95 g at the start
    assert torch.allclose(kernel, 0.95 * before - 0.1 * direction, atol=5e-3)


def test_split_gives_every_weight_to_one_optimizer():
    unet = anatomy.build_unet((16, 16, 16, 16), 2)
    inside, rest = muon.split(unet)
    assert sorted(map(id, inside + rest)) == sorted(map(id, unet.parameters()))
    names = {id(p): n for n, p in unet.named_parameters()}
    assert all(p.ndim >= 2 for p in inside) and not [p for p in inside if names[id(p)].startswith("conv_")]
    assert {"conv_in.weight", "conv_out.weight"} <= {names[id(p)] for p in rest}


# ---- anatomy, schedule, loss ----


def test_the_anatomy_is_stable_diffusions():
    with torch.device("meta"):
        unet = anatomy.build_unet()
        text = anatomy.build_text_encoder(700, 1, 2, 2)
    where = [n.split("_")[0] for n, m in unet.named_modules() if n.endswith("attn2")]
    assert [where.count(w) for w in ("down", "mid", "up")] == [6, 1, 9]
    assert text.config.hidden_size == unet.config.cross_attention_dim and unet.config.sample_size == anatomy.LATENT
    vae = anatomy.build_vae()
    f = 2 ** (len(vae.config.block_out_channels) - 1)
    assert f == 8 and anatomy.PICTURE // f == anatomy.LATENT and vae.config.latent_channels == unet.config.in_channels
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # SD 1.5's
    assert torch.allclose(anatomy.build_scheduler().alphas_cumprod, (1 - betas).cumprod(0), atol=1e-6)


def test_learning_rate_warms_up_and_ends_at_a_hundredth():
    rate = functools.partial(pretrain.learning_rate, 2.0)
    assert rate(0, 0) == pytest.approx(0.02) and rate(0, 49) == pytest.approx(1.0) and rate(0, 99) == pytest.approx(2)
    assert rate(0.5, 500) == pytest.approx(2 * (0.01 + 0.99 / 2)) and rate(1, 500) == pytest.approx(0.02)
    falling = [rate(p / 20, 500) for p in range(21)]
    assert all(a > b for a, b in itertools.pairwise(falling))


def test_a_budget_counts_what_was_used_before(monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(pretrain.time, "time", lambda: clock[0])
    budget = pretrain.Budget(minutes=2, used=30)
    clock[0] += 30
    assert budget.spent == 60 and budget.progress == 0.5
    clock[0] += 500
    assert budget.progress == 1


def test_covered_cells_count_more_and_the_mean_is_one():
    cover = torch.tensor([[[255, 0], [51, 0]]], dtype=torch.uint8)
    weights = pretrain.cell_weights(cover, focus=2.0)
    assert weights.shape == (1, 1, 2, 2) and weights.mean().item() == pytest.approx(1)
    assert weights.flatten().div(weights[0, 0, 0, 1]).tolist() == pytest.approx([3.0, 1.0, 1.4, 1.0])
    assert (pretrain.cell_weights(cover, focus=0.0) == 1).all()


def test_subjects_count_more_at_first_only():
    assert pretrain.focus_at(0.0, 2.0) == pretrain.focus_at(0.54, 2.0) == 2.0
    assert pretrain.focus_at(0.55, 2.0) == pretrain.focus_at(1.0, 2.0) == 0.0


def test_diffusion_loss_by_hand():
    seen = {}

    def unet(x, t, context):
        seen.update(x=x, t=t, context=context)
        return SimpleNamespace(sample=0.3 * x)

    schedule = DDPMScheduler.from_config(anatomy.build_scheduler().config)
    n, z = 8, torch.randn(8, 4, 2, 2, generator=torch.Generator().manual_seed(5))
    torch.manual_seed(7)
    loss = pretrain.diffusion_loss(unet, z, "words", schedule, gamma=5.0)

    torch.manual_seed(7)
    draws = torch.rand(n).tolist()
    shares = [(i + draw) / n for i, draw in enumerate(draws)]
    t = torch.tensor([int(1000 * (0.3 + 0.65 * s if i % 2 else s)) for i, s in enumerate(shares)])
    noise = torch.randn_like(z)
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    total = 0.0
    for i in range(n):
        a = np.cumprod(1 - betas)[t[i]]
        noisy = math.sqrt(a) * z[i] + math.sqrt(1 - a) * noise[i]
        assert torch.allclose(seen["x"][i], noisy, atol=1e-5)
        snr = a / (1 - a)
        total += min(snr, 5.0) / snr * (0.3 * noisy - noise[i]).square().mean().item()
    assert loss.item() == pytest.approx(total / n, rel=1e-4)
    torch.manual_seed(7)
    cells = torch.rand(n, 1, 2, 2)
    torch.manual_seed(7)
    weighted = pretrain.diffusion_loss(unet, z, "words", schedule, gamma=5.0, cells=torch.ones(n, 1, 2, 2))
    assert weighted.item() == pytest.approx(loss.item(), rel=1e-6)  # equal cells are Eq. 1
    torch.manual_seed(7)
    weighted = pretrain.diffusion_loss(unet, z, "words", schedule, gamma=5.0, cells=cells).item()
    errors = (0.3 * seen["x"] - noise).square()
    snr = torch.tensor([np.cumprod(1 - betas)[k] / (1 - np.cumprod(1 - betas)[k]) for k in t]).float()
    by_hand = (snr.clamp(max=5) / snr)[:, None, None, None] * cells * errors
    assert weighted == pytest.approx(by_hand.mean().item(), rel=1e-4)
    assert seen["context"] == "words" and (seen["t"] == t).all()
    assert (t[::2] // (1000 // n) == torch.arange(n)[::2]).all()  # one timestep in every other eighth of the range
    assert all(
        300 + 650 * i // n <= t[i] <= 300 + 650 * (i + 1) // n for i in range(1, n, 2)
    )  # the rest within 30-95 %


# ---- caches ----


def test_the_cache_holds_what_the_stream_makes_and_is_drawn_once(tmp_path, monkeypatch):
    folder = data.render_cache(tmp_path / "cache", 3, seed=4, workers=1)
    images, rows = data.load_cache(folder)
    assert images.shape == (3, 128, 128, 3) and images.dtype == np.uint8 and len(rows) == 3
    picture, texts = data.draw(4, 2, False)
    pixels = world.draw_image(picture)
    assert (images[2] == pixels).all() and rows[2]["captions"] == texts
    assert rows[2]["picture"]["scene"] == picture.scene
    (folder / "pictures.jsonl").rename(folder / "kept")
    images = np.load(folder / "images.npy", mmap_mode="r+")
    images[:] = 0  # what a killed run leaves: pictures without their list
    del images
    data.render_cache(folder, 3, seed=4, workers=1)
    assert (np.load(folder / "images.npy")[2] == pixels).all()
    assert (folder / "pictures.jsonl").read_text() == (folder / "kept").read_text()
    monkeypatch.setattr(data, "_chunk", None)  # drawing again would fail
    assert data.render_cache(folder, 3, seed=4) == folder


def test_pixels_to_tensor_and_back():
    images = np.random.default_rng(0).integers(0, 256, (2, 4, 6, 3), np.uint8)
    x = pretrain.to_tensor(images, torch.device("cpu"))
    assert x.shape == (2, 3, 4, 6) and x.min() >= -1 and x.max() <= 1
    assert x[1, 2, 3, 5].item() == pytest.approx(images[1, 3, 5, 2] / 127.5 - 1, abs=1e-6)
    assert (pretrain.to_image(x) == images).all()
    assert pretrain.grid(np.concatenate([images] * 2), 2).size == (12, 8)


def test_checksums_are_sha256sums(tmp_path):
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "a.safetensors").write_bytes(b"abc")
    (tmp_path / "notes.txt").write_text("not a weight")
    pretrain.checksums(tmp_path)
    assert (tmp_path / "SHA256SUMS").read_text() == f"{hashlib.sha256(b'abc').hexdigest()}  unet/a.safetensors\n"


# ---- interrupted runs ----


def train_run(work, steps, name="stage"):
    """`steps` updates of a small module under pretrain.Run, whose data depends on the step alone."""
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(16, 2))
    run = pretrain.Run(name, work, {"net": net}, 1e9, torch.device("cpu"), ema_decay=0.9, lr=1e-2)
    while run.step < steps:
        x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(run.step))
        assert run.update(net(x).square().mean())
    run.save()
    raw = [p.detach().clone() for p in net.parameters()]
    run.load_ema()
    return raw, [p.detach().clone() for p in net.parameters()]


def test_an_interrupted_run_ends_where_an_uninterrupted_one_does(tmp_path, capsys):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    straight = train_run(tmp_path / "a", 30)
    train_run(tmp_path / "b", 13)
    resumed = train_run(tmp_path / "b", 30)
    assert "stage: resumed at step 13" in capsys.readouterr().out
    for one, two in zip(straight, resumed, strict=True):  # weights, then their moving average
        assert all(torch.allclose(p, q, atol=1e-5) for p, q in zip(one, two, strict=True))
    assert not torch.allclose(straight[0][0], straight[1][0])
    assert [row.split(",")[0] for row in (tmp_path / "b" / "stage.csv").read_text().splitlines()] == ["25"]
    assert not list(tmp_path.rglob("*.part"))


class Killed(BaseException):
    """Stands for a kill."""


@pytest.fixture
def tiny_training(tmp_path, monkeypatch):
    """Arguments of the training loops with tiny networks; `limit(n, kill)` stops, or kills, a run after step n."""

    def tiny_vae():
        return AutoencoderKL(
            block_out_channels=(4, 4, 4, 4), down_block_types=("DownEncoderBlock2D",) * 4, layers_per_block=1,
            up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=anatomy.CHANNELS, norm_num_groups=2,
            sample_size=anatomy.PICTURE, mid_block_add_attention=False,
        )  # fmt: skip

    monkeypatch.setattr(anatomy, "build_vae", tiny_vae)
    monkeypatch.setattr(anatomy, "build_unet", functools.partial(anatomy.build_unet, (16, 16, 16, 16), 2))
    monkeypatch.setattr(tokens, "known_words", functools.partial(tokens.known_words, 50))
    monkeypatch.setattr(data, "render_cache", functools.partial(data.render_cache, workers=1))
    init, update = pretrain.Run.__init__, pretrain.Run.update
    monkeypatch.setattr(pretrain.Run, "__init__", functools.partialmethod(init, save_minutes=0.0))

    def limit(n, kill=False):
        def limited(self, loss):
            update(self, loss)
            if kill and self.step == n:
                raise Killed
            return self.step < n

        monkeypatch.setattr(pretrain.Run, "update", limited)

    args = Namespace(
        work=str(tmp_path / "work"), out=str(tmp_path / "out"), pictures=6, minutes=60.0, batch=2, lr=1e-3,
        preview_minutes=60.0, vae_pictures=4, vae_minutes=60.0, vae_batch=2, kl=1e-3, start=None, compile=False,
        vae_lr=2e-3, squared=2.0, decoder=False, odd=0.5,
        focus=2.0,
    )  # fmt: skip
    (tmp_path / "work").mkdir()
    return args, limit


def test_training_is_killed_resumes_and_ships_a_model_that_loads(tiny_training, tmp_path, capsys, monkeypatch):
    args, limit = tiny_training
    loss, weights = pretrain.diffusion_loss, []
    monkeypatch.setattr(pretrain, "diffusion_loss", lambda *a, cells: weights.append(cells) or loss(*a, cells=cells))
    device = torch.device("cpu")
    limit(2, kill=True)
    with pytest.raises(Killed):
        pretrain.train_vae(args, device)
    assert torch.load(tmp_path / "work" / "vae.pt", weights_only=True)["step"] == 2
    limit(3)
    vae = pretrain.train_vae(args, device)
    assert torch.load(tmp_path / "work" / "vae.pt", weights_only=True)["step"] == 3
    out = capsys.readouterr().out
    assert "vae: resumed at step 2" in out and re.search(r"held-out PSNR \d+\.\d\d, inside \d+\.\d\d dB", out)
    again = AutoencoderKL.from_pretrained(tmp_path / "work" / "vae", local_files_only=True)
    assert again.config.scaling_factor == vae.config.scaling_factor > 0

    limit(1, kill=True)
    with pytest.raises(Killed):
        pretrain.train_diffusion(args, device, again)
    limit(3)
    pretrain.train_diffusion(args, device, again)
    assert "diffusion: resumed at step 1" in capsys.readouterr().out
    assert torch.load(tmp_path / "work" / "diffusion.pt", weights_only=True)["step"] == 3
    assert all(w.shape == (2, 1, 16, 16) and w.max() > 1.5 * w.min() for w in weights) and len(weights) == 3
    assert np.load(tmp_path / "work" / "world" / "latents.npy").shape == (6, 2 * anatomy.CHANNELS, 16, 16)

    out = tmp_path / "out"
    sums = dict(reversed(line.split("  ")) for line in (out / "SHA256SUMS").read_text().splitlines())
    assert {name.split("/")[0] for name in sums} == {"vae", "text_encoder", "unet"}
    assert all(hashlib.sha256((out / name).read_bytes()).hexdigest() == digest for name, digest in sums.items())
    model = mos.load_base(out, device="cpu")
    assert len(model.layers) == 16 and "rabbit" in model.known_words and model.size == (128, 128)
    pictures = model.sample("a red cat on the beach", n=1, steps=2, progress=False)
    assert pictures[0].size == (128, 128)


def test_psnr_by_hand():
    class Halved(torch.nn.Module):
        """An autoencoder that gives back half of every value."""

        def encode(self, x):
            return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: x))

        def decode(self, z):
            return SimpleNamespace(sample=z / 2)

    images = np.stack([np.full((4, 4, 3), v, np.uint8) for v in (255, 0, 51)])
    errors = [0.5, 0.5, 0.3]  # of values 1, -1, -0.6 in [-1, 1]
    wanted = np.mean([10 * math.log10(4 / e**2) for e in errors])
    assert pretrain.psnr(Halved(), images, torch.device("cpu"), batch=2) == pytest.approx(wanted, abs=0.06)
    images[:, 2:] = 128  # nearly nothing is lost there: inside the mask the error is as before
    masks = np.zeros((3, 4, 4), np.float32)
    masks[:, :2] = 1
    inside = pretrain.psnr(Halved(), images, torch.device("cpu"), batch=2, masks=masks)
    assert (
        inside == pytest.approx(wanted, abs=0.06) and inside < pretrain.psnr(Halved(), images, torch.device("cpu")) - 2
    )


def test_the_decoder_alone_leaves_latents_and_scale_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setattr(pretrain, "psnr", lambda *a, **k: 0.0)
    monkeypatch.setattr(pretrain, "preview_vae", lambda *a: None)
    small = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
        block_out_channels=(8, 8), latent_channels=4, norm_num_groups=4, sample_size=128, scaling_factor=0.7,
    )  # fmt: skip
    small.save_pretrained(tmp_path / "start" / "vae")
    monkeypatch.setattr(pretrain.anatomy, "CHANNELS", 4)
    args = SimpleNamespace(
        work=tmp_path, start=tmp_path / "start", decoder=True, vae_pictures=4, vae_minutes=0.005, vae_batch=2,
        vae_lr=1e-3, squared=8.0, kl=0.0, focus=0.0,
    )  # fmt: skip
    trained = pretrain.train_vae(args, torch.device("cpu"))
    before, after = small.state_dict(), trained.state_dict()
    moved = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert moved == {"decoder", "post_quant_conv"}
    assert trained.config.scaling_factor == 0.7 and (tmp_path / "vae" / "config.json").is_file()


@pytest.mark.parametrize(("capability", "fast"), [("AVX2", False), ("AVX512", True)])
def test_bf16_is_used_only_where_it_is_fast(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    a = torch.randn(1, 8, 8)
    with pretrain.autocast(torch.device("cpu")):
        assert (a @ a).dtype == (torch.bfloat16 if fast else torch.float32)
    square = muon.orthogonalise(a)
    assert torch.equal(square, square.bfloat16().float()) == fast  # bf16 leaves eight bits


def test_a_network_with_more_latent_channels_starts_as_the_smaller_one():
    def vae(channels):
        torch.manual_seed(channels)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, layers_per_block=1,
            block_out_channels=(8, 8), latent_channels=channels, norm_num_groups=4, sample_size=16,
        )  # fmt: skip

    small, big = vae(4), vae(6)
    anatomy.grow(big, small)
    x = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        before, after = small.encode(x).latent_dist, big.encode(x).latent_dist
        assert torch.allclose(before.mean, after.mean[:, :4], atol=1e-5)
        assert torch.allclose(before.logvar, after.logvar[:, :4], atol=1e-5)
        assert torch.allclose(small.decode(before.mean).sample, big.decode(after.mean).sample, atol=1e-5)
        assert after.mean[:, 4:].abs().sum() > 0


def test_crops_are_where_subjects_are_and_fit_their_cells():
    images = np.zeros((1, 128, 128, 3), np.uint8)
    images[0, 64:, 64:] = 255
    cover = np.zeros((1, 16, 16), np.uint8)
    cover[0, 8:, 8:] = 255
    pictures, covers = pretrain.crops(images, cover, np.random.default_rng(0), 50, 8)
    assert pictures.shape == (50, 64, 64, 3) and covers.shape == (50, 8, 8)
    assert (pictures.reshape(50, 8, 8, 8, 8, 3).mean((2, 4, 5)) == covers).all()
    assert covers.mean() > 100  # a crop anywhere would have 60 on average
    assert pretrain.crops(images, cover, np.random.default_rng(0), 2, None)[0].shape == (2, 128, 128, 3)


def test_two_processes_average_gradients_and_go_on_together(tmp_path):
    code = """
import torch
from mixofshow_lite.pocket.train import pretrain
rank = pretrain.join_processes()
p, q = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2, 2))
p.grad, q.grad = torch.full((3,), float(rank)), torch.full((2, 2), 4.0 * rank)
progress = pretrain.average_gradients([p, q], 0.2 + 0.2 * rank)
assert abs(progress - 0.3) < 1e-6 and (p.grad == 0.5).all() and (q.grad == 2).all()
"""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    both = [subprocess.Popen([sys.executable, "-c", code], env={**os.environ, **where, "RANK": str(r)}) for r in (0, 1)]
    assert [process.wait(120) for process in both] == [0, 0]


def test_a_reader_trained_on_a_gpu_comes_back_with_its_words(tmp_path, monkeypatch):
    """Weights and words belong together, and they are the reader's: the diffusion model's have no marks."""
    asked, lent, back, ships = {}, tmp_path / "lent", tmp_path / "back", tmp_path / "ships"

    def train(*arguments, **options):
        asked.update(signature(plain).bind(*arguments, **options).arguments)
        (asked["out"] / "tokenizer").mkdir(parents=True)
        for name in ("open_clip_model.safetensors", "tokenizer/vocab.json"):
            (asked["out"] / name).write_text(f"new {name}")
        return asked["out"]

    plain = gpu.clip.train
    monkeypatch.setattr(gpu.clip, "train", train)
    monkeypatch.setattr(gpu.clip, "measure", lambda folder, n: {})
    shutil.copytree(pocket_dir() / "clip", ships / "clip")
    back.mkdir()
    gpu.main(["clip", "--work", str(lent), "--out", str(back)])
    words = asked.get("tokenizer") or gpu.clip.reader_tokenizer(tmp_path / "own")
    assert {"antlers</w>", "moustache</w>"} <= set(json.loads((words / "vocab.json").read_text()))
    gpu.join([back], ships)
    for name in ("open_clip_model.safetensors", "tokenizer/vocab.json"):
        assert (ships / "clip" / name).read_text() == f"new {name}"


def test_the_gpu_command_draws_trains_and_returns_files_that_join(tiny_training, tmp_path):
    _, limit = tiny_training
    limit(2)
    work, out = tmp_path / "lent", tmp_path / "back"
    out.mkdir()
    gpu.main(["all", "--work", str(work), "--out", str(out), "--pictures", "6", "--batch", "8", "--no-compile"])
    names = {file.name for file in out.iterdir()}
    assert {"vae.0.safetensors", "vae.json", "unet.0.safetensors", "text_encoder.0.safetensors"} <= names
    assert all(file.stat().st_size < 64 * 2**20 for file in out.iterdir())
    ships = tmp_path / "ships"
    shutil.copytree(work / "final", ships)
    for name in ("vae", "unet"):  # as if older weights shipped
        file = ships / name / "diffusion_pytorch_model.safetensors"
        save_file({key: torch.zeros_like(weight) for key, weight in load_file(file).items()}, file)
    gpu.join([out], ships)
    for name in ("vae", "unet"):
        file = f"{name}/diffusion_pytorch_model.safetensors"
        same = load_file(work / "final" / file)
        assert all(torch.equal(weight, same[key]) for key, weight in load_file(ships / file).items())
    assert mos.load_base(ships, device="cpu").sample("a cat", steps=1, progress=False)


def test_odd_subjects_come_as_often_as_asked_for():
    odds = pretrain.odds_of(100, 0.7)
    assert odds.sum().item() == pytest.approx(1) and odds[[0, 1]].sum().item() * 20 == pytest.approx(0.7)
    assert (odds > 0).all() and len(odds.unique()) == 2
