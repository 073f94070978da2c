"""Muon for pretraining: momentum whose matrix updates are orthogonalised (Jordan et al., 2024), Adam for all else.

On two CPU cores it took the autoencoder to 21.7 dB in the minute in which Adam reached 18.7 dB (one run each, by hand:
a reason to use it, not a benchmark). `torch.optim.Muon` accepts only 2-D weights, most of ours are convolutions, hence
these lines.
"""

import torch


def fast_bf16(device: torch.device) -> bool:
    """Whether bf16 is the faster type: on CUDA and on CPUs with AVX-512; others emulate it, ten times slower."""
    return device.type == "cuda" or torch.backends.cpu.get_cpu_capability().startswith("AVX512")


def orthogonalise(g: torch.Tensor, rounds: int = 5) -> torch.Tensor:
    """Nearest semi-orthogonal matrix of g (b, m, n), roughly: quintic Newton-Schulz steps pull all singular values into
    about [0.7, 1.2]."""
    x = g.bfloat16() if fast_bf16(g.device) else g.float()
    if g.shape[1] > g.shape[2]:
        x = x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(rounds):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.mT if g.shape[1] > g.shape[2] else x).to(g.dtype)


class Muon(torch.optim.Optimizer):
    """Nesterov momentum + orthogonalised updates for matrices (convolutions count as (out, in * k * k) matrices).

    lr          step size in units of the matrix's spectral norm, about 0.02 at the start
    momentum    of the gradient average
    Matrices of one shape are orthogonalised together.
    """

    def __init__(self, params, lr: float = 0.02, momentum: float = 0.95, weight_decay: float = 0.0):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            shapes: dict[tuple, list] = {}
            for p in group["params"]:
                if p.grad is not None:
                    shapes.setdefault(tuple(p.flatten(1).shape), []).append(p)
            for (m, n), same in shapes.items():
                updates = []
                for p in same:
                    state = self.state[p]
                    average = state.setdefault("momentum", torch.zeros_like(p))
                    average.mul_(group["momentum"]).add_(p.grad)
                    updates.append((p.grad + group["momentum"] * average).flatten(1))
                for p, update in zip(same, orthogonalise(torch.stack(updates)), strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p), alpha=-group["lr"] * max(1.0, m / n) ** 0.5)


def split(module: torch.nn.Module, keep_adam=("conv_in", "conv_out", "embedding", "quant_conv")) -> tuple[list, list]:
    """Weights for Muon (matrices inside the network), for Adam (first and last layers, embeddings, norms, biases)."""
    inside = [p for name, p in module.named_parameters() if p.ndim >= 2 and not any(k in name for k in keep_adam)]
    chosen = {id(p) for p in inside}
    return inside, [p for p in module.parameters() if id(p) not in chosen]
