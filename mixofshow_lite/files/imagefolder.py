"""What a folder of pictures says before one is opened: which captions and masks belong to which picture.

    of the picture a.jpg    is
    caption                 what metadata.jsonl or metadata.csv says (a Hugging Face imagefolder), or else the text of
                            a.txt, a.jpg.txt or a.caption
    mask                    what the metadata say, or else masks/a.png, mask/a.png, masks/a.jpg.png, a_mask.png

Names are compared as a reader compares them: neither the case of letters counts nor how an accent is stored (macOS
writes an e and an accent where others write one letter). What belongs to no picture is told, not passed over.
"""

import csv
import io
import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from .concept import PLACEHOLDER
from .listing import MASK, entries, files_in, folders_in, is_picture, key, pictures_in, read_text, some
from .writing import PICTURES, atomic_folder

METADATA = ("metadata.jsonl", "metadata.csv")  # the first that is there is read
UNREAD = {"metadata.json", "metadata.parquet", "meta_cap.json", "meta_lat.json", "captions.json", *METADATA}
CAPTIONS = (".txt", ".caption")  # where there are both, the first counts
NOTES = {*CAPTIONS, ".md", ".json", ".jsonl", ".csv"}  # files beside the pictures that are no mistake
SYSTEM = {"thumbs.db", "desktop.ini"}  # what Windows puts into folders of pictures
REPEATS = re.compile(r"(\d+)_(.+)")  # kohya's folders: how often an epoch sees the pictures, and what they show
Sidecars = dict[str, list[Path]]  # the key of a picture's name, with or without its suffix -> what belongs to it


@dataclass
class Row:
    """One picture and what belongs to it; files are relative to the folder."""

    file: str
    caption: str | None = None
    mask: str | None = None  # "" says that there is none
    class_word: str | None = None


def read_folder(folder: Path) -> tuple[list[Row], list[str]]:
    """The pictures of a folder, by name or as its metadata list them, and sentences on what is left aside.

    Raises FileNotFoundError or ValueError, one sentence each, where there is no picture or their list is broken.
    """
    listed = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    rows = read_metadata(listed) if listed else [Row(file.name) for file in pictures_in(folder)]
    if not rows:
        raise FileNotFoundError(why_nothing(folder))
    notes = left_aside(folder, listed)
    for place in sorted({folder, *((folder / row.file).parent for row in rows)}):
        captions, masks = captions_in(place), masks_in(place)
        for row in rows:
            if (folder / row.file).parent == place:
                complete(row, folder, captions, masks)
        named = {folder / row.mask for row in rows if row.mask}
        notes += without_picture(place, captions, masks, named)
        notes += [note for inner in mask_folders(place) for note in no_masks(inner)]
    return rows, notes


def complete(row: Row, folder: Path, captions: Sidecars, masks: Sidecars) -> None:
    """Fill in the caption and the mask that lie beside a picture, where nothing was said of them."""
    picture = Path(row.file)
    if row.caption is None and (files := belonging(picture, captions)):
        text = " ".join(read_text(files[0]).split())  # of several lines one caption
        row.caption = text or None
    if row.mask is None and (files := belonging(picture, masks)):
        if len(files) > 1:
            both = " and ".join(str(file.relative_to(folder)) for file in files[:2])
            raise ValueError(f"{folder / picture} has two masks, {both}: keep one.")
        row.mask = str(files[0].relative_to(folder))


def belonging(picture: Path, found: Sidecars) -> list[Path]:
    """The files that carry a picture's whole name, or else its stem; written exactly so, if some are."""
    for name in (picture.name, picture.stem):
        files = found.get(key(name), [])
        if files:
            return [file for file in files if without_mark(file.stem) == name] or files
    return []


def captions_in(place: Path) -> Sidecars:
    """The caption files of a folder; of one picture, .txt first."""
    found: Sidecars = {}
    for suffix in CAPTIONS:
        for file in files_in(place):
            if file.suffix.lower() == suffix:
                found.setdefault(key(file.stem), []).append(file)
    return found


