"""Pocket CLIP: the reader of Pocket World, used for evaluation only (paper 4.3), in open_clip's own format.

    python -m mixofshow_lite.pocket.train.clip train --out data/pocket/clip --minutes 12
    python -m mixofshow_lite.pocket.train.clip measure data/pocket/clip

Three terms, all with several right answers per row (see `clip_data`): pictures with captions, both ways; pictures with
every short caption there is ("a cat", "a red cat", "the beach"), since the captions of a batch rarely ask which class
or whose colour; and pictures of one subject with each other against its look-alikes: image-alignment has to see
identity, and no caption tells it.

    -log( exp(s_p) / (exp(s_p) + sum_negatives exp(s_n)) )     averaged over the positives p of a row

so right answers never push each other away.
"""

import argparse
import functools
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from ...engine.evaluation import Scorer, choose, folder_tokenizer, load_scorer
from ...files.resources import data_dir
from ...files.writing import CLIP, atomic_folder
from ..captions import PLACES, article
from ..world import CLASSES, COLORS, SCENES, Picture, draw_image, held_out, sample, sample_subject
from .clip_data import GROUP, cache_world, claims, look_alikes, swapped_pairs, truth
from .pretrain import autocast

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
WIDTH = 128  # of the shared space
IDENTITY_SCALE = 10.0  # of the picture-picture cosines; a fixed one keeps look-alikes at comparable distances


def model_config(size: int, vocabulary: int, eos: int, length: int) -> dict:
    """open_clip's model_cfg: a small ModifiedResNet and a small causal text transformer, about 2 M weights."""
    vision = {"layers": [1, 1, 1, 1], "width": 16, "head_width": 64, "image_size": size}
    text = {"context_length": length, "vocab_size": vocabulary, "width": 128, "heads": 4, "layers": 3}
    return {"embed_dim": WIDTH, "vision_cfg": vision, "text_cfg": text | {"pool_type": "eos", "eos_id": eos}}


def build(config: dict) -> torch.nn.Module:
    from open_clip.model import CLIP

    return CLIP(**config)


def multi_positive_loss(scores: Tensor, positive: Tensor, ignore: Tensor | None = None) -> Tensor:
    """The loss of the module's docstring for every row that has a positive -> scalar.

    scores (n, m) logits; positive (n, m) bool; ignore (n, m) bool, entries that are neither right nor wrong
    """
    wrong = ~positive if ignore is None else ~(positive | ignore)
    against = scores.masked_fill(~wrong, -1e4).logsumexp(dim=1, keepdim=True)  # (n, 1)
    each = F.softplus(against - scores) * positive
    count = positive.sum(1)
    return (each.sum(1) / count.clamp(min=1))[count > 0].mean()


def short_captions() -> list[list[str]]:
    """What a picture is read by: every class (in the order of CLASSES), every class in every colour, every scene."""
    classes, tints = [article(c) for c in CLASSES], [article(f"{colour} {c}") for c in CLASSES for colour in COLORS]
    return [classes, tints, [f"the {PLACES[s][0].split('the ', 1)[1]}" for s in SCENES]]


def batch_loss(
    model, pixels: Tensor, ids: Tensor, right: Tensor, identity: Tensor, short: Tensor, kinds: list[Tensor]
) -> tuple[Tensor, dict]:
    """The three terms on one batch -> their sum (scalar), {"words", "names", "identity", "scale"} as numbers.

    pixels    (B, 3, s, s) pictures
    ids       (B, N) token ids of a caption each
    right     (B, B) bool, which caption (column) is true of which picture (row)
    identity  (B,) long, -1 where several subjects are shown
    short     (S, N) token ids of the short captions, kind after kind
    kinds     for each kind (B, S_k) bool, which of its captions are true of which picture
    """
    x, t = model.encode_image(pixels, normalize=True), model.encode_text(torch.cat([ids, short]), normalize=True)
    scores = model.logit_scale.exp() * x.float() @ t.float().T  # (B, B + S)
    scores, *asked = scores.split([len(ids), *(kind.shape[1] for kind in kinds)], dim=1)
    words = 0.5 * (multi_positive_loss(scores, right) + multi_positive_loss(scores.T, right.T))
    names = sum(multi_positive_loss(s, kind) for s, kind in zip(asked, kinds, strict=True)) / len(kinds)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    same = (identity[:, None] == identity[None]) & (identity >= 0)[:, None] & ~itself
    look = multi_positive_loss(IDENTITY_SCALE * x.float() @ x.float().T, same, ignore=itself)
    parts = {"words": words, "names": names, "identity": look, "scale": model.logit_scale.exp()}
    return words + names + look, {name: part.item() for name, part in parts.items()}


