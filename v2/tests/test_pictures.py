"""The one door for pictures and masks: what each kind of file becomes, and what is said of what cannot be read."""

import warnings

import numpy as np
import pytest
from PIL import Image

from mixofshow_lite.engine.masks import Region
from mixofshow_lite.files import pictures
from mixofshow_lite.files.mask_files import open_mask
from mixofshow_lite.files.pictures import TURNS, open_picture, open_rgb, plain

RED, BLUE = (255, 0, 0), (0, 0, 255)
QUARTER = np.zeros((64, 96), dtype=np.uint8)  # 1 in the upper left quarter, 0 elsewhere
QUARTER[:32, :48] = 1


def stored(picture: Image.Image, orientation: int) -> Image.Image:
    """The pixels that a camera writes so that a viewer shows `picture` with that EXIF orientation."""
    back = {6: 8, 8: 6}.get(orientation, orientation)
    return picture.transpose(TURNS[back]) if back in TURNS else picture


def exif(orientation: int) -> Image.Exif:
    found = Image.Exif()
    found[0x0112] = orientation
    return found


def grey(file) -> np.ndarray:
    return np.asarray(open_mask(file)).astype(int)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "tif", "webp"])
def test_every_orientation_stands_upright(tmp_path, orientation, kind):
    upright, file = Image.fromarray(255 * QUARTER).convert("RGB"), tmp_path / f"a.{kind}"
    stored(upright, orientation).save(file, exif=exif(orientation), **({"lossless": True} if kind == "webp" else {}))
    found = open_rgb(file)
    assert found.size == (96, 64) and np.abs(np.asarray(found).astype(int) - np.asarray(upright)).max() < 40
    assert open_picture(file).info["turned"] in (orientation, 1)  # Pillow turns TIFFs itself
    assert plain(found).size == (96, 64)  # what came through the door is not turned again
    assert np.allclose(Region("a", mask=file).mask, QUARTER, atol=0.2)


@pytest.mark.parametrize(
    "numbers",
    [
        np.full((40, 40), 128 * 257, dtype=np.uint16),
        np.full((40, 40), 128, dtype=np.uint16),  # a byte in 16 bits
        np.full((40, 40), 128, dtype=np.int32),
        np.full((40, 40), 0.5, dtype=np.float32),
        np.full((40, 40), 128, dtype=np.float32),
    ],
)
def test_numbers_of_any_range_become_bytes(tmp_path, numbers):
    Image.fromarray(numbers).save(tmp_path / "a.tif")
    assert open_rgb(tmp_path / "a.tif").getpixel((9, 9)) == (128,) * 3


def test_bright_spots_beyond_one_are_clipped_and_other_numbers_are_refused(tmp_path):
    numbers = np.full((40, 40), 0.5, dtype=np.float32)
    numbers[0, 0] = 1.7
    Image.fromarray(numbers).save(tmp_path / "a.tif")
    assert open_rgb(tmp_path / "a.tif").getpixel((9, 9)) == (128,) * 3
    for wrong in (1e6, np.nan):
        numbers[0, 0] = wrong
        Image.fromarray(numbers).save(tmp_path / "a.tif")
        with pytest.raises(ValueError, match=r"a.tif cannot be used, its numbers go up to .* 8 bits\.$"):
            open_picture(tmp_path / "a.tif")


