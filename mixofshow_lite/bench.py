"""Speed and memory in one run, as ratios: `make bench` prints the table and writes data/results/bench_<base>.json.

row              against
four pictures    the bare U-Net calls of the same 25 guided steps
two regions      the same pictures without regions
a tuning step    one U-Net forward and backward on the same batch (what no recipe can avoid)
"""

import json
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from .base import DiffusionModel, load_base
from .data import ConceptData
from .regional import Region
from .resources import concepts_dir
from .tuning import RECIPES, tune


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Median seconds of `work`, after one call that does not count."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def unet_seconds(base: DiffusionModel, batch: int, backward: bool) -> float:
    """One call of the bare U-Net on `batch` noisy latents, with or without the backward pass to inputs and context."""
    z = base.noise(batch, 0).to(base.device, base.dtype)  # (B, C, h, w)
    context = base.context(["a red cat on the beach"] * batch).to(base.dtype)  # (B, L, N, D)
    t = torch.full((batch,), 500, device=base.device)
    if not backward:
        with torch.no_grad():
            return seconds(lambda: base.unet(z, t, context))
    z, context = z.requires_grad_(), context.requires_grad_()
    return seconds(lambda: base.unet(z, t, context).sample.square().mean().backward())


def tuning_seconds(base: DiffusionModel, steps: int = 6) -> float:
    """Median seconds of an ED-LoRA step on the first shipped concept."""
    marks: list[float] = []
    folder = next(p.parent for p in sorted(concepts_dir().glob("*/metadata.jsonl")))
    tune(base, ConceptData(folder), steps=steps, progress=False, callback=lambda _: marks.append(time.perf_counter()))
    return statistics.median(b - a for a, b in zip(marks, marks[1:], strict=False))


def run(base: DiffusionModel, steps: int = 25) -> dict:
    """All rows, with the machine they were measured on; seconds are of this run, the ratios are what to compare."""
    prompt, batch = "two friends on the beach", RECIPES["ed_lora"].batch
    regions = [Region("a red cat", box=(0, 0.1, 0.5, 1)), Region("a blue robot", box=(0.5, 0.1, 1, 1))]
    plain = seconds(lambda: base.sample(prompt, n=4, steps=steps, progress=False))
    regional = seconds(lambda: base.sample(prompt, n=4, steps=steps, regions=regions, progress=False))
    bare, step, floor = unet_seconds(base, 8, False), tuning_seconds(base), unet_seconds(base, batch, True)
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return {
        "command": "make bench",
        "base": base.base_id,
        "device": torch.cuda.get_device_name()
        if base.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": {"four pictures": plain, "four with two regions": regional, "tuning step": step},
        "ratios": {
            "sampling over its U-Net calls": plain / (steps * bare),
            "two regions over none": regional / plain,
            "tuning step over U-Net forward and backward": step / floor,
        },
        "peak memory GiB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit,
    }


def save(result: dict, folder: Path) -> Path:
    """Write the result as JSON, numbers to three digits, and return the file."""
    short = {k: {n: round(x, 3) for n, x in v.items()} if isinstance(v, dict) else v for k, v in result.items()}
    short["peak memory GiB"] = round(result["peak memory GiB"], 2)
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"bench_{result['base']}.json"
    file.write_text(json.dumps(short, indent=2) + "\n", encoding="utf-8")
    return file


def main() -> None:
    result = run(load_base(sys.argv[1] if len(sys.argv) > 1 else "pocket"))
    for kind in ("seconds", "ratios"):
        for name, value in result[kind].items():
            print(f"{name:<46}{value:9.2f}{' s' if kind == 'seconds' else ' x'}")
    print(f"{'peak memory':<46}{result['peak memory GiB']:9.2f} GiB")
    print(f"written to {save(result, Path('data/results'))}")


if __name__ == "__main__":
    main()
