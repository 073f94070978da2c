"""The data a client brings: pictures, captions, masks, and what is said when they are wrong."""

import json
import os
import shutil
import unicodedata
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixofshow_lite.files import contact_sheet as module
from mixofshow_lite.files.contact_sheet import SHOWN, contact_sheet
from mixofshow_lite.files.data import CAPTION, ConceptData, check_sizes, crop_box, fit
from mixofshow_lite.files.grid import GAP, grid
from mixofshow_lite.files.resources import concepts_dir

RED, BLUE = (255, 0, 0), (0, 0, 255)


@pytest.fixture
def pictures(tmp_path):
    """An imagefolder of three pictures, one of them with a mask."""
    folder = tmp_path / "ada"
    folder.mkdir()
    rows = []
    for i, name in enumerate(("0.png", "1.jpg", "2.png")):
        Image.new("RGBA" if i == 0 else "RGB", (80, 40), (*RED, 255) if i == 0 else BLUE).save(folder / name)
        rows.append({"file_name": name, "caption": f"photo {i} of <TOK>", "class_word": "rabbit"})
    Image.fromarray(np.full((40, 80), 255, dtype=np.uint8)).save(folder / "0_mask.png")
    rows[0]["mask"] = "0_mask.png"
    rows[2]["text"] = rows[2].pop("caption")
    write(folder, rows)
    return folder, rows


