"""Pocket CLIP: facts, losses, training, and the shipped reader against its bars (issue: Pocket CLIP)."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_clip import build_clip

from mixofshow_lite.files.resources import pocket_dir
from mixofshow_lite.pocket import world
from mixofshow_lite.pocket.captions import caption
from mixofshow_lite.pocket.train import clip, clip_data
from mixofshow_lite.pocket.train.clip import auc, multi_positive_loss, pair_auc
from mixofshow_lite.pocket.train.clip_data import FACTS, WHOLE, claims, facts, truth


def said(text):
    needs, told = claims(text)
    return [{FACTS[i] for i in row.nonzero()[0]} for row in needs if row.any()], {WHOLE[i] for i in told.nonzero()[0]}


def test_captions_are_read_into_claims():
    mentions, whole = said("photo of a sad red cat wearing a blue hat and gray glasses waving in the woods at night")
    assert mentions == [{"sad", "red", "cat", "blue hat", "gray glasses", "waving"}] and whole == {"forest", "night"}
    mentions, whole = said("on the moon, a robot to the left of an orange mug")
    assert mentions == [{"robot"}, {"orange", "mug"}] and whole == {"moon"}
    assert said("two friends on the beach") == ([], {"beach", "two friends"})
    assert said("a red cat on the left and a friend") == ([{"red", "cat"}], {"two friends"})
    assert said("a cat with two friends on the moon") == ([{"cat"}], {"three friends", "moon"})


def stacks(rows):
    return (torch.from_numpy(np.stack(r)).float() for r in zip(*rows, strict=True))


def test_the_plain_caption_names_the_classes_and_nothing_else():
    picture = world.sample(np.random.default_rng(5), n_subjects=2)
    needs, told = clip_data.claims(clip_data.plain(picture))
    named = [[clip_data.FACTS[i] for i in row.nonzero()[0]] for row in needs]
    assert named == [[s.cls] for s in picture.subjects] + [[]] and not told.any()


def test_every_caption_is_true_of_its_picture_and_of_few_others():
    rng = np.random.default_rng(3)
    pictures = [world.sample(rng) for _ in range(300)]
    texts = [caption(p, rng) for p in pictures]
    right = truth(*stacks(map(claims, texts)), *stacks(map(facts, pictures)))
    assert right.diagonal().all()
    assert 0.001 < right.float().mean() < 0.05
    assert not [t for t in texts if not claims(t)[0].any() and not claims(t)[1].any()]  # each says something


def test_truth_binds_colours_to_their_subjects():
    rng = np.random.default_rng(0)
    cat, frog = world.sample_subject(rng, "cat", "red"), world.sample_subject(rng, "frog", "blue")
    picture = world.sample(rng, subjects=[cat, frog], scene="snow")
    texts = [
        "a red cat and a blue frog",
        "a blue cat and a red frog",
        "a cat",
        "a red cat in the snow",
        "a red cat in the city",
    ]
    right = truth(*stacks(map(claims, texts)), *stacks([facts(picture)]))
    assert right.tolist() == [[True, False, True, True, False]]


def test_multi_positive_loss_by_hand():
    scores = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 0.0, 0.0]])
    positive = torch.tensor([[True, True, False, False], [False, False, False, False]])  # the second row has none
    against = np.exp(0.0) + np.exp(-1.0)
    wanted = np.mean([-np.log(np.exp(s) / (np.exp(s) + against)) for s in (2.0, 1.0)])
    assert multi_positive_loss(scores, positive).item() == pytest.approx(wanted, rel=1e-5)
    ignore = torch.tensor([[False, False, False, True]] * 2)
    wanted = np.mean([-np.log(np.exp(s) / (np.exp(s) + 1)) for s in (2.0, 1.0)])
    assert multi_positive_loss(scores, positive, ignore).item() == pytest.approx(wanted, rel=1e-5)


def test_short_captions_ask_for_every_class_colour_and_scene():
    classes, tints, scenes = clip.short_captions()
    sizes = len(world.CLASSES), len(world.CLASSES) * len(world.COLORS), len(world.SCENES)
    assert (len(classes), len(tints), len(scenes)) == sizes
    rng = np.random.default_rng(0)
    cat, frog = world.sample_subject(rng, "cat", "red"), world.sample_subject(rng, "frog", "blue")
    seen = stacks([facts(world.sample(rng, subjects=[cat, frog], scene="snow"))])
    seen = list(seen)
    true = [
        {texts[i] for i in truth(*stacks(map(claims, texts)), *seen)[0].nonzero().flatten()}
        for texts in (classes, tints, scenes)
    ]
    assert true == [{"a cat", "a frog"}, {"a red cat", "a blue frog"}, {"the snow"}]


def test_batch_loss_asks_short_captions_too():
    generator = torch.Generator().manual_seed(0)
    x, t = (torch.nn.functional.normalize(torch.randn(n, 6, generator=generator), dim=1) for n in (3, 8))
    model = SimpleNamespace(
        encode_image=lambda pixels, normalize: x,
        encode_text=lambda ids, normalize: t[ids[:, 0]],
        logit_scale=torch.tensor(1.0),
    )
    ids, short = torch.tensor([[0], [1], [2]]), torch.tensor([[3], [4], [5], [6], [7]])
    right = torch.eye(3, dtype=torch.bool)
    kinds = [torch.tensor([[1, 0], [0, 1], [1, 1]]).bool(), torch.tensor([[1, 0, 0], [0, 0, 0], [0, 0, 1]]).bool()]
    total, parts = clip.batch_loss(model, None, ids, right, torch.tensor([7, 7, -1]), short, kinds)
    scores = np.e * x @ t.T
    wanted = [multi_positive_loss(scores[:, a:b], kind) for (a, b), kind in zip(((3, 5), (5, 8)), kinds, strict=True)]
    assert parts["names"] == pytest.approx(sum(wanted).item() / 2, rel=1e-5)
    words = multi_positive_loss(scores[:, :3], right), multi_positive_loss(scores[:, :3].T, right)
    assert parts["words"] == pytest.approx(sum(words).item() / 2, rel=1e-5)
    alike = clip.IDENTITY_SCALE * x @ x.T  # pictures 0 and 1 show one subject, so each has the other for a positive
    look = [np.logaddexp(0, (alike[i, 2] - alike[0, 1]).item()) for i in (0, 1)]
    assert parts["identity"] == pytest.approx(np.mean(look), rel=1e-5)
    assert total.item() == pytest.approx(parts["words"] + parts["names"] + parts["identity"], rel=1e-5)


def test_one_positive_a_row_is_info_nce():
    scores = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    ours = multi_positive_loss(scores, torch.eye(5, dtype=torch.bool))
    assert ours.item() == pytest.approx(torch.nn.functional.cross_entropy(scores, torch.arange(5)).item(), rel=1e-5)


def test_auc_is_the_share_of_pairs_in_order():
    same, other = np.array([0.9, 0.5, 0.5]), np.array([0.5, 0.1])
    by_hand = np.mean([(s > o) + 0.5 * (s == o) for s in same for o in other])
    assert auc(same, other) == pytest.approx(by_hand)


def test_pair_auc_compares_within_families_only():
    # two families far apart, in each two identities that only their own axis tells apart
    x = torch.tensor([[1, 0.1, 0, 0], [1, 0.1, 0, 0], [1, -0.1, 0, 0], [1, -0.1, 0, 0]])
    y = x[:, [2, 3, 0, 1]]
    features = torch.nn.functional.normalize(torch.cat([x, y]), dim=1)
    assert pair_auc(features, np.arange(8) // 2, np.arange(8) // 4) == 1.0
    assert pair_auc(features, np.arange(8) % 2, np.arange(8) // 4) < 0.5


def test_look_alikes_share_a_class_and_keep_their_identity():
    rng = np.random.default_rng(1)
    pictures = clip_data.look_alikes(rng, members=3, views=2)
    who = [p.subjects[0] for p in pictures]
    assert len({s.cls for s in who}) == 1
    for first, second in zip(who[::2], who[1::2], strict=True):
        assert (first.rgb, first.shape, first.accessories, first.pattern, first.parts) == (
            second.rgb, second.shape, second.accessories, second.pattern, second.parts,
        )  # fmt: skip
    assert len({s.rgb for s in who}) == 3


def test_training_pictures_are_never_held_out():
    rng = np.random.default_rng(2)
    groups = [clip_data.look_alikes(rng) + clip_data.swapped_pairs(rng) for _ in range(20)]
    assert not [p for g in groups for p in g for s in p.subjects if world.held_out(s.cls, s.colour, p.scene)]
    held = [clip._held_out_picture(rng) for _ in range(10)]
    assert all(world.held_out(p.subjects[0].cls, p.subjects[0].colour, p.scene) for p in held)


def test_the_preprocessing_of_training_is_open_clips(tmp_path):
    from mixofshow_lite.engine.evaluation import load_scorer

    scorer = load_scorer(build_clip(tmp_path))
    pixels, *_ = clip_data.draw_group(0, 32)
    from PIL import Image

    theirs = scorer.preprocess(Image.fromarray(pixels[0]))
    assert torch.allclose(theirs, clip.to_pixels(pixels[:1], "cpu")[0], atol=1e-5)


def test_half_of_the_readers_pictures_go_through_the_autoencoder(monkeypatch):
    monkeypatch.setattr(clip_data, "codec", lambda folder: folder)
    monkeypatch.setattr(clip_data, "through", lambda vae, pictures: [255 - p for p in pictures])  # a negative: seen
    soft = total = 0
    for seed in range(12):
        drawn, _, has, *_ = clip_data.draw_group(seed, 32)
        passed, _, same_has, *_ = clip_data.draw_group(seed, 32, "vae")
        assert (has == same_has).all() and passed.shape == drawn.shape
        changed = [(a != b).any() for a, b in zip(drawn, passed, strict=True)]
        kept = [(abs(a.astype(int) + b - 255) <= 1).mean() > 0.9 for a, b in zip(drawn, passed, strict=True)]
        assert changed == kept  # untouched, or through it
        soft, total = soft + sum(changed), total + len(changed)
    assert 0.35 < soft / total < 0.65


def test_pictures_through_an_autoencoder_are_what_it_gives_back():
    folder = str(pocket_dir() / "vae")
    threads = torch.get_num_threads()
    try:
        vae = clip_data.codec(folder)
    finally:
        torch.set_num_threads(threads)
    pixels = [world.draw_image(world.sample(np.random.default_rng(i))) for i in range(2)]
    back = clip_data.through(vae, pixels)
    for before, after in zip(pixels, back, strict=True):
        assert after.shape == before.shape and after.dtype == np.uint8 and (after != before).any()
        assert np.abs(after.astype(int) - before).mean() < 12  # the same picture, a little softer
    assert np.abs(back[0].astype(int) - pixels[1]).mean() > 20


def test_training_learns_saves_and_goes_on(tmp_path):
    words = build_clip(tmp_path).parent / "words"
    how = {
        "data": tmp_path / "run",
        "tokenizer": words,
        "minutes": 1,
        "size": 32,
        "groups": 4,
        "batch": 2,
        "workers": 1,
    }
    how |= {"device": "cpu", "rate": 1e-3}
    clip.train(tmp_path / "out", **how, steps=25)
    first = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    clip.train(tmp_path / "out", **how, steps=50)
    rows = [json.loads(line) for line in (tmp_path / "run" / "clip-log.jsonl").read_text().splitlines()]
    assert [r["step"] for r in rows] == [1, 25, 50]  # the second call went on from the first
    assert rows[-1]["loss"] < 0.7 * rows[0]["loss"]
    second = load_file(tmp_path / "out" / "open_clip_model.safetensors")
    assert not torch.equal(first["visual.conv1.weight"], second["visual.conv1.weight"])
    how |= {"data": tmp_path / "other", "rate": 0.0}
    clip.train(tmp_path / "third", **how, steps=1, start=tmp_path / "out")  # a new run, from those weights
    third = load_file(tmp_path / "third" / "open_clip_model.safetensors")
    assert torch.equal(third["visual.conv1.weight"], second["visual.conv1.weight"])
    assert len(clip.read([world.render(world.sample(np.random.default_rng(0)), 64).image], tmp_path / "out")) == 1


DATA = Path(__file__).resolve().parent.parent / "data"


@pytest.mark.skipif(not (DATA / "pocket" / "clip").is_dir(), reason="Pocket CLIP is not trained yet")
def test_the_shipped_clip_reads_the_world():
    result = clip.measure(n=600, families=40, concepts=DATA / "concepts")
    assert result["class"] >= 0.98 and result["colour"] >= 0.95 and result["scene"] >= 0.98, result
    assert result["concept AUC"] >= 0.95, result
    assert result["look-alike AUC"] >= 0.9, result  # random look-alikes may differ in nothing but proportions
