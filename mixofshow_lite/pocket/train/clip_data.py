"""What Pocket CLIP learns from: groups of pictures that are hard to tell apart, and which caption is true of which.

The reader knows more than the diffusion model does: it is trained on the *wide* world, whose subjects wear the
patterns and parts of out-domain concepts, and it has words for them ("a white rabbit in purple stripes with a yellow
horn"). A batch of this small world is full of captions that are true of several pictures ("a red cat" of three of
them), so contrastive learning with one right answer a row would punish right answers. Captions and pictures are
therefore turned into facts, and a caption is a positive for *every* picture it is true of:

    needs    (captions, 3, F)   what a caption says of each subject it mentions (class, colour, mood, pose, marks)
    has      (pictures, 3, F)   what is so of each subject in a picture
    told     (captions, G)      what a caption says of the whole (scene, light, number of subjects)
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

from ..captions import COUNTS, NOUNS, OPENINGS, PLACES, TIMES, article, caption
from ..svg import hsv
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
    sample_pose,
    sample_subject,
)  # fmt: skip
from .data import PARTS, PATTERNS
from .pretrain import autocast, to_image, to_tensor
from .tokens import build_tokenizer, known_words

TINTS = COLORS | {"teal": (0.505, 0.66, 0.62), "black": (0.69, 0.24, 0.19)}  # the reader's colours, as in COLORS
DRESS = {kind: "halves" if kind == "half" else kind for kind in PATTERNS}  # pattern -> its noun
POSES = ("waving", "with arms up")
BARE = {"pattern": "plain", "part": "with nothing", "worn": "wearing nothing"}  # facts: there is none
FACTS = [
    *CLASSES, *TINTS, *EXPRESSIONS, *POSES, *BARE.values(),
    *ACCESSORIES, *(f"{c} {a}" for a in ACCESSORIES for c in COLORS),
    *PATTERNS, *(f"{c} {p}" for p in PATTERNS for c in TINTS),
    *(f"a {p}" for p in PARTS), *(f"a {c} {p}" for p in PARTS for c in TINTS),
]  # fmt: skip
NUMBERS = ("no subject", "one subject", "two subjects", "three subjects")
WHOLE = [*SCENES, *LIGHTS, *(words[-1] for n, words in COUNTS.items() if n > 1), *NUMBERS]
GROUP = 8  # pictures of a group: four look-alikes twice, or four pairs of friends and the same with colours swapped
CAPTIONS = 5  # captions stored per picture: two of the world, two that name marks, one of the classes alone
LENGTH = 48  # tokens the reader's captions may have


def _any(names) -> str:
    """A regular expression for one of the names, the longest that fits."""
    return "(?:" + "|".join(sorted(map(re.escape, names), key=len, reverse=True)) + ")"


_PLACE = {phrase.split("the ", 1)[1]: scene for scene, phrases in PLACES.items() for phrase in phrases}
_WORN = rf"(?:an? )?(?:{_any(COLORS)} )?{_any(NOUNS.values())}\b"
_PART = rf"(?:an? )?(?:{_any(TINTS)} )?{_any(PARTS)}\b"
_MENTION = re.compile(
    rf"\b(?:an? (?:(?P<mood>{_any(EXPRESSIONS)}) )?(?:(?P<plain>plain) )?(?:(?P<colour>{_any(TINTS)}) )?"
    rf"(?P<cls>{_any(CLASSES)})|something(?P<bare> plain)?)\b"
    rf"(?: in (?P<dress>(?:{_any(TINTS)} )?{_any(DRESS.values())})\b)?"
    rf"(?: with (?P<parts>nothing|{_PART}(?: and {_PART})*))?"
    rf"(?: wearing (?P<worn>nothing|{_WORN}(?: and {_WORN})*))?(?: (?P<pose>{_any(POSES)}))?"
)


def colour_space(rgb) -> np.ndarray:
    """sRGB colours (..., 3) in [0, 1] -> OKLab (..., 3), in which distances are what an eye sees (Ottosson, 2020)."""
    rgb = np.asarray(rgb, float)
    linear = np.where(rgb > 0.04045, ((rgb + 0.055) / 1.055) ** 2.4, rgb / 12.92)
    cones = linear @ np.array([[0.4122, 0.2119, 0.0883], [0.5363, 0.6807, 0.2817], [0.0514, 0.1074, 0.6300]])
    return np.cbrt(cones) @ np.array([[0.2105, 1.9780, 0.0259], [0.7936, -2.4286, 0.7828], [-0.0041, 0.4506, -0.8087]])


_CENTRES = colour_space([hsv(*v) for v in TINTS.values()])  # (names, 3)


def colour_name(rgb, sure: float = 1.0) -> str | None:
    """The reader's name of a colour (r, g, b) in [0, 1]: the nearest of TINTS.

    sure   at most so many times as far away as the next name, else None; 1 always gives a name
    """
    distance = np.linalg.norm(_CENTRES - colour_space(rgb), axis=1)
    first, second = np.argsort(distance)[:2]
    return list(TINTS)[first] if distance[first] <= sure * distance[second] else None


def tint(rng, name: str, avoid=()) -> tuple[float, float, float]:
    """A colour that anybody calls `name`, wider than the world's own jitter, and unlike the colours in `avoid`."""
    h, s, v = TINTS[name]
    while True:
        spread = rng.uniform(-1, 1, 3) * (0.03, 0.12 * (s > 0.1), 0.1)
        rgb = hsv(h + spread[0], s + spread[1], v + spread[2])
        if colour_name(rgb, sure=0.7) == name and differs(rgb, avoid):
            return rgb


