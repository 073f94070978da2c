"""What Pocket CLIP learns from: groups of pictures that are hard to tell apart, and which caption is true of which.

A batch of this small world is full of captions that are true of several pictures ("a red cat" of three of them), so
contrastive learning with one right answer a row would punish right answers. Captions and pictures are therefore turned
into facts, and a caption is a positive for *every* picture it is true of:

    needs    (captions, 3, F)   what a caption says of each subject it mentions (class, colour, mood, pose, clothes)
    has      (pictures, 3, F)   what is so of each subject in a picture
    told     (captions, G)      what a caption says of the whole (scene, light, number of friends)
    seen     (pictures, G)      what is so of the whole
"""

import functools
import json
import re
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from ..captions import COUNTS, NOUNS, PLACES, TIMES, article, caption
from ..world import (
    ACCESSORIES,
    CHARACTERS,
    CLASSES,
    COLORS,
    EXPRESSIONS,
    LIGHTS,
    SCENES,
    Picture,
    Subject,
    draw_image,
    held_out,
    sample,
    sample_colour,
    sample_pose,
    sample_subject,
)
from .pretrain import to_image, to_tensor

POSES = ("waving", "with arms up")
FACTS = [*CLASSES, *COLORS, *EXPRESSIONS, *POSES, *(f"{c} {a}" for a in ACCESSORIES for c in COLORS)]
WHOLE = [*SCENES, *LIGHTS, *(words[-1] for n, words in COUNTS.items() if n > 1)]
GROUP = 8  # pictures of a group: four look-alikes twice, or four pairs of friends and the same with colours swapped
CAPTIONS = 4  # captions stored per picture

_PLACE = {phrase.split("the ", 1)[1]: scene for scene, phrases in PLACES.items() for phrase in phrases}
_WORN = rf"(?:an? )?(?:{'|'.join(COLORS)}) (?:{'|'.join(NOUNS.values())})"
_MENTION = re.compile(
    rf"\ban? (?:(?P<mood>{'|'.join(EXPRESSIONS)}) )?(?:(?P<colour>{'|'.join(COLORS)}) )?(?P<cls>{'|'.join(CLASSES)})\b"
    rf"(?: wearing (?P<worn>{_WORN}(?: and {_WORN})*))?(?: (?P<pose>{'|'.join(POSES)}))?"
)


def _hot(names, alphabet: list[str]) -> np.ndarray:
    row = np.zeros(len(alphabet), np.uint8)
    row[[alphabet.index(name) for name in names]] = 1
    return row


def claims(text: str) -> tuple[np.ndarray, np.ndarray]:
    """What a caption of the world says -> needs (3, F), told (G,). Left, right and behind are not facts here."""
    needs = np.zeros((3, len(FACTS)), np.uint8)
    for row, found in zip(needs, _MENTION.finditer(text), strict=False):
        worn = re.findall(rf"({'|'.join(COLORS)}) ({'|'.join(NOUNS.values())})", found["worn"] or "")
        names = [found[k] for k in ("mood", "colour", "cls", "pose") if found[k]] + [f"{c} {a}" for c, a in worn]
        row[:] = _hot(names, FACTS)
    told = [scene for noun, scene in _PLACE.items() if re.search(rf"\bthe {noun}\b", text)]
    told += [light for light, words in TIMES.items() if words and text.find(words) >= 0]
    friends = next((n for n, phrases in COUNTS.items() if any(words in text for words in phrases)), 0)
    if friends and (company := friends + int(needs.any(1).sum())) > 1:  # "a red cat and a friend" are two friends
        told.append(COUNTS[company][-1])
    return needs, _hot(told, WHOLE)


