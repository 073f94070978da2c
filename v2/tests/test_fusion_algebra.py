"""Known answers of one fused layer (paper 3.3.2), on random matrices: no model and no weights needed."""

import pytest
import torch

from mixofshow_lite.engine.fusion import algebra
from mixofshow_lite.engine.fusion.grams import Statistics, joined
from mixofshow_lite.engine.fusion.ridge import leave_one_out

D_IN, D_OUT, RANK = 12, 10, 2


def random_factors(seed, d_in=D_IN, d_out=D_OUT, rank=RANK):
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, d_in, generator=generator, dtype=torch.float64)
    up = torch.randn(d_out, rank, generator=generator, dtype=torch.float64)
    return down, up


def random_rows(seed, rows, d_in=D_IN, scale=None):
    x = torch.randn(rows, d_in, generator=torch.Generator().manual_seed(100 + seed), dtype=torch.float64)
    return x if scale is None else x * scale


def gram_of(x):
    return x.T @ x / len(x)


def equal(n):
    return torch.full((n,), 1 / n, dtype=torch.float64)


def problem(n=3, rows=60):
    rows_of = [random_rows(i, rows) for i in range(n)]
    return [random_factors(i) for i in range(n)], rows_of, [gram_of(x) for x in rows_of], equal(n)


def test_loss_from_grams_is_the_papers_objective():
    factors, rows, grams, weights = problem()
    update = random_factors(9)
    by_hand = sum(
        w * ((algebra.dense(own) - algebra.dense(update)) @ x.T).square().sum() / len(x)
        for w, own, x in zip(weights, factors, rows, strict=True)
    )
    assert algebra.loss(update, factors, grams, weights) == pytest.approx(by_hand.item(), rel=1e-12)


def test_closed_form_is_least_squares():
    """Second way: stack weighted rows and targets and ask torch.linalg.lstsq."""
    factors, rows, grams, weights = problem()
    scale = [(w / len(x)).sqrt() for w, x in zip(weights, rows, strict=True)]
    x = torch.cat([s * own for s, own in zip(scale, rows, strict=True)])
    y = torch.cat([s * own @ algebra.dense(f).T for s, own, f in zip(scale, rows, factors, strict=True)])
    expected = torch.linalg.lstsq(x, y).solution.T
    for towards in ("base", "average"):  # over-determined: the ridge's direction cannot matter
        found = algebra.dense(algebra.closed_form(algebra.normal_equations(grams, weights, 0.0), factors, towards))
        assert torch.allclose(found, expected, atol=1e-10)


@pytest.mark.parametrize("towards", ["base", "average"])
def test_ridge_matches_augmented_rows(towards):
    """Second way: a ridge is d_in extra rows sqrt(lam) I whose target is the prior's own output."""
    factors, rows, grams, weights = problem(rows=5)
    normal = algebra.normal_equations(grams, weights, 0.3)
    total = sum(w * g for w, g in zip(weights, grams, strict=True))
    assert normal.ridge == pytest.approx(0.3 * total.trace().item() / D_IN)
    prior = algebra.dense(algebra.average(factors, weights)) if towards == "average" else torch.zeros(D_OUT, D_IN)
    scale = [(w / len(x)).sqrt() for w, x in zip(weights, rows, strict=True)]
    extra = normal.ridge**0.5 * torch.eye(D_IN, dtype=torch.float64)
    x = torch.cat([s * own for s, own in zip(scale, rows, strict=True)] + [extra])
    y = [s * own @ algebra.dense(f).T for s, own, f in zip(scale, rows, factors, strict=True)]
    expected = torch.linalg.lstsq(x, torch.cat([*y, extra @ prior.double().T])).solution.T
    assert torch.allclose(algebra.dense(algebra.closed_form(normal, factors, towards)), expected, atol=1e-10)


