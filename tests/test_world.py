"""Pocket World: one seed is one picture on any machine; pictures, masks, keypoints and captions agree.

`PYTHONPATH=. python tests/test_world.py` writes the golden files again, after a wanted change of the world.
"""

import hashlib
import itertools
import json
import re
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixofshow_lite.pocket import concepts, scenes, world
from mixofshow_lite.pocket.captions import COUNTS, PLACES, TIMES, caption
from mixofshow_lite.pocket.concepts import CONCEPTS
from mixofshow_lite.pocket.train import data
from mixofshow_lite.pocket.world import ACCESSORIES, CHARACTERS, CLASSES, COLORS, EXPRESSIONS, LIGHTS, OBJECTS, SCENES

GOLDEN = Path(__file__).with_name("golden")
SEEDS, SIDE = range(8), 32


def drawn(seed, **how):
    """A picture and its generator, which goes on to the captions."""
    rng = np.random.default_rng([2024, seed])
    return world.sample(rng, **how), rng


def rounded(value):
    """Parameters as plain JSON with 9 digits, far below what a picture shows."""
    if isinstance(value, dict):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rounded(v) for v in value]
    return round(value, 9) + 0.0 if isinstance(value, float) else value


def facts_of(seed):
    picture, rng = drawn(seed)
    text = json.dumps(rounded(asdict(picture)), sort_keys=True)
    return {"sha256": hashlib.sha256(text.encode()).hexdigest(), "captions": [caption(picture, rng) for _ in range(3)]}


def thumbnail(pixels, side=SIDE):
    return np.asarray(Image.fromarray(pixels).resize((side, side), Image.Resampling.BOX))


def write_golden():
    GOLDEN.mkdir(exist_ok=True)
    (GOLDEN / "world.json").write_text(json.dumps([facts_of(seed) for seed in SEEDS], indent=1) + "\n")
    strip = np.concatenate([thumbnail(world.draw_image(drawn(seed)[0])) for seed in SEEDS], 1)
    Image.fromarray(strip).save(GOLDEN / "world.png", optimize=True)


@pytest.fixture(scope="module")
def many():
    """600 pictures' parameters, each with six captions."""
    pictures = []
    for seed in range(600):
        picture, rng = drawn(seed)
        pictures.append((picture, [caption(picture, rng) for _ in range(6)]))
    return pictures


# ---- determinism and size ----


def test_parameters_and_captions_are_the_golden_ones():
    assert [facts_of(seed) for seed in SEEDS] == json.loads((GOLDEN / "world.json").read_text())


def test_pixels_are_the_golden_ones():
    strip = np.asarray(Image.open(GOLDEN / "world.png").convert("RGB")).astype(int)
    for i, seed in enumerate(SEEDS):
        now = thumbnail(world.draw_image(drawn(seed)[0])).astype(int)
        off = np.abs(now - strip[:, SIDE * i : SIDE * (i + 1)])
        assert off.mean() < 1 and off.max() < 24, f"picture {seed} is off by {off.mean():.2f} levels"


def test_cells_are_what_the_masks_cover():
    picture, _ = drawn(1)
    assert len(picture.subjects) > 1
    masks = world.render(picture, 128).masks
    seen = np.sum(masks, 0).clip(0, 1).reshape(16, 8, 16, 8).mean((1, 3))
    cells = data.cells(picture)
    assert cells.shape == (16, 16) and cells.dtype == np.uint8
    assert np.abs(cells / 255 - seen).max() < 0.08 and cells.max() == 255 and cells.min() == 0


def test_another_seed_is_another_picture():
    a, b = (world.draw_image(drawn(seed)[0]).astype(int) for seed in (0, 1))
    assert np.abs(a - b).mean() > 5


def test_the_stream_of_pretraining_is_indexed_not_sequential():
    picture, texts = data.draw(3, 5, wide=False)
    data.draw(3, 4, wide=True)
    again = data.draw(3, 5, wide=False)
    assert (world.draw_image(picture) == world.draw_image(again[0])).all() and (picture, texts) == again


