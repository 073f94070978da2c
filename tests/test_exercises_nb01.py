"""Exercises of notebook 01: right answers in several styles pass, likely wrong ones are refused with their hint."""

import pytest
import torch

from mixofshow_lite import course
from mixofshow_lite.course import exercises
from mixofshow_lite.course.exercises.nb01 import RIGHT_PROMPT, WRONG_PROMPT

COSTS = {RIGHT_PROMPT: 0.02, WRONG_PROMPT: 0.04, "half": 0.03, "a quarter": 0.0251, "as good": 0.0201, "worse": 0.05}
SIDES = [16, 16, 8, 8, 4, 4, 2, 4, 4, 4, 8, 8, 8, 16, 16, 16]
MAPS = {f"layer {i}": torch.zeros(side, side, 3) for i, side in enumerate(SIDES)}
COARSE, FINE = {6}, {0, 1, 13, 14, 15}


def loss_of(text, t):
    return COSTS[text]


def loop(guess, z, alphas, times, scale, start=None, guided=True, last=1.0, roots=True, both=True):
    """DDIM, and with one of the options a well-known mistake in it."""
    for i, t in enumerate(times):
        a = alphas[t]
        a_next = alphas[times[i + 1]] if i + 1 < len(times) else torch.as_tensor(last)
        empty, text = guess(z, t)
        eps = empty + scale * (text - empty) if guided else text
        eps = start(empty, text, scale) if start else eps
        root = torch.sqrt if roots else (lambda x: x)
        clean = (z - root(1 - a) * eps) / root(a)
        z = root(a_next) * clean + root(1 - a_next) * (eps if both else torch.randn_like(z))
    return z


def paired(guess, z, alphas, times, scale):
    """The same in another style: pairs of times, in NumPy's floats, z never renamed."""
    for now, after in zip(times, [*times[1:], None], strict=True):
        empty, text = guess(z, now)
        eps = (1 - scale) * empty + scale * text
        a, b = float(alphas[now]), 1.0 if after is None else float(alphas[after])
        z = (b / a) ** 0.5 * (z - (1 - a) ** 0.5 * eps) + (1 - b) ** 0.5 * eps
    return z


def lora_layer(x, W0, A, B, alpha):
    return x @ W0.T + alpha * (x @ A.T) @ B.T


def changed(**options):
    return lambda *arguments: loop(*arguments, **options)


