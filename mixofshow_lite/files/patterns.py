"""Regular expressions in foreign files: peft names layers by them, and a hostile one could match for years.

Python's `re` tries every way in which a pattern can match. How many there are at most is multiplied up here from the
pattern itself, before it is used: a repetition can end in many places, an alternative adds one way. A repetition of a
group that itself has several ways, such as (a+)+, is without limit.
"""

import re
from collections.abc import Mapping
from functools import lru_cache

MOST_WAYS = 200_000  # of all patterns of a file together; three times .* are 64,000
A_PATTERN = 50  # what a pattern costs in any case, in ways, beside its length
SOME, MANY = 3, 40  # places where a repetition of digits can end in the path of a layer, and one of anything else
ONE = re.compile(  # the pieces of a pattern, as far as they matter here
    r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]|\(\?(?:[:=!>]|<[=!]|P<\w+>|[a-zA-Z-]+[:)])|.", re.DOTALL
)
TIMES = re.compile(r"(?:[*+?]|\{\d*(?:,\d*)?\})[?+]?")
DIGITS = (r"\d", "[0-9]", r"[\d]")


def ways(pattern: str) -> int:
    """In how many ways at most a pattern can match a path; more than MOST_WAYS where there is no limit."""
    stack = [[0, 1]]  # of each open group: the ways of its finished alternatives, and of the one that is read
    at = 0
    while at < len(pattern):
        piece = ONE.match(pattern, at)[0]
        at += len(piece)
        if piece.startswith("("):
            if not piece.endswith(")"):  # (?i) opens nothing
                stack.append([0, 1])
            continue
        if piece == "|":
            stack[-1] = [sum(stack[-1]), 1]
            continue
        inside = sum(stack.pop()) if piece == ")" and len(stack) > 1 else 1
        times = TIMES.match(pattern, at)
        if times:
            at = times.end()
            inside = repeated(inside, times[0], piece)
        stack[-1][1] = min(stack[-1][1] * inside, MOST_WAYS + 1)
    return sum(map(sum, stack))


def repeated(inside: int, times: str, piece: str) -> int:
    """The ways of something with `inside` ways under a repetition such as *, +? or {2,3}."""
    if times.startswith("?"):
        return inside + 1
    if inside > 1:
        return MOST_WAYS + 1
    if times.startswith("{") and "," not in times:  # a number of times, one way
        return 1
    return SOME if piece in DIGITS else MANY


def check_patterns(patterns: Mapping[str, object], source: str) -> None:
    """Raise ValueError with one sentence unless every key is a regular expression that comes to an end soon."""
    total = 0
    for pattern in patterns:
        shown = repr(pattern if len(pattern) <= 60 else f"{pattern[:60]}...")
        total += len(pattern) + A_PATTERN
        if total <= MOST_WAYS:
            total += ways(f"({pattern})")  # it stands in a group, which its own brackets may close
        if total > MOST_WAYS:
            raise ValueError(
                f"The pattern {shown} in the settings of {source} could take years to match: name the layers one by "
                "one, or use fewer repetitions."
            )
        try:
            matcher(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(
                f"The pattern {shown} in the settings of {source} is no regular expression ({error}): mend it."
            ) from error


@lru_cache(maxsize=2**14)
def matcher(pattern: str) -> re.Pattern:
    """A pattern as peft uses it (`get_pattern_key`): it has to match the end of a layer's path, from a dot on."""
    return re.compile(rf"(.*\.)?({pattern})$")
