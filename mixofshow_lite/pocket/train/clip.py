"""Pocket CLIP: the reader of Pocket World, used for evaluation only (paper 4.3), in open_clip's own format.

    python -m mixofshow_lite.pocket.train.clip train --out data/pocket/clip --vae data/pocket/vae
    python -m mixofshow_lite.pocket.train.clip measure data/pocket/clip

Three terms, all with several right answers per row (see `clip_data`): pictures with captions, both ways; pictures with
every short caption there is ("a cat", "something in red stripes", "the beach"), one kind after the other, since the
captions of a batch rarely ask which class or whose colour; and pictures of one subject with each other against its
look-alikes: image-alignment has to see identity, and no caption tells it.

    -log( exp(s_p) / (exp(s_p) + sum_negatives exp(s_n)) )     averaged over the positives p of a row

so right answers never push each other away.
"""

import argparse
import functools
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ...engine.evaluation import Scorer, choose, folder_tokenizer, load_scorer
from ...files.resources import data_dir
from ...files.writing import CLIP, atomic_file, atomic_folder
from ..captions import PLACES, article
from ..world import (
    ACCESSORIES,
    CLASSES,
    COLORS,
    SCENES,
    Picture,
    draw_image,
    held_out,
    sample,
    sample_subject,
)
from . import muon
from .clip_data import (
    GROUP,
    NUMBERS,
    TINTS,
    World,
    cache_world,
    claims,
    codec,
    decorated,
    look_alikes,
    mention,
    reader_tokenizer,
    swapped_pairs,
    through,
    truth,
)  # fmt: skip
from .data import PARTS, PATTERNS
from .pretrain import autocast

MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
SIZE, WIDTH, LAYERS = 96, 16, (1, 1, 1, 1)  # pixels of a side, channels of the first stage, bottlenecks of each stage
FEATURES = 128  # of the shared space
NAMES = 3.0  # weight of the short captions' term
IDENTITY_SCALE = 10.0  # of the picture-picture cosines; a fixed one keeps look-alikes at comparable distances


def model_config(size: int, vocabulary: int, eos: int, length: int, width: int = WIDTH, layers=LAYERS) -> dict:
    """open_clip's model_cfg: a small ModifiedResNet and a small causal text transformer, a few million weights."""
    vision = {"layers": list(layers), "width": width, "head_width": 64, "image_size": size}
    text = {"context_length": length, "vocab_size": vocabulary, "width": 128, "heads": 4, "layers": 3}
    return {"embed_dim": FEATURES, "vision_cfg": vision, "text_cfg": text | {"pool_type": "eos", "eos_id": eos}}


def build(config: dict) -> torch.nn.Module:
    from open_clip.model import CLIP

    return CLIP(**config)


def encode_text(model, ids: Tensor) -> Tensor:
    """`model.encode_text(ids, normalize=True)` on as many tokens as the longest caption has.

    Attention is causal and the feature is read at the first end token, so what pads a caption changes nothing.
    """
    end = (ids == model.text_eos_id).int().argmax(1)  # (B,)
    ids = ids[:, : int(end.max()) + 1]
    n = ids.shape[1]
    x = model.token_embedding(ids) + model.positional_embedding[:n]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:n, :n]))
    return F.normalize(x[torch.arange(len(x), device=x.device), end] @ model.text_projection, dim=-1)


def go_on_from(model, folder: Path, tokenizer: Path) -> None:
    """Load the weights of a reader in `folder`, which may know other words: those that both know keep their meaning."""
    weights = load_file(folder / "open_clip_model.safetensors")
    new, old = (json.loads((f / "vocab.json").read_text(encoding="utf-8")) for f in (tokenizer, folder / "tokenizer"))
    both = [word for word in new if word in old]
    words, places = model.token_embedding.weight.detach().clone(), model.positional_embedding.detach().clone()
    words[[new[w] for w in both]] = weights["token_embedding.weight"][[old[w] for w in both]].float()
    known = weights["positional_embedding"][: len(places)].float()
    places[: len(known)] = known
    model.load_state_dict(weights | {"token_embedding.weight": words, "positional_embedding": places})