def masks_in(place: Path) -> Sidecars:
    """The masks in a folder's own folder of masks, and those beside the pictures."""
    found: Sidecars = {}
    for file in files_in(place):
        if MASK.fullmatch(file.stem) and is_picture(file):
            found.setdefault(key(without_mark(file.stem)), []).append(file)
    for inner in mask_folders(place):
        for file in filter(is_picture, files_in(inner)):
            found.setdefault(key(without_mark(file.stem)), []).append(file)
    return found


def mask_folders(place: Path) -> list[Path]:
    """A folder's own folder of masks, by either name."""
    return [inner for inner in folders_in(place) if key(inner.name) in ("masks", "mask")]


def no_masks(inner: Path) -> list[str]:
    """A sentence on what lies in a folder of masks and cannot be one, such as an array or a link to nothing."""
    strange = [path.name for path in entries(inner) if not path.is_file() or not is_picture(path)]
    strange = [name for name in strange if name.lower() not in SYSTEM]
    return [f"Left aside in {inner}, no pictures: {some(strange)}; save masks as PNG."] if strange else []


def without_mark(stem: str) -> str:
    """The name of the picture that a mask's name speaks of, "a" of "a_mask"; any other name as it is."""
    marked = MASK.fullmatch(stem)
    return marked[1] if marked else stem


def without_picture(place: Path, captions: Sidecars, masks: Sidecars, named: set[Path]) -> list[str]:
    """Sentences on captions and masks in a folder that carry no picture's name."""
    known = {key(name) for file in pictures_in(place) for name in (file.name, file.stem)}
    lone_masks = [file for name, files in masks.items() if name not in known for file in files if file not in named]
    lone_captions = [file for name, files in captions.items() if name not in known for file in files]
    lone_captions = [file for file in lone_captions if is_caption(file)]
    return [
        f"{len(files)} {what} in {place} belong to no picture, e.g. {files[0].relative_to(place)}: "
        f"give each its picture's name, such as {example} for a.jpg."
        for what, files, example in (("masks", lone_masks, "masks/a.png"), ("captions", lone_captions, "a.txt"))
        if files
    ]


def is_caption(file: Path) -> bool:
    """Whether a text speaks of the concept, as a caption does and a README does not."""
    try:
        return PLACEHOLDER in read_text(file)
    except ValueError:
        return False


def left_aside(folder: Path, listed: Path | None) -> list[str]:
    """Sentences on what a folder holds that is not read; where metadata list the pictures, only on other metadata."""
    notes, files = [], files_in(folder)
    unread = [file.name for file in files if file.name.lower() in UNREAD and file != listed]
    if unread:
        notes.append(
            f"{some(unread)} in {folder} is not read: write metadata.jsonl, one JSON object a picture and line."
        )
    if listed:
        return notes
    strange = [f.name for f in files if not is_picture(f) and f.suffix.lower() not in NOTES and f.name not in unread]
    strange += [path.name for path in entries(folder) if not path.is_file() and not path.is_dir()]
    if strange:
        notes.append(f"Left aside in {folder}, no pictures: {some(strange)}.")
    inner = [f"{f.name} ({len(pictures_in(f))} pictures)" for f in with_pictures(folder)]
    if inner:
        notes.append(
            f"Folders in {folder} are not read: {some(inner)}; give ConceptData each by itself, or move its files."
        )
    return notes


def why_nothing(folder: Path) -> str:
    """The sentence on a folder that holds no picture."""
    inner = with_pictures(folder)
    if inner:
        repeats = REPEATS.fullmatch(inner[0].name)
        why = f" (a trainer's name for {repeats[1]} repeats of {repeats[2]!r})" if repeats else ""
        return f"{folder} holds no picture, but its folder {inner[0].name} does{why}: give {inner[0]}."
    strange = [file.name for file in files_in(folder) if file.suffix.lower() not in NOTES]
    why = f" ({strange[0]} is none this library can read)" if strange else ""
    return f"{folder} holds no picture{why}: put the concept's PNG or JPEG files there."