def differs(rgb, others, least: float = 0.16) -> bool:
    """Whether a mark of this colour shows on surfaces of those: `least` is a distance in OKLab."""
    return all(np.linalg.norm(colour_space(rgb) - colour_space(other)) > least for other in others)


def any_tint(rng, avoid=()) -> tuple[float, float, float]:
    """A colour with a name, unlike those in `avoid`."""
    names = [n for n, centre in TINTS.items() if differs(hsv(*centre), avoid, 0.2)]
    return tint(rng, str(rng.choice(names)), avoid)


def decorated(rng, who: Subject, beside=()) -> Subject:
    """A subject with out-domain marks at random, each of a colour that has a name and can be seen.

    beside   other colours that the marks shall differ from
    """
    who = replace(who, parts=[], pattern=None)
    if rng.random() < 0.7:
        kind = str(rng.choice(PATTERNS))
        who.pattern = (kind, any_tint(rng, [who.rgb, *beside]), float(rng.uniform(0.8, 1.2)))
    if who.is_character:
        for part in rng.choice(_free_parts(who), rng.choice(3, p=(0.3, 0.55, 0.15)), replace=False):
            if {"wings", "cape"} != {str(part), *(name for name, _ in who.parts)}:
                dark = [(0.14, 0.17, 0.24)] if part == "eyepatch" and who.cls == "robot" else []
                who.parts.append((str(part), any_tint(rng, [*([who.rgb] if part == "eyepatch" else []), *dark])))
    if rng.random() < 0.25:
        who.outline = float(rng.uniform(0.6, 1.9))
    return who


def _free_parts(who: Subject) -> list[str]:
    """Parts that nothing worn would hide."""
    worn = {name for name, *_ in who.accessories}
    hidden = {"horn", "antlers"} if worn & {"hat", "crown"} else set()
    return [part for part in PARTS if part not in hidden | ({"eyepatch"} if "glasses" in worn else set())]


def thing(noun: str, colour: str | None = None) -> str:
    """A part or accessory in words: "a yellow horn", "pink wings"."""
    words = f"{colour} {noun}" if colour else noun
    return words if noun in ("wings", "antlers", "glasses") else article(words)


