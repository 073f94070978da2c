"""Speed and memory in one run, as ratios: `make bench` prints the table and writes data/results/bench_<base>.json.

    python tests/bench/bench_speed.py pocket   # the shipped model
    python tests/bench/bench_speed.py sd15     # tuning, random weights in Stable Diffusion 1.5's shapes, no download

row              against
four pictures    the bare U-Net calls of the same 25 guided steps
two regions      the same pictures without regions
a tuning step    its floor: the bare U-Net forward and backward on as many pictures, plus the bare text encoder's on as
                 many tokens as a batch's prompts have distinct beginnings on average (what nothing can share)
                 a step of a loop that does what the official one does, see `official_seconds`

A shared machine is fast and slow by turns: what is compared is measured in turns too, and the fastest of all turns
counts, which is nearest to what the work itself needs. Tuning's turns are means of several steps, whose batches differ:
two pictures may have one prompt, which is read once.
"""

import json
import platform
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from bench_regions import random_sd15
from peft.tuners.lora import Linear

from mixofshow_lite.diffusion import draw_noise
from mixofshow_lite.engine import layerwise, lora
from mixofshow_lite.engine.allocator import keep_freed_memory
from mixofshow_lite.engine.recipes import Recipe
from mixofshow_lite.engine.regional import Region
from mixofshow_lite.engine.tuning import recipe_for, tune
from mixofshow_lite.engine.wording import init_rows
from mixofshow_lite.files.concept import bind
from mixofshow_lite.files.data import ConceptData, fit
from mixofshow_lite.files.resources import concepts_dir
from mixofshow_lite.model import DiffusionModel, denoising_loss, load_base


def seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """Mean seconds of `work`, after one call that does not count."""
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    work(), wait()
    start = time.perf_counter()
    for _ in range(repeats):
        work(), wait()
    return (time.perf_counter() - start) / repeats


def in_turns(turns: int, **measures: Callable[[], float]) -> dict[str, float]:
    """Every measure once a turn -> the least that each gave."""
    found = [{name: measure() for name, measure in measures.items()} for _ in range(turns)]
    return {name: min(each[name] for each in found) for name in measures}


def unet_seconds(base: DiffusionModel, batch: int, backward: bool, repeats: int = 3) -> float:
    """One call of the bare U-Net on `batch` noisy latents, with or without the backward pass to inputs and context."""
    z = base.noise(batch, 0).to(base.device, base.dtype)  # (B, C, h, w)
    context = base.context(["a red cat on the beach"] * batch).to(base.dtype)  # (B, L, N, D)
    t = torch.full((batch,), 500, device=base.device)
    if not backward:
        with torch.no_grad():
            return seconds(lambda: base.unet(z, t, context), repeats)
    z, context = z.requires_grad_(), context.requires_grad_()
    return seconds(lambda: base.unet(z, t, context).sample.square().mean().backward(), repeats)


def first_concept() -> ConceptData:
    """The first shipped concept."""
    return ConceptData(next(p.parent for p in sorted(concepts_dir().glob("*/metadata.jsonl"))))


def tuning_seconds(base: DiffusionModel, data: ConceptData, recipe: Recipe, steps: int = 4) -> float:
    """Mean seconds of a step, the first left out."""
    marks: list[float] = []
    tune(base, data, recipe, steps=steps, progress=False, callback=lambda _: marks.append(time.perf_counter()))
    return (marks[-1] - marks[0]) / (steps - 1)


def tokens_a_step(base: DiffusionModel, prompts: list[str], words: tuple[str, ...], batch: int, draws: int = 50) -> int:
    """How many distinct beginnings the layer prompts of `batch` of the prompts have, the mean of some draws."""
    generator, counts, L = torch.Generator().manual_seed(0), [], len(base.layers)
    for _ in range(draws):
        drawn = {prompts[i] for i in torch.randperm(len(prompts), generator=generator)[:batch].tolist()}
        bound = bind(base.tokenizer, sorted(drawn), words)
        counts.append(len(layerwise.prefix_tree(bound, [L] * len(drawn)).ids))
    return round(sum(counts) / draws)


