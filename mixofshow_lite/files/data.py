"""The data a client brings (paper 3.2): pictures, captions and masks of one concept, which never leave it.

    symbol      here                shape
    picture     data.pictures[i]    RGB, upright, at least 32 px on its short side, at most 4 million pixels
    P           data.captions[i]    with <TOK> where it names the concept
    mask        data.masks[i]       grey, of the picture's size, white = concept; or None

A folder of pictures is enough. `imagefolder` says where captions and masks are looked for, `pictures` what is done with
pictures of any kind; a picture without a mask that is transparent somewhere has its opacity as one. Tuning sees the
largest centred crop of the base's shape: `data.show()` before it does.
"""

import hashlib
import os
import re
import warnings
from pathlib import Path

from PIL import Image

from ..engine.arguments import shown
from .concept import PLACEHOLDER
from .imagefolder import Row, read_folder
from .listing import some
from .mask_files import INVERTED, laid_on, open_mask
from .pictures import flatten, open_picture

CAPTION = f"photo of a {PLACEHOLDER}"  # of a picture that has none
SMALLEST = 32  # pixels on the short side; tuning itself asks for half the base's size, see `check_sizes`


class ConceptData:
    """A client's private data: pictures, captions with <TOK> where the concept is named, optional subject masks.

    `folder` holds pictures, and may hold `metadata.jsonl` with one object a line: `file_name`, `caption` (or `text`),
    `mask` (a file, or null for none) and `class_word`, all but the first optional; it then says which pictures count.
    Raises FileNotFoundError, ValueError or TypeError, one sentence each, on anything missing or broken; warns, once a
    kind, of what it assumed and of what it left aside.
    """

    def __init__(self, folder: str | Path, class_word: str | None = None):
        if not isinstance(folder, (str, os.PathLike)):
            raise TypeError(f"ConceptData reads a folder, not {type(folder).__name__}: give the folder's path.")
        self.folder = Path(folder)
        if not os.path.isdir(self.folder):
            name = str(self.folder) if len(str(self.folder)) < 300 else shown(str(self.folder))
            raise FileNotFoundError(f"There is no folder {name}: give the folder with the concept's pictures.")
        self.name = self.folder.resolve().name
        self.files: list[str] = []  # relative to the folder
        self.pictures: list[Image.Image] = []
        self.captions: list[str] = []
        self.masks: list[Image.Image | None] = []
        rows, notes = read_folder(self.folder)
        self.class_word, clash = the_class_word(rows, class_word, self.folder)
        for note in notes + clash:
            warnings.warn(note, stacklevel=2)
        for note in without_caption(rows, self.folder):
            warnings.warn(note, stacklevel=2)
        doubts: dict[str, list[str]] = {}  # what a mask may be -> the pictures concerned
        for row in rows:
            self._add(row, doubts)
        if len(doubts.get(INVERTED, ())) <= len(rows) / 2:  # of a place with somebody in it, some masks rightly look so
            doubts.pop(INVERTED, None)
        for doubt, files in doubts.items():
            warnings.warn(doubt.format(n=len(files), total=len(rows), folder=self.folder, file=files[0]), stacklevel=2)

    def __len__(self) -> int:
        return len(self.pictures)

    def __repr__(self) -> str:
        return f"ConceptData({self.name!r}, {len(self)} pictures, class_word={self.class_word!r})"

    def prompts(self, phrase: str) -> list[str]:
        """The captions with <TOK> replaced by a concept's phrase, or by its class word."""
        return [caption.replace(PLACEHOLDER, phrase) for caption in self.captions]

    def digest(self) -> str:
        """A fingerprint of all pictures, masks and captions, the same on any machine."""
        digest = hashlib.sha256("\n".join(self.captions).encode())
        for picture in (*self.pictures, *self.masks):
            digest.update(b"none" if picture is None else f"{picture.size}".encode() + picture.tobytes())
        return digest.hexdigest()[:16]

    def show(self, size: int | tuple[int, int] | None = None):
        """Every picture with its crop, caption and mask, as one PIL picture: look at it before tuning.

        `size` is what tuning will cut out, an int or (height, width) in pixels, e.g. `base.size`; None: a square.
        """
        from .contact_sheet import contact_sheet

        return contact_sheet(self, size)

    def _add(self, row: Row, doubts: dict[str, list[str]]) -> None:
        """Read one row's picture and mask; note what the mask may be."""
        file = self.folder / row.file
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file} is named in the metadata but is not there: add it or drop its line.")
        picture = open_picture(file)
        if min(picture.size) < SMALLEST:
            raise ValueError(f"{file} is {picture.width}x{picture.height}: give pictures of at least {SMALLEST} px.")
        orientation = picture.info["turned"]
        picture, mask = flatten(picture)
        if row.mask:
            mask, doubt = laid_on(self._mask(row), picture, orientation, self.folder / row.mask)
            if doubt:
                doubts.setdefault(doubt, []).append(row.file)
        if mask is not None and mask.getextrema()[1] == 0:
            if not row.mask:
                raise ValueError(f"{file} is transparent everywhere and shows nothing: save it without transparency.")
            raise ValueError(f"The mask of {row.file} in {self.folder} is empty: make the concept white, or remove it.")
        self.files.append(row.file)
        self.pictures.append(picture)
        self.captions.append(row.caption or CAPTION)
        self.masks.append(mask)

    def _mask(self, row: Row) -> Image.Image:
        """The mask of a row as it is drawn."""
        file = self.folder / row.mask
        if not os.path.isfile(file):
            raise FileNotFoundError(f"{file}, the mask of {row.file}, is not there: add it, or drop its name.")
        return open_mask(file)