def to_pixels(pictures: np.ndarray, device: str) -> Tensor:
    """uint8 (B, s, s, 3) -> normalised (B, 3, s, s), open_clip's preprocessing of a picture of the right size."""
    x = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 255
    return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]


def disturb(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts of a few pixels for all; blur and noise for a part, since generated pictures are softer than drawn."""
    n, size = len(pixels), pixels.shape[-1]
    roll = torch.rand(n, 4, generator=generator).to(pixels.device)
    grid = torch.eye(2, 3, device=pixels.device).repeat(n, 1, 1) * (0.94 + 0.1 * roll[:, 2])[:, None, None]
    grid[:, :, 2] = (roll[:, :2] - 0.5) * 0.16
    out = F.grid_sample(
        pixels, F.affine_grid(grid, pixels.shape, align_corners=False), padding_mode="reflection", align_corners=False
    )
    soft = F.interpolate(F.avg_pool2d(out, 2), size=(size, size), mode="bilinear")
    out = torch.where((roll[:, 3] < 0.2)[:, None, None, None], soft, out)
    noise = torch.randn(out.shape, generator=generator).to(out.device) * 0.12
    return torch.where((roll[:, 3] > 0.8)[:, None, None, None], out + noise, out)


def train(
    out: Path, data: Path, tokenizer: Path, minutes: float, size: int = 96, groups: int = 3000, batch: int = 24,
    rate: float = 2e-3, workers: int = 2, device: str | None = None, seed: int = 0, steps: int | None = None,
    start: Path | None = None, vae: Path | None = None,
) -> Path:  # fmt: skip
    """Train for `minutes` (or `steps`) in all, over as many calls as it takes; `out` is usable from the first minute.

    batch counts groups of eight pictures; `start` is a folder whose weights to go on from, `vae` one of an
    autoencoder that half of the pictures go through first. The state lies in `data/clip-state.pt`, losses in
    `data/clip-log.jsonl`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenize = folder_tokenizer(tokenizer, _length(tokenizer))
    world = cache_world(data / f"clip-{size}", groups, size, workers, str(vae) if vae else None)
    ids = tokenize([c for row in world.captions for c in row]).view(len(world.captions), -1, _length(tokenizer))
    needs, told = (
        torch.from_numpy(np.stack(r)) for r in zip(*(claims(c) for row in world.captions for c in row), strict=True)
    )
    needs, told = needs.view(*ids.shape[:2], *needs.shape[1:]), told.view(*ids.shape[:2], -1)
    short = [tokenize(texts).to(device) for texts in short_captions()]
    asked = [
        [torch.from_numpy(np.stack(r)).float() for r in zip(*map(claims, texts), strict=True)]
        for texts in short_captions()
    ]
    config = model_config(size, tokenize.vocab_size, tokenize.eos_id, _length(tokenizer))
    torch.manual_seed(seed)
    model = build(config)
    if start:
        model.load_state_dict(load_file(start / "open_clip_model.safetensors"))
    model = model.to(device).to(memory_format=torch.channels_last)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}], lr=rate
    )
    state_file, step, spent = data / "clip-state.pt", 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, spent = state["step"], state["spent"]
    generator, rng = torch.Generator().manual_seed(seed + step), np.random.default_rng([seed, step])
    log = (data / "clip-log.jsonl").open("a")
    began = saved = time.monotonic()
    model.train()
    while True:
        now = time.monotonic()
        done = step / steps if steps else (spent + now - began) / (60 * minutes)
        if done >= 1 or now - saved > 60:
            _save_state(state_file, model, optimizer, step, spent + now - began)
            export(model, config, tokenizer, out)
            saved = now
            if done >= 1:
                break
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
        rows = (rng.choice(groups, batch, replace=False)[:, None] * GROUP + np.arange(GROUP)).ravel()
        pick = rng.integers(ids.shape[1], size=len(rows))
        plain = rng.random(len(rows)) < 0.25  # the last caption names the classes alone: more of those
        pick = torch.from_numpy(np.where(plain, ids.shape[1] - 1, pick))
        take = torch.from_numpy(rows)
        right = truth(needs[take, pick].float(), told[take, pick].float(), world.has[take], world.seen[take]).to(device)
        kinds = [truth(*facts, world.has[take], world.seen[take]).to(device) for facts in asked]
        pixels = disturb(to_pixels(np.stack([world.pictures[r] for r in rows]), device), generator)
        identity = torch.from_numpy(world.identity[rows]).to(device)
        with autocast(torch.device(device)):
            pixels = pixels.contiguous(memory_format=torch.channels_last)
            loss, parts = batch_loss(
                model, pixels, ids[take, pick].to(device), right, identity, torch.cat(short), kinds
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step += 1
        if step % 25 == 0 or step == 1:
            row = {
                "step": step,
                "minutes": round((spent + time.monotonic() - began) / 60, 2),
                "loss": round(loss.item(), 4),
            }
            row |= {k: round(v, 4) for k, v in parts.items()}
            print(json.dumps(row), flush=True)
            print(json.dumps(row), file=log, flush=True)
    return out


def _length(tokenizer: Path) -> int:
    return int(json.loads((tokenizer / "tokenizer_config.json").read_text())["model_max_length"])


def _save_state(path: Path, model, optimizer, step: int, spent: float) -> None:
    temporary = path.with_suffix(".part")
    torch.save(
        {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "spent": spent}, temporary
    )
    os.replace(temporary, path)


def export(model, config: dict, tokenizer: Path, folder: Path) -> Path:
    """Write the open_clip folder, weights in half precision (batch norm's statistics in single); all or nothing."""
    tensors = {}
    for name, tensor in model.state_dict().items():
        half = tensor.is_floating_point() and "running_" not in name
        tensors[name] = (tensor.half() if half else tensor).cpu().contiguous().clone()
    size = config["vision_cfg"]["image_size"]
    preprocess = {"size": [size, size], "mean": MEAN, "std": STD, "interpolation": "bicubic", "resize_mode": "squash"}
    kept = {p.name: p.read_bytes() for p in tokenizer.iterdir() if p.is_file()}
    with atomic_folder(folder, CLIP) as temporary:
        (temporary / "tokenizer").mkdir()
        for name, content in kept.items():
            (temporary / "tokenizer" / name).write_bytes(content)
        save_file(tensors, temporary / "open_clip_model.safetensors")
        text = json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}, indent=2)
        (temporary / "open_clip_config.json").write_text(text + "\n")
    return folder