def test_palettes_transparency_cmyk_and_the_first_frame(tmp_path):
    cut_out = Image.new("RGBA", (40, 40), (*RED, 0))
    cut_out.paste((*RED, 255), (0, 0, 20, 40))
    cut_out.save(tmp_path / "a.png")
    cut_out.quantize(8).save(tmp_path / "b.png")
    for name in "ab":
        found = open_rgb(tmp_path / f"{name}.png")
        assert found.getpixel((5, 5)) == RED and found.getpixel((30, 5)) == (255, 255, 255)
    Image.new("RGB", (40, 40), BLUE).convert("CMYK").save(tmp_path / "c.jpg")
    assert open_rgb(tmp_path / "c.jpg").getpixel((9, 9))[2] > 240
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, BLUE)]
    for name in ("d.gif", "d.webp", "d.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert open_rgb(tmp_path / name).getpixel((9, 9))[0] > 240


def test_large_pictures_are_shrunk_and_larger_ones_refused(tmp_path, monkeypatch):
    """Without Pillow's warning of a decompression bomb, with which no user can do anything."""
    wide = Image.new("RGB", (400, 200), BLUE)
    wide.paste(RED, (0, 0, 200, 200))
    wide.save(tmp_path / "a.jpg")
    wide.save(tmp_path / "a.png")
    wide.quantize(4).save(tmp_path / "p.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(pictures, "LARGEST", 100 * 50)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in ("a.jpg", "a.png", "p.png"):
            found = open_rgb(tmp_path / name)
            assert found.size == (100, 50) and found.getpixel((10, 9))[0] > 240 and found.getpixel((90, 9))[2] > 240
        monkeypatch.setattr(pictures, "READABLE", 200 * 100)
        assert open_rgb(tmp_path / "a.jpg").size == (100, 50)  # of a JPEG only a quarter is decoded
        with pytest.raises(ValueError, match=r"a.png has 400x200 pixels, .* make it smaller"):
            open_rgb(tmp_path / "a.png")
    assert Image.MAX_IMAGE_PIXELS == 100


def test_what_is_no_picture_is_called_by_its_name(tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    Image.effect_noise((64, 64), 90).save(tmp_path / "half.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "half.png").read_bytes()[:900])
    for name, words in (("text.png", "no format that is known here"), ("half.png", "truncated")):
        with pytest.raises(ValueError, match=f"{name} is no readable picture .*{words}.*: save it again as PNG"):
            open_picture(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="nothing.png does not exist"):
        open_picture(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="is a folder, no picture"):
        open_picture(tmp_path)


def labels(*values: int) -> np.ndarray:
    """Stripes of labels, (64, 64)."""
    return np.repeat(np.array(values, dtype=np.uint8), 64 // len(values))[None].repeat(64, axis=0)


def palette(numbers: np.ndarray, colours: dict) -> Image.Image:
    """A picture with a palette, black where `colours` says nothing."""
    picture = Image.fromarray(numbers).convert("L")
    picture.putpalette([c for label in range(256) for c in colours.get(label, (0, 0, 0))])
    return picture


VOC = {1: (128, 0, 0), 2: (0, 128, 0), 255: (224, 224, 192)}


@pytest.mark.parametrize(
    "mask",
    [
        Image.fromarray(labels(0, 1)),
        Image.fromarray(labels(0, 15)),
        Image.fromarray(labels(0, 1).astype(np.uint16)),
        Image.fromarray(labels(0, 1).astype(np.int32)),
        Image.fromarray(labels(0, 255) > 0),
        palette(labels(0, 1), VOC),
        palette(labels(0, 1), {label: (label,) * 3 for label in range(256)}),
        Image.merge("RGB", [Image.fromarray(labels(0, 200)), *[Image.new("L", (64, 64))] * 2]),
    ],
)
def test_one_label_on_black_is_white(tmp_path, mask):
    mask.save(tmp_path / "a.tif" if mask.mode == "I" else tmp_path / "a.png")
    (file,) = tmp_path.iterdir()
    assert np.array_equal(grey(file), labels(0, 255))
    assert np.array_equal(Region("a", mask=file).mask, Region("a", mask=mask).mask)


def test_the_border_around_an_object_is_not_the_object(tmp_path):
    """Pascal VOC draws 255 where nobody is sure."""
    ringed = labels(0, 0, 0, 255, 1, 1, 1, 1)
    for name, mask in (("a.png", palette(ringed, VOC)), ("b.png", Image.fromarray(ringed))):
        mask.save(tmp_path / name)
        assert np.array_equal(grey(tmp_path / name), labels(0, 255)), name


def test_several_labels_ask(tmp_path):
    Image.fromarray(labels(0, 1, 2, 3)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png cannot be used, it holds the values 1, 2, 3 and none is white"):
        open_mask(tmp_path / "a.png")
    palette(labels(0, 1, 2, 2), VOC).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"a.png cannot be used, its colours do not say"):
        open_mask(tmp_path / "a.png")
    with pytest.raises(ValueError, match="region 'a cat' cannot be used, it holds the values 1, 2"):
        Region("a cat", mask=labels(0, 1, 2, 2))


def test_soft_masks_stay_soft(tmp_path):
    ramp = np.tile(np.arange(0, 256, 4, dtype=np.uint8), (64, 1))
    Image.fromarray(ramp).save(tmp_path / "a.png")
    assert np.array_equal(grey(tmp_path / "a.png"), ramp)
    assert np.allclose(Region("a", mask=ramp).mask, ramp / 255)
    assert np.allclose(Region("a", mask=ramp / 1000).mask, ramp / 1000)  # floats count as they are
