"""Concept folders, pictures and masks of any kind: data that fit together, or one sentence."""

import random

import pytest
from broken_pictures import ODD, write_folder, write_mask, write_picture
from harness import outcome, seeds

from mixofshow_lite.files.data import ConceptData
from mixofshow_lite.files.mask_files import open_mask
from mixofshow_lite.files.pictures import LARGEST, open_picture, open_rgb


@pytest.mark.parametrize("seed", seeds(30))
def test_concept_folders(seed, tmp_path):
    rng = random.Random(seed)
    write_folder(rng, tmp_path)
    word = rng.choice([None, None, "cat", *ODD])
    found = outcome(lambda: ConceptData(tmp_path, word))
    if found.error is None:
        data = found.value
        assert len(data.pictures) == len(data.captions) == len(data.masks) == len(data.files) > 0
        assert all("<TOK>" in caption for caption in data.captions)
        assert all(picture.mode == "RGB" and min(picture.size) >= 32 for picture in data.pictures)
        for picture, mask in zip(data.pictures, data.masks, strict=True):
            assert mask is None or (mask.mode == "L" and mask.size == picture.size and mask.getextrema()[1] > 0)
        size = rng.choice([None, 64, (64, 32), 0, -5, (1, 2, 3), "64", (0, 5), 1.5])
        outcome(lambda: data.show(size))


@pytest.mark.parametrize("seed", seeds(15))
def test_picture_files(seed, tmp_path):
    file = write_picture(random.Random(1000 + seed), tmp_path / "a")
    found = outcome(lambda: open_picture(file))
    assert found.warned == []
    if found.error is None:
        assert found.value.mode in ("L", "RGB", "RGBA") and 0 < found.value.width * found.value.height <= LARGEST
        assert open_rgb(file).mode == "RGB"
    else:
        assert "a." in str(found.error), "the sentence does not name the file"


@pytest.mark.parametrize("seed", seeds(15))
def test_mask_files(seed, tmp_path):
    write_mask(random.Random(2000 + seed), tmp_path / "a")
    (file,) = tmp_path.iterdir()
    found = outcome(lambda: open_mask(file))
    assert found.warned == []
    if found.error is None:
        assert found.value.mode == "L"
    else:
        assert file.name in str(found.error), "the sentence does not name the file"