def mention(
    cls: str | None = None, colour: str | None = None, mood: str | None = None, pattern=None, parts=None, worn=None,
    pose: str | None = None,
) -> str:  # fmt: skip
    """A subject in the reader's words: "a sad white rabbit in purple stripes with a yellow horn wearing a red hat".

    cls      None for "something", which then has neither mood nor colour
    pattern  (kind, colour name or None), or () to say that there is none
    parts, worn   [(name, colour name or None), ...], or [] to say that there are none
    """
    plain = "plain" if pattern == () else None
    text = (
        article(" ".join(w for w in (mood, plain, colour, cls) if w))
        if cls
        else " ".join(("something", plain or "")).strip()
    )
    if pattern:
        text += f" in {pattern[1]} {DRESS[pattern[0]]}" if pattern[1] else f" in {DRESS[pattern[0]]}"
    for word, things in (("with", parts), ("wearing", worn)):
        if things is not None:
            text += f" {word} " + (" and ".join(thing(*t) for t in things) or "nothing")
    return f"{text} {pose}" if pose else text


def body_colour(who: Subject) -> str | None:
    """The name of a subject's own colour, None if it is between two names."""
    return who.colour or colour_name(who.rgb, sure=0.6)


def mention_marks(who: Subject, rng, odds: float = 0.75) -> str:
    """A subject by some of its marks, each told with these odds."""

    def told(share: float = 1.0) -> bool:
        return rng.random() < odds * share

    pattern = parts = worn = None
    if who.pattern and told():
        pattern = (who.pattern[0], colour_name(who.pattern[1]) if told() else None)
    elif not who.pattern and told(0.3):
        pattern = ()
    if who.is_character:
        if who.parts and told():
            shown = who.parts if told() else who.parts[:1]
            parts = [(name, colour_name(rgb) if told() else None) for name, rgb in shown]
        elif not who.parts and told(0.15):
            parts = []
        if who.accessories and told(0.6):
            worn = [(name, colour if told(1.2) else None) for name, colour, _ in who.accessories]
        elif not who.accessories and told(0.15):
            worn = []
    mood = who.expression if who.is_character and told(0.3) else None
    return mention(who.cls, body_colour(who) if told() else None, mood, pattern, parts, worn)


def caption_marks(picture: Picture, rng) -> str:
    """One caption that names marks of every subject (of two or three: fewer of each)."""
    n = len(picture.subjects)
    names = [mention_marks(s, rng, (0.8, 0.55, 0.4)[n - 1]) for s in picture.subjects]
    rng.shuffle(names)
    where = f" {rng.choice(PLACES[picture.scene])}" if rng.random() < 0.6 else ""
    if not names:
        return str(rng.choice(OPENINGS)) + "the " + where.rsplit("the ", 1)[1] if where else NUMBERS[0]
    number = f", {NUMBERS[n]}" if rng.random() < 0.15 else ""
    return str(rng.choice(OPENINGS)) + " and ".join(names) + where + number


def _hot(names, alphabet: list[str]) -> np.ndarray:
    row = np.zeros(len(alphabet), np.uint8)
    row[[alphabet.index(name) for name in names]] = 1
    return row


def _claimed(found: re.Match) -> list[str]:
    """The facts of one mention."""
    names = [found[k] for k in ("mood", "colour", "cls", "pose") if found[k]]
    if found["plain"] or found["bare"]:
        names.append(BARE["pattern"])
    for *colour, noun in [found["dress"].split()] if found["dress"] else []:
        kind = next(k for k, word in DRESS.items() if word == noun)
        names += [kind, *(f"{c} {kind}" for c in colour)]
    for key, alphabet, tints, mark in (("parts", PARTS, TINTS, "a "), ("worn", NOUNS.values(), COLORS, "")):
        if found[key] == "nothing":
            names.append(BARE["part" if key == "parts" else "worn"])
        for colour, noun in re.findall(rf"(?:({_any(tints)}) )?({_any(alphabet)})\b", found[key] or ""):
            names += [f"{mark}{noun}", *([f"{mark}{colour} {noun}"] if colour else [])]
    return names


