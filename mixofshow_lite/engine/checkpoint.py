"""Interrupted tuning goes on where it stopped: one file with all a run needs, removed when its concept is made."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from ..files.writing import atomic_file


class Checkpoint:
    """The state of an interrupted run in one file, written every few steps; the path None keeps nothing.

    `key` names the run: a checkpoint of another one is not taken up. `parts` are schedule, scaler (or None) and
    generator. The trained tensors live in the optimizer's groups, so that is where they are read and written. Of
    several processes all read it, and the one with `keep` writes it.
    """

    every = 50  # steps between two writes

    def __init__(self, path: str | Path | None, key: str, optimizer: torch.optim.Optimizer, keep: bool = True, **parts):
        self.path, self.key, self.keep = path and Path(path), key, keep
        self.optimizer, self.parts, self.step = optimizer, parts, 0
        if self.path and self.path.is_file():
            try:
                saved = torch.load(self.path, map_location="cpu", weights_only=True)
            except Exception:
                warnings.warn(f"{self.path} cannot be read: the run starts from the beginning.", stacklevel=3)
                return
            if saved["key"] == key:  # the checkpoint of another run is overwritten
                self._restore(saved)

    def _tensors(self) -> list[Tensor]:
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"]]

    def _restore(self, saved: dict) -> None:
        self.step = saved["step"]
        for tensor, value in zip(self._tensors(), saved["tensors"], strict=True):
            tensor.data.copy_(value)
        self.optimizer.load_state_dict(saved["optimizer"])
        self.parts["generator"].set_state(saved["generator"])
        for name in ("schedule", "scaler"):
            if self.parts[name] is not None:
                self.parts[name].load_state_dict(saved[name])

    def save(self, step: int) -> None:
        """Write the state after `step` steps, all or nothing."""
        if not self.path or not self.keep or step % self.every:
            return
        saved = {"key": self.key, "step": step, "tensors": [tensor.detach().cpu() for tensor in self._tensors()]}
        saved |= {"optimizer": self.optimizer.state_dict(), "generator": self.parts["generator"].get_state()}
        saved |= {n: self.parts[n].state_dict() for n in ("schedule", "scaler") if self.parts[n] is not None}
        with atomic_file(self.path) as temporary:
            torch.save(saved, temporary)

    def remove(self) -> None:
        """Forget the run, once its concept is made."""
        if self.path and self.keep:
            self.path.unlink(missing_ok=True)
