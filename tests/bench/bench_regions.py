"""What regions cost: three of them against a plain sample, and against the official way of doing it.

    python tests/bench/bench_regions.py pocket     # the shipped model
    python tests/bench/bench_regions.py sd15       # random weights in Stable Diffusion 1.5's shapes, no download

Prints the ratios and writes data/results/bench_regions_<shapes>.json. Timed is
the sampling loop with the regions' prompts, without the VAE. The
official way projects every region's keys and values anew at every layer and step, region by region, for both halves of
the batch, crops the query to the box and counts overlaps (with fused attention, which it does not use). Both ways must
predict the same noise: the difference is reported beside the one that the regions make.
"""

import argparse
import json
import math
import platform
import time
from contextlib import contextmanager
from pathlib import Path

import sd15_shapes
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from mixofshow_lite.attention import cross_attention, split_heads
from mixofshow_lite.engine.allocator import keep_freed_memory
from mixofshow_lite.engine.layerwise import LayerAttention
from mixofshow_lite.engine.regional import Region, regional_attention
from mixofshow_lite.model import DiffusionModel, load_base

REGIONS = (
    Region("a red cat", box=(0, 0, 0.5, 1), negative_prompt=""),
    Region("a blue robot", box=(0.5, 0, 1, 1), negative_prompt=""),
    Region("a green frog", box=(0, 0.5, 1, 1), negative_prompt=""),
)  # halves, so that on no feature map the official rounding loses one
PROMPT = "three friends on the beach"


class OfficialAttention(LayerAttention):
    """Region by region as the official code works: `regions` holds (context (2, N, D) of this layer, box)."""

    def __init__(self, plain: LayerAttention, cells: tuple[int, int], regions: list):
        super().__init__(plain.layer, plain.layers, plain.tokens)
        self.cells, self.regions = cells, regions

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        context = self.own_slice(encoder_hidden_states)
        B, T, _ = hidden_states.shape
        query = split_heads(attn.to_q(hidden_states), attn.heads)  # (B, heads, T, d)
        key, value = (split_heads(to(context), attn.heads) for to in (attn.to_k, attn.to_v))
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)  # (B, T, C)
        half = round(math.log2(self.cells[0] * self.cells[1] / T) / 2)
        h, w = (side >> half for side in self.cells)
        summed, count = torch.zeros_like(out).unflatten(1, (h, w)), torch.zeros(h, w, 1).to(out)
        for own, (left, top, right, bottom) in self.regions:
            rows, columns = slice(math.ceil(top * h), int(bottom * h)), slice(math.ceil(left * w), int(right * w))
            crop = query.unflatten(2, (h, w))[:, :, rows, columns]  # (B, heads, rows, columns, d)
            both = own.repeat_interleave(B // 2, 0)  # (B, N, D)
            key, value = (split_heads(to(both), attn.heads) for to in (attn.to_k, attn.to_v))
            attended = F.scaled_dot_product_attention(crop.flatten(2, 3), key, value).transpose(1, 2).flatten(2)
            summed[:, rows, columns] += attended.unflatten(1, crop.shape[2:4])
            count[rows, columns] += 1
        mixed = torch.where(count > 0, summed / count.clamp(min=1), out.unflatten(1, (h, w)))
        return attn.to_out[0](mixed.flatten(1, 2))


@contextmanager
def official_attention(model: DiffusionModel, regions, cells: tuple[int, int]):
    """While on, the model's U-Net draws regions the official way; guided batches, square pictures that halve evenly."""
    contexts = [model.context([region.negative_prompt, region.prompt]).to(model.dtype) for region in regions]
    modules = list(cross_attention(model.unet).values())
    before = [module.processor for module in modules]
    for layer, module in enumerate(modules):
        own = [(c[:, layer].clone(), region.box) for c, region in zip(contexts, regions, strict=True)]
        module.set_processor(OfficialAttention(before[layer], cells, own))
    try:
        yield
    finally:
        for module, processor in zip(modules, before, strict=True):
            module.set_processor(processor)


def random_sd15(device: torch.device, dtype: torch.dtype, autoencoder: bool = False) -> DiffusionModel:
    """A model of Stable Diffusion 1.5's shapes with random weights and the pocket model's words.

    `autoencoder`: of its shapes too; else a small one, where pictures are not what is timed.
    """
    pocket = load_base("pocket", device="cpu", dtype=torch.float32)
    tokenizer = pocket.tokenizer.__class__.from_pretrained(pocket.tokenizer.name_or_path, model_max_length=77)
    torch.manual_seed(0)
    with torch.device(device):
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                **sd15_shapes.TEXT,
            )
        )
        unet = UNet2DConditionModel(**sd15_shapes.UNET)
        vae = AutoencoderKL(
            block_out_channels=(128, 256, 512, 512) if autoencoder else (8, 8, 8, 8),
            layers_per_block=2 if autoencoder else 1,
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            norm_num_groups=32 if autoencoder else 4,
        )
    nets = {"text_encoder": text.to(dtype), "unet": unet.to(dtype), "vae": vae.to(dtype)}
    return DiffusionModel(tokenizer=tokenizer, scheduler=pocket.scheduler, base_id="sd15-shapes", **nets)


