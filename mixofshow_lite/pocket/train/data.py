"""Pictures for pretraining: Pocket World rendered once, on all cores, into pixels, captions, parameters."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np

from ...files.writing import write_text
from .. import captions, world
from ..characters import CHARACTERS
from ..concepts import CONCEPTS
from ..svg import rasterise
from .anatomy import LATENT

PATTERNS = ("stripes", "bands", "spots", "checks", "stars", "half")
PARTS = ("wings", "cape", "horn", "moustache", "eyepatch", "star", "antlers")
CAPTIONS_EACH = 8
COUNTS = (0.6, 0.34, 0.06)  # of pictures with one, two, three subjects
COMPANY = (0.45, 0.5, 0.05)  # the same of the pictures in company


def decorate(rng, subject, odds: float = 0.5):
    """Out-domain marks at random: a pattern with these odds, of a character up to two parts."""
    if rng.random() < odds:
        tint = world.sample_colour(rng, str(rng.choice(list(world.COLORS))))
        subject.pattern = (str(rng.choice(PATTERNS)), tint, float(rng.uniform(0.8, 1.3)))
    if subject.cls in CHARACTERS:
        for part in rng.choice(PARTS, rng.integers(0, 3), replace=False):
            subject.parts.append((str(part), world.sample_colour(rng, str(rng.choice(list(world.COLORS))))))
    if rng.random() < 0.2:
        subject.outline = float(rng.uniform(0.4, 2.2))


def make_odd(rng, subject):
    """Marks at random, at least one, which captions call "odd"; never those of a concept that ships.

    So the U-Net has seen that there are stripes and wings, as Stable Diffusion has, but no word says which: a concept's
    own are for tuning to find.
    """
    taken = {marks(spec) for spec in CONCEPTS.values()}
    while not (subject.pattern or subject.parts) or marks(subject) in taken:
        subject.pattern, subject.parts = None, []
        decorate(rng, subject, 0.85)
    subject.odd = True


def marks(subject) -> tuple:
    """The class, pattern and parts by name, of a subject or of a concept's `Spec`."""
    return subject.cls, subject.pattern and subject.pattern[0], *sorted(name for name, _ in subject.parts)


def is_odd(index: int) -> bool:
    """Whether the subjects of picture `index` are odd ones, where they are not `wide` all the same."""
    return index % 5 < 2


def draw(seed: int, index: int, wide: bool) -> tuple[world.Picture, list[str]]:
    """Picture `index` of the stream `seed`, not rendered yet, and its captions.

    wide    with out-domain marks at random, for the autoencoder: a general codec, not to be the bottleneck of identity;
            else every second picture is one `in_company`, and in two of five the subjects are odd ones
    """
    rng = np.random.default_rng([seed, index])
    odd = is_odd(index) and not wide
    if index % 2 and not wide:
        return in_company(rng, odd)
    picture = world.sample(rng, n_subjects=1 + int(rng.choice(3, p=COUNTS)))
    for subject in picture.subjects:
        if wide:
            decorate(rng, subject)
        if odd:
            make_odd(rng, subject)
    return picture, [captions.caption(picture, rng) for _ in range(CAPTIONS_EACH)]


def in_company(rng, odd: bool = False) -> tuple[world.Picture, list[str]]:
    """A picture with more characters, of which two mostly stand apart and are often captioned as a region's prompt is
    ("a red cat on the left and a friend"), and its captions; all of them odd or none."""
    n, people, apart = 1 + int(rng.choice(3, p=COMPANY)), rng.random() < 0.6, rng.random() < 0.7
    scene, subjects = str(rng.choice(world.SCENES)), []
    while len(subjects) < n:
        subject = world.sample_subject(rng, str(rng.choice(CHARACTERS)) if people else None)
        if not world.held_out(subject.cls, subject.colour, scene):
            subjects.append(subject)
    picture = world.sample(rng, subjects=subjects, scene=scene, apart=apart)
    for subject in picture.subjects:
        if odd:
            make_odd(rng, subject)
    return picture, [captions.caption(picture, rng, company=True) for _ in range(CAPTIONS_EACH)]


def cells(picture: world.Picture, size: int = LATENT) -> np.ndarray:
    """How much of each latent cell the subjects cover: uint8 (size, size), 255 is all of it."""
    groups = [world.draw_subject(subject, f"s{i}") for i, subject in enumerate(picture.subjects)]
    cover = rasterise(groups, 4 * size)[..., 3].astype(np.float32)
    return cover.reshape(size, 4, size, 4).mean((1, 3)).round().astype(np.uint8)


def _chunk(args):
    file, seed, wide, start, stop = args
    images = np.lib.format.open_memmap(file, mode="r+")
    rows, covers = [], []
    for index in range(start, stop):
        picture, texts = draw(seed, index, wide)
        images[index] = world.draw_image(picture)
        covers.append(cells(picture))
        rows.append(json.dumps({"captions": texts, "picture": asdict(picture)}))
    return rows, np.stack(covers)


def render_cache(folder, n: int, seed: int = 0, wide: bool = False, workers: int | None = None) -> Path:
    """Render `n` pictures to folder/images.npy (n, 128, 128, 3), what their subjects cover to folder/cells.npy
    (n, 16, 16) and their captions and parameters to folder/pictures.jsonl; done already, it returns.

    wide    see `draw`
    """
    folder = Path(folder)
    file, done = folder / "images.npy", folder / "pictures.jsonl"
    if done.exists() and (folder / "cells.npy").exists():  # older caches have none
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    np.lib.format.open_memmap(file, mode="w+", dtype=np.uint8, shape=(n, 128, 128, 3)).flush()
    jobs = [(file, seed, wide, a, min(a + 250, n)) for a in range(0, n, 250)]
    with ProcessPoolExecutor(workers or os.cpu_count()) as pool:
        chunks = list(pool.map(_chunk, jobs))
    rows = [row for chunk, _ in chunks for row in chunk]
    np.save(folder / "cells.npy", np.concatenate([covers for _, covers in chunks]))
    write_text(done, "\n".join(rows))
    return folder


def load_cache(folder) -> tuple[np.ndarray, list[dict]]:
    """-> (images (n, 128, 128, 3) uint8 memory map, one dict a picture with "captions" and "picture")."""
    folder = Path(folder)
    rows = [json.loads(row) for row in (folder / "pictures.jsonl").read_text().splitlines()]
    return np.load(folder / "images.npy", mmap_mode="r"), rows
