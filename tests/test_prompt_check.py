"""Words that a model will not understand are told once each: cut, misspelt, half, foreign, unknown."""

import json
import re
import warnings
from dataclasses import replace

import pytest
import torch
from PIL import Image
from test_evaluation import by_colour
from tiny import make_concept

import mixofshow_lite as mos
from mixofshow_lite.engine import evaluation
from mixofshow_lite.engine.recipes import RECIPES
from mixofshow_lite.files import prompt_check
from mixofshow_lite.files.concept import bind


@pytest.fixture
def model(tiny_base, concept):
    """The tiny base with the words <bibi1> <bibi2>; what it has told of is its own."""
    found = tiny_base.with_words(concept)
    found.warned = set()
    return found


def told(call):
    """The warnings of a call, one string each."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        call()
    said = [w for w in said if w.category is UserWarning]
    assert not [w for w in said if "\n" in str(w.message)]
    return [str(w.message) for w in said]


ONE = {
    "a red cat "
    * 8: r"^The prompt 'a red cat a red cat.*\.\.\.' is longer than 14 tokens, this was cut off: 'cat a red",
    "a red cat " * 5 + "<bibi1> <bibi2>": r"cut off: the concept's <bibi1> and <bibi2> and all behind it; shorten it",
    "a <bibi1> on the beach": r"has <bibi1> without <bibi2>: this concept is written <bibi1> <bibi2>\.$",
    "a <BIBI1> <bibi2>": r"<BIBI1> is no concept word of this model, capitals matter: write <bibi1>\.$",
    "a <kiki1>": r"<kiki1> is no concept word of this model \(it knows <bibi1>, <bibi2>\): join its concept first",
    "a (red cat:1.2)": r"A1111's syntax, \(red cat:1\.2\), which is read as plain text",
    "a ((red)) cat": r"A1111's syntax, \(\(red\)\)",
    "[cat:dog:.5]": r"A1111's syntax, \[cat:dog:\.5\]",
    "a [cat|dog]": r"A1111's syntax, \[cat\|dog\]",
    "cat <lora:x:0.7>": r"A1111's syntax, <lora:x:0\.7>, .* with_concept\(concept, alpha\)",
    "cat BREAK dog": r"A1111's syntax, BREAK, .* regions",
}


@pytest.mark.parametrize("prompt", ONE)
def test_each_mistake_is_told_once(model, prompt):
    said = told(lambda: model.context(prompt))
    assert len(said) == 1 and re.search(ONE[prompt], said[0]), said
    assert len(said[0]) < 240
    assert told(lambda: model.context([prompt, prompt])) == []


@pytest.mark.parametrize(
    "prompt",
    ["a <bibi1> <bibi2> (red)", "a <bibi1>, red <bibi2>", "[cat] and (dog)", "a cat break", "a (cat: a dog)", ""],
)
def test_plain_prompts_are_drawn_without_a_word(model, prompt):
    assert told(lambda: model.context(prompt)) == []


def test_a_vocabulary_is_checked_beside_foreign_syntax(model):
    model.known_words, model.base_id = frozenset({"a", "red", "cat"}), "pocket-v1"
    said = [text for text in told(lambda: model.context("a (red zébra:1.2) BREAK <lora:x:1>")) if "longer" not in text]
    assert len(said) == 2 and "does not know: zébra. It knows: a, cat, red." in " ".join(said)
    assert "syntax, (red zébra:1.2) and BREAK and <lora:x:1>, which" in " ".join(said)


def test_regions_and_negative_prompts_are_called_so(model):
    long = [
        mos.Region("a red cat " * 8, box=(0, 0, 0.5, 1)),
        mos.Region("a cat", (0, 0, 0.5, 1), negative_prompt="dog " * 20),
    ]
    said = told(lambda: model.sample("a", steps=1, negative_prompt="red " * 20, regions=long, progress=False))
    starts = {text.split(" is longer")[0] for text in said}
    assert {start.split(" '")[0] for start in starts} == {
        "The region's prompt",
        "The region's negative prompt",
        "The negative prompt",
    }


def test_a_warning_points_at_the_users_line(model):
    with pytest.warns(UserWarning, match="region's prompt 'a red cat") as said:
        model.sample("a", steps=1, regions=[mos.Region("a red cat " * 8, box=(0, 0, 1, 1))], progress=False)
    assert {warning.filename for warning in said if "longer" in str(warning.message)} == {__file__}


@pytest.mark.parametrize("prompt", [None, 3, b"a cat", ["a cat", None], {"a": 1}, [["a"]]])
def test_a_prompt_is_text(tiny_base, prompt):
    for call in (tiny_base.sample, tiny_base.context, tiny_base.prompt_embeds):
        with pytest.raises(TypeError, match=r"^The prompt .* is no text: give a string, .*\.$"):
            call(prompt)
    with pytest.raises(TypeError, match="give a text"):
        mos.Region(prompt, box=(0, 0, 1, 1))


def test_words_of_one_concept_stay_together_on_disk(tiny_base, tmp_path):
    """Also names that no rule would guess; folders that do not say it are read by the last number of each word."""
    odd = replace(make_concept(tiny_base), words=("<cat>", "<hat>"), phrase="")
    odd.embeddings = dict(zip(odd.words, odd.embeddings.values(), strict=True))
    model = mos.weight_fusion(tiny_base, [odd, make_concept(tiny_base, "kiki", 3)])
    folder = model.save_pipeline(tmp_path / "fused")
    read = mos.load_base(folder, device="cpu")
    assert read.names == model.names and read.names["<hat>"] == ("<cat>", "<hat>")
    assert "has <hat> without <cat>" in told(lambda: read.context("a <hat>"))[0]
    about = json.loads((folder / "mixofshow.json").read_text())
    assert sorted(about.pop("concepts")) == [["<cat>", "<hat>"], ["<kiki1>", "<kiki2>"]]
    (folder / "mixofshow.json").write_text(json.dumps(about))
    read = mos.load_base(folder, device="cpu")
    assert read.names["<kiki1>"] == ("<kiki1>", "<kiki2>") and read.names["<hat>"] == ("<hat>",)


def test_what_folders_list_may_be_anything():
    words = ["<a1>", "<a2>", "<b>"]
    expected = {"<a1>": ("<a1>", "<a2>"), "<a2>": ("<a1>", "<a2>"), "<b>": ("<b>",)}
    for listed in (None, 3, "x", [1], [["<c>"]], [[]], {}, [["<a1>", "<a2>"]]):
        assert prompt_check.named_together(words, listed) == expected


@pytest.fixture
def data(tmp_path):
    Image.new("RGB", (64, 64), "red").save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text("a <TOK>")
    return mos.ConceptData(tmp_path, "cat")


@pytest.mark.parametrize("class_word", ["  ", "\t", "<cat>", 3, ["cat"], {"a": 1}, True])
def test_a_class_word_is_a_word(tiny_base, data, class_word):
    with pytest.raises(ValueError, match="The class word is .*say what the concept is") as caught:
        mos.tune(tiny_base, data, class_word=class_word, steps=1, progress=False)
    assert "\n" not in str(caught.value)


def test_tuned_words_are_different(tiny_base, data):
    with pytest.raises(ValueError, match="has a word twice"):
        mos.tune(tiny_base, data, words=("<a>", "<a>"), steps=1, progress=False)
    with pytest.raises(ValueError, match="cannot be a concept word"):
        mos.tune(tiny_base, data, words=("<a>", 3), steps=1, progress=False)
    with pytest.raises(TypeError, match="give a list of texts"):
        mos.tune(tiny_base, data, words="<a> <b>", steps=1, progress=False)


@pytest.mark.parametrize("name", [3, "", "  ", "x" * 101])
def test_a_concept_s_name_is_one(tiny_base, data, name):
    """It becomes a folder and words, so that a name that cannot be is told before anything is tuned."""
    with pytest.raises(ValueError, match="give the concept a name"):
        mos.tune(tiny_base, data, name=name, steps=1, progress=False)


def test_words_that_no_folder_could_give_back_are_not_tuned(tiny_base, data, concept):
    data.name = "x" * 120  # of a folder
    with pytest.raises(ValueError, match="cannot be a concept word.* up to 100 characters"):
        mos.tune(tiny_base, data, steps=1, progress=False)
    with pytest.raises(ValueError, match="do not fit"):
        concept.renamed(words=("<" + "x" * 100 + ">", "<b>"))


def starting(*init):
    return replace(RECIPES["ed_lora"], init=init, rank=1, batch=1)


@pytest.mark.parametrize("like", ["", "  ", "<bibi1>", "CLASS", " rand"])
def test_words_start_as_something(tiny_base, data, like):
    with pytest.raises(ValueError, match="A word of ed_lora cannot start as .*: write 'rand', 'class' or"):
        mos.tune(tiny_base, data, starting("rand", like), steps=1, progress=False)


def test_a_start_that_the_base_does_not_know_is_told(tiny_base, data):
    def tune(base, like):
        return told(lambda: mos.tune(base, data, starting("rand", like), steps=1, progress=False))

    assert not tune(tiny_base, "dog") and not tune(tiny_base, "red dog")
    (said,) = tune(tiny_base, "zzz")
    assert "has no word 'zzz'" in said and "the mean of its 3 pieces" in said
    base = tiny_base.copy()
    base.known_words, base.warned = frozenset({"a", "cat"}), set()
    (said,) = tune(base, "dog")
    assert "does not know (how a word of ed_lora starts): dog" in said


def test_a_class_word_the_base_does_not_know(tiny_base, data):
    base = tiny_base.copy()
    base.known_words, base.warned = frozenset({"a", "rabbit"}), set()
    said = told(lambda: mos.tune(base, data, "textual_inversion", steps=1, progress=False))
    assert [text for text in said if re.search(r"does not know \(class word\): cat", text)] == said


def test_captions_too_long_for_the_concepts_words(tiny_base, tmp_path, data):
    def tune():
        with pytest.raises(ValueError, match="<x3> fits into no caption"):
            mos.tune(tiny_base, mos.ConceptData(tmp_path, "cat"), words=("<x2>", "<x3>"), steps=1, progress=False)

    (tmp_path / "a.txt").write_text("a red cat " * 4 + "a <TOK>")
    said = told(tune)
    assert len(said) == 1 and "The caption 'a red cat" in said[0] and "the concept's <x3> and all behind it" in said[0]


def test_prompts_of_an_evaluation(concept):
    scorer, picture = replace(by_colour(), known_words=frozenset({"red", "rabbit"})), Image.new("RGB", (8, 8), "red")
    said = told(lambda: evaluation.text_scores(picture, "red dog", scorer))
    assert len(said) == 1 and re.search(r"The CLIP 'colours' does not know: dog; its score says nothing", said[0])
    assert told(lambda: evaluation.text_scores(picture, "red <bibi1> <bibi2>", scorer, [concept])) == []
    with pytest.raises(ValueError, match="<bibi2> outside the concept's whole name: write <bibi1> <bibi2>"):
        evaluation.text_scores(picture, "red <bibi2>", scorer, [concept])
    with pytest.raises(ValueError, match="does not know the concept word <bibi2>: pass the concept"):
        evaluation.text_scores(picture, "red <bibi2>", scorer)
    with pytest.raises(TypeError, match="is no text"):
        evaluation.text_scores(picture, None, scorer)
    assert "A1111's syntax" in told(lambda: evaluation.text_scores(picture, "(red:1.2)", scorer))[0]


def test_a_prompt_longer_than_clip_reads(tiny_folder):
    scorer = replace(by_colour(), tokenize=evaluation.folder_tokenizer(tiny_folder / "tokenizer", 8))
    assert told(lambda: evaluation.warn_of("a red cat " * 2, scorer)) == []
    (said,) = told(lambda: evaluation.warn_of("a red cat " * 2 + "dog", scorer))
    assert said.startswith("The prompt 'a red cat a red cat dog' is longer than CLIP reads, 6 tokens")


@pytest.mark.parametrize("words", [["<a>", "<a>"], ["a"], ["<a b>"], ["<a>\n"], ["[a]"]])
def test_concept_folders_with_other_words(tiny_base, concept, tmp_path, words):
    file = concept.save(tmp_path / "bibi") / "concept.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"words": words}))
    with pytest.raises(ValueError, match="are not different words like <bibi1>") as caught:
        mos.Concept.load(tmp_path / "bibi")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("texts", [{"class_word": None}, {"class_word": "cat", "phrase": 3}])
def test_texts_of_a_lora_are_texts(tiny_base, concept, tmp_path, texts):
    file = concept.to_lora(tmp_path / "x.safetensors")
    with pytest.raises(TypeError, match="is no text"):
        mos.Concept.from_lora(file, tiny_base, **texts)


BLANK = [{"class_word": "  "}, {"class_word": "\n"}, {"class_word": "cat", "phrase": " "}, {"class_word": "x" * 501}]


@pytest.mark.parametrize("texts", [*BLANK, {"class_word": "<TOK>"}, {"class_word": "cat", "phrase": "a <TOK>"}])
def test_texts_of_a_lora_can_stand_in_a_prompt(tiny_base, concept, tmp_path, texts):
    file = concept.to_lora(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="cannot stand in a prompt"):
        mos.Concept.from_lora(file, tiny_base, **texts)


def test_something_wakes_a_lora(tiny_base, concept, tmp_path):
    file = concept.to_lora(tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match="Nothing says how a prompt wakes this LoRA"):
        mos.Concept.from_lora(file, tiny_base, "")
    with pytest.raises(ValueError, match="The class word '<cat>' is none"):
        mos.Concept.from_lora(file, tiny_base, "<cat>")
    assert mos.Concept.from_lora(file, tiny_base, "", phrase="sks cat", verbose=False).phrase == "sks cat"
    assert mos.Concept.from_lora(file, tiny_base, "cat", verbose=False).phrase == "cat"


def test_what_was_cut_is_read_back_as_text(tiny_base):
    tokens = tiny_base.tokens - 2
    bound = bind(tiny_base.tokenizer, ["cat " * tokens + "zebra <bibi1> <bibi1> dog"], ["<bibi1>"])
    assert bound.cut == ["zebra <bibi1> <bibi1> dog"] and bound.ids.shape == (1, tiny_base.tokens)
    assert torch.equal(bound.slots, torch.full_like(bound.slots, -1))
