"""Cost of gradient fusion: the paper's LBFGS (500/500/50 iterations) against the closed form, on the same Grams.

    python tests/bench/bench_fusion.py [--quick] [--shapes pocket sd15] [--concepts 2 5 14] [--out FILE]

Weights and features are random, the shapes are real: every attention linear of the model's own configuration, and as
many rows of features as the official procedure records (20 denoising steps of one picture, two prompts, 16 layer
prompts), streamed through the library's recorder and memory. Each distinct shape is solved once and counted as often
as the model has it. Recording and the two solvers run in processes of their own, so that each has its own peak.

Not measured: sampling itself, and the official solver's work on all features instead of their Grams, which is slower.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from mixofshow_lite.engine import lora
from mixofshow_lite.engine.fusion import algebra
from mixofshow_lite.engine.fusion.gradient import RECORDED
from mixofshow_lite.engine.fusion.grams import CONTEXT_LINEAR, GramRecorder, feed
from mixofshow_lite.engine.fusion.memory import Column, Memory
from mixofshow_lite.engine.fusion.report import STAGES
from mixofshow_lite.engine.fusion.settings import default_ridge

ITERATIONS = dict(zip(STAGES, (500, 500, 50), strict=True))  # the paper's
STEPS, RANK, CHUNK = 20, 4, 4096  # denoising steps recorded, rank of a concept's update, rows made at a time
TEXT_ROWS, CONTEXT_ROWS = 176, 6  # of one concept, official: two prompts x L layer prompts; two words and the end


@dataclass(frozen=True)
class Feed:
    """Layers that are fed by one tensor, and how often the model has exactly such a group."""

    stage: str  # one of STAGES
    d_in: int
    d_outs: tuple[int, ...]  # of the layers it feeds
    rows: int  # recorded of one concept
    count: int = 1

    @property
    def name(self) -> str:
        return f"{self.stage}.{self.d_in}.{'-'.join(map(str, self.d_outs))}.{self.rows}"


def networks(shapes: str) -> tuple[nn.Module, nn.Module]:
    """(text encoder, U-Net) without weights: "sd15", or "pocket" from the shipped configuration."""
    if shapes == "sd15":
        import sd15_shapes

        return sd15_shapes.networks()
    from diffusers import UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    from mixofshow_lite.files.resources import pocket_dir

    text = CLIPTextConfig.from_pretrained(pocket_dir() / "text_encoder", local_files_only=True)
    unet = UNet2DConditionModel.load_config(pocket_dir() / "unet", local_files_only=True)
    with torch.device("meta"):
        return CLIPTextModel(text), UNet2DConditionModel.from_config(unet)


def feeds(shapes: str, steps: int = STEPS) -> list[Feed]:
    """The distinct feeds of a model's attention linears, with their counts."""
    text_encoder, unet = networks(shapes)
    side, levels = unet.config.sample_size, len(unet.config.block_out_channels)
    found: dict[str, list] = {}
    for name, linear in lora.attention_linears(text_encoder).items():
        found.setdefault(feed(name), [STAGES[0], linear.in_features, TEXT_ROWS, []])[3].append(linear.out_features)
    for name, linear in lora.attention_linears(unet).items():
        spatial = not CONTEXT_LINEAR.search(name)
        rows = steps * (side >> level(name, levels)) ** 2 if spatial else CONTEXT_ROWS
        group = found.setdefault(feed(name), [STAGES[2] if spatial else STAGES[1], linear.in_features, rows, []])
        group[3].append(linear.out_features)
    counts = Counter((stage, d_in, tuple(d_outs), rows) for stage, d_in, rows, d_outs in found.values())
    return [Feed(*each, count=count) for each, count in counts.items()]


def level(name: str, levels: int) -> int:
    """How often the picture has been halved where a U-Net layer works."""
    block, _, rest = name.partition(".")
    if block == "mid_block":
        return levels - 1
    number = int(rest.split(".")[0])
    return number if block == "down_blocks" else levels - 1 - number


