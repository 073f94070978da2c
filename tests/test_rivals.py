"""Other ways to bring concepts together: each against its authors' formula on small matrices, then whole."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import make_concept, weights_of

from mixofshow_lite import Region, rivals
from mixofshow_lite.engine import lora
from mixofshow_lite.engine.fusion import algebra, gradient_fusion, weight_fusion
from mixofshow_lite.engine.fusion.settings import Settings
from mixofshow_lite.engine.recipes import RECIPES
from mixofshow_lite.engine.tuning import attach
from mixofshow_lite.rivals import (
    composition,
    core_space,
    drawn,
    iteris,
    knots,
    ladder,
    layers,
    matrices,
    orthogonal,
    regmean,
    ssr_merge,
    wudi,
)
from mixofshow_lite.rivals.masked import masked_updates

D_IN, D_OUT, RANK = 7, 6, 2
LIGHT = Settings(prompts=("a {} in the forest",), steps=2, size=64)


@pytest.fixture
def own():
    """Three updates of rank 2, as factors."""
    g = torch.Generator().manual_seed(3)
    return [
        (
            torch.randn(RANK, D_IN, generator=g, dtype=torch.float64),
            torch.randn(D_OUT, RANK, generator=g, dtype=torch.float64),
        )
        for _ in range(3)
    ]


@pytest.fixture
def inputs():
    """Inputs of three tasks, X_i (d_in, rows_i), of different numbers of rows."""
    g = torch.Generator().manual_seed(4)
    return [torch.randn(D_IN, rows, generator=g, dtype=torch.float64) for rows in (20, 30, 40)]


def dense(own):
    return [up @ down for down, up in own]


def means(inputs):
    return [X @ X.T / X.shape[1] for X in inputs]


def same(factors, expected, tolerance=1e-9):
    torch.testing.assert_close(algebra.dense(factors), expected, atol=tolerance, rtol=tolerance)


# ---- WUDI ----


def wudi_objective(U, updates):
    """The authors' objective, entry by entry."""
    return sum(((dW - U) @ dW.T).square().sum() / dW.square().sum() for dW in updates)


