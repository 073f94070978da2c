"""One name for each table and figure of the paper (4.3): `mixofshow paper table1 --base pocket`.

table1, table2a     methods against categories, single → fused, the paper's numbers beside ours (`tables`)
table2c             what the people's vote says (`vote`), from a file of votes
figure1 to figure7  pictures in the paper's arrangement (`figures`)

A full run is saved with what is needed to reproduce it. `quick` redoes a slice in minutes, fewer concepts and
pictures, and says whether it points where the saved result does.
"""

import time
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

import numpy as np

from ..engine.evaluation import Scorer, load_scorer
from ..files.data import ConceptData
from ..model import DiffusionModel
from . import tables, vote
from .figures import FIGURES, Studio
from .observations import DOMAINS, LOOK_ALIKES
from .readings import PACKAGES
from .study import Study

TABLES = {"table1": tables.table1, "table2a": tables.table2a}
VOTED = "table2c"
NAMES = (*TABLES, VOTED, *FIGURES)
QUICK_TABLE = {
    "categories": {category: own[:1] for category, own in tables.CATEGORIES.items()},
    "prompts": tables.PROMPTS[1:2],
    "scene_prompts": tables.SCENE_PROMPTS[1:2],
    "n": 1,
}


def reproduce(
    name: str,
    base: DiffusionModel,
    work: str | Path,
    data: Mapping[str, ConceptData],
    quick: bool = False,
    steps: int | None = None,
    scorer: Scorer | str | None = None,
    **options,
) -> Study:
    """The table or figure of that name as a Study, its concepts tuned in `work` where they are not yet.

    `options` replace the study's own (categories, names, domains). Raises ValueError on a name that is none, or that
    is decided by votes.
    """
    if name not in (*TABLES, *FIGURES):
        raise ValueError(f"There is nothing to draw for {name!r}: choose one of {', '.join((*TABLES, *FIGURES))}.")
    scorer, start = load_scorer(scorer), time.monotonic()
    if name in TABLES:
        chosen = (QUICK_TABLE if quick else {}) | options
        study = TABLES[name](base, work, data, steps=steps, scorer=scorer, **chosen)
    else:
        studio = Studio(base, work, data, scorer, n=1 if quick else 4, steps=steps)
        study = FIGURES[name](studio, **((quick_figure(name) if quick else {}) | options))
    versions = {package: metadata.version(package) for package in PACKAGES}
    minutes = round((time.monotonic() - start) / 60, 1)
    command = f"mixofshow paper {name} --base {base.base_id}{' --quick' if quick else ''}"
    study.about |= {"command": command, "versions": versions, "minutes": minutes}
    return study


def quick_figure(name: str) -> dict:
    """The slice of a figure: two concepts, one of each domain."""
    if name == "figure3":
        return {"domains": {domain: names[:1] for domain, names in DOMAINS.items()}}
    return {"names": LOOK_ALIKES[:2]}


def text(study: Study) -> str:
    """What the terminal shows: the table, or the number under each picture; then the claims."""
    if study.name in TABLES:
        shown = tables.text(study)
    else:
        shown = "\n".join(f"{row['concept']:22} {row['column']:60} {row['value']:.3f}" for row in study.rows)
    claims = [f"{found}  {words}" for words, found in study.differences.items()]
    return "\n".join([shown, *claims, study.verdict()]).strip()


def agreement(saved: Study, again: Study) -> str:
    """In a sentence: does a slice point where the saved result does?"""
    common = [words for words in again.differences if words in saved.differences]
    if common:
        same = [w for w in common if (again.differences[w].mean > 0) == (saved.differences[w].mean > 0)]
        against = [words for words in common if words not in same]
        tail = f"; against it: {'; '.join(against)}" if against else ""
        return f"{len(same)} of {len(common)} claims point where the saved result's do{tail}"
    values = {(row["column"], row["concept"]): row["value"] for row in saved.rows if "column" in row}
    pairs = [(r["value"], values[k]) for r in again.rows if (k := (r.get("column"), r["concept"])) in values]
    if not pairs:
        return "the saved result has nothing in common with this slice"
    gap = float(np.mean([abs(a - b) for a, b in pairs]))
    return f"{len(pairs)} pictures of the saved result drawn again: their alignment differs by {gap:.3f} on average"


def voted(file: str | Path, ways: tuple[str, str] = ("averaging", "gradient fusion")) -> vote.Result:
    """Table 2 c from a file of votes; raises FileNotFoundError, with how to vote, if there is none."""
    votes = vote.read_votes(file)
    if not votes:
        raise FileNotFoundError(
            f"there are no votes in {file}: show VotePage(draw_ballot(models, concepts, data), {str(file)!r}) in a "
            "notebook, from mixofshow_lite.course.widgets and mixofshow_lite.paper.ballots, and answer its questions"
        )
    return vote.result(votes, ways)