def features(group: Feed, concept: int, seed: int = 0) -> Iterator[Tensor]:
    """Random inputs (chunk, d_in) of one concept: like real ones they vary much in few directions and little in most;
    half of the directions are its own.
    """
    generator = torch.Generator().manual_seed(hash_of(group.name, concept, seed))
    spread = 1 / torch.arange(1, group.d_in + 1).float()  # standard deviation per direction
    half = group.d_in // 2
    order = torch.cat([torch.arange(half), half + torch.randperm(group.d_in - half, generator=generator)])
    for start in range(0, group.rows, CHUNK):
        rows = min(CHUNK, group.rows - start)
        yield torch.randn(rows, group.d_in, generator=generator) * spread.sqrt()[order]


def updates(group: Feed, concept: int) -> list[algebra.LowRankPair]:
    """Random updates of rank RANK of one concept, one per layer of the feed."""
    generator = torch.Generator().manual_seed(hash_of(group.name, concept, 1))
    down = [torch.randn(RANK, group.d_in, generator=generator).double() / group.d_in**0.5 for _ in group.d_outs]
    up = [torch.randn(d_out, RANK, generator=generator).double() for d_out in group.d_outs]
    return list(zip(down, up, strict=True))


def hash_of(name: str, concept: int, seed: int) -> int:
    """The same number for the same case on every machine."""
    return sum(ord(letter) * 31**i for i, letter in enumerate(name)) % 2**40 + 1000 * concept + seed


def record(groups: list[Feed], n: int, memory: Memory) -> None:
    """Stream the features of n concepts into the memory's Grams, one concept and stage at a time."""
    for concept in range(n):
        for stage in dict.fromkeys(group.stage for group in groups):
            recorder = GramRecorder({})
            for group in groups:
                for x in features(group, concept) if group.stage == stage else ():
                    recorder.add(group.name, x[None])
            memory.put(str(concept), stage, recorder.statistics())


def solve(groups: list[Feed], n: int, memory: Memory, solver: str, iterations: dict[str, int]) -> dict:
    """Solve every distinct feed; seconds are those of the solver alone, multiplied by the feed's count."""
    weights = torch.full((n,), 1 / n, dtype=torch.float64)
    seconds = {stage: 0.0 for stage in STAGES}
    lost = at_ridge = whole = 0.0
    for group in groups:
        column = Column([memory.kept[str(i), group.stage] for i in range(n)], group.name)
        own = [list(layer) for layer in zip(*(updates(group, i) for i in range(n)), strict=True)]  # layers x concepts
        start = time.perf_counter()
        normal = algebra.normal_equations(column, weights, 0.0, precision=RECORDED)
        if solver == "closed_form":
            solved = [algebra.closed_form(normal, factors, "base") for factors in own]
        else:
            solved = [algebra.lbfgs(normal, factors, "base", iterations[group.stage]) for factors in own]
        seconds[group.stage] += group.count * (time.perf_counter() - start)
        ridged = algebra.normal_equations(column, weights, default_ridge(n))  # the timed one has none, as in the paper
        for factors, update in zip(own, solved, strict=True):
            lost += group.count * algebra.loss(update, factors, column, weights)
            nothing = algebra.no_update(group.d_in, len(factors[0][1]))
            whole += group.count * algebra.loss(nothing, factors, column, weights)
            update = algebra.closed_form(ridged, factors, "average")
            at_ridge += group.count * algebra.loss(update, factors, column, weights)
    found = {"seconds": sum(seconds.values()), "seconds_by_stage": seconds, "loss": lost / whole}
    return found | ({"loss_with_default_ridge": at_ridge / whole} if solver == "closed_form" else {})


def peak() -> float:
    """Megabytes this process has had at most."""
    status = Path("/proc/self/status")
    if status.is_file():  # unlike ru_maxrss this does not start with the parent's
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def phase(kind: str, case: Path) -> dict:
    """One phase of a case in this process: {"peak_mb": above what the imports took, ...}."""
    about = json.loads((case / "case.json").read_text())
    groups = [Feed(**{**group, "d_outs": tuple(group["d_outs"])}) for group in about["feeds"]]
    memory, before, start = Memory(case / "statistics"), peak(), time.perf_counter()
    with torch.no_grad():
        if kind == "record":
            record(groups, about["concepts"], memory)
            found = {"seconds": time.perf_counter() - start}
        else:
            found = solve(groups, about["concepts"], memory, kind, about["iterations"])
    return found | {"peak_mb": peak() - before}