def read(images, model=None) -> list[tuple[str, str, str]]:
    """What Pocket CLIP sees in pictures of one subject -> (class, colour, scene) each."""
    scorer = load_scorer(model)
    classes, _, scenes = short_captions()
    cls = [CLASSES[i] for i in choose(images, classes, scorer)]
    scene = [SCENES[i] for i in choose(images, scenes, scorer)]
    x = scorer.image_features(images)
    colour = [_colour(row, c, scorer) for row, c in zip(x, cls, strict=True)]
    return list(zip(cls, colour, scene, strict=True))


@functools.lru_cache(maxsize=64)
def _palette(cls: str, scorer: Scorer) -> Tensor:
    """Text features of a class in every colour (colours, WIDTH)."""
    return scorer.text_features([article(f"{colour} {cls}") for colour in COLORS])


def _colour(x: Tensor, cls: str, scorer: Scorer) -> str:
    return list(COLORS)[int((_palette(cls, scorer) @ x).argmax())]


def read_pair(image, first: str, second: str, model=None) -> tuple[bool, str, str]:
    """For a picture of two subjects of two classes: are both among the two best classes, and which colour is each?"""
    scorer = load_scorer(model)
    x = scorer.image_features(image)[0]
    best = (scorer.text_features([article(c) for c in CLASSES]) @ x).topk(2).indices.tolist()
    return {CLASSES[i] for i in best} == {first, second}, _colour(x, first, scorer), _colour(x, second, scorer)


def auc(same: np.ndarray, other: np.ndarray) -> float:
    """Probability that a same-concept pair scores above an other-concept pair, ties count half."""
    order = np.sort(other)
    below, upto = np.searchsorted(order, same, "left"), np.searchsorted(order, same, "right")
    return float((below + upto).mean() / 2 / len(order))


def pair_auc(features: Tensor, identity: np.ndarray, family: np.ndarray) -> float:
    """AUC of cosines, same-identity pairs against other pairs of the same family: features (n, D), labels (n,)."""
    cosine = (features @ features.T).numpy()
    upper = np.triu(np.ones_like(cosine, bool), 1)
    kin, same = family[:, None] == family[None], identity[:, None] == identity[None]
    return auc(cosine[upper & kin & same], cosine[upper & kin & ~same])


