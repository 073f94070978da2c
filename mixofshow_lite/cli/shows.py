"""demo, lab: everything once, the notebooks."""

import argparse
import sys
from pathlib import Path

from . import options
from .speak import next_command


def add_demo(commands) -> None:
    c = commands.add_parser("demo", help="tune two look-alikes, fuse them both ways, draw both in one picture")
    c.add_argument("--out", type=Path, default=Path("out"), help="folder for the figure, the table and the concepts")
    c.add_argument("--concepts", nargs=2, default=(), metavar=("A", "B"), help="shipped names, or folders of pictures")
    c.add_argument("--class-word", nargs="+", default=[], help="what the pictures show, for both or for each")
    c.add_argument("--steps", type=options.whole(1), help="tuning steps of each concept (default: the recipe's own)")
    c.add_argument("--seed", type=options.whole(0), default=0, help="of everything random")
    c.add_argument("-n", type=options.whole(1), default=4, help="pictures per block of the figure")
    options.add_base(c)
    c.set_defaults(check=check_demo, run=run_demo, kept=kept_demo)


def check_demo(args: argparse.Namespace) -> None:
    from ..files.resources import concepts_dir

    if len(args.class_word) > 2:
        raise ValueError("--class-word takes one word for both concepts, or two")
    args.class_word = tuple(args.class_word * 2)[:2] or (None, None)
    if args.concepts and Path(args.concepts[0]).resolve().name == Path(args.concepts[1]).resolve().name:
        raise ValueError("the demo fuses two different concepts: name two folders of different names")
    for name, word in zip(args.concepts, args.class_word, strict=False):
        options.check_data(Path(name) if Path(name).is_dir() else concepts_dir() / name, word)
    options.check_base(args.base)


def run_demo(args: argparse.Namespace) -> None:
    from ..demo import demo
    from .speak import no_loading_bars

    no_loading_bars()
    words = args.class_word
    base = options.load(args) if args.device or args.dtype else args.base  # by its name: two processes open it
    made = demo(args.out, tuple(args.concepts), base, args.steps, args.seed, args.n, clip_for(args.base),
                class_words=words)  # fmt: skip
    first = args.out / "concepts" / next(iter(made.scores))
    print(f"draw with one: {next_command('sample', f'a photo of a {made.phrases[0]}', '--concept', first)}")


def clip_for(base: str) -> str:
    """The scorer that goes with a base: Pocket CLIP for the pocket model, ViT-B/32 for all others."""
    return "pocket" if base == "pocket" else "sd15"


def kept_demo(args: argparse.Namespace) -> str:
    if any((args.out / "concepts").glob("*/concept.json")) or any((args.out / "concepts").glob(".*.pt")):
        return f"what was tuned is kept in {args.out / 'concepts'}: the same command goes on from there"
    return "nothing is kept, no step of tuning was finished yet"


def add_lab(commands) -> None:
    c = commands.add_parser("lab", help="open the notebooks in JupyterLab")
    c.set_defaults(check=check_lab, run=run_lab, kept=lambda args: "notebooks are kept as they were last saved")


def check_lab(args: argparse.Namespace) -> None:
    import importlib.util

    if importlib.util.find_spec("jupyterlab") is None:
        raise ImportError('JupyterLab is not installed: pip install "mixofshow_lite[lab]"')


def run_lab(args: argparse.Namespace) -> None:
    import subprocess

    notebooks = Path(__file__).resolve().parents[2] / "notebooks"
    place = notebooks if notebooks.is_dir() else Path.cwd()
    subprocess.run([sys.executable, "-m", "jupyterlab", str(place)], check=False)
