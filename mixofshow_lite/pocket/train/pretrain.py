"""Pretraining Pocket Diffusion from nothing: pictures, autoencoder, latents, text encoder + U-Net; on CPU and CUDA.

    python -m mixofshow_lite.pocket.train.pretrain all --work runs/pocket --vae-minutes 30 --minutes 90

Every stage is timed by its own budget in minutes of training (kept across restarts), checkpoints every few minutes to
`--work`, and goes on from there when it is started again. Losses are logged to `<stage>.csv`, sample grids to PNG.
"""

import argparse
import copy
import csv
import hashlib
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.training_utils import EMAModel
from PIL import Image
from transformers import CLIPTextModel

from ...files.loading import write_for_old_loaders
from ...files.writing import atomic_file
from .. import world
from . import anatomy, data, muon, tokens

FOCUSED = 0.55  # share of the training in which cells with subjects count more
CROPS, NOISY = 0.7, 0.5  # the autoencoder sees crops until, and noise on its latents from, that share of its training
LATENT_NOISE = 0.1  # standard deviations of the latents: a U-Net's small errors must not become smears
WIDE_SEED, WORLD_SEED = 31, 30  # of the pictures that the autoencoder, and all else, is trained on
GUIDANCE = 4.0  # the shipped model's default scale of classifier-free guidance


class Budget:
    """A training budget in minutes: `progress` in [0, 1] drives the learning rate, so any length ends annealed."""

    def __init__(self, minutes: float, used: float = 0.0):
        self.total, self.used, self.start = 60 * minutes, used, time.time()

    @property
    def spent(self) -> float:
        return self.used + time.time() - self.start

    @property
    def progress(self) -> float:
        return min(1.0, self.spent / self.total)


def learning_rate(peak: float, progress: float, step: int, warmup: int = 100) -> float:
    """Linear warm-up in steps, cosine to 1 % of the peak over the budget."""
    return peak * min(1.0, (step + 1) / warmup) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress)))


def join_processes() -> int:
    """The rank of this process; `torchrun --nproc-per-node 2` on a CPU makes two of one thread each, faster than one of
    two: they draw batches of their own and share their gradients."""
    if "RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("gloo")
    return dist.get_rank() if dist.is_initialized() else 0


def average_gradients(params: list, progress: float) -> float:
    """Gradients and progress, averaged over the processes in place; returns the progress all of them go on with."""
    if not dist.is_initialized():
        return progress
    grads = [p.grad for p in params if p.grad is not None]
    flat = torch.cat([g.flatten() for g in grads] + [torch.tensor([progress])])
    dist.all_reduce(flat)
    flat /= dist.get_world_size()
    for grad, part in zip(grads, flat[:-1].split([g.numel() for g in grads]), strict=True):
        grad.copy_(part.view_as(grad))
    return float(flat[-1])


