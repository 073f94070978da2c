"""Does this concept fit this base? One answer wherever a concept meets a model: loading, joining, fusing, drawing."""

import math

from torch import Tensor

from ..engine.finite import first_not_finite
from .concept import Concept, tensors_of
from .keys import layers_of
from .warn import warn


def check_fits(concept: Concept, base) -> None:
    """Raise ValueError on a concept that cannot act on this base, warn of one that was tuned on other weights.

    It cannot act where a shape is another architecture's or a number is not finite. On other weights of the same
    architecture a concept acts, as LoRAs of one Stable Diffusion 1.x model do on the next, and looks less like itself.
    """
    own, here = concept.base_id or "another base", base.base_id or "another one"
    found = next(iter(misfits(concept, base)), None)
    if found:
        what, shape, wanted = found
        load = f"load_base({concept.base_id!r})" if concept.base_id else "load_base(...) of that base"
        raise ValueError(
            f"The concept {concept.name!r} was tuned on {own}, the base is {here} and built differently: {what} is "
            f"{shape}, the base has {wanted or 'no such layer'}: load it with {load}."
        )
    check_finite(concept)
    if concept.fingerprint and base.fingerprint and concept.fingerprint != base.fingerprint:
        warn(
            f"The concept {concept.name!r} was tuned on {own} (fingerprint {concept.fingerprint}), the base is {here} "
            f"({base.fingerprint}): expect a weaker likeness, or load the base it was tuned on."
        )


def check_finite(concept: Concept, tensors: dict[str, Tensor] | None = None) -> None:
    """Raises ValueError if a concept holds numbers that are none."""
    lost = first_not_finite(tensors_of(concept) if tensors is None else tensors)
    if lost or not math.isfinite(concept.scale):
        raise ValueError(
            f"The concept {concept.name!r} holds weights that are not finite (in {lost or 'its scale'}): tune it "
            "again, in float32 or with smaller learning rates, or get its file again."
        )


def misfits(concept: Concept, base) -> list[tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """What has another shape than the base asks for: (what, its shape, the base's; () where there is no such layer)."""
    rows_shape = (len(base.layers), base.text_encoder.config.hidden_size)  # (L, D)
    layers = layers_of(base)
    found = []
    for word, rows in concept.embeddings.items():
        if tuple(rows.shape) != rows_shape:
            found.append((word, tuple(rows.shape), rows_shape))
    for net, factors in concept.lora.items():
        for module, (down, up) in factors.items():
            shape, wanted = (len(up), down.shape[1]), layers.get((net, module), ())[:2]  # (d_out, d_in)
            if shape != wanted or len(down) != up.shape[1]:
                found.append((f"{net}.{module}", shape, wanted))
    return found