def test_wudi_is_the_optimum_of_its_authors_objective(own):
    own = [*own, (own[0][0] + own[1][0], 3 * own[2][1])]  # reads what the others read, so that none gets all it wants
    updates = dense(own)
    found = wudi.wudi(own)
    G = sum(dW.T @ dW / dW.square().sum() for dW in updates)
    C = sum(dW @ dW.T @ dW / dW.square().sum() for dW in updates)
    same(found, C @ torch.linalg.pinv(G))
    U = sum(updates).requires_grad_(True)  # where the authors start
    optimizer = torch.optim.LBFGS([U], max_iter=500, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        loss = wudi_objective(U, updates)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert wudi_objective(algebra.dense(found), updates) <= wudi_objective(U.detach(), updates) + 1e-9


def test_wudi_s_steps_are_gradient_descent_from_the_sum(own):
    updates = dense(own)
    U = sum(updates).clone().requires_grad_(True)
    rate = 1 / torch.linalg.eigvalsh(sum(dW.T @ dW / dW.square().sum() for dW in updates))[-1]
    losses = []
    for _ in range(3):
        loss = wudi_objective(U, updates)
        losses.append(float(loss))
        (gradient,) = torch.autograd.grad(loss, U)
        U = (U - rate * gradient / 2).detach().requires_grad_(True)
    same(wudi.wudi(own, steps=3), U.detach())
    same(wudi.wudi(own, steps=0), sum(updates))
    assert losses == sorted(losses, reverse=True)
    last = wudi_objective(algebra.dense(wudi.wudi(own, steps=3)), updates)
    assert wudi_objective(algebra.dense(wudi.wudi(own)), updates) < last < losses[0]
    same(wudi.wudi(own, ridge=1e9), sum(updates), 1e-6)  # a huge ridge stays at the sum


# ---- TIES, TSV-M, Iso-C, Core Space, KnOTS ----


def test_ties_trims_elects_and_averages():
    a = torch.tensor([[5.0, -3.0, 0.1, 2.0]])
    b = torch.tensor([[-1.0, -4.0, 6.0, -2.0]])
    # Half is kept: 5, -3 of a; -4, 6 of b. The signs of the sums: +, -, +, and 0 takes that of the whole sum, +.
    torch.testing.assert_close(matrices.ties([a, b], 0.5), torch.tensor([[5.0, -3.5, 6.0, 0.0]]))
    # All are kept: a's 5 beats b's -1; the last sums to 0 and takes the sign of the whole sum, +3.1.
    torch.testing.assert_close(matrices.ties([a, b], 1.0), torch.tensor([[5.0, -3.5, 3.05, 2.0]]))


def test_tsv_m_is_its_authors_padded_form(own):
    """Their code puts each task's k singular vectors into its own columns of a matrix of zeros."""
    updates = dense(own)
    U0, S0, V0 = (torch.zeros(D_OUT, D_OUT), torch.zeros(D_OUT), torch.zeros(D_OUT, D_IN))
    U0, S0, V0 = U0.double(), S0.double(), V0.double()
    k = D_OUT // 3
    for i, dW in enumerate(updates):
        U, S, V = torch.linalg.svd(dW, full_matrices=False)
        U0[:, i * k : (i + 1) * k], S0[i * k : (i + 1) * k], V0[i * k : (i + 1) * k] = U[:, :k], S[:k], V[:k]
    (u, _, v), (p, _, q) = torch.linalg.svd(U0, full_matrices=False), torch.linalg.svd(V0, full_matrices=False)
    torch.testing.assert_close(matrices.tsv_m(updates), u @ v @ torch.diag(S0) @ p @ q)


def test_iso_c_flattens_the_spectrum_of_the_sum(own):
    found = matrices.iso_c(dense(own))
    values = torch.linalg.svdvals(found)
    torch.testing.assert_close(values, torch.full_like(values, torch.linalg.svdvals(sum(dense(own))).mean()))
    assert float((found * sum(dense(own))).sum()) == pytest.approx(float(values[0] ** 2 * D_OUT))


def test_core_space_loses_nothing_and_is_its_authors_formula(own):
    updates = dense(own)
    same(core_space.core_space(own, sum), sum(updates))
    A, B = torch.cat([d for d, _ in own]), torch.cat([u for _, u in own], dim=1)
    V = torch.linalg.svd(A, full_matrices=False).Vh
    U = torch.linalg.svd(B, full_matrices=False).U
    cores = []
    for down, up in own:  # the aligned form of the paper: R_B S_B V_B^T U_A S_A Q_A
        Ua, Sa, Va = torch.linalg.svd(down, full_matrices=False)
        Ub, Sb, Vb = torch.linalg.svd(up, full_matrices=False)
        cores.append((U.T @ Ub) @ (torch.diag(Sb) @ Vb @ Ua @ torch.diag(Sa)) @ (Va @ V.T))
    for merge in core_space.CORES.values():
        same(core_space.core_space(own, merge), U @ merge(cores) @ V)
    iso = algebra.dense(core_space.core_space(own, matrices.iso_c))
    values = torch.linalg.svdvals(iso)
    torch.testing.assert_close(values, values.mean().expand_as(values))


def test_knots_is_ties_on_one_svd_of_all_updates_side_by_side(own):
    U, S, V = torch.linalg.svd(torch.cat(dense(own), dim=1), full_matrices=False)
    parts = (torch.diag(S) @ V).chunk(3, dim=1)
    same(knots.knots(own, 0.3), U @ matrices.ties(parts, 0.3))
    merged = knots.knots(own, 1.0)
    assert merged[0].shape[0] <= 3 * RANK and merged[0].shape[1] == D_IN
    same(knots.knots(own[:1], 1.0), dense(own)[0])  # one alone, untrimmed, is itself


# ---- with recordings ----


def test_regmean_is_its_authors_formula(own, inputs):
    updates, share = dense(own), 0.7
    W0 = torch.randn(D_OUT, D_IN, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    scale = torch.full((D_IN, D_IN), share, dtype=torch.float64).fill_diagonal_(1.0)
    grams = [G * scale for G in means(inputs)]
    expected = sum((W0 + dW) @ G for dW, G in zip(updates, grams, strict=True)) @ torch.linalg.inv(sum(grams))
    same(regmean.regression(share)(own, means(inputs)), expected - W0)
    with pytest.raises(ValueError, match="off_diagonal=2"):
        regmean.regression(2)


def test_ssr_merge_routes_as_its_authors_do(own, inputs):
    A, B = torch.cat([d for d, _ in own]), torch.cat([u for _, u in own], dim=1)
    G, Q, rows = torch.zeros(6, 6).double(), torch.zeros(6, 6).double(), 0
    for k, X in enumerate(inputs):
        for x in X.T:  # token by token
            z = A @ x
            G += torch.outer(z, z)
            Q[k * RANK : (k + 1) * RANK] += torch.outer(z[k * RANK : (k + 1) * RANK], z)
            rows += 1
    R = Q / rows @ torch.linalg.inv(G / rows + 1e-4 * torch.eye(6, dtype=torch.float64))
    same(ssr_merge.ssr(own, means(inputs), [X.shape[1] for X in inputs]), B @ R @ A)
    same(ssr_merge.ssr(own[:1], means(inputs)[:1], [20]), dense(own)[0])


def test_iteris_solves_its_authors_equation(own, inputs):
    g = torch.Generator().manual_seed(6)
    W0 = torch.randn(D_OUT, D_IN, generator=g, dtype=torch.float64)
    merged = [X + 0.3 * torch.randn(X.shape, generator=g, dtype=torch.float64) for X in inputs]
    moments = [iteris.Moments(X @ X.T, X @ Y.T, Y @ Y.T) for X, Y in zip(inputs, merged, strict=True)]
    left, right = 0, 0
    for dW, X, Y in zip(dense(own), inputs, merged, strict=True):
        c = (W0 + dW).norm() ** 2 / ((W0 + dW) @ X).norm() ** 2
        XY, YY = X @ Y.T, Y @ Y.T
        eye = torch.eye(D_IN, dtype=torch.float64)
        left = left + c * dW @ (XY + 1e-2 * XY.norm() * eye)
        right = right + c * (YY + 1e-2 * YY.norm() * eye)
    same(iteris.iteris(own, moments, W0, 1e-2), left @ torch.linalg.inv(right))


def weighted_loss(U, own, inputs):
    return float(sum(((dW - U) @ X).square().sum() / X.shape[1] for dW, X in zip(dense(own), inputs, strict=True)))


def test_each_rung_of_the_ladder_is_the_best_of_its_kind(own, inputs):
    grams = means(inputs)
    losses, updates = [], dense(own)
    numbers = {"concept": (3, 1), "column": (3, D_IN)}
    for rung, solve in (("concept", ladder.per_concept), ("column", ladder.per_column)):
        found = algebra.dense(solve(own, grams))
        m = torch.full(numbers[rung], 1 / 3, dtype=torch.float64, requires_grad=True)
        optimizer = torch.optim.LBFGS([m], max_iter=400, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

        def closure(m=m, optimizer=optimizer):
            optimizer.zero_grad()
            U = sum(dW * column for dW, column in zip(updates, m, strict=True))
            loss = sum(((dW - U) @ X).square().sum() / X.shape[1] for dW, X in zip(updates, inputs, strict=True))
            loss.backward()
            return loss

        optimizer.step(closure)
        best = closure().item()
        losses.append(weighted_loss(found, own, inputs))
        assert losses[-1] == pytest.approx(best, rel=1e-6), rung
    losses.append(weighted_loss(algebra.dense(ladder.whole_matrix(own, grams)), own, inputs))
    averaged = weighted_loss(sum(updates) / 3, own, inputs)
    assert losses[2] < losses[1] < losses[0] < averaged
    for solve in (ladder.per_concept, ladder.per_column, ladder.whole_matrix):
        same(solve(own, grams, 1e9), sum(updates) / 3, 1e-6)  # a huge ridge leaves the average


# ---- whole models ----


def few(concept, modules=("attn1.to_q", "attn2.to_k", "self_attn.q_proj"), where="down_blocks.0"):
    """The same concept with updates in few layers: of every stage, but quick to merge."""
    kept = {
        net: {n: p for n, p in f.items() if n.endswith(modules) and (net == "text_encoder" or n.startswith(where))}
        for net, f in concept.lora.items()
    }
    return replace(concept, lora=kept)


@pytest.fixture(scope="module")
def pair(tiny_base):
    return [few(make_concept(tiny_base, name, seed)) for seed, name in enumerate(("bibi", "coco"))]


def far(a, b) -> float:
    first, second = weights_of(a), weights_of(b)
    return max((first[name] - second[name]).abs().max().item() for name in first)


FUSIONS = {
    "WUDI": rivals.wudi_fusion,
    "WUDI, few steps": lambda base, concepts: rivals.wudi_fusion(base, concepts, steps=3),
    **{
        f"Core Space, {merge}": lambda base, concepts, merge=merge: rivals.core_space_fusion(base, concepts, merge)
        for merge in core_space.CORES
    },
    "KnOTS-TIES": rivals.knots_fusion,
    **{
        name: lambda base, concepts, fuse=fuse: fuse(base, concepts, recording=LIGHT, progress=False)
        for name, fuse in (
            ("RegMean", rivals.regmean_fusion),
            ("RegMean++", rivals.regmean_plusplus_fusion),
            ("IterIS", rivals.iteris_fusion),
            ("SSR-Merge", rivals.ssr_fusion),
        )
    },
    **{
        f"a number a {rung}": lambda base, concepts, rung=rung: rivals.ladder_fusion(
            base, concepts, rung, recording=LIGHT, progress=False
        )
        for rung in ladder.RUNGS
    },
}


@pytest.mark.parametrize("fuse", FUSIONS.values(), ids=FUSIONS)
def test_every_rival_keeps_its_inputs_and_ignores_their_order(tiny_base, pair, fuse, tmp_path):
    before = {name: weight.clone() for name, weight in weights_of(tiny_base).items()}
    model = fuse(tiny_base, pair)
    again = fuse(tiny_base, pair[::-1])
    assert far(model, again) < 1e-6 and far(model, tiny_base) > 0.01
    assert all(torch.equal(weights_of(tiny_base)[name], weight) for name, weight in before.items())
    assert model.report.concepts == ("bibi", "coco") and set(model.words) == {w for c in pair for w in c.words}
    changed = {name for net, found in model.report.factors.items() for name in found}
    assert changed == {name for c in pair for found in c.lora.values() for name in found}
    assert max(down.shape[0] for found in model.report.factors.values() for down, _ in found.values()) <= 4
    assert model.to_lora(tmp_path / "fused.safetensors").is_file()


def test_a_layer_that_one_concept_changes_stays_that_concept_s(own, inputs):
    """Ways that trim, or whose ridge pulls towards 0, aside."""
    one, grams, rows = own[:1], means(inputs)[:1], [20]
    merged = [wudi.wudi(one), wudi.wudi(one, ridge=0.1), wudi.wudi(one, steps=2), knots.knots(one, 1.0)]
    merged += [core_space.core_space(one, core_space.CORES[merge]) for merge in ("sum", "tsv_m")]
    merged += [regmean.regression(0.9)(one, grams), ssr_merge.ssr(one, grams, rows)]
    merged += [solve(one, grams, 0.1) for solve in (ladder.per_concept, ladder.per_column, ladder.whole_matrix)]
    for pair in merged:
        same(pair, dense(own)[0])
    moments = [iteris.Moments(grams[0], grams[0], grams[0])]
    same(iteris.iteris(one, moments, dense(own)[1], 1e-9), dense(own)[0], 1e-6)


def test_concepts_of_words_only_change_no_layer(tiny_base, pair):
    wordy = replace(make_concept(tiny_base, "coco", 1), lora={})
    for fuse in (rivals.wudi_fusion, FUSIONS["RegMean"]):
        model = fuse(tiny_base, [pair[0], wordy])
        assert far(model, tiny_base.with_concept(pair[0])) < 1e-4 and "<coco1>" in model.words


def test_regmean_plus_plus_sees_the_merged_layers_before(tiny_base, pair):
    names = [name for _, block in regmean.blocks(pair) for name in block]
    assert sorted(names) == sorted({n for c in pair for found in c.lora.values() for n in found})
    order = regmean.blocks([make_concept(tiny_base)])
    assert [net for net, _ in order[:2]] == ["text_encoder"] * 2 and len(order) == 2 + 16
    starts = [names[0].split("_")[0] for net, names in order[2:]]
    assert starts == ["down"] * 6 + ["mid"] + ["up"] * 9
    alone = replace(LIGHT, guidance=1.0)  # with guidance the empty prompt's rows count otherwise in the two
    plain = rivals.regmean_fusion(tiny_base, pair, 0.95, recording=alone, progress=False)
    plus = rivals.regmean_plusplus_fusion(tiny_base, pair, recording=alone, progress=False)
    gaps = []
    for net, name in (("text_encoder", regmean.blocks(pair)[0][1][0]), ("unet", list(pair[0].lora["unet"])[-1])):
        first, second = (algebra.dense(model.report.factors[net][name]) for model in (plain, plus))
        gaps.append(float((first - second).norm() / first.norm()))
    print(gaps)
    assert gaps[0] < 1e-6 < 1e-4 < gaps[1]  # the first layer has none before it, the last has merged ones


def test_the_same_inputs_give_a_model_its_own_features(tiny_base, pair):
    """What is drawn, run again by the model that drew it, is what its layers saw."""
    model = layers.own_model(tiny_base, pair, pair[0])
    inputs = drawn.draw_inputs(model, pair[0], LIGHT)
    assert inputs.latents[0].shape == (2, 4, 8, 8) and inputs.guided
    seen = []
    layer = lora.attention_linears(model.unet)[next(iter(pair[0].lora["unet"]))]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].clone()))
    prompt = LIGHT.contexts(pair[0])[0]
    model.sample(prompt, steps=2, size=64, progress=False)
    drawn.run(model, inputs)
    handle.remove()
    torch.testing.assert_close(torch.stack(seen[:2], 1).flatten(0, 1), seen[2], atol=1e-5, rtol=1e-4)


