"""The data a client brings: pictures, captions, masks, and what is said when they are wrong."""

import json
import shutil
import warnings

import numpy as np
import pytest
from PIL import Image

from mixofshow_lite.files.contact_sheet import contact_sheet
from mixofshow_lite.files.data import CAPTION, ConceptData, crop_box, fit

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
        with pytest.raises(kind, match=match):
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
    with pytest.raises(ValueError, match="mask of 5.png in .* is empty"):
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


def test_the_contact_sheet_shows_crop_caption_and_mask(pictures):
    folder, rows = pictures
    Image.fromarray(np.repeat([[0], [255]], 20, axis=0).repeat(80, axis=1).astype(np.uint8)).save(folder / "0_mask.png")
    data = ConceptData(folder)
    figure = contact_sheet(data, 32)
    whole, seen = figure.axes[:3], figure.axes[3:]
    (frame,) = whole[0].patches
    assert (frame.get_x(), frame.get_y(), frame.get_width(), frame.get_height()) == (20, 0, 40, 40)
    assert [axis.get_title().split("\n")[0] for axis in whole] == data.files
    assert [axis.get_title() for axis in seen] == [
        "photo 0 of <TOK>",
        "photo 1 of <TOK> (no mask)",
        "photo 2 of <TOK> (no mask)",
    ]
    shown = seen[0].images[0].get_array()
    assert shown.shape == (32, 32, 3)
    assert shown[-1, 0].tolist() == list(RED) and shown[0, 0].tolist() == [255, 191, 191]  # a quarter of red outside
    assert data.show().axes[0].patches[0].get_width() == 40
    figure.savefig(folder / "sheet.png", dpi=40)
