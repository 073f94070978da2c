"""The data a client brings: pictures, captions, masks, and what is said when they are wrong."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mixofshow_lite.data import ConceptData


@pytest.fixture
def pictures(tmp_path):
    """An imagefolder of three pictures, one of them with a mask."""
    folder = tmp_path / "ada"
    folder.mkdir()
    rows = []
    for i, name in enumerate(("0.png", "1.jpg", "2.png")):
        mode, colour = ("RGBA", (255, 0, 0, 255)) if i == 0 else ("RGB", (0, 0, 255))
        Image.new(mode, (20, 10), colour).save(folder / name)
        rows.append({"file_name": name, "caption": f"photo {i} of <TOK>", "class_word": "rabbit"})
    Image.fromarray(np.full((10, 20), 255, dtype=np.uint8)).save(folder / "0_mask.png")
    rows[0]["mask"] = "0_mask.png"
    rows[2]["text"] = rows[2].pop("caption")
    write(folder, rows)
    return folder, rows


def write(folder, rows):
    (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_concept_data(pictures):
    data = ConceptData(pictures[0])
    assert (len(data), data.name, data.class_word) == (3, "ada", "rabbit")
    assert [p.mode for p in data.pictures] == ["RGB"] * 3 and data.pictures[0].getpixel((0, 0)) == (255, 0, 0)
    assert data.masks[0].mode == "L" and data.masks[1:] == [None, None]
    assert data.prompts("<ada1> <ada2>") == [f"photo {i} of <ada1> <ada2>" for i in range(3)]
    assert ConceptData(pictures[0], class_word="dog").class_word == "dog"


def test_concept_data_says_what_is_wrong(pictures):
    folder, rows = pictures

    def fails(kind, match, change):
        broken = json.loads(json.dumps(rows))
        change(broken)
        write(folder, broken)
        with pytest.raises(kind, match=match):
            ConceptData(folder)

    fails(ValueError, "write <TOK>", lambda r: r[1].update(caption="photo of a rabbit"))
    fails(ValueError, "write <TOK>", lambda r: r[1].pop("caption"))
    fails(FileNotFoundError, "9.png is named in metadata.jsonl", lambda r: r[1].update(file_name="9.png"))
    fails(FileNotFoundError, "no_mask.png", lambda r: r[1].update(mask="no_mask.png"))
    fails(ValueError, "no JSON object with a file_name", lambda r: r[1].pop("file_name"))
    fails(ValueError, "names no picture", lambda r: r.clear())
    Image.new("L", (10, 10)).save(folder / "small.png")
    fails(ValueError, "small.png is 10x10 but its picture is 20x10", lambda r: r[1].update(mask="small.png"))
    (folder / "2.png").write_bytes((folder / "2.png").read_bytes()[:40])
    fails(ValueError, "2.png is no readable picture", lambda r: None)
    (folder / "metadata.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match="metadata.jsonl is missing"):
        ConceptData(folder)
    shutil.rmtree(folder)
    with pytest.raises(FileNotFoundError, match="There is no folder"):
        ConceptData(folder)
