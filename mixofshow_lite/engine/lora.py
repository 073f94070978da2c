"""Low-rank adaptation (paper 3.1): W = W0 + dW = W0 + scale * B @ A on every attention linear of both networks.

    paper   here    shape
    A       down    (r, d_in)     kaiming-uniform at the start
    B       up      (d_out, r)    zero at the start, so tuning starts from W0 exactly
    dW      delta   (d_out, d_in) scale * up @ down; scale is alpha itself (1.0), as in the official code, not alpha / r

Training goes through peft; what is trained comes out as plain factors, and a finished update is added into the weights
of a copy that shares every other tensor. A step's LoRA costs its thin products alone, see `LowRank`. Module names of
the text encoder are relative to its core, with no `text_model.` prefix, so that they do not depend on the version of
transformers.
"""

import copy
import itertools
import re
from collections import OrderedDict
from functools import lru_cache

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Linear, LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from ..files.concept import LoRAFactors
from ..lora import attention_linears, core
from .finite import is_finite

# What LoRAs of other trainers change as well: the feed-forward layers and the 1x1 projections of a transformer block.
OTHER_LAYER = re.compile(
    r"^encoder\.layers\.\d+\.mlp\.fc[12]$"
    r"|\.attentions\.\d+\.(proj_(in|out)|transformer_blocks\.\d+\.ff\.net\.(0\.proj|2))$"
)


def adaptable(net: nn.Module) -> dict[str, nn.Module]:
    """Every layer that a LoRA file may update, name -> module: attention, then feed-forward and projections.

    A projection of Stable Diffusion 1.x is a 1x1 convolution with weight (d_out, d_in, 1, 1), all others are linear.
    """
    others = {n: m for n, m in core(net).named_modules() if OTHER_LAYER.search(n) and hasattr(m, "weight")}
    return attention_linears(net) | others


def share(net: nn.Module) -> nn.Module:
    """A copy of the modules whose weights lie in the original's memory, as parameters of its own.

    `.to(dtype)`, `.half()` or `.cuda()` on the copy therefore leave the original alone; only what writes into the
    numbers themselves (`weight.mul_(2)`) reaches both. The same as `copy.deepcopy`, in half its time: the many empty
    containers of a module are made anew, and everything else is copied deeply.
    """
    twins = {id(module): module.__new__(type(module)) for module in net.modules()}
    twins |= {id(tensor): view(tensor) for tensor in itertools.chain(net.parameters(), net.buffers())}
    for module in net.modules():
        own = vars(twins[id(module)])
        for name, value in vars(module).items():
            empty = type(value) in (dict, OrderedDict, set) and not value
            own[name] = type(value)() if empty else copy.deepcopy(value, twins)
    return twins[id(net)]


