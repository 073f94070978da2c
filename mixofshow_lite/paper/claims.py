"""The paper's claims, and what became of them here (section 4): one table, made from saved results alone.

    python -m mixofshow_lite.paper claims                        # prints it
    python -m mixofshow_lite.paper claims --readme README.md     # and writes it between the README's two marks

A claim of the paper is a claim of a study ("more is better", `Study.claim`). It holds if its whole 90 % interval lies
above 0, does not hold if it lies below, and is not shown if it includes 0. A result of another base is no result: the
claim then counts as not measured. Beside the number stands the paper's own difference where it prints one; only the
signs of the two compare, since pictures, reader and prompts are others.
"""

from dataclasses import dataclass
from pathlib import Path

from ..files.writing import write_text
from . import ballots, figures, tables
from .study import Difference, Study
from .vote import PAPER

BEGIN = "<!-- claims: made by python -m mixofshow_lite.paper claims -->"
END = "<!-- end of claims -->"
HOLDS, OPEN, FAILS, UNMEASURED = "holds", "not shown", "does not hold", "not measured on this base"


@dataclass(frozen=True)
class Claim:
    """One claim of the paper."""

    place: str  # in the paper
    says: str  # in a sentence
    study: str  # the result that decides it
    words: str  # its claim there
    published: float | None = None  # the paper's difference, where it prints one


def printed(number: str, more: str, less: str, what: str) -> float:
    """The paper's difference between two methods, means over categories: what is "single", "fused" or "change"."""
    first, second = (tables.PUBLISHED[method][number][-1] for method in (more, less))
    pick = {"single": lambda p: p[0], "fused": lambda p: p[1], "change": lambda p: p[1] - p[0]}[what]
    return pick(first) - pick(second)


def table_claims() -> list[Claim]:
    """What Tables 1 and 2 claim."""
    ours, found = "Mix-of-Show", []
    found.append(
        Claim("Table 1", "Mix-of-Show loses less of an identity by fusing than LoRA", "table1",
              "Mix-of-Show loses less of an identity than LoRA", printed("image", ours, "LoRA", "change"))
    )  # fmt: skip
    for other in ("P+", "Custom Diffusion", "LoRA"):
        for state, what, words in (("alone", "single", "alone, ED-LoRA"), ("fused", "fused", "fused, Mix-of-Show")):
            says = f"{state}, it is more like the concept than {other}"
            asked = f"{words} is more like the concept than {other}"
            found.append(Claim("Table 1", says, "table1", asked, printed("image", ours, other, what)))
    first, second, third = tables.TABLE_2A
    for more, less, words in (
        (second, first, "averaged ED-LoRAs lose less than averaged LoRAs"),
        (third, second, "gradient fusion loses less than averaging"),
    ):
        found.append(Claim("Table 2 a", words, "table2a", words, printed("image", more, less, "change")))
    for place, question in (("Table 2 b", "image"), ("Table 2 c", "text")):
        says = f"people prefer gradient fusion's pictures, {question}-alignment (share above a half)"
        found.append(Claim(place, says, "table2c", ballots.PREFERS[question], PAPER[question] - 0.5))
    return found


CLAIMS: tuple[Claim, ...] = (
    Claim("Observation 1", "out of domain, words alone fall behind LoRA", "observation_1",
          "out-domain: LoRA above the words alone"),
    Claim("Observation 1", "and farther than in domain", "observation_1",
          "LoRA is farther above the words alone out-domain than in-domain"),
    Claim("Observation 2", "ED-LoRA's words carry more of the identity than LoRA's", "observation_2",
          "with LoRA weight 0, look-alikes are more like themselves by ED-LoRA's words than by LoRA's"),
    Claim("Observation 2", "and tell look-alikes apart more often", "observation_2",
          "with LoRA weight 0, look-alikes are identified more often by ED-LoRA's words than by LoRA's"),
    Claim("Observation 3", "averaged ED-LoRAs lose less than averaged LoRAs", "observation_3",
          "averaged ED-LoRAs lose less than averaged LoRAs"),
    Claim("Observation 3", "gradient fusion keeps more of an identity than averaging", "observation_3",
          "gradient fusion keeps more of an identity than averaging"),
    *table_claims(),
    Claim("Fig. 5", "regions draw each subject in its place, one prompt does not", "figure5", figures.BY_REGIONS),
    Claim("Fig. 7 a", "ED-LoRA's words are more like the concept than LoRA's", "figure7", figures.BY_WORDS),
    Claim("Fig. 7 b", "gradient fusion's pictures are more like the concept", "figure7", figures.BY_FUSION),
    Claim("Fig. 7 c", "regions draw each subject in its place", "figure7", figures.BY_REGIONS),
)  # fmt: skip


def verdict(found: Difference | None) -> str:
    """What a difference says of the claim that it is above 0; None was not measured."""
    if found is None:
        return UNMEASURED
    if found.low > 0:
        return HOLDS
    return FAILS if found.high < 0 else OPEN


def measured(results: str | Path, claim: Claim, fingerprint: str) -> Difference | None:
    """The claim's saved difference on the base of that fingerprint; None if there is none.

    Raises ValueError if the result is damaged, KeyError if its study no longer makes this claim.
    """
    try:
        study = Study.load(results, claim.study)
    except FileNotFoundError:
        return None
    if study.about.get("fingerprint") != fingerprint:
        return None
    if claim.words not in study.differences:
        raise KeyError(f"The saved {claim.study} does not say whether {claim.words!r}: measure it again.")
    return study.differences[claim.words]


def table(results: str | Path, fingerprint: str) -> str:
    """The Markdown table: a row for every claim."""
    lines = ["| in the paper | claim | here, with its 90 % interval | the paper's | verdict |", "|---|---|---|---|---|"]
    for claim in CLAIMS:
        found = measured(results, claim, fingerprint)
        number = f"{found}, {found.pairs} {'votes' if claim.study == 'table2c' else 'pairs'}" if found else "–"
        theirs = "–" if claim.published is None else f"{claim.published:+.3f}"
        lines.append(f"| {claim.place} | {claim.says} | {number} | {theirs} | {verdict(found)} |")
    return "\n".join(lines)


def updated(readme: str, results: str | Path, fingerprint: str) -> str:
    """The README's text with the table as it is now; ValueError if its two marks are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"The README has no place for the table: put {BEGIN} and {END} where it belongs.")
    return f"{before}{BEGIN}\n{table(results, fingerprint)}\n{END}{after}"


def write(readme: str | Path, results: str | Path, fingerprint: str) -> None:
    """Put the table into a README."""
    file = Path(readme)
    write_text(file, updated(file.read_text(encoding="utf-8"), results, fingerprint))
