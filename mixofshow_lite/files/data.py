"""The data a client brings (paper 3.2): pictures, captions and masks of one concept, which never leave it.

    symbol      here                shape
    picture     data.pictures[i]    RGB, upright, any size of at least 32 px
    P           data.captions[i]    with <TOK> where it names the concept
    mask        data.masks[i]       grey, of the picture's size, white = concept; or None

A folder of pictures is enough. Captions come from `metadata.jsonl` (a Hugging Face imagefolder), from `00.txt` beside
`00.png`, or are "photo of a <TOK>"; masks from `metadata.jsonl`, from `masks/00.png` or `00_mask.png`, or from the
picture's own transparency. Tuning sees the largest centred crop of the base's shape: `data.show()` before it does.
"""

import hashlib
import json
import textwrap
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from .concept import PLACEHOLDER

CAPTION = f"photo of a {PLACEHOLDER}"  # of a picture that has none
SMALLEST = 32  # pixels on the short side; tuning itself asks for half the base's size, see `fit`
NOTES = {".txt", ".md", ".json", ".jsonl"}  # files beside the pictures that are no mistake


class ConceptData:
    """A client's private data: pictures, captions with <TOK> where the concept is named, optional subject masks.

    `folder` holds pictures, and may hold `metadata.jsonl` with one object a line: `file_name`, `caption` (or `text`),
    `mask` (a file) and `class_word`, all but the first optional; it then says which pictures count. Pictures are turned
    as their EXIF says; transparent ones are put on white and their opacity is the mask, if there is no other. Raises
    FileNotFoundError or ValueError, one sentence each, on anything missing or broken; warns of what it assumed.
    """

    def __init__(self, folder: str | Path, class_word: str | None = None):
        self.folder = Path(folder)
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no folder {self.folder}: give the folder with the concept's pictures.")
        self.name = self.folder.resolve().name
        self.files: list[str] = []  # relative to the folder
        self.pictures: list[Image.Image] = []
        self.captions: list[str] = []
        self.masks: list[Image.Image | None] = []
        rows = self._listed() if (self.folder / "metadata.jsonl").is_file() else self._found()
        self.class_word: str | None = class_word or next((r["class_word"] for r in rows if r.get("class_word")), None)
        for row in rows:
            self._add(row)
        bare = [row["file_name"] for row in rows if self._caption(row) is None]
        if bare:
            warnings.warn(
                f"{len(bare)} of {len(rows)} pictures in {self.folder} have no caption, e.g. {bare[0]}: each becomes "
                f"{CAPTION!r}; say in a .txt beside each what else it shows, and less of it sticks to the concept.",
                stacklevel=2,
            )

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
        """Every picture with its crop, caption and mask, as a matplotlib Figure: look at it before tuning.

        `size` is what tuning will cut out, an int or (height, width) in pixels, e.g. `base.size`; None: a square.
        """
        return contact_sheet(self, size)

    def _listed(self) -> list[dict]:
        path = self.folder / "metadata.jsonl"
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            names = [Path(row["file_name"]) for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} has a line that is no JSON object with a file_name ({error}): mend it."
            ) from error
        if not names:
            raise ValueError(f"{path} names no picture: add one line per picture with its file_name and caption.")
        return rows

    def _found(self) -> list[dict]:
        """Rows for the pictures that lie in the folder, by name, where no metadata.jsonl names them."""
        kinds = Image.registered_extensions()
        files = sorted(p for p in self.folder.iterdir() if p.is_file() and not p.name.startswith("."))
        found = [p for p in files if p.suffix.lower() in kinds and not p.stem.endswith("_mask")]
        strange = [p.name for p in files if p.suffix.lower() not in kinds and p.suffix.lower() not in NOTES]
        if not found:
            rest = f" ({strange[0]} is none this library can read)" if strange else ""
            raise FileNotFoundError(f"{self.folder} holds no picture{rest}: put the concept's PNG or JPEG files there.")
        if strange:
            warnings.warn(f"Left aside in {self.folder}, no pictures: {', '.join(strange)}.", stacklevel=3)
        return [{"file_name": p.name, "mask": self._mask_of(p)} for p in found]

    def _mask_of(self, file: Path) -> str | None:
        """`masks/00.png` or `00_mask.png` for `00.jpg`, if there is one."""
        for mask in (*self.folder.glob("masks/*"), *self.folder.glob("*_mask.*")):
            if mask.stem.removesuffix("_mask") == file.stem and mask != file:
                return str(mask.relative_to(self.folder))
        return None

    def _add(self, row: dict) -> None:
        """Read one row's picture, caption and mask."""
        name, caption = row["file_name"], self._caption(row)
        if caption is not None and (not isinstance(caption, str) or PLACEHOLDER not in caption):
            raise ValueError(
                f"The caption of {name} in {self.folder} is {caption!r}: "
                f"write {PLACEHOLDER} where it names the concept."
            )
        picture = self._open(name)
        if min(picture.size) < SMALLEST:
            raise ValueError(
                f"{self.folder / name} is {picture.width}x{picture.height}: give pictures of at least {SMALLEST} px."
            )
        picture, mask = flatten(picture)
        if row.get("mask"):
            grey, opacity = flatten(self._open(row["mask"]))  # of a cut-out, the opacity is the mask
            mask = opacity or grey.convert("L")
            if mask.size != picture.size:
                raise ValueError(
                    f"{self.folder / row['mask']} is {mask.width}x{mask.height} but its picture is "
                    f"{picture.width}x{picture.height}: make the mask the picture's size."
                )
        if mask is not None and mask.getextrema()[1] == 0:
            raise ValueError(f"The mask of {name} in {self.folder} is empty: make the concept white, or leave it away.")
        self.files.append(name)
        self.pictures.append(picture)
        self.captions.append(caption or CAPTION)
        self.masks.append(mask)

    def _caption(self, row: dict) -> str | None:
        """What metadata.jsonl says of a picture, else the .txt beside it, else None."""
        caption = row.get("caption", row.get("text"))
        file = (self.folder / row["file_name"]).with_suffix(".txt")
        if caption is None and file.is_file():
            return file.read_text(encoding="utf-8-sig").strip() or None
        return caption

    def _open(self, name: str) -> Image.Image:
        """A picture as it is stored, but upright."""
        path = self.folder / name
        try:
            with Image.open(path) as picture:
                return ImageOps.exif_transpose(picture)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is named in metadata.jsonl but is not there: add it or drop its line."
            ) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(f"{path} is no readable picture ({error}): save it again as PNG or JPEG.") from error


