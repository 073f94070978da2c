"""Does regional sampling fix binding? The reader's numbers, the casts and the claims, against pictures made by hand."""

import re

import numpy as np
import pytest
import torch
from PIL import Image

from mixofshow_lite.paper import binding as study
from mixofshow_lite.paper import casts
from mixofshow_lite.pocket import world

COLOURS = list(world.COLORS)
WORN = [f"{tint} {item}" for item in world.ACCESSORIES for tint in COLOURS]


def swatch(cls, colour, worn, width=64, height=128):
    """A flat picture that stands for a subject: class, colour and what it wears in its three channels."""
    value = 40 * world.CHARACTERS.index(cls), 25 * COLOURS.index(colour), 5 * WORN.index(worn)
    return np.full((height, width, 3), value, dtype=np.uint8)


def beside(*subjects):
    return Image.fromarray(np.concatenate([swatch(*s, width=128 // len(subjects)) for s in subjects], axis=1))


class Reader:
    """Stands in for CLIP: features are what swatches and prompts say, one-hot; nothing for what is not said."""

    def features(self, cls, colour, worn):
        row = torch.zeros(6 + len(COLOURS) + len(WORN))
        row[world.CHARACTERS.index(cls)] = 1
        for at, names, name in ((6, COLOURS, colour), (6 + len(COLOURS), WORN, worn)):
            if name:
                row[at + names.index(name)] = 0.5
        return row

    def image_features(self, pictures):
        rows = []
        for picture in pictures:
            r, g, b = np.asarray(picture)[-1, picture.width // 2].tolist()
            cls = world.CHARACTERS[min(r // 40, 5)]  # pictures that the world drew are read as anything
            rows.append(self.features(cls, COLOURS[min(g // 25, 9)], WORN[min(b // 5, 49)]))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)

    def text_features(self, prompts):
        rows = []
        for prompt in prompts:
            bare, _, worn = prompt.partition(" wearing ")
            cls = next(c for c in world.CHARACTERS if c in bare.split())
            colour = next((c for c in COLOURS if c in bare.split()), None)
            rows.append(self.features(cls, colour, re.sub("^an? ", "", worn) or None))
        return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


@pytest.fixture(autouse=True)
def reader_as_it_is(monkeypatch):
    monkeypatch.setattr(study, "load_scorer", lambda scorer: scorer)


def actor(cls, colour, worn):
    rng = np.random.default_rng(0)
    look = world.sample_subject(rng, cls, colour)
    look.accessories = [(item, tint, world.sample_colour(rng, tint)) for tint, item in ([worn.split()] if worn else [])]
    return casts.Actor(casts.full_name(look, wear=True), look)


CAT, ROBOT, FROG = ("cat", "red", "blue hat"), ("robot", "blue", "pink scarf"), ("frog", "green", "red bow")
PAIR = casts.Cast("pair", (actor(*CAT), actor(*ROBOT)), "snow")
PLAIN = casts.Cast("plain", (actor(*CAT[:2], ""), actor(*ROBOT[:2], "")), "city")
TRIPLE = casts.Cast("triple", (actor(*CAT), actor(*ROBOT), actor(*FROG)), "beach")


def test_prompts_name_everyone_from_left_to_right():
    assert PAIR.direct == "a red cat wearing a blue hat to the left of a blue robot wearing a pink scarf in the snow"
    assert TRIPLE.direct.startswith("a red cat wearing a blue hat, a blue robot wearing a pink scarf and a green frog")
    assert PAIR.together == "two friends in the snow" and TRIPLE.together == "three friends on the beach"
    assert [r.prompt for r in PAIR.regions()] == [
        "a red cat wearing a blue hat in the snow",
        "a blue robot wearing a pink scarf in the snow",
    ]
    friends = [cast.regions(friends=1)[-1].prompt for cast in (PAIR, TRIPLE)]
    assert friends[0] == "a blue robot wearing a pink scarf on the right and a friend in the snow"
    assert friends[1] == "a green frog wearing a red bow on the right and two friends on the beach"
    first, alone = PAIR.regions(friends=0.4)[::2]
    assert (first.prompt, first.start, first.end) == (PAIR.regions(friends=1)[0].prompt, 0, 0.4)
    assert (alone.prompt, alone.start, alone.end) == (PAIR.regions()[0].prompt, 0.4, 1) and alone.box == first.box
    for cast in (PAIR, TRIPLE):
        boxes = [r.box for r in cast.regions()]
        assert boxes[0][0] == 0 and boxes[-1][2] == 1
        assert all(a[2] == b[0] for a, b in zip(boxes, boxes[1:], strict=False))


def test_casts_are_the_same_again_and_nobody_shares_anything():
    found, again = casts.word_casts(6, 3), casts.word_casts(6, 3)
    assert [c.direct for c in found] == [c.direct for c in again]
    assert [len(c.actors) for c in found] == [2] * 6 + [3] * 3
    for cast in found:
        for what in (lambda s: s.cls, lambda s: s.colour, lambda s: s.accessories[0][0], lambda s: s.accessories[0][1]):
            assert len({what(a.look) for a in cast.actors}) == len(cast.actors)
        assert not any(world.held_out(a.look.cls, a.look.colour, cast.scene) for a in cast.actors)
        assert len(cast.direct.replace(",", " ,").split()) <= 30  # of the pocket tokenizer's 32 places


def test_plain_casts_wear_nothing_and_say_so():
    found = casts.word_casts(5, 0, seed=1, dressed=False)
    assert [c.name for c in found] == [f"plain prompt {i}" for i in range(5)]
    for cast in found:
        assert all(not a.look.accessories and a.text.split()[1:] == [a.look.colour, a.look.cls] for a in cast.actors)
        assert len({a.look.cls for a in cast.actors}) == len({a.look.colour for a in cast.actors}) == 2


READINGS = [  # picture, present, placed, coloured, wearing, own, all placed, all own
    ((CAT, ROBOT), 1, 1, 1, 1, 1, 1, 1),
    ((ROBOT, CAT), 1, 0, 0, 0, 0, 0, 0),  # everyone is there, in the other's place
    ((CAT, CAT), 0.5, 0.5, 0.5, 0.5, 0.5, 0, 0),
    (
        (("cat", "blue", "blue hat"), ("robot", "red", "pink scarf")),
        1,
        1,
        0,
        1,
        0,
        1,
        0,
    ),  # only the colours are swapped
    ((("cat", "red", "pink scarf"), ("robot", "blue", "blue hat")), 1, 1, 1, 0, 1, 1, 1),  # only the clothes
]


@pytest.mark.parametrize(("shown", "numbers"), [(row[0], row[1:]) for row in READINGS])
def test_what_is_read_of_a_pair(shown, numbers):
    row = study.read_cast([beside(*shown)], PAIR, Reader())[0]
    assert tuple(row[k] for k in study.NUMBERS) == numbers
    assert row["seen"] == " | ".join(f"{colour} {cls}" for cls, colour, _ in shown)


def test_three_are_read_one_by_one_and_several_pictures_at_once():
    right, turned = beside(CAT, ROBOT, FROG), beside(ROBOT, FROG, FROG)
    first, second = study.read_cast([right, turned], TRIPLE, Reader())
    assert [first[k] for k in study.NUMBERS] == [1] * 7
    assert second["present"] == pytest.approx(2 / 3) and second["placed"] == pytest.approx(1 / 3)
    assert second["coloured"] == pytest.approx(1 / 3)
    assert second["own"] == pytest.approx(1 / 3) and second["all placed"] == second["all own"] == 0


def test_concepts_are_told_apart_by_their_own_pictures():
    """Two of one class: only `own` sees that they stand in each other's place."""
    looks = [("rabbit", "white", "blue hat"), ("rabbit", "yellow", "red bow")]
    actors = [casts.Actor(a.text, a.look, (Image.fromarray(swatch(*look)),)) for a, look in
              ((actor(*look), look) for look in looks)]  # fmt: skip
    cast = casts.Cast("rabbits", tuple(actors), "moon")
    right, swapped = study.read_cast([beside(*looks), beside(*reversed(looks))], cast, Reader())
    assert right["own"] == 1 and swapped["own"] == 0
    assert right["placed"] == swapped["placed"] == swapped["all placed"] == 1 and swapped["all own"] == 0
    assert "coloured" not in right and "wearing" not in right


def test_a_crop_is_the_box_and_its_edges_go_on():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 255, (100, 100, 3), dtype=np.uint8)
    found = np.asarray(study.crop(Image.fromarray(pixels), (0.5, 0.2, 0.9, 1.0)))
    assert found.shape == (80, 80, 3) and np.array_equal(found[:, 20:60], pixels[20:, 50:90])
    assert (found[:, :20] == found[:, 20:21]).all() and (found[:, 60:] == found[:, 59:60]).all()
    low = np.asarray(study.crop(Image.fromarray(pixels), (0, 0.9, 0.3, 1.0)))
    assert low.shape == (30, 30, 3) and np.array_equal(low[20:], pixels[90:, :30]) and (low[:20] == low[20]).all()


def test_the_world_draws_each_subject_into_its_own_box():
    def share(pixels, rgb):
        return (np.abs(pixels.astype(float) / 255 - rgb).sum(-1) < 0.35).mean()

    rgb = {name: np.array(world.hsv(*world.COLORS[name])) for name in ("red", "blue", "green")}
    for seed in range(3):
        pixels = np.asarray(casts.drawn(TRIPLE, seed))
        thirds = np.array_split(pixels[40:], 3, axis=1)
        for third, colour in zip(thirds, ("red", "blue", "green"), strict=True):
            assert max(("red", "blue", "green"), key=lambda c: share(third, rgb[c])) == colour, (seed, colour)
    assert not np.array_equal(np.asarray(casts.drawn(PAIR, 1)), np.asarray(casts.drawn(PAIR, 2)))


class Painter:
    """Stands in for a model: draws the cast swapped by one prompt, right with regions; keeps what it was asked."""

    base_id, fingerprint = "painter", "0"

    def __init__(self):
        self.asked = []

    def encode_images(self, pictures):
        return pictures

    def decode(self, latents):
        """An autoencoder that gives back the pair, which the reader can read, whatever it was given."""
        return [beside(CAT, ROBOT)] * len(latents)

    def sample(self, prompt, n, seed, progress, regions=None, isolate=False, spatial=None):
        asked = regions and [(region.start, " friend" in region.prompt) for region in regions]
        assert not regions or {region.end for region in regions if " friend" not in region.prompt} <= {1.0}
        self.asked.append((prompt, seed, isolate, spatial, asked))
        cast = next(c for c in (PAIR, TRIPLE, PLAIN) if prompt in (c.direct, c.together))
        looks = (CAT, ROBOT, FROG)[: len(cast.actors)]
        return [beside(*(looks if regions else looks[::-1]))] * n


def test_the_study_from_end_to_end(tmp_path):
    model = Painter()
    found = study.binding(
        model, n=2, scorer=Reader(), casts=[PAIR, TRIPLE, PLAIN], condition=lambda regions, classes: classes
    )
    ways = [*study.DRAWN, *study.WAYS, *study.POSED]
    assert len(found.rows) == 3 * len(ways) * 2
    assert found.verdicts["words: more are placed with regions than with direct"]
    assert not found.verdicts["words: more are present with regions than with direct"]  # the painter forgets nobody
    assert not found.verdicts["words: more are placed with regions, isolated than with regions"]
    assert found.verdicts["words: more are own with regions + pose than with direct + pose"]
    share = found.about["two_each_in_its_place"]["words"]
    assert share["regions"]["all own"]["share"] == share["drawn, decoded"]["all own"]["share"] == 1
    assert share["drawn"]["all own"]["share"] < 1  # of the world's, the stand-in reads nothing
    assert share["direct"]["all placed"] == {"share": 0, "error": 0, "n": 2}
    assert found.about["means"]["words, 3"]["direct"]["placed"] == pytest.approx(1 / 3, abs=1e-3)
    text = study.table(found.about["means"])
    assert "plain words, 2 subjects" in text and "\nwords, 2 subjects" in text and "100%" in text
    plain = found.about["two_each_in_its_place"]["plain words"]
    assert [plain[way]["all placed"]["share"] for way in ("direct", "regions")] == [0, 1]
    assert found.verdicts["plain words: more are own with regions than with direct"]
    assert all(("wearing" in row) == (row["kind"] == "words") for row in found.rows)
    assert {asked[1] for asked in model.asked} == {study.SEED}
    pair = [asked for asked in model.asked if asked[0] in (PAIR.direct, PAIR.together)]
    assert [(p == PAIR.direct, isolate, spatial, regions) for p, _, isolate, spatial, regions in pair] == [
        (True, False, None, None),
        (False, False, None, [(0, False)] * 2),
        (False, False, None, [(0, True)] * 2),
        (False, True, None, [(0, False)] * 2),
        (False, False, None, [(study.LATER, False)] * 2),
        (False, True, None, [(0, True)] * 2),
        (False, False, None, [(0, True)] * 2 + [(study.FIRST, False)] * 2),
        (False, True, None, [(0, True)] * 2 + [(study.FIRST, False)] * 2),
        (True, False, ["cat", "robot"], None),
        (False, False, ["cat", "robot"], [(0, False)] * 2),
        (False, False, ["cat", "robot"], [(0, True)] * 2),
    ]
    found.save(tmp_path)
    assert (tmp_path / "binding.webp").stat().st_size > 1000
    assert len((tmp_path / "binding.csv").read_text().splitlines()) == 1 + len(found.rows)


def test_fused_concepts_are_cast_in_neighbouring_pairs_and_all_three(monkeypatch):
    class Named:
        def __init__(self, name):
            self.name, self.phrase = name, f"<{name}1> <{name}2>"

    class Data:
        pictures = [Image.new("RGB", (8, 8))]

    names = ("bibi", "momo", "kiki")
    found = casts.concept_casts([Named(n) for n in names], dict.fromkeys(names, Data))
    assert [c.name for c in found] == [
        "a <bibi1> <bibi2> a <momo1> <momo2>",
        "a <momo1> <momo2> a <kiki1> <kiki2>",
        "a <bibi1> <bibi2> a <momo1> <momo2> a <kiki1> <kiki2>",
    ]
    asked = []
    monkeypatch.setattr(study, "tuned", lambda base, data, recipe, seed, folder, steps: Named(data))
    monkeypatch.setattr(study, "gradient_fusion", lambda base, concepts, progress: asked.append(concepts) or "fused")
    monkeypatch.setattr(study, "concept_casts", lambda concepts, data: ["concepts"])

    def measure(model, casts, ways, n, seed, scorer, condition, mark=""):
        rows = {"kind": "words" if model != "fused" else "concepts", "concept": "x", "subjects": 2}
        values = {"direct": 0.2, "regions": 0.7}
        rows |= {k: 0.5 for k in study.NUMBERS} | {"seen": "", "prompt": ""}
        made = [rows | {"way": w, "seed": f"{mark}{seed}", "own": values.get(w, 0.5)} for w in ways]
        return made, {("x", w, f"{mark}{seed}"): [Image.new("RGB", (4, 4))] for w in ways}

    monkeypatch.setattr(study, "measure", measure)
    base = type("Base", (), {"base_id": "b", "fingerprint": "f"})
    result = study.binding(
        base, "folder", dict(zip(names, names, strict=True)), names, (0, 1), 1, scorer=Reader(), casts=[]
    )
    assert [c.name for c in asked[0]] == list(names) and len(asked) == 2
    assert result.verdicts["concepts: more are own with regions than with direct"]
    assert {row["seed"] for row in result.rows} == {"200", "0/200", "1/200"}
