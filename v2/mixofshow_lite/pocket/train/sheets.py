"""Contact sheets to look at: the world, the concepts, and what Pocket Diffusion makes of held-out prompts.

    python -m mixofshow_lite.pocket.train.sheets world --out data/results
    python -m mixofshow_lite.pocket.train.sheets concepts --out data/results
    python -m mixofshow_lite.pocket.train.sheets model --base data/pocket --out data/results

Each writes one picture, `<what>_sheet.webp`.
"""

import argparse
import io
import textwrap
from pathlib import Path

import numpy as np
from PIL import Image

from ...files.resources import concepts_dir
from .. import captions, world
from ..concepts import CONCEPTS


def sheet(rows, labels=(), titles=None, side: float = 1.1, wrap: int = 26, under: float = 0.42):
    """A matplotlib figure: rows of PIL pictures.

    labels   text left of each row, or () for none
    titles   rows of captions that stand under the pictures, or None
    side     inches of a picture; wrap: letters of a caption's line; under: inches for a caption
    """
    from matplotlib.figure import Figure

    columns, under = max(map(len, rows)), under if titles else 0.06
    left = 1.5 if labels else 0.05
    width, height = left + columns * (side + 0.06) + 0.05, len(rows) * (side + under) + 0.1
    figure = Figure(figsize=(width, height))
    for i, row in enumerate(rows):
        top = height - 0.05 - i * (side + under)
        for j, picture in enumerate(row):
            at = [(left + j * (side + 0.06)) / width, (top - side) / height, side / width, side / height]
            ax = figure.add_axes(at)
            ax.imshow(picture)
            ax.set_axis_off()
            if titles:
                text = "\n".join(textwrap.wrap(titles[i][j], wrap))
                ax.text(0.5, -0.04, text, transform=ax.transAxes, fontsize=5.5, ha="center", va="top", linespacing=0.95)
        if labels:
            text = "\n".join(textwrap.wrap(labels[i], 21))
            figure.text(0.05 / width, (top - side / 2) / height, text, fontsize=7.5, va="center", linespacing=1.1)
    return figure


def save(figure, file: Path, dpi: int = 110) -> Path:
    """Write the figure as WebP, whatever the name ends in: a quarter of a PNG's size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.open(buffer).convert("RGB").save(file, "WEBP", quality=62, method=6)
    return file


def draw_world(columns: int = 6):
    """Four rows of lone subjects (every class), two of pairs, one of threes, each with one of its captions."""
    rows, titles = [], []
    for i, n in enumerate((1, 1, 1, 1, 2, 2, 3)):
        row, below = [], []
        for j in range(columns):
            rng = np.random.default_rng([40, i, j])
            light = world.LIGHTS[(0, 0, 1, 0, 2)[(3 * j + i) % 5]]
            scene = world.SCENES[(j + i) % len(world.SCENES)]
            given = None
            while n == 1 and (given is None or world.held_out(given.cls, given.colour, scene)):
                given = world.sample_subject(rng, world.CLASSES[(i * columns + j) % len(world.CLASSES)])
            picture = world.sample(rng, n, given and [given], scene, light)
            row.append(Image.fromarray(world.draw_image(picture)))
            below.append(captions.caption(picture, rng))
        rows.append(row)
        titles.append(below)
    return sheet(rows, titles=titles)


def draw_concepts(columns: int = 6):
    """A row per concept with its card's line."""
    from ...files.data import ConceptData

    owned = {name: ConceptData(concepts_dir() / name).pictures[:columns] for name in CONCEPTS}
    labels = [f"{name} ({spec.domain}-domain {spec.cls}). {spec.story}" for name, spec in CONCEPTS.items()]
    return sheet(list(owned.values()), labels, side=0.95)


def draw_model(base, steps: int = 25, seed: int = 0, columns: int = 4):
    """Ten prompts that training left out (eight of one subject, two of two), the same seeds in every row."""
    from ...model import load_base
    from .bars import one_prompt, pairs, singles, two_prompt

    model, prompts, seen = load_base(base), [], set()
    for cls, colour, scene in singles():  # eight that share no class and no colour
        if len(prompts) < 8 and not {cls, colour} & seen:
            prompts.append(one_prompt(cls, colour, scene))
            seen |= {cls, colour}
    prompts += [two_prompt(*duo) for duo in pairs()[:2]]
    rows = [model.sample(p, n=columns, seed=seed, steps=steps, progress=False) for p in prompts]
    return sheet(rows, prompts, side=1.2)


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["world", "concepts", "model"])
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--base", default="pocket", help='for model: "pocket" or a diffusers folder')
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    draw = {"world": draw_world, "concepts": draw_concepts}
    figure = draw[args.what]() if args.what in draw else draw_model(args.base, args.steps, args.seed)
    print(save(figure, args.out / f"{args.what}_sheet.webp"))


if __name__ == "__main__":
    main()