def facts(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """What is so of a picture -> has (3, F), seen (G,)."""
    has = np.zeros((3, len(FACTS)), np.uint8)
    for row, s in zip(has, picture.subjects, strict=False):
        names = [s.cls, *([s.colour] if s.colour else []), *(f"{colour} {name}" for name, colour, _ in s.accessories)]
        if s.cls in CHARACTERS:
            raised = sum(a > 90 for a in s.arms)
            names += [s.expression, *POSES[raised - 1 : raised]] if raised else [s.expression]
        row[:] = _hot(names, FACTS)
    seen, n = [picture.scene, picture.light], len(picture.subjects)
    if n > 1 and all(s.cls in CHARACTERS for s in picture.subjects):
        seen.append(COUNTS[n][-1])
    return has, _hot(seen, WHOLE)


def truth(needs: Tensor, told: Tensor, has: Tensor, seen: Tensor) -> Tensor:
    """Which caption is true of which picture -> bool (pictures, captions): each mention holds of some subject."""
    asked = needs.sum(-1)  # (captions, 3)
    met = torch.einsum("cmf,psf->pcms", needs, has) >= asked[None, :, :, None]
    whole = seen @ told.T >= told.sum(-1)
    return met.any(-1).all(-1) & whole


@dataclass
class World:
    """A cache of pictures for contrastive learning, `GROUP` neighbours form a group."""

    pictures: np.ndarray  # (n, size, size, 3) uint8
    captions: list[list[str]]  # (n, CAPTIONS)
    identity: np.ndarray  # (n,) int64, -1 where the picture shows several subjects
    has: Tensor  # (n, 3, F)
    seen: Tensor  # (n, G)


def look_alikes(rng, members: int = 4, views: int = 2) -> list[Picture]:
    """`members` subjects of one class, half of the time of one colour too, each in `views` pictures.

    About two in three wear a pattern, an extra part or a thick outline that the pretraining world lacks, as the
    out-domain concepts do.
    """
    cls = str(rng.choice(CLASSES))
    colour = str(rng.choice(list(COLORS))) if rng.random() < 0.5 else "any"
    pictures = []
    for _ in range(members):
        who = sample_subject(rng, cls, colour)
        if rng.random() < 0.45:
            kind = str(rng.choice(("stripes", "bands", "spots", "checks", "stars", "half")))
            who.pattern = (kind, sample_colour(rng, str(rng.choice(list(COLORS)))), float(rng.uniform(0.8, 1.3)))
        if rng.random() < 0.4:
            part = str(rng.choice(("wings", "cape", "horn", "moustache", "eyepatch", "star", "antlers")))
            who.parts = [(part, sample_colour(rng, str(rng.choice(list(COLORS)))))]
        if rng.random() < 0.15:
            who.outline = float(rng.uniform(1.6, 2.4))
        pictures += [another_view(rng, who) for _ in range(views)]
    return pictures


def another_view(rng, who: Subject) -> Picture:
    """The same subject elsewhere: scene, light, place, size, pose and mood drawn anew, never a held-out combination."""
    who = replace(who, flip=bool(rng.random() < 0.5))
    if who.is_character:
        who = replace(who, arms=sample_pose(rng), expression=str(rng.choice(EXPRESSIONS)))
    return sample(rng, subjects=[who], scene=_allowed_scene(rng, [who]))


def swapped_pairs(rng, pairs: int = 4) -> list[Picture]:
    """Pictures of two or three subjects, each followed by one in which the first two have swapped colours."""
    pictures = []
    for _ in range(pairs):
        friends = [sample_subject(rng) for _ in range(2 if rng.random() < 0.8 else 3)]
        a, b, *rest = friends
        swapped = [replace(a, colour=b.colour, rgb=b.rgb), replace(b, colour=a.colour, rgb=a.rgb), *rest]
        pictures += [sample(rng, subjects=who, scene=_allowed_scene(rng, who)) for who in (friends, swapped)]
    return pictures


def _allowed_scene(rng, subjects) -> str:
    free = [scene for scene in SCENES if not any(held_out(s.cls, s.colour, scene) for s in subjects)]
    return str(rng.choice(free))


def plain(picture: Picture) -> str:
    """The classes alone: "a cat and a mug". Colour and scene tell most captions apart; classes need their own."""
    return " and ".join(article(s.cls) for s in picture.subjects)


@functools.lru_cache(maxsize=1)
def codec(folder: str):
    """The autoencoder in `folder`, once a process, which then computes on one thread: others draw beside it."""
    torch.set_num_threads(1)
    return AutoencoderKL.from_pretrained(folder, local_files_only=True).float().eval()


@torch.no_grad()
def through(vae, pictures: list[np.ndarray]) -> list[np.ndarray]:
    """Pictures as an autoencoder gives them back: uint8 (s, s, 3) each, s a multiple of 8."""
    x = to_tensor(np.stack(pictures), vae.device)
    return list(to_image(vae.decode(vae.encode(x).latent_dist.sample()).sample))


def draw_group(seed: int, size: int, vae: str | None = None):
    """One group from its own seed -> pictures (GROUP, size, size, 3), captions, has, seen, identity.

    vae     folder of an autoencoder that half of the pictures go through: the reader reads what a decoder wrote, and
            must not take its blur for another class
    """
    rng = np.random.default_rng([seed, 77])
    single = rng.random() < 0.65
    pictures = look_alikes(rng) if single else swapped_pairs(rng)
    pixels = [draw_image(p) for p in pictures]
    if vae:
        soft = np.flatnonzero(rng.random(GROUP) < 0.5)
        torch.manual_seed(seed)
        back = through(codec(vae), [pixels[i] for i in soft]) if len(soft) else []
        for i, pixel in zip(soft, back, strict=True):
            pixels[i] = pixel
    # drawn at 128 and reduced as the scorer's preprocessing does, so that training sees what evaluation sees
    pixels = [Image.fromarray(p).resize((size, size), Image.Resampling.BICUBIC) for p in pixels]
    words = [[*(caption(p, rng) for _ in range(CAPTIONS - 1)), plain(p)] for p in pictures]
    has, seen = (np.stack(rows) for rows in zip(*map(facts, pictures), strict=True))
    identity = seed * GROUP + np.arange(GROUP) // 2 if single else np.full(GROUP, -1)
    return np.stack([np.asarray(p) for p in pixels]), words, has, seen, identity


def cache_world(folder: Path, groups: int, size: int, workers: int = 1, vae: str | None = None) -> World:
    """Draw `groups` groups once and keep them in `folder`; later calls open what is there if it is the same size.

    vae     see `draw_group`
    """
    folder.mkdir(parents=True, exist_ok=True)
    about = {"version": 2, "groups": groups, "size": size, "facts": FACTS, "whole": WHOLE, "vae": vae}
    stamp = folder / "about.json"
    if not stamp.exists() or json.loads(stamp.read_text()) != about:
        stamp.unlink(missing_ok=True)
        pixels = np.lib.format.open_memmap(
            folder / "pictures.npy", "w+", np.uint8, shape=(groups * GROUP, size, size, 3)
        )
        rest = []
        with ProcessPoolExecutor(workers) as pool:
            drawn = pool.map(draw_group, range(groups), [size] * groups, [vae] * groups, chunksize=8)
            for g, (picture, *other) in enumerate(
                tqdm(drawn, total=groups, desc="Pocket CLIP's pictures", unit="group")
            ):
                pixels[g * GROUP : (g + 1) * GROUP] = picture
                rest.append(other)
        words, has, seen, identity = zip(*rest, strict=True)
        pixels.flush()
        (folder / "captions.json").write_text(json.dumps([c for group in words for c in group]))
        arrays = {"has": has, "seen": seen, "identity": identity}
        np.savez_compressed(folder / "facts.npz", **{k: np.concatenate(v) for k, v in arrays.items()})
        stamp.write_text(json.dumps(about))
    stored = np.load(folder / "facts.npz")
    has, seen = torch.from_numpy(stored["has"]).float(), torch.from_numpy(stored["seen"]).float()
    captions = json.loads((folder / "captions.json").read_text())
    return World(np.load(folder / "pictures.npy", mmap_mode="r"), captions, stored["identity"], has, seen)