class Run:
    """Checkpoint, EMA and log of one stage."""

    def __init__(
        self,
        name,
        work,
        modules: dict,
        minutes,
        device,
        ema_decay,
        lr,
        muon_lr=0.02,
        weight_decay=0.0,
        save_minutes=4.0,
    ):
        self.file, self.log = Path(work) / f"{name}.pt", Path(work) / f"{name}.csv"
        self.modules, self.device = modules, device
        self.params = [p for m in modules.values() for p in m.parameters() if p.requires_grad]
        inside, rest = (sum(lists, []) for lists in zip(*(muon.split(m) for m in modules.values()), strict=True))
        adam = torch.optim.AdamW(rest, lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
        self.optimizers = {"adam": adam, "muon": muon.Muon(inside, muon_lr, weight_decay=weight_decay)}
        self.peaks = {"adam": lr, "muon": muon_lr}
        self.ema = EMAModel(self.params, decay=ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75, foreach=True)
        self.step, used, self.last_save, self.save_every = 0, 0.0, time.time(), 60 * save_minutes
        if self.file.exists():
            state = torch.load(self.file, map_location=device, weights_only=True)
            for key, module in modules.items():
                module.load_state_dict(state[key])
            for key, optimizer in self.optimizers.items():
                optimizer.load_state_dict(state[key])
            self.ema.load_state_dict(state["ema"])
            self.step, used = state["step"], state["spent"]
            print(f"{name}: resumed at step {self.step}, {used / 60:.1f} minutes in", flush=True)
        self.budget = Budget(minutes, used)
        self.progress, self.first = self.budget.progress, join_processes() == 0

    def update(self, loss) -> bool:
        """One optimizer step; saves every few minutes. False once the budget is spent."""
        for key, optimizer in self.optimizers.items():
            optimizer.param_groups[0]["lr"] = learning_rate(self.peaks[key], self.progress, self.step)
            optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.progress = average_gradients(self.params, self.budget.progress)
        norm = torch.nn.utils.clip_grad_norm_(self.params, 1.0)
        for optimizer in self.optimizers.values():
            optimizer.step()
        self.ema.step(self.params)
        self.step += 1
        if self.first and self.step % 25 == 0:
            with open(self.log, "a", newline="") as f:
                csv.writer(f).writerow(
                    [self.step, f"{self.budget.spent:.0f}", f"{loss.item():.5f}", f"{norm.item():.3f}"]
                )
        if time.time() - self.last_save > self.save_every:
            self.save()
        return self.progress < 1.0

    def save(self):
        self.last_save = time.time()
        if not self.first:
            return
        state = {key: m.state_dict() for key, m in self.modules.items()}
        state |= {key: optimizer.state_dict() for key, optimizer in self.optimizers.items()}
        state |= {"ema": self.ema.state_dict(), "step": self.step, "spent": self.budget.spent}
        with atomic_file(self.file) as temporary:
            torch.save(state, temporary)

    def load_ema(self):
        self.ema.copy_to(self.params)


def to_tensor(images: np.ndarray, device) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float().div(127.5).sub(1)


def to_image(x: torch.Tensor) -> np.ndarray:
    return x.float().clamp(-1, 1).add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def grid(images: np.ndarray, columns: int) -> Image.Image:
    rows = [np.concatenate(list(images[i : i + columns]), 1) for i in range(0, len(images) - columns + 1, columns)]
    return Image.fromarray(np.concatenate(rows, 0))


def autocast(device):
    """bf16 where it helps; the weights and the optimizer stay fp32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=muon.fast_bf16(device))


def psnr(vae, images, device, batch=16, masks=None) -> float:
    """Mean peak signal-to-noise ratio in dB of reconstructions from the posterior mean, on uint8 pictures.

    masks   (n, H, W) in [0, 1]: count what they cover only, e.g. the subject
    """
    values = []
    with torch.no_grad(), autocast(device):
        for i in range(0, len(images), batch):
            x = to_tensor(images[i : i + batch], device)
            y = to_tensor(to_image(vae.decode(vae.encode(x).latent_dist.mode()).sample), device)
            error = (x - y).pow(2).mean(1)  # (B, H, W)
            weight = torch.ones_like(error) if masks is None else torch.as_tensor(masks[i : i + batch]).to(error)
            values += (10 * torch.log10(4 * weight.sum((1, 2)) / (weight * error).sum((1, 2)))).tolist()
    return float(np.mean(values))


def crops(images, cover, rng, n: int, cells: int | None) -> tuple[np.ndarray, np.ndarray]:
    """n pictures, or crops of `cells` latent cells a side where subjects are -> uint8 (n, s, s, 3), (n, c, c) cover."""
    chosen = np.sort(rng.integers(0, len(images), n))
    if cells is None:
        return images[chosen], cover[chosen]
    side, pictures, covers = cover.shape[1], [], []
    for k in chosen:
        odds = cover[k].ravel() + 20.0
        y, x = divmod(int(rng.choice(side * side, p=odds / odds.sum())), side)
        y, x = (int(np.clip(v - cells // 2, 0, side - cells)) for v in (y, x))
        f = images.shape[1] // side
        pictures.append(images[k, f * y : f * (y + cells), f * x : f * (x + cells)])
        covers.append(cover[k, y : y + cells, x : x + cells])
    return np.stack(pictures), np.stack(covers)


def train_vae(args, device):
    """AutoencoderKL on the wide world (patterns and parts included): L1 + squared error + a small KL, more where
    subjects are.

    Crops of half a picture first, four times as many in the same time; whole pictures at the end. From half of the
    training on the decoder reads latents with a little noise on them. With `--decoder` the decoder alone goes on:
    latents, and with them the U-Net and every tuned concept, stay as they are.
    """
    rank = join_processes()
    folder = data.render_cache(f"{args.work}/wide", args.vae_pictures, seed=WIDE_SEED, wide=True)
    images, cover = data.load_cache(folder)[0], np.load(folder / "cells.npy")
    test, masks = held_out_pictures(64)
    torch.manual_seed(0)
    vae = anatomy.build_vae()
    if args.start:
        start = shipped(AutoencoderKL, args.start, "vae")
        vae = start if start.config.latent_channels == anatomy.CHANNELS else anatomy.grow(vae, start)
    if args.decoder:
        vae.encoder.requires_grad_(False)
        vae.quant_conv.requires_grad_(False)
    vae = vae.to(device, memory_format=torch.channels_last)
    run = Run("vae", args.work, {"vae": vae}, args.vae_minutes, device, 0.998, args.vae_lr, 10 * args.vae_lr)
    rng = np.random.default_rng([run.step, rank])
    torch.manual_seed(1000 * run.step + rank)
    going = run.progress < 1
    while going:
        whole = run.progress >= CROPS
        x, weight = crops(images, cover, rng, args.vae_batch * (1 if whole else 4), None if whole else 8)
        x = to_tensor(x, device).contiguous(memory_format=torch.channels_last)
        weight = cell_weights(torch.from_numpy(weight).to(device), args.focus)
        weight = torch.nn.functional.interpolate(weight, size=x.shape[-2:], mode="nearest")
        with autocast(device):
            posterior = vae.encode(x).latent_dist
            z = posterior.sample()
            if args.decoder or run.progress >= NOISY:
                z = z + LATENT_NOISE * z.detach().std() * torch.rand(len(z), 1, 1, 1) * torch.randn_like(z)
            y = vae.decode(z).sample
        error = y.float() - x
        loss = (weight * (error.abs() + args.squared * error.pow(2))).mean()
        loss = loss + args.kl * posterior.kl().mean() / posterior.mean[0].numel()
        going = run.update(loss)
        if rank == 0 and run.step % 250 == 0:
            shown = [psnr(vae, test[:32], device), psnr(vae, test[:32], device, masks=masks[:32])]
            print(f"vae step {run.step} {run.budget.spent / 60:.1f} min loss {loss.item():.4f} "
                  f"psnr {shown[0]:.2f} dB, inside {shown[1]:.2f}", flush=True)  # fmt: skip
            preview_vae(vae, test[:8], device, f"{args.work}/vae.png")
    run.save()
    run.load_ema()
    if rank == 0:
        print(f"vae held-out PSNR {psnr(vae, test, device):.2f}, inside {psnr(vae, test, device, masks=masks):.2f} dB")
        preview_vae(vae, test[:8], device, f"{args.work}/vae.png")
        if not args.decoder:
            with torch.no_grad(), autocast(device):
                batches = [to_tensor(images[i : i + 64], device) for i in range(0, 512, 64)]
                z = torch.cat([vae.encode(x).latent_dist.sample().float() for x in batches])
            vae.register_to_config(scaling_factor=float(1 / z.std()))
        vae.save_pretrained(f"{args.work}/vae")
    return vae


def held_out_pictures(n: int) -> tuple[np.ndarray, np.ndarray]:
    """Pictures of no training, every second with out-domain marks -> uint8 (n, H, W, 3), subjects' masks (n, H, W)."""
    drawn = [world.render(data.draw(2, i, i % 2 == 0)[0]) for i in range(n)]
    masks = [np.clip(sum(d.masks), 0, 1) for d in drawn]
    return np.stack([np.asarray(d.image) for d in drawn]), np.stack(masks).astype(np.float32)


def preview_vae(vae, images, device, file):
    with torch.no_grad(), autocast(device):
        y = vae.decode(vae.encode(to_tensor(images, device)).latent_dist.mode()).sample
    grid(np.concatenate([images, to_image(y)]), len(images)).save(file)


def encode(args, device, vae, tokenizer):
    """The world as latent moments (n, 2C, 16, 16), kept in latents.npy (fp16) beside the pictures, token ids (n,
    captions, N), and what the subjects cover (n, 16, 16)."""
    folder = data.render_cache(f"{args.work}/world", args.pictures, seed=WORLD_SEED)
    file = folder / "latents.npy"
    if join_processes() > 0:  # the first process encodes, the others wait for it
        dist.barrier()
    images, rows = data.load_cache(folder)
    texts = [text for row in rows for text in row["captions"]]
    ids = tokenizer(texts, padding="max_length", truncation=True, return_tensors="np").input_ids
    ids = torch.from_numpy(ids.astype(np.int64)).view(len(rows), -1, ids.shape[-1]).to(device)
    if not file.exists():
        moments = []
        with torch.no_grad(), autocast(device):
            for i in range(0, len(images), 64):
                d = vae.encode(to_tensor(images[i : i + 64], device)).latent_dist
                moments.append(torch.cat([d.mean, d.std], 1).half().cpu().numpy())
        with atomic_file(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, np.concatenate(moments))
    if dist.is_initialized() and dist.get_rank() == 0:
        dist.barrier()
    cover = torch.from_numpy(np.load(folder / "cells.npy")).to(device)
    return torch.from_numpy(np.load(file)).to(device), ids, cover


def spread_timesteps(n: int, steps: int, device) -> torch.Tensor:
    """n timesteps, half of them spread evenly over all, half over 30-95 % of the noise, where shapes are decided."""
    even = (torch.arange(n, device=device) + torch.rand(n, device=device)) / n
    even[1::2] = 0.3 + 0.65 * even[1::2]
    return (even * steps).long().clamp(max=steps - 1)


def diffusion_loss(unet, z, context, schedule, gamma: float = 2.0, cells=None):
    """Eq. 1 with min-SNR weights and timesteps spread over the batch: both only balance the noise levels.

    cells   weights of the latent's cells (B, 1, h, w), or None for Eq. 1's own: all alike
    """
    t = spread_timesteps(len(z), schedule.config.num_train_timesteps, z.device)
    noise = torch.randn_like(z)
    predicted = unet(schedule.add_noise(z, noise, t), t, context).sample.float()
    alpha = schedule.alphas_cumprod.to(z.device)[t]
    weight = (gamma * (1 - alpha) / alpha).clamp(max=1.0)  # min(snr, gamma) / snr
    error = (predicted - noise).pow(2)
    error = error if cells is None else cells * error
    return (weight * error.mean((1, 2, 3))).mean()


def cell_weights(cover: torch.Tensor, focus: float) -> torch.Tensor:
    """Weights (B, 1, h, w) of mean 1, `1 + focus` times as much where subjects cover a cell; cover (B, h, w) uint8."""
    weights = 1 + focus * cover.float()[:, None] / 255
    return weights / weights.mean()


def focus_at(progress: float, focus: float) -> float:
    """The extra weight of cells with subjects at a progress in [0, 1]: scenes are learned early, bodies late.

    With it to the end, lone subjects came in twos (weights that depend on the picture shift its mean); so Eq. 1 as it
    stands has the rest of the training.
    """
    return focus if progress < FOCUSED else 0.0


def train_diffusion(args, device, vae):
    """Text encoder and U-Net together: epsilon prediction, one prompt in ten left empty for guidance."""
    rank = join_processes()
    tokenizer = tokens.build_tokenizer(f"{args.start or args.work}/tokenizer")
    moments, ids, cover = encode(args, device, vae, tokenizer)
    empty = tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0].to(device)
    torch.manual_seed(0)
    unet = anatomy.build_unet()
    if args.start:
        text = shipped(CLIPTextModel, args.start, "text_encoder")
        unet = anatomy.grow(unet, shipped(UNet2DConditionModel, args.start, "unet"))
    else:
        special = tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id
        text = anatomy.build_text_encoder(len(tokenizer), *special)
    text, unet = text.to(device), unet.to(device)
    schedule = DDPMScheduler.from_config(anatomy.build_scheduler().config)
    modules = {"text": text, "unet": unet}
    run = Run("diffusion", args.work, modules, args.minutes, device, 0.9995, args.lr, 20 * args.lr, weight_decay=0.01)
    torch.manual_seed(1000 * run.step + rank)
    odds = odds_of(len(moments), args.odd)
    on_gpu = device.type == "cuda"
    if not on_gpu:  # there the fused attention's backward pass is the slower one: 1.04 s a step against 0.75 s
        unet.set_attn_processor(AttnProcessor())
        unet.to(memory_format=torch.channels_last)
    compiled = torch.compile(unet) if on_gpu or args.compile else unet
    going, scale = run.progress < 1, vae.config.scaling_factor
    next_preview = 60 * args.preview_minutes + run.budget.spent
    while going:
        pick = torch.multinomial(odds, args.batch, replacement=True).to(device)
        mean, std = moments[pick].float().chunk(2, 1)
        words = ids[pick, torch.randint(ids.shape[1], (args.batch,), device=device)]
        words = torch.where(torch.rand(args.batch, 1, device=device) < 0.1, empty, words)
        with autocast(device):
            context = text(words).last_hidden_state
            cells = cell_weights(cover[pick], focus_at(run.progress, args.focus))
            z = scale * (mean + std * torch.randn_like(mean))
            loss = diffusion_loss(compiled, z, context, schedule, cells=cells)
        going = run.update(loss)
        if rank == 0 and run.budget.spent > next_preview:
            next_preview = run.budget.spent + 60 * args.preview_minutes
            print(f"diffusion step {run.step} {run.budget.spent / 60:.1f} min loss {loss.item():.4f}", flush=True)
            run.ema.store(run.params)
            run.load_ema()
            assemble(f"{args.work}/preview", vae, text, unet, tokenizer)
            preview(f"{args.work}/preview", f"{args.work}/diffusion.png", device)
            run.ema.restore(run.params)
    run.save()
    run.load_ema()
    if rank == 0:
        assemble(args.out, vae, text, unet, tokenizer)


