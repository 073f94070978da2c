"""The harness refuses what it is there to refuse."""

import json
import time
import warnings

import pytest
from harness import Hangs, outcome

from mixofshow_lite.engine.masks import Region


def test_a_result_and_a_sentence_pass():
    assert outcome(lambda: 3).value == 3
    found = outcome(lambda: Region("a cat"))
    assert isinstance(found.error, ValueError) and "needs a box or a mask" in str(found.error)


@pytest.mark.parametrize("text", ["{", '"' * 3])
def test_an_error_of_another_library_is_refused(text):
    with pytest.raises(AssertionError, match="JSONDecodeError is no type"):
        outcome(lambda: json.loads(text))
    with pytest.raises(AssertionError, match="comes from another library"):
        outcome(lambda: float(text))


def test_warnings_of_others_and_repeated_ones_are_refused():
    with pytest.raises(AssertionError, match="another library warns"):
        outcome(lambda: warnings.warn("an old function is used here", DeprecationWarning, stacklevel=1))
    with pytest.raises(AssertionError, match="said twice"):
        outcome(lambda: [warnings.warn("this folder has no captions", stacklevel=1) for _ in range(2)])
    with pytest.raises(AssertionError, match="no single line"):
        outcome(lambda: warnings.warn("one two three\nfour", stacklevel=1))


def test_a_call_that_hangs_is_refused():
    with pytest.raises(Hangs):
        outcome(lambda: time.sleep(5), seconds=0.05)