@pytest.mark.parametrize("seed", [2, 3])
def test_128_and_512_pixels_show_the_same_layout(seed):
    picture = drawn(seed, n_subjects=2)[0]
    small, large = world.render(picture, 128), world.render(picture, 512)
    assert small.image.size == (128, 128) and large.image.size == (512, 512) == large.sketch.size
    off = np.abs(thumbnail(np.asarray(large.image), 128).astype(int) - np.asarray(small.image).astype(int))
    assert off.mean() < 3
    for a, b in zip(small.masks, large.masks, strict=True):
        assert np.abs(b.reshape(128, 4, 128, 4).mean((1, 3)) - a).mean() < 0.01
    assert small.keypoints == large.keypoints  # in fractions of the picture
    detail = np.abs(np.diff(np.asarray(large.image.convert("L")).astype(int))).max()
    assert detail > 100  # edges are drawn at 512, not enlarged


# ---- masks, keypoints, sketch ----


def test_masks_are_visible_parts():
    for seed in range(12):
        result = world.render(drawn(seed, n_subjects=3)[0], 64)
        total = sum(result.masks)
        assert all(
            m.dtype == np.float32 and m.shape == (64, 64) and m.min() >= 0 and m.max() <= 1 for m in result.masks
        )
        assert total.max() <= 1 + 1e-5
        assert all(m.sum() > 0.01 * m.size for m in result.masks)  # nobody is hidden entirely


def overlapping():
    picture = drawn(0, n_subjects=2, light="day")[0]
    far, near = picture.subjects
    far, near = replace(far, x=0.45, height=0.5), replace(near, x=0.55, height=0.5)
    return replace(picture, subjects=[far, near])


def test_a_nearer_subject_hides_a_farther_one():
    picture = overlapping()
    both = world.render(picture)
    far, near = (world.render(replace(picture, subjects=[s])) for s in picture.subjects)
    shared = (far.masks[0] > 0.999) & (near.masks[0] > 0.999)
    assert shared.sum() > 100
    assert (both.masks[0][shared] < 1e-3).all() and (both.masks[1] == near.masks[0]).all()
    inside = near.masks[0] > 0.999
    assert (np.asarray(both.image)[inside] == np.asarray(near.image)[inside]).all()
    untouched = near.masks[0] == 0
    assert (np.asarray(both.image)[untouched] == np.asarray(far.image)[untouched]).all()


def test_a_mask_is_where_its_subject_changes_the_picture():
    picture = overlapping()
    full, without = (
        world.draw_image(p).astype(int) for p in (picture, replace(picture, subjects=picture.subjects[:1]))
    )
    changed = np.abs(full - without).max(-1) > 0
    mask = world.render(picture).masks[1]
    assert not changed[mask == 0].any() and changed[mask > 0.5].mean() > 0.95


def grown(mask, pixels):
    """A boolean mask and everything up to so many pixels from it (in a square's distance)."""
    out = np.pad(mask, pixels)
    steps = range(-pixels, pixels + 1)
    return np.any([np.roll(out, (i, j), (0, 1)) for i in steps for j in steps], 0)[pixels:-pixels, pixels:-pixels]


@pytest.mark.parametrize("cls", CLASSES)
def test_keypoints_lie_on_their_subject(cls):
    for seed in range(6):
        rng = np.random.default_rng([5, seed])
        subject = replace(world.sample_subject(rng, cls), x=0.5, y=0.95, height=0.8)
        picture = world.Picture([subject], "snow", world.sample_scene_params(rng))
        result = world.render(picture)
        mask, points = result.masks[0] > 0.5, result.keypoints[0]
        if cls in OBJECTS:  # corners of a frame: most of the object lies in their (slightly enlarged) box
            xs, ys = (np.array(v) * 128 for v in zip(*points.values(), strict=True))
            rows, columns = mask.nonzero()
            inside = (columns > xs.min() - 6) & (columns < xs.max() + 6) & (rows > ys.min() - 6) & (rows < ys.max() + 6)
            assert inside.mean() > 0.5
            continue
        near = grown(mask, 3)
        for name, (x, y) in points.items():
            assert near[min(int(128 * y), 127), min(int(128 * x), 127)], f"{name} of a {cls} is off its mask"
        assert points["head"][1] < points["neck"][1] < points["hip"][1] < points["left_foot"][1]