def text_seconds(
    base: DiffusionModel, prompts: list[str], words: tuple[str, ...], batch: int, repeats: int = 3
) -> float:
    """The bare text encoder forward and backward on as many tokens as `tokens_a_step`, in prompts of one length."""
    model, L = base.copy(), len(base.layers)
    if base.device.type == "cpu":
        model.text_encoder.set_attn_implementation("eager")  # the faster one there, see layerwise.faster_written_out
    length = max(1, round(tokens_a_step(base, prompts, words, batch) / (L * batch)))
    ids = bind(model.tokenizer, prompts[:1], words).ids[:, :length].expand(L * batch, -1).to(base.device)
    start = torch.zeros((), device=base.device, requires_grad=True)
    embedding = model.text_encoder.get_input_embeddings()
    embedding.register_forward_hook(lambda module, args, out: out + start.to(out.dtype))  # so that gradients flow back
    return seconds(lambda: model.text_encoder(ids)[0].square().mean().backward(), repeats)


def official_seconds(base: DiffusionModel, data: ConceptData, recipe: Recipe, fused: bool, steps: int = 5) -> float:
    """Mean seconds of a step that does what the official loop does, on the same model, batch and LoRAs (peft's own).

    It encodes the pictures at each step, runs the text encoder on all L prompts of each from the first token to the
    last, and trains the whole table of token embeddings, old rows put back afterwards. `fused`: with the attention
    kernels that diffusers and transformers choose, as a loop built on them has; else with this library's.
    """
    model, words = base.copy(), ("<v1>", "<v2>")
    L, generator = len(base.layers), torch.Generator().manual_seed(0)
    for net in (model.text_encoder, model.unet):
        lora.attach(net, recipe.rank, layer=Linear)
    rows = init_rows(base, recipe, words, data.class_word or "thing", 0)
    old = base.text_encoder.get_input_embeddings().weight.detach().float()  # (vocabulary, D)
    table = torch.nn.Embedding.from_pretrained(torch.cat([old, *(row.data for row in rows.values())]), freeze=False)
    model.text_encoder.set_input_embeddings(table)
    bound = bind(base.tokenizer, data.prompts(" ".join(words)), words)
    new = len(old) + bound.slots.clamp(min=0)[:, None] * L + torch.arange(L)[:, None]  # (P, L, N)
    ids = torch.where(bound.slots[:, None] >= 0, new, bound.ids[:, None])  # (P, L, N) token ids
    weights = [w for net in (model.text_encoder, model.unet) for w in net.parameters() if w.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=1e-6)
    pictures = [fit(picture, base.size) for picture in data.pictures]

    def step() -> None:
        pick = torch.randint(len(data), (recipe.batch,), generator=generator)
        latents = base.encode_images([pictures[i] for i in pick]).float()  # (B, C, h, w)
        with torch.autocast(base.device.type, base.dtype, enabled=base.dtype != torch.float32):
            context = model.text_encoder(ids[pick].flatten(0, 1).to(base.device))[0].unflatten(0, (len(pick), L))
            t, noise = draw_noise(base, latents.shape, recipe.noise_offset, generator)
            loss = denoising_loss(model, latents, context, noise, t)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            table.weight[: len(old)] = old

    kept = layerwise.LARGEST_WRITTEN_OUT
    layerwise.LARGEST_WRITTEN_OUT = 0 if fused else kept
    try:
        if not fused and base.device.type == "cpu":
            model.text_encoder.set_attn_implementation("eager")
        return seconds(step, steps)
    finally:
        layerwise.LARGEST_WRITTEN_OUT = kept


