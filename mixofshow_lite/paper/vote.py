"""The people's vote (paper 4.3, Table 2 b, c): two ways side by side, which picture is better?

    from mixofshow_lite.course.widgets import VotePage
    VotePage(ballot, "votes.jsonl")          # in a notebook; any number of raters, again and again
    print(result(read_votes("votes.jsonl"), ballot.ways))

Every comparison is asked twice, as in the paper: which picture looks more like the concept (`image`), which shows
better what the words say (`text`). A rater sees them in an order and on sides that are drawn from the ballot's seed and
the rater's name, and never which way made which picture.

    paper                             here
    66.5 % prefer gradient fusion     Preference.share, of all votes for a question, and Wilson's interval
    (their raters' agreement)         `alpha`: Krippendorff's, 1 is full agreement, 0 is chance

One vote is one line of a file that is only ever added to, so that a crash loses none; a changed mind is a later line.
Votes on the same pair are not independent of each other, nor are those of one rater. A preference therefore counts as
shown only if Wilson's interval and a bootstrap over the pairs both lie above a half.
"""

import csv
import errno
import hashlib
import io
import json
import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import NormalDist

import numpy as np
from PIL import Image

from ..engine.arguments import as_path
from ..files.writing import make_folder, saying_what_to_do

QUESTIONS = {
    "image": "Which of the two looks more like those above them?",
    "text": "Which of the two fits the words better?",
}
PAPER = {"image": 0.665, "text": 0.525}  # Table 2 b, c: share for gradient fusion over weight fusion
CONFIDENCE = 0.9
BEGINNING = b'{"rater": "'  # of every line of a file of votes
FIELDS = ("rater", "pair", "question", "left", "right", "choice")


@dataclass(frozen=True)
class Pair:
    """One comparison."""

    name: str  # of its own in a ballot
    words: str  # what people read: the prompt with the class word in the place of the concept's words
    pictures: tuple[Image.Image, Image.Image]  # one of each way, from the same seed
    references: tuple[Image.Image, ...] = ()  # the concept's own, shown above the `image` question


@dataclass(frozen=True)
class Ballot:
    """What is asked: pairs of pictures of two ways."""

    ways: tuple[str, str]
    pairs: tuple[Pair, ...]
    seed: int = 0  # of order and sides

    def __post_init__(self):
        if len(self.ways) != 2 or len(set(self.ways)) != 2 or not self.pairs:
            raise ValueError(f"ways={self.ways}, {len(self.pairs)} pairs: give two ways and at least one pair.")
        if len({pair.name for pair in self.pairs}) != len(self.pairs):
            raise ValueError("Two pairs have the same name: give each its own.")


@dataclass(frozen=True)
class Ask:
    """One question to one rater."""

    pair: Pair
    question: str  # a key of QUESTIONS
    sides: tuple[int, int]  # numbers of the ways, left and right


def asks(ballot: Ballot, rater: str) -> list[Ask]:
    """What a rater is asked, in order: all image questions, then all text questions.

    The order of the pairs is the rater's own, and each way stands left in half of the questions (one more or less).
    """
    text = f"{ballot.seed} {rater}".encode()
    rng = np.random.default_rng(list(hashlib.sha256(text).digest()[:8]))
    found = []
    for question in QUESTIONS:
        order = rng.permutation(len(ballot.pairs))
        swapped = rng.permutation(len(order)) % 2
        for index, swap in zip(order, swapped, strict=True):
            found.append(Ask(ballot.pairs[index], question, (1, 0) if swap else (0, 1)))
    return found


# Keeping votes