def test_keypoints_follow_a_mirrored_subject():
    rng = np.random.default_rng(3)
    subject = replace(world.sample_subject(rng, "cat"), x=0.5, arms=(20.0, 140.0), flip=False)
    plain, mirrored = (world.keypoints(replace(subject, flip=f)) for f in (False, True))
    assert {k: (pytest.approx(1 - x), y) for k, (x, y) in plain.items()} == mirrored
    assert plain["right_hand"][1] < plain["head"][1] + 0.2 and plain["right_hand"][1] < plain["left_hand"][1]


def test_the_sketch_is_dark_only_near_subjects():
    for seed in range(6):
        result = world.render(drawn(seed)[0])
        lines = np.asarray(result.sketch) < 128
        assert lines.sum() > 150 and not (lines & ~grown(sum(result.masks) > 0.02, 3)).any()
    empty = world.Picture([], "moon", world.sample_scene_params(np.random.default_rng(0)))
    assert (np.asarray(world.render(empty).sketch) == 255).all()


# ---- everything draws, and differs ----


def portraits(subjects, size=48):
    rng = np.random.default_rng(0)
    params = world.sample_scene_params(rng)
    return [
        world.draw_image(world.Picture([replace(s, x=0.5, y=0.93, height=0.6)], "snow", params), size).astype(int)
        for s in subjects
    ]


def all_differ(images, least=0.3):
    assert all(np.abs(a - b).mean() > least for a, b in itertools.combinations(images, 2))


def test_every_class_draws_and_wears_its_colour():
    assert len(CHARACTERS) >= 6 and len(OBJECTS) >= 5 and len(SCENES) >= 6
    for cls in CLASSES:
        rng = np.random.default_rng(1)
        subject = replace(world.sample_subject(rng, cls, "green"), accessories=[], x=0.5, y=0.93, height=0.6)
        result = world.render(world.Picture([subject], "city", world.sample_scene_params(rng)))
        pixels = np.asarray(result.image)[result.masks[0] > 0.9] / 255.0
        assert len(pixels) > 300
        own = np.abs(pixels - np.array(subject.rgb)).max(-1) < 0.08
        assert own.mean() > 0.25, f"a green {cls} shows its colour on {own.mean():.0%} of itself"
    all_differ(portraits([world.sample_subject(np.random.default_rng(1), cls, "red") for cls in CLASSES]), 1.0)


@pytest.mark.parametrize("cls", CHARACTERS)
def test_every_expression_and_accessory_draws(cls):
    base = replace(world.sample_subject(np.random.default_rng(2), cls, "yellow"), accessories=[])
    all_differ(portraits([replace(base, expression=e) for e in EXPRESSIONS]), 0.05)
    red = world.sample_colour(np.random.default_rng(0), "red")
    all_differ(portraits([base, *(replace(base, accessories=[(a, "red", red)]) for a in ACCESSORIES)]), 0.1)


def test_every_scene_and_light_draws():
    params = world.sample_scene_params(np.random.default_rng(0))
    all_differ([world.draw_image(world.Picture([], s, params), 48).astype(int) for s in SCENES], 10)
    for scene in SCENES:
        day, sunset, night = (world.draw_image(world.Picture([], scene, params, t), 48).astype(float) for t in LIGHTS)
        warmth = [(p[..., 0] - p[..., 2]).mean() for p in (night, day, sunset)]  # red less blue
        assert night.mean() < day.mean() - 5 and warmth[0] < warmth[1] - 5 and warmth[1] < warmth[2] - 5