def run(model: DiffusionModel, n: int, steps: int, repeats: int) -> dict:
    """Seconds of n pictures drawn plainly, with three regions, and with them the official way; ratios; agreement."""
    noise = model.noise(n, 0)
    context, negative = model.context([PROMPT] * n), model.context("")

    @torch.no_grad()
    def loop() -> torch.Tensor:
        z = model.denoise(noise, context, negative, steps, model.guidance)
        return z.float().cpu()  # waits for the device

    def plain():
        return loop()

    def regional():
        with regional_attention(model, REGIONS, steps=steps):
            return loop()

    def official():
        with official_attention(model, REGIONS, tuple(noise.shape[-2:])):
            return loop()

    with torch.no_grad():  # one call of the U-Net: over many steps rounding grows
        z, t = torch.cat([noise, noise]).to(model.device, model.dtype), 500
        pair = torch.cat([negative.expand_as(context), context]).to(model.dtype)
        with regional_attention(model, REGIONS):
            ours = model.unet(z, t, pair).sample.float()
        with official_attention(model, REGIONS, tuple(noise.shape[-2:])):
            theirs = model.unet(z, t, pair).sample.float()
        bare = model.unet(z, t, pair).sample.float()
    took = {}
    for number in range(repeats + 1):  # taking turns, and the best of each: other programs disturb all three alike
        for work in (plain, regional, official):
            start = time.perf_counter()
            work()
            if number:  # the first round warms up
                took[work.__name__] = min(time.perf_counter() - start, took.get(work.__name__, math.inf))
    return {
        "command": f"python tests/bench/bench_regions.py {model.base_id.split('-')[0]} "
        f"--n {n} --steps {steps} --repeats {repeats}",
        "shapes": model.base_id,
        "device": torch.cuda.get_device_name()
        if model.device.type == "cuda"
        else f"CPU, {torch.get_num_threads()} threads",
        "dtype": str(model.dtype).removeprefix("torch."),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "seconds": took,
        "ratios": {
            "three regions over plain": took["regional"] / took["plain"],
            "official way over plain": took["official"] / took["plain"],
        },
        "difference to the official way, relative": ((ours - theirs).norm() / theirs.norm()).item(),
        "difference to no regions, relative": ((bare - theirs).norm() / theirs.norm()).item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shapes", nargs="?", choices=["pocket", "sd15"], default="pocket")
    parser.add_argument("--n", type=int, default=1, help="pictures at a time")
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", default="data/results")
    args = parser.parse_args()
    keep_freed_memory()  # as the command line does
    cuda = torch.cuda.is_available()
    device, dtype = torch.device("cuda" if cuda else "cpu"), torch.float16 if cuda else torch.float32
    model = load_base("pocket", device, dtype) if args.shapes == "pocket" else random_sd15(device, dtype)
    result = run(model, args.n, args.steps, args.repeats)
    file = Path(args.out) / f"bench_regions_{args.shapes}.json"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))
    print(f"written to {file}")


if __name__ == "__main__":
    main()
