"""Notebook 01: what a noise guess implies, a prompt that is half right, the sampling loop, the layers' maps, a LoRA."""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from . import called, close, exercise, refuse

RIGHT_PROMPT, WRONG_PROMPT, TIME = "a white cat on the beach", "a green robot in the city", 650
LEAST, MOST = 0.2, 0.8  # of the wrong prompt's extra loss: what "half right" may cost


@exercise("1.1")
def _clean(function) -> None:
    hint = "Solve z_t = sqrt(a) z + sqrt(1 - a) eps for z."
    for a in 0.1 + 0.8 * torch.rand(2):
        z, eps = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8)
        z_t = a.sqrt() * z + (1 - a).sqrt() * eps
        mine = called(function, z_t, eps, a, hint=hint)
        refuse(mine, z_t - eps, "That takes the noise away at full strength: only sqrt(1 - a) of it is in z_t.")
        refuse(mine, z_t - (1 - a).sqrt() * eps, "The picture that is left is still scaled by sqrt(a): divide by it.")
        refuse(mine, z_t / a.sqrt() - (1 - a).sqrt() * eps, "Divide the noise as well: subtract first, then divide.")
        refuse(mine, (z_t - (1 - a) * eps) / a, "Both factors are square roots: their SQUARES add up to 1.")
        close(mine, z, hint)


@exercise("1.2")
def _half_right(prompt, loss_of) -> None:
    """`loss_of(text, t)` is Eq. 1 of the notebook's picture under a prompt."""
    if not isinstance(prompt, str) or not prompt.strip():
        raise AssertionError("Give a prompt: a text in quotes.")
    if not callable(loss_of):
        raise AssertionError("Give loss_of as well, the function of the cell above.")
    right, wrong = loss_of(RIGHT_PROMPT, TIME), loss_of(WRONG_PROMPT, TIME)
    share = (called(loss_of, prompt, TIME) - right) / (wrong - right)
    found = f"At t = {TIME} it costs {share:.0%} of what the wrong prompt costs."
    if prompt in (RIGHT_PROMPT, WRONG_PROMPT):
        raise AssertionError(f"{found} Write one of your own, with something right and something wrong in it.")
    if not share >= LEAST:
        raise AssertionError(f"{found} That is as good as right: say something of this picture that is not so.")
    if not share <= MOST:
        raise AssertionError(f"{found} That is as good as wrong: leave something in that IS so, or say less.")
    print(found)


def sample(guess, z: Tensor, alphas: Tensor, times, scale: float, mix=None, last=1.0) -> Tensor:
    """The DDIM loop; `mix` and `last` make the well-known wrong ones of it."""
    mix = mix or (lambda empty, text: empty + scale * (text - empty))
    for i, t in enumerate(times):
        a, a_next = alphas[t], alphas[times[i + 1]] if i + 1 < len(times) else torch.as_tensor(last)
        eps = mix(*guess(z, t))
        clean = (z - (1 - a).sqrt() * eps) / a.sqrt()
        z = a_next.sqrt() * clean + (1 - a_next).sqrt() * eps
    return z


def guesser(alphas: Tensor, nothing: Tensor, picture: Tensor):
    """A network that knows two pictures: without the prompt it sees one in the noise, with it the other."""

    def guess(z, t):
        return tuple((z - alphas[t].sqrt() * x) / (1 - alphas[t]).sqrt() for x in (nothing, picture))

    return guess


