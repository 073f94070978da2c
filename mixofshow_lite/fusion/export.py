"""A fused model as an ordinary LoRA file (paper 3.3.2): the fused update has rank <= sum r_i, so nothing is lost.

    here            shape
    down.weight     (r, d_in)      report.factors[net][module][0], padded with zero rows to one rank per network
    up.weight       (d_out, r)     report.factors[net][module][1]

Keys are those that diffusers writes: `unet.<module>.lora.down.weight`,
`text_encoder.<module>.lora_linear_layer.down.weight`. There is no alpha, so the file acts at scale 1.
"""

import os
import tempfile
from pathlib import Path

import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from ..base import DiffusionModel


def lora_state(model: DiffusionModel) -> dict[str, Tensor]:
    """The fused update as a diffusers LoRA state dict in float32; raises ValueError on a model that is not fused.

    The text encoder's names follow the installed transformers, which has the `text_model.` level only before 5.6.
    """
    factors = getattr(model.report, "factors", None)
    if factors is None:
        raise ValueError(
            "This model was not fused, so it has no update to write: call weight_fusion or gradient_fusion first."
        )
    state = {}
    for net, layers in factors.items():
        level = "text_model." if net == "text_encoder" and hasattr(model.text_encoder, "text_model") else ""
        kind = "lora_linear_layer" if net == "text_encoder" else "lora"
        # One rank for all layers: loaders take one alpha from the first layer's rank and would scale the others by it.
        rank = max((down.shape[0] for down, _ in layers.values()), default=0)
        for name, (down, up) in layers.items():
            missing = rank - down.shape[0]
            key = f"{net}.{level}{name}.{kind}"
            state[f"{key}.down.weight"] = F.pad(down, (0, 0, 0, missing)).float().contiguous()
            state[f"{key}.up.weight"] = F.pad(up, (0, missing)).float().contiguous()
    return state


def to_lora(model: DiffusionModel, file: str | Path) -> Path:
    """Write the fused update to a .safetensors file that `pipeline.load_lora_weights` reads; all or nothing."""
    file, state = Path(file), lora_state(model)
    if not state:
        raise ValueError("The fused concepts are words only, there is no LoRA to write: share their Concept folders.")
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    os.close(handle)
    try:
        save_file(state, temporary, metadata={"format": "pt"})
        os.chmod(temporary, 0o644)
        os.replace(temporary, file)
    except Exception as error:
        raise OSError(f"Could not write {file} ({error}): free some space or choose another folder.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return file
