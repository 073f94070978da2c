"""Does tuning fit? An estimate of the GPU memory of an ED-LoRA step in Stable Diffusion 1.5's shapes, from any machine.

    python tests/bench/bench_memory.py               # writes data/results/bench_memory.json
    python tests/bench/bench_memory.py --size 512 --batch 2 4

One step's forward pass runs on torch's meta device, which computes shapes and no numbers. What autograd keeps for the
backward pass is counted there, tensor by tensor, each storage once. It is an estimate, not a measurement:

    peak = weights + LoRA, its gradients, AdamW's two moments + kept for backward + the largest things in flight

"fp16" keeps everything in half precision; "mixed" is an upper bound of what autocast does, which keeps some in float32:
it counts everything in float32, beside half-precision weights. Attention is counted as a GPU's fused kernel keeps it:
queries, keys, values and output, never the T x T probabilities. CUDA's own context (0.3 to 0.5 GB), cuDNN's workspaces
and the allocator's fragments are not in it.
"""

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_fusion import networks
from torch import Tensor, nn

from mixofshow_lite.engine import layerwise, lora
from mixofshow_lite.engine.recipes import RECIPES
from mixofshow_lite.files.concept import Bound

GB = 1e9
VAE = 83_653_863  # parameters of Stable Diffusion 1.5's autoencoder
TOKENS, WORDS_AT = 77, (5, 6)  # "<start> a photo of a V_rand V_class ..."
T4 = 15.0  # GB of a free one


class Fused(torch.autograd.Function):
    """What a fused attention kernel keeps for its backward pass; the output has the right shape, no more."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        out = torch.empty(*query.shape[:-1], value.shape[-1], dtype=query.dtype, device=query.device)
        ctx.save_for_backward(query, key, value, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:3])


@contextmanager
def fused_attention() -> Iterator[None]:
    """While on, attention is `Fused`."""
    plain = F.scaled_dot_product_attention
    F.scaled_dot_product_attention = lambda query, key, value, *args, **options: Fused.apply(query, key, value)
    try:
        yield
    finally:
        F.scaled_dot_product_attention = plain


class Kept:
    """Counts what autograd keeps while it is on: bytes of distinct storages, model weights left out."""

    def __init__(self, *networks: nn.Module):
        self.weights = {w.untyped_storage()._cdata for net in networks for w in net.parameters()}
        self.sizes: dict[int, int] = {}

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.weights:
            self.sizes[storage._cdata] = storage.nbytes()
        return tensor  # kept by the graph, so that no other storage takes its address

    def __enter__(self) -> "Kept":
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda tensor: tensor)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        return sum(self.sizes.values())


def forward(text_encoder: nn.Module, unet: nn.Module, batch: int, cells: int, rank: int, device="meta") -> Tensor:
    """The loss of one ED-LoRA step on `batch` latents of cells x cells, LoRAs on every attention linear."""
    lora.attach(text_encoder, rank)
    lora.attach(unet, rank)
    L, dtype = len(layerwise.install(unet, TOKENS)), next(unet.parameters()).dtype
    ids, slots = torch.zeros(batch, TOKENS, dtype=torch.long), torch.full((batch, TOKENS), -1)
    ids[:] = torch.arange(TOKENS)
    ids[:, WORDS_AT[1] + 1 :] += 100 * torch.arange(batch)[:, None]  # different captions, one beginning
    slots[:, WORDS_AT] = torch.tensor([0, 1])
    table = torch.zeros(2, L, text_encoder.config.hidden_size, device=device, requires_grad=True)
    context = torch.stack(layerwise.encode(text_encoder, Bound(ids, slots, []), table, L, share=True)).to(dtype)
    latents = torch.zeros(batch, unet.config.in_channels, cells, cells, device=device, dtype=dtype)
    predicted = unet(latents, torch.full((batch,), 500, device=device), context).sample
    return F.mse_loss(predicted.float(), latents.float())


def step_memory(
    text_encoder: nn.Module, unet: nn.Module, batch: int, cells: int, precision: str = "fp16"
) -> dict[str, float]:
    """Gigabytes (1e9 bytes) of one step, by kind, and their sum `peak`; the networks are on the meta device."""
    weights = sum(w.numel() for net in (text_encoder, unet) for w in net.parameters())
    dtype = torch.float16 if precision == "fp16" else torch.float32
    for net in (text_encoder, unet):
        nn.Module.to(net, dtype)  # diffusers' own warns about layers that this U-Net does not have
    with fused_attention(), Kept(text_encoder, unet) as kept:
        loss = forward(text_encoder, unet, batch, cells, RECIPES["ed_lora"].rank)
    trained = sum(w.numel() for net in (text_encoder, unet) for w in net.parameters() if w.requires_grad)
    flying = 4 * max(kept.sizes.values())  # a layer's input, output and their gradients
    found = {
        "weights": 2 * (weights + VAE),
        "LoRA, gradients, AdamW": 16 * trained,
        "kept for backward": kept.bytes,
        "in flight": flying,
    }
    del loss  # it held the graph, and with it every storage that was counted
    return {k: v / GB for k, v in found.items()} | {"peak": sum(found.values()) / GB}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, default=512, help="pixels of a side")
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--out", type=Path, default=Path("data/results/bench_memory.json"))
    args = parser.parse_args(arguments)
    rows = []
    for batch in args.batch:
        for precision in ("fp16", "mixed"):
            found = step_memory(*networks("sd15"), batch, args.size // 8, precision)
            rows.append({"batch": batch, "precision": precision} | {k: round(v, 2) for k, v in found.items()})
            print("  ".join(f"{k} {v}" for k, v in rows[-1].items()), flush=True)
    result = {
        "command": f"python tests/bench/bench_memory.py --size {args.size} --batch {' '.join(map(str, args.batch))}",
        "what": "an estimate by counting on the meta device, in GB; nothing here was measured on a GPU",
        "shapes": "Stable Diffusion 1.5, ED-LoRA, rank 4",
        "size": args.size,
        "rows": rows,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(f"saved {args.out}; a free T4 has {T4:g} GB")


if __name__ == "__main__":
    main()