def multi_positive_loss(scores: Tensor, positive: Tensor, ignore: Tensor | None = None) -> Tensor:
    """The loss of the module's docstring for every row that has a positive -> scalar.

    scores (n, m) logits; positive (n, m) bool; ignore (n, m) bool, entries that are neither right nor wrong
    """
    wrong = ~positive if ignore is None else ~(positive | ignore)
    against = scores.masked_fill(~wrong, -1e4).logsumexp(dim=1, keepdim=True)  # (n, 1)
    each = F.softplus(against - scores) * positive
    count = positive.sum(1)
    return (each.sum(1) / count.clamp(min=1))[count > 0].mean()


def mark_captions() -> dict[str, list[str]]:
    """What marks are read by, of any class: kind -> "something in stripes", ..., "something plain".

    They leave the class out, so that every picture of a batch is asked all of them.
    """
    ask = functools.partial(mention, None)
    return {
        "pattern": [ask(pattern=(kind, None)) for kind in PATTERNS] + [ask(pattern=())],
        "pattern colour": [ask(pattern=(kind, tint)) for kind in PATTERNS for tint in TINTS],
        "part": [ask(parts=[(part, None)]) for part in PARTS] + [ask(parts=[])],
        "worn": [ask(worn=[(item, None)]) for item in ACCESSORIES] + [ask(worn=[])],
        "worn colour": [ask(worn=[(item, tint)]) for item in ACCESSORIES for tint in COLORS],
    }


def short_captions() -> dict[str, list[str]]:
    """What a picture is read by, kind by kind: classes (in the order of CLASSES), their colours, scenes, marks, ..."""
    kinds = {
        "class": [article(c) for c in CLASSES],
        "colour": [article(f"{colour} {c}") for c in CLASSES for colour in TINTS],
        "scene": [f"the {PLACES[s][0].split('the ', 1)[1]}" for s in SCENES],
        "number": list(NUMBERS),
    }
    return kinds | mark_captions()


def batch_loss(
    model, pixels: Tensor, ids: Tensor, right: Tensor, identity: Tensor, short: Tensor, kinds: list[Tensor]
) -> tuple[Tensor, dict]:
    """The three terms on one batch -> their sum (scalar), {"words", "names", "identity", "scale"} as numbers.

    pixels    (B, 3, s, s) pictures
    ids       (B, N) token ids of a caption each
    right     (B, B) bool, which caption (column) is true of which picture (row)
    identity  (B,) long, -1 where not exactly one subject is shown
    short     (S, N) token ids of the short captions, kind after kind
    kinds     for each kind (B, S_k) bool, which of its captions are true of which picture
    """
    x = model.encode_image(pixels, normalize=True).float()
    t = torch.cat([encode_text(model, ids), encode_text(model, short)]).float()
    scores = model.logit_scale.exp() * x @ t.T  # (B, B + S)
    scores, *asked = scores.split([len(ids), *(kind.shape[1] for kind in kinds)], dim=1)
    words = 0.5 * (multi_positive_loss(scores, right) + multi_positive_loss(scores.T, right.T))
    names = [multi_positive_loss(s, kind) for s, kind in zip(asked, kinds, strict=True) if kind.any()]
    names = sum(names) / len(names)
    itself = torch.eye(len(x), dtype=torch.bool, device=x.device)
    same = (identity[:, None] == identity[None]) & (identity >= 0)[:, None] & ~itself
    parts = {"words": words, "names": NAMES * names}
    if same.any():
        parts["identity"] = multi_positive_loss(IDENTITY_SCALE * x @ x.T, same, ignore=itself)
    numbers = {name: part.item() for name, part in (parts | {"scale": model.logit_scale.exp()}).items()}
    return sum(parts.values()), numbers


def to_pixels(pictures: np.ndarray, device: str) -> Tensor:
    """uint8 (B, s, s, 3) -> normalised (B, 3, s, s), open_clip's preprocessing of a picture of the right size."""
    x = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2).float() / 255
    return (x - x.new_tensor(MEAN)[:, None, None]) / x.new_tensor(STD)[:, None, None]


