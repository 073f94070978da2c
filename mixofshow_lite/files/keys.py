"""Which tensor of a LoRA file belongs to which layer (delta W = scale * B @ A, paper 3.1).

Every dialect spells a layer with its module path, only its dots, prefixes and endings differ. So there is one table
for all of them, made from the base model itself: the path with underscores -> (network, module).

    here    shape                            as others call it
    down    (r, d_in) or (r, d_in, 1, 1)     A, lora_A, lora_down
    up      (d_out, r) or (d_out, r, 1, 1)   B, lora_B, lora_up
    alpha   ()                               scale = alpha / r
"""

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ..engine import lora
from ..engine.arguments import printable
from .concept import LoRAFactors
from .kinds import LONGEST_NAME, refuse_other_kinds, refuse_other_widths
from .warn import warn

NETS = ("text_encoder", "unet")
PARTS = {"down": "down", "A": "down", "up": "up", "B": "up", None: "alpha"}
# What stands between lora_A and `.weight` is peft's adapter name, as in lora_A.default.weight or lora_A.v1.5.weight.
ENDING = re.compile(
    r"(?P<path>.+?)(?:[._]lora(?:_linear_layer)?[._](?P<part>down|up|A|B)(?:(?:\.(?P<adapter>.+))?\.weight)?"
    r"|(?:[._]lora(?:_linear_layer)?)?\.alpha)"
)
PREFIX = re.compile(
    r"^(?:base_model\.model\.)?(?:diffusion_model\.|lora_unet_|unet\."
    r"|(?:lora_te1?_|text_encoder\.)(?:wrapped[._])?(?:transformer[._])?)?(?:base_model\.model\.)?(?:text_model[._])*"
)
OLD_NAMES = (  # diffusers up to 0.20 named the parts of an attention by its processor, in the text encoder as well
    (r"_processor_(to_(q|k|v|out))$", r"_\1"),
    (r"_self_attn_((q|k|v)_proj_to_\2|out_proj_to_out)$", lambda found: f"_self_attn_{found[2] or 'out'}_proj"),
    (r"_self_attn_to_(q|k|v|out)$", r"_self_attn_\1_proj"),
    (r"_to_out$", "_to_out_0"),
    # The names of Stable Diffusion's first code: three blocks to a level, the attentions' own blocks have number 1.
    (r"^input_blocks_(\d+)_1_", lambda found: "down_blocks_{}_attentions_{}_".format(*divmod(int(found[1]) - 1, 3))),
    (r"^output_blocks_(\d+)_1_", lambda found: "up_blocks_{}_attentions_{}_".format(*divmod(int(found[1]), 3))),
    (r"^middle_block_1_", "mid_block_attentions_0_"),
)
# Diffusers 0.15 put four LoRAs on each projection of the text encoder and used the one of its own name alone.
NEVER_USED = re.compile(r"_self_attn_(q|k|v|out)_proj_to_(q|k|v|out_0)$")
READS_TEXT = re.compile(r"_attn2_to_[kv]$|_self_attn_[qkv]_proj$")  # layers whose d_in is the width of text features


def split(key: str) -> tuple[str, str]:
    """A key -> (the path before its ending, "down" | "up" | "alpha"); (key, "") if it has no such ending."""
    found = ENDING.fullmatch(key) if len(key) <= LONGEST_NAME else None
    return (found["path"], PARTS[found["part"]]) if found else (key, "")


def spelling(path: str) -> str:
    """The path of a layer in any dialect -> its module path with underscores, without prefixes."""
    name = PREFIX.sub("", path).replace(".", "_")
    for old, new in OLD_NAMES:
        name = re.sub(old, new, name)
    return name


def layers_of(base) -> dict[tuple[str, str], tuple[int, ...]]:
    """(network, module) -> shape of the weight, for every layer that a LoRA may update."""
    nets = {net: lora.adaptable(getattr(base, net)) for net in NETS}
    return {(net, module): tuple(layer.weight.shape) for net, found in nets.items() for module, layer in found.items()}


def never_used(tensors: Mapping[str, Tensor]) -> list[str]:
    """The keys of an old layout that no program ever made use of."""
    return [key for key in tensors if NEVER_USED.search(spelling(split(key)[0]))]


def match(
    tensors: Mapping[str, Tensor], base, source: str, scale: Callable[[str, str, int], float] | None = None
) -> dict[str, LoRAFactors]:
    """All tensors of a LoRA file as factors of the base's layers, network -> module -> (down (r, d_in), up (d_out, r)).

    The scale is inside `up`: alpha / r where the file has an alpha, else `scale(network, module, r)`, else 1. Raises
    ValueError with one sentence if the file is of another kind, if no tensor fits, if any is left over, if a layer is
    incomplete or if a shape is another model's; `source` is what the sentence calls the file.
    """
    refuse_other_kinds(tensors, source)
    if not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        raise ValueError(f"{source} holds something else than tensors in its LoRA: get the file again.")
    idle = set(never_used(tensors))
    shapes, tensors = layers_of(base), {key: tensor for key, tensor in tensors.items() if key not in idle}
    check_whose(tensors, base, source)
    found = sort_out(tensors, shapes, base, source)
    factors: dict[str, LoRAFactors] = {}
    warn_of_8_bits(tensors, source)
    silent = 0  # layers of alpha 0
    for net, module in (layer for layer in shapes if layer in found):
        layer = f"{net}.{module} in {source}"
        down, up = factor_pair(found[net, module], shapes[net, module], layer)
        alpha, rank = found[net, module].get("alpha"), len(down)
        by = float(alpha) / rank if alpha is not None else scale(net, module, rank) if scale else 1.0
        factors.setdefault(net, {})[module] = (down, by * up)
        if not all(torch.isfinite(factor).all() for factor in factors[net][module]):
            raise ValueError(f"{layer} holds numbers that are not finite: get the file again.")
        silent += by == 0
    if silent:
        warn(
            f"alpha is 0 in {silent} of {len(found)} layers of {source}, which therefore change nothing: "
            "if they should act, write their rank there instead."
        )
    return factors


