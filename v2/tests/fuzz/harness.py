"""The frame of the fuzzing tests: broken input ends in a result or in one sentence, and in nothing else.

A test draws its case from a seed and hands the call to `outcome`:

    @pytest.mark.parametrize("seed", seeds(20))
    def test_masks(seed, tmp_path):
        mask = some_mask(random.Random(seed))
        found = outcome(lambda: Region("a cat", mask=mask))
        if found.error is None:
            assert found.value.mask.max() == 1

What is refused: an error of a type that no caller expects, one from inside another library, a message of many lines or
in Python's words, a warning of another library, the same warning twice, and a call that hangs. A failed case is drawn
again by its seed: pytest "tests/fuzz/test_x.py::test_masks[17]". FUZZ=1000 draws that many cases a test.
"""

import os
import signal
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import mixofshow_lite

PACKAGE = Path(mixofshow_lite.__file__).parent
EXPECTED = (ValueError, TypeError, FileNotFoundError, FileExistsError, NotADirectoryError, ConnectionError)
LONGEST = 600  # characters of a sentence; a folder's path may be a hundred of them
FOREIGN = (  # how Python and others talk when nobody has caught them
    "codec can't",
    "[Errno",
    "object has no attribute",
    "object is not",
    "positional argument",
    "cannot identify image file",
    "Traceback",
    "index out of range",
    "not supported between",
    "unsupported operand",
)


@dataclass
class Outcome:
    """How a call ended: a value, or an error that is one sentence; and what was warned of."""

    value: object = None
    error: Exception | None = None
    warned: list[str] = field(default_factory=list)


class Hangs(BaseException):
    """A call that has not come back in time; no `except Exception` of the library may catch it."""


def seeds(count: int) -> range:
    """The seeds of one test: `count` of them, or as many as the environment's FUZZ says."""
    return range(int(os.environ.get("FUZZ", count)))


def outcome(call: Callable[[], object], expected: tuple = EXPECTED, seconds: float = 20.0) -> Outcome:
    """Run `call`; AssertionError unless it ends within `seconds` in a result or in one sentence of an `expected` type.

    A subclass is another type: UnicodeDecodeError is a ValueError, but it is not a sentence of ours.
    """
    found = Outcome()
    with warnings.catch_warnings(record=True) as said, limited(seconds):
        warnings.simplefilter("always")
        try:
            found.value = call()
        except Exception as error:
            found.error = error
    if found.error is not None:
        check_error(found.error, expected)
    found.warned = [str(warning.message) for warning in said]
    for warning in said:
        assert warning.category in (UserWarning, RuntimeWarning), f"another library warns: {warning.message!r}"
        check_sentence(str(warning.message))
    assert len(set(found.warned)) == len(found.warned), f"the same is said twice: {found.warned}"
    return found


def check_error(error: Exception, expected: tuple) -> None:
    """AssertionError unless an error is of an expected type, raised by the library itself, with one sentence."""
    where = traceback.extract_tb(error.__traceback__)
    shown = "".join(traceback.format_exception(error))
    assert type(error) in expected, f"{type(error).__name__} is no type that a caller expects:\n{shown}"
    assert PACKAGE in Path(where[-1].filename).parents, f"the error comes from another library:\n{shown}"
    check_sentence(str(error), shown)


def check_sentence(text: str, shown: str = "") -> None:
    """AssertionError unless a message is one line of words that somebody wrote for the reader."""
    assert len(text.splitlines()) == 1, f"no single line: {text!r}\n{shown}"
    assert len(text) <= LONGEST and len(text.split()) >= 4, f"no sentence: {text!r}\n{shown}"
    assert not any(words in text for words in FOREIGN), f"not our words: {text!r}\n{shown}"


@contextmanager
def limited(seconds: float):
    """Raise Hangs in the block after `seconds`; without effect where there are no alarms (Windows)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def ring(*_):
        raise Hangs(f"nothing came back within {seconds:g} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
