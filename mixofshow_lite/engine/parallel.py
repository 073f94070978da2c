"""Precision, parts of a batch, and several processes (accelerate starts them).

Every process draws the same batch and works on its own pictures of it, in parts if memory is short; weights in the loss
are per picture, so that the gradients of all parts and processes simply add up to the batch's.
"""

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from torch import Tensor

from ..model import DiffusionModel


class Precision:
    """Mixed precision: torch's autocast and, in float16, its scaling of the loss.

    `mixed_precision` is "no", "bf16", "fp16" or None for what the base's weights are in. Raises ValueError on another
    word and on a half precision that the device does not have.
    """

    def __init__(self, base: DiffusionModel, mixed_precision: str | None):
        halves = {torch.float16: "fp16", torch.bfloat16: "bf16"}
        name = mixed_precision or halves.get(base.dtype, "no")
        if name not in ("no", "bf16", "fp16"):
            raise ValueError(f"mixed_precision={mixed_precision!r}: choose 'no', 'bf16' or 'fp16'.")
        if name == "fp16" and base.device.type == "cpu":
            raise ValueError("fp16 tuning needs a GPU: load the base in float32, or tune with mixed_precision='bf16'.")
        self.device = base.device.type
        self.half = next((half for half, known in halves.items() if known == name), None)
        self.scaler = torch.amp.GradScaler(self.device, enabled=name == "fp16")

    def autocast(self) -> torch.autocast:
        """`with precision.autocast():` around a forward pass."""
        return torch.autocast(self.device, self.half, enabled=self.half is not None)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to those that are there."""
        self.scaler.scale(loss).backward()

    def step(self, optimizer: torch.optim.Optimizer) -> None:
        """One step of the optimizer, then no gradients; left out where float16 gradients overflowed."""
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()


def processes_for(base: DiffusionModel) -> PartialState:
    """The processes that tune together; ValueError if this one has the base on another process's device."""
    on_cpu = base.device.type == "cpu"
    processes = PartialState(cpu=on_cpu)
    if processes.num_processes > 1 and not on_cpu and base.device.index != processes.device.index:
        raise ValueError(f"The base is on {base.device}: load it with device=accelerate.PartialState().device.")
    return processes


def parts_of_batch(n: int, accumulate: int, processes: PartialState) -> list[Tensor]:
    """Which of a batch's n pictures this process works on, in at most `accumulate` parts."""
    mine = torch.arange(n)[processes.process_index :: processes.num_processes]
    return [part for part in mine.chunk(accumulate) if len(part)]


def sum_over_processes(processes: PartialState, tuned: list[Tensor], loss: Tensor) -> float:
    """Sum gradients and loss over the processes, in place; each has worked on its share of the pictures."""
    if processes.num_processes > 1:
        grads = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tuned]
        flat = reduce(torch.cat([grad.flatten() for grad in (*grads, loss)]), "sum")
        *sums, loss = flat.split([grad.numel() for grad in (*grads, loss)])
        for tensor, total in zip(tuned, sums, strict=True):
            tensor.grad = total.view_as(tensor).clone()
    return loss.item()