def test_factored_form_equals_the_dense_formula():
    factors, _, grams, weights = problem(rows=5)
    normal = algebra.normal_equations(grams, weights, 0.1)
    total = sum(w * g for w, g in zip(weights, grams, strict=True))
    inverse = torch.linalg.inv(total + normal.ridge * torch.eye(D_IN, dtype=torch.float64))
    mean = algebra.dense(algebra.average(factors, weights))
    for prior, towards in ((torch.zeros_like(mean), "base"), (mean, "average")):
        pull = sum(w * (algebra.dense(f) - prior) @ g for w, f, g in zip(weights, factors, grams, strict=True))
        found = algebra.closed_form(normal, factors, towards)
        assert (algebra.dense(found) - (prior + pull @ inverse)).abs().max() < 1e-12
        assert found[0].shape[0] == 3 * RANK and torch.linalg.matrix_rank(algebra.dense(found)) <= 3 * RANK


def test_closed_form_is_never_above_lbfgs_and_equal_when_over_determined():
    for rows in (60, 3):
        factors, _, grams, weights = problem(rows=rows)
        normal = algebra.normal_equations(grams, weights, 0.0)
        exact = algebra.loss(algebra.closed_form(normal, factors, "base"), factors, grams, weights)
        found = algebra.lbfgs(normal, factors, "base", iterations=500)
        searched = algebra.loss(found, factors, grams, weights)
        start = algebra.loss(algebra.no_update(D_IN, D_OUT), factors, grams, weights)
        assert exact <= searched + 1e-12 * start
        assert searched == pytest.approx(exact, rel=1e-6, abs=1e-9 * start)
    factors, _, grams, weights = problem(rows=60)
    normal = algebra.normal_equations(grams, weights, 0.0)
    gap = algebra.dense(algebra.lbfgs(normal, factors)) - algebra.dense(algebra.closed_form(normal, factors, "base"))
    assert gap.abs().max() < 1e-6


def test_lbfgs_stopped_early_is_between_its_start_and_the_optimum():
    factors, _, grams, weights = problem()
    normal = algebra.normal_equations(grams, weights, 0.0)
    for towards, start in (("base", algebra.no_update(D_IN, D_OUT)), ("average", algebra.average(factors, weights))):
        losses = [
            algebra.loss(algebra.lbfgs(normal, factors, towards, k), factors, grams, weights) for k in (1, 5, 200)
        ]
        assert algebra.loss(start, factors, grams, weights) > losses[0] > losses[1] > losses[2]


def test_lbfgs_iterates_are_low_rank_too():
    factors, _, grams, weights = problem()
    found = algebra.lbfgs(algebra.normal_equations(grams, weights, 0.0), factors, iterations=7)
    again = algebra.lbfgs(algebra.normal_equations(grams, weights, 0.0), factors, iterations=7)
    assert found[0].shape == (3 * RANK, D_IN) and torch.equal(found[0], again[0])


def test_lbfgs_stays_out_of_directions_that_only_rounding_knows():
    """As the closed form does. Beside the official code, whose update of one layer has norm 0.64 after 500 iterations,
    it walked to 2.72 without the cutoff: here a direction of 1e-8 of the largest eigenvalue, less than float32 keeps.
    """
    faint = torch.ones(D_IN, dtype=torch.float64)
    faint[-1] = 1e-4
    grams = [gram_of(random_rows(i, 60, scale=faint)) for i in range(3)]
    factors = [random_factors(i) for i in range(3)]
    whole = algebra.normal_equations(grams, equal(3), 0.0)
    assert algebra.dense(algebra.lbfgs(whole, factors))[:, -1].abs().max() > 1e-3
    for ridge in (0.0, 0.09):  # the default ridge is passed to LBFGS too, which has none
        rounded = algebra.normal_equations(grams, equal(3), ridge, precision=torch.finfo(torch.float32).eps)
        found = algebra.dense(algebra.lbfgs(rounded, factors))
        assert found[:, -1].abs().max() < 1e-4  # what the other directions lean into it
        exact = algebra.normal_equations(grams, equal(3), 0.0, precision=torch.finfo(torch.float32).eps)
        assert (found - algebra.dense(algebra.closed_form(exact, factors, "base"))).abs().max() < 1e-6


