"""What goes into the cross-attention layers and what comes out, for notebooks that compute the same by hand."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from ..attention import cross_attention


@contextmanager
def caught_layers(unet: nn.Module) -> Iterator[dict[int, tuple[nn.Module, Tensor, Tensor]]]:
    """While it is open, each cross-attention layer's (module, input (B, T, C), output (B, T, C)) by its number."""
    caught = {}

    def keep(layer: int):
        def hook(module, args, kwargs, out):
            caught[layer] = (module, args[0], out)

        return hook

    hooks = []
    for layer, module in enumerate(cross_attention(unet).values()):
        hooks.append(module.register_forward_hook(keep(layer), with_kwargs=True))
    try:
        yield caught
    finally:
        for hook in hooks:
            hook.remove()
