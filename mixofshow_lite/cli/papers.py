"""paper: a table or figure of the paper, with our concepts, the paper's numbers beside ours."""

import argparse
from pathlib import Path

from . import options
from .shows import clip_for

FIGURES = tuple(f"figure{number}" for number in range(1, 8))
NAMES = ("table1", "table2a", "table2c", *FIGURES)  # as paper.reproduce has them
ALL = tuple(name for name in NAMES if name != "table2c")  # what needs no people


def add_paper(commands) -> None:
    c = commands.add_parser("paper", help="a table or figure of the paper, measured with the shipped concepts")
    c.add_argument("name", choices=(*NAMES, "all"), help="table2c reads the votes of --votes")
    c.add_argument("--quick", action="store_true", help="a slice of it in minutes; says whether the saved one agrees")
    c.add_argument("--work", type=Path, default=Path("runs/paper"), help="folder that keeps what is tuned and measured")
    c.add_argument("--out", type=Path, default=Path("out/paper"), help="folder for the result (.csv, .json, .webp)")
    c.add_argument("--votes", type=Path, default=Path("out/votes.jsonl"), help="of table2c: what people answered")
    c.add_argument("--steps", type=options.whole(1), help="of tuning (default: the recipes' own)")
    c.add_argument("--clip", help="what reads the pictures: pocket, sd15 or a folder (default: the base's)")
    options.add_base(c)
    c.set_defaults(check=check_paper, run=run_paper, kept=kept_paper)


def check_paper(args: argparse.Namespace) -> None:
    options.check_base(args.base)
    if args.out.exists() and not args.out.is_dir():
        raise FileExistsError(f"{args.out} is no folder: choose another by --out")


def run_paper(args: argparse.Namespace) -> None:
    from ..paper import reproduce

    if args.name == "table2c":
        from ..paper.ballots import vote_study

        found = reproduce.voted(args.votes)
        print(found)
        print(f"saved {vote_study(found, options.load(args)).save(args.out)}")
        return
    from ..engine.evaluation import load_scorer
    from ..files.resources import data_dir
    from ..paper.study import Study

    base, scorer = options.load(args), load_scorer(args.clip or clip_for(args.base))
    data = read_concepts(base)
    for name in ALL if args.name == "all" else (args.name,):
        study = reproduce.reproduce(name, base, args.work, data, args.quick, args.steps, scorer)
        print(f"{name}\n{reproduce.text(study)}")
        if args.quick:
            try:
                print(reproduce.agreement(Study.load(data_dir() / "results", name), study))
            except FileNotFoundError:
                print(f"there is no saved {name} to compare with")
        print(f"saved {study.save(args.out)}")


def read_concepts(base) -> dict:
    """The shipped concepts, drawn at the base's size."""
    from ..course import concepts_at
    from ..files.data import ConceptData

    folder = concepts_at(base.size[0])
    return {place.parent.name: ConceptData(place.parent) for place in sorted(folder.glob("*/metadata.jsonl"))}


def kept_paper(args: argparse.Namespace) -> str:
    return f"what was tuned and measured is kept in {args.work}: the same command goes on from there"