def test_one_concept_leaves_no_residual():
    factors, _, grams, weights = problem(n=1)
    normal = algebra.normal_equations(grams, weights, 0.0)
    for towards in ("base", "average"):
        found = algebra.closed_form(normal, factors, towards)
        assert torch.allclose(algebra.dense(found), algebra.dense(factors[0]), atol=1e-12)
    ridged = algebra.normal_equations(grams, weights, 0.5)  # its average is itself, whatever the ridge
    assert torch.allclose(algebra.dense(algebra.closed_form(ridged, factors)), algebra.dense(factors[0]), atol=1e-12)


@pytest.mark.parametrize("towards", ["base", "average"])
def test_order_and_repetition_do_not_matter(towards):
    factors, _, grams, weights = problem()

    def fuse(order):
        normal = algebra.normal_equations([grams[i] for i in order], equal(len(order)), 0.1)
        return algebra.dense(algebra.closed_form(normal, [factors[i] for i in order], towards))

    assert torch.allclose(fuse([0, 1, 2]), fuse([2, 0, 1]), atol=1e-12)
    assert torch.allclose(fuse([0, 1]), fuse([0, 0, 1, 1]), atol=1e-12)


def test_disjoint_inputs_lose_nothing_but_averaging_does():
    factors = [random_factors(0), random_factors(1)]
    left, right = torch.zeros(D_IN, dtype=torch.float64), torch.zeros(D_IN, dtype=torch.float64)
    left[:5], right[5:10] = 1, 1
    grams, weights = [gram_of(random_rows(0, 20, scale=left)), gram_of(random_rows(1, 20, scale=right))], equal(2)
    normal = algebra.normal_equations(grams, weights, 0.0)
    averaged = algebra.average(factors, weights)
    for towards in ("base", "average"):
        fused = algebra.closed_form(normal, factors, towards)
        for own, gram in zip(factors, grams, strict=True):
            assert algebra.difference_energy(fused, own, gram) < 1e-12 * algebra.energy(own, gram)
            assert algebra.difference_energy(averaged, own, gram) > 0.1 * algebra.energy(own, gram)


def test_under_determined_stays_in_the_row_span_or_falls_back_to_the_average():
    factors, rows, grams, weights = problem(rows=2)  # 6 rows in 12 dimensions
    normal = algebra.normal_equations(grams, weights, 0.0)
    x = torch.cat(rows)
    outside = torch.eye(D_IN, dtype=torch.float64) - torch.linalg.pinv(x) @ x
    assert (algebra.dense(algebra.closed_form(normal, factors, "base")) @ outside).abs().max() < 1e-12
    mean = algebra.dense(algebra.average(factors, weights))
    gap = algebra.dense(algebra.closed_form(normal, factors, "average")) - mean
    assert (gap @ outside).abs().max() < 1e-12 and gap.abs().max() > 1e-3
    assert normal.condition == float("inf") and normal.freedom == pytest.approx(6)


def test_a_large_ridge_returns_the_prior():
    factors, _, grams, weights = problem()
    normal = algebra.normal_equations(grams, weights, 1e12)
    assert algebra.dense(algebra.closed_form(normal, factors, "base")).abs().max() < 1e-9
    mean = algebra.dense(algebra.average(factors, weights))
    assert torch.allclose(algebra.dense(algebra.closed_form(normal, factors, "average")), mean, atol=1e-9)


