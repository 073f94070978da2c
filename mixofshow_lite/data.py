"""The data a client brings (paper 3.2): pictures, captions and masks of one concept, which never leave it."""

import json
from pathlib import Path

from PIL import Image

from .concept import PLACEHOLDER


class ConceptData:
    """A client's private data: pictures, captions with <TOK> where the concept is named, optional subject masks.

    `folder` is a Hugging Face imagefolder: `metadata.jsonl` with one object a line: `file_name`, `caption` (or `text`),
    optional `mask` (a file, white = subject) and `class_word`. Raises one sentence on anything missing or broken.
    """

    def __init__(self, folder: str | Path, class_word: str | None = None):
        self.folder = Path(folder)
        self.name = self.folder.resolve().name
        rows = self._rows()
        self.class_word: str | None = class_word or next((r["class_word"] for r in rows if r.get("class_word")), None)
        self.pictures: list[Image.Image] = [self._open(row["file_name"], "RGB") for row in rows]
        self.captions: list[str] = [self._caption(row) for row in rows]
        self.masks: list[Image.Image | None] = [self._mask(row, p) for row, p in zip(rows, self.pictures, strict=True)]

    def __len__(self) -> int:
        return len(self.pictures)

    def __repr__(self) -> str:
        return f"ConceptData({self.name!r}, {len(self)} pictures, class_word={self.class_word!r})"

    def prompts(self, phrase: str) -> list[str]:
        """The captions with <TOK> replaced by a concept's phrase, or by its class word."""
        return [caption.replace(PLACEHOLDER, phrase) for caption in self.captions]

    def _rows(self) -> list[dict]:
        if not self.folder.is_dir():
            raise FileNotFoundError(f"There is no folder {self.folder}: give the folder with the concept's pictures.")
        path = self.folder / "metadata.jsonl"
        if not path.is_file():
            raise FileNotFoundError(f"{path} is missing: write one line per picture with its file_name and caption.")
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
            rows = [json.loads(line) for line in lines if line.strip()]
            names = [row["file_name"] for row in rows]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path} has a line that is no JSON object with a file_name ({error}): mend it."
            ) from error
        if not names:
            raise ValueError(f"{path} names no picture: add one line per picture with its file_name and caption.")
        return rows

    def _open(self, name: str, mode: str) -> Image.Image:
        path = self.folder / name
        try:
            with Image.open(path) as picture:
                return picture.convert(mode)
        except FileNotFoundError:
            raise FileNotFoundError(
                f"{path} is named in metadata.jsonl but is not there: add it or drop its line."
            ) from None
        except (OSError, SyntaxError) as error:
            raise ValueError(f"{path} is no readable picture ({error}): save it again as PNG or JPEG.") from error

    def _caption(self, row: dict) -> str:
        caption = row.get("caption", row.get("text"))
        if not isinstance(caption, str) or PLACEHOLDER not in caption:
            raise ValueError(
                f"The caption of {row['file_name']} in {self.folder} is {caption!r}: "
                f"write {PLACEHOLDER} where it names the concept."
            )
        return caption

    def _mask(self, row: dict, picture: Image.Image) -> Image.Image | None:
        if not row.get("mask"):
            return None
        mask = self._open(row["mask"], "L")
        if mask.size != picture.size:
            raise ValueError(
                f"{self.folder / row['mask']} is {mask.size[0]}x{mask.size[1]} but its picture is "
                f"{picture.size[0]}x{picture.size[1]}: make the mask the picture's size."
            )
        return mask
