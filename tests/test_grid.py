"""Pictures in a grid: every pixel of every picture is there, and what is written stands beside them."""

import numpy as np
import pytest
import torch
from PIL import Image

from mixofshow_lite.files.grid import FRAME, GAP, LINE, broken, grid

COLORS = [(200, 30, 30), (30, 200, 30), (30, 30, 200), (200, 200, 30)]


def plain(color, width=20, height=20):
    return Image.new("RGB", (width, height), color)


def noise(seed, side=20):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def test_pictures_stand_side_by_side_in_their_own_pixels():
    pictures = [noise(i) for i in range(3)]
    drawn = np.asarray(grid(pictures))
    assert drawn.shape == (20, 3 * 20 + 2 * GAP, 3)
    for i, picture in enumerate(pictures):
        np.testing.assert_array_equal(drawn[:, i * (20 + GAP) :][:, :20], picture)
    assert (drawn[:, 20 : 20 + GAP] == 255).all()
    np.testing.assert_array_equal(np.asarray(grid(pictures, gap=0)), np.concatenate(pictures, axis=1))


def test_rows_have_labels_before_them_and_titles_above():
    bare = np.asarray(grid([[plain(c) for c in COLORS[:2]], [plain(c) for c in COLORS[2:]]]))
    drawn = np.asarray(grid({"one": [plain(c) for c in COLORS[:2]], "two": [plain(c) for c in COLORS[2:]]}, ["a", "b"]))
    margin = drawn.shape[1] - bare.shape[1]
    assert margin > 15 and drawn.shape[0] == bare.shape[0] + LINE + GAP
    np.testing.assert_array_equal(drawn[LINE + GAP :, margin:], bare)
    dark = drawn.min(axis=2) < 120
    for half in (slice(LINE + GAP, LINE + GAP + 20), slice(-20, None)):
        assert dark[half, : margin - GAP].any(), "the label"
    for left in (margin, margin + 20 + GAP):
        assert dark[:LINE, left : left + 20].any(), "the title"


def test_titles_may_stand_over_any_row():
    high = [grid([[plain(COLORS[0])]] * 2, titles).height for titles in ((), ["a"], {1: ["a"]}, {0: ["a"], 1: ["b"]})]
    assert high == [44, 44 + LINE + GAP, 44 + LINE + GAP, 44 + 2 * (LINE + GAP)]


def test_captions_and_frames_belong_to_one_picture():
    row = [plain(c, 60, 60) for c in COLORS[:2]]
    drawn = np.asarray(grid([row], captions={(0, 1): "seen"}, frames={(0, 1): "#1f8059"}))
    assert drawn.shape[0] == 60 + GAP + LINE
    dark = drawn[60:].min(axis=2) < 120
    assert dark[:, 60 + GAP :].any() and not dark[:, :60].any()
    framed = (drawn == (0x1F, 0x80, 0x59)).all(-1)
    assert framed.sum() == 60 * 60 - (60 - 2 * FRAME) ** 2 and not framed[:, : 60 + GAP].any()


def test_an_empty_column_is_a_narrow_gap_and_an_empty_place_is_paper():
    a, b = plain(COLORS[0]), plain(COLORS[1])
    assert grid([[a, None, b]]).width == 20 + GAP + 2 * GAP + GAP + 20
    drawn = np.asarray(grid([[a, b], [None, b]]))
    assert (drawn[-20:, :20] == 255).all() and (drawn[-20:, -20:] == COLORS[1]).all()


def test_small_pictures_are_enlarged_square_by_square_and_large_ones_made_smaller():
    small = np.asarray(grid([np.asarray(noise(0, 5)), plain(COLORS[0])]))[:, :20]
    np.testing.assert_array_equal(small, np.asarray(noise(0, 5)).repeat(4, 0).repeat(4, 1))
    assert grid([plain(COLORS[0], 40, 20)], side=10).size == (10, 5)


def test_arrays_and_tensors_are_pictures_too():
    ramp = torch.linspace(3, 7, 16).view(4, 4)  # a heat map
    drawn = np.asarray(grid([ramp, ramp * 2 + 1, torch.zeros(4, 4), torch.rand(4, 4, 3)]))
    np.testing.assert_array_equal(drawn[:, :4], drawn[:, 4 + GAP : 8 + GAP])  # only the order of values shows
    assert len(np.unique(drawn[:, :4].reshape(-1, 3), axis=0)) == 16
    assert len(np.unique(drawn[:, 8 + 2 * GAP : 12 + 2 * GAP].reshape(-1, 3), axis=0)) == 1


def test_long_words_are_broken_between_words_only():
    from PIL import ImageFont

    font = ImageFont.load_default(size=12)
    lines = broken("two friends on the beach\nmany", font, 60)
    assert " ".join(lines) == "two friends on the beach many" and lines[-1] == "many" and len(lines) > 3
    assert all(font.getlength(line) <= 60 for line in lines)
    assert broken("incomprehensibilities", font, 10) == ["incomprehensibilities"]


def test_nothing_to_show_is_one_sentence():
    for rows in ([], {"a": [None]}, [[]]):
        with pytest.raises(ValueError, match="give at least one picture"):
            grid(rows)
