"""Bring your own: characters by sliders, photos with crop, click mask and captions; both become a client's folder."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

import mixofshow_lite as mos
from mixofshow_lite.course import character, photos
from mixofshow_lite.course.character import Look
from mixofshow_lite.course.widgets import CharacterStudio


def test_a_look_in_words():
    assert Look().words() == "an orange cat with blue spots and a yellow horn"
    assert Look(pattern="plain", part="nothing", colour="red").words() == "a red cat"
    assert Look(pattern="plain", part="wings").words() == "an orange cat with yellow wings"


@pytest.mark.parametrize(
    ("choice", "says"),
    [({"cls": "dog"}, "no cls 'dog'"), ({"pattern": "dots"}, "plain, stripes"), ({"ears": 1.5}, "from 0 to 1")],
)
def test_what_pocket_world_cannot_draw_is_refused(choice, says):
    with pytest.raises(ValueError, match=says):
        Look(**choice)


def test_every_choice_is_seen():
    """Each field of a look changes its picture, everything can be drawn, and one look has one picture."""
    plain = np.asarray(character.preview(Look(), 64, 1))
    np.testing.assert_array_equal(plain, character.preview(Look(), 64, 1))
    changes = [{"cls": name} for name in character.CHARACTERS if name != "cat"]
    changes += [{"pattern": name} for name in character.PATTERNS if name != "spots"]
    changes += [{"part": name} for name in character.PARTS if name != "horn"]
    changes += [{"colour": "black"}, {"pattern_colour": "red"}, {"part_colour": "red"}]
    changes += [{"body": 1.0}, {"ears": 1.0}, {"eyes": 1.0}]
    for change in changes:
        assert np.abs(np.asarray(character.preview(Look(**change), 64, 1), int) - plain).max() > 20, change


def test_a_character_becomes_a_client_s_folder(tmp_path):
    folder = character.write(Look(), tmp_path, "zora", size=64, n=4)
    (folder / "07.png").write_bytes(b"")  # of an older one with more pictures
    data = mos.ConceptData(character.write(Look(), tmp_path, "zora", size=64, n=4))
    assert not (folder / "07.png").exists()
    assert len(data) == 4 and data.class_word == "cat" and data.name == "zora"
    assert all("<TOK>" in caption and "cat" not in caption for caption in data.captions)
    assert all(0.05 < np.asarray(mask).mean() / 255 < 0.9 for mask in data.masks)
    assert not any(mark in " ".join(data.captions) for mark in ("orange", "spots", "horn")), (
        "marks belong to the concept"
    )
    with pytest.raises(ValueError, match="no name for a folder"):
        character.write(Look(), tmp_path, "../zora")
    (folder / "my own.png").write_bytes(b"")
    with pytest.raises(FileExistsError, match="holds my own.png"):
        character.write(Look(), tmp_path, "zora", size=64, n=1)
    assert len(list(folder.glob("0*.png"))) == 4


def test_the_studio_shows_what_is_chosen(tmp_path):
    studio = CharacterStudio(Look(cls="bear"))
    shown = studio._repr_mimebundle_()
    drawn = Image.open(io.BytesIO(base64.b64decode(shown["image/png"])))
    np.testing.assert_array_equal(drawn, character.preview(Look(cls="bear")))
    assert shown["text/plain"] == "CharacterStudio(an orange bear with blue spots and a yellow horn)"
    controls = {control.description: control for control in studio.widget.children[1:]}
    controls["pattern"].value = "stripes"  # what the front end does
    assert studio.look == Look(cls="bear", pattern="stripes")
    now = Image.open(io.BytesIO(studio.widget.children[0].value))
    np.testing.assert_array_equal(now, character.preview(studio.look))
    assert studio.change(ears=1.0).ears == 1.0 and studio.widget.children[-2].value == 1.0
    assert (studio.write(tmp_path, "bo", 64) / "metadata.jsonl").is_file()


def test_crops_are_square_and_inside():
    wide = Image.fromarray(np.tile(np.arange(120, dtype=np.uint8), (60, 1)))
    assert photos.crop(wide).size == (60, 60) and np.asarray(photos.crop(wide))[0, 0] == 30
    assert np.asarray(photos.crop(wide, (0.0, 0.5)))[0, 0] == 0
    assert photos.crop(wide, (1.0, 1.0), 2).size == (30, 30)
    assert np.asarray(photos.crop(wide, (1.0, 1.0), 2))[0, -1] == 119
    for wrong in ({"zoom": 0.5}, {"centre": (1.2, 0)}):
        with pytest.raises(ValueError, match="zoom is 1 or more"):
            photos.crop(wide, **wrong)


def test_a_click_takes_what_is_alike_and_hangs_together():
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[5:15, 5:15] = pixels[25:35, 25:35] = (200, 40, 40)
    picture = Image.fromarray(pixels)
    one = np.asarray(photos.mask_of(picture, [(0.25, 0.25)])) > 0
    assert one[5:15, 5:15].all() and one.sum() == 100
    both = np.asarray(photos.mask_of(picture, [(0.25, 0.25), (0.75, 0.75)])) > 0
    assert both.sum() == 200
    assert (np.asarray(photos.mask_of(picture, [(0.25, 0.25)], 1.0)) > 0).all()
    for clicks in ([], [(1.0, 0.5)]):
        with pytest.raises(ValueError, match="inside the picture"):
            photos.mask_of(picture, clicks)


def test_photos_become_a_client_s_folder(tmp_path):
    assert photos.collect(tmp_path / "new") == [] and (tmp_path / "new").is_dir()
    Image.new("RGBA", (90, 70), (255, 0, 0, 0)).save(tmp_path / "new" / "b.png")
    (picture,) = photos.collect(tmp_path / "new")
    assert picture.mode == "RGB" and picture.getpixel((0, 0)) == (255, 255, 255)
    mask = Image.new("L", (90, 70), 255)
    folder = photos.write(tmp_path / "mug", [picture] * 2, ["a <TOK>", "<TOK> at home"], "mug", [mask, None])
    data = mos.ConceptData(folder)
    assert (data.class_word, data.captions, data.masks[1]) == ("mug", ["a <TOK>", "<TOK> at home"], None)
    for captions, word, says in (
        (["a mug"], "mug", "does not name"),
        (["<TOK>"], " ", "no class word"),
        ([], "m", "one each"),
    ):
        with pytest.raises(ValueError, match=says):
            photos.write(tmp_path / "mug", [picture], captions, word)
    assert mos.ConceptData(folder).captions, "what was there stays if the new is refused"
    with pytest.raises(FileExistsError, match="b.png and is not a folder of pictures written by this library"):
        photos.write(tmp_path / "new", [picture], ["<TOK>"], "mug")
    assert photos.collect(tmp_path / "new"), "one's own photos are never replaced"


def test_on_colab_files_are_asked_for(tmp_path, monkeypatch):
    import sys
    from types import ModuleType

    file = io.BytesIO()
    Image.new("RGB", (70, 70), "blue").save(file, "PNG")
    colab = ModuleType("google.colab")
    colab.files = ModuleType("google.colab.files")
    colab.files.upload = lambda: {"sub/a.png": file.getvalue()}
    monkeypatch.setitem(sys.modules, "google", ModuleType("google"))
    monkeypatch.setitem(sys.modules, "google.colab", colab)
    monkeypatch.setitem(sys.modules, "google.colab.files", colab.files)
    assert len(photos.collect(tmp_path)) == 1 and (tmp_path / "a.png").is_file()