def test_more_rounds_of_iteris_move_towards_what_the_merged_model_sees(tiny_base, pair):
    options = {"recording": LIGHT, "progress": False}
    once, twice = (rivals.iteris_fusion(tiny_base, pair, rounds=n, **options) for n in (1, 2))
    assert far(once, twice) > 1e-3
    with pytest.raises(ValueError, match="at least once"):
        rivals.iteris_fusion(tiny_base, pair, rounds=0)


def test_unknown_choices_are_one_sentence(tiny_base, pair):
    for wrong, sentence in {
        lambda: rivals.core_space_fusion(tiny_base, pair, "stew"): "no merge 'stew'",
        lambda: rivals.ladder_fusion(tiny_base, pair, "stew"): "no rung 'stew'",
        lambda: rivals.knots_fusion(tiny_base, pair, 0): "no share",
        lambda: rivals.wudi_fusion(tiny_base, pair, ridge=0.1, steps=3): "not both",
        lambda: rivals.ssr_fusion(tiny_base, pair, ridge=0): "positive",
        lambda: rivals.Composition(tiny_base, pair, "stew"): "choose one of switch",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            wrong()


# ---- Orthogonal Adaptation ----


def slotted(base, slot, rank=4):
    """A concept with the frozen rows of a slot and random `up`."""
    model = base.copy()
    attach(model, replace(RECIPES["ed_lora"], name="orthogonal", slot=slot, rank=rank), seed=slot)
    concept = make_concept(base, f"c{slot}", slot, rank=rank)
    factors = {net: lora.extract(getattr(model, net)) for net in ("text_encoder", "unet")}
    lost = {n: {k: (d, concept.lora[n][k][1]) for k, (d, _) in found.items()} for n, found in factors.items()}
    return replace(concept, lora=lost), model


def test_slots_are_orthogonal_and_their_sum_keeps_each(tiny_base):
    (a, model), (b, _) = slotted(tiny_base, 0), slotted(tiny_base, 5)
    trained = [n for net in (model.text_encoder, model.unet) for n, p in net.named_parameters() if p.requires_grad]
    assert trained and all("lora_B" in name for name in trained)
    assert orthogonal.overlap(tiny_base, a, b) < 1e-5
    fused = rivals.orthogonal_fusion(tiny_base, [a, b])
    assert far(fused, weight_fusion(tiny_base, [a, b], normalise=False)) == 0
    for net, found in a.lora.items():  # on a's own rows the sum does what a does
        for name, (down, up) in found.items():
            merged = algebra.dense(fused.report.factors[net][name])
            torch.testing.assert_close(merged @ down.double().T, (up @ down @ down.T).double(), atol=1e-5, rtol=1e-4)


def test_the_limit_of_slots_is_one_clear_error(tiny_base):
    room = orthogonal.capacity(tiny_base, 4)
    assert room == 8  # layers of width 32
    slotted(tiny_base, room - 1)
    with pytest.raises(ValueError, match="no slot 8: the narrowest layer has room for 8 concepts of rank 4"):
        slotted(tiny_base, room)


def test_loras_without_slots_cannot_join(tiny_base):
    a, _ = slotted(tiny_base, 0)
    with pytest.raises(ValueError, match="'c0' and 'bibi' are not orthogonal"):
        rivals.orthogonal_fusion(tiny_base, [a, make_concept(tiny_base)])
    with pytest.raises(ValueError, match="a slot of its own"):
        rivals.orthogonal_fusion(tiny_base, [a, replace(a, name="again", words=(), embeddings={})])


def test_the_orthogonal_matrix_is_the_same_for_everybody():
    Q = lora.orthogonal_matrix(12)
    torch.testing.assert_close(Q @ Q.T, torch.eye(12, dtype=torch.float64))
    lora.orthogonal_matrix.cache_clear()
    torch.testing.assert_close(lora.orthogonal_matrix(12), Q, atol=0, rtol=0)
    assert not torch.allclose(lora.orthogonal_matrix(12, seed=1), Q)


# ---- no fusion ----


def pixels(pictures):
    return np.stack([np.asarray(picture).astype(int) for picture in pictures])


SHORT = {"steps": 4, "seed": 3, "progress": False}


@pytest.mark.parametrize("how", composition.HOW)
def test_a_composition_of_one_is_that_one(tiny_base, pair, how):
    alone = tiny_base.with_concept(pair[0])
    prompt = f"photo of a {pair[0].phrase}"
    for guidance in (1.0, 5.0):
        drawn_by = rivals.Composition(tiny_base, pair[:1], how).sample(prompt, n=2, guidance=guidance, **SHORT)
        assert np.abs(pixels(drawn_by) - pixels(alone.sample(prompt, n=2, guidance=guidance, **SHORT))).max() <= 1


def test_switch_takes_turns_and_composite_takes_the_mean(tiny_base):
    pair = [make_concept(tiny_base, name, seed) for seed, name in enumerate(("bibi", "coco"))]
    switch = rivals.Composition(tiny_base, pair, "switch", turn=2)
    assert [switch.acting(step) for step in range(6)] == [[0], [0], [1], [1], [0], [0]]
    composite = rivals.Composition(tiny_base, pair, "composite")
    assert composite.acting(3) == [0, 1]
    after = {}
    for how in composition.HOW:
        model = rivals.Composition(tiny_base, pair, how)
        keep = {"callback": lambda info, how=how: after.update({how: info["latents"], "t": info["t"]})}
        model.sample("a red cat", steps=1, guidance=3.0, progress=False, **keep)
    z, t, noises = tiny_base.noise(1, 0), torch.tensor(after["t"]), []
    for member in composite.members:
        context, negative = member.context("a red cat"), member.context("")[0]
        noises.append(composition.guided_noise(member, z, t, context, negative, 3.0))
    # One step is linear in the noise, so the two steps' results differ along the difference of their noises.
    moved, expected = after["composite"] - after["switch"], sum(noises) / 2 - noises[0]
    assert torch.nn.functional.cosine_similarity(moved.flatten(), expected.flatten(), dim=0).abs() > 0.999


def test_a_region_that_is_everything_is_the_concept_s_own_model(tiny_base):
    concepts = [make_concept(tiny_base, name, seed) for seed, name in enumerate(("bibi", "coco"))]
    masked = rivals.MaskedLoRAs(tiny_base, concepts)
    prompt = f"photo of a {concepts[1].phrase}"
    for guidance in (1.0, 5.0):
        alone = tiny_base.with_concept(concepts[1]).sample(prompt, guidance=guidance, **SHORT)
        inside = masked.sample("a beach", [Region(prompt, box=(0, 0, 1, 1))], guidance=guidance, **SHORT)
        assert np.abs(pixels(inside) - pixels(alone)).max() <= 1, guidance


def test_masked_loras_differ_from_the_base_inside_their_regions_only(tiny_base, pair):
    """Without self-attention's and convolutions' mixing nothing could leak: one layer's output is looked at."""
    masked = rivals.MaskedLoRAs(tiny_base, pair)
    left = [Region(f"a {pair[0].phrase}", box=(0, 0, 0.5, 1)), Region("a red cat", box=(0.5, 0, 1, 1))]
    name = next(n for n in pair[0].lora["unet"] if n.endswith("attn1.to_q"))
    layer = lora.attention_linears(masked.base.unet)[name]
    seen = []
    x = torch.randn(1, 64, layer.in_features, generator=torch.Generator().manual_seed(1))
    plain = layer(x)
    with masked_updates(masked.base, [pair[0], None], left):
        handle = layer.register_forward_hook(lambda *a: seen.append(a[2]))
        masked.base.unet(torch.randn(1, 4, 8, 8), torch.tensor(10), masked.base.context("a red cat"))
        seen.clear()
        layer(x)
        handle.remove()
    moved = (seen[0] - plain).abs().sum(-1).view(8, 8)
    assert (moved[:, 4:] == 0).all() and (moved[:, :4] > 0).all()
    assert torch.equal(layer(x), plain)  # and nothing stays


def test_masked_loras_refuse_what_they_cannot_draw(tiny_base, pair):
    masked = rivals.MaskedLoRAs(tiny_base, pair)
    both = Region(f"{pair[0].phrase} and {pair[1].phrase}", box=(0, 0, 1, 1))
    with pytest.raises(ValueError, match="names bibi and coco"):
        masked.sample("a beach", [both])
    with pytest.raises(ValueError, match="leave out start and end"):
        masked.sample("a beach", [Region("a cat", box=(0, 0, 1, 1), start=0.5)])


# ---- the table ----


def test_every_way_of_the_table_draws(tiny_base, pair, monkeypatch):
    """All ways on the tiny base; those with recordings on light ones."""
    for module in (layers, regmean, iteris):
        monkeypatch.setattr(module, "Settings", lambda: LIGHT)
    light = {"prompts": LIGHT.prompts, "steps": 1, "size": 64}
    slots = [slotted(tiny_base, i)[0] for i in range(2)]
    for name, way in rivals.WAYS.items():
        if name == "gradient fusion":
            way = replace(way, run=lambda base, concepts: gradient_fusion(base, concepts, progress=False, **light))
        concepts = slots if way.tuned == "orthogonal" else pair
        brought = way.bring(tiny_base, concepts)
        prompt = f"photo of a {concepts[0].phrase}"
        options = {} if way.solo else {"regions": [Region(prompt, box=(0, 0, 1, 1))]}
        pictures = brought.sample(prompt, n=1, steps=1, progress=False, **options)
        assert pictures[0].size == (64, 64), name
        assert way.paper and set(way.needs) <= {"recordings", "slots", "regions", "all LoRAs"}, name
    recipe = rivals.WAYS["Orthogonal Adaptation"].recipe(tiny_base, 3)
    assert (recipe.slot, recipe.name) == (3, "orthogonal")
    assert rivals.WAYS["WUDI"].recipe(tiny_base, 3).name == "ed_lora"