RIGHT = {
    "1.1": [
        (lambda z_t, eps, a: (z_t - (1 - a).sqrt() * eps) / a.sqrt(),),
        (lambda z_t, eps, a: a**-0.5 * z_t - ((1 - a) / a) ** 0.5 * eps,),
    ],
    "1.2": [("half", loss_of), ("a quarter", loss_of)],
    "1.3": [(loop,), (paired,)],
    "1.4": [((COARSE, FINE), MAPS), (([6], [15, 14, 13, 1, 0]), MAPS)],
    "1.5": [
        (lora_layer,),
        (lambda x, W0, A, B, alpha: torch.nn.functional.linear(x, W0) + alpha * torch.einsum("nk,rk,dr->nd", x, A, B),),
        (lambda x, W0, A, B, alpha: (W0 @ x.T + B @ (alpha * A @ x.T)).T,),
    ],
}
WRONG = {
    "1.1": [
        ((lambda z_t, eps, a: z_t - eps,), "full strength"),
        ((lambda z_t, eps, a: z_t - (1 - a).sqrt() * eps,), "scaled by sqrt"),
        ((lambda z_t, eps, a: (z_t - (1 - a) * eps) / a,), "square roots"),
        ((lambda z_t, eps, a: z_t / a.sqrt() - (1 - a).sqrt() * eps,), "subtract first"),
        ((lambda z_t, eps, a: ...,), "returns nothing yet"),
        ((lambda z_t, eps, a: z_t - eps[0, 0, 0, :3],), "stopped with RuntimeError"),
    ],
    "1.2": [
        ((RIGHT_PROMPT, loss_of), "one of your own"),
        (("as good", loss_of), "say something of this picture"),
        (("worse", loss_of), "leave something in"),
        ((3, loss_of), "a text in quotes"),
        (("half", 0.03), "Give loss_of"),
        (("unknown", loss_of), "stopped with KeyError"),
    ],
    "1.3": [
        ((changed(guided=False),), "scale has no effect"),
        ((changed(start=lambda empty, text, s: empty + s * text),), "DIFFERENCE"),
        ((changed(start=lambda empty, text, s: text + s * (text - empty)),), "twice as far"),
        ((changed(start=lambda empty, text, s: text + (s - 1) * text),), "empty"),
        ((changed(last=0.9),), "must end on it"),
        ((lambda g, z, alphas, times, s: loop(g, z, alphas, times, s, last=alphas[times[-1]]),), "step early"),
        ((lambda g, z, alphas, times, s: loop(g, z, alphas, times[::-1], s, last=alphas[-1]),), "noisy to clean"),
        ((lambda g, z, alphas, times, s: loop(g, z, alphas, times, s, last=alphas[0]),), "noise is left"),
        ((changed(roots=False),), "must end on it"),
        ((lambda g, z, alphas, times, s: g(z)[0],), "stopped with TypeError"),
        ((lambda *x: ...,), "returns nothing yet"),
    ],
    "1.4": [
        (((FINE, COARSE), MAPS), "other way round"),
        ((({7}, {1, 2, 14, 15, 16}), MAPS), "from 0"),
        ((({6}, {13, 14, 15}), MAPS), "Not all of the finest"),
        ((({4, 5}, FINE), MAPS), "coarsest are others"),
        (((6, FINE), MAPS), "Give sets"),
        ((COARSE, MAPS), "two sets"),
        (((..., ...), MAPS), "still empty"),
    ],
    "1.5": [
        ((lambda x, W0, A, B, alpha: x @ (W0 + alpha * B @ A).T,), "W0's size"),
        ((lambda x, W0, A, B, alpha: x @ W0.T + x @ A.T @ B.T,), "alpha has no effect"),
        ((lambda x, W0, A, B, alpha: alpha * (x @ W0.T + x @ A.T @ B.T),), "dims the old layer"),
        ((lambda x, W0, A, B, alpha: x @ (alpha * A).T @ (alpha * B).T + x @ W0.T,), "twice"),
        ((lambda x, W0, A, B, alpha: alpha * x @ A.T @ B.T + (alpha < 1) * (x @ W0.T),), "change alone"),
        ((lambda x, W0, A, B, alpha: x @ W0 + alpha * x @ A @ B,), "stopped with RuntimeError"),
    ],
}


@pytest.mark.parametrize(("number", "i"), [(n, i) for n, answers in RIGHT.items() for i in range(len(answers))])
def test_right_answers_pass(number, i, capsys):
    course.check(number, *RIGHT[number][i])
    assert f"Exercise {number}: right" in capsys.readouterr().out


@pytest.mark.parametrize(("number", "i"), [(n, i) for n, answers in WRONG.items() for i in range(len(answers))])
def test_wrong_answers_name_the_likely_mistake(number, i):
    answer, hint = WRONG[number][i]
    with pytest.raises(AssertionError, match=hint):
        course.check(number, *answer)


def test_every_exercise_is_tried():
    here = {number for number in exercises.everything() if number.startswith("1.")}
    assert set(RIGHT) == set(WRONG) == here


def test_the_loop_is_diffusers_own():
    """What 1.3 asks for is DDIM: the same latents from the stock scheduler."""
    from diffusers import DDIMScheduler

    stock = DDIMScheduler(set_alpha_to_one=True, steps_offset=0, clip_sample=False, timestep_spacing="leading")
    stock.set_timesteps(20)
    start = torch.randn(1, 4, 6, 6)
    z = start.clone()
    for t in stock.timesteps:
        z = stock.step(z.sin() + 4.0 * (z.cos() - z.sin()), t, z).prev_sample
    mine = loop(lambda z, t: (z.sin(), z.cos()), start, stock.alphas_cumprod, stock.timesteps.tolist(), 4.0)
    torch.testing.assert_close(mine, z, atol=1e-3, rtol=1e-3)