def claims(text: str) -> tuple[np.ndarray, np.ndarray]:
    """What a caption says -> needs (3, F), told (G,). Left, right and behind are not facts here."""
    needs = np.zeros((3, len(FACTS)), np.uint8)
    for row, found in zip(needs, _MENTION.finditer(text), strict=False):
        row[:] = _hot(_claimed(found), FACTS)
    told = [scene for noun, scene in _PLACE.items() if re.search(rf"\bthe {noun}\b", text)]
    told += [light for light, words in TIMES.items() if words and text.find(words) >= 0]
    told += [number for number in NUMBERS if number in text]
    friends = next((n for n, phrases in COUNTS.items() if any(words in text for words in phrases)), 0)
    if friends and (company := friends + int(needs.any(1).sum())) > 1:  # "a red cat and a friend" are two friends
        told.append(COUNTS[company][-1])
    return needs, _hot(told, WHOLE)


def subject_facts(s: Subject) -> list[str]:
    """What is so of a subject, as names of FACTS."""
    names = [s.cls, *([body_colour(s)] if body_colour(s) else [])]
    for name, colour, _ in s.accessories:
        names += [name, f"{colour} {name}"]
    for name, rgb in s.parts:
        names += [f"a {name}", f"a {colour_name(rgb)} {name}"]
    if s.pattern:
        names += [s.pattern[0], f"{colour_name(s.pattern[1])} {s.pattern[0]}"]
    marks = {"pattern": s.pattern, "part": s.parts, "worn": s.accessories}
    names += [bare for kind, bare in BARE.items() if not marks[kind]]
    if s.cls in CHARACTERS:
        raised = sum(a > 90 for a in s.arms)
        names += [s.expression, *POSES[raised - 1 : raised]] if raised else [s.expression]
    return names


