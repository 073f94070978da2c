"""The full recipe on a GPU that is lent by the minute: calls under ten minutes each, weights back in small files.

    python -m mixofshow_lite.pocket.train.gpu all --out "$OUT"         pictures, autoencoder, text encoder + U-Net
    python -m mixofshow_lite.pocket.train.gpu diffusion --start data/pocket --out "$OUT"   on from what ships
    python -m mixofshow_lite.pocket.train.gpu clip --out "$OUT"        Pocket CLIP, the bars            about 6 minutes
    python -m mixofshow_lite.pocket.train.gpu join FOLDER ...          afterwards, here: what came back -> data/pocket

`--minutes` is the training of one call: `all` gives a quarter of it to the autoencoder. Drawing 150,000 pictures takes
15 cores about three minutes more. All work lies in `--work`; while the machine is kept, a call goes on from it, on a
fresh machine from `--start`. Nothing here is needed on a CPU: `make pretrain` is the same recipe in one piece.
"""

import argparse
import os
import shutil
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel

from . import clip, data, pretrain

PART = 14 * 2**20  # bytes of a returned file at most
VAE_SHARE = 0.25  # of the minutes of `all`
KINDS = {"vae": AutoencoderKL, "text_encoder": CLIPTextModel, "unet": UNet2DConditionModel}


def recipe(args, stage: str) -> argparse.Namespace:
    """The settings of a stage of `pretrain`, at the sizes that suit a GPU; all others are its own defaults."""
    minutes = args.minutes * (VAE_SHARE if args.stage == "all" and stage == "vae" else 1 - VAE_SHARE)
    if args.stage != "all":
        minutes = args.minutes
    settings = pretrain.arguments().parse_args([stage])
    vars(settings).update(
        work=str(args.work), out=str(args.work / "final"), start=args.start, pictures=args.pictures,
        vae_pictures=args.pictures // 3, vae_minutes=minutes, minutes=minutes, vae_batch=args.batch // 8,
        batch=args.batch, preview_minutes=minutes, compile=args.compile,
    )  # fmt: skip
    return settings


def draw(args) -> None:
    """The pictures, on all cores but for one."""
    workers = max(1, (os.cpu_count() or 2) - 1)
    data.render_cache(args.work / "wide", args.pictures // 3, seed=pretrain.WIDE_SEED, wide=True, workers=workers)
    data.render_cache(args.work / "world", args.pictures, seed=pretrain.WORLD_SEED, workers=workers)


def bring(net: torch.nn.Module, name: str, out: Path) -> None:
    """Write a network's weights as fp16 safetensors of at most `PART` bytes each: <name>.0.safetensors, ..."""
    parts, size = [{}], 0
    for key, tensor in net.state_dict().items():
        half = tensor.half().cpu().contiguous()
        if size + half.nbytes > PART:
            parts, size = [*parts, {}], 0
        parts[-1][key], size = half, size + half.nbytes
    for i, part in enumerate(parts):
        save_file(part, out / f"{name}.{i}.safetensors")


def train_vae(args, device) -> None:
    draw(args)
    vae = pretrain.train_vae(recipe(args, "vae"), device)
    bring(vae, "vae", args.out)
    (args.out / "vae.json").write_text((args.work / "vae" / "config.json").read_text())


def train_diffusion(args, device) -> None:
    draw(args)
    own = args.work / "vae"
    folder = own if own.is_dir() else Path(args.start or "data/pocket") / "vae"
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True).float().to(device)
    settings = recipe(args, "diffusion")
    if (args.work / "diffusion.pt").exists():
        settings.start = None  # the checkpoint is newer than what ships
    pretrain.train_diffusion(settings, device, vae)
    for name in ("text_encoder", "unet"):
        bring(KINDS[name].from_pretrained(args.work / "final" / name, local_files_only=True), name, args.out)
    if (args.work / "diffusion.csv").exists():  # a run of a few steps has none
        shutil.copyfile(args.work / "diffusion.csv", args.out / "diffusion.csv")


def train_all(args, device) -> None:
    train_vae(args, device)
    train_diffusion(args, device)


def train_clip(args, device) -> None:
    much = {"minutes": args.minutes, "groups": args.pictures // 10, "batch": 64, "workers": os.cpu_count() or 2}
    folder = clip.train(args.work / "clip", args.work / "clip-data", device=str(device), **much)
    shutil.copytree(folder, args.out / "clip", dirs_exist_ok=True)  # its words too: they are counted anew
    for name, value in clip.measure(folder, 300).items():
        print(f"{name:16s} {value:.3f}", flush=True)


def join(folders: list[Path], out: Path) -> None:
    """Put returned weights into the shipped folder `out`; what did not come back stays. Then write its checksums."""
    for name, kind in KINDS.items():
        parts = sorted(p for folder in folders for p in folder.glob(f"{name}.[0-9].safetensors"))
        if not parts:
            continue
        state = {key: tensor for part in parts for key, tensor in load_file(part).items()}
        config = next((f / "vae.json" for f in folders if (f / "vae.json").exists()), None) if name == "vae" else None
        if config is not None:
            (out / "vae" / "config.json").write_text(config.read_text())
        net = kind.from_pretrained(out / name, local_files_only=True)
        net.load_state_dict(state)
        net.half().save_pretrained(out / name)
        print(f"{name}: {len(state)} tensors from {len(parts)} files")
    for folder in folders:
        if (folder / "clip").is_dir():
            shutil.copytree(folder / "clip", out / "clip", dirs_exist_ok=True)
    pretrain.checksums(out)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=["all", "vae", "diffusion", "clip", "join"])
    parser.add_argument("folders", nargs="*", type=Path, help="of join: where the returned files lie")
    parser.add_argument("--out", type=Path, default=Path("data/pocket"), help="for returned files; of join: the model")
    parser.add_argument("--work", type=Path, default=Path("/tmp/pocket"))
    parser.add_argument("--start", help="a shipped folder to start from, instead of from nothing")
    parser.add_argument("--pictures", type=int, default=150_000)
    parser.add_argument("--minutes", type=float, default=5.0, help="of training in this call")
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    args = parser.parse_args(arguments)
    if args.stage == "join":
        return join(args.folders, args.out)
    args.work.mkdir(parents=True, exist_ok=True)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    {"all": train_all, "vae": train_vae, "diffusion": train_diffusion, "clip": train_clip}[args.stage](args, device)


if __name__ == "__main__":
    main()
