"""The center node (paper 3.2 and 3.3.2): many concepts, one model.

weight     Eq. 2: the weighted average of the updates
gradient   3.3.2: gradient fusion, stage by stage
algebra    its least-squares problem for one layer: closed form and LBFGS
grams      what is recorded of each concept
center     the node that clients join and leave
report     what a fusion says about itself
export     the fused model as an ordinary LoRA file
"""

from .center import CenterNode
from .export import lora_state, to_lora
from .gradient import PROMPTS, Memory, Settings, gradient_fusion
from .report import FusionReport, LayerReport
from .weight import weight_fusion

__all__ = [
    "PROMPTS",
    "CenterNode",
    "FusionReport",
    "LayerReport",
    "Memory",
    "Settings",
    "gradient_fusion",
    "lora_state",
    "to_lora",
    "weight_fusion",
]