def check_whose(tensors: Mapping[str, Tensor], base, source: str) -> None:
    """Raise ValueError if the file was made for a base of other text features, or holds several LoRAs."""
    widths, adapters = set(), set()
    for key, tensor in tensors.items():
        path, part = split(key)
        if part == "down" and tensor.ndim == 2 and READS_TEXT.search(spelling(path)):
            widths.add(tensor.shape[1])
        if part in ("down", "up"):
            adapters.add(ENDING.fullmatch(key)["adapter"] or "default")
    for width in sorted(widths, reverse=True):
        refuse_other_widths(width, base, source)
    if len(adapters) > 1:
        names = ", ".join(map(printable, sorted(adapters)))
        raise ValueError(f"{source} holds {len(adapters)} LoRAs at once ({names}): save one of them alone.")


def sort_out(
    tensors: Mapping[str, Tensor], shapes: Mapping[tuple[str, str], tuple[int, ...]], base, source: str
) -> dict[tuple[str, str], dict[str, Tensor]]:
    """(network, module) -> its tensors by part; raises ValueError with one sentence unless every tensor has a place."""
    table = {module.replace(".", "_"): (net, module) for net, module in shapes}
    found: dict[tuple[str, str], dict[str, Tensor]] = {}
    left = []
    for key, tensor in tensors.items():
        path, part = split(key)
        layer = table.get(spelling(path))
        if layer is None or not part or part in found.get(layer, {}):
            left.append(key)
        else:
            found.setdefault(layer, {})[part] = tensor
    if not found:
        raise ValueError(
            f"{source} has {len(tensors)} tensor{'s' * (len(tensors) != 1)} and none belongs to a layer of "
            f"{base.base_id or 'this base'}{examples(left)}: give a LoRA for Stable Diffusion 1.x."
        )
    if left:
        raise ValueError(
            f"{source}: {len(tensors) - len(left)} of {len(tensors)} tensors matched a layer of "
            f"{base.base_id or 'this base'}, {len(left)} did not{examples(left)}: it would act only in part, "
            "give a LoRA for Stable Diffusion 1.x."
        )
    return found


def factor_pair(parts: Mapping[str, Tensor], shape: tuple[int, ...], layer: str) -> tuple[Tensor, Tensor]:
    """One layer's (down (r, d_in), up (d_out, r)) in float32, checked against the shape of its weight."""
    for part in ("down", "up"):
        if part not in parts:
            raise ValueError(f"{layer} has no {part} weight: the file is incomplete, get it again.")
        if not ordinary(parts[part]):
            raise ValueError(f"{layer} holds {kind_of(parts[part])}, no ordinary decimal numbers: get the file again.")
    down, up = (parts[part].detach().cpu().float() for part in ("down", "up"))
    down, up = (t.flatten(1) if t.ndim == 4 and t.shape[2:] == (1, 1) else t for t in (down, up))
    fits = down.ndim == up.ndim == 2 and len(down) == up.shape[-1] > 0 and (len(up), down.shape[1]) == shape[:2]
    alpha = parts.get("alpha", torch.ones(()))
    if not fits or alpha.numel() != 1 or alpha.is_complex() or alpha.is_meta:
        raise ValueError(
            f"{layer} is {tuple(parts['up'].shape)} @ {tuple(parts['down'].shape)} but the weight is {shape}: "
            "it was made for another base model, such as SD 2 or SDXL; load that one or another file."
        )
    return down, up


def ordinary(tensor: Tensor) -> bool:
    """Whether a tensor of a foreign file is a plain block of floating-point numbers that are really there."""
    plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_nested or tensor.is_quantized)
    return plain and tensor.is_floating_point()


def warn_of_8_bits(tensors: Mapping[str, Tensor], source: str) -> None:
    """One warning if numbers of a file are stored in 8 bits: one or two digits are left of what was tuned."""
    short = [t for t in tensors.values() if isinstance(t, Tensor) and t.is_floating_point() and t.dtype.itemsize == 1]
    if short:
        warn(
            f"{len(short)} of {len(tensors)} tensors of {source} have 8 bits ({name_of(short[0].dtype)}), rounded to "
            "one or two digits: it will look a little different, give the file in 16 or 32 bits if there is one."
        )


def name_of(dtype: torch.dtype) -> str:
    """float32 of torch.float32."""
    return str(dtype).removeprefix("torch.")


def kind_of(tensor: Tensor) -> str:
    """What kind of tensor it is, in words."""
    return f"{'a nested' if tensor.is_nested else 'a'} tensor of {name_of(tensor.dtype)}"


def examples(keys: list[str], n: int = 2) -> str:
    """ ", e.g. a and b", or nothing where there are no keys."""
    return f", e.g. {' and '.join(map(printable, keys[:n]))}" if keys else ""
