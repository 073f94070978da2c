"""Numbers that are none: NaN and infinity are found where they matter, and one sentence says where they came from.

A NaN that enters anywhere (words, a LoRA, a weight, an overflow in float16) comes out as a black picture, or as a
concept of NaNs, without a word. Pictures are checked once, when they leave the autoencoder, and only if they are not
finite is the place looked for; what is tuned, saved, loaded or exported is checked then.
"""

import torch
from torch import Tensor, nn

NETS = {"text_encoder": "text encoder", "unet": "U-Net", "vae": "VAE"}


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite, in one pass without a copy."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    return all(end.isfinite().item() for end in tensor.detach().aminmax())  # a NaN is both its least and its largest


def first_not_finite(tensors: dict[str, Tensor]) -> str:
    """The name of the first tensor with a number that is none, "" if there is no such tensor."""
    return next((name for name, tensor in tensors.items() if not is_finite(tensor)), "")


def weights_not_finite(net: nn.Module, title: str) -> str:
    """ "the U-Net's weights conv_in.weight", or "" if all weights of a network are finite."""
    name = first_not_finite(dict(net.named_parameters()))
    return name and f"the {title}'s weights {name}"


def model_not_finite(model) -> str:
    """What of a model is not finite: "the rows of <bibi1>", "the VAE's weights ...", or "" if all of it is."""
    word = first_not_finite(model.words)
    parts = (weights_not_finite(getattr(model, net), title) for net, title in NETS.items())
    return f"the rows of {word}" if word else next(filter(None, parts), "")


def culprit(model, context: Tensor | None = None, latents: Tensor | None = None) -> tuple[str, str]:
    """Where a picture's numbers stopped being finite, and what to do about it.

    context (B, L, N, D) and latents (B, C, h, w) are those of the picture, as far as they are known.
    """
    half = model.dtype == torch.float16
    found = model_not_finite(model)
    if found:
        return found, f"tune the concept again, or load the base again{' in float32' * half}"
    if context is not None and not is_finite(context):
        found = "the text encoder's features"
    elif latents is not None and not is_finite(latents):
        found = "the U-Net's latents"
    in_float32 = "load the base in float32, load_base(..., dtype=torch.float32)"
    return found or "the VAE's pictures", in_float32 if half else "use a smaller guidance or LoRA weight"
