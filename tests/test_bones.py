"""The bones of every notebook: what a reader finds in each of them, in the same place.

A rule is a function notebook -> sentences on what is wrong. EXCEPTIONS lists which notebook does not keep which rule
yet: none does not, and the list may only become shorter again.
"""

import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = {file.stem: file for file in sorted(FOLDER.glob("*.ipynb"))}
pytestmark = pytest.mark.skipif(not FOLDER.is_dir(), reason="not a checkout")

CELLS = 25, 50
LONGEST, MOSTLY = 12, 0.9  # lines of a code cell, in this share of them
CARD = re.compile(r"^### Exercise (\d\.\d): .+\n[●○]{3} · \d+ minutes", re.M)
SEEN = re.compile(r"\b[Ww]e see\b|\*\*We see\*\*")

EXCEPTIONS: dict[str, set[str]] = {}


class Notebook:
    """A notebook as its cells' kinds and texts."""

    def __init__(self, name: str, cells: list[tuple[str, str, set[str]]]):
        self.name, self.cells = name, cells

    @classmethod
    def read(cls, file: Path) -> "Notebook":
        found = json.loads(file.read_text(encoding="utf-8"))["cells"]
        cells = [(c["cell_type"], "".join(c["source"]), set(c["metadata"].get("tags", ()))) for c in found]
        return cls(file.stem, cells)

    @property
    def prose(self) -> str:
        return "\n".join(text for kind, text, _ in self.cells if kind == "markdown")

    def code(self) -> list[str]:
        return [text for kind, text, tags in self.cells if kind == "code" and "setup" not in tags]


def opening(nb: Notebook) -> list[str]:
    """Title with the file's number, badge, a question, goals that begin with a verb, minutes and memory."""
    first, wrong = nb.cells[0][1], []
    number = nb.name.split("_")[0]
    if not first.startswith(f"# {number} · "):
        wrong.append(f"the title does not begin with '# {number} · '")
    if "colab-badge.svg" not in first:
        wrong.append("there is no badge")
    if not re.search(r"\*\*[^*]*\?\*\*", first):
        wrong.append("the first cell asks no question in bold")
    if "After it you can" not in first or len(re.findall(r"^- \*\*\w+", first, re.M)) < 3:
        wrong.append("there are no three goals that begin with a verb in bold after 'After it you can'")
    if not (re.search(r"\d+ minutes? of reading", first) and re.search(r"omputing", first) and "GB" in first):
        wrong.append("minutes of reading, of computing, and memory are not said")
    return wrong


def answer(nb: Notebook) -> list[str]:
    """Near the top, a section that shows the answer (or the question) as a picture."""
    heads = [text for kind, text, _ in nb.cells[:8] if kind == "markdown"]
    return [] if any(re.search(r"^## The (answer|question), as a picture", t, re.M) for t in heads) else ["no picture"]


def sections(nb: Notebook) -> list[str]:
    """Numbered from 1 without a gap, then Summary, What you should see, Next."""
    heads = re.findall(r"^## (.*)$", nb.prose, re.M)
    numbers = [int(head.split(".")[0]) for head in heads if re.match(r"\d+\. ", head)]
    wrong = [] if numbers == list(range(1, len(numbers) + 1)) and len(numbers) >= 5 else [f"sections are {numbers}"]
    return wrong + [f"there is no '## {head}'" for head in ("Summary", "What you should see") if head not in heads]


def predictions(nb: Notebook) -> list[str]:
    """Every Predict is answered: by 'we see' in the next four prose cells, or in a fold of the same cell."""
    prose, wrong = [text for kind, text, _ in nb.cells if kind == "markdown"], []
    if nb.prose.count("**Predict:**") < 4:
        wrong.append(f"there are only {nb.prose.count('**Predict:**')} predictions")
    for i, text in enumerate(prose):
        if "**Predict:**" not in text:
            continue
        rest = text.split("**Predict:**")[-1]
        if not ("<details>" in rest or any(SEEN.search(later) for later in prose[i + 1 : i + 5])):
            wrong.append(f"never answered: {rest.strip()[:60]!r}")
    return wrong


def exercises(nb: Notebook) -> list[str]:
    """Four or more, where the idea is: card, stub that may fail, hints, solution."""
    wrong, found, inline = [], 0, 0
    after = False
    for i, (kind, text, _) in enumerate(nb.cells):
        after = after or bool(re.search(r"^## Summary$", text, re.M))
        card = CARD.search(text) if kind == "markdown" else None
        if card is None:
            continue
        found, inline = found + 1, inline + (not after)
        below = nb.cells[i + 1 : i + 3]
        stub = below and below[0][0] == "code" and f'course.check("{card[1]}"' in below[0][1]
        if not stub or "raises-exception" not in below[0][2]:
            wrong.append(f"{card[1]} has no stub tagged raises-exception under its card")
        elif len(below) < 2 or below[1][1].count("<summary>Hint") < 2 or "<summary>Solution" not in below[1][1]:
            wrong.append(f"{card[1]} has no two hints and a solution under its stub")
    if found < 4 or inline < found - 1:
        wrong.append(f"of {found} exercises {inline} stand before the summary")
    return wrong


def folds(nb: Notebook) -> list[str]:
    """A blank line after </summary>: without it Colab shows formulas and code raw."""
    return [f"no blank line after {fold!r}" for fold in re.findall(r"<summary>[^\n]*</summary>\n(?!\n)", nb.prose)]