def disturb(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts of a few pixels and mirror images for all; blur and noise for a part: generated pictures are softer."""
    n, size = len(pixels), pixels.shape[-1]
    roll = torch.rand(n, 5, generator=generator).to(pixels.device)
    grid = torch.eye(2, 3, device=pixels.device).repeat(n, 1, 1) * (0.94 + 0.1 * roll[:, 2])[:, None, None]
    grid[:, 0, 0] *= (roll[:, 4] < 0.5).float() * 2 - 1
    grid[:, :, 2] = (roll[:, :2] - 0.5) * 0.16
    out = F.grid_sample(
        pixels, F.affine_grid(grid, pixels.shape, align_corners=False), padding_mode="reflection", align_corners=False
    )
    soft = F.interpolate(F.avg_pool2d(out, 2), size=(size, size), mode="bilinear")
    out = torch.where((roll[:, 3] < 0.2)[:, None, None, None], soft, out)
    noise = torch.randn(out.shape, generator=generator).to(out.device) * 0.12
    return torch.where((roll[:, 3] > 0.8)[:, None, None, None], out + noise, out)


class Lessons:
    """What a training reads: pictures with captions as token ids, and which caption is true of which picture."""

    def __init__(self, world: World, tokenize):
        self.world, rows = world, len(world.captions)
        self.ids = tokenize([c for row in world.captions for c in row]).view(rows, -1, tokenize.length)
        said = [claims(c) for row in world.captions for c in row]
        self.needs, self.told = (
            torch.from_numpy(np.stack(part)).view(rows, -1, *part[0].shape) for part in zip(*said, strict=True)
        )
        kinds = list(short_captions().values())
        self.short = tokenize([text for texts in kinds for text in texts])
        self.asked = [self._truth(texts) for texts in kinds]

    def _truth(self, texts: list[str], rows: int = 1024) -> Tensor:
        """Which of the texts are true of which picture: bool (pictures, texts)."""
        needs, told = (torch.from_numpy(np.stack(part)).float() for part in zip(*map(claims, texts), strict=True))
        parts = zip(self.world.has.split(rows), self.world.seen.split(rows), strict=True)
        return torch.cat([truth(needs, told, has, seen) for has, seen in parts])

    def batch(self, rng, generator: torch.Generator, groups: int, device: str) -> tuple[Tensor, ...]:
        """`groups` groups of pictures with a caption each -> the arguments of `batch_loss` after the model."""
        rows = rng.choice(len(self.ids) // GROUP, groups, replace=False)
        rows = (rows[:, None] * GROUP + np.arange(GROUP)).ravel()
        pick = rng.integers(self.ids.shape[1], size=len(rows))
        take, pick = torch.from_numpy(rows), torch.from_numpy(pick)
        world = self.world
        right = truth(self.needs[take, pick].float(), self.told[take, pick].float(), world.has[take], world.seen[take])
        pixels = disturb(to_pixels(np.stack([world.pictures[r] for r in rows]), device), generator)
        kinds = [table[take].to(device) for table in self.asked]
        identity = torch.from_numpy(world.identity[rows]).to(device)
        return pixels, self.ids[take, pick].to(device), right.to(device), identity, self.short.to(device), kinds


def optimizers_of(model, rate: float) -> dict[str, torch.optim.Optimizer]:
    """Muon for the matrices inside, AdamW for the rest: ends, embeddings, norms."""
    inside, rest = muon.split(model, ("visual.conv1", "embedding", "text_projection"))
    return {
        "adam": torch.optim.AdamW(rest, rate, betas=(0.9, 0.99), weight_decay=0.0),
        "muon": muon.Muon(inside, 10 * rate, weight_decay=0.02),
    }


def train(
    out: Path, data: Path, tokenizer: Path | None = None, minutes: float = 25.0, size: int = SIZE, groups: int = 1500,
    batch: int = 12, rate: float = 1e-3, workers: int = 2, device: str | None = None, seed: int = 0,
    steps: int | None = None, start: Path | None = None, vae: Path | None = None, width: int = WIDTH,
) -> Path:  # fmt: skip
    """Train for `minutes` (or `steps`) in all, over as many calls as it takes; `out` is usable from the first minute.

    batch counts groups of eight pictures; `tokenizer` is a CLIPTokenizer's folder (by default the reader's own, made in
    `data`), `start` a folder whose weights to go on from, `vae` one of an autoencoder that half of the pictures go
    through first. The state lies in `data/clip-state.pt`, losses in `data/clip-log.jsonl`.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = tokenizer or reader_tokenizer(data / "tokenizer")
    tokenize = folder_tokenizer(tokenizer, _length(tokenizer))
    tokenize.length = _length(tokenizer)
    lessons = Lessons(cache_world(data / "world", groups, size, workers, str(vae) if vae else None), tokenize)
    config = model_config(size, tokenize.vocab_size, tokenize.eos_id, tokenize.length, width)
    torch.manual_seed(seed)
    model = build(config)
    if start:
        go_on_from(model, start, tokenizer)
    model = model.to(device).to(memory_format=torch.channels_last)
    optimizers = optimizers_of(model, rate)
    peaks = {name: optimizer.param_groups[0]["lr"] for name, optimizer in optimizers.items()}
    state_file, step, spent = data / "clip-state.pt", 0, 0.0
    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        for name, part in {"model": model, **optimizers}.items():
            part.load_state_dict(state[name])
        step, spent = state["step"], state["spent"]
    generator, rng = torch.Generator().manual_seed(seed + step), np.random.default_rng([seed, step])
    began = saved = time.monotonic()
    model.train()
    while True:
        now = time.monotonic()
        done = step / steps if steps else (spent + now - began) / (60 * minutes)
        if done >= 1 or now - saved > 60:
            _save_state(state_file, {"model": model, **optimizers}, step, spent + now - began)
            export(model, config, tokenizer, out)
            saved = now
            if done >= 1:
                break
        for name, peak in peaks.items():
            slow = min(1.0, (step + 1) / 100) * (0.5 + 0.5 * math.cos(math.pi * done))
            optimizers[name].param_groups[0]["lr"] = peak * slow
        pixels, *rest = lessons.batch(rng, generator, batch, device)
        with autocast(torch.device(device)), sdpa_kernel(SDPBackend.MATH):  # the fused one is slower backwards here
            loss, parts = batch_loss(model, pixels.contiguous(memory_format=torch.channels_last), *rest)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers.values():
            optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
        step += 1
        if step % 25 == 0 or step == 1:
            log_step(data / "clip-log.jsonl", step, (spent + time.monotonic() - began) / 60, loss.item(), parts)
    return out