def test_regmean_is_the_case_without_ridge():
    """RegMean: W = (sum W_i G_i)(sum G_i)^-1 on whole weights; ours adds W0 to the fused update."""
    factors, _, grams, weights = problem()
    w0 = torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    top = sum((w0 + algebra.dense(f)) @ g for f, g in zip(factors, grams, strict=True))
    regmean = top @ torch.linalg.inv(sum(grams))
    found = w0 + algebra.dense(algebra.closed_form(algebra.normal_equations(grams, weights, 0.0), factors))
    assert torch.allclose(found, regmean, atol=1e-10)


def test_a_concept_without_an_update_still_protects_its_inputs():
    _, _, grams, weights = problem(n=2)
    factors = [random_factors(0), algebra.no_update(D_IN, D_OUT)]
    found = algebra.closed_form(algebra.normal_equations(grams, weights, 0.0), factors)
    averaged = algebra.average(factors, weights)
    assert algebra.loss(found, factors, grams, weights) < algebra.loss(averaged, factors, grams, weights)
    assert found[0].shape == (RANK, D_IN)


def test_weights_shift_the_compromise():
    factors, _, grams, _ = problem(n=2)
    lost = []
    for first in (0.1, 0.5, 0.9):
        weights = torch.tensor([first, 1 - first], dtype=torch.float64)
        fused = algebra.closed_form(algebra.normal_equations(grams, weights, 0.0), factors)
        lost.append(algebra.difference_energy(fused, factors[0], grams[0]))
    assert lost[0] > lost[1] > lost[2]


def test_silent_layer_and_bad_ridge():
    factors, zero = [random_factors(0), random_factors(1)], torch.zeros(D_IN, D_IN, dtype=torch.float64)
    normal = algebra.normal_equations([zero, zero], equal(2), 0.1)
    assert algebra.dense(algebra.closed_form(normal, factors, "base")).abs().max() == 0
    mean = algebra.dense(algebra.average(factors, equal(2)))
    assert torch.allclose(algebra.dense(algebra.closed_form(normal, factors)), mean)
    assert torch.allclose(algebra.dense(algebra.lbfgs(normal, factors, "average")), mean)
    for ridge in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="ridge must be"):
            algebra.normal_equations([zero, zero], equal(2), ridge)


def closed(normal, factors, towards):
    return algebra.closed_form(normal, factors, towards)


def searched(normal, factors, towards):
    return algebra.lbfgs(normal, factors, towards, iterations=300)


@pytest.mark.parametrize("solver", [closed, searched])
@pytest.mark.parametrize("towards", ["base", "average"])
def test_known_answers_of_both_solvers(solver, towards):
    """One concept is itself; the same concept twice is itself; disjoint inputs lose nothing; order does not matter."""
    factors, rows, grams, weights = problem(n=2)

    def fuse(factors, grams):
        return solver(algebra.normal_equations(grams, equal(len(grams)), 0.0), factors, towards)

    own = algebra.dense(factors[0])
    assert torch.allclose(algebra.dense(fuse(factors[:1], grams[:1])), own, atol=1e-5)
    assert torch.allclose(algebra.dense(fuse([factors[0]] * 2, [grams[0]] * 2)), own, atol=1e-5)
    forth, back = fuse(factors, grams), fuse(factors[::-1], grams[::-1])
    assert torch.allclose(algebra.dense(forth), algebra.dense(back), atol=1e-5)
    left, right = torch.zeros(D_IN, dtype=torch.float64), torch.zeros(D_IN, dtype=torch.float64)
    left[:5], right[5:10] = 1, 1
    apart = [gram_of(random_rows(0, 20, scale=left)), gram_of(random_rows(1, 20, scale=right))]
    for update, gram in zip(factors, apart, strict=True):
        assert algebra.difference_energy(fuse(factors, apart), update, gram) < 1e-8 * algebra.energy(update, gram)
    few = [x[:2] for x in rows]  # under-determined: the change from the start stays in the rows' span
    x = torch.cat(few)
    outside = torch.eye(D_IN, dtype=torch.float64) - torch.linalg.pinv(x) @ x
    start = algebra.dense(algebra.average(factors, equal(2))) if towards == "average" else 0
    moved = algebra.dense(fuse(factors, [gram_of(part) for part in few])) - start
    assert (moved @ outside).abs().max() < 1e-8 < moved.abs().max()
    assert torch.linalg.matrix_rank(algebra.dense(forth)) <= 2 * RANK


