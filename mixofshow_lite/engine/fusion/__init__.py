"""Fusing concepts (paper 3.2 and 3.3.2): many concepts, one model.

weight       Eq. 2: the weighted average of the updates, or their plain sum
gradient     3.3.2: gradient fusion, stage by stage
settings     what it records and how it solves
algebra      its least-squares problem for one layer: closed form, LBFGS, Custom Diffusion's constraint
ridge        a ridge for every layer from the recordings themselves
grams        what is recorded of each concept
memory       the recordings in memory or on disk
report       what a fusion says about itself
drift        what it does to prompts without any concept
export       the fused model as an ordinary LoRA file
"""

from .drift import DRIFT_PROMPTS, Drift, drift
from .export import lora_state, to_lora
from .gradient import explain, gradient_fusion
from .memory import Memory
from .report import FusionReport, LayerReport
from .settings import PLAIN_PROMPTS, PROMPTS, Settings
from .weight import weight_fusion

__all__ = [
    "DRIFT_PROMPTS",
    "PLAIN_PROMPTS",
    "PROMPTS",
    "Drift",
    "FusionReport",
    "LayerReport",
    "Memory",
    "Settings",
    "drift",
    "explain",
    "gradient_fusion",
    "lora_state",
    "to_lora",
    "weight_fusion",
]
