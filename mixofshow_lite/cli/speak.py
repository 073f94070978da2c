"""How the command line speaks: one line a sentence, its own words, on a terminal of any encoding."""

import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..files.writing import advice

OPTIONS = {  # what the library calls it -> the command line
    "n": "-n",
    "class_word": "--class-word",
    "negative_prompt": "--negative-prompt",
    **{
        name: f"--{name}" for name in ("size", "steps", "seed", "guidance", "alpha", "device", "dtype", "words", "name")
    },
}
PYTHON = (  # advice to people who write Python -> the same to people who type commands
    (r'concept\.renamed\(["\']([^"\']+)["\']\)', r"`mixofshow rename FOLDER \1`"),
    (r'tune\(\.\.\., class_word="([^"]+)"\)', r"--class-word \1"),
    (r"(in )?concepts=\[\.\.\.\]", "with --concept FOLDER"),
    (r"load_base\(['\"]pocket[^'\"]*['\"]\)", "--base pocket"),
    (r"load_base\(['\"]([^'\"]+)['\"]\)", r"--base \1"),
    (r"\b(" + "|".join(OPTIONS) + r")=", lambda found: OPTIONS[found[1]] + " "),
)


def in_our_words(message: object) -> str:
    """A message of the library as one line in the words of the command line."""
    text = " ".join(str(message).split())
    for pattern, words in PYTHON:
        text = re.sub(pattern, words, text)
    return text


def sentence(error: Exception) -> object:
    """What an error says; what the system says of a file is followed by what to do."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is not None:
        name = str(error.filename)
        name = name if len(name) < 99 else f"{name[:60]}..."
        return f"{name} cannot be used ({error.strerror}): {advice(error)}"
    return error.args[0] if isinstance(error, KeyError) and error.args else error


def complain(message: object) -> None:
    """An error, as one line on stderr."""
    print(f"mixofshow: {in_our_words(message)}", file=sys.stderr)


def next_command(*parts: str | Path) -> str:
    """A command to go on with; what holds a space, an angle bracket or the like is quoted, for any shell."""
    words = (str(part) for part in parts)
    return " ".join(["mixofshow", *(f'"{word}"' if re.search(r"[^\w./:=,+~\\-]", word) else word for word in words)])


def own_options(args) -> list[str]:
    """The options for base, device and precision as they were given, to be repeated in the next command."""
    given = {"--base": args.base, "--device": args.device, "--dtype": args.dtype}
    return [part for name, value in given.items() if value not in (None, "pocket") for part in (name, value)]


def any_encoding() -> None:
    """What a terminal or pipe cannot show, like a letter in ASCII, is written as \\xe9 instead of being an error."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without file names and source; those about other packages' futures are left out."""
    usual = warnings.formatwarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.formatwarning = lambda message, *_, **__: f"mixofshow: note: {in_our_words(message)}\n"
        try:
            yield
        finally:
            warnings.formatwarning = usual


def no_loading_bars() -> None:
    """No bar for the second that weights take to load; call it once the two are imported anyway."""
    import diffusers
    import transformers

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
