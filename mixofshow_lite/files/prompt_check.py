"""What a prompt says that the model will not understand (concept words of paper 3.1, class words), as sentences.

Each function looks for one kind of mistake and returns a sentence, or "" where there is none. Whoever draws or tunes
shows each sentence once: see `DiffusionModel.check_prompts`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

from .concept import WORD

# Ways to write prompts in A1111's web interface that other programs read as plain text: (red cat:1.2), ((cat)),
# [cat:dog:0.5], [cat|dog], <lora:name:0.7>, BREAK.
A1111 = re.compile(
    r"<(?:lora|lyco|hypernet):[^<>]*>|\([^()]*:\s*\d*\.?\d+\s*\)|\(\([^()]*\)\)|\[\[[^\[\]]*\]\]|\[[^\[\]]*[:|][^\[\]]*\]"
    r"|\bBREAK\b"
)
PLAIN_WORD = re.compile(r"[^\W\d_]+")  # letters of any language
SHORT = 40  # characters of a prompt that a sentence shows


def as_prompts(prompts: str | Iterable[str]) -> list[str]:
    """One prompt or several as a list; raises TypeError with one sentence where one is no text."""
    prompts = [prompts] if isinstance(prompts, str) else prompts
    if isinstance(prompts, bytes | Mapping) or not isinstance(prompts, Iterable):
        raise TypeError(f"The prompt {prompts!r} is no text: give a string, or a list of strings.")
    prompts = list(prompts)
    for prompt in prompts:
        if not isinstance(prompt, str):
            raise TypeError(f'The prompt {prompt!r} is no text: give a string, "" for an empty prompt.')
    return prompts


def short(text: str) -> str:
    """A text as a sentence may quote it, in quotes."""
    return repr(text if len(text) <= SHORT else text[: SHORT - 3].rstrip() + "...")


def cut_off(prompt: str, rest: str, words: Iterable[str], length: int, called: str = "prompt") -> str:
    """The prompt is longer than `length` tokens; `rest` of it is lost, first of all concept words."""
    if not rest:
        return ""
    lost = [word for word in dict.fromkeys(WORD.findall(rest)) if word in words]
    what = f"the concept's {' and '.join(lost)} and all behind it" if lost else short(rest)
    return f"The {called} {short(prompt)} is longer than {length} tokens, this was cut off: {what}; shorten it."


def foreign_syntax(prompt: str, called: str = "prompt") -> str:
    """A1111's weights, LoRA tags and the like, which mean nothing here."""
    found = list(dict.fromkeys(A1111.findall(prompt)))
    if not found:
        return ""
    return (
        f"The {called} {short(prompt)} has A1111's syntax, {' and '.join(found[:3])}, which is read as plain text "
        "here: leave it out, draw LoRAs with with_concept(concept, alpha) and places with regions."
    )


def not_joined(prompts: Sequence[str], words: Iterable[str]) -> dict[str, str]:
    """word -> the sentence about it, for every <word> that looks like a concept's and is none of `words`."""
    known = {word.lower(): word for word in words}
    found = {}
    for word in sorted({w for prompt in prompts for w in WORD.findall(A1111.sub(" ", prompt))} - set(words)):
        if word.lower() in known:
            found[word] = f"{word} is no concept word of this model, capitals matter: write {known[word.lower()]}."
        else:
            listed = ", ".join(words) or "no concept words"
            found[word] = f"{word} is no concept word of this model (it knows {listed}): join its concept first."
    return found


def half_named(prompt: str, names: Mapping[str, tuple[str, ...]], called: str = "prompt") -> str:
    """Some words of a concept without the others; `names` has all words of a concept for each of them."""
    used = [word.lower() for word in WORD.findall(prompt)]
    for words in dict.fromkeys(names.values()):
        there = [word for word in words if word.lower() in used]
        if there and len(there) < len(words):
            missing = [word for word in words if word not in there]
            return (
                f"The {called} {short(prompt)} has {' '.join(there)} without {' '.join(missing)}: this concept is "
                f"written {' '.join(words)}."
            )
    return ""


def unknown_words(prompts: Iterable[str], known: frozenset[str]) -> set[str]:
    """Plain words that a model with a small vocabulary never saw; none where the vocabulary is not limited."""
    if not known:
        return set()
    plain = (WORD.sub(" ", A1111.sub(lambda found: re.sub(r"<.*>|BREAK", " ", found[0]), p)) for p in prompts)
    return {word for text in plain for word in PLAIN_WORD.findall(text.lower())} - known


def named_together(words: Iterable[str], groups: object = None) -> dict[str, tuple[str, ...]]:
    """word -> all words of its concept: as `groups` lists them, else those that differ by a last number alone."""
    words = list(words)
    listed = groups if isinstance(groups, list) and all(isinstance(group, list) for group in groups) else []
    together = [tuple(group) for group in listed if all(word in words for word in group)]
    rest: dict[str, list[str]] = {}
    for word in words:
        if not any(word in group for group in together):
            rest.setdefault(re.sub(r"\d+>$", "", word), []).append(word)
    return {word: group for group in [*together, *map(tuple, rest.values())] for word in group}