def view(tensor: Tensor) -> Tensor:
    """Another tensor or parameter in the same memory."""
    same = tensor.detach()
    return nn.Parameter(same, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else same


class LowRank(torch.autograd.Function):
    """y = x W0^T + bias + scale * x down^T up^T, (..., d_in) to (..., d_out), with W0 and bias frozen.

    The same function as peft's, whose LoRA is a fifth of a step on a CPU: each sum and scale there makes a copy of the
    features, forward and backward, and autograd's order of some products, r columns wide, is the slow one.
    """

    @staticmethod
    def forward(ctx, x: Tensor, W0: Tensor, bias: Tensor | None, down: Tensor, up: Tensor, scale: float) -> Tensor:
        y = linear(x, W0, bias)  # (..., d_out), under autocast in its precision
        x, W0, down, up = (tensor.to(y.dtype) for tensor in (x, W0, down, up))
        h = linear(x.flatten(0, -2), down)  # (n, r)
        y.view(-1, len(up)).addmm_(h, up.T, alpha=scale)
        ctx.save_for_backward(x, W0, h, down, up)
        ctx.scale = scale
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # dL/dy, like y
        x, W0, h, down, up = ctx.saved_tensors
        g = grad.reshape(-1, len(up))  # (n, d_out)
        g_h = ctx.scale * linear(g, up.T.contiguous())  # (n, r)
        g_x = (g @ W0).addmm_(g_h, down).view_as(x) if ctx.needs_input_grad[0] else None
        g_down = g_h.T @ x.flatten(0, -2) if ctx.needs_input_grad[3] else None
        g_up = ctx.scale * (h.T @ g).T if ctx.needs_input_grad[4] else None
        return g_x, None, None, g_down, g_up, None  # autograd casts each to its tensor's own precision


class LowRankLinear(Linear):
    """peft's linear with the sum above, for one adapter without dropout."""

    def forward(self, x: Tensor) -> Tensor:
        if self.disable_adapters or self.merged or tuple(self.active_adapters) != ("default",):
            return super().forward(x)
        frozen, down, up = self.base_layer, self.lora_A["default"].weight, self.lora_B["default"].weight
        return LowRank.apply(x, frozen.weight, frozen.bias, down, up, self.scaling["default"])


def attach(net: nn.Module, rank: int | None, only: str = "", layer: type[Linear] = LowRankLinear) -> dict[str, Linear]:
    """Put a trainable LoRA on the attention linears of `net` (in place; give it a `share`), name -> peft layer.

    `only` is a regular expression the names must contain. Only the factors are trainable afterwards, in float32. Rank
    None trains the whole update: `down` is the identity and stays it, `up` is dW itself (for Custom Diffusion).
    `layer` is the kind of peft layer; peft's own, `peft.tuners.lora.Linear`, computes the same.
    """
    linears = {name: module for name, module in attention_linears(net).items() if re.search(only, name)}
    widths = {module.in_features for module in linears.values()}
    if not linears or (rank is None and len(widths) > 1):
        raise ValueError(
            f"only={only!r} selects layers with {len(widths)} input widths: select some, all of one width."
        )
    r = widths.pop() if rank is None else rank
    pattern = "|".join(map(re.escape, linears))
    config = LoraConfig(r=r, lora_alpha=r, lora_dropout=0.0, bias="none", target_modules=f"({pattern})")
    config._register_custom_module({nn.Linear: layer})  # peft's way to bring one's own layer
    inject_adapter_in_model(config, core(net))
    layers = attached(net)
    if sorted(layers) != sorted(linears):
        raise RuntimeError(f"peft attached {len(layers)} LoRA layers where {len(linears)} were expected.")
    for attached_layer in layers.values():
        attached_layer.lora_A.float(), attached_layer.lora_B.float()
        if rank is None:
            nn.init.eye_(attached_layer.lora_A["default"].weight).requires_grad_(False)
    return layers


def start_normal(net: nn.Module, std: float) -> None:
    """Draw the `down` of every attached LoRA from a normal distribution instead (in place)."""
    for layer in attached(net).values():
        nn.init.normal_(layer.lora_A["default"].weight, std=std)


def start_orthogonal(net: nn.Module, slot: int) -> None:
    """Give every attached LoRA the rows of its slot of one orthogonal matrix as `down`, and freeze it (in place).

    Equal for all who ask, so that different slots never share a direction. Raises ValueError where the narrowest layer
    has no room for the slot.
    """
    layers = attached(net)
    room = min(layer.in_features // layer.r["default"] for layer in layers.values())
    if not 0 <= slot < room:
        rank = max(layer.r["default"] for layer in layers.values())
        raise ValueError(
            f"There is no slot {slot}: the narrowest layer has room for {room} concepts of rank {rank} (its width / "
            f"rank), slots 0 to {room - 1}. Tune with a smaller rank, or fuse without orthogonal slots."
        )
    for layer in layers.values():
        down = layer.lora_A["default"].weight
        r, d_in = down.shape
        down.data.copy_(orthogonal_matrix(d_in)[slot * r : (slot + 1) * r])
        down.requires_grad_(False)


@lru_cache
def orthogonal_matrix(width: int, seed: int = 0) -> Tensor:
    """(width, width) float64, drawn uniformly among the orthogonal matrices; the same for the same width and seed."""
    drawn = torch.randn(width, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    Q, R = torch.linalg.qr(drawn)
    return Q * R.diagonal().sign()  # unique, whichever signs the library's QR chooses


def attached(net: nn.Module) -> dict[str, LoraLayer]:
    """The peft layers on `net`, name -> layer."""
    return {name: module for name, module in core(net).named_modules() if isinstance(module, LoraLayer)}


def scale(net: nn.Module, alpha: float) -> None:
    """Set alpha of every attached LoRA: W = W0 + alpha * up @ down."""
    for layer in attached(net).values():
        layer.scaling["default"] = alpha


def extract(net: nn.Module) -> LoRAFactors:
    """The attached factors as detached float32 CPU tensors, name -> (down (r, d_in), up (d_out, r))."""
    layers = attached(net).items()
    pairs = {name: (layer.lora_A["default"].weight, layer.lora_B["default"].weight) for name, layer in layers}
    return {
        name: (down.detach().float().cpu().clone(), up.detach().float().cpu().clone())
        for name, (down, up) in pairs.items()
    }


def delta(down: Tensor, up: Tensor, alpha: float = 1.0) -> Tensor:
    """dW = alpha * up @ down, (d_out, d_in) in float32."""
    return alpha * (up.float() @ down.float())


def add_deltas(net: nn.Module, deltas: dict[str, Tensor]) -> None:
    """W = W0 + dW for each named layer, as new tensors: whoever shares the old ones keeps them.

    Raises ValueError when a name or a shape does not fit `net`, and when a sum is not finite.
    """
    layers = adaptable(net)
    for name, dW in deltas.items():
        if name not in layers:
            raise ValueError(f"The update of {name} has no layer in this model: it was made for another architecture.")
        old = layers[name].weight
        if dW.shape != old.shape[:2]:
            raise ValueError(
                f"The update of {name} is {tuple(dW.shape)} but the layer is {tuple(old.shape)}: "
                "it was made for another base model; load that one."
            )
        new = (old.float() + dW.to(old.device, torch.float32).view_as(old)).to(old.dtype)
        if not is_finite(new):
            parts = {"the update": dW, "the weight": old, f"the sum in {old.dtype}": new}
            lost = next(part for part, numbers in parts.items() if not is_finite(numbers))
            raise ValueError(
                f"{name} with its update is not finite, because {lost} is not: use a smaller alpha or scale, load the "
                "base in float32, or tune the concept again."
            )
        layers[name].weight = nn.Parameter(new, requires_grad=False)