def add_vote(file: str | Path, ballot: Ballot, rater: str, ask: Ask, side: int) -> None:
    """Append one vote, `side` 0 for left and 1 for right, and wait until it is on the disk.

    One write of one line: several processes may vote into a file at once, and an interruption can cut no earlier vote.
    Raises ValueError on another side, OSError with one sentence if it cannot be written or the file holds other things.
    """
    if side not in (0, 1):
        raise ValueError(f"side={side}: 0 is the left picture, 1 the right one.")
    left, right = (ballot.ways[i] for i in ask.sides)
    vote = dict(zip(FIELDS, (rater, ask.pair.name, ask.question, left, right, (left, right)[side]), strict=True))
    file = as_path(file)
    make_folder(file.parent)
    check_votes_file(file)
    line = (json.dumps(vote, ensure_ascii=False) + "\n").encode()
    if not ends_a_line(file):
        line = b"\n" + line  # an interruption has cut the last one
    with saying_what_to_do(file), open(file, "ab", buffering=0) as stream:
        if stream.write(line) < len(line):
            raise OSError(errno.ENOSPC, "No space left on device")
        os.fsync(stream.fileno())


def check_votes_file(file: Path) -> None:
    """Raise FileExistsError with one sentence unless votes may be added here: nothing, or votes alone."""
    if file.exists() and not file.is_file():
        raise FileExistsError(f"{file} is no file that votes can be added to: give the name of another one.")
    if file.is_file() and file.stat().st_size:
        with open(file, "rb") as stream:
            first = next(filter(bytes.strip, stream), BEGINNING)[: len(BEGINNING)]
        if not BEGINNING.startswith(first.strip()):  # an interruption may have cut it anywhere
            raise FileExistsError(f"{file} holds something else than votes: give the name of another file.")


