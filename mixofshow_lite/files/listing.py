"""Files of a folder by name, and the texts among them: what the readers of picture folders share."""

import codecs
import re
import unicodedata
from pathlib import Path

from PIL import Image

MASK = re.compile(r"(.+)[_-]mask", re.IGNORECASE)  # the stem of a mask that lies beside its picture
NO_PICTURES = {"MPEG", "GRIB", "BUFR", "HDF5"}  # Pillow knows these formats by name only
ENCODINGS = {  # the mark at the beginning of a text; UTF-32's begins with UTF-16's
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text(file: Path) -> str:
    """A text in UTF-8, or in what its first bytes say; ValueError names the file."""
    try:
        data = file.read_bytes()
        encoding = next((name for mark, name in ENCODINGS.items() if data.startswith(mark)), "utf-8")
        text = data.decode(encoding)
    except OSError as error:
        raise ValueError(f"{file} cannot be read ({error.strerror}): check its permissions.") from error
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:
        raise ValueError(f"{file} is no text in UTF-8: save it again with that encoding.")
    return text


def key(name: str) -> str:
    """What a file's name is to a reader: without the case of letters, accents in one form."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def some(names: list[str]) -> str:
    """The first names of a list, and how many more there are."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def is_picture(file: Path) -> bool:
    """Whether Pillow can open files of that suffix."""
    kind = Image.registered_extensions().get(file.suffix.lower())
    return kind in Image.OPEN and kind not in NO_PICTURES


def pictures_in(place: Path) -> list[Path]:
    """The pictures of a folder that are no masks, by name."""
    return [file for file in files_in(place) if is_picture(file) and not MASK.fullmatch(file.stem)]


def files_in(place: Path) -> list[Path]:
    """The files of a folder that are not hidden, by name; none if it cannot be read."""
    return [path for path in entries(place) if path.is_file()]


def folders_in(place: Path) -> list[Path]:
    """The folders in a folder that are not hidden, by name."""
    return [path for path in entries(place) if path.is_dir()]


def entries(place: Path) -> list[Path]:
    """All that a folder holds and does not hide, by name."""
    try:
        return sorted(path for path in place.iterdir() if not path.name.startswith("."))
    except OSError:
        return []
