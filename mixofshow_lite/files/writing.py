"""Writing that loses nothing: one rule and one way for every file and folder.

    what is at the target                      what happens
    nothing, or an empty folder                it is written
    an older one of the same `Kind`            it is replaced whole; a Concept folder's other files stay
    anything else                              FileExistsError, before anything is written

What is written lies beside its target under a hidden name that ends in .part, and takes the target's name in one step
at the end. A process that is killed meanwhile leaves that .part behind and nothing else; the next one that writes to
the same target removes it. Nothing here is slow to import, so that a target can be checked before the work begins.
"""

import ctypes
import errno
import json
import os
import platform
import shutil
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from safetensors import SafetensorError

FULL = ("No space left", "PytorchStreamWriter failed")  # how a full disk reads in what is no OSError
WRITER = {"written_by": "mixofshow_lite"}  # in the metadata of a safetensors file: this library may replace it


@dataclass(frozen=True)
class Kind:
    """What a writer writes, by which it knows its own again."""

    name: str  # for a sentence
    marks: tuple[str, ...] = ()  # files that every such folder has; none: it is a file, marked by WRITER
    parts: tuple[str, ...] = ()  # what else it may hold
    keeps: bool = False  # other things in an older folder stay there, else they are a reason to refuse


CONCEPT = Kind("a concept", ("concept.json",), ("concept.safetensors", "preview.png", "README.md", "tuned.json"), True)
PIPELINE = Kind(
    "a model saved by this library",
    ("model_index.json", "mixofshow.json"),
    ("scheduler", "text_encoder", "tokenizer", "unet", "vae", "new_concept_cfg.json", "words.txt"),
)
PICTURES = Kind(
    "a folder of pictures written by this library",
    ("metadata.jsonl",),
    ("masks", "README.md", *(f"{number:02d}.png" for number in range(1000))),
)
CLIP = Kind("a CLIP folder", ("open_clip_config.json",), ("open_clip_model.safetensors", "tokenizer"))
LORA_FILE = Kind("a LoRA file written by this library")
PEFT_FOLDER = Kind("a folder of LoRAs written by this library", ("lora.json",), ("unet", "text_encoder"))


def check_target(target: str | Path, kind: Kind | None = None) -> None:
    """Raise OSError with one sentence unless `target` may be written: nothing, empty, or an older one of the kind.

    Without a kind `target` is a file that may be replaced, whatever it is, but no folder.
    """
    with saying_what_to_do(Path(target)):
        look_at(Path(target), kind)


def look_at(target: Path, kind: Kind | None) -> None:
    """What `check_target` does, with the system's own errors as they come."""
    above = next(path for path in target.absolute().parents if path.exists())
    if not above.is_dir():
        raise NotADirectoryError(f"{above} is a file, no folder: {target} cannot be written, choose another place.")
    if not os.access(above, os.W_OK):
        raise PermissionError(f"{above} may not be written to: choose another place than {target}.")
    if not os.path.lexists(target) or (target.is_dir() and not any(target.iterdir()) and kind and kind.marks):
        return
    if target.absolute() == Path.cwd():
        raise FileExistsError(f"{target} is the folder you are in: choose another one.")
    if kind is None or not kind.marks:
        if target.is_dir():
            raise FileExistsError(f"{target} is a folder: give the name of a file.")
        if target.exists() and not target.is_file():
            raise FileExistsError(f"{target} is a pipe or device, no file: choose another name.")
        if kind and not written_here(target):
            raise FileExistsError(f"{target} exists and is not {kind.name}: choose another name.")
        return
    if not target.is_dir():
        raise FileExistsError(f"{target} is a file, no folder: choose another name.")
    found = {path.name for path in target.iterdir()}
    strange = sorted(found - {*kind.marks, *kind.parts})
    if not found.issuperset(kind.marks):
        raise FileExistsError(f"{target} holds {min(found)} and is not {kind.name}: choose another folder.")
    if strange and not kind.keeps:
        raise FileExistsError(f"{target} holds {strange[0]} beside {kind.name}: move it, or choose another folder.")


