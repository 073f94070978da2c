"""Pictures, masks, captions and lists as people have them: most are odd, some are broken."""

import json
import os
import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

SIZES = [*[(64, 64)] * 12, (96, 64), (40, 64), (33, 400), (31, 64), (1, 1)]
MODES = ["RGB", "RGB", "L", "1", "LA", "RGBA", "P", "CMYK", "YCbCr", "I;16", "I", "F"]
SUFFIXES = {"CMYK": [".jpg", ".tif"], "YCbCr": [".jpg"], "I": [".tif"], "F": [".tif"], "I;16": [".png", ".tif"]}
NAMES = ["a", "IMG_1", "b.c", "caf\u00e9", "cafe\u0301", "two words", "\U0001f431", "-x", "a_mask", "00"]
TEXTS = [
    *["a <TOK>"] * 20,
    "a <tok> on a sofa",
    "a cat",
    "",
    " \n ",
    "<TOK>\nand more",
    "caf\u00e9 <TOK>",
    "<TOK> " * 300,
]
ODD = [None, "", 3, True, ["a"], {"a": 1}, "nothing.png", "../a.png", "/etc/hostname", "a\0b", "x" * 3000, "\u2028"]


def numbers(rng: random.Random, mode: str, size: tuple[int, int]) -> Image.Image:
    """A picture of that mode with random pixels, all alike or noisy; some numbers are none."""
    seed = np.random.default_rng(rng.randrange(2**32))
    shape = size[::-1]
    if mode == "F":
        top = rng.choice([1, 1.5, 255, 1e9, np.nan])
        return Image.fromarray((seed.random(shape) * top).astype(np.float32))
    if mode in ("I", "I;16"):
        top = rng.choice([2, 256, 65536])
        return Image.fromarray(seed.integers(0, top, shape).astype(np.int32 if mode == "I" else np.uint16))
    noise = Image.fromarray(seed.integers(0, 256, (*shape, 4), dtype=np.uint8))
    return noise.convert("RGB").convert(mode) if mode in ("P", "CMYK", "YCbCr") else noise.convert(mode)


def write_picture(rng: random.Random, file: Path) -> Path:
    """A picture of a random mode and size at `file`, with a suffix that fits; sometimes turned, cut or overwritten."""
    mode = rng.choice(MODES)
    suffixes = SUFFIXES.get(mode) or [".png", ".png", ".jpg" if mode in ("RGB", "L") else ".png", ".tif", ".gif"]
    file = file.with_name(file.name + rng.choice(suffixes))
    exif = Image.Exif()
    exif[0x0112] = rng.choice([1, 1, 3, 6, 8, 0, 99])
    numbers(rng, mode, rng.choice(SIZES)).save(file, exif=exif)
    damage(rng, file)
    return file


def damage(rng: random.Random, file: Path) -> None:
    """Leave a file as it is, mostly; or cut it, change bytes of it, or write something else."""
    data = bytearray(file.read_bytes())
    kind = rng.randrange(40)
    if kind == 0:
        data = data[: rng.randrange(len(data))]
    elif kind == 1:
        for _ in range(20):
            data[rng.randrange(len(data))] = rng.randrange(256)
    elif kind == 2:
        data = rng.choice([b"", b"<html>", b"GIF89a", b"\x89PNG\r\n\x1a\n", b"II*\0\x08\0\0\0", os.urandom(50)])
    file.write_bytes(bytes(data))


def mask_array(rng: random.Random, size: tuple[int, int]) -> np.ndarray:
    """(H, W) of a mask as some program might hold it."""
    inside = np.zeros(size[::-1])
    inside[: rng.randrange(1, size[1] + 1), : rng.randrange(1, size[0] + 1)] = 1
    label = rng.choice([0, 1, 1, 2, 15, 255, 255, 300, -1])
    kind = rng.choice([np.uint8, np.uint8, np.uint16, np.int64, np.float32, np.float64, bool])
    mask = inside * label
    if rng.random() < 0.3:
        mask[0] = rng.choice([3, 255, 0.5, 7])
    if rng.random() < 0.1 and kind in (np.float32, np.float64):
        mask[0, 0] = rng.choice([np.nan, np.inf])
    with np.errstate(invalid="ignore"):
        return mask.astype(np.int64).astype(kind) if kind not in (np.float32, np.float64, bool) else mask.astype(kind)


