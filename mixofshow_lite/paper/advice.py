"""Which way to bring concepts together is for whom? A paragraph made from the saved `rivals` study (beside 3.3.2).

Every sentence answers what a practitioner knows beforehand: may the center draw the concepts first, are there only
files, can clients agree before they tune, may a picture take longer, is it known where everybody stands? The way that
keeps most of an identity is named, what it costs, and whether it is shown to be above averaging at all.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

from ..rivals.table import ALL, RECORDINGS, REGIONS, SLOTS
from .head_to_head import AVERAGED
from .study import Study, saved

CASES: dict[str, Callable[[set], bool]] = {  # what is known -> whether a way with these needs will do
    "With nothing but the files": lambda needs: not needs,
    "Where the center may draw every concept first": lambda needs: needs == {RECORDINGS},
    "Where clients are numbered before they tune": lambda needs: SLOTS in needs,
    "Where nothing has to be one model": lambda needs: ALL in needs and REGIONS not in needs,
}


def advise(results: str | Path, base) -> str:
    """The paragraph, or one sentence that says how to measure what it needs on this base."""
    study = saved(results, "rivals", base)
    return "No advice without the rivals' study on this base." if study is None else paragraph(study)


def paragraph(study: Study) -> str:
    """What the study says, a few sentences for every number of concepts."""
    parts = [f"Measured on {study.about['base']}, and no more than that."]
    for size, means in study.about["means"].items():
        parts.append(f"With {size} concepts, averaging keeps {number(means, AVERAGED, 'identity')} of identity.")
        for case, suits in CASES.items():
            parts.append(best_of(study, str(size), means, case, suits))
        parts.append(where_regions_are_known(study, means))
    return " ".join(part for part in parts if part)


def best_of(study: Study, size: str, means: Mapping, case: str, suits: Callable[[set], bool]) -> str:
    """The sentence for one case: the way of highest identity among those that will do; "" if there is none."""
    needs = {way: set(study.about["ways"][way]["needs"]) for way in means}
    able = [way for way in means if way != AVERAGED and suits(needs[way]) and means[way]["identity"] is not None]
    if not able:
        return ""
    best = max(able, key=lambda way: means[way]["identity"])
    keeps = f"{best} keeps most, {number(means, best, 'identity')}"
    took = f"{number(means, best, 'seconds', 0)} s" if means[best]["seconds"] >= 1 else "under a second"
    cost = f"at a drift of {number(means, best, 'drift')}, in {took}"
    if ALL in needs[best]:
        cost = f"and a picture takes {number(means, best, 'a picture', 1)} s"
    shown = study.verdicts.get(f"{size} concepts: {best} keeps more than averaging", False)
    end = "" if shown else "; that this is more than averaging keeps is not shown"
    return f"{case}, {keeps}, {cost}{end}."


def where_regions_are_known(study: Study, means: Mapping) -> str:
    """Is fusion needed where a picture says who stands where?"""
    ways = {way: found["together"] for way, found in means.items() if found["together"] is not None}
    fused = {way: value for way, value in ways.items() if REGIONS not in study.about["ways"][way]["needs"]}
    masked = {way: value for way, value in ways.items() if way not in fused}
    if not fused or not masked:
        return ""
    first, second = max(fused, key=fused.get), max(masked, key=masked.get)
    better = "fusing first is better" if fused[first] > masked[second] else "nothing has to be fused"
    return (
        f"Where a picture says who stands where, {better}: {first} with regions {fused[first]:.2f}, "
        f"{second} {masked[second]:.2f} (image-alignment of two in one picture, their difference untested)."
    )


def number(means: Mapping, way: str, what: str, digits: int = 2) -> str:
    """A mean as text; "an unknown" where there is none."""
    value = means.get(way, {}).get(what)
    return "an unknown share" if value is None else f"{value:.{digits}f}"
