"""Other ways to merge concepts, for comparison.

constrained  Custom Diffusion's merge of keys and values
peft_merge   peft's own merges (ties, dare_linear, svd, cat)
"""

from .constrained import constrained_fusion
from .peft_merge import peft_fusion

__all__ = ["constrained_fusion", "peft_fusion"]
