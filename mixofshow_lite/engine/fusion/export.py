"""A fused model as an ordinary LoRA file (paper 3.3.2): the fused update has rank <= sum r_i, so nothing is lost.

    here            shape
    down            (r, d_in)      report.factors[net][module][0]
    up              (d_out, r)     report.factors[net][module][1]

The concept words do not travel in it: `DiffusionModel.save_pipeline` keeps them, and so do the Concept folders.

The file shows the fused update and nothing else: its ranks are the update's own singular directions, no client's
factors (`algebra.compact`). That is no secrecy. What can still be learnt from it:
- a fusion of one concept is that concept;
- who has all other Concepts can subtract their part from an average or a sum and is left with the last one's update;
- the directions that all clients together write to are known, so much of one's is, to those who know the others';
- updates that hardly overlap and differ in strength come apart by singular values as well (for two of the shipped
  concepts the best choice of ranks is 7 % off a concept's update in one layer, 60 % in the middle one of 280);
- whoever has the words, which travel in the fused pipeline, can draw the concept.
What must stay with its owner is not to be shared.
"""

from pathlib import Path

from torch import Tensor

from ...files import lora_writing
from ...files.concept import LoRAFactors
from ...model import DiffusionModel


def fused_factors(model: DiffusionModel) -> dict[str, LoRAFactors]:
    """The fused update, network -> module -> (down (r, d_in), up (d_out, r)); ValueError on a model not fused."""
    factors = getattr(model.report, "factors", None)
    if factors is None:
        raise ValueError(
            "This model was not fused, so it has no update to write: call weight_fusion or gradient_fusion first."
        )
    return factors


def lora_state(model: DiffusionModel, format: str = "diffusers") -> dict[str, Tensor]:
    """The fused update as the tensors of a "diffusers", "kohya" or "peft" file; ValueError on a model not fused."""
    return lora_writing.lora_state(fused_factors(model), format)


def to_lora(model: DiffusionModel, file: str | Path, format: str = "diffusers") -> Path:
    """Write the fused update to a .safetensors file that `pipeline.load_lora_weights` reads; all or nothing.

    `format` is "diffusers", "kohya" (A1111, ComfyUI) or "peft", which makes a folder with an adapter for each network.
    Raises ValueError on a model that is not fused or whose concepts are words only, OSError if it cannot be written.
    """
    return lora_writing.write_lora(fused_factors(model), file, format)
