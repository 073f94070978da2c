"""Measure a claim on the shipped base and save it: python -m mixofshow_lite.paper observation_2 --seeds 2"""

import argparse
from pathlib import Path

from ..base import load_base
from ..data import ConceptData
from ..resources import concepts_dir
from . import ablation, observation_1, observation_2, observation_3

MEASURES = {
    "observation_1": observation_1,
    "observation_2": observation_2,
    "observation_3": observation_3,
    "ablation": ablation,
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="mixofshow_lite.paper", description=__doc__)
    parser.add_argument("measure", choices=MEASURES)
    parser.add_argument("--base", default="pocket")
    parser.add_argument("--seeds", type=int, default=1, help="tuning runs per concept")
    parser.add_argument("--pictures", type=int, default=4, help="per tuned concept")
    parser.add_argument("--steps", type=int, help="of tuning (default: the recipe's own)")
    parser.add_argument("--work", type=Path, default=Path("runs/paper"), help="folder that keeps the tuned concepts")
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    args = parser.parse_args()
    data = {p.parent.name: ConceptData(p.parent) for p in sorted(concepts_dir().glob("*/metadata.jsonl"))}
    study = MEASURES[args.measure](
        load_base(args.base), args.work, data, seeds=range(args.seeds), n=args.pictures, steps=args.steps
    )
    for words, found in study.differences.items():
        print(f"{found}  {words}")
    print(study.verdict())
    print(study.save(args.out))


if __name__ == "__main__":
    main()