def test_every_shape_parameter_is_seen():
    for cls in ("rabbit", "mug"):
        base = replace(world.sample_subject(np.random.default_rng(4), cls, "pink"), accessories=[], expression="happy")
        ranges = world.characters.SHAPE if cls in CHARACTERS else world.objects.SHAPE
        for name, (low, high) in ranges.items():
            all_differ(portraits([replace(base, shape=base.shape | {name: v}) for v in (low, high)]), 0.03)


def test_named_colours_look_like_their_names():
    rng = np.random.default_rng(0)
    middles = {name: np.array(world.hsv(*c)) for name, c in COLORS.items()}
    for name in COLORS:
        for _ in range(30):
            colour = np.array(world.sample_colour(rng, name))
            assert min(middles, key=lambda other: np.abs(middles[other] - colour).sum()) == name


# ---- what is sampled ----


def test_a_tenth_of_the_combinations_is_held_out():
    every = list(itertools.product(CLASSES, COLORS, SCENES))
    held = [c for c in every if world.held_out(*c)]
    assert 0.08 < len(held) / len(every) < 0.12
    for column, values in enumerate((CLASSES, COLORS, SCENES)):
        assert {c[column] for c in held} == set(values)  # each is measured
    seen = set(every) - set(held)
    for pair in itertools.combinations(range(3), 2):  # and each two parts of a held-out combination are known together
        assert {tuple(c[i] for i in pair) for c in held} <= {tuple(c[i] for i in pair) for c in seen}
    assert not world.held_out("cat", None, "beach")


def test_held_out_combinations_never_appear_unless_asked_for(many):
    assert not [p for p, _ in many for s in p.subjects if world.held_out(s.cls, s.colour, p.scene)]
    free = [drawn(seed, allow_held_out=True)[0] for seed in range(200)]
    assert [p for p in free for s in p.subjects if world.held_out(s.cls, s.colour, p.scene)]


def test_the_pretraining_world_has_no_out_domain_marks(many):
    assert not [s for p, _ in many for s in p.subjects if s.pattern or s.parts or s.outline != 1.0]
    ranges = {"ch": world.characters.SHAPE, "ob": world.objects.SHAPE}
    for picture, _ in many[:200]:
        for s in picture.subjects:
            shape = ranges["ch" if s.is_character else "ob"]
            assert s.shape.keys() == shape.keys() and all(shape[k][0] <= v <= shape[k][1] for k, v in s.shape.items())
    narrow, wide = ([data.draw(1, i, w)[0].subjects for i in range(12)] for w in (False, True))
    assert not [s for subjects in narrow for s in subjects if (s.pattern or s.parts) and not s.odd]
    assert [s for subjects in wide for s in subjects if s.pattern]


def test_counts_classes_scenes_and_lights_all_come(many):
    n = np.bincount([len(p.subjects) for p, _ in many], minlength=4) / len(many)
    assert abs(n - [0, 0.64, 0.31, 0.05]).max() < 0.05
    subjects = [s for p, _ in many for s in p.subjects]
    assert {s.cls for s in subjects} == set(CLASSES) and {s.colour for s in subjects} == {*COLORS, None}
    assert {p.scene for p, _ in many} == set(SCENES) and {p.light for p, _ in many} == set(LIGHTS)
    assert {s.expression for s in subjects} == set(EXPRESSIONS)
    assert {a for s in subjects for a, *_ in s.accessories} == set(ACCESSORIES)
    assert not [s for s in subjects if {"hat", "crown"} <= {a for a, *_ in s.accessories}]  # one thing on a head
    assert not [s for s in subjects if s.colour in {tint for _, tint, _ in s.accessories}]  # what is worn is seen


