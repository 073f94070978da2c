"""Precision, parts of a batch, and several processes, through accelerate.

Every process draws the same batch and works on its own pictures of it, in parts if memory is short; weights in the loss
are per picture, so that the gradients of all parts and processes simply add up to the batch's.
"""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from ..model import DiffusionModel


def accelerator_for(base: DiffusionModel, mixed_precision: str | None) -> Accelerator:
    """An Accelerator on the base's device; ValueError on half precision that the device does not have."""
    halves = {torch.float16: "fp16", torch.bfloat16: "bf16"}
    precision = mixed_precision or halves.get(base.dtype, "no")
    if precision not in ("no", "bf16", "fp16"):
        raise ValueError(f"mixed_precision={mixed_precision!r}: choose 'no', 'bf16' or 'fp16'.")
    on_cpu = base.device.type == "cpu"
    if precision == "fp16" and on_cpu:
        raise ValueError("fp16 tuning needs a GPU: load the base in float32, or tune with mixed_precision='bf16'.")
    state = AcceleratorState._shared_state  # one for the whole process, fixed by whoever came first
    if state and (state["_mixed_precision"] != precision or state["device"].type != base.device.type):
        AcceleratorState._reset_state(reset_partial_state=state["device"].type != base.device.type)
    accelerator = Accelerator(mixed_precision=precision, cpu=on_cpu)
    if accelerator.num_processes > 1 and not on_cpu and base.device.index != accelerator.device.index:
        raise ValueError(f"The base is on {base.device}: load it with device=accelerate.PartialState().device.")
    return accelerator


def shares(n: int, accumulate: int, accelerator: Accelerator) -> list[Tensor]:
    """Which of a batch's n pictures this process works on, in at most `accumulate` parts."""
    mine = torch.arange(n)[accelerator.process_index :: accelerator.num_processes]
    return [part for part in mine.chunk(accumulate) if len(part)]


def add_up(accelerator: Accelerator, tuned: list[Tensor], loss: Tensor) -> float:
    """Sum gradients and loss over the processes, in place; each has worked on its share of the pictures."""
    if accelerator.num_processes > 1:
        grads = [torch.zeros_like(tensor) if tensor.grad is None else tensor.grad for tensor in tuned]
        flat = accelerator.reduce(torch.cat([grad.flatten() for grad in (*grads, loss)]), "sum")
        *sums, loss = flat.split([grad.numel() for grad in (*grads, loss)])
        for tensor, total in zip(tuned, sums, strict=True):
            tensor.grad = total.view_as(tensor).clone()
    return loss.item()
