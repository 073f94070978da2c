"""Pictures in a labelled grid, pixel for pixel: the one way in which this kit lays pictures out."""

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

GAP = 4  # pixels between pictures
LETTERS, LINE = 12, 15  # height of letters and of a line of them, in pixels
WIDEST_LABEL = 150  # pixels; longer labels of rows are broken
INK, PAPER = (30, 32, 36), (255, 255, 255)
FRAME = 3  # pixels

Place = tuple[int, int]  # row and column, from 0


def grid(
    rows: Sequence | Mapping[str, Sequence],
    titles: Sequence[str] | Mapping[int, Sequence[str]] = (),
    side: int | None = None,
    captions: Mapping[Place, str] | None = None,
    frames: Mapping[Place, str] | None = None,
    heading: str = "",
    gap: int = GAP,
) -> Image.Image:
    """Pictures in rows and columns on white paper, in their own pixels; the same arguments give the same pixels.

    rows      one row of pictures, a list of rows, or label -> row. A picture is a PIL picture, an array or tensor
              (h, w, 3), or one of (h, w), drawn as a heat map from its smallest value to its largest; None leaves a
              place empty
    titles    over the columns, or number of a row -> titles over that row
    side      width of every picture in pixels, by default that of the widest. What is enlarged twice or more is
              enlarged square by square, so that every latent cell or attention cell shows
    captions  place -> text under that picture
    frames    place -> colour of a frame around that picture
    heading   over everything

    Raises ValueError if there is no picture.
    """
    names, table = named_rows(rows)
    table = [[None if cell is None else to_picture(cell) for cell in row] for row in table]
    side = side or max((p.width for row in table for p in row if p is not None), default=0)
    if not side:
        raise ValueError("There is nothing to show: give at least one picture.")
    table = [[None if p is None else resized(p, side) for p in row] for row in table]
    heads = titles if isinstance(titles, Mapping) else {0: titles}
    said = [*names, heading, *(captions or {}).values(), *(text for head in heads.values() for text in head)]
    font = letters("".join(said))
    labels = [broken(name, font, WIDEST_LABEL) for name in names]
    margin = max(round(font.getlength(line)) for lines in labels for line in lines)
    lefts, width = columns(table, margin + 2 * gap if margin else 0, side, gap)

    bands = []  # strips of paper, one below the other
    if heading:
        bands.append(texts({0: heading}, [0], width, font))
    for i, row in enumerate(table):
        under = {j: text for (at, j), text in (captions or {}).items() if at == i}
        edges = {j: color for (at, j), color in (frames or {}).items() if at == i}
        bands.append(texts(dict(enumerate(heads.get(i, ()))), lefts, side, font))
        bands.append(band(row, lefts, width, edges, labels[i], margin, font))
        bands.append(texts(under, lefts, side, font))
    return stacked([b for b in bands if b is not None], width, gap)


def letters(said: str) -> ImageFont.FreeTypeFont:
    """The font: PIL's own, or matplotlib's, which knows Greek and arrows, where PIL's would draw boxes."""
    if all(ord(letter) < 0x100 for letter in said):
        return ImageFont.load_default(size=LETTERS)
    from matplotlib import get_data_path

    return ImageFont.truetype(f"{get_data_path()}/fonts/ttf/DejaVuSans.ttf", LETTERS)


def named_rows(rows: Sequence | Mapping[str, Sequence]) -> tuple[list[str], list[list]]:
    """What `grid` takes as rows -> the labels, "" where there is none, and the rows."""
    if isinstance(rows, Mapping):
        return [str(label) for label in rows], [list(row) for row in rows.values()]
    if rows and all(isinstance(row, list | tuple) for row in rows):
        return [""] * len(rows), [list(row) for row in rows]
    return [""], [list(rows)]


def to_picture(cell) -> Image.Image:
    """A PIL picture of a picture, an array or a tensor, as `grid` takes them."""
    if isinstance(cell, Image.Image):
        return cell.convert("RGB")
    array = np.asarray(cell)
    if array.ndim == 2:
        from matplotlib import colormaps

        array = array.astype(float)
        span = array.max() - array.min()
        array = colormaps["viridis"]((array - array.min()) / (span if span > 0 else 1))[..., :3]  # (h, w, 3) in 0..1
    if array.dtype != np.uint8:
        array = (np.clip(array, 0, 1) * 255).round().astype(np.uint8)
    return Image.fromarray(array)


def resized(picture: Image.Image, width: int) -> Image.Image:
    """The picture in this width: much enlarged in squares, otherwise smoothly."""
    size = width, max(1, round(picture.height * width / picture.width))
    kind = Image.Resampling.NEAREST if width >= 2 * picture.width else Image.Resampling.LANCZOS
    return picture if size == picture.size else picture.resize(size, kind)


def columns(table: Sequence[Sequence], start: int, side: int, gap: int) -> tuple[list[int], int]:
    """Where each column begins, and the width of all; a column without any picture is a narrow gap."""
    lefts, left = [], start
    for j in range(max(map(len, table))):
        lefts.append(left)
        empty = all(j >= len(row) or row[j] is None for row in table)
        left += (2 * gap if empty else side) + gap
    return lefts, left - gap


def broken(text: str, font, width: int) -> list[str]:
    """The text in lines that fit a width, broken between words; a word that is wider stays whole."""
    lines = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and font.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def texts(words: Mapping[int, str], lefts: Sequence[int], width: int, font) -> Image.Image | None:
    """A strip with a text over (or under) each column, centred; None if there is no text."""
    lines = {j: broken(text, font, width) for j, text in words.items() if text and j < len(lefts)}
    if not lines:
        return None
    strip = Image.new("RGB", (max(lefts) + width, LINE * max(map(len, lines.values()))), PAPER)
    for j, found in lines.items():
        middle = lefts[j] + width / 2
        for k, line in enumerate(found):
            ImageDraw.Draw(strip).text((middle, LINE * k), line, fill=INK, font=font, anchor="ma")
    return strip


def band(row, lefts, width: int, edges: Mapping[int, str], label: Sequence[str], margin: int, font) -> Image.Image:
    """A row of pictures side by side, with its label before it and coloured frames where asked for."""
    strip = Image.new("RGB", (width, max((p.height for p in row if p is not None), default=LINE)), PAPER)
    draw = ImageDraw.Draw(strip)
    for j, picture in enumerate(row):
        if picture is not None:
            strip.paste(picture, (lefts[j], 0))
        if j in edges:
            right, bottom = lefts[j] + picture.width - 1, picture.height - 1
            draw.rectangle((lefts[j], 0, right, bottom), outline=edges[j], width=FRAME)
    top = strip.height / 2 - LINE * len(label) / 2
    for k, line in enumerate(label):
        draw.text((margin, top + LINE * k), line, fill=INK, font=font, anchor="ra")
    return strip


def stacked(bands: Sequence[Image.Image], width: int, gap: int) -> Image.Image:
    """Strips of paper one below the other."""
    whole = Image.new("RGB", (max(width, *(b.width for b in bands)), sum(b.height + gap for b in bands) - gap), PAPER)
    top = 0
    for strip in bands:
        whole.paste(strip, (0, top))
        top += strip.height + gap
    return whole