def test_a_lone_subject_fills_the_picture_and_stays_inside(many):
    alone = [p.subjects[0] for p, _ in many if len(p.subjects) == 1]
    assert all(0.38 < s.x < 0.62 and s.height > 0.73 * world.REACH.get(s.cls, 1.0) for s in alone)
    assert np.ptp([s.height for s in alone]) > 0.15 and np.ptp([s.x for s in alone]) > 0.15
    by_class = {cls: np.mean([s.x for s in alone if s.cls == cls]) for cls in CLASSES}
    assert max(abs(m - 0.5) for m in by_class.values()) < 0.04  # no class has a side of its own
    for subject in alone[:60]:
        picture = world.Picture([subject], "city", world.sample_scene_params(np.random.default_rng(0)))
        mask = world.render(picture, 64).masks[0]
        edges = mask[0].mean() + mask[:, 0].mean() + mask[:, -1].mean()  # not the floor
        assert edges < 0.3, f"a {subject.cls} of height {subject.height:.2f} is cut off"
        assert np.ptp(np.nonzero(mask.max(1) > 0.5)[0]) > 64 * (0.3 if subject.cls == "car" else 0.45)


def test_pairs_stand_apart_mostly_and_in_depth_order(many):
    for picture, _ in many:
        assert [s.y for s in picture.subjects] == sorted(s.y for s in picture.subjects)
        assert all(0.05 < s.x < 0.95 and 0.4 < s.y <= 0.98 for s in picture.subjects)
    pairs = [p.subjects for p, _ in many if len(p.subjects) == 2]
    gaps = np.array([abs(a.x - b.x) for a, b in pairs])
    assert 0.02 < (gaps < 0.36).mean() < 0.25  # some overlap, as Section 3.4 needs
    assert 0.3 < np.mean([a.x < b.x for a, b in pairs]) < 0.7  # the farther one is on either side


def test_given_subjects_keep_their_look():
    rng = np.random.default_rng(9)
    given = [world.sample_subject(rng, "cat", "red"), world.sample_subject(rng, "bear", "blue")]
    before = [asdict(s) for s in given]
    picture = world.sample(rng, subjects=given, scene="moon", light="night")
    assert picture.scene == "moon" and picture.light == "night"
    look = ("cls", "colour", "rgb", "shape", "expression", "accessories", "arms", "flip")
    kept = sorted(([getattr(s, k) for k in look] for s in picture.subjects), key=str)
    assert kept == sorted(([getattr(s, k) for k in look] for s in given), key=str)
    assert [asdict(s) for s in given] == before  # they themselves stay where they were


# ---- captions ----

_COLOUR, _CLASS = "|".join(COLORS), "|".join(CLASSES)
_WORN = rf"(?:an? )?(?:{_COLOUR}) (?:{'|'.join(ACCESSORIES)})"
MENTION = re.compile(
    rf"\ban? (?:(?P<mood>{'|'.join(EXPRESSIONS)}) )?(?:odd )?(?:(?P<colour>{_COLOUR}) )?(?P<cls>{_CLASS})\b"
    rf"(?: wearing (?P<worn>{_WORN}(?: and {_WORN})*))?(?P<pose> waving| with arms up)?"
)


def fits(mention, s):
    """Whether what a caption says of a subject is so."""
    worn = re.findall(rf"({_COLOUR}) ({'|'.join(ACCESSORIES)})", mention["worn"] or "")
    raised = sum(a > 90 for a in s.arms) if s.is_character else 0
    return (
        mention["cls"] == s.cls
        and mention["colour"] in (None, s.colour)
        and (mention["mood"] is None or (s.is_character and mention["mood"] == s.expression))
        and set(worn) <= {(tint, name) for name, tint, _ in s.accessories}
        and {None: True, " waving": raised == 1, " with arms up": raised == 2}[mention["pose"]]
    )


def is_true(text, picture):
    """Whether everything that a caption says holds in the picture's parameters."""
    for phrases in PLACES.values():  # a place, if one is told, is the picture's
        for phrase in phrases:
            noun = phrase.split("the ", 1)[1]
            if re.search(rf"\bthe {noun}\b", text) and phrase not in PLACES[picture.scene]:
                return False
    if any(words and words in text and light != picture.light for light, words in TIMES.items()):
        return False
    mentions = list(MENTION.finditer(text))
    friends = sum(n for n, phrases in COUNTS.items() if any(p in text for p in phrases))
    if friends and friends + len(mentions) != len(picture.subjects):
        return False
    if friends and not all(s.is_character for s in picture.subjects):
        return False
    return any(
        all(fits(m, s) and on_its_side(text[m.end() :], s, picture) for m, s in zip(mentions, who, strict=False))
        and stands(text, who)
        for who in itertools.permutations(picture.subjects, len(mentions) + (friends and 1))
    )


