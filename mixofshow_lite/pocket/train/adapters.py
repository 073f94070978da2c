"""Training the pocket T2I-Adapters: keypose and sketch conditions for Pocket Diffusion (paper 3.4 uses such adapters).

    python -m mixofshow_lite.pocket.train.adapters keypose --minutes 15
    python -m mixofshow_lite.pocket.train.adapters sketch --minutes 15

    L = E || eps - eps_theta(z_t, t, c, F + A(picture)) ||^2        only the adapter A learns, the U-Net is frozen

The world draws pictures, captions and conditions from the same parameters. What is rendered and encoded is kept in
`--work` and shared by both kinds; checkpoint, EMA and log of a run are those of `pretrain.py`: it goes on after a kill.
The weights ship in `<base>/adapters/<kind>`, in float16, and `load_adapter("pocket-<kind>")` reads them.
"""

import argparse
import copy
import math
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, T2IAdapter
from diffusers.models.attention_processor import AttnProcessor
from PIL import Image

from ...files.writing import atomic_file
from ...model import DiffusionModel, load_base
from .. import world
from ..conditions import KINDS, draw_condition
from . import data, pretrain
from .pretrain import Run, autocast, diffusion_loss

HELD_OUT = 64  # pictures, the last ones of the cache, that training never sees


def build_adapter(base: DiffusionModel, kind: str) -> T2IAdapter:
    """A T2I-Adapter for the base's U-Net, of the light kind: some two hundred thousand weights."""
    return T2IAdapter(
        in_channels=KINDS[kind],
        channels=list(base.unet.config.block_out_channels),
        num_res_blocks=4,
        downscale_factor=base.factor,
        adapter_type="light_adapter",
    )


def picture_of(parameters: dict) -> world.Picture:
    """The parameters of a cached picture, as they came out of JSON -> Picture."""
    subjects = [world.Subject(**subject) for subject in parameters["subjects"]]
    return world.Picture(subjects, parameters["scene"], parameters["scene_params"], parameters["light"])


def _chunk(args) -> np.ndarray:
    kind, rows, size = args
    return np.stack([np.asarray(draw_condition(kind, picture_of(row), size)) for row in rows])


def condition_cache(work: str | Path, kind: str, rows: list[dict], size: int) -> np.ndarray:
    """The conditions of all cached pictures, uint8 (n, size, size[, 3]) as a memory map; drawn on all cores, once."""
    file = Path(work) / f"{kind}.npy"
    if not file.exists():
        parameters = [row["picture"] for row in rows]
        jobs = [(kind, parameters[a : a + 250], size) for a in range(0, len(rows), 250)]
        with ProcessPoolExecutor() as pool:
            drawn = np.concatenate(list(pool.map(_chunk, jobs)))
        with atomic_file(file) as temporary, open(temporary, "wb") as stream:
            np.save(stream, drawn)
    return np.load(file, mmap_mode="r")


def pixels(conditions: np.ndarray, index: torch.Tensor, device) -> torch.Tensor:
    """Conditions of some pictures as an adapter reads them, (B, channels, H, W) in 0..1."""
    x = torch.from_numpy(np.stack([conditions[i] for i in index.tolist()])).to(device)
    x = x[:, None] if x.ndim == 3 else x.permute(0, 3, 1, 2)
    return x.float() / 255


def guided_unet(unet, adapter, x: torch.Tensor | None):
    """The U-Net as `diffusion_loss` calls it, with the adapter's features of x; plain where x is None."""

    def call(z, t, context):
        extra = {} if x is None else {"down_intrablock_additional_residuals": list(adapter(x))}
        return unet(z, t, context, **extra)

    return call


@torch.no_grad()
def held_out_loss(
    base: DiffusionModel, adapter, conditions, moments, ids, schedule, seed: int = 0
) -> tuple[float, float]:
    """Eq. 1 on the held-out pictures with the adapter, and without it on the same noise: the frozen U-Net's own."""
    device, losses = base.device, []
    index = torch.arange(max(0, len(moments) - HELD_OUT), len(moments))
    mean, _ = moments[index.to(moments.device)].float().chunk(2, 1)
    context = base.text_encoder(ids[index.to(ids.device), 0]).last_hidden_state
    for x in (pixels(conditions, index, device), None):
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            with autocast(device):
                z = base.vae.config.scaling_factor * mean
                losses.append(diffusion_loss(guided_unet(base.unet, adapter, x), z, context, schedule).item())
    return losses[0], losses[1]