def the_class_word(rows: list[Row], given: str | None, folder: Path) -> tuple[str | None, list[str]]:
    """The class word that is given, or else the metadata's first; and a sentence if they name several."""
    named = list(dict.fromkeys(row.class_word.strip() for row in rows if row.class_word and row.class_word.strip()))
    word = next(iter(named), None) if given is None else given
    if word is not None and (not isinstance(word, str) or not word.strip() or len(word) > 100 or set(word) & set("<>")):
        raise ValueError(f"The class word {shown(word)} of {folder} is none: give what the concept is, such as 'dog'.")
    if given is None and len(named) > 1:
        return word, [f"The metadata of {folder} name the class words {some(named)}: {named[0]} is taken."]
    return word and word.strip(), []


def without_caption(rows: list[Row], folder: Path) -> list[str]:
    """A sentence on pictures that have no caption; ValueError on captions that do not name the concept."""
    for row in rows:
        if row.caption is not None:
            row.caption = re.sub(PLACEHOLDER, PLACEHOLDER, row.caption, flags=re.IGNORECASE)
    silent = [row.file for row in rows if row.caption is not None and PLACEHOLDER not in row.caption]
    if silent:
        raise ValueError(
            f"{len(silent)} of {len(rows)} captions in {folder} do not name the concept, those of {some(silent)}: "
            f"write {PLACEHOLDER} where they do."
        )
    bare = [row.file for row in rows if row.caption is None]
    if not bare:
        return []
    return [
        f"{len(bare)} of {len(rows)} pictures in {folder} have no caption, e.g. {bare[0]}: each becomes "
        f"{CAPTION!r}; say in a .txt beside each what else it shows, and less of it sticks to the concept."
    ]


def crop_box(picture: Image.Image, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest centred box of the shape of `size` (height, width) in a picture: left, top, right, bottom."""
    shape = size[1] / size[0]
    w, h = min(picture.width, picture.height * shape), min(picture.height, picture.width / shape)
    left, top = (picture.width - w) / 2, (picture.height - h) / 2
    return left, top, left + w, top + h


def fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centred crop, resized to (height, width)."""
    return picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=crop_box(picture, size))


def too_small(picture: Image.Image, size: tuple[int, int]) -> bool:
    """Whether the centred crop has to be enlarged more than twice for (height, width)."""
    left, _, right, _ = crop_box(picture, size)
    return (right - left) * 2 < size[1]


def check_sizes(data: ConceptData, size: tuple[int, int]) -> None:
    """Raises one ValueError that names all the pictures that are too small for a base of (height, width)."""
    small = [
        f"{name} ({picture.width}x{picture.height})"
        for name, picture in zip(data.files, data.pictures, strict=True)
        if too_small(picture, size)
    ]
    if small:
        verb = "is" if len(small) == 1 else "are"
        raise ValueError(
            f"Of {len(data)} pictures {some(small)} {verb} too small for a base of {size[1]}x{size[0]}: "
            f"give pictures of at least {-(-size[1] // 2)}x{-(-size[0] // 2)} px."
        )