def written_here(file: Path) -> bool:
    """Whether a safetensors file says that this library wrote it."""
    try:
        with open(file, "rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header = json.loads(opened.read(length)) if length < 2**26 else {}
        return header["__metadata__"]["written_by"] == WRITER["written_by"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False


@contextmanager
def atomic_file(target: str | Path, kind: Kind | None = None, replace: bool = True) -> Iterator[Path]:
    """`with atomic_file(target) as temporary`: write `temporary`; it becomes `target` only if the block succeeds.

    The name of `temporary` does not show the format, so name that to whoever guesses it from a name. Missing folders
    are made. Without `replace` it raises FileExistsError if there is something, even if it came there a moment ago.
    Raises OSError with one sentence if it cannot be written or is not of the kind.
    """
    target = Path(target)
    if not replace and os.path.lexists(target):
        raise FileExistsError(f"{target} exists: choose another name.")
    with saying_what_to_do(target):
        check_target(target, kind)
        temporary = beside(target)
        try:
            yield temporary
            sync(temporary)  # on the disk before it has the name, so that a power cut is no exception
            os.replace(temporary, target) if replace else rename_new(temporary, target)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(target: str | Path, kind: Kind) -> Iterator[Path]:
    """`with atomic_folder(target, kind) as temporary`: fill `temporary`; it becomes `target` if the block succeeds.

    An older folder of this kind is replaced. Raises OSError with one sentence if it cannot be written or if something
    else is there, also if that came while the block was at work.
    """
    target = Path(os.path.realpath(target))  # of a link, the folder that it names
    with saying_what_to_do(target):
        check_target(target, kind)
        temporary = beside(target)
        temporary.mkdir()
        try:
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    sync(file)
            check_target(target, kind)
            if kind.keeps and target.is_dir():
                take_along(target, temporary, {*kind.marks, *kind.parts})
            put_folder(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def make_folder(folder: Path) -> None:
    """Make a folder and those above it where they are missing; raises OSError with one sentence if it cannot."""
    place = next(path for path in (folder, *folder.absolute().parents) if os.path.lexists(path))
    if not place.is_dir():
        raise NotADirectoryError(f"{place} is a file, no folder: move it, or choose another place than {folder}.")
    with saying_what_to_do(folder):
        folder.mkdir(parents=True, exist_ok=True)


def write_text(target: str | Path, text: str) -> None:
    """Write a text file (UTF-8) so that it is the old one or the new one at any moment; raises OSError."""
    with atomic_file(target) as temporary:
        temporary.write_text(text, encoding="utf-8")


def take_along(old: Path, new: Path, parts: set[str]) -> None:
    """Copy what somebody has put into the old folder beside its own parts."""
    for path in old.iterdir():
        if path.name in parts:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.copytree(path, new / path.name, symlinks=True)
        else:
            shutil.copy2(path, new / path.name, follow_symlinks=False)


def put_folder(temporary: Path, target: Path) -> None:
    """Give a folder the target's name; an older one has the temporary's afterwards, or is gone."""
    if not target.exists() or not any(target.iterdir()):
        if target.exists():
            target.rmdir()
        os.rename(temporary, target)  # fails if another process has put a folder there meanwhile
    elif not exchange(temporary, target):
        old = temporary.with_suffix(".old")
        os.rename(target, old)  # killed here, the old folder is whole, but has this name
        try:
            os.rename(temporary, target)
        except OSError:
            os.rename(old, target)
            raise
        shutil.rmtree(old, ignore_errors=True)


def exchange(a: Path, b: Path) -> bool:
    """Swap two names in one step; False where the system cannot (it is Linux that can, since 2014)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    AT_FDCWD, RENAME_EXCHANGE = -100, 2  # of fcntl.h and linux/fs.h
    return renameat2(AT_FDCWD, os.fsencode(a), AT_FDCWD, os.fsencode(b), RENAME_EXCHANGE) == 0


def rename_new(temporary: Path, target: Path) -> None:
    """Give a file a name that nothing has; raises FileExistsError if something has it, however short a time ago."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise FileExistsError(f"{target} exists: choose another name.") from None
    except (OSError, AttributeError):  # a file system without links
        if os.path.lexists(target):
            raise FileExistsError(f"{target} exists: choose another name.") from None
        os.replace(temporary, target)


def beside(target: Path) -> Path:
    """A new hidden name in the target's folder, which is made if it is missing; what the dead left there is removed.

    An old folder whose writer died between two names (see `put_folder`) gets its own back.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    host = f"{zlib.crc32(platform.node().encode()):x}"
    start = f".{target.name[:99]}."
    for left in target.parent.glob(".*"):
        fields = left.name.removeprefix(start).split(".")  # process, host, random, part or old
        if not left.name.startswith(start) or len(fields) != 4 or fields[1] != host or alive(fields[0]):
            continue
        if fields[3] == "old" and not target.exists():
            os.rename(left, target)
        elif fields[3] in ("old", "part"):
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    return target.with_name(f"{start}{os.getpid()}.{host}.{uuid4().hex[:6]}.part")


def alive(process: str) -> bool:
    """Whether a process of this machine still runs; True where that cannot be asked."""
    if os.name != "posix" or not process.isdecimal():
        return True
    try:
        os.kill(int(process), 0)  # signal 0 only asks
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        pass
    return True


def sync(file: Path) -> None:
    """Have a file written to the disk now."""
    with open(file, "r+b") as written:
        os.fsync(written.fileno())


@contextmanager
def saying_what_to_do(target: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises into one OSError that names the target; other errors pass."""
    try:
        yield
    except Exception as error:
        if isinstance(error, OSError) and error.errno is None:  # a sentence already
            raise
        if isinstance(error, OSError | SafetensorError) or any(words in str(error) for words in FULL):
            why = getattr(error, "strerror", None) or error
            raise OSError(f"Could not write {target} ({why}): {advice(error)}.") from error
        raise


def advice(error: Exception) -> str:
    """What to do about an error of the file system."""
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "choose a folder that you may write to"
    if number == errno.ENAMETOOLONG:
        return "choose a shorter name"
    if number in (errno.ENOTEMPTY, errno.EEXIST):
        return "another process has written there meanwhile, choose another folder"
    return "free some space or choose another folder"