def flatten(picture: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """A picture of any mode -> (RGB on white, opacity in grey or None if all is opaque)."""
    if picture.mode.startswith("I"):  # 16 bits of grey, which PIL would clip
        picture = Image.fromarray((np.asarray(picture, dtype=np.float64) / 257).clip(0, 255).astype(np.uint8))
    if not picture.has_transparency_data:
        return picture.convert("RGB"), None
    picture = picture.convert("RGBA")
    opacity = picture.getchannel("A")
    white = Image.new("RGBA", picture.size, "white")
    flat = Image.alpha_composite(white, picture).convert("RGB")
    return flat, None if opacity.getextrema()[0] == 255 else opacity


def crop_box(picture: Image.Image, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The largest centred box of the shape of `size` (height, width) in a picture: left, top, right, bottom."""
    shape = size[1] / size[0]
    w, h = min(picture.width, picture.height * shape), min(picture.height, picture.width / shape)
    left, top = (picture.width - w) / 2, (picture.height - h) / 2
    return left, top, left + w, top + h


def fit(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The centred crop, resized to (height, width); ValueError if it had to be enlarged more than twice."""
    left, top, right, bottom = box = crop_box(picture, size)
    if (right - left) * 2 < size[1]:
        raise ValueError(
            f"A picture of {picture.width}x{picture.height} is too small for a base of {size[1]}x{size[0]}: "
            f"give pictures of at least {-(-size[1] // 2)}x{-(-size[0] // 2)} px."
        )
    return picture.resize((size[1], size[0]), Image.Resampling.BICUBIC, box=box)


def contact_sheet(data: ConceptData, size: int | tuple[int, int] | None = None, columns: int = 4):
    """Every picture with its crop, caption and mask as a matplotlib Figure; a pure function of its arguments.

    Above, the whole picture with a frame around what tuning sees; below, that crop, dimmed outside the mask. `size` is
    an int or (height, width) in pixels; None: a square of the smallest picture's side.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    side = min(min(picture.size) for picture in data.pictures) if size is None else size
    size = (side, side) if isinstance(side, int) else tuple(side)
    columns = min(columns, len(data))
    rows = -(-len(data) // columns)
    figure = Figure(figsize=(2.2 * columns, 5.0 * rows), layout="constrained")
    axes = figure.subplots(2 * rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for i, (name, picture, caption, mask) in enumerate(
        zip(data.files, data.pictures, data.captions, data.masks, strict=True)
    ):
        whole, seen = axes[2 * (i // columns), i % columns], axes[2 * (i // columns) + 1, i % columns]
        left, top, right, bottom = crop_box(picture, size)
        whole.imshow(np.asarray(picture))
        whole.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="crimson", lw=2))
        whole.set_title(f"{name}\n{picture.width}x{picture.height}", fontsize=8)
        seen.imshow(dimmed(fit(picture, size), mask and fit(mask, size)))
        seen.set_title(textwrap.fill(caption if mask else f"{caption} (no mask)", 32), fontsize=8)
    return figure


def dimmed(picture: Image.Image, mask: Image.Image | None) -> np.ndarray:
    """(H, W, 3) bytes of a picture, at a quarter of its contrast outside the mask."""
    if mask is None:
        return np.asarray(picture)
    inside = 0.25 + 0.75 * np.asarray(mask, dtype=np.float32)[..., None] / 255  # (H, W, 1)
    return (255 - (255 - np.asarray(picture, dtype=np.float32)) * inside).round().astype(np.uint8)