def in_own_process(kind: str, case: Path) -> dict:
    """`phase` in a fresh Python process."""
    command = [sys.executable, "-m", "mixofshow_lite.bench_fusion", "--phase", kind, str(case)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"The phase {kind} failed: {done.stderr.strip().splitlines()[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(shapes: str, n: int, quick: bool, steps: int = STEPS, solvers=("closed_form", "lbfgs")) -> dict:
    """All phases of one case: n concepts on one model's shapes."""
    groups = feeds(shapes, steps)
    iterations = ITERATIONS
    if quick:  # the smallest feed of every stage, few rows, few iterations: shows that it runs, measures nothing
        smallest = {g.stage: g for g in sorted(groups, key=lambda g: -g.d_in * sum(g.d_outs))}
        groups = [Feed(g.stage, g.d_in, g.d_outs, min(g.rows, 512), g.count) for g in smallest.values()]
        iterations = dict.fromkeys(STAGES, 3)
    with tempfile.TemporaryDirectory() as folder:
        case = {"feeds": [asdict(g) for g in groups], "concepts": n, "iterations": iterations}
        (Path(folder) / "case.json").write_text(json.dumps(case))
        found = {kind: in_own_process(kind, Path(folder)) for kind in ("record", *solvers)}
    found |= {"shapes": shapes, "concepts": n, "steps": steps, "layers": sum(g.count * len(g.d_outs) for g in groups)}
    # Recording here holds the distinct Grams of a stage; a real one holds all of the stage's, whatever is fused.
    totals = [sum(g.count * g.d_in**2 * 8 for g in groups if g.stage == stage) for stage in STAGES]
    found["grams of the largest stage, MB"] = max(totals) / 2**20
    if len(solvers) == 2:
        found["lbfgs over closed form"] = found["lbfgs"]["seconds"] / found["closed_form"]["seconds"]
    return found


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="only see that it runs: few layers, rows and iterations")
    parser.add_argument("--shapes", nargs="+", choices=("pocket", "sd15"), default=["pocket", "sd15"])
    parser.add_argument("--concepts", nargs="+", type=int, default=[2, 5, 14])
    parser.add_argument("--out", type=Path, default=Path("data/results/bench_fusion.json"))
    parser.add_argument("--phase", nargs=2, metavar=("KIND", "CASE"), help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.phase:
        print(json.dumps(phase(args.phase[0], Path(args.phase[1]))))
        return
    result = {
        "command": " ".join(["python tests/bench/bench_fusion.py", *(arguments or sys.argv[1:])]),
        "device": f"CPU, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cases": [],
        "recording by steps": [],
    }
    for shapes in args.shapes:
        for steps in (STEPS // 2, STEPS):
            row = measure(shapes, min(args.concepts), args.quick, steps, ())
            result["recording by steps"].append({k: row[k] for k in ("shapes", "concepts", "steps", "record")})
    print("shapes    n    closed form      LBFGS   ratio      loss     LBFGS  peak MB")
    for shapes in args.shapes:
        for n in args.concepts:
            row = measure(shapes, n, args.quick)
            result["cases"].append(row)
            save(result, args.out)  # at once: all of it takes most of an hour
            a, b = row["closed_form"], row["lbfgs"]
            print(
                f"{shapes:<8}{n:>3}  {a['seconds']:>11.2f} s{b['seconds']:>9.1f} s{b['seconds'] / a['seconds']:>7.0f}x"
                f"{a['loss']:>10.2e}{b['loss']:>10.2e}{a['peak_mb']:>9.0f}",
                flush=True,
            )
    print(f"saved {args.out}")


def save(result: dict, file: Path) -> None:
    """Write the result as JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
