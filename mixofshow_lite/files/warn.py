"""One way to warn: the warning points at the user's own line, not at one of this package."""

import contextlib
import sys
import warnings
from pathlib import Path

import torch

# Decorators such as torch.no_grad and `with` blocks put their own frames between a user and this package.
INSIDE = (str(Path(__file__).parents[1]), str(Path(torch.__file__).parent), contextlib.__file__)


def warn(message: str) -> None:
    """A UserWarning at the innermost line outside the package that led here."""
    frame, level = sys._getframe(), 1  # level 1 is this line
    while frame is not None and frame.f_code.co_filename.startswith(INSIDE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, stacklevel=level)