def ends_a_line(file: Path) -> bool:
    """Whether what is added to a file begins a line of its own: it is new, empty, or ends with a line's end."""
    if not file.is_file() or file.stat().st_size == 0:
        return True
    with open(file, "rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read() == b"\n"


def read_votes(file: str | Path) -> list[dict]:
    """The votes of a file, the last of each rater, pair and question; none without a file. Cut lines are left out."""
    if not Path(file).is_file():
        return []
    votes = {}
    for line in Path(file).read_bytes().split(b"\n"):
        try:
            vote = json.loads(line)
            vote = {name: str(vote[name]) for name in FIELDS}
        except (ValueError, KeyError, TypeError):
            continue
        votes[vote["rater"], vote["pair"], vote["question"]] = vote
    return list(votes.values())


def votes_csv(votes: Sequence[Mapping]) -> str:
    """The votes as a table with a line for each: rater, pair, question, left, right, choice."""
    text = io.StringIO()
    writer = csv.DictWriter(text, FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(votes)
    return text.getvalue()


# What they say


@dataclass(frozen=True)
class Preference:
    """How often one way was chosen."""

    share: float
    low: float  # Wilson's interval over the votes
    high: float
    votes: int
    pairs: tuple[float, float]  # interval over the pairs, from a bootstrap

    @property
    def shown(self) -> bool:
        """Whether people prefer it: both intervals lie above a half."""
        return self.low > 0.5 and self.pairs[0] > 0.5

    def __str__(self) -> str:
        return f"{self.share:.1%} [{self.low:.1%}, {self.high:.1%}] of {self.votes}"


def wilson(chosen: int, votes: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a share: (low, high) within 0..1, sensible at 0 and 1 too; no votes say nothing."""
    if votes == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share, spread = chosen / votes, z * z / votes
    middle = (share + spread / 2) / (1 + spread)
    half = z * (share * (1 - share) / votes + spread / (4 * votes)) ** 0.5 / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def preference(votes: Sequence[Mapping], question: str, way: str, rounds: int = 2000, seed: int = 0) -> Preference:
    """How often `way` was chosen at a question. Raises ValueError if nobody has answered it."""
    by_pair = defaultdict(list)
    for vote in votes:
        if vote["question"] == question:
            by_pair[vote["pair"]].append(vote["choice"] == way)
    if not by_pair:
        raise ValueError(f"There is no vote on the question {question!r} yet.")
    chosen = np.array([sum(found) for found in by_pair.values()])
    counts = np.array([len(found) for found in by_pair.values()])
    drawn = np.random.default_rng(seed).integers(len(counts), size=(rounds, len(counts)))  # pairs, with repetition
    shares = chosen[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(shares, (tail, 1 - tail))
    total = int(counts.sum())
    return Preference(float(chosen.sum() / total), *wilson(int(chosen.sum()), total), total, (float(low), float(high)))


def alpha(votes: Sequence[Mapping], question: str) -> float:
    """Krippendorff's alpha of the raters' choices (nominal): 1 - observed / expected disagreement; NaN if undefined.

    Raters may have answered different pairs; pairs with one vote say nothing. NaN as well if all votes are the same
    way's, where agreement and habit cannot be told apart.
    """
    by_pair = defaultdict(Counter)
    for vote in votes:
        if vote["question"] == question:
            by_pair[vote["pair"]][vote["choice"]] += 1
    units = [counts for counts in by_pair.values() if counts.total() > 1]
    totals = sum(units, Counter())
    n = totals.total()
    if len(totals) < 2:
        return float("nan")
    differing = sum((m.total() ** 2 - sum(c * c for c in m.values())) / (m.total() - 1) for m in units) / n
    expected = (n * n - sum(c * c for c in totals.values())) / (n * (n - 1))
    return 1 - differing / expected


def agreement(
    votes: Sequence[Mapping], question: str, scores: Mapping[str, tuple[float, float]], ways: Sequence[str]
) -> Preference | None:
    """How often people chose the picture that a metric (CLIP, marks) scores higher; None if it never tells them apart.

    `scores` are pair -> its number for the picture of each way, in the order of `ways`. Pairs of equal scores are left
    out: the metric has no opinion there.
    """
    agreeing = []
    for vote in votes:
        first, second = scores.get(vote["pair"], (0.0, 0.0))
        if vote["question"] == question and first != second:
            preferred = ways[0] if first > second else ways[1]
            choice = "agrees" if vote["choice"] == preferred else "differs"
            agreeing.append({"pair": vote["pair"], "question": question, "choice": choice})
    return preference(agreeing, question, "agrees") if agreeing else None


@dataclass(frozen=True)
class Result:
    """What a vote says of the second way against the first."""

    ways: tuple[str, str]
    preferred: dict[str, Preference]  # question -> share of the second way
    alpha: dict[str, float]  # question -> agreement between raters
    metrics: dict[tuple[str, str], Preference] = field(default_factory=dict)  # (metric, question) -> agreement
    raters: int = 0

    def __str__(self) -> str:
        lines = [f"{self.ways[1]} over {self.ways[0]}, {self.raters} raters"]
        for question, found in self.preferred.items():
            verdict = "preferred" if found.shown else "not shown to be preferred"
            lines.append(f"{question}-alignment: {found}, {verdict} (the paper: {PAPER[question]:.1%})")
            lines.append(f"  agreement between raters (alpha): {self.alpha[question]:.2f}")
            for (metric, asked), same in self.metrics.items():
                if asked == question:
                    lines.append(f"  people choose what {metric} scores higher: {same}")
        return "\n".join(lines)


def result(
    votes: Sequence[Mapping],
    ways: tuple[str, str],
    pairs: Sequence[str] | None = None,
    metrics: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Result:
    """What votes say of the second way against the first; `metrics` are name -> pair -> (score of the first, second).

    Only votes between these ways count, and of these pairs where they are given: a file may hold an older ballot's too.
    Raises ValueError without any.
    """
    own = [vote for vote in votes if {vote["left"], vote["right"]} == set(ways)]
    if pairs is not None:
        own = [vote for vote in own if vote["pair"] in set(pairs)]
    asked = [question for question in QUESTIONS if any(vote["question"] == question for vote in own)]
    if not asked:
        raise ValueError("There is no vote on this ballot yet: show VotePage(ballot, file) and answer some questions.")
    found = {}
    for metric, scores in (metrics or {}).items():
        for question in asked:
            same = agreement(own, question, scores, ways)
            if same is not None:
                found[metric, question] = same
    preferred = {question: preference(own, question, ways[1]) for question in asked}
    alphas = {question: alpha(own, question) for question in asked}
    return Result(tuple(ways), preferred, alphas, found, len({vote["rater"] for vote in own}))