def links(nb: Notebook) -> list[str]:
    """A next notebook, the paper or its figure, a file of the library or another notebook; local ones exist."""
    found = re.findall(r"\]\(([^)#\s]+)", nb.prose)
    local = [link for link in found if "://" not in link]
    wrong = [f"{link} does not exist" for link in local if not (FOLDER / link).exists()]
    if "**Next:**" not in nb.prose:
        wrong.append("it does not say what is next")
    if len(found) < 4 or not local or not any("arxiv.org" in link for link in found):
        wrong.append("links to the paper, to the library and to other notebooks are missing")
    return wrong


def proportions(nb: Notebook) -> list[str]:
    """25 to 50 cells, half of them prose, code cells mostly short."""
    n, code = len(nb.cells), nb.code()
    short = sum(len(text.strip().splitlines()) <= LONGEST for text in code) / max(1, len(code))
    letters = len(nb.prose) / sum(len(text) for _, text, _ in nb.cells)
    wrong = [] if CELLS[0] <= n <= CELLS[1] else [f"it has {n} cells"]
    wrong += [] if letters >= 0.5 else [f"only {letters:.0%} of its letters are prose"]
    return wrong + ([] if short >= MOSTLY else [f"only {short:.0%} of the code cells have at most {LONGEST} lines"])


def pictures(nb: Notebook) -> list[str]:
    """Pictures in prose have words for those who cannot see them."""
    bare = re.findall(r"!\[\s*\]\([^)]*\)|<img(?![^>]*alt=)[^>]*>", nb.prose)
    return [f"no words for {found}" for found in bare]


def discussion(nb: Notebook) -> list[str]:
    """One pause to think alone and in pairs."""
    return [] if re.search(r"Think.*2 minutes alone, 5 in pairs", nb.prose) else ["nothing to think about in pairs"]


RULES = [opening, answer, sections, predictions, exercises, folds, links, proportions, pictures, discussion]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_bones_are_there(name, rule):
    wrong = rule(Notebook.read(NOTEBOOKS[name]))
    if rule.__name__ in EXCEPTIONS.get(name, ()):
        assert wrong, f"{name} keeps {rule.__name__} by now: take it off EXCEPTIONS"
        return
    assert not wrong, wrong


def test_exceptions_name_rules_and_notebooks():
    known = {rule.__name__ for rule in RULES}
    assert all(rules <= known for rules in EXCEPTIONS.values())
    assert set(EXCEPTIONS) <= set(NOTEBOOKS)


GOOD = """# 09 · T

[![Open in Colab](colab-badge.svg)](x)

**Why?**

After it you can

- **say** a,
- **see** b,
- **do** c.

*5 minutes of reading. Computing: 1 minute, 1 GB.*"""


def book(*texts, name="09_t"):
    """A notebook of prose; a text in a tuple is a code cell with its tags."""
    cells = [("markdown", t, set()) if isinstance(t, str) else ("code", t[0], set(t[1:])) for t in texts]
    return Notebook(name, cells)


CHECK = 'course.check("9.1", f)'
CARD_9 = "### Exercise 9.1: a\n●○○ · 5 minutes · CPU."
FOLDS_9 = "<details><summary>Hint 1</summary>\n\na\n</details><details><summary>Hint 2</summary>\n\nb\n</details>"
SOLVED_9 = FOLDS_9 + "<details><summary>Solution</summary>\n\nc\n</details>"
WRONG = [  # rule, a notebook that breaks it, what is said
    (opening, book(GOOD.replace("09", "08")), "title"),
    (opening, book(GOOD.replace("colab-badge", "x")), "badge"),
    (opening, book(GOOD.replace("?", "!")), "question"),
    (opening, book(GOOD.replace("- **do** c.", "")), "goals"),
    (opening, book(GOOD.replace("GB", "")), "memory"),
    (answer, book(GOOD, "## 1. At once"), "no picture"),
    (sections, book("## 1. a\n## 2. b\n## 4. d\n## 5. e\n## 6. f"), "sections are [1, 2, 4, 5, 6]"),
    (sections, book("## 1. a\n## 2. b\n## 3. c\n## 4. d\n## 5. e\n## Summary"), "What you should see"),
    (predictions, book("**Predict:** a?", "We see a.", "**Predict:** b?", "Nothing."), "never answered: 'b?'"),
    (exercises, book(CARD_9, (CHECK,), SOLVED_9), "no stub tagged"),
    (exercises, book(CARD_9, (CHECK, "raises-exception"), FOLDS_9), "a solution"),
    (exercises, book("## Summary", CARD_9, (CHECK, "raises-exception"), SOLVED_9), "of 1 exercises 0"),
    (folds, book("<details><summary>Hint</summary>\ntext"), "no blank line"),
    (links, book("[a](nowhere.ipynb)"), "does not exist"),
    (links, book("**Next:** [b](https://arxiv.org)"), "missing"),
    (proportions, book(*["p"] * 13, *[("x = 1",)] * 14), "prose"),
    (proportions, book("prose " * 99), "1 cells"),
    (proportions, book(*["prose " * 99] * 20, *[("x = 1\n" * 13,)] * 9), "0% of the code cells"),
    (pictures, book("![](a.png)"), "no words"),
    (pictures, book('<img src="a.png">'), "no words"),
    (discussion, book("Think."), "in pairs"),
]


@pytest.mark.parametrize(("rule", "notebook", "says"), WRONG, ids=[f"{r.__name__}-{s}" for r, _, s in WRONG])
def test_each_rule_notices(rule, notebook, says):
    assert any(says in sentence for sentence in rule(notebook))


def test_a_good_opening_passes():
    assert opening(book(GOOD)) == []
    wrong = exercises(book(CARD_9, (CHECK, "raises-exception"), SOLVED_9))
    assert wrong == ["of 1 exercises 1 stand before the summary"]
