"""Text-alignment and image-alignment (paper 4.3), against cosines taken by hand."""

import builtins
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_clip import build_clip

import mixofshow_lite as mos
from mixofshow_lite.engine import evaluation
from mixofshow_lite.engine.evaluation import Scorer, choose, image_scores, load_scorer, plain_prompt, text_scores
from mixofshow_lite.files.concept import Concept

AXES = {"red": 0, "green": 1, "blue": 2}


class ByColour(torch.nn.Module):
    """A CLIP whose space is colour: a picture is its mean colour, a prompt the colour it names (or minus all)."""

    def encode_image(self, x, normalize):
        return torch.nn.functional.normalize(x.mean((2, 3)), dim=-1)

    def encode_text(self, ids, normalize):
        return torch.nn.functional.normalize(ids.float(), dim=-1)


def by_colour(opening=""):
    def tokenize(prompts):
        assert all(p.startswith(opening) for p in prompts)
        return torch.stack(
            [torch.eye(3)[AXES[p.split()[-1]]] if p.split()[-1] in AXES else -torch.ones(3) for p in prompts]
        )

    def preprocess(image):
        return torch.from_numpy(np.asarray(image.resize((4, 4)), np.float32) / 255).permute(2, 0, 1)

    return Scorer("colours", ByColour(), preprocess, tokenize, opening)


def plain(*rgb):
    return Image.new("RGB", (16, 16), rgb)


RED, GREEN, YELLOW = plain(255, 0, 0), plain(0, 255, 0), plain(255, 255, 0)


def test_text_alignment_is_the_weighted_cosine():
    scorer = by_colour()
    assert mos.text_alignment([RED], "a red", scorer) == pytest.approx(2.5)
    assert mos.text_alignment([YELLOW], "a red", scorer, weight=1) == pytest.approx(0.5**0.5)
    assert text_scores([RED, GREEN], "a red", scorer).tolist() == pytest.approx([2.5, 0.0])


def test_negative_cosines_count_as_zero():
    assert mos.text_alignment([RED], "nothing of the kind", by_colour()) == 0.0


def test_the_opening_is_written_before_the_prompt():
    assert mos.text_alignment([RED], "red", by_colour("A photo depicts ")) == pytest.approx(2.5)


def test_image_alignment_is_the_mean_over_all_pairs():
    scorer = by_colour()
    assert mos.image_alignment(RED, RED, scorer) == pytest.approx(1.0)
    assert mos.image_alignment([RED, GREEN], [RED, YELLOW], scorer) == pytest.approx((1 + 2 * 0.5**0.5) / 4)
    each = image_scores([RED, GREEN], [RED, YELLOW], scorer)
    assert each.mean() == pytest.approx(mos.image_alignment([RED, GREEN], [RED, YELLOW], scorer))


def test_pairs_are_clipped_at_zero_one_by_one():
    class Signed(ByColour):
        def encode_image(self, x, normalize):
            return torch.nn.functional.normalize(x.mean((2, 3)) - 0.5, dim=-1)

    scorer = by_colour()
    scorer.model = Signed()
    black, white = plain(0, 0, 0), plain(255, 255, 255)
    assert mos.image_alignment([white], [white, black], scorer) == pytest.approx(0.5)  # (1 + max(-1, 0)) / 2


def test_choose_reads_zero_shot():
    assert choose([GREEN, RED], ["a red", "a green"], by_colour()).tolist() == [1, 0]


def a_concept(**changes):
    fields = {"name": "bibi", "words": ("<bibi1>", "<bibi2>"), "class_word": "rabbit", "recipe": "ed_lora"}
    return Concept(**(fields | changes), embeddings={})


def test_concept_words_are_read_as_their_class():
    other = a_concept(name="volt", words=("<volt1>", "<volt2>"), class_word="robot")
    prompt = "a <bibi1> <bibi2> and a <volt1> <volt2> on the beach"
    assert plain_prompt(prompt, [a_concept(), other]) == "a rabbit and a robot on the beach"
    with pytest.raises(ValueError, match="<volt1>.*concepts="):
        plain_prompt(prompt, [a_concept()])


def test_bad_input_is_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="no picture"):
        mos.image_alignment([], [RED], by_colour())
    with pytest.raises(TypeError, match="str: open the file"):
        mos.image_alignment(["a.png"], [RED], by_colour())
    with pytest.raises(FileNotFoundError, match="open_clip_config.json"):
        load_scorer(tmp_path)
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "open_clip":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"mixofshow_lite\[metrics\]"):
        load_scorer(tmp_path / "other")


def test_no_network_is_said_in_one_sentence(monkeypatch):
    import open_clip

    def fails(*args, **kwargs):
        raise RuntimeError("no route")

    monkeypatch.setattr(open_clip, "create_model_from_pretrained", fails)
    evaluation._load.cache_clear()
    with pytest.raises(ConnectionError, match="connect to the internet"):
        load_scorer("sd15")


def test_the_papers_clip_has_the_activation_of_its_weights():
    """OpenAI's weights need QuickGELU in both towers; its architecture is built here with one narrow layer each."""
    import open_clip

    name, weights = evaluation.HUB_CLIP
    assert open_clip.get_pretrained_cfg(name, weights)["quick_gelu"]
    config = open_clip.get_model_config(name)
    for tower in ("vision_cfg", "text_cfg"):
        config[tower] |= {"layers": 1, "width": 64}
    model = open_clip.CLIP(**config)
    for tower in (model.visual.transformer, model.transformer):
        assert {type(block.mlp.gelu) for block in tower.resblocks} == {open_clip.transformer.QuickGELU}


def test_importing_the_library_does_not_import_open_clip():
    code = "import sys, mixofshow_lite, mixofshow_lite.engine.evaluation; sys.exit('open_clip' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_of_ours_is_read_by_open_clip(tmp_path):
    folder = build_clip(tmp_path)
    scorer = load_scorer(folder)
    x, t = scorer.image_features([RED, GREEN]), scorer.text_features(["a red cat", "a red cat on the moon"])
    assert x.shape == t.shape == (2, 128)
    assert torch.allclose(x.norm(dim=1), torch.ones(2), atol=1e-5) and not torch.allclose(t[0], t[1])
    assert load_scorer(folder) is scorer  # loaded once