def facts(picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """What is so of a picture -> has (3, F), seen (G,)."""
    has = np.zeros((3, len(FACTS)), np.uint8)
    for row, s in zip(has, picture.subjects, strict=False):
        row[:] = _hot(subject_facts(s), FACTS)
    n = len(picture.subjects)
    seen = [picture.scene, picture.light, NUMBERS[n]]
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
    identity: np.ndarray  # (n,) int64, -1 where the picture does not show exactly one subject
    has: Tensor  # (n, 3, F)
    seen: Tensor  # (n, G)


def look_alikes(rng, members: int = 4, views: int = 2) -> list[Picture]:
    """`members` subjects of one class, half of the time of one colour too, each in `views` pictures, most with marks.

    One in eight is of a colour that the diffusion model's world has no name for.
    """
    cls = str(rng.choice(CLASSES))
    colour = str(rng.choice(list(COLORS))) if rng.random() < 0.5 else "any"
    pictures = []
    for _ in range(members):
        who = sample_subject(rng, cls, colour)
        if rng.random() < 0.125:
            who = replace(who, colour=None, rgb=tint(rng, str(rng.choice(("teal", "black")))))
        elif who.colour and rng.random() < 0.5:
            who.rgb = tint(rng, who.colour)
        if rng.random() < 0.8:
            who = decorated(rng, who)
        pictures += [another_view(rng, who) for _ in range(views)]
    return pictures


def another_view(rng, who: Subject) -> Picture:
    """The same subject elsewhere: scene, light, place, size, pose and mood drawn anew, never a held-out combination."""
    who = replace(who, flip=bool(rng.random() < 0.5))
    if who.is_character:
        who = replace(who, arms=sample_pose(rng), expression=str(rng.choice(EXPRESSIONS)))
    picture = sample(rng, subjects=[who], scene=_allowed_scene(rng, [who]))
    if rng.random() < 0.3:  # sampled pictures and crops do not keep to the world's sizes
        picture.subjects[0].height = float(rng.uniform(0.55, 1.0))
    return picture


def swapped_pairs(rng, pairs: int = 4, marks: float = 0.5) -> list[Picture]:
    """Pictures of two or three subjects, each followed by one in which the first two have swapped colours.

    marks   share of the pictures whose subjects wear out-domain marks; of these half swap the patterns as well
    """
    pictures = []
    for _ in range(pairs):
        friends = [sample_subject(rng) for _ in range(2 if rng.random() < 0.8 else 3)]
        if rng.random() < marks:
            friends = [decorated(rng, who, [f.rgb for f in friends[:2]]) for who in friends]
        a, b, *rest = friends
        swap_patterns = rng.random() < 0.5
        first, second = (b.pattern, a.pattern) if swap_patterns else (a.pattern, b.pattern)
        swapped = [
            replace(a, colour=b.colour, rgb=b.rgb, pattern=first),
            replace(b, colour=a.colour, rgb=a.rgb, pattern=second),
            *rest,
        ]
        for who in (friends, swapped):
            picture = sample(rng, subjects=who, scene=_allowed_scene(rng, who))
            if marks and rng.random() < 0.25:  # a small second subject is a second subject
                picture.subjects[int(rng.integers(len(who)))].height *= float(rng.uniform(0.5, 0.8))
            pictures.append(picture)
    return pictures


def empty_scenes(rng, n: int = GROUP) -> list[Picture]:
    """Scenes with nobody in them."""
    pictures = [sample(rng, n_subjects=1) for _ in range(n)]
    return [replace(p, subjects=[]) for p in pictures]


def _allowed_scene(rng, subjects) -> str:
    free = [scene for scene in SCENES if not any(held_out(s.cls, s.colour, scene) for s in subjects)]
    return str(rng.choice(free))


def plain(picture: Picture) -> str:
    """The classes alone: "a cat and a mug". Colour and scene tell most captions apart; classes need their own."""
    return " and ".join(article(s.cls) for s in picture.subjects) or NUMBERS[0]


def write_captions(picture: Picture, rng) -> list[str]:
    """CAPTIONS captions of a picture, the last names the classes alone."""
    own = (
        [caption(picture, rng) for _ in range(2)]
        if picture.subjects
        else [caption_marks(picture, rng) for _ in range(2)]
    )
    return [*own, *(caption_marks(picture, rng) for _ in range(CAPTIONS - 3)), plain(picture)]


def reader_words() -> list[str]:
    """The words that the reader knows: those of the diffusion model's captions and those of the marks, sorted."""
    words = {*TINTS, *DRESS.values(), *PARTS, "plain", "something", "nothing", "with", "in", "wearing"}
    return sorted(words | {w for number in NUMBERS for w in number.split()} | set(known_words()))


def reader_tokenizer(folder: Path) -> Path:
    """The reader's own tokenizer, made in `folder` if there is none: the diffusion model's has no words for marks."""
    if not (folder / "tokenizer_config.json").is_file():
        build_tokenizer(folder, reader_words(), LENGTH)
    return folder


@functools.lru_cache(maxsize=1)
def codec(folder: str):
    """The autoencoder in `folder`, once a process, which then computes on one thread: others draw beside it."""
    torch.set_num_threads(1)
    vae = AutoencoderKL.from_pretrained(folder, local_files_only=True).float().eval()
    return vae.to(memory_format=torch.channels_last)


@torch.no_grad()
def through(vae, pictures) -> list[np.ndarray]:
    """Pictures as an autoencoder gives them back: uint8 (s, s, 3) each, s a multiple of 8."""
    x = to_tensor(np.stack(pictures), vae.device)
    with autocast(vae.device):
        return list(to_image(vae.decode(vae.encode(x).latent_dist.sample()).sample))


def draw_group(seed: int):
    """One group from its own seed -> pictures (GROUP, 128, 128, 3), captions, has, seen, identity."""
    rng = np.random.default_rng([seed, 77])
    kind = rng.choice(3, p=(0.64, 0.33, 0.03))
    pictures = (look_alikes, swapped_pairs, empty_scenes)[kind](rng)
    words = [write_captions(p, rng) for p in pictures]
    has, seen = (np.stack(rows) for rows in zip(*map(facts, pictures), strict=True))
    identity = seed * GROUP + np.arange(GROUP) // 2 if kind == 0 else np.full(GROUP, -1)
    return np.stack([draw_image(p) for p in pictures]), words, has, seen, identity


def shrink(pictures, size: int) -> np.ndarray:
    """Pictures as the scorer's preprocessing reduces them -> uint8 (n, size, size, 3)."""
    small = [Image.fromarray(p) for p in pictures]
    return np.stack(
        [np.asarray(p if p.width == size else p.resize((size, size), Image.Resampling.BICUBIC)) for p in small]
    )


def draw_world(folder: Path, groups: int, workers: int = 1) -> Path:
    """Draw `groups` groups once into `folder`/pictures.npy at 128 px, with captions and facts beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    about, stamp = {"version": 3, "groups": groups, "facts": FACTS, "whole": WHOLE}, folder / "about.json"
    if stamp.exists() and json.loads(stamp.read_text()) == about:
        return folder
    stamp.unlink(missing_ok=True)
    pixels = np.lib.format.open_memmap(folder / "pictures.npy", "w+", np.uint8, shape=(groups * GROUP, 128, 128, 3))
    rest = []
    with ProcessPoolExecutor(workers) as pool:
        drawn = pool.map(draw_group, range(groups), chunksize=8)
        for g, (picture, *other) in enumerate(tqdm(drawn, total=groups, desc="Pocket CLIP's pictures", unit="group")):
            pixels[g * GROUP : (g + 1) * GROUP] = picture
            rest.append(other)
    words, has, seen, identity = zip(*rest, strict=True)
    pixels.flush()
    (folder / "captions.json").write_text(json.dumps([c for group in words for c in group]))
    arrays = {"has": has, "seen": seen, "identity": identity}
    np.savez_compressed(folder / "facts.npz", **{k: np.concatenate(v) for k, v in arrays.items()})
    stamp.write_text(json.dumps(about))
    return folder


def cache_world(folder: Path, groups: int, size: int, workers: int = 1, vae: str | None = None) -> World:
    """The groups in `folder`, drawn if they are not there, at `size` pixels.

    vae     folder of an autoencoder that half of the pictures go through: the reader reads what a decoder wrote, and
            must not take its blur for another class
    """
    draw_world(folder, groups, workers)
    pictures = np.load(folder / "pictures.npy", mmap_mode="r")
    if vae or size != 128:
        pictures = _prepared(folder / f"pictures-{size}{'-decoded' if vae else ''}.npy", pictures, size, vae)
    stored = np.load(folder / "facts.npz")
    has, seen = torch.from_numpy(stored["has"]).float(), torch.from_numpy(stored["seen"]).float()
    return World(pictures, json.loads((folder / "captions.json").read_text()), stored["identity"], has, seen)


def _prepared(file: Path, pictures: np.ndarray, size: int, vae: str | None, batch: int = 64) -> np.ndarray:
    """`pictures` at another size, every second of a shuffle through the autoencoder, kept in `file`."""
    about, stamp = {"n": len(pictures), "vae": vae}, file.with_suffix(".json")
    if not (stamp.exists() and json.loads(stamp.read_text()) == about):
        out = np.lib.format.open_memmap(file, "w+", np.uint8, shape=(len(pictures), size, size, 3))
        soft = np.random.default_rng(5).permutation(len(pictures)) % 2 == 0
        torch.manual_seed(5)
        for start in tqdm(range(0, len(pictures), batch), desc="decoded" if vae else "reduced", unit="batch"):
            chunk = np.array(pictures[start : start + batch])
            here = np.flatnonzero(soft[start : start + batch])
            if vae and len(here):
                chunk[here] = through(codec(vae), chunk[here])
            out[start : start + batch] = shrink(chunk, size)
        out.flush()
        stamp.write_text(json.dumps(about))
    return np.load(file, mmap_mode="r")
