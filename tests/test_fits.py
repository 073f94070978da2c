"""Does this concept fit this base? The same answer wherever the two meet."""

import math
import warnings
from dataclasses import replace

import pytest
import torch
from tiny import make_concept

import mixofshow_lite as mos
from mixofshow_lite.files.fits import ROUNDED, check_fits

MEETINGS = {
    "check_fits": lambda base, concept, folder: check_fits(concept, base),
    "with_concept": lambda base, concept, folder: base.with_concept(concept),
    "with_words": lambda base, concept, folder: base.with_words(concept),
    "load": lambda base, concept, folder: mos.Concept.load(concept.save(folder / "x"), base),
    "weight_fusion": lambda base, concept, folder: mos.weight_fusion(base, [concept]),
    "peft_fusion": lambda base, concept, folder: mos.peft_fusion(base, [concept], "cat"),
    "join": lambda base, concept, folder: mos.CenterNode(base).join(concept),
}


@pytest.fixture(params=MEETINGS.values(), ids=MEETINGS)
def meet(request, tiny_base, tmp_path):
    return lambda concept: request.param(tiny_base, concept, tmp_path)


def test_its_own_base_is_no_news(meet, concept):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meet(concept)
        meet(replace(concept, base_id="", fingerprint=""))  # LoRA files do not say what they were tuned on


def test_other_weights_are_a_warning_that_names_both(meet, concept, tiny_base):
    sentence = rf"'bibi' was tuned on pocket-v9 \(fingerprint 1234\), the base is tiny_base \({tiny_base.fingerprint}\)"
    with pytest.warns(UserWarning, match=sentence + ": expect a weaker likeness, or load the base it was tuned on"):
        meet(replace(concept, base_id="pocket-v9", fingerprint="1234"))


PAIR = (torch.ones(1, 4), torch.ones(4, 1))  # of a layer 4 wide
PROJECTION = "encoder.layers.0.self_attn.q_proj"
ROWS = {"embeddings": {"<bibi1>": torch.zeros(3, 32)}, "words": ("<bibi1>",)}
OTHER = {  # how it is said -> what another architecture changes
    r"<bibi1> is \(3, 32\), the base has \(16, 32\)": ROWS,
    "attn9.to_q is .*, the base has no such layer": {"lora": {"unet": {"mid_block.attn9.to_q": PAIR}}},
    r"q_proj is \(4, 4\), the base has \(32, 32\)": {"lora": {"text_encoder": {PROJECTION: PAIR}}},
}


@pytest.mark.parametrize("sentence", OTHER, ids=["rows", "layer", "shape"])
def test_another_architecture_is_an_error(meet, concept, sentence):
    other = replace(concept, base_id="sd15", phrase="", layers=(), **OTHER[sentence])
    with pytest.raises(ValueError, match=sentence) as caught:
        meet(other)
    assert "'bibi' was tuned on sd15, the base is tiny_base and built differently" in str(caught.value)
    assert str(caught.value).endswith("load it with load_base('sd15').")


def test_numbers_that_are_none_are_an_error(meet, concept):
    name, (down, up) = next(iter(concept.lora["unet"].items()))
    with pytest.raises(ValueError, match="not finite .in .*: tune it again"):
        meet(replace(concept, lora={"unet": {name: (down * math.nan, up)}}))


@pytest.mark.parametrize("part", ["down", "up", "scale", "rows"])
@pytest.mark.parametrize("by", [1e30, 1e5])
def test_numbers_out_of_all_proportion_are_an_error_that_names_the_place(meet, concept, part, by):
    """A flipped bit of an exponent, or an alpha of another program: finite, and nothing but noise."""
    name, (down, up) = list(concept.lora["unet"].items())[7]
    pair = (down * by, up) if part == "down" else (down, up * by)
    changed = {"lora": {"unet": concept.lora["unet"] | {name: pair}}}
    changed = {"scale": by} if part == "scale" else changed
    changed = (
        {"embeddings": {word: by * rows for word, rows in concept.embeddings.items()}} if part == "rows" else changed
    )
    where = {"scale": "the update of text_encoder", "rows": "the word <bibi1>"}.get(part, f"the update of unet.{name}")
    with pytest.raises(ValueError, match=rf"damaged or was tuned astray: {where}.* is \de\+\d\d times as large"):
        meet(replace(concept, **changed))


def test_a_strong_update_and_a_layer_of_zeros_are_no_error(tiny_base, concept):
    strong = replace(concept, scale=50.0)  # a LoRA read without its alpha, say
    check_fits(strong, tiny_base)
    model = tiny_base.copy()
    layer = next(iter(concept.lora["unet"]))
    model.unet.get_submodule(layer).weight = torch.nn.Parameter(torch.zeros(32, 32), requires_grad=False)
    check_fits(concept, model)


def test_a_lora_file_out_of_all_proportion_is_refused_when_it_is_read(tiny_base, concept, tmp_path):
    file = replace(concept, scale=1e30).to_lora(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="'x' is damaged"):
        mos.Concept.from_lora(file, tiny_base, "rabbit", verbose=False)


def test_weights_rounded_to_bfloat16_may_be_the_same(tiny_base, concept):
    """Who stores a base in bfloat16 without mixofshow.json has lost what the fingerprint is made of."""
    model = tiny_base.copy()
    model.fingerprint = ROUNDED + "1234"
    with pytest.warns(UserWarning, match="unless one is the other rounded to bfloat16, expect a weaker likeness"):
        check_fits(concept, model)
    model.fingerprint = "1234"
    with pytest.warns(UserWarning, match=r"\(1234\): expect a weaker likeness"):
        check_fits(concept, model)


def test_the_warning_points_at_the_users_line(tiny_base):
    stranger = replace(make_concept(tiny_base), fingerprint="1234")
    with pytest.warns(UserWarning, match="weaker likeness") as caught:
        tiny_base.with_concept(stranger)
    assert caught[0].filename == __file__


def test_a_concept_without_a_name_or_with_words_without_rows_is_an_error(meet, concept):
    with pytest.raises(ValueError, match="has no name: give it one"):
        meet(replace(concept, name=" "))
    rowless = {word: rows for word, rows in concept.embeddings.items() if word != concept.words[0]}
    with pytest.raises(ValueError, match="each word needs its rows|the rows of <bibi1> are missing"):
        meet(replace(concept, embeddings=rowless))