def test_losses_and_the_average_may_be_weighted_differently():
    factors, _, grams, _ = problem(rows=5)
    weights, prior = torch.tensor([0.2, 0.3, 0.9]).double(), torch.tensor([0.5, 0.5, 0.0]).double()
    normal = algebra.normal_equations(grams, weights, 0.2, prior)
    total = sum(w * g for w, g in zip(weights, grams, strict=True))
    inverse = torch.linalg.inv(total + normal.ridge * torch.eye(D_IN, dtype=torch.float64))
    mean = algebra.dense(algebra.average(factors, prior))
    pull = sum(w * (algebra.dense(f) - mean) @ g for w, f, g in zip(weights, factors, grams, strict=True))
    found = algebra.dense(algebra.closed_form(normal, factors, "average"))
    assert torch.allclose(found, mean + pull @ inverse, atol=1e-12)


def test_rows_limited_to_a_span_are_the_best_there():
    """Second way: least squares over Y in U = Y Q."""
    factors, rows, grams, weights = problem(rows=30)
    basis = algebra.row_span(factors)
    assert basis.shape == (3 * RANK, D_IN)
    assert torch.allclose(basis @ basis.T, torch.eye(3 * RANK, dtype=torch.float64), atol=1e-12)
    inside, narrow = algebra.within(basis, factors, grams)
    down, up = algebra.closed_form(algebra.normal_equations(narrow, weights, 0.0), inside, "average")
    scale = [(w / len(x)).sqrt() for w, x in zip(weights, rows, strict=True)]
    x = torch.cat([s * own @ basis.T for s, own in zip(scale, rows, strict=True)])
    y = torch.cat([s * own @ algebra.dense(f).T for s, own, f in zip(scale, rows, factors, strict=True)])
    expected = torch.linalg.lstsq(x, y).solution.T @ basis
    assert torch.allclose(algebra.dense((down @ basis, up)), expected, atol=1e-10)
    free = algebra.closed_form(algebra.normal_equations(grams, weights, 0.0), factors)
    lost = [
        algebra.loss(u, factors, grams, weights) for u in (free, (down @ basis, up), algebra.average(factors, weights))
    ]
    assert lost[0] <= lost[1] <= lost[2]


def test_custom_diffusions_constraint():
    """Met exactly, of low rank, and the KKT system's answer."""
    factors, rows = [random_factors(i) for i in range(3)], [random_rows(i, 3) for i in range(3)]
    regular = gram_of(random_rows(7, 40))
    found, condition = algebra.constrained(regular, rows, factors, ridge=1e-3)
    for own, x in zip(factors, rows, strict=True):
        assert ((algebra.dense(found) - algebra.dense(own)) @ x.T).norm() < 1e-9 * (algebra.dense(own) @ x.T).norm()
    C = torch.cat(rows)
    V = torch.cat([algebra.dense(own) @ x.T for own, x in zip(factors, rows, strict=True)], dim=1)
    G = regular + 1e-3 * regular.diagonal().mean() * torch.eye(D_IN, dtype=torch.float64)
    zero = torch.zeros(len(C), len(C), dtype=torch.float64)
    kkt = torch.cat([torch.cat([2 * G, C.T], dim=1), torch.cat([C, zero], dim=1)])
    right = torch.cat([torch.zeros(D_IN, D_OUT, dtype=torch.float64), V.T])
    assert torch.allclose(algebra.dense(found), torch.linalg.solve(kkt, right)[:D_IN].T, atol=1e-9)
    assert found[0].shape[0] == 3 * RANK and 1 < condition < float("inf")
    twice, condition = algebra.constrained(regular, rows * 2, factors * 2, ridge=1e-3)  # repeated but consistent
    assert torch.allclose(algebra.dense(twice), algebra.dense(found), atol=1e-7) and condition == float("inf")