def sampling(base: DiffusionModel, steps: int = 25, turns: int = 8) -> tuple[dict, dict]:
    """Seconds and ratios of drawing four pictures."""
    prompt = "two friends on the beach"
    regions = [Region("a red cat", box=(0, 0.1, 0.5, 1)), Region("a blue robot", box=(0.5, 0.1, 1, 1))]
    plain, regional, bare = in_turns(
        turns,
        plain=lambda: seconds(lambda: base.sample(prompt, n=4, steps=steps, progress=False), 1),
        regional=lambda: seconds(lambda: base.sample(prompt, n=4, steps=steps, regions=regions, progress=False), 1),
        bare=lambda: unet_seconds(base, 8, False),
    ).values()
    ratios = {"sampling over its U-Net calls": plain / (steps * bare), "two regions over none": regional / plain}
    return {"four pictures": plain, "four with two regions": regional}, ratios


def tuning(
    base: DiffusionModel, data: ConceptData, recipe: Recipe, turns: int = 8, repeats: int = 10, careful: bool = True
) -> tuple[dict, dict]:
    """Seconds and ratios of a step; `careful` also measures the official loop with this library's attention."""
    words = ("<v1>", "<v2>")
    prompts = data.prompts(" ".join(words))
    measures = {
        "step": lambda: tuning_seconds(base, data, recipe, repeats + 1),
        "unet": lambda: unet_seconds(base, recipe.batch, True, repeats),
        "text": lambda: text_seconds(base, prompts, words, recipe.batch, repeats),
        "official": lambda: official_seconds(base, data, recipe, True, repeats),
        "careful": lambda: official_seconds(base, data, recipe, False, repeats),
    }
    if not careful:
        del measures["careful"]
    found = in_turns(turns, **measures)
    step, unet, text, official = (found[name] for name in ("step", "unet", "text", "official"))
    took = {
        "tuning step": step,
        "of it U-Net, at least": unet,
        "of it text encoder, at least": text,
        "of it LoRA, AdamW and the rest": step - unet - text,
        "a step as the official loop does it": official,
    }
    ratios = {"tuning step over its floor": step / (unet + text), "official step over ours": official / step}
    if careful:
        ratios["official step with our attention over ours"] = found["careful"] / step
    return took, ratios


def run(shapes: str = "pocket") -> dict:
    """All rows, with the machine they were measured on; seconds are of this run, the ratios are what to compare."""
    data = first_concept()
    if shapes == "sd15":
        cuda = torch.cuda.is_available()
        device, dtype = torch.device("cuda" if cuda else "cpu"), torch.float16 if cuda else torch.float32
        base = random_sd15(device, dtype, autoencoder=True)
        data.pictures, data.masks = [p.resize(base.size[::-1]) for p in data.pictures], [None] * len(data)
        # one client's step on one GPU; the loss of Eq. 1 alone, which is all that the reference loop computes
        recipe = replace(recipe_for(base, "ed_lora"), batch=2, variants=1, background=1.0, attention=0.0)
        took, ratios = tuning(base, data, recipe, turns=2, repeats=1, careful=False)
    else:
        base = load_base(shapes)
        took, ratios = sampling(base)
        recipe = recipe_for(base, "ed_lora")
        for found, more in zip((took, ratios), tuning(base, data, recipe), strict=True):
            found |= more
    unit = 2**30 if sys.platform == "darwin" else 2**20  # bytes there, KiB elsewhere
    return {
        "command": f"python tests/bench/bench_speed.py {shapes}",
        "base": base.base_id,
        "device": torch.cuda.get_device_name()
        if base.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "dtype": str(base.dtype).removeprefix("torch."),
        "pixels, pictures a step": [*base.size, recipe.batch],
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": took,
        "ratios": ratios,
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
    keep_freed_memory()  # as the command line does
    result = run(*sys.argv[1:])
    for kind in ("seconds", "ratios"):
        for name, value in result[kind].items():
            print(f"{name:<46}{value:9.2f}{' s' if kind == 'seconds' else ' x'}")
    print(f"{'peak memory':<46}{result['peak memory GiB']:9.2f} GiB")
    print(f"written to {save(result, Path('data/results'))}")


if __name__ == "__main__":
    main()
