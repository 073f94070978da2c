"""Notebook 03: back to one row, which layer decides what, swapped layers, a green bear, how the two words begin."""

from collections.abc import Sequence

import torch

from ...engine.evaluation import choose
from ..words import part_by_part
from . import called, close, exercise, refuse

SHARE = 0.6  # of the pictures that have to be read as a bear, and as green


@exercise("3.1")
def _collapse(function) -> None:
    rows = torch.randn(16, 8, dtype=torch.float64)
    mine = called(function, rows.clone(), hint="rows is (L, D), and so is the answer.")
    refuse(mine, rows, "These are the rows as they came: let all be the same row.")
    refuse(mine, rows.mean(0), "That is the row: give it to every one of the L layers.")
    refuse(
        mine, rows[:1].expand(16, -1), "The first layer's row is no better than another: which is closest to all 16?"
    )
    refuse(mine, rows.mean(1, keepdim=True).expand(16, 8), "That is the mean over the D numbers: take it over layers.")
    refuse(
        mine, rows.median(0).values.expand(16, -1), "The median is closest in absolute values; squares ask for another."
    )
    close(mine, rows.mean(0).expand(16, -1), "The closest single row, in squares, is the mean over the layers.")


@exercise("3.2")
def _deciding(answer, turned) -> None:
    """`turned` is the notebook's table: label -> (share read as the other thing, share in the other colour)."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise AssertionError("Give two layer numbers: (what, colour).")
    if any(number is ... for number in answer):
        raise AssertionError("One of the two is still empty: replace the ... by a layer number.")
    if not all(isinstance(number, int) and not isinstance(number, bool) for number in answer):
        raise AssertionError("Give the layers' numbers alone: 7 where the table says 'layer 7'.")
    alone = {int(label.split()[1]): found for label, found in turned.items() if label.startswith("layer ")}
    unknown = sorted(set(answer) - set(alone))
    if unknown:
        raise AssertionError(f"No row is 'layer {unknown[0]}': there are {', '.join(map(str, alone))}.")
    best = [max(found[k] for found in alone.values()) for k in (0, 1)]
    mine = [alone[number][k] for k, number in enumerate(answer)]
    if mine == best:
        return
    if [alone[number][k] for k, number in enumerate(answer[::-1])] == best:
        raise AssertionError("The other way round: the left column is WHAT stands there, the right one its colour.")
    column = "robot" if mine[0] < best[0] else "blue"
    raise AssertionError(f"Another single layer turns more pictures in the column {column!r}.")


@exercise("3.3")
def _swap(function) -> None:
    a, b = torch.randn(16, 8), torch.randn(16, 8)
    before = a.clone(), b.clone()
    hint = "a and b are (L, D), layers is a list of layer numbers."
    close(called(function, a, b, [], hint=hint), before[0], "No layer swapped is the first concept, unchanged.")
    mixed = called(function, a, b, [0, 3, 15], hint=hint)
    if not (torch.equal(a, before[0]) and torch.equal(b, before[1])):
        raise AssertionError("The table that came in was changed: work on a clone, the concept is used again.")
    wanted = torch.stack([b[i] if i in (0, 3, 15) else a[i] for i in range(16)])
    refuse(mixed, torch.stack([a[i] if i in (0, 3, 15) else b[i] for i in range(16)]), "The other way round: keep a.")
    close(mixed, wanted, "Rows of the listed layers come from b, all others from a.")


def mixed(base, layers: Sequence[int], first=("white", "bear"), second=("green", "frog"), n: int = 3, seed: int = 0):
    """n pictures of a prompt whose words are `first` (colour, thing), and `second` in the layers listed."""
    chosen = torch.zeros(len(base.layers), dtype=torch.bool)
    chosen[list(layers)] = True
    model = part_by_part(base, chosen, first, second)
    return model.sample("a <colour> <thing> in the snow", n=n, seed=seed, progress=False)


@exercise("3.4")
def _green_bear(layers, kit) -> None:
    try:
        layers = sorted({int(layer) for layer in layers})
    except (TypeError, ValueError):
        raise AssertionError("Give a list of layer numbers, for example [0, 1].") from None
    L = len(kit.base.layers)
    if not layers or layers[0] < 0 or layers[-1] >= L:
        raise AssertionError(f"Give at least one layer, from 0 to {L - 1}.")
    pictures = mixed(kit.base, layers)
    bear = 1 - choose(pictures, ["a bear", "a frog"], kit.scorer).mean()
    green = choose(pictures, ["white", "green"], kit.scorer).mean()
    print(f"read as a bear: {bear:.0%} of {len(pictures)} pictures, as green: {green:.0%}")
    if bear < SHARE:
        raise AssertionError("It is a frog by then: leave out the layer that decides WHAT stands there.")
    if green < SHARE:
        raise AssertionError("It is a bear and still white: the layer that decides the colour is not in your list.")


@exercise("3.5")
def _start(function) -> None:
    spread = 0.02
    class_row, L = torch.randn(64) * 0.1 + 3, 16
    found = called(function, class_row.clone(), L, spread, hint="Give V_rand+ and V_class+, each (L, D).")
    if not isinstance(found, (tuple, list)) or len(found) != 2:
        raise AssertionError("Give two tables, V_rand+ and V_class+, each (L, D).")
    rand, of_class = found
    close(of_class, class_row.expand(L, -1), "V_class+ begins as the class word's own row, in each of the L layers.")
    if not torch.is_tensor(rand) or tuple(rand.shape) != (L, 64):
        raise AssertionError(f"V_rand+ has the shape {tuple(torch.as_tensor(rand).shape)} where {(L, 64)} is wanted.")
    close(rand, rand[:1].expand(L, -1), "V_rand+ is drawn once and copied: every layer begins with the same row.")
    if not 0.5 * spread < float(rand[0].std()) < 1.7 * spread or abs(float(rand[0].mean())) > spread:
        raise AssertionError("V_rand+ is far from normal numbers of that spread: is it spread * torch.randn(D)?")
    if torch.equal(called(function, class_row, L, spread)[0], rand):
        raise AssertionError("Two calls give the same V_rand+: it has to be random, or all concepts begin alike.")
