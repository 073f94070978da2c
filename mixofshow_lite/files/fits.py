"""Does this concept fit this base? One answer wherever a concept meets a model: loading, joining, fusing, drawing."""

import torch
from torch import Tensor

from ..engine import lora
from ..engine.arguments import is_number, shown
from ..engine.finite import first_not_finite
from .concept import Concept, tensors_of
from .keys import layers_of
from .warn import warn

LARGEST = 1000.0  # an update or a word this many times as large as anything of its kind in the base is a damaged number
ROUNDED = "bf16-"  # how the fingerprint begins of weights that are stored in bfloat16, see `loading.fingerprint_of`


def check_fits(concept: Concept, base) -> None:
    """Raise ValueError on a concept that cannot act on this base, warn of one that was tuned on other weights.

    It cannot act where a shape is another architecture's, a number is not finite or out of all proportion. On other
    weights of the same architecture a concept acts, as LoRAs of one Stable Diffusion 1.x model do on the next, and
    looks less like itself.
    """
    check_is_concept(concept)
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
    check_proportions(concept, base)
    if concept.fingerprint and base.fingerprint and concept.fingerprint != base.fingerprint:
        one_rounded = concept.fingerprint.startswith(ROUNDED) != base.fingerprint.startswith(ROUNDED)
        unless = "unless one is the other rounded to bfloat16, " if one_rounded else ""
        warn(
            f"The concept {concept.name!r} was tuned on {own} (fingerprint {concept.fingerprint}), the base is {here} "
            f"({base.fingerprint}): {unless}expect a weaker likeness, or load the base it was tuned on."
        )


def check_is_concept(concept) -> None:
    """Raise TypeError on what is no Concept, ValueError on one without a name or whose words have no embeddings."""
    if not isinstance(concept, Concept):
        raise TypeError(f"{shown(concept)} is no Concept: give one of tune(...) or Concept.load(...).")
    if not isinstance(concept.name, str) or not concept.name.strip():
        raise ValueError("The concept has no name: give it one, e.g. concept.renamed('bibi').")
    if set(concept.words) != set(concept.embeddings):
        raise ValueError(
            f"The concept {concept.name!r} has the words {sorted(concept.words)}, but embeddings of "
            f"{sorted(concept.embeddings)}: each word needs its rows, load its folder again."
        )


def check_finite(concept: Concept, tensors: dict[str, Tensor] | None = None) -> None:
    """Raises ValueError if a concept holds numbers that are none."""
    lost = first_not_finite(tensors_of(concept) if tensors is None else tensors)
    if lost or not is_number(concept.scale, -1e300, 1e300):
        raise ValueError(
            f"The concept {concept.name!r} holds weights that are not finite (in {lost or 'its scale'}): tune it "
            "again, in float32 or with smaller learning rates, or get its file again."
        )


@torch.no_grad()
def check_proportions(concept: Concept, base) -> None:
    """Raise ValueError on an update or a word so large that nothing but noise could be drawn with it.

    An update is compared with the largest weight that the concept changes in that network, since one of them may be 0,
    and a word with the longest of the base's own.
    """
    for net, factors in concept.lora.items():
        layers = lora.adaptable(getattr(base, net))
        most = max((norm(layers[module].weight) for module in factors), default=0.0)
        for module, (down, up) in factors.items():
            if abs(concept.scale) * norm(down) * norm(up) > LARGEST * most:  # at least as large as the update
                size = abs(concept.scale) * norm_of(down, up)
                check_proportion(concept, f"the update of {net}.{module}", size, most)
    if concept.embeddings:
        most = norm(base.text_encoder.get_input_embeddings().weight, dim=1)
        for word, rows in concept.embeddings.items():
            check_proportion(concept, f"the word {word}", norm(rows, dim=1), most)


def check_proportion(concept: Concept, what: str, size: float, most: float) -> None:
    if size > LARGEST * most > 0:
        raise ValueError(
            f"The concept {concept.name!r} is damaged or was tuned astray: {what} is {size / most:.0e} times as large "
            "as anything like it in the base, get its file again, or tune it again with smaller learning rates."
        )


def norm(tensor: Tensor, dim: int | None = None) -> float:
    """The largest Euclidean norm along `dim`, of the whole tensor without one; also where it overflows in its dtype.

    Of a tensor without numbers (on the meta device) it is 0.
    """
    if tensor.is_meta:
        return 0.0
    wide = torch.float64 if tensor.device.type == "cpu" else torch.float32  # MPS has no float64
    return torch.linalg.vector_norm(tensor.detach(), dim=dim, dtype=wide).max().item()


def norm_of(down: Tensor, up: Tensor) -> float:
    """The Frobenius norm of up (d_out, r) @ down (r, d_in), from two products of (r, r)."""
    down, up = down.detach().cpu().double(), up.detach().cpu().double()
    return ((up.T @ up) * (down @ down.T)).sum().clamp(min=0).sqrt().item()


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