def odds_of(n: int, odd: float) -> torch.Tensor:
    """How often each of the n pictures of the world is drawn, (n,): those of odd subjects in this share of all."""
    which = torch.tensor([data.is_odd(i) for i in range(n)])
    return torch.where(which, odd / which.sum(), (1 - odd) / (~which).sum())


def shipped(kind, folder, part):
    """A network of an earlier pretraining, in fp32, to go on from (its checkpoints may be gone, its weights ship)."""
    return kind.from_pretrained(f"{folder}/{part}", local_files_only=True).float()


def assemble(folder, vae, text, unet, tokenizer):
    """Write the diffusers folder (fp16) that load_base and a stock StableDiffusionPipeline read, and its SHA256SUMS."""
    folder = Path(folder)
    parts = [copy.deepcopy(m).half() for m in (vae, text, unet)]
    pipe = StableDiffusionPipeline(
        vae=parts[0], text_encoder=parts[1], unet=parts[2], tokenizer=tokenizer, scheduler=anatomy.build_scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.save_pretrained(folder, safe_serialization=True)
    config = folder / "text_encoder" / "config.json"
    config.write_text(config.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    about = {"base_id": "pocket-v2", "guidance": GUIDANCE, "dtype": "float32"}  # small: half precision gains nothing
    (folder / "mixofshow.json").write_text(json.dumps(about, indent=2) + "\n")
    (folder / "words.txt").write_text("\n".join(tokens.known_words()) + "\n")
    write_for_old_loaders(folder)
    checksums(folder)


def checksums(folder):
    """SHA-256 of every weight file below `folder`, in the format of sha256sum."""
    files = sorted(Path(folder).rglob("*.safetensors"))
    rows = [f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.relative_to(folder).as_posix()}" for f in files]
    (Path(folder) / "SHA256SUMS").write_text("\n".join(rows) + "\n")


PREVIEW = (
    "a red cat on the beach", "photo of a blue rabbit in the forest", "a green robot in the city at night",
    "a yellow frog on the moon", "a purple mug in the desert", "a pink bear in the snow",
    "a white bird and a brown cat in the forest", "two friends on the beach",
)  # fmt: skip


def preview(folder, file, device, each: int = 2):
    """Sample grid: one column a prompt, stock pipeline, fixed seeds."""
    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32, local_files_only=True).to(device)
    pipe.set_progress_bar_config(disable=True)
    with autocast(device):
        rows = [pipe(list(PREVIEW), num_inference_steps=20, guidance_scale=GUIDANCE, output_type="np",
                     generator=torch.Generator().manual_seed(k)).images for k in range(each)]  # fmt: skip
    grid((np.concatenate(rows) * 255).round().astype(np.uint8), len(PREVIEW)).save(file)


def arguments() -> argparse.ArgumentParser:
    """The stages' settings; `gpu` reads them too, so that none is missing there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["cache", "vae", "diffusion", "all", "checksums"])
    parser.add_argument("--work", default="runs/pocket", help="checkpoints, caches and logs")
    parser.add_argument("--out", default="data/pocket", help="the diffusers folder that ships")
    parser.add_argument("--start", help="a shipped folder whose weights to start from, instead of from nothing")
    parser.add_argument("--pictures", type=int, default=60000)
    parser.add_argument("--minutes", type=float, default=90, help="of text encoder + U-Net training")
    parser.add_argument("--batch", type=int, default=24)
    parser.add_argument("--lr", type=float, default=1e-3, help="of Adam; Muon's is 20 times as much")
    parser.add_argument("--focus", type=float, default=2.0, help="extra weight of the subjects' cells at first")
    parser.add_argument("--odd", type=float, default=0.5, help="share of pictures with odd subjects in training")
    parser.add_argument("--compile", action="store_true", help="on a CPU too: 1.3x, after minutes of compiling")
    parser.add_argument("--preview-minutes", type=float, default=8)
    parser.add_argument("--vae-pictures", type=int, default=16000)
    parser.add_argument("--vae-minutes", type=float, default=30)
    parser.add_argument("--vae-batch", type=int, default=4, help="whole pictures; four times as many crops")
    parser.add_argument("--decoder", action="store_true", help="train the autoencoder's decoder alone (with --start)")
    parser.add_argument("--vae-lr", type=float, default=2e-3, help="of Adam; Muon's is 10 times as much")
    parser.add_argument("--squared", type=float, default=2.0, help="weight of the squared error beside L1")
    parser.add_argument("--kl", type=float, default=5e-4)
    return parser


def main():
    args = arguments().parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.backends.cuda.matmul.allow_tf32 = True
    Path(args.work).mkdir(parents=True, exist_ok=True)
    if args.stage == "checksums":
        checksums(args.out)
    if args.stage == "cache":
        data.render_cache(f"{args.work}/wide", args.vae_pictures, seed=WIDE_SEED, wide=True)
        data.render_cache(f"{args.work}/world", args.pictures, seed=WORLD_SEED)
    if args.stage in ("vae", "all"):
        train_vae(args, device)
    if args.stage in ("diffusion", "all"):
        trained = Path(args.work, "vae").is_dir() or not args.start
        vae = shipped(AutoencoderKL, args.work if trained else args.start, "vae")
        train_diffusion(args, device, vae.to(device))


if __name__ == "__main__":
    main()