def on_its_side(rest, subject, picture):
    """Whether what follows a mention, "on the left" or "on the right", holds: of others, else of the picture."""
    others = [s.x for s in picture.subjects if s is not subject] or [0.5]
    if rest.startswith(" on the left"):
        return subject.x < min(others)
    if rest.startswith(" on the right"):
        return subject.x > max(others)
    return True


def stands(text, who):
    """Whether the relation told of two subjects holds; a friend comes after who is named."""
    if " to the left of " in text:
        return who[0].x < who[1].x
    if " to the right of " in text:
        return who[0].x > who[1].x
    if " behind " in text:
        return who[0].y <= who[1].y
    return True


def test_captions_only_claim_what_is_true(many):
    wrong = [(text, p) for p, texts in many for text in texts if not is_true(text, p)]
    assert not wrong, wrong[0]
    everything = " ".join(text for _, texts in many for text in texts)
    for phrase in (
        " to the left of ",
        " to the right of ",
        " behind ",
        " next to ",
        " wearing ",
        " waving",
        " arms up",
        " on the left",
        " on the right",
    ):
        assert phrase in everything


def test_the_check_of_truth_finds_lies(many):
    lies = 0
    for (picture, texts), (other, _) in itertools.pairwise(many[:300]):
        lies += sum(not is_true(text, other) for text in texts)
        for text in texts:
            if " to the left of " in text and len({s.cls for s in picture.subjects}) == 2:
                assert not is_true(text.replace(" left ", " right "), picture)
    assert lies > 0.9 * 299 * 6


def test_nothing_is_left_unread(many):
    """Without mentions, places, times, counts and small words, no word of a caption is left to claim something."""
    places = "|".join(sorted((re.escape(p) for phrases in PLACES.values() for p in phrases), key=len, reverse=True))
    bare = "|".join(p.split("the ", 1)[1] for phrases in PLACES.values() for p in phrases)
    rest = re.compile(
        rf"{places}|the (?:{bare})|at sunset|at night|two friends|three friends|a friend"
        r"|(?:a )?(?:photo|picture|drawing) of|(?:to|on) the (?:left|right)(?: of)?|behind|next to|\band\b|\bwith\b|,"
    )
    left = {word for _, texts in many for t in texts for word in rest.sub(" ", MENTION.sub(" ", t)).split()}
    assert not left


def test_colours_in_between_are_never_named():
    rng = np.random.default_rng(8)
    for _ in range(100):
        subject = world.sample_subject(rng, colour=None)
        picture = world.sample(rng, subjects=[subject])
        texts = [caption(picture, rng) for _ in range(4)]
        assert not [t for t in texts if re.search(rf"({_COLOUR}) {subject.cls}", t)]


def test_words_for_one_subject_always_mean_a_picture_of_one(many):
    kinds = {"all": 0, "one and friends": 0, "count": 0, "scene": 0}
    for picture, texts in many:
        n = len(picture.subjects)
        for text in texts if n > 1 else ():
            named = len(MENTION.findall(text))
            assert named in (0, 1, n) and (named != 1 or "friend" in text), text
            kinds[
                "all" if named == n else "one and friends" if named else "count" if "friends" in text else "scene"
            ] += 1
    share = {k: v / sum(kinds.values()) for k, v in kinds.items()}
    least = {"all": 0.5, "one and friends": 0.05, "count": 0.01, "scene": 0.02}
    assert all(share[kind] > part for kind, part in least.items()), share


