"""Arguments of another kind are told in one sentence where they enter, not by another library deep inside."""

import numbers
import os
from pathlib import Path

SEEDS = (-(2**62), 2**62)  # torch takes twice that, and pictures count up from it
LONGEST = 4096, 255  # characters of a path and of one name in it, where systems end


def is_number(value, least: float = -1e9, most: float = 1e9) -> bool:
    """Whether a value is a real number within bounds, which infinity and NaN never are."""
    return isinstance(value, numbers.Real) and least <= value <= most


def is_whole(value, least: int = 1, most: int = 2**31) -> bool:
    """Whether a value is a whole number within bounds; True and False are none."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool) and least <= value <= most


def check_number(name: str, value, least: float = -1e9, most: float = 1e9) -> None:
    """Raise ValueError unless `is_number`."""
    if not is_number(value, least, most):
        raise ValueError(f"{name}={shown(value)}: give a finite number from {least:g} to {most:g}.")


def check_whole(name: str, value, least: int = 1, most: int = 2**31) -> None:
    """Raise ValueError unless `is_whole`."""
    if not is_whole(value, least, most):
        raise ValueError(f"{name}={shown(value)}: give a whole number from {least} to {most}.")


def check_switch(name: str, value) -> None:
    """Raise TypeError unless a value is True or False: of a text or number nobody knows which is meant."""
    if not isinstance(value, bool):
        raise TypeError(f"{name}={shown(value)}: give True or False.")


def check_callback(callback) -> None:
    """Raise TypeError on a callback that cannot be called."""
    if callback is not None and not callable(callback):
        raise TypeError(f"callback={shown(callback)}: give a function of one argument, or None.")


def as_path(given: str | os.PathLike) -> Path:
    """A path that a system may be asked for; TypeError on what is none, ValueError on a name that no system has."""
    if not isinstance(given, str | os.PathLike):
        raise TypeError(f"{shown(given)} is no path: give the name of a file or folder.")
    path = Path(given)
    if "\0" in str(path) or len(str(path)) > LONGEST[0] or any(len(part) > LONGEST[1] for part in path.parts):
        raise ValueError(f"{shown(str(path))} cannot be the name of a file or folder: give a shorter or plainer one.")
    return path


def printable(text) -> str:
    """A name out of a stranger's file as a sentence may hold it: what cannot be printed is escaped, as in a\\nb."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in str(text))


def shown(value) -> str:
    """A value as a sentence may quote it, on one line."""
    try:
        text = " ".join(repr(value).split())
    except ValueError:  # a whole number of more digits than Python writes
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
