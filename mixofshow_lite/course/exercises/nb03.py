"""Notebook 03: layer-wise words, two words, what is in a concept."""

import torch

from . import close, exercise


@exercise("3.1")
def _swap(function) -> None:
    a, b = torch.randn(16, 8), torch.randn(16, 8)
    before = a.clone(), b.clone()
    close(function(a, b, []), a, "No layer swapped is the first concept, unchanged.")
    mixed = function(a, b, [0, 3, 15])
    if not (torch.equal(a, before[0]) and torch.equal(b, before[1])):
        raise AssertionError("The table that came in was changed: work on a clone, the concept is used again.")
    wanted = torch.stack([b[i] if i in (0, 3, 15) else a[i] for i in range(16)])
    close(mixed, wanted, "Rows of the listed layers come from b, all others from a.")


@exercise("3.2")
def _start(function) -> None:
    class_row, L, spread = torch.randn(64) * 0.1 + 3, 16, 0.02
    found = function(class_row, L, spread)
    if found is None or found is ... or len(found) != 2:
        raise AssertionError("Give two tables, V_rand+ and V_class+, each (L, D).")
    rand, of_class = found
    close(of_class, class_row.expand(L, -1), "V_class+ begins as the class word's own row, in each of the L layers.")
    if tuple(rand.shape) != (L, 64):
        raise AssertionError(f"V_rand+ has the shape {tuple(rand.shape)} where {(L, 64)} is wanted.")
    close(rand, rand[:1].expand(L, -1), "V_rand+ is drawn once and copied: every layer begins with the same row.")
    if not 0.5 * spread < float(rand[0].std()) < 1.7 * spread or abs(float(rand[0].mean())) > spread:
        raise AssertionError("V_rand+ is far from normal numbers of that spread: is it spread * torch.randn(D)?")
    if torch.equal(function(class_row, L, spread)[0], rand):
        raise AssertionError("Two calls give the same V_rand+: it has to be random, or all concepts begin alike.")


@exercise("3.3")
def _prompts(value) -> None:
    close(value, 1 + 16, "A prompt with concept words becomes one prompt per layer; a plain one is encoded once.", 0)


@exercise("3.4")
def _collapse(function) -> None:
    rows = torch.randn(16, 8)
    found = function(rows)
    if torch.is_tensor(found) and found.shape == rows.shape:
        close(found[-1], found[0], "All layers have to get the same row: that is what makes it a V.")
    close(found, rows.mean(0).expand(16, -1), "The closest single row, in squares, is the mean over the layers.")


@exercise("3.5")
def _scale(function) -> None:
    close(function(16, 16), 1.0, "With alpha equal to the rank kohya's files apply up @ down as it is.")
    close(function(8, 32), 0.25, "Their dW is alpha / rank times up @ down; ours is scale times up @ down.")
