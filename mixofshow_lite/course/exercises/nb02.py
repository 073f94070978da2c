"""Notebook 02: which recipes change weights, the LoRA-weight dial, identified, paired differences, what is shown."""

import random

import numpy as np
import torch

from ...engine.recipes import RECIPES
from . import called, close, exercise, refuse


@exercise("2.1")
def _weights(answer) -> None:
    if isinstance(answer, str) or not isinstance(answer, (set, list, tuple)):
        raise AssertionError('Give a set of names of recipes, for example {"p_plus", "lora"}.')
    chosen = set(answer)
    if chosen - set(RECIPES):
        raise AssertionError(f"{sorted(map(str, chosen - set(RECIPES)))[0]!r} is no recipe: {', '.join(RECIPES)}.")
    wanted = {name for name, recipe in RECIPES.items() if recipe.unet_lora is not None or recipe.text_lora}
    extra = sorted(chosen - wanted)
    if extra:
        raise AssertionError(f"{extra[0]} has no LoRA in any column: it adds words and leaves every weight as it is.")
    missing = sorted(wanted - chosen)
    if missing:
        raise AssertionError(
            f"One is missing: {missing[0]} changes some weights, even if not in every attention layer."
        )


@exercise("2.2")
def _dial(function) -> None:
    W0, down, up = (torch.randn(*shape, dtype=torch.float64) for shape in ((6, 5), (2, 5), (6, 2)))
    hint = "W0 is (d_out, d_in), down is (r, d_in), up is (d_out, r): up stands on the left, up @ down."
    mine = called(function, W0, down, up, 0.0, hint=hint)
    refuse(mine, W0 + up @ down, "alpha has no effect: at 0 nothing of the LoRA is left.")
    refuse(mine, 0 * W0, "At alpha = 0 W0 is all that is left: does alpha multiply the product only?")
    close(mine, W0, "At alpha = 0 W0 is all that is left: does alpha multiply the product only?")
    mine = called(function, W0, down, up, 0.3, hint=hint)
    refuse(mine, W0 + 0.09 * up @ down, "alpha multiplies the product once, not each factor.")
    refuse(mine, 0.7 * W0 + 0.3 * up @ down, "This is no mixture: W0 keeps its full strength while the LoRA is added.")
    close(mine, W0 + 0.3 * up @ down, hint)


def features(n: int, D: int = 12) -> torch.Tensor:
    """n random features of unit length, (n, D)."""
    return torch.nn.functional.normalize(torch.randn(n, D), dim=1)


@exercise("2.3")
def _identified(function) -> None:
    hint = "Take the mean cosine with each concept's references, then ask for which concept it is the largest."
    for name in ("x", "z"):
        references = {key: features(n) for key, n in (("x", 4), ("y", 6), ("z", 3))}
        x = features(50)
        scores = torch.stack([(x @ r.T).mean(1) for r in references.values()])  # (3, 50)
        share = (scores.argmax(0) == list(references).index(name)).double().mean()
        mine = called(function, x, dict(references), name, hint="x @ references[name].T are (n, m) cosines.")
        for other in references:
            wrong = (scores.argmax(0) == list(references).index(other)).double().mean()
            if other != name and wrong != share:
                refuse(mine, wrong, "That is the share of another concept: does your answer depend on the name?")
        refuse(mine, scores[list(references).index(name)].mean(), "That is image-alignment; ask who is LARGEST.")
        refuse(mine, 50 * share, "That is a number of pictures: asked is the share.")
        close(mine, share, hint, 1e-6)


@exercise("2.4")
def _paired(function) -> None:
    for _ in range(3):
        found = {name: (random.random(), random.random()) for name in ("bibi", "mochi", "kiki")}
        rows = [(name, way, v) for name, both in found.items() for way, v in zip(("lora", "p_plus"), both, strict=True)]
        rows += [("fern", "lora", 5 + random.random())]  # of p_plus it was never measured
        random.shuffle(rows)
        wanted = np.mean([a - b for a, b in found.values()])
        mine = called(function, list(rows), "lora", "p_plus", hint="Every row is (concept, recipe, value).")
        refuse(mine, -wanted, "The other way round: `more` minus `less`.")
        lora, words = ([v for _, way, v in rows if way == recipe] for recipe in ("lora", "p_plus"))
        refuse(mine, np.mean(lora) - np.mean(words), "Means of different concepts: subtract inside each concept first.")
        refuse(mine, wanted * 3 / 4, "A concept that lacks one of the two is no difference of 0: leave it out.")
        refuse(mine, sum(lora) - sum(words), "Subtract inside each concept first, then take the mean.")
        close(mine, wanted, "Subtract inside each concept first; what lacks one of the two cannot be compared.", 1e-6)


@exercise("2.5")
def _not_shown(effects, measured) -> None:
    """`measured(effects, seeds)` is the notebook's: a difference with mean, low and high."""
    try:
        effects = [float(effect) for effect in effects]
    except (TypeError, ValueError):
        raise AssertionError("Give a list of six numbers, the effect on each of six concepts.") from None
    if len(effects) != 6:
        raise AssertionError(f"There are {len(effects)} effects: give one for each of six concepts.")
    if abs(np.mean(effects) - 0.2) > 0.005:
        raise AssertionError(f"Their mean is {np.mean(effects):.3f}: make it 0.2.")
    if sum(effect > 0 for effect in effects) < 3:
        raise AssertionError("Let three of the six be above 0 at least: one concept alone was the cell above.")
    found = measured(effects, seeds=10)
    print(f"mean {found.mean:+.2f}, interval [{found.low:+.2f}, {found.high:+.2f}]")
    if found.low > 0:
        raise AssertionError("That IS shown: what the concepts disagree about makes the interval wide. Spread them.")
