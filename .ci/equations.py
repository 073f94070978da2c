"""The README's table of equations, made from the tags in the eight paper files: python .ci/equations.py [--write]

A tag is a trailing comment that begins with the paper's number: `# Eq. 1 denoising loss`, `# 3.4 h[M_i] = h_i`. What
follows a colon or a semicolon explains and is no part of the tag. What is not in the paper says so in brackets:
`# 3.3.2 ridge (ours)`, `# 3.3.2 stage 1 (official code)`. Formulas are in the open, all other lines in a fold.
"""

import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("diffusion", "prompts", "lora", "tuning", "fusion", "regions", "evaluation", "attention")
TAG = re.compile(r"# ((?:Eq\. \d|\d\.\d(?:\.\d)?) [^:;]*)")
BEGIN, END = "<!-- equations: made by .ci/equations.py -->", "<!-- end of equations -->"
Row = tuple[str, str, int, str]  # (tag, file, line number, the line's code)


def tags(root: Path = ROOT) -> list[Row]:
    """Every tagged line, in the order of the files."""
    found = []
    for name in FILES:
        text = (root / "mixofshow_lite" / f"{name}.py").read_text()
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type != tokenize.COMMENT:
                continue
            code = token.line[: token.start[1]].strip()
            match = TAG.match(token.string)
            if match and code:  # a comment on a line of its own is prose
                found.append((match.group(1).strip(), f"{name}.py", token.start[0], code))
    return found


def section(tag: str) -> tuple[int, ...]:
    """Sorts tags: Eq. 1, 2 and 3 first, then the sections as the paper has them."""
    if tag.startswith("Eq. "):
        return 0, int(tag[4])
    return tuple(int(part) for part in tag.split()[0].split("."))


def is_formula(tag: str) -> bool:
    """Whether a tag is one of the paper's formulas: it has a number, or an equals sign."""
    return tag.startswith("Eq. ") or "=" in tag


def table(rows: list[Row]) -> str:
    """A Markdown table, one row for every tagged line."""
    lines = ["| paper | line | code |", "|---|---|---|"]
    for tag, file, line, code in rows:
        name, shown = tag.replace("|", "\\|"), code.replace("|", "\\|")  # a bar would end the cell
        tick = "``" if "`" in shown else "`"
        lines.append(f"| {name} | [{file}:{line}](mixofshow_lite/{file}#L{line}) | {tick}{shown}{tick} |")
    return "\n".join(lines)


def tables(root: Path = ROOT) -> str:
    """The paper's formulas, and in a fold all other tagged lines."""
    rows = sorted(tags(root), key=lambda row: section(row[0]))
    formulas = table([row for row in rows if is_formula(row[0])])
    others = [row for row in rows if not is_formula(row[0])]
    # What a browser does not find in a closed fold it finds in the fold's title.
    title = "More lines: " + ", ".join(tag.split(maxsplit=1)[1] for tag, *_ in others)
    return f"{formulas}\n\n<details><summary>{title}</summary>\n\n{table(others)}\n\n</details>"


def updated(readme: str, root: Path = ROOT) -> str:
    """The README's text with the tables as they are now; ValueError if their two marks are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no place for the table: put {BEGIN} and {END} where it belongs.")
    return f"{before}{BEGIN}\n{tables(root)}\n{END}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    if "--write" in sys.argv[1:]:
        readme.write_text(updated(readme.read_text()))
    else:
        print(tables())
