"""The paper's section 4 and figure 3 as measurements: one function per claim, each with a verdict and an uncertainty.

    python -m mixofshow_lite.paper observation_1            # saves data/results/observation_1.{csv,json,webp}

observations    3.3.1   Observations 1 and 2, what a limit on the words does to 2, from LoRA to ED-LoRA step by step
fusions         3.3.2   Observation 3: what each way to fuse keeps of an identity
how_many        3.3.2   the same against the number of concepts in one model
head_to_head    3.3.2   every way to bring concepts together: identity, drift, time, memory, and what each needs
metric          4.3     image-alignment itself, measured on pictures whose marks are known
vote            4.3     the people's vote (Table 2 b, c): what is asked, how votes are kept, what they say
ballots         4.3     pairs of pictures for it
binding         3.4     what regions do for two and three subjects with attributes
everything              all of them in pieces of any length
sweep                   how the pocket model's recipe numbers were chosen
variants                what the pocket recipe's null space and rank are worth, alone and fused
fusion_sweep            how gradient fusion's defaults were chosen
claims          4       the paper's claims and what became of them, the README's table; `advice`: which way is for whom
readings                what a reader said of drawn pictures, kept, so that nothing is drawn twice
study                   rows of measurements, paired differences, saved results

A verdict is an inequality between means of paired differences and its bootstrap interval over concepts and seeds; what
does not show on a model is reported as not shown.
"""

from .fusion_sweep import fusion_sweep
from .fusions import observation_3
from .head_to_head import rivals
from .how_many import how_many
from .observations import ablation, observation_1, observation_2, word_length
from .study import Study, difference, saved, tuned
from .variants import variants

__all__ = [
    "Study",
    "ablation",
    "difference",
    "fusion_sweep",
    "how_many",
    "observation_1",
    "observation_2",
    "observation_3",
    "variants",
    "rivals",
    "saved",
    "tuned",
    "word_length",
]