def log_step(file: Path, step: int, minutes: float, loss: float, parts: dict[str, float]) -> None:
    """Print a row of the log and append it to the file."""
    row = {"step": step, "minutes": round(minutes, 2), "loss": round(loss, 4)} | {
        k: round(v, 4) for k, v in parts.items()
    }
    print(json.dumps(row), flush=True)
    with file.open("a") as log:
        log.write(json.dumps(row) + "\n")


def _length(tokenizer: Path) -> int:
    return int(json.loads((tokenizer / "tokenizer_config.json").read_text())["model_max_length"])


def _save_state(path: Path, parts: dict, step: int, spent: float) -> None:
    state = {name: part.state_dict() for name, part in parts.items()} | {"step": step, "spent": spent}
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


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
    scorer, captions = load_scorer(model), short_captions()
    cls = [CLASSES[i] for i in choose(images, captions["class"], scorer)]
    scene = [SCENES[i] for i in choose(images, captions["scene"], scorer)]
    x = scorer.image_features(images)
    colour = [_colour(row, c, scorer) for row, c in zip(x, cls, strict=True)]
    return list(zip(cls, colour, scene, strict=True))


def read_number(images, model=None) -> list[int]:
    """How many subjects Pocket CLIP sees in each picture, 0 to 3."""
    return choose(images, NUMBERS, model).tolist()


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
    model=None,
    n: int = 600,
    families: int = 60,
    seed: int = 10_000,
    concepts: Path | None = None,
    vae: Path | None = None,
) -> dict[str, float]:
    """The bars, on pictures that training never drew and combinations of class, colour and scene that it left out.

    Returns accuracies in [0, 1] (class, colour, scene; pattern, its colour, part and what is worn of subjects with
    marks; the number of subjects; both of two subjects present, each in its own colour; marks read on the shipped
    concepts' own pictures) and AUCs (random look-alikes; look-alike groups among the concepts in `concepts`, if there
    are two of one class). `vae` is the folder of an autoencoder that all pictures go through first.
    """
    from .. import marks  # which reads with this module

    scorer, rng = load_scorer(model), np.random.default_rng([seed, 78])
    draw = functools.partial(_draw, vae=str(vae) if vae else None)
    pictures = [_held_out_picture(rng) for _ in range(n)]
    seen = read(draw(pictures), scorer)
    wanted = [(p.subjects[0].cls, p.subjects[0].colour, p.scene) for p in pictures]
    hits = np.mean([[a == b for a, b in zip(s, w, strict=True)] for s, w in zip(seen, wanted, strict=True)], axis=0)
    result = dict(zip(("class", "colour", "scene"), hits.tolist(), strict=True))
    pictures = [_held_out_picture(rng, wide=True) for _ in range(n)]
    result |= marks.accuracy(draw(pictures), [p.subjects[0] for p in pictures], scorer)
    crowds = [sample(rng, n_subjects=1 + i % 2, allow_held_out=True) for i in range(n)]
    result["number"] = float(np.mean(np.array(read_number(draw(crowds), scorer)) == [len(p.subjects) for p in crowds]))
    duos = [p for p in (q for _ in range(n // 4) for q in swapped_pairs(rng, 1, marks=0.0)) if _readable_duo(p)]
    answers = [
        (read_pair(image, *(s.cls for s in p.subjects), scorer), [s.colour for s in p.subjects])
        for image, p in zip(draw(duos), duos, strict=True)
    ]
    result["both present"] = float(np.mean([a[0] for a, _ in answers]))
    result["own colours"] = float(np.mean([list(a[1:]) == colours for a, colours in answers]))
    groups = [look_alikes(rng, members=4, views=3) for _ in range(families)]
    x = scorer.image_features(draw([p for g in groups for p in g]))
    result["look-alike AUC"] = pair_auc(x, np.arange(len(x)) // 3, np.arange(len(x)) // 12)
    kept = marks.concept_marks(draw, scorer)
    result["concepts' marks"] = float(np.mean([hit for hits in kept.values() for hit in hits]))
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


def _draw(pictures: list[Picture], vae: str | None = None) -> list[Image.Image]:
    """Pictures of the world at 128 px, as drawn or as the autoencoder in the folder `vae` gives them back."""
    pixels = [draw_image(p) for p in pictures]
    if vae:
        torch.manual_seed(0)
        pixels = [
            back for start in range(0, len(pixels), 32) for back in through(codec(vae), pixels[start : start + 32])
        ]
    return [Image.fromarray(p) for p in pixels]


def _held_out_picture(rng, wide: bool = False) -> Picture:
    """A picture of one subject of a named colour; `wide` ones wear marks of out-domain concepts."""
    while True:
        subject, scene = sample_subject(rng), str(rng.choice(SCENES))
        if held_out(subject.cls, subject.colour, scene):
            return sample(rng, subjects=[decorated(rng, subject) if wide else subject], scene=scene)


def _readable_duo(picture: Picture) -> bool:
    """Two subjects, of different classes, both of a named colour, not the same one."""
    if len(picture.subjects) != 2:
        return False
    a, b = picture.subjects
    return a.cls != b.cls and None not in (a.colour, b.colour) and a.colour != b.colour and abs(a.x - b.x) > 0.22


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(prog="mixofshow_lite.pocket.clip", description="Train or measure Pocket CLIP.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("train", help="train, or go on training, for so many minutes in all")
    one.add_argument("--out", type=Path, default=Path("data/pocket/clip"), help="open_clip folder to write")
    one.add_argument("--data", type=Path, default=Path("runs/clip"), help="folder for drawn pictures, state and log")
    one.add_argument("--tokenizer", type=Path, help="CLIPTokenizer folder to copy; by default the reader's own words")
    one.add_argument("--start", type=Path, help="an open_clip folder of ours whose weights to go on from")
    one.add_argument("--vae", type=Path, help="an autoencoder's folder that half of the pictures go through")
    one.add_argument("--minutes", type=float, default=25.0)
    one.add_argument("--steps", type=int, help="stop after so many steps instead")
    one.add_argument("--size", type=int, default=SIZE, help="side of the pictures CLIP sees, a multiple of 32")
    one.add_argument("--width", type=int, default=WIDTH, help="channels of its first stage")
    one.add_argument("--groups", type=int, default=1500, help="groups of eight pictures to draw")
    one.add_argument("--batch", type=int, default=12, help="groups a step")
    one.add_argument("--rate", type=float, default=1e-3, help="learning rate")
    one.add_argument("--workers", type=int, default=2, help="processes that draw")
    one.add_argument("--device")
    two = commands.add_parser("measure", help="print the bars")
    two.add_argument("folder", nargs="?", default="pocket")
    two.add_argument("-n", type=int, default=600, help="held-out pictures")
    two.add_argument("--vae", type=Path, help="an autoencoder's folder that the pictures go through first")
    two.add_argument("--concepts", type=Path, default=data_dir() / "concepts", help="pictures of look-alike groups")
    args = vars(parser.parse_args(argv))
    if args.pop("command") == "train":
        train(**args)
    else:
        for name, value in measure(args["folder"], args["n"], concepts=args["concepts"], vae=args["vae"]).items():
            print(f"{name:16s} {value:.3f}")


if __name__ == "__main__":
    main()