def test_whole_updates_are_stored_compactly():
    for d_in, d_out in ((12, 10), (10, 12)):
        many = algebra.average([random_factors(i, d_in, d_out, rank=6) for i in range(4)], equal(4))
        small = algebra.compact(many)
        assert small[0].shape == (10, d_in) and small[1].shape == (d_out, 10)
        assert torch.allclose(algebra.dense(small), algebra.dense(many), atol=1e-12)


def test_compact_factors_depend_on_their_product_alone():
    """However the same update is cut into ranks, the same numbers are stored (up to each rank's sign)."""
    down, up = random_factors(0)
    mix = torch.randn(RANK, RANK, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    first, second = algebra.compact((down, up)), algebra.compact((mix @ down, up @ mix.inverse()))
    for one, other in zip(first, second, strict=True):
        assert torch.allclose(one.abs(), other.abs(), atol=1e-9) and one.abs().max() > 0.1
    assert torch.allclose(algebra.dense(first), up @ down, atol=1e-12)
    assert first[0].shape == down.shape and torch.allclose(first[0] @ first[0].T, first[1].T @ first[1], atol=1e-12)
    none = algebra.compact(algebra.no_update(D_IN, D_OUT))
    assert none[0].shape == (0, D_IN) and none[1].shape == (D_OUT, 0)


@pytest.mark.parametrize("towards", ["base", "average"])
def test_automatic_ridge_is_what_rows_left_out_ask_for(towards):
    """Second way: from the raw rows, prompt by prompt, with the dense formula."""
    factors, weights, prompts = [random_factors(i) for i in range(2)], equal(2), 3
    rows = [[random_rows(10 * i + p, 4 + p) for p in range(prompts)] for i in range(2)]
    own = [joined([Statistics({"x": gram_of(x)}, {"x": len(x)}) for x in each]) for each in rows]
    for each, statistics in zip(rows, own, strict=True):
        assert torch.allclose(statistics.grams["x"], gram_of(torch.cat(each)), atol=1e-12)
    candidates = (0.01, 0.1, 1.0, 10.0)
    best, losses = leave_one_out(own, "x", [factors], weights, weights, towards, candidates)
    expected = []
    for ridge in candidates:
        lost = 0.0
        for fold in range(prompts):
            grams = [gram_of(torch.cat([x for p, x in enumerate(each) if p != fold])) for each in rows]
            update = algebra.dense(
                algebra.closed_form(algebra.normal_equations(grams, weights, ridge), factors, towards)
            )
            for w, f, each in zip(weights, factors, rows, strict=True):
                lost += w * ((algebra.dense(f) - update) @ each[fold].T).square().sum() / len(each[fold])
        expected.append(lost.item())
    assert losses == pytest.approx(expected, rel=1e-9)
    assert best == candidates[expected.index(min(expected))] and len(set(expected)) == 4


def test_a_gram_that_is_not_finite_or_singular_is_answered():
    factors, _, grams, weights = problem(n=2)
    with pytest.raises(ValueError, match="not finite: record the concepts again"):
        algebra.normal_equations([grams[0], grams[1] * float("nan")], weights, 0.1)
    x = random_rows(0, 1)
    single = [gram_of(x).float().double()] * 2  # of rank 1, with float32 rounding in all other directions
    normal = algebra.normal_equations(single, weights, 0.0, precision=torch.finfo(torch.float32).eps)
    found = algebra.dense(algebra.closed_form(normal, factors, "base"))
    assert normal.freedom == pytest.approx(1) and found.isfinite().all()
    mean = algebra.dense(algebra.average(factors, weights))
    assert torch.allclose(found @ x.T, mean @ x.T, atol=1e-5)
