"""The README's table of equations, made from the tags in the eight paper files: python .ci/equations.py [--write]

A tag is a trailing comment that begins with the paper's number: `# Eq. 1`, `# 3.4 h[M_i] = h_i`. What follows a colon
or a semicolon explains and is no part of the tag.
"""

import io
import re
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILES = ("diffusion", "prompts", "lora", "tuning", "fusion", "regions", "evaluation", "attention")
TAG = re.compile(r"# ((?:Eq\. \d|\d\.\d(?:\.\d)? )[^:;]*)")
BEGIN, END = "<!-- equations: made by .ci/equations.py -->", "<!-- end of equations -->"


def tags(root: Path = ROOT) -> list[tuple[str, str, int, str]]:
    """(tag, file, line number, the line's code) of every tagged line, in the order of the files."""
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


def section(tag: str) -> tuple:
    """Sorts tags as the paper has them: Eq. 1 and 2 belong to 3.1, Eq. 3 to 3.2."""
    number = {"Eq. 1": "3.1", "Eq. 2": "3.1", "Eq. 3": "3.2"}.get(tag, tag.split()[0])
    return tuple(int(part) for part in number.split(".")), not tag.startswith("Eq.")


def table(root: Path = ROOT) -> str:
    """The Markdown table, one row for every tagged line."""
    rows = ["| paper | line | code |", "|---|---|---|"]
    for tag, file, line, code in sorted(tags(root), key=lambda entry: section(entry[0])):
        shown = code.replace("|", "\\|")
        tick = "``" if "`" in shown else "`"
        rows.append(f"| {tag} | [{file}:{line}](mixofshow_lite/{file}#L{line}) | {tick}{shown}{tick} |")
    return "\n".join(rows)


def updated(readme: str, root: Path = ROOT) -> str:
    """The README's text with the table as it is now; ValueError if its two marks are not there."""
    before, begin, rest = readme.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md has no place for the table: put {BEGIN} and {END} where it belongs.")
    return f"{before}{BEGIN}\n{table(root)}\n{END}{after}"


if __name__ == "__main__":
    readme = ROOT / "README.md"
    if "--write" in sys.argv[1:]:
        readme.write_text(updated(readme.read_text()))
    else:
        print(table())
