"""What may stand behind an option, and what can be said of it before anything slow is imported.

The check of a command reads names and small JSON files only; torch and diffusers, which take many seconds to import,
come after it.
"""

import argparse
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

DTYPES = ("float32", "float16", "bfloat16")
CONCEPT_WORD = re.compile(r"<[^<>\s|]+>")  # as files.concept.WORD, which is slow to import
LORA_FILES = (".safetensors", ".pth", ".pt", ".ckpt", ".bin")


def whole(least: int, most: int = 2**53) -> Callable[[str], int]:
    """An argparse type: a whole number of at least `least`."""

    def read(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = least - 1
        if not least <= number <= most:
            limits = f"of at least {least}" if number < least else f"of at most {most}"
            raise argparse.ArgumentTypeError(f"{text!r} is no whole number {limits}")
        return number

    return read


def number(least: float, most: float) -> Callable[[str], float]:
    """An argparse type: a number between two others."""

    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:  # nan is not
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {least:g} to {most:g}")
        return value

    return read


def numbers(text: str) -> list[float]:
    """An argparse type: "1,0.5" -> [1.0, 0.5]."""
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(map(math.isfinite, values)):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of numbers like 1,0.5")
    return values


def ridge(text: str) -> float | str:
    """An argparse type: "auto" or a number from 0."""
    try:
        return "auto" if text == "auto" else number(0, 1e6)(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither auto nor a number of at least 0") from None


def size(text: str) -> tuple[int, int]:
    """An argparse type: "512" or "768x512", which is width x height -> (height, width)."""
    found = re.fullmatch(r"(\d{1,5})(?:x(\d{1,5}))?", text)
    if not found or int(found[1]) < 1 or int(found[2] or 1) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: write 512, or WIDTHxHEIGHT like 768x512")
    return int(found[2] or found[1]), int(found[1])


def device(text: str) -> str:
    """An argparse type: the name of a device that torch may have."""
    if not re.fullmatch(r"cpu|mps|cuda(:\d{1,2})?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no device: write cpu, cuda, cuda:1 or mps")
    return text


def add_base(command) -> None:
    """--base, --device and --dtype."""
    command.add_argument("--base", default="pocket", help='"pocket", "sd15", a diffusers folder or a hub id')
    command.add_argument("--device", type=device, help="cpu, cuda, cuda:1 or mps (default: a GPU if there is one)")
    command.add_argument("--dtype", choices=DTYPES, help="precision (default: float16 on a GPU, else float32)")


def check_base(name: str) -> None:
    """Raise FileNotFoundError or ValueError unless this can be the name of a base model."""
    folder = Path(name)
    if (folder / "concept.json").is_file():
        raise ValueError(f"{name} is a concept, no base model: draw with it by --concept {name}")
    if folder.is_dir() and not (folder / "model_index.json").is_file() and name not in ("pocket", "sd15"):
        raise ValueError(f"{name} is no diffusers folder (model_index.json is missing): give one, or leave out --base")
    local = name.count("/") != 1 or name.startswith((".", "/", "~"))
    if name not in ("pocket", "sd15") and not folder.is_dir() and local:
        raise FileNotFoundError(
            f'there is no base model {name!r}: say "pocket", "sd15", a diffusers folder or a hub id'
        )


def load(args):
    """The base model that --base, --device and --dtype ask for."""
    import torch

    from .. import load_base
    from .speak import no_loading_bars

    no_loading_bars()
    return load_base(args.base, args.device, args.dtype and getattr(torch, args.dtype))


def about_concept(folder: Path) -> dict:
    """The concept.json of a concept folder, {} if it is damaged; says what else the path is where it is no concept."""
    parts = ("adapter_config.json", "pytorch_lora_weights.safetensors")  # of a folder of peft or diffusers
    if (folder.suffix in LORA_FILES and folder.is_file()) or any((folder / part).is_file() for part in parts):
        raise ValueError(
            f"{folder} is a LoRA: make a concept of it first, "
            f"mixofshow convert {folder} out/concepts/{folder.stem} --class-word WORD"
        )
    if not folder.exists():
        raise FileNotFoundError(f"there is no concept folder {folder}: check its name, or make it with mixofshow tune")
    if not (folder / "concept.json").is_file():
        what = "a whole model" if (folder / "model_index.json").is_file() else "no concept (concept.json is missing)"
        raise FileNotFoundError(f"{folder} is {what}: give a folder that mixofshow tune or convert has written")
    try:
        about = json.loads((folder / "concept.json").read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return {}  # the library says what is wrong with it
    return about if isinstance(about, dict) else {}


def words_of(about: dict) -> list[str]:
    """The words in a concept.json, as far as it can be read."""
    words = about.get("words")
    return [word for word in words if isinstance(word, str)] if isinstance(words, list) else []


def check_clashes(folders: list[Path]) -> None:
    """Raise ValueError if two concept folders share their name or a word."""
    names, words = {}, {}
    for folder in folders:
        about = about_concept(folder)
        name = str(about.get("name") or folder.name)
        if name in names:
            raise ValueError(
                f"{names[name]} and {folder} are both called {name}: rename one, mixofshow rename {folder} NEWNAME"
            )
        names[name] = folder
        for word in words_of(about):
            if word in words:
                raise ValueError(
                    f"{words[word]} and {folder} share the word {word}: rename one, mixofshow rename {folder} NEWNAME"
                )
            words[word] = folder


def class_word_in(folder: Path) -> str | None:
    """The class word that the metadata.jsonl of a folder of pictures gives, None if it gives none."""
    file = folder / "metadata.jsonl"
    if not file.is_file():
        return None
    for line in file.read_text(encoding="utf-8-sig", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(row, dict) and row.get("class_word"):
            return str(row["class_word"])
    return None


def check_data(folder: Path, class_word: str | None) -> None:
    """Raise FileNotFoundError or ValueError unless this is a folder, and there is a class word."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: give the folder with the concept's pictures")
    elsewhere = (folder / "metadata.csv").is_file() or any(p.is_dir() and p.name != "masks" for p in folder.iterdir())
    if not ((class_word or "").strip() or class_word_in(folder) or elsewhere):
        raise ValueError(f"say what the pictures in {folder} show, in one word: --class-word dog")


def concept_words(given: list[str] | None) -> tuple[str, ...] | None:
    """--words "<a> <b>" or --words a b -> ("<a>", "<b>"); None if none were given, ValueError on other forms."""
    if given is None:
        return None
    words = tuple(w if w.startswith("<") else f"<{w}>" for w in " ".join(given).split())
    wrong = [word for word in words if not CONCEPT_WORD.fullmatch(word) or word == "<TOK>"]
    if wrong or not words or len(set(words)) < len(words):
        raise ValueError(
            f"--words {' '.join(given)} are no concept words: give different ones, like --words bibi1 bibi2"
        )
    return words
