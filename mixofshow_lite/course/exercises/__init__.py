"""Checks of the notebooks' exercises: module nb01 checks the exercises 1.1, 1.2, ... of notebook 01.

A check takes the student's answer (a function or a value) and raises AssertionError naming the likely mistake.
"""

import importlib
import pkgutil
from collections.abc import Callable

import numpy as np
import torch

CHECKS: dict[str, Callable] = {}


def exercise(number: str) -> Callable:
    """Decorator: the function checks the answer to an exercise and raises AssertionError naming the likely mistake."""

    def keep(check: Callable) -> Callable:
        CHECKS[number] = check
        return check

    return keep


def close(mine, wanted, hint: str, tolerance: float = 1e-4) -> None:
    """Raise AssertionError with the hint unless two tensors (or numbers) agree to `tolerance` relative."""
    a, b = torch.as_tensor(mine).double(), torch.as_tensor(wanted).double()
    if a.shape != b.shape:
        raise AssertionError(f"The shape is {tuple(a.shape)} where {tuple(b.shape)} is wanted. {hint}")
    error = ((a - b).norm() / b.norm().clamp(min=1e-12)).item()
    if not error <= tolerance:
        raise AssertionError(f"Not yet: off by {error:.2g} relative. {hint}")


def called(function: Callable, *arguments, hint: str = ""):
    """What a student's function gives; AssertionError if that is nothing, or of one sentence on whatever it raises."""
    if not callable(function):
        raise AssertionError(f"A function is wanted, this is a {type(function).__name__}. {hint}".strip())
    try:
        mine = function(*arguments)
    except AssertionError:
        raise
    except Exception as error:
        what = " ".join(str(error).split())[:200]
        raise AssertionError(f"Your function stopped with {type(error).__name__}: {what}. {hint}".strip()) from error
    if mine is None or mine is ...:
        raise AssertionError("The function returns nothing yet: replace the ... by your line.")
    return mine


def refuse(mine, wrong, hint: str) -> None:
    """Raise AssertionError with the hint if the answer is a well-known wrong one."""
    if isinstance(mine, (int, float, np.number, torch.Tensor)) and not isinstance(mine, bool):
        a, b = torch.as_tensor(mine).double(), torch.as_tensor(wrong).double()
        if a.shape == b.shape and torch.allclose(a, b):
            raise AssertionError(hint)


def find_exercise(number: str) -> Callable:
    """The check of an exercise; KeyError with the known ones in a sentence."""
    everything()
    if number not in CHECKS:
        raise KeyError(f"There is no exercise {number}: there are {', '.join(CHECKS)}.")
    return CHECKS[number]


def everything() -> dict[str, Callable]:
    """All checks, by exercise number, in the notebooks' order."""
    for module in sorted(module.name for module in pkgutil.iter_modules(__path__)):
        importlib.import_module(f".{module}", __name__)
    return CHECKS
