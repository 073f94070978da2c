"""LoRA files for other programs are written: diffusers, kohya/A1111 and peft (paper 3.1).

    here                     shape
    factors[net][module]     (r, d_in), (d_out, r)     delta W = up @ down, the scale inside `up`

Old loaders read the diffusers files too (tried with diffusers 0.19, which the official code uses), unless only some
projections of an attention have an update: all layers of a network get one rank (zero rows do nothing), the U-Net's
attentions the names of their processors and the text encoder's layers the level `text_model.`, which transformers has
left out since 5.6. That level is missing only where the installed diffusers could not read it itself, before 0.41.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path

import diffusers
import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import save_file
from torch import Tensor

from ..engine.finite import first_not_finite
from .concept import LoRAFactors
from .keys import NETS, split
from .writing import LORA_FILE, PEFT_FOLDER, WRITER, atomic_file, atomic_folder

FORMATS = ("diffusers", "kohya", "peft")
OF_PEFT = "base_model.model."  # what peft puts before the path of a layer
OF_PROCESSOR = re.compile(r"(.+\.attn\d)\.(to_[qkv]|to_out)(?:\.0)?")  # (attention, projection)
CONVOLUTIONS = (".proj_in", ".proj_out")  # 1x1 convolutions in Stable Diffusion 1.x


def lora_state(factors: Mapping[str, LoRAFactors], format: str = "diffusers") -> dict[str, Tensor]:
    """Factors as the tensors of a diffusers, kohya or peft file in float32, which act at scale 1.

    Raises ValueError on another format.
    """
    if format not in FORMATS:
        raise ValueError(f"There is no LoRA format {format!r}: choose {', '.join(map(repr, FORMATS))}.")
    state = {}
    for net, layers in factors.items():
        rank = max((len(down) for down, _ in layers.values()), default=0)
        for module, (down, up) in layers.items():
            missing = rank - len(down)
            down, up = F.pad(down, (0, 0, 0, missing)).float(), F.pad(up, (0, missing)).float()
            if module.endswith(CONVOLUTIONS):
                down, up = down[..., None, None], up[..., None, None]
            keys = NAMES[format](net, module)
            state |= zip(keys, (down.detach().cpu().contiguous(), up.detach().cpu().contiguous()), strict=True)
            if format == "kohya":
                state[f"{keys[0].partition('.')[0]}.alpha"] = torch.tensor(float(rank))
    return state


def diffusers_names(net: str, module: str) -> tuple[str, str]:
    """The keys of a layer's down and up: unet.<attention>.processor.to_q_lora.down.weight, or <layer>.lora.down."""
    attention = OF_PROCESSOR.fullmatch(module) if net == "unet" else None
    if attention:
        stem = f"unet.{attention[1]}.processor.{attention[2]}_lora"
    elif net == "unet":
        stem = f"unet.{module}.lora"
    else:
        level = "text_model." * (older(transformers, 5, 6) or not older(diffusers, 0, 41))
        stem = f"{net}.{level}{module}.lora_linear_layer"
    return f"{stem}.down.weight", f"{stem}.up.weight"


def kohya_names(net: str, module: str) -> tuple[str, str]:
    """The keys of a layer's down and up: lora_unet_<layer>.lora_down.weight, underscores in the place of dots."""
    stem = ("lora_unet_" if net == "unet" else "lora_te_text_model_") + module.replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"


def peft_names(net: str, module: str) -> tuple[str, str]:
    """The keys of a layer's down and up, behind the network's name: unet.base_model.model.<layer>.lora_A.weight.

    Peft asks for the very names that the installed transformers has.
    """
    level = "text_model." * (net == "text_encoder" and older(transformers, 5, 6))
    stem = f"{net}.{OF_PEFT}{level}{module}"
    return f"{stem}.lora_A.weight", f"{stem}.lora_B.weight"


NAMES = {"diffusers": diffusers_names, "kohya": kohya_names, "peft": peft_names}


def older(library, *version: int) -> bool:
    """Whether an installed library is older than a version, such as (5, 6)."""
    return tuple(int(part) for part in library.__version__.split(".")[:2]) < version


def write_lora(factors: Mapping[str, LoRAFactors], target: str | Path, format: str = "diffusers") -> Path:
    """Write factors to a .safetensors file, in peft's format to a folder; all or nothing.

    Raises ValueError where there is nothing to write or a number is none, OSError on a full disk.
    """
    target, state = Path(target), lora_state(factors, format)
    lost = first_not_finite(state)
    if lost:
        raise ValueError(f"{lost} is not finite, so there is no LoRA to write: tune or fuse again, in float32.")
    if not state:
        raise ValueError("This is words only, there is no LoRA to write: share the Concept folder instead.")
    if format == "peft":
        with atomic_folder(target, PEFT_FOLDER) as temporary:
            write_adapters(state, temporary)
    else:
        with atomic_file(target, LORA_FILE) as temporary:
            save_file(state, temporary, metadata={"format": "pt", **WRITER})
    return target


def write_adapters(state: Mapping[str, Tensor], folder: Path) -> None:
    """One adapter folder a network, as peft's `save_pretrained` writes it: `unet` and `text_encoder`.

    The settings are those that every version of peft knows. The layers are named in full: a pattern such as `to_q`
    would make LoRAs for other layers too.
    """
    (folder / "lora.json").write_text(json.dumps(WRITER) + "\n", encoding="utf-8")
    for net in NETS:
        own = {key.removeprefix(f"{net}."): tensor for key, tensor in state.items() if key.startswith(f"{net}.")}
        if not own:
            continue
        layers = sorted({split(key)[0].removeprefix(OF_PEFT) for key in own})
        rank = len(next(tensor for key, tensor in own.items() if "lora_A" in key))
        settings = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": layers}
        settings |= {"lora_dropout": 0.0, "bias": "none", "inference_mode": True}
        (folder / net).mkdir()
        text = json.dumps(settings, indent=2) + "\n"
        (folder / net / "adapter_config.json").write_text(text, encoding="utf-8")
        save_file(own, folder / net / "adapter_model.safetensors", metadata={"format": "pt", **WRITER})
