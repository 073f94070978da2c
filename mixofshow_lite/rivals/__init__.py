"""Other ways to bring concepts together, under their published names, for comparison.

table        all of them behind one interface: WAYS
constrained  Custom Diffusion's merge of keys and values
peft_merge   peft's own merges (ties, dare_linear, svd, cat)
wudi         least squares without data: the updates' own rows stand for their inputs
core_space   merges in the small space that all updates share (sum, TIES, Iso-C, TSV-M)
knots        KnOTS-TIES
regmean      RegMean and RegMean++
iteris       IterIS
ssr_merge    SSR-Merge
ladder       one number a concept, one a column (ZipLoRA's problem), the whole matrix
orthogonal   Orthogonal Adaptation, a recipe and the plain sum
composition  LoRA Switch and LoRA Composite, which fuse nothing
masked       LoRAs that act inside their regions only
layers, drawn, matrices    what several of them share
"""

from .composition import Composition
from .constrained import constrained_fusion
from .core_space import core_space_fusion
from .iteris import iteris_fusion
from .knots import knots_fusion
from .ladder import ladder_fusion
from .masked import MaskedLoRAs
from .orthogonal import orthogonal_fusion, orthogonal_recipe
from .peft_merge import peft_fusion
from .regmean import regmean_fusion, regmean_plusplus_fusion
from .ssr_merge import ssr_fusion
from .table import WAYS, Way
from .wudi import wudi_fusion

__all__ = [
    "WAYS",
    "Composition",
    "MaskedLoRAs",
    "Way",
    "constrained_fusion",
    "core_space_fusion",
    "iteris_fusion",
    "knots_fusion",
    "ladder_fusion",
    "orthogonal_fusion",
    "orthogonal_recipe",
    "peft_fusion",
    "regmean_fusion",
    "regmean_plusplus_fusion",
    "ssr_fusion",
    "wudi_fusion",
]