def write_mask(rng: random.Random, file: Path) -> None:
    """A mask at `file`, right, of another size or kind, or damaged."""
    size = rng.choice([(64, 64), (64, 64), (32, 32), (96, 64), (64, 96)])
    values = mask_array(rng, size)
    if values.dtype.kind in "if" or values.dtype == np.uint16:
        values = np.nan_to_num(values, posinf=9).astype(rng.choice([np.uint8, np.int32, np.float32]))
    suffix = ".tif" if values.dtype in (np.int32, np.float32) else ".png"
    Image.fromarray(values).save(file.with_name(file.name + suffix))
    damage(rng, file.with_name(file.name + suffix))


def write_text(rng: random.Random, file: Path) -> None:
    """A caption in a random encoding."""
    encoding = rng.choice([*["utf-8"] * 9, "utf-8-sig", "utf-16", "utf-32", "cp1252"])
    file.write_bytes(rng.choice(TEXTS).encode(encoding, errors="replace"))


def row(rng: random.Random, name: str) -> object:
    """A row of metadata.jsonl."""
    entry = {"file_name": name, "caption": rng.choice(TEXTS)}
    for field in ("file_name", "caption", "text", "mask", "class_word"):
        if rng.random() < 0.03:
            entry[field] = rng.choice(ODD)
    if rng.random() < 0.05:
        return rng.choice([None, 3, [entry], "a.png", {}])
    return entry


def write_metadata(rng: random.Random, folder: Path, names: list[str]) -> None:
    """metadata.jsonl or metadata.csv on these pictures, with odd rows, and sometimes no text at all."""
    rows = [row(rng, name) for name in names]
    lines = [json.dumps(entry, ensure_ascii=rng.random() < 0.5) for entry in rows]
    if rng.random() < 0.1:
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(["{", "[" * 100_000, "9" * 5000, "\0", "\u2028", "NaN"]))
    if rng.random() < 0.3:
        fields = rng.choice(["file_name,text", "file_name,caption,mask", "name,text", '"file_name'])
        (folder / "metadata.csv").write_text("\n".join([fields, *(f"{name},a <TOK>" for name in names)]))
    else:
        (folder / "metadata.jsonl").write_text("\n".join(lines), encoding=rng.choice(["utf-8", "utf-16"]))
    if rng.random() < 0.1:
        (folder / "metadata.jsonl").write_bytes(rng.choice([b"", b"\xff\xfe", b"\xe9", os.urandom(30)]))


def oddities(rng: random.Random, folder: Path) -> None:
    """What else lies in people's folders."""
    things: list[Callable[[], object]] = [
        lambda: (folder / "Thumbs.db").write_bytes(b"\0\0"),
        lambda: (folder / ".hidden.png").write_bytes(b""),
        lambda: (folder / "README.md").write_text("<TOK>"),
        lambda: (folder / "notes.txt").write_text("about <TOK>"),
        lambda: (folder / "video.mov").write_bytes(b"\0"),
        lambda: (folder / "dead.png").symlink_to(folder / "nowhere.png"),
        lambda: os.mkfifo(folder / "pipe.png"),
        lambda: (folder / "folder.png").mkdir(),
        lambda: (folder / "metadata.json").write_text("[]"),
        lambda: write_picture(rng, folder / "10_cat" / "x"),
        lambda: write_mask(rng, folder / "masks" / "orphan"),
        lambda: (folder / "masks" / "a.txt").write_text("x"),
    ]
    (folder / "10_cat").mkdir(exist_ok=True)
    (folder / "masks").mkdir(exist_ok=True)
    for thing in rng.sample(things, rng.randrange(4)):
        thing()


def write_folder(rng: random.Random, folder: Path) -> None:
    """A concept folder: a few pictures, some with captions and masks under various names, and oddities."""
    oddities(rng, folder)
    names = []
    for name in rng.sample(NAMES, rng.choice([0, 1, 2, 2, 3, 4, 5])):
        file = write_picture(rng, folder / name)
        names.append(file.name)
        if rng.random() < 0.7:
            write_text(rng, folder / (rng.choice([name, file.name]) + rng.choice([".txt", ".TXT", ".caption"])))
        if rng.random() < 0.5:
            place = rng.choice([folder, folder / "masks", folder / "mask"])
            place.mkdir(exist_ok=True)
            write_mask(rng, place / (rng.choice([name, file.name]) + ("_mask" if place == folder else "")))
    if names and rng.random() < 0.3:
        write_metadata(rng, folder, names)