@exercise("1.3")
def _loop(function) -> None:
    alphas = torch.linspace(0.99, 0.01, 100, dtype=torch.float64)
    times = [90, 70, 45, 20, 5]
    nothing, picture, z = torch.randn(3, 1, 4, 6, 6, dtype=torch.float64)
    guess = guesser(alphas, nothing, picture)
    hint = "guess(z, t) gives two guesses (empty, text); alphas[t] is a; z keeps its shape."

    def mine(scale):
        return called(function, guess, z.clone(), alphas, list(times), scale, hint=hint)

    def wrong(scale=1.0, **changes):
        return sample(guess, z, alphas, times, scale, **changes)

    first = mine(1.0)
    refuse(first, wrong(last=alphas[times[-1]]), "It ends a step early: after the last time a_next is 1.")
    refuse(first, wrong(last=alphas[0]), "Some noise is left: after the last time a_next is 1.")
    refuse(first, sample(guess, z, alphas, times[::-1], 1.0, last=alphas[-1]), "The times run from noisy to clean.")
    refuse(first, wrong(mix=lambda empty, text: empty), "At a scale of 1 the guess with the prompt counts alone.")
    refuse(first, wrong(mix=lambda empty, text: empty + text), "Guidance adds the DIFFERENCE of the two guesses.")
    refuse(first, wrong(mix=lambda empty, text: 2 * text - empty), "That goes twice as far: start at empty.")
    close(first, picture, "This network knows the picture: at a scale of 1 the loop must end on it.")
    guided = mine(4.0)
    refuse(guided, wrong(), "The scale has no effect.")
    refuse(guided, wrong(mix=lambda empty, text: text + 4.0 * (text - empty)), "Start from the guess without a prompt.")
    close(guided, wrong(4.0), "eps = empty + scale * (text - empty), the same eps for the clean latent and the next z.")


@exercise("1.4")
def _coarse_and_fine(answer, maps) -> None:
    """`maps` are the notebook's attention maps, layer -> (h, w, words), in the order of a sample."""
    if not isinstance(answer, (tuple, list)) or len(answer) != 2:
        raise AssertionError("Give two sets of layer numbers: ({coarsest}, {finest}).")
    if any(part is ... for part in answer):
        raise AssertionError("One of the two is still empty: replace the ... by a set of numbers.")
    if any(not isinstance(part, (set, list, tuple, range)) for part in answer):
        raise AssertionError("Give sets, also where there is one layer only: {3}.")
    mine = [set(part) for part in answer]
    sides = [m.shape[0] for m in maps.values()]
    wanted = [{i for i, side in enumerate(sides) if side == extreme} for extreme in (min(sides), max(sides))]
    if mine == wanted[::-1]:
        raise AssertionError("The other way round: few cells are coarse, many cells are fine.")
    if mine == [{i + 1 for i in part} for part in wanted]:
        raise AssertionError("Count from 0: the first layer of the picture is number 0.")
    for what, part, right in zip(("coarsest", "finest"), mine, wanted, strict=True):
        if part < right:
            raise AssertionError(f"Not all of the {what} layers: a sample goes down to few cells and up again.")
        if part != right:
            raise AssertionError(f"The {what} are others: count the cells along one side of each map.")


class Watch(TorchFunctionMode):
    """Remembers whether a new matrix of this shape was made while it was on."""

    def __init__(self, weight: Tensor):
        super().__init__()
        self.weight, self.seen = weight, False

    def __torch_function__(self, function, types, arguments=(), options=None):
        out = function(*arguments, **(options or {}))
        if isinstance(out, Tensor) and tuple(out.shape) in (self.weight.shape, self.weight.shape[::-1]):
            self.seen = self.seen or out.untyped_storage().data_ptr() != self.weight.untyped_storage().data_ptr()
        return out


@exercise("1.5")
def _lora_layer(function) -> None:
    x, W0, A, B = (torch.randn(*shape, dtype=torch.float64) for shape in ((7, 40), (30, 40), (2, 40), (30, 2)))
    hint = "x is (tokens, k), W0 is (d, k), A is (r, k), B is (d, r): x @ W0.T is the old layer."
    plain, change = x @ W0.T, x @ A.T @ B.T
    for alpha in (0.0, 1.0, 0.3):
        with Watch(W0) as watch:
            mine = called(function, x.clone(), W0, A.clone(), B.clone(), alpha, hint=hint)
        if alpha == 0.0:
            refuse(mine, plain + change, "alpha has no effect: at 0 the old layer is all that is left.")
            refuse(mine, 0 * plain, "alpha dims the old layer too: it multiplies the product only.")
        if alpha == 1.0:
            refuse(mine, change, "That is the change alone: the old layer's answer is missing.")
        if alpha == 0.3:
            refuse(mine, plain + alpha**2 * change, "alpha is in there twice, once with each factor.")
        close(mine, plain + alpha * change, hint)
    if watch.seen:
        raise AssertionError("Right, but a matrix of W0's size was made: go through the r numbers in between, x @ A.T.")
