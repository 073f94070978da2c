"""Ballots for the people's vote (paper Table 2 b, c): the same prompts and seeds drawn by two models, and what metrics
say of each pair.

Which pictures are asked about is decided by prompts and seeds alone, before any is seen: none is picked.
"""

from collections.abc import Mapping, Sequence

from ..engine.evaluation import Scorer, image_scores, load_scorer, plain_prompt, text_scores
from ..files.concept import Concept
from ..files.data import ConceptData
from .fusions import PROMPTS, SEED
from .observations import about
from .study import Difference, Study
from .vote import Ballot, Pair, Result

PREFERS = {  # question -> the claim
    "image": "people choose gradient fusion's picture more often than averaging's: more like the concept",
    "text": "people choose gradient fusion's picture more often than averaging's: fits the words better",
}


def draw_ballot(
    models: Mapping[str, object],
    concepts: Sequence[Concept],
    data: Mapping[str, ConceptData],
    prompts: Sequence[str] = PROMPTS,
    n: int = 1,
    seed: int = SEED,
    references: int = 3,
) -> Ballot:
    """A ballot of two models: n pictures of every concept at every prompt from the same noise.

    `models` are way -> anything with a DiffusionModel's `sample`; the second is the one whose share is reported. Raises
    ValueError unless there are two.
    """
    if len(models) != 2:
        raise ValueError(f"A vote compares two ways, not {len(models)}: {', '.join(models)}.")
    pairs = []
    for concept in concepts:
        shown = tuple(data[concept.name].pictures[:references])
        for prompt in prompts:
            asked = prompt.format(concept.phrase)
            first, second = (model.sample(asked, n=n, seed=seed, progress=False) for model in models.values())
            for i, pictures in enumerate(zip(first, second, strict=True)):
                name = f"{concept.name}, {prompt.replace('{}', '_')}, {seed + i}"
                pairs.append(Pair(name, plain_prompt(asked, [concept]), pictures, shown))
    return Ballot(tuple(models), tuple(pairs), seed)


def clip_scores(ballot: Ballot, scorer: Scorer | str | None = None) -> dict[str, dict[str, tuple[float, float]]]:
    """What CLIP says of each pair: image- and text-alignment of both pictures.

    `VotePage.result(clip_scores(ballot))` then says how often people and CLIP choose the same picture.
    """
    scorer, image, text = load_scorer(scorer), {}, {}
    for pair in ballot.pairs:
        text[pair.name] = tuple(text_scores(list(pair.pictures), pair.words, scorer).tolist())
        if pair.references:
            image[pair.name] = tuple(image_scores(list(pair.pictures), list(pair.references), scorer).tolist())
    return {"CLIP's image-alignment": image, "CLIP's text-alignment": text}


def vote_study(found: Result, base) -> Study:
    """Table 2 b, c as a result to be saved: of each question the share above a half, with the wider of its intervals.

    `base` drew the pictures; the votes themselves do not say which it was.
    """
    rows = [{"concept": q, "seed": 0, "value": own.share, "votes": own.votes} for q, own in found.preferred.items()]
    study = Study("table2c", rows, about=about(base, ways=list(found.ways), raters=found.raters, alpha=found.alpha))
    for question, own in found.preferred.items():
        low, high = min(own.low, own.pairs[0]), max(own.high, own.pairs[1])
        study.claim(PREFERS[question], Difference(own.share - 0.5, low - 0.5, high - 0.5, own.votes))
    return study