def write(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_listed_folder(pictures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = ConceptData(pictures[0])
    assert (len(data), data.name, data.class_word) == (3, "ada", "rabbit")
    assert [p.mode for p in data.pictures] == ["RGB"] * 3 and data.pictures[0].getpixel((0, 0)) == RED
    assert data.masks[0].mode == "L" and data.masks[1:] == [None, None]
    assert data.prompts("<ada1> <ada2>") == [f"photo {i} of <ada1> <ada2>" for i in range(3)]
    assert ConceptData(pictures[0], class_word="dog").class_word == "dog"
    assert ConceptData(pictures[0]).digest() == data.digest()
    data.masks[0] = None
    assert ConceptData(pictures[0]).digest() != data.digest()


def test_it_says_what_is_wrong(pictures):
    folder, rows = pictures

    def fails(kind, match, change):
        broken = json.loads(json.dumps(rows))
        change(broken)
        write(folder, broken)
        with pytest.raises(kind, match=match), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ConceptData(folder)

    fails(ValueError, "1 of 3 captions .* those of 1.jpg: write <TOK>", lambda r: r[1].update(caption="a rabbit"))
    fails(ValueError, "write <TOK>", lambda r: r[1].update(caption=""))
    fails(FileNotFoundError, "9.png is named in the metadata", lambda r: r[1].update(file_name="9.png"))
    fails(FileNotFoundError, "no_mask.png", lambda r: r[1].update(mask="no_mask.png"))
    fails(ValueError, "no JSON object with a file_name", lambda r: r[1].pop("file_name"))
    fails(ValueError, "no JSON object with a file_name", lambda r: r[1].update(file_name=None))
    fails(ValueError, "names no picture", lambda r: r.clear())
    Image.new("L", (10, 10), 255).save(folder / "small.png")
    fails(ValueError, "small.png is 10x10 but its picture is 80x40", lambda r: r[1].update(mask="small.png"))
    fails(
        ValueError, "small.png is 10x10: give pictures of at least 32 px", lambda r: r[1].update(file_name="small.png")
    )
    Image.new("L", (80, 40), 0).save(folder / "black.png")
    fails(ValueError, "mask of 1.jpg in .* is empty", lambda r: r[1].update(mask="black.png"))
    (folder / "notes.txt").write_text("<TOK> is my rabbit")
    fails(ValueError, "notes.txt is no readable picture", lambda r: r[1].update(file_name="notes.txt"))
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    fails(ValueError, "2.png is no readable picture", lambda r: None)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ConceptData(folder)
    folder.mkdir()
    (folder / "a.heic").write_bytes(b"from a telephone")
    with pytest.raises(FileNotFoundError, match="holds no picture .a.heic is none this library can read."):
        ConceptData(folder)


def test_a_folder_of_pictures_is_enough(pictures):
    folder, _ = pictures
    (folder / "metadata.jsonl").unlink()
    (folder / "1.txt").write_text("a blue <TOK>\n")
    (folder / "2.mov").write_bytes(b"")
    (folder / "masks").mkdir()
    Image.new("L", (80, 40), 255).save(folder / "masks" / "2.png")
    with pytest.warns(UserWarning) as said:
        data = ConceptData(folder, "rabbit")
    assert sorted(str(w.message).split(":")[0].replace(str(folder), "F") for w in said) == [
        "2 of 3 pictures in F have no caption, e.g. 0.png",
        "Left aside in F, no pictures",
    ]
    assert data.files == ["0.png", "1.jpg", "2.png"] and data.captions == [CAPTION, "a blue <TOK>", CAPTION]
    assert [mask is not None for mask in data.masks] == [True, False, True]
    (folder / "2.txt").write_text("a blue rabbit")
    with pytest.raises(ValueError, match="1 of 3 captions .* 2.png: write <TOK>"), pytest.warns(UserWarning):
        ConceptData(folder)


def test_photographs_stand_upright(tmp_path):
    """A camera held sideways stores the turn in EXIF: orientation 6 is shown turned right by 90 degrees."""
    picture = Image.new("RGB", (80, 40), BLUE)
    picture.paste(RED, (0, 0, 40, 40))  # red left half; turned to the right it is on top
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(tmp_path / "0.png", exif=exif)
    Image.new("L", (40, 80), 255).save(tmp_path / "0_mask.png")
    (tmp_path / "0.txt").write_text("<TOK>")
    data = ConceptData(tmp_path)
    assert data.pictures[0].size == (40, 80) == data.masks[0].size
    assert data.pictures[0].getpixel((20, 5)) == RED and data.pictures[0].getpixel((20, 75)) == BLUE


def test_transparency_is_white_and_a_mask_unless_one_is_given(tmp_path):
    cut_out = np.zeros((64, 64, 4), dtype=np.uint8)
    cut_out[:, 32:] = (*RED, 255)
    cut_out[:, 24:32] = (*RED, 51)
    Image.fromarray(cut_out).save(tmp_path / "0.png")
    Image.fromarray(cut_out).quantize(8).save(tmp_path / "1.png")  # a palette with transparency
    Image.fromarray(np.full((64, 64), 65535, dtype=np.uint16)).save(tmp_path / "2.png")  # 16 bits of grey
    Image.new("LA", (64, 64), (100, 255)).save(tmp_path / "3.png")
    Image.new("RGB", (64, 64), BLUE).save(tmp_path / "4.jpg")
    Image.fromarray(cut_out).save(tmp_path / "4_mask.png")  # a cut-out given as a mask
    for i in range(5):
        (tmp_path / f"{i}.txt").write_text("<TOK>")
    data = ConceptData(tmp_path)
    first = np.asarray(data.pictures[0])
    assert first[0, 0].tolist() == [255] * 3 and first[0, 40].tolist() == list(RED)
    assert np.abs(first[0, 28].astype(int) - [255, 204, 204]).max() <= 1  # one fifth of red on white
    assert np.array_equal(np.asarray(data.masks[0]), cut_out[..., 3])
    assert data.masks[1].getpixel((0, 0)) == 0 and data.masks[1].getpixel((40, 0)) == 255
    assert data.pictures[2].getpixel((0, 0)) == (255, 255, 255) and data.pictures[3].getpixel((0, 0)) == (100,) * 3
    assert data.masks[2:4] == [None, None]
    assert np.array_equal(np.asarray(data.masks[4]), cut_out[..., 3])
    Image.new("RGBA", (64, 64), (0, 0, 0, 0)).save(tmp_path / "5.png")
    (tmp_path / "5.txt").write_text("<TOK>")
    with pytest.raises(ValueError, match="5.png is transparent everywhere"):
        ConceptData(tmp_path)


def test_crops_are_centred_and_as_large_as_can_be():
    wide = Image.new("RGB", (101, 60))
    assert crop_box(wide, (64, 64)) == (20.5, 0, 80.5, 60)
    assert crop_box(wide.transpose(Image.Transpose.ROTATE_90), (64, 64)) == (0, 20.5, 60, 80.5)
    assert crop_box(wide, (32, 64)) == (0, 4.75, 101, 55.25)
    stripes = np.zeros((60, 100, 3), dtype=np.uint8)
    stripes[:, 22:78] = 255  # the crop is columns 20 to 80, so its edges are black
    seen = np.asarray(fit(Image.fromarray(stripes), (30, 30)))[..., 0]
    assert seen.shape == (30, 30) and seen[:, [0, -1]].max() < 30 and seen[:, 2:-2].min() > 240
    assert fit(wide, (128, 128)).size == (128, 128)  # whoever tunes is told before, by `check_sizes`


def test_the_contact_sheet_shows_crop_caption_and_mask(pictures, monkeypatch):
    folder, rows = pictures
    Image.fromarray(np.repeat([[0], [255]], 20, axis=0).repeat(80, axis=1).astype(np.uint8)).save(folder / "0_mask.png")
    data, asked = ConceptData(folder), []
    monkeypatch.setattr(module, "grid", lambda *a, **k: asked.append((a, k)) or grid(*a, **k))
    sheet = contact_sheet(data, 32)
    ((whole, seen), titles), given = asked[0]
    assert [title.split("\n")[0] for title in titles[0]] == data.files
    assert list(given["captions"].values()) == [
        "photo 0 of <TOK>",
        "photo 1 of <TOK> (no mask)",
        "photo 2 of <TOK> (no mask)",
    ]
    frame = (np.asarray(whole[0]) == (220, 20, 60)).all(-1)  # crimson
    y, x = np.nonzero(frame)
    scale = SHOWN / 80
    assert [x.min(), x.max() + 1, y.min(), y.max() + 1] == [round(20 * scale), round(60 * scale), 0, round(40 * scale)]
    shown = np.asarray(seen[0])
    assert shown.shape == (SHOWN, SHOWN, 3)
    assert shown[-1, 0].tolist() == list(RED) and shown[0, 0].tolist() == [255, 191, 191]  # a quarter of red outside
    assert sheet.width == 3 * SHOWN + 2 * GAP and data.show().width == sheet.width


@pytest.mark.parametrize("side", [(32, 4000), (4000, 32)])
def test_the_contact_sheet_bounds_what_is_long_and_thin(tmp_path, side):
    Image.new("RGB", side, RED).save(tmp_path / "0.png")
    (tmp_path / "0.txt").write_text("<TOK>")
    sheet = contact_sheet(ConceptData(tmp_path), side[::-1])
    assert sheet.width == SHOWN and sheet.height < 5 * SHOWN


def picture(file, size=(64, 64), **options):
    file.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, BLUE).save(file, **options)


def white(file, size=(64, 64), box=None):
    file.parent.mkdir(exist_ok=True)
    mask = Image.new("L", size, 0)
    mask.paste(255, box or (0, 0, *size))
    mask.save(file)


def said(folder, *args):
    """The data of a folder, and what was warned of."""
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        data = ConceptData(folder, *args)
    return data, [str(warning.message) for warning in found]


@pytest.mark.parametrize("caption", ["a.txt", "a.TXT", "A.txt", "a.jpg.txt", "a.caption"])
def test_captions_under_all_the_names_that_trainers_give_them(tmp_path, caption):
    picture(tmp_path / "a.jpg")
    (tmp_path / caption).write_text("a <TOK> here,\n on two lines")
    data, warned = said(tmp_path)
    assert (data.captions, warned) == (["a <TOK> here, on two lines"], [])


@pytest.mark.parametrize(
    "mask", ["masks/a.png", "mask/a.png", "Masks/A.png", "masks/a.jpg.png", "a_mask.png", "a-mask.png"]
)
def test_masks_under_all_the_names_that_programs_give_them(tmp_path, mask):
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a <TOK>")
    white(tmp_path / mask)
    data, warned = said(tmp_path)
    assert data.masks[0] is not None and warned == []


def test_accents_are_the_same_however_they_are_stored(tmp_path):
    composed, apart = (unicodedata.normalize(form, "caf\u00e9") for form in ("NFC", "NFD"))
    picture(tmp_path / f"{apart}.png")
    (tmp_path / f"{composed}.txt").write_text("a <TOK>")
    white(tmp_path / "masks" / f"{composed}.png")
    data, warned = said(tmp_path)
    assert data.captions == ["a <TOK>"] and data.masks[0] is not None and warned == []
    write(tmp_path, [{"file_name": f"{composed}.png", "caption": "one <TOK>", "mask": f"masks/{apart}.png"}])
    assert said(tmp_path)[0].masks[0] is not None


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_texts_that_say_their_encoding_are_read(tmp_path, encoding):
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_bytes("a <TOK> at the caf\u00e9".encode(encoding))
    assert said(tmp_path)[0].captions == ["a <TOK> at the caf\u00e9"]


def test_texts_in_another_encoding_name_their_file(tmp_path):
    picture(tmp_path / "a.jpg")
    for data in ("a <TOK> at the caf\u00e9".encode("cp1252"), "a <TOK>".encode("utf-16-le")):
        (tmp_path / "a.txt").write_bytes(data)
        with pytest.raises(ValueError, match=r"a.txt is no text in UTF-8: save it again"):
            ConceptData(tmp_path)


def test_all_captions_that_do_not_name_the_concept_are_named_at_once(tmp_path):
    for i in range(7):
        picture(tmp_path / f"{i}.jpg")
        (tmp_path / f"{i}.txt").write_text("a <tok>" if i == 0 else "a cat")
    with pytest.raises(ValueError, match=r"6 of 7 captions in .*: write <TOK>") as error:
        ConceptData(tmp_path)
    assert "1.jpg, 2.jpg, 3.jpg, 4.jpg, 5.jpg and 1 more" in str(error.value)


def test_metadata_csv_and_rows_that_are_none(tmp_path):
    picture(tmp_path / "a.jpg")
    white(tmp_path / "m" / "x.png")
    (tmp_path / "metadata.csv").write_text('file_name,text,mask\na.jpg,"a <TOK>, here",m/x.png\n')
    data, warned = said(tmp_path)
    assert (data.captions, warned) == (["a <TOK>, here"], []) and data.masks[0] is not None
    (tmp_path / "metadata.csv").write_text("file,text\na.jpg,a <TOK>\n")
    with pytest.raises(ValueError, match=r"metadata.csv, line 2, is no .* file_name"):
        ConceptData(tmp_path)
    rows = ["3", "null", "[" * 100_000, "9" * 5000, "{", '{"file_name": 3}', '{"file_name": "a\\u0000"}']
    for row in rows:
        (tmp_path / "metadata.jsonl").write_text('{"file_name": "a.jpg", "text": "<TOK>\u2028"}\n\n' + row)
        with pytest.raises(ValueError, match=r"metadata.jsonl, line 3, is no JSON object with a file_name"):
            said(tmp_path)
    for field in ("caption", "text", "mask", "class_word"):
        write(tmp_path, [{"file_name": "a.jpg", field: 3}])
        with pytest.raises(ValueError, match=f"line 1, has a {field} that is no text"):
            said(tmp_path)


def test_metadata_may_leave_captions_and_masks_to_files_or_say_that_there_is_none(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a <TOK>")
    white(tmp_path / "masks" / "a.png")
    write(tmp_path, [{"file_name": "a.jpg"}])
    assert said(tmp_path)[0].masks[0] is not None and said(tmp_path)[0].captions == ["a <TOK>"]
    write(tmp_path, [{"file_name": "a.jpg", "mask": None}])
    assert said(tmp_path)[0].masks == [None]


def test_what_belongs_to_no_picture_is_told_once_a_kind(tmp_path):
    picture(tmp_path / "a.jpg")
    (tmp_path / "a.txt").write_text("a <TOK>")
    (tmp_path / "b.txt").write_text("a <TOK>")
    (tmp_path / "README.txt").write_text("thanks")
    for name in ("b.png", "c.png"):
        white(tmp_path / "masks" / name)
    (tmp_path / "metadata.json").write_text("[]")
    (tmp_path / "masks/a.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "masks/Thumbs.db").write_bytes(b"")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    picture(tmp_path / "10_cat" / "x.jpg")
    data, warned = said(tmp_path)
    assert data.files == ["a.jpg"]
    assert [text.replace(str(tmp_path), "F").partition(":")[0] for text in sorted(warned)] == [
        "1 captions in F belong to no picture, e.g. b.txt",
        "2 masks in F belong to no picture, e.g. masks/b.png",
        "Folders in F are not read",
        "Left aside in F, no pictures",
        "Left aside in F/masks, no pictures",
        "metadata.json in F is not read",
    ]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
@pytest.mark.parametrize("name", ["metadata.jsonl", "a.txt", "masks/a.png", "b.jpg"])
def test_a_pipe_is_told_and_nobody_waits_for_it(tmp_path, name):
    picture(tmp_path / "a.jpg")
    (tmp_path / "masks").mkdir()
    os.mkfifo(tmp_path / name)
    data, warned = said(tmp_path)
    assert data.files == ["a.jpg"] and [Path(name).name in text for text in warned if "Left aside" in text] == [True]


def test_a_trainer_s_folder_of_folders_is_explained(tmp_path):
    picture(tmp_path / "10_cat" / "x.jpg")
    with pytest.raises(FileNotFoundError, match=r"its folder 10_cat does .*10 repeats of 'cat'.*: give .*10_cat\.$"):
        ConceptData(tmp_path)


def test_two_masks_of_one_picture_ask_and_a_smaller_one_is_enlarged(tmp_path):
    picture(tmp_path / "a.jpg", (200, 100))
    (tmp_path / "a.txt").write_text("a <TOK>")
    white(tmp_path / "masks" / "a.png", (100, 50), (0, 0, 50, 50))
    mask = said(tmp_path)[0].masks[0]
    assert mask.size == (200, 100) and mask.getpixel((90, 50)) == 255 and mask.getpixel((110, 50)) == 0
    white(tmp_path / "a_mask.png", (200, 100))
    with pytest.raises(ValueError, match=r"a.jpg has two masks, .* and .*: keep one"):
        ConceptData(tmp_path)


def test_a_mask_of_the_stored_pixels_is_turned_with_its_picture(tmp_path):
    """Labelling programs that know no EXIF see a phone's photograph lying."""
    for name, orientation in (("a", 6), ("b", 3)):
        exif = Image.Exif()
        exif[0x0112] = orientation
        picture(tmp_path / f"{name}.jpg", (96, 64), exif=exif)
        (tmp_path / f"{name}.txt").write_text("a <TOK>")
        white(tmp_path / "masks" / f"{name}.png", (96, 64), (0, 0, 48, 64))  # the left half of what is stored
    data, warned = said(tmp_path)
    assert data.masks[0].size == (64, 96) == data.pictures[0].size
    assert data.masks[0].getpixel((30, 5)) == 255 and data.masks[0].getpixel((30, 90)) == 0  # turned right: on top
    (text,) = warned  # upside down, it fits both ways
    assert text.startswith("1 of 2 pictures in ") and "that of b.jpg" in text
    white(tmp_path / "masks" / "a.png", (64, 96), (0, 0, 64, 48))  # drawn on the upright picture
    assert said(tmp_path)[0].masks[0].getpixel((30, 5)) == 255


def test_a_white_rim_around_a_black_middle_is_told(tmp_path):
    for name in "ab":
        picture(tmp_path / f"{name}.jpg")
        (tmp_path / f"{name}.txt").write_text("a <TOK>")
        inverted = Image.new("L", (64, 64), 255)
        inverted.paste(0, (12, 12, 52, 52))
        inverted.save(tmp_path / f"{name}_mask.png")
    (text,) = said(tmp_path)[1]
    assert text.startswith("2 of 2 masks in ") and "invert" in text
    white(tmp_path / "a_mask.png", (64, 64), (12, 12, 52, 52))
    assert not said(tmp_path)[1]  # half of the masks: a place that has somebody in it now and then


def test_the_shipped_concepts_load_without_a_word():
    assert not [text for folder in sorted(concepts_dir().glob("*/metadata.jsonl")) for text in said(folder.parent)[1]]


@pytest.mark.parametrize("word", ["  ", "<TOK>", "x" * 200, 3, ["cat"]])
def test_a_class_word_is_a_word(tmp_path, word):
    picture(tmp_path / "a.jpg")
    with pytest.raises(ValueError, match="class word .* such as 'dog'"):
        said(tmp_path, word)


def test_small_pictures_are_shown_and_named(tmp_path):
    picture(tmp_path / "a.jpg", (200, 200))
    picture(tmp_path / "b.jpg", (40, 200))
    data = said(tmp_path)[0]
    titles = [module.title_of(name, p, (128, 128)) for name, p in zip(data.files, data.pictures, strict=True)]
    assert titles == ["a.jpg\n200x200", "b.jpg\n40x200, too small"] and data.show(128).width == 2 * SHOWN + GAP
    with pytest.raises(ValueError, match=r"Of 2 pictures b.jpg \(40x200\) is too small for a base of 128x128"):
        check_sizes(data, (128, 128))
    for size in (0, -5, "64", (1, 2, 3), (0, 5), 1.5):
        with pytest.raises(ValueError, match="is no size: give pixels"):
            data.show(size)


def test_a_folder_is_a_folder(tmp_path):
    for thing in (None, 3):
        with pytest.raises(TypeError, match="give the folder's path"):
            ConceptData(thing)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ConceptData("x" * 5000)


def test_names_that_windows_wrote_are_found(tmp_path):
    picture(tmp_path / "train" / "a.jpg")
    write(tmp_path, [{"file_name": "train\\a.jpg", "caption": "a <TOK>"}])
    assert said(tmp_path)[0].files == ["train/a.jpg"]