def test_in_company_two_stand_apart_and_are_told_of_friends():
    drawn = [data.draw(3, i, False) for i in range(1, 800, 2)]
    pairs = [(p, texts) for p, texts in drawn if len(p.subjects) == 2]
    assert 0.42 < len(pairs) / len(drawn) < 0.58
    between = np.array([abs(a.x - b.x) for a, b in (p.subjects for p, _ in pairs)])
    assert 0.9 < (between > 0.37).mean() < 1  # side by side, but not always
    subjects = [(s, p) for p, _ in drawn for s in p.subjects]
    assert all(0.1 < s.x < 0.9 and not world.held_out(s.cls, s.colour, p.scene) for s, p in subjects)
    assert {s.cls for s, _ in subjects} == set(CLASSES)
    assert not [text for p, texts in drawn for text in texts if not is_true(text, p)]
    people = [text for p, texts in pairs if all(s.is_character for s in p.subjects) for text in texts]
    assert 0.4 < np.mean([len(MENTION.findall(t)) == 1 and "a friend" in t for t in people]) < 0.6
    lone = [len(data.draw(3, i, False)[0].subjects) == 1 for i in range(0, 800, 2)]
    assert 0.54 < np.mean(lone) < 0.66  # every second picture is of the world as it is by itself


def test_two_of_five_pictures_show_odd_subjects_whose_marks_no_caption_names():
    drawn = [data.draw(3, i, False) for i in range(600)]
    shipped = {data.marks(concepts.subject(name)) for name, spec in CONCEPTS.items() if spec.cls in CLASSES}
    assert len(shipped) == 13
    for index, (picture, texts) in enumerate(drawn):
        odd = data.is_odd(index)
        for subject in picture.subjects:
            assert subject.odd == odd == bool(subject.pattern or subject.parts)
            assert data.marks(subject) not in shipped or not odd
        for text in texts:
            assert not set(text.split()) & {*data.PATTERNS, *data.PARTS}
            assert len(re.findall(r"\bodd\b", text)) == len(MENTION.findall(text)) * odd, text
    worn = Counter(mark for p, _ in drawn for s in p.subjects if s.odd for mark in data.marks(s)[1:] if mark)
    assert set(worn) == {*data.PATTERNS, *data.PARTS} and min(worn.values()) > 15


def test_captions_vary_and_leave_things_out(many):
    alone = [(p, t) for p, texts in many if len(p.subjects) == 1 for t in texts]
    coloured = np.mean([bool(re.search(rf"({_COLOUR}) ({_CLASS})", t)) for p, t in alone if p.subjects[0].colour])
    placed = np.mean([any(ph in t for ph in PLACES[p.scene]) for p, t in alone])
    assert 0.75 < coloured < 0.95 and 0.75 < placed < 0.97
    assert np.mean([len(set(texts)) for _, texts in many]) > 4  # of six
    assert all(t == t.strip() and "  " not in t and t == t.lower() for _, texts in many for t in texts)


def test_articles_are_english(many):
    for _, texts in many:
        for text in texts:
            assert not re.search(r"\ba [aeiou]|\ban [^aeiou]", text), text


# ---- clear errors ----


def test_an_unknown_pattern_or_scene_is_refused():
    subject = replace(world.sample_subject(np.random.default_rng(0), "mug"), pattern=("plaid", (1.0, 0, 0), 1.0))
    with pytest.raises(ValueError, match="unknown pattern 'plaid': use stripes"):
        world.draw_subject(subject, "s0")
    with pytest.raises(KeyError, match="swamp"):
        scenes.draw("swamp", world.sample_scene_params(np.random.default_rng(0)))


@pytest.mark.parametrize(
    ("ask", "kind"),
    [
        (lambda rng: world.sample_subject(rng, "dragon"), "class 'dragon'"),
        (lambda rng: world.sample_subject(rng, "cat", "mauve"), "colour 'mauve'"),
        (lambda rng: world.sample(rng, scene="attic"), "scene 'attic'"),
        (lambda rng: world.sample(rng, light="noon"), "light 'noon'"),
    ],
)
def test_unknown_names_are_one_sentence_with_the_known_ones(ask, kind):
    with pytest.raises(ValueError, match=f"Pocket World has no {kind}: choose one of "):
        ask(np.random.default_rng(0))


if __name__ == "__main__":
    write_golden()
