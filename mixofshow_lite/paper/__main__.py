"""Measure a claim on the shipped base and save it: python -m mixofshow_lite.paper observation_2 --seeds 2

`all` runs every study, `sweep` the recorded sweep of a recipe's numbers; both go on where they stopped. `ship` copies
the tuned look-alikes to data/tuned, for the notebooks. `claims` prints what became of the paper's claims and which way
to merge is for whom, from what is saved in --out; with --readme it writes the table there.
"""

import argparse
from pathlib import Path

from ..engine.allocator import keep_freed_memory
from ..files.data import ConceptData
from ..files.resources import concepts_dir
from ..model import load_base
from . import advice, claims, everything, sweep


def main() -> None:
    parser = argparse.ArgumentParser(prog="mixofshow_lite.paper", description=__doc__)
    parser.add_argument("measure", choices=[*everything.JOBS, "all", "sweep", "ship", "claims"])
    parser.add_argument("--base", default="pocket")
    parser.add_argument("--seeds", type=int, default=1, help="tuning runs per concept")
    parser.add_argument("--pictures", type=int, help="per tuned concept; of `binding`, per prompt (default: 4 or 3)")
    parser.add_argument("--steps", type=int, help="of tuning (default: the recipe's own)")
    parser.add_argument("--work", type=Path, default=Path("runs/paper"), help="folder that keeps the tuned concepts")
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    parser.add_argument("--minutes", type=float, help="of `all` and `sweep`: stop then, go on the next time")
    parser.add_argument("--recipe", default="ed_lora", help="of `sweep`")
    parser.add_argument("--readme", type=Path, help="of `claims`: the file whose table is made anew")
    args = parser.parse_args()
    keep_freed_memory()
    if args.measure == "claims":
        return tell(args)
    data = {p.parent.name: ConceptData(p.parent) for p in sorted(concepts_dir().glob("*/metadata.jsonl"))}
    if args.measure == "ship":
        return print(*everything.ship(load_base(args.base), args.work), sep="\n")
    if args.measure in ("all", "sweep"):
        return longer(args, data)
    job = everything.JOBS[args.measure]
    options = {"seeds": range(args.seeds), "n": args.pictures or job.pictures, "steps": args.steps}
    study = job.measure(load_base(args.base), args.work, data, **options)
    for words, found in study.differences.items():
        print(f"{found}  {words}")
    print(study.verdict())
    print(study.save(args.out))


def tell(args: argparse.Namespace) -> None:
    """`claims`."""
    base = load_base(args.base)
    print(claims.table(args.out, base.fingerprint), advice.advise(args.out, base), sep="\n\n")
    if args.readme is not None:
        claims.write(args.readme, args.out, base.fingerprint)


def longer(args: argparse.Namespace, data: dict[str, ConceptData]) -> None:
    """`all` and `sweep`."""
    base, places = load_base(args.base), (args.work, args.out)
    if args.measure == "all":
        options = {"minutes": args.minutes, "seeds": args.seeds, "n": args.pictures, "steps": args.steps}
        left = everything.run(base, data, *places, **options)
        print(f"still to do: {', '.join(left)}" if left else "everything is measured")
        return
    options = {"recipe": args.recipe, "seeds": range(args.seeds), "n": args.pictures or 4, "minutes": args.minutes}
    rows = sweep.sweep(base, data, *places, **options)
    for trial, (identity, follows) in sweep.summary(rows).items():
        print(f"{trial:20} identity {identity:.3f}  follows {follows:.2f}")
    print(f"best so far: {sweep.best(rows)}")


if __name__ == "__main__":
    main()