def read_metadata(file: Path) -> list[Row]:
    """The rows of metadata.jsonl or metadata.csv; ValueError names the line that is none."""
    text = read_text(file)
    if file.suffix == ".csv":
        table = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        try:
            found = [(table.line_num, {k: v for k, v in row.items() if v not in ("", None)}) for row in table]
        except csv.Error as error:
            raise ValueError(f"{file} is no table of comma-separated values ({error}): save it again.") from None
    else:
        lines = enumerate(text.split("\n"), start=1)
        found = [(number, parsed(line)) for number, line in lines if line.strip()]
    if not found:
        raise ValueError(f"{file} names no picture: add one line per picture with its file_name and caption.")
    return [to_row(entry, f"{file}, line {number},", file.parent) for number, entry in found]


def parsed(line: str) -> object:
    """A line of JSON, None if it is none."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def to_row(entry: object, where: str, folder: Path) -> Row:
    """One entry of the metadata; ValueError that says `where` unless it is one."""
    name = entry.get("file_name") if isinstance(entry, dict) else None
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise ValueError(f"{where} is no JSON object with a file_name: mend it, or drop it.")
    texts = {field: entry.get(field) for field in ("caption", "text", "mask", "class_word")}
    wrong = next((field for field, text in texts.items() if not (text is None or isinstance(text, str))), None)
    if wrong:
        raise ValueError(f"{where} has a {wrong} that is no text: put it in quotes, or drop it.")
    mask = texts["mask"] and on_disk(folder, texts["mask"])
    if mask is None and "mask" in entry:
        mask = ""
    caption = texts["text"] if texts["caption"] is None else texts["caption"]
    return Row(on_disk(folder, name), caption, mask, texts["class_word"])


def on_disk(folder: Path, name: str) -> str:
    """A file's name as the disk spells it, if there is one that a reader cannot tell from `name`."""
    if os.path.isfile(folder / name):
        return name
    name = name.replace("\\", "/")  # as Windows writes folders
    alike = [file for file in files_in((folder / name).parent) if key(file.name) == key(Path(name).name)]
    return str(Path(name).parent / alike[0].name) if len(alike) == 1 else name


def with_pictures(place: Path) -> list[Path]:
    """The folders in a folder that hold pictures and are not its masks."""
    return [inner for inner in folders_in(place) if key(inner.name) not in ("masks", "mask") and pictures_in(inner)]


def write_folder(
    folder: str | Path,
    pictures: Sequence[Image.Image],
    captions: Sequence[str],
    class_word: str,
    masks: Sequence[Image.Image | None],
    card: str = "",
    optimize: bool = False,
) -> Path:
    """Write pictures with a caption and a mask (or None) each as `read_folder` reads them -> the folder.

    All or nothing: an older one that this wrote is replaced, FileExistsError if the folder holds anything else. `card`
    becomes its README.md, `optimize` makes smaller files and takes longer.
    """
    folder = Path(folder)
    with atomic_folder(folder, PICTURES) as temporary:
        (temporary / "masks").mkdir()
        lines = []
        for number, (picture, caption, mask) in enumerate(zip(pictures, captions, masks, strict=True)):
            row = {"file_name": f"{number:02d}.png", "caption": caption}
            picture.convert("RGB").save(temporary / row["file_name"], optimize=optimize)
            if mask is not None:
                row["mask"] = f"masks/{row['file_name']}"
                mask.convert("L").save(temporary / row["mask"], optimize=optimize)
            lines.append(json.dumps(row | {"class_word": class_word}))
        (temporary / "metadata.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
        if card:
            (temporary / "README.md").write_text(card, encoding="utf-8")
    return folder
