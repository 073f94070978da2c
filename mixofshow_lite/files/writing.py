"""Writing that may be interrupted: a file or a folder is there whole, or as it was before.

What is written lies beside its target under a hidden name that ends in .part, and takes the target's name in one step
at the end. A process that is killed meanwhile leaves that .part behind and nothing else.
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

FULL = ("No space left", "PytorchStreamWriter failed")  # how a full disk reads in what is no OSError


@contextmanager
def atomic_file(target: str | Path) -> Iterator[Path]:
    """`with atomic_file(target) as temporary`: write `temporary`; it becomes `target` only if the block succeeds.

    The name of `temporary` does not show the format, so name that to whoever guesses it from a name. Missing folders
    are made. Raises OSError with one sentence if it cannot be written.
    """
    target = Path(target)
    with saying_what_to_do(target):
        temporary = beside(target)
        try:
            yield temporary
            with open(temporary, "r+b") as written:
                os.fsync(written.fileno())  # on the disk before it has the name, so that a power cut is no exception
            os.replace(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: str | Path) -> Iterator[Path]:
    """`with atomic_folder(target) as temporary`: fill `temporary`; it becomes `target` only if the block succeeds.

    An older folder there is replaced. Raises OSError with one sentence if it cannot be written.
    """
    target = Path(target)
    with saying_what_to_do(target):
        temporary = beside(target)
        temporary.mkdir()
        try:
            yield temporary
            old = temporary.with_suffix(".old")
            if target.exists():
                os.rename(target, old)
            os.rename(temporary, target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file (UTF-8) so that it is the old one or the new one at any moment; raises OSError."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def beside(target: Path) -> Path:
    """A new hidden name in the target's folder, which is made if it is missing."""
    target.parent.mkdir(parents=True, exist_ok=True)
    return target.with_name(f".{target.name}.{uuid4().hex[:8]}.part")


@contextmanager
def saying_what_to_do(target: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into one OSError that names the target; other errors pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError | SafetensorError) or any(words in str(error) for words in FULL):
            raise OSError(f"Could not write {target} ({error}): free some space or choose another folder.") from error
        raise
