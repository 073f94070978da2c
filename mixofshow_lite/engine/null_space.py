"""Updates that leave the base's own inputs alone (ours; after null-space projection in continual learning).

What a layer is fed has a large common part: of the energy of Pocket Diffusion's text features 98 % lie along one
direction, and 21 to 100 % of a spatial layer's inputs (median of 64 inputs 68 %). An update that acts on it changes
every token and every picture alike, and two concepts that do so cannot be fused: on the same input they want different
answers. So the rows of `down` are kept orthogonal to the directions that the base's inputs use most, for prompts
without any concept:

    A <- A - A U U^T     after each step; then dW x = 0 for every x in the span of U

    U    directions[name]    (d_in, k)    the first k eigenvectors of X X^T, X the inputs that the base itself sees

The same projection as in Adam-NSCL (Wang et al., CVPR 2021, arXiv:2103.07113) and, for LoRA, InfLoRA (Liang and Li,
CVPR 2024, arXiv:2404.00228), against the pretrained model's inputs instead of earlier tasks'.
"""

import warnings

import torch
from torch import Tensor

from ..model import DiffusionModel
from . import lora
from .fusion.grams import CONTEXT_LINEAR, Statistics, feed, record_context, record_spatial, record_text
from .fusion.settings import PLAIN_PROMPTS

CLASS_PROMPTS = ("photo of a {}", "a {} on the beach", "a sad {} in the city", "a {} on the moon at night")
STEPS = 6  # of denoising, of every recorded picture
SEED = 50  # of the first of them


class NullSpace:
    """The trained `down` factors (3.1) of a model, and what each of them has to stay orthogonal to.

    model        a copy of the base that holds the LoRAs
    class_word   of the concept: what is drawn for it without the concept counts too
    sizes        how many directions of each layer: (text encoder, keys and values of cross-attention, spatial layers);
                 0 leaves those layers free. Frozen factors stay as they are. Records nothing if all are 0.

    Raises ValueError where the base's inputs are not finite (half precision that overflows).
    """

    def __init__(self, base: DiffusionModel, model: DiffusionModel, class_word: str, sizes: tuple[int, int, int]):
        self.pairs: list[tuple[Tensor, Tensor]] = []  # (down (r, d_in), U (d_in, k))
        if not any(sizes):
            return
        prompts = [prompt.replace("{}", class_word) for prompt in CLASS_PROMPTS] + list(PLAIN_PROMPTS)
        for size, net, names in zip(sizes, ("text_encoder", "unet", "unet"), stages(model), strict=True):
            layers = lora.attached(getattr(model, net))
            downs = {name: layers[name].lora_A["default"].weight for name in names}
            names = [name for name in names if downs[name].requires_grad]
            if not size or not names:
                continue
            grams = recorded(base, net, names, prompts).grams
            found = {key: frequent(gram, size) for key, gram in grams.items()}
            self.pairs += [(downs[name], found[feed(name)].to(downs[name])) for name in names]
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Take out of every `down` what lies in the span of its U (in place)."""
        for down, U in self.pairs:
            down.sub_((down @ U) @ U.T)


def stages(model: DiffusionModel) -> tuple[list[str], list[str], list[str]]:
    """The names of the layers with a LoRA: text encoder, keys and values of cross-attention, spatial layers."""
    unet = list(lora.attached(model.unet))
    return (
        list(lora.attached(model.text_encoder)),
        [name for name in unet if CONTEXT_LINEAR.search(name)],
        [name for name in unet if not CONTEXT_LINEAR.search(name)],
    )


def recorded(base: DiffusionModel, net: str, names: list[str], prompts: list[str]) -> Statistics:
    """The Grams of the base's own inputs of some layers of one stage; the empty prompt, of guidance, is one of them.

    Nobody is told that a base cuts these prompts off or does not know their words: the user has not written them.
    """
    base = base.copy()
    base.warned = set()  # what is told of the user's own prompts afterwards does not depend on these
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        if net == "text_encoder":
            return record_text(base, names, [*prompts, ""])
        if CONTEXT_LINEAR.search(names[0]):
            return record_context(base, names, [*prompts, ""])
        return record_spatial(base, names, prompts, SEED, steps=STEPS)


def frequent(gram: Tensor, k: int) -> Tensor:
    """The k directions (d_in, k) along which inputs of this Gram (d_in, d_in) are largest; at most half of them all."""
    _, directions = torch.linalg.eigh(gram)  # ascending
    return directions[:, -min(k, len(gram) // 2) :]
