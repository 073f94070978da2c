"""Interrupted tuning goes on where it stopped: one file with all a run needs, kept until its concept is saved."""

import signal
import threading
from pathlib import Path

import torch
from torch import Tensor

from ..files.warn import warn
from ..files.writing import atomic_file, check_target
from .finite import is_finite


class Checkpoint:
    """The state of an interrupted run in one file, written every few steps; the path None keeps nothing.

    `key` names the run: a checkpoint of another one is not taken up. `parts` are schedule, scaler and generator. The
    trained tensors live in the optimizer's groups, so that is where they are read and written. Of several processes
    all read it, and the one with `keep` writes it.

    `with state:` around the steps lets Ctrl-C wait for the end of a step, where `stop_if_asked` writes the state, so
    that nothing is lost; a second Ctrl-C stops at once. Where other processes would wait for this one (not `waits`),
    and in a thread, to which Python sends no signals, Ctrl-C stays what it was.
    """

    every = 50  # steps between two writes

    def __init__(
        self,
        path: str | Path | None,
        key: str,
        optimizer: torch.optim.Optimizer,
        keep: bool = True,
        waits: bool = True,
        **parts,
    ):
        self.path, self.key, self.keep, self.waits = path and Path(path), key, keep, waits
        self.optimizer, self.parts, self.step = optimizer, parts, 0
        self.asked = False  # whether Ctrl-C was pressed
        self.usual = None  # what Ctrl-C did before
        if not self.path:
            return
        check_target(self.path)  # now rather than at the first write
        if not self.path.is_file():
            return
        try:
            saved = torch.load(self.path, map_location="cpu", weights_only=True)
            other = saved["key"] != key
            if not other:
                self._restore(saved)
        except Exception:
            warn(f"{self.path} cannot be read: the run starts from the beginning.")
            return
        if other:
            warn(
                f"{self.path} was left by a run with other pictures, words, settings or base: this one starts from "
                f"the beginning and replaces it at step {self.every}."
            )

    def __enter__(self) -> "Checkpoint":
        usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # nobody else listens to it
        if self.path and self.waits and usual and threading.current_thread() is threading.main_thread():
            self.usual = signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_) -> None:
        if self.usual is not None:
            signal.signal(signal.SIGINT, self.usual)

    def _note(self, *_) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def stop_if_asked(self, step: int) -> None:
        """Write the state after `step` steps and raise KeyboardInterrupt, if Ctrl-C was pressed meanwhile."""
        if self.asked:
            self.save(step, last=True)
            raise KeyboardInterrupt

    def _tensors(self) -> list[Tensor]:
        return [tensor for group in self.optimizer.param_groups for tensor in group["params"]]

    def _restore(self, saved: dict) -> None:
        pairs = list(zip(self._tensors(), saved["tensors"], strict=True))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.parts["generator"].set_state(saved["generator"])
        for name in ("schedule", "scaler"):
            self.parts[name].load_state_dict(saved.get(name, {}))  # files of old have no scaler where none was needed
        for tensor, value in pairs:
            tensor.data.copy_(value)
        self.step = saved["step"]

    def save(self, step: int, last: bool = False) -> None:
        """Write the state after `step` steps, all or nothing, if it is one of every few or the last for now.

        A state that is not finite is none to go on from.
        """
        if not self.path or not self.keep or (step % self.every and not last):
            return
        if not all(map(is_finite, self._tensors())):
            return
        saved = {"key": self.key, "step": step, "tensors": [tensor.detach().cpu() for tensor in self._tensors()]}
        saved |= {"optimizer": self.optimizer.state_dict(), "generator": self.parts["generator"].get_state()}
        saved |= {n: self.parts[n].state_dict() for n in ("schedule", "scaler")}
        with atomic_file(self.path) as temporary:
            torch.save(saved, temporary)


def discard(path: str | Path) -> None:
    """Remove the files of a finished run; call it when its concept is saved, for until then they are all there is."""
    for file in (Path(path), prior_file(path)):
        file.unlink(missing_ok=True)


def prior_file(path: str | Path) -> Path:
    """Where a run with that checkpoint keeps the latents of its class's pictures."""
    return Path(path).with_suffix(".prior.safetensors")


def steps_kept(path: str | Path) -> int:
    """How many steps are in the checkpoint of a run, 0 if there is none."""
    if not Path(path).is_file():
        return 0
    try:
        return int(torch.load(path, map_location="cpu", weights_only=True)["step"])
    except Exception:  # of another program; `Checkpoint` says so when it is to be read
        return 0
