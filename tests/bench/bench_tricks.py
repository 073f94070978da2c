"""Each speed trick of a tuning step switched off alone, in turns within one run: python tests/bench/bench_tricks.py.

    python tests/bench/bench_tricks.py pocket              # the shipped model
    python tests/bench/bench_tricks.py sd15 --rounds 5     # random weights in Stable Diffusion 1.5's shapes

One tuning goes on, and from step to step another trick is off: batches differ, so every trick meets many of them, and
what counts is the median of the ratios to the neighbouring step with all tricks on. A trick that saves less than 5 % on
both shapes is not worth its lines. Writes data/results/bench_tricks_<shapes>.json.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from bench_regions import random_sd15
from bench_speed import first_concept
from peft.tuners.lora import Linear

from mixofshow_lite.engine import layerwise, lora, wording
from mixofshow_lite.engine.allocator import keep_freed_memory
from mixofshow_lite.engine.recipes import Recipe, recipe_for
from mixofshow_lite.engine.tuning import tune
from mixofshow_lite.files.data import ConceptData
from mixofshow_lite.model import DiffusionModel, load_base


def unshared(text_encoder, bound, table, L, share):
    """Every layer prompt from its first token to its last."""
    return layerwise.encode(text_encoder, bound, table, L, share=False)


OFF: dict[str, Callable] = {  # trick -> a context manager that switches it off
    "prompts share their beginnings": lambda: patch.object(wording, "encode", unshared),
    "attention written out": lambda: patch.object(layerwise, "LARGEST_WRITTEN_OUT", 0),
    "low-rank products in one function": lambda: patch.object(lora.LowRankLinear, "forward", Linear.forward),
}


@contextmanager
def switches(names: list[str]) -> Iterator[Callable[[int], str | None]]:
    """A function that takes a step's number, switches that step's trick off and all others on, and returns its name.

    Every second step has all of them on: None.
    """
    on: list = []

    def set_for(step: int) -> str | None:
        while on:
            on.pop().__exit__(None, None, None)
        name = None if step % 2 == 0 else names[step // 2 % len(names)]
        if name is not None:
            on.append(OFF[name]())
            on[-1].__enter__()
        return name

    try:
        yield set_for
    finally:
        while on:
            on.pop().__exit__(None, None, None)


def measure(base: DiffusionModel, data: ConceptData, recipe: Recipe, rounds: int) -> dict[str, list[float]]:
    """Seconds of a step without a trick over those of the step before, which has all: trick -> `rounds` ratios."""
    names, ratios, last = list(OFF), {name: [] for name in OFF}, {}
    with switches(names) as set_for:

        def each(record: dict) -> None:
            now = time.perf_counter()
            if "began" in last:
                took = now - last["began"]
                if last["name"] is not None and "took" in last:
                    ratios[last["name"]].append(took / last["took"])
                last["took"] = took
            last["name"] = set_for(record["step"] + 1)
            last["began"] = time.perf_counter()

        tune(base, data, recipe, steps=2 * rounds * len(names) + 2, progress=False, callback=each)
    return ratios


def summary(ratios: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    """Median and quartiles of what a step without a trick costs, against one with all."""
    found = {}
    for name, values in ratios.items():
        low, median, high = (round(float(x), 3) for x in np.quantile(values, (0.25, 0.5, 0.75)))
        found[name] = {"median": median, "quartiles": [low, high], "steps": len(values)}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", choices=("pocket", "sd15"), nargs="?", default="pocket")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--out", type=Path, default=Path("data/results"))
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    data = first_concept()
    if args.shapes == "sd15":
        base = random_sd15(torch.device("cpu"), torch.float32, autoencoder=True)
        data.pictures, data.masks = [p.resize(base.size[::-1]) for p in data.pictures], [None] * len(data)
        recipe = replace(recipe_for(base, "ed_lora"), batch=2, variants=1, background=1.0, attention=0.0)
    else:
        base = load_base(args.shapes, device="cpu")
        recipe = recipe_for(base, "ed_lora")
    result = {
        "command": f"python tests/bench/bench_tricks.py {args.shapes} --rounds {args.rounds}",
        "base": base.base_id,
        "device": f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
        "torch": torch.__version__,
        "a step without it, over one with all": summary(measure(base, data, recipe, args.rounds)),
    }
    for name, found in result["a step without it, over one with all"].items():
        print(f"{name:38}{found['median']:6.3f} x  {found['quartiles']}")
    file = args.out / f"bench_tricks_{args.shapes}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}")


if __name__ == "__main__":
    main()