def measure(
    model=None, n: int = 600, families: int = 60, seed: int = 10_000, concepts: Path | None = None
) -> dict[str, float]:
    """The bars, on pictures that training never drew and combinations of class, colour and scene that it left out.

    Returns accuracies in [0, 1] (class, colour, scene; both of two subjects present; each in its own colour) and AUCs
    (random look-alikes; look-alike groups among the concepts in `concepts`, if there are two of one class).
    """
    scorer, rng = load_scorer(model), np.random.default_rng([seed, 78])
    pictures = [_held_out_picture(rng) for _ in range(n)]
    seen = read([_draw(p) for p in pictures], scorer)
    wanted = [(p.subjects[0].cls, p.subjects[0].colour, p.scene) for p in pictures]
    hits = np.mean([[a == b for a, b in zip(s, w, strict=True)] for s, w in zip(seen, wanted, strict=True)], axis=0)
    result = dict(zip(("class", "colour", "scene"), hits.tolist(), strict=True))
    duos = [p for p in (q for _ in range(n // 4) for q in swapped_pairs(rng, 1)) if _readable_duo(p)]
    answers = [
        (read_pair(_draw(p), *(s.cls for s in p.subjects), scorer), [s.colour for s in p.subjects]) for p in duos
    ]
    result["both present"] = float(np.mean([a[0] for a, _ in answers]))
    result["own colours"] = float(np.mean([list(a[1:]) == colours for a, colours in answers]))
    groups = [look_alikes(rng, members=4, views=3) for _ in range(families)]
    x = scorer.image_features([_draw(p) for g in groups for p in g])
    result["look-alike AUC"] = pair_auc(x, np.arange(len(x)) // 3, np.arange(len(x)) // 12)
    return result | concept_auc(scorer, concepts)


def concept_auc(scorer: Scorer, folder: Path | None) -> dict[str, float]:
    """AUC over the pictures of the concepts in `folder`, within a class word; {} if no class has two concepts."""
    from ...files.data import ConceptData

    found = (
        [ConceptData(p.parent) for p in sorted(folder.glob("*/metadata.jsonl"))] if folder and folder.is_dir() else []
    )
    words = [d.class_word for d in found]
    found = [d for d in found if d.class_word and words.count(d.class_word) > 1]
    if not found:
        return {}
    x = scorer.image_features([p for d in found for p in d.pictures])
    identity = np.concatenate([np.full(len(d), i) for i, d in enumerate(found)])
    family = np.concatenate([np.full(len(d), words.index(d.class_word)) for d in found])
    return {"concept AUC": pair_auc(x, identity, family)}


def _draw(picture: Picture) -> Image.Image:
    return Image.fromarray(draw_image(picture))


def _held_out_picture(rng) -> Picture:
    while True:
        subject, scene = sample_subject(rng), str(rng.choice(SCENES))
        if held_out(subject.cls, subject.colour, scene):
            return sample(rng, subjects=[subject], scene=scene)


def _readable_duo(picture: Picture) -> bool:
    """Two subjects, of different classes, both of a named colour, not the same one."""
    if len(picture.subjects) != 2:
        return False
    a, b = picture.subjects
    return a.cls != b.cls and None not in (a.colour, b.colour) and a.colour != b.colour and abs(a.x - b.x) > 0.22


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(
        prog="mixofshow_lite.pocket.train.clip", description="Train or measure Pocket CLIP."
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="train, or go on training, for so many minutes in all")
    one.add_argument("--out", type=Path, default=Path("data/pocket/clip"), help="open_clip folder to write")
    one.add_argument("--data", type=Path, default=Path("runs/clip"), help="folder for drawn pictures, state and log")
    one.add_argument(
        "--tokenizer", type=Path, default=Path("data/pocket/tokenizer"), help="CLIPTokenizer folder to copy"
    )
    one.add_argument("--start", type=Path, help="an open_clip folder of ours whose weights to go on from")
    one.add_argument("--vae", type=Path, help="an autoencoder's folder that half of the pictures go through")
    one.add_argument("--minutes", type=float, default=36.0)
    one.add_argument("--steps", type=int, help="stop after so many steps instead")
    one.add_argument("--size", type=int, default=96, help="side of the pictures CLIP sees, a multiple of 32")
    one.add_argument("--groups", type=int, default=3000, help="groups of eight pictures to draw")
    one.add_argument("--batch", type=int, default=24, help="groups a step")
    one.add_argument("--rate", type=float, default=2e-3, help="learning rate")
    one.add_argument("--workers", type=int, default=2, help="processes that draw")
    one.add_argument("--device")
    two = commands.add_parser("measure", help="print the bars")
    two.add_argument("folder", nargs="?", default="pocket")
    two.add_argument("-n", type=int, default=600, help="held-out pictures")
    args = vars(parser.parse_args(argv))
    if args.pop("command") == "train":
        train(**args)
    else:
        for name, value in measure(args["folder"], args["n"], concepts=data_dir() / "concepts").items():
            print(f"{name:16s} {value:.3f}")


if __name__ == "__main__":
    main()