def train(args, device) -> Path:
    """Train the adapter of one kind for its budget and write it to `<out>/adapters/<kind>`; returns that folder."""
    base = load_base(args.base, device=device, dtype=torch.float32)
    moments, ids, _ = pretrain.encode(args, device, base.vae, base.tokenizer)  # (n, 2C, h, w), (n, captions, N)
    images, rows = data.load_cache(f"{args.work}/world")
    conditions = condition_cache(args.work, args.kind, rows, images.shape[1])
    empty = base.tokenizer([""], padding="max_length", return_tensors="pt").input_ids[0].to(device)
    torch.manual_seed(0)
    adapter = build_adapter(base, args.kind).to(device)
    count = sum(p.numel() for p in adapter.parameters())
    print(f"{args.kind} adapter: {count:,} weights, {len(moments)} pictures", flush=True)
    schedule = DDPMScheduler.from_config(base.scheduler.config)
    run = Run(f"adapter_{args.kind}", args.work, {"adapter": adapter}, args.minutes, device, 0.998, lr=args.lr)
    torch.manual_seed(run.step + 1)
    if device.type != "cuda":  # there the plain attention's backward pass is the faster one
        base.unet.set_attn_processor(AttnProcessor())
    last, steps = max(1, len(moments) - HELD_OUT), math.inf if args.steps is None else args.steps
    while run.budget.progress < 1 and run.step < steps:
        index = torch.randint(last, (args.batch,))
        mean, std = moments[index.to(moments.device)].float().chunk(2, 1)
        words = ids[index.to(ids.device), torch.randint(ids.shape[1], (args.batch,)).to(ids.device)]
        words = torch.where(torch.rand(args.batch, 1, device=device) < 0.1, empty, words)
        with torch.no_grad(), autocast(device):
            context = base.text_encoder(words).last_hidden_state
        with autocast(device):
            z = base.vae.config.scaling_factor * (mean + std * torch.randn_like(mean))
            unet = guided_unet(base.unet, adapter, pixels(conditions, index, device))
            loss = diffusion_loss(unet, z, context, schedule)
        run.update(loss)
        if run.step % args.report == 0:
            with_it, without = held_out_loss(base, adapter, conditions, moments, ids, schedule)
            minutes = run.budget.spent / 60
            print(f"step {run.step} {minutes:.1f} min, held-out loss {with_it:.4f}, without {without:.4f}", flush=True)
    run.save()
    run.load_ema()
    with_it, without = held_out_loss(base, adapter, conditions, moments, ids, schedule)
    print(f"{args.kind}: held-out loss {with_it:.4f} (EMA), without the adapter {without:.4f}", flush=True)
    folder = Path(args.out or args.base) / "adapters" / args.kind
    copy.deepcopy(adapter).half().save_pretrained(folder)
    pretrain.checksums(Path(args.out or args.base))
    preview(args, folder, conditions, rows)
    return folder


def preview(args, folder: Path, conditions: np.ndarray, rows: list[dict], n: int = 4) -> Path:
    """`<work>/adapter_<kind>.png`: held-out conditions, what is drawn with them and without, by their captions."""
    from ...engine.spatial import load_adapter

    base = load_base(args.base)
    adapter = load_adapter(folder, base.device, base.dtype)
    columns = []
    for i in range(max(0, len(rows) - n), len(rows)):
        condition = Image.fromarray(np.asarray(conditions[i])).convert("RGB")
        options = {"seed": i, "steps": args.preview_steps, "progress": False}
        prompt = rows[i]["captions"][0]
        drawn = base.sample(prompt, spatial=(adapter, condition, 1.0), **options)[0]
        column = [condition, drawn, base.sample(prompt, **options)[0]]
        columns.append(np.concatenate([np.asarray(p.resize(drawn.size)) for p in column]))
    file = Path(args.work) / f"adapter_{args.kind}.png"
    Image.fromarray(np.concatenate(columns, axis=1)).save(file)
    return file


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--minutes", type=float, default=15, help="of training, kept across restarts")
    parser.add_argument("--steps", type=int, help="stop after so many steps, whatever the minutes")
    parser.add_argument("--base", default="data/pocket", help="the folder of the frozen Pocket Diffusion")
    parser.add_argument("--out", help="where adapters/<kind> is written; by default the base's folder")
    parser.add_argument("--work", default="runs/adapters", help="caches, checkpoints and logs; of one base only")
    parser.add_argument("--pictures", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--report", type=int, default=200, help="steps between two held-out losses")
    parser.add_argument("--preview-steps", type=int, default=25)
    args = parser.parse_args(arguments)
    Path(args.work).mkdir(parents=True, exist_ok=True)
    train(args, torch.device("cuda" if torch.cuda.is_available() else "cpu"))


if __name__ == "__main__":
    main()
