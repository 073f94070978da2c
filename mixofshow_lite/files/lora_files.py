"""LoRA files of other programs are read: kohya/A1111, diffusers and peft, in safetensors (paper 3.1).

    here                     shape
    factors[net][module]     (r, d_in), (d_out, r)     delta W = up @ down, the scale inside `up`

Concept words are no part of a LoRA file: a word has L rows, and other programs would read them as L tokens. They
travel in the Concept folder.
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..engine.arguments import as_path, shown
from .concept import LoRAFactors
from .keys import NETS, match, never_used
from .kinds import GIVE_LORA, PEFT_TYPES
from .patterns import check_patterns, matcher
from .pickles import ENDINGS, read_state
from .warn import warn

IN_FOLDER = tuple(  # diffusers' and peft's names
    stem + end for end in (".safetensors", ".bin") for stem in ("pytorch_lora_weights", "adapter_model")
)
LARGEST_ALPHA = 1e6  # a larger one is a damaged number
METADATA = "lora_adapter_metadata"  # where diffusers keeps the LoraConfig of each network


def read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a file; raises FileNotFoundError or ValueError with one sentence."""
    if not file.is_file():
        raise FileNotFoundError(f"There is no file {file}: check its name.")
    try:
        with safe_open(file, framework="pt", device="cpu") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is truncated or no safetensors file ({error}): copy or download it again.") from error


def read_lora(file: str | Path, base) -> tuple[dict[str, LoRAFactors], str]:
    """(factors, a sentence that says how many tensors matched) of a kohya, diffusers or peft LoRA for the base.

    `file` may be a folder that diffusers or peft wrote, also one with a `unet` and a `text_encoder` folder in it, and
    an older program's pickle if it holds tensors alone. Raises FileNotFoundError or ValueError with one sentence, see
    `keys.match`; warns of what is read but may not be what was meant.
    """
    file = as_path(file)
    nets = [net for net in NETS if file.is_dir() and (file / net).is_dir()]
    if nets:  # peft's own example saves each network by itself
        tensors, settings = {}, {}
        for net in nets:
            of_net, found = read_part(lora_in(file / net))
            tensors |= {f"{net}.{key}": tensor for key, tensor in of_net.items()}
            settings[net] = found.get(net, {})
    else:
        file = lora_in(file) if file.is_dir() else file
        tensors, settings = read_part(file)
    factors = match(tensors, base, file.name, scale_of(settings))
    warn_of_halves(tensors, factors, file.name)
    idle = len(never_used(tensors))
    layers = ", ".join(f"{len(found)} layers of the {net}" for net, found in factors.items())
    unused = f", {idle} of an old layout, which no program ever used" if idle else ""
    return factors, f"{file.name}: {len(tensors) - idle} of {len(tensors)} tensors matched, {layers}{unused}"


def lora_in(folder: Path) -> Path:
    """The LoRA file in a folder: by diffusers' or peft's name, else the only one there."""
    named = next((folder / name for name in IN_FOLDER if (folder / name).is_file()), None)
    others = sorted(folder.glob("*.safetensors"))
    if named or len(others) == 1:
        return named or others[0]
    if others:
        names = ", ".join(file.name for file in others[:3])
        raise ValueError(f"{folder} holds {len(others)} safetensors files ({names} ...): give one of them.")
    raise FileNotFoundError(f"{folder} holds no LoRA file (such as {IN_FOLDER[0]}): give the file itself.")


def read_part(file: Path) -> tuple[dict[str, Tensor], dict[str, dict]]:
    """(tensors, network -> its LoraConfig) of one file."""
    tensors, metadata = (read_state(file), {}) if file.suffix in ENDINGS else read_safetensors(file)
    return tensors, configs(file, metadata)


def warn_of_halves(tensors: Mapping[str, Tensor], factors: Mapping[str, LoRAFactors], source: str) -> None:
    """One warning if the file changes the text encoder alone; it may be the rest of another model's LoRA."""
    if "unet" in factors:
        return
    half = any("lora_te1_" in key for key in tensors)
    whose = "it looks like half of a LoRA for SDXL or Flux" if half else "use it if it was trained so"
    warn(f"{source} changes the text encoder only, no layer of the U-Net: {whose}, else get the whole file.")


def configs(file: Path, metadata: Mapping[str, str]) -> dict[str, dict]:
    """network -> its LoraConfig, from diffusers' metadata or from peft's adapter_config.json beside the file."""
    beside = file.with_name("adapter_config.json")
    peft = file.stem == "adapter_model" and beside.is_file()
    try:
        settings = json.loads(beside.read_text(encoding="utf-8") if peft else metadata.get(METADATA, "{}"))
        if not isinstance(settings, dict):
            raise ValueError("no names and values")
        if peft:
            found = {"text_encoder": settings, "unet": settings}
        else:
            found = {}
            for key, value in settings.items():
                net, _, name = key.partition(".")
                found.setdefault(net, {})[name] = value
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"The LoRA settings of {file} are no readable JSON ({error}): get the file again.") from error
    for config in found.values():
        check_config(config, file.name)
    return found


def check_config(config: Mapping, source: str) -> None:
    """Raise ValueError with one sentence unless a LoraConfig is a plain LoRA's and its numbers are numbers."""
    kind = config.get("peft_type") or "LORA"
    if kind != "LORA" or config.get("use_dora"):
        kind = "a DoRA" if config.get("use_dora") else PEFT_TYPES.get(str(kind), f"of peft's kind {shown(kind)}")
        raise ValueError(f"{source} is {kind}: {GIVE_LORA}.")
    patterns, alpha = config.get("alpha_pattern") or {}, config.get("lora_alpha")
    whole = isinstance(patterns, dict)
    alphas = [*patterns.values(), *([] if alpha is None else [alpha])] if whole else []
    if not whole or not all(isinstance(a, int | float) and abs(a) < LARGEST_ALPHA for a in alphas):
        raise ValueError(
            f"lora_alpha or alpha_pattern in the settings of {source} are no numbers by layer: get the file again."
        )
    check_patterns(patterns, source)


def scale_of(found: Mapping[str, dict]) -> Callable[[str, str, int], float]:
    """scale(net, module, r) as peft computes it: alpha / r, alpha / sqrt(r) with rslora, 1 without settings.

    `rank_pattern` needs no look: r is what the layer's own factors have.
    """

    def scale(net: str, module: str, rank: int) -> float:
        config = found.get(net, {})
        alpha = of_pattern(config.get("alpha_pattern") or {}, net, module, config.get("lora_alpha"))
        if alpha is None:
            return 1.0
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    return scale


def of_pattern(patterns: Mapping[str, float], net: str, module: str, default: float | None) -> float | None:
    """A layer's own alpha by peft's rule (`get_pattern_key`): the first pattern that matches the end of its path.

    The path begins with `text_model.` for older versions of transformers and without it for newer ones.
    """
    paths = (module, f"text_model.{module}") if net == "text_encoder" else (module,)
    for pattern, alpha in patterns.items():
        if any(map(matcher(pattern).match, paths)):
            return alpha
    return default
