"""LoRA files in safetensors: kohya/A1111, diffusers and peft are read, diffusers and kohya written (paper 3.1).

    here                     shape
    factors[net][module]     (r, d_in), (d_out, r)     delta W = up @ down, the scale inside `up`

Concept words are no part of a LoRA file: a word has L rows, and other programs would read them as L tokens. They
travel in the Concept folder.
"""

import json
import math
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
import transformers
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .concept import Factors
from .keys import match

FORMATS = ("diffusers", "kohya")
IN_FOLDER = ("pytorch_lora_weights.safetensors", "adapter_model.safetensors")  # diffusers' and peft's names
METADATA = "lora_adapter_metadata"  # where diffusers keeps the LoraConfig of each network
CONVOLUTIONS = (".proj_in", ".proj_out")  # 1x1 convolutions in Stable Diffusion 1.x


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file; raises FileNotFoundError or ValueError with one sentence."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: check its name.")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        hint = "read it with Concept.from_official" if file.suffix in (".pth", ".pt") else "copy or download it again"
        raise ValueError(f"{file} is truncated or no safetensors file ({error}): {hint}.") from error


def read_lora(file: str | Path, base) -> tuple[dict[str, Factors], str]:
    """(factors, a sentence that says how many tensors matched) of a kohya, diffusers or peft LoRA for the base.

    `file` may be a folder that diffusers or peft wrote. Raises FileNotFoundError or ValueError with one sentence, see
    `keys.match`.
    """
    file = Path(file)
    if file.is_dir():
        file = next((file / name for name in IN_FOLDER if (file / name).is_file()), file / IN_FOLDER[0])
    tensors, metadata = read_safetensors(file)
    factors = match(tensors, base, file.name, scale_of(configs(file, metadata)))
    layers = ", ".join(f"{len(found)} layers of the {net}" for net, found in factors.items())
    return factors, f"{file.name}: {len(tensors)} of {len(tensors)} tensors matched, {layers}"


def configs(file: Path, metadata: Mapping[str, str]) -> dict[str, dict]:
    """network -> its LoraConfig, from diffusers' metadata or from peft's adapter_config.json beside the file."""
    beside = file.with_name("adapter_config.json")
    try:
        if file.name == "adapter_model.safetensors" and beside.is_file():
            config = dict(json.loads(beside.read_text(encoding="utf-8")))
            found = {"text_encoder": config, "unet": config}
        else:
            found = {}
            for key, value in dict(json.loads(metadata.get(METADATA, "{}"))).items():
                net, _, name = key.partition(".")
                found.setdefault(net, {})[name] = value
    except (ValueError, TypeError) as error:
        raise ValueError(f"The LoRA settings of {file} are no readable JSON ({error}): get the file again.") from error
    for config in found.values():
        if config.get("peft_type", "LORA") != "LORA" or config.get("use_dora"):
            kind = "a DoRA" if config.get("use_dora") else f"a {config['peft_type']}"
            raise ValueError(f"{file.name} is {kind}: give a plain LoRA for Stable Diffusion 1.x.")
    return found


def scale_of(found: Mapping[str, dict]) -> Callable[[str, str, int], float]:
    """scale(net, module, r) as peft computes it: alpha / r, alpha / sqrt(r) with rslora, 1 without settings."""

    def scale(net: str, module: str, rank: int) -> float:
        config = found.get(net, {})
        alpha = config.get("lora_alpha")
        for name, own in (config.get("alpha_pattern") or {}).items():
            if f".{module}".endswith("." + name.removeprefix("^").removeprefix("text_model.")):
                alpha = own
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return scale


def lora_state(
    factors: Mapping[str, Factors], format: str = "diffusers", text_model: bool | None = None
) -> dict[str, Tensor]:
    """Factors as the tensors of a diffusers or kohya file in float32, which act at scale 1.

    All layers of a network get one rank (zero rows do nothing): older loaders take the first layer's for all.
    `text_model` says whether the text encoder's diffusers keys have that level; None: as the installed transformers
    has it (before 5.6), which every version of diffusers can load. In kohya files it is always there.
    """
    if format not in FORMATS:
        raise ValueError(f"There is no LoRA format {format!r}: choose {' or '.join(map(repr, FORMATS))}.")
    if text_model is None:
        text_model = tuple(int(part) for part in transformers.__version__.split(".")[:2]) < (5, 6)
    state = {}
    for net, layers in factors.items():
        rank = max((len(down) for down, _ in layers.values()), default=0)
        for module, (down, up) in layers.items():
            missing = rank - len(down)
            down, up = F.pad(down, (0, 0, 0, missing)).float(), F.pad(up, (0, missing)).float()
            if module.endswith(CONVOLUTIONS):
                down, up = down[..., None, None], up[..., None, None]
            if format == "kohya":
                prefix = "lora_unet_" if net == "unet" else "lora_te_text_model_"
                name = prefix + module.replace(".", "_")
                keys = (f"{name}.lora_down.weight", f"{name}.lora_up.weight")
                state[f"{name}.alpha"] = torch.tensor(float(rank))
            else:
                level = "text_model." if net == "text_encoder" and text_model else ""
                kind = "lora_linear_layer" if net == "text_encoder" else "lora"
                keys = tuple(f"{net}.{level}{module}.{kind}.{part}.weight" for part in ("down", "up"))
            state |= zip(keys, (down.detach().cpu().contiguous(), up.detach().cpu().contiguous()), strict=True)
    return state


def write_lora(state: Mapping[str, Tensor], file: str | Path) -> Path:
    """Write a state dict to a .safetensors file, all or nothing; raises ValueError on none, OSError on a full disk."""
    file = Path(file)
    if not state:
        raise ValueError("This is words only, there is no LoRA to write: share the Concept folder instead.")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
        os.close(handle)
        try:
            save_file(dict(state), temporary, metadata={"format": "pt"})
            os.chmod(temporary, 0o644)  # mkstemp makes private files
            os.replace(temporary, file)
        finally:
            Path(temporary).unlink(missing_ok=True)
    except (OSError, SafetensorError) as error:
        raise OSError(f"Could not write {file} ({error}): free some space or choose another folder.") from error
    return file
