"""Which tensor of a LoRA file belongs to which layer (delta W = scale * B @ A, paper 3.1).

Every dialect spells a layer with its module path, only its dots, prefixes and endings differ. So there is one table
for all of them, made from the base model itself: the path with underscores -> (network, module).

    here    shape                            as others call it
    down    (r, d_in) or (r, d_in, 1, 1)     A, lora_A, lora_down
    up      (d_out, r) or (d_out, r, 1, 1)   B, lora_B, lora_up
    alpha   ()                               scale = alpha / r
"""

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor

from ..engine import lora
from .concept import Factors

NETS = ("text_encoder", "unet")
PARTS = {"down": "down", "A": "down", "up": "up", "B": "up", None: "alpha"}
# A last dotted word before `.weight` is peft's adapter name, as in lora_A.default.weight.
ENDING = re.compile(
    r"(?P<path>.+?)(?:[._]lora(?:_linear_layer)?[._](?P<part>down|up|A|B)(?:(?:\.\w+)?\.weight)?"
    r"|(?:[._]lora(?:_linear_layer)?)?\.alpha)"
)
PREFIX = re.compile(
    r"^(?:base_model\.model\.)?(?:lora_unet_|unet\.|lora_te1?_|text_encoder\.)?(?:base_model\.model\.)?(?:text_model[._])?"
)
OLD_NAMES = (  # diffusers up to 0.20 named the parts of an attention by its processor, in the text encoder as well
    (r"_processor_(to_(q|k|v|out))$", r"_\1"),
    (r"_self_attn_to_(q|k|v|out)$", r"_self_attn_\1_proj"),
    (r"_to_out$", "_to_out_0"),
)
OTHERS = (  # what a file is that holds such a key
    (
        r"lora_te[23]_|text_encoder_[23]\.|(in|out)put_blocks|transformer_blocks[._][1-9]|add_embedding",
        "a LoRA for SDXL",
    ),
    (r"^(transformer|diffusion_model)\.|(double|single|joint)_blocks", "a LoRA for a transformer such as Flux or SD 3"),
    (r"\.hada_w", "a LoHa"),
    (r"\.lokr_w", "a LoKr"),
    (r"\.(oft_|boft_|on_input|diff(_b)?$|[ab][12]\.weight)", "a LyCORIS file of another kind than LoRA"),
    (r"dora_scale|lora_magnitude_vector", "a DoRA, which also rescales the weights"),
    (r"lora_mid|resnets|(down|up)samplers|conv_(in|out|shortcut)|time_emb", "a LoCon, which also changes convolutions"),
    (r"string_to_param|^emb_params$|^clip_[lg]$", "a textual-inversion embedding"),
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model)\.", "a whole model"),
)


def split(key: str) -> tuple[str, str]:
    """A key -> (the path before its ending, "down" | "up" | "alpha"); (key, "") if it has no such ending."""
    found = ENDING.fullmatch(key)
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


def match(
    tensors: Mapping[str, Tensor], base, source: str, scale: Callable[[str, str, int], float] | None = None
) -> dict[str, Factors]:
    """All tensors of a LoRA file as factors of the base's layers, network -> module -> (down (r, d_in), up (d_out, r)).

    The scale is inside `up`: alpha / r where the file has an alpha, else `scale(network, module, r)`, else 1. Raises
    ValueError with one sentence if the file is of another kind, if no tensor fits, if any is left over, if a layer is
    incomplete or if a shape is another model's; `source` is what the sentence calls the file.
    """
    refuse_other_kinds(tensors, source)
    shapes = layers_of(base)
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
            f"{source} has {len(tensors)} tensors and none belongs to a layer of {base.base_id or 'this base'}"
            f"{examples(left)}: give a LoRA for Stable Diffusion 1.x."
        )
    if left:
        raise ValueError(
            f"{source}: {len(tensors) - len(left)} of {len(tensors)} tensors matched a layer of "
            f"{base.base_id or 'this base'}, {len(left)} did not{examples(left)}: it would act only in part, "
            "give a LoRA for Stable Diffusion 1.x."
        )
    factors: dict[str, Factors] = {}
    for net, module in (layer for layer in shapes if layer in found):
        pair = factor_pair(found[net, module], shapes[net, module], f"{net}.{module} in {source}")
        alpha, rank = found[net, module].get("alpha"), pair[0].shape[0]
        by = float(alpha) / rank if alpha is not None else scale(net, module, rank) if scale else 1.0
        factors.setdefault(net, {})[module] = (pair[0], by * pair[1])
        if not all(torch.isfinite(factor).all() for factor in factors[net][module]):
            raise ValueError(f"{net}.{module} in {source} holds numbers that are not finite: get the file again.")
    return factors


def factor_pair(parts: Mapping[str, Tensor], shape: tuple[int, ...], layer: str) -> tuple[Tensor, Tensor]:
    """One layer's (down (r, d_in), up (d_out, r)) in float32, checked against the shape of its weight."""
    for part in ("down", "up"):
        if part not in parts:
            raise ValueError(f"{layer} has no {part} weight: the file is incomplete, get it again.")
    down, up = (parts[part].detach().cpu().float() for part in ("down", "up"))
    down, up = (t.flatten(1) if t.ndim == 4 and t.shape[2:] == (1, 1) else t for t in (down, up))
    fits = down.ndim == up.ndim == 2 and len(down) == up.shape[-1] > 0 and (len(up), down.shape[1]) == shape[:2]
    if not fits or parts.get("alpha", torch.ones(())).numel() != 1:
        raise ValueError(
            f"{layer} is {tuple(parts['up'].shape)} @ {tuple(parts['down'].shape)} but the weight is {shape}: "
            "it was made for another base model, such as SD 2 or SDXL; load that one or another file."
        )
    return down, up


def refuse_other_kinds(keys: Iterable[str], source: str) -> None:
    """Raise one sentence that says what the file is, if it is none that this library can use."""
    for pattern, kind in OTHERS:
        key = next((key for key in keys if re.search(pattern, key)), None)
        if key is not None:
            raise ValueError(
                f"{source} is {kind} (it has {key}): give a plain LoRA of the linear layers of Stable Diffusion 1.x."
            )


def examples(keys: list[str], n: int = 2) -> str:
    """ ", e.g. a and b", or nothing where there are no keys."""
    return f", e.g. {' and '.join(keys[:n])}" if keys else ""
