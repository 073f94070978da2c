"""A copy is a copy: it shares the base's memory, and nothing that is done to the copy reaches the base."""

import pytest
import torch
from tiny import make_concept

NETS = ("text_encoder", "unet", "vae")


def tensors(model):
    """Every parameter and buffer of a model."""
    return [t for net in NETS for t in (*getattr(model, net).parameters(), *getattr(model, net).buffers())]


def test_a_copy_shares_the_memory_of_all_weights_and_none_of_the_objects(tiny_base):
    pairs = list(zip(tensors(tiny_base.copy()), tensors(tiny_base), strict=True))
    assert all(a is not b and a.data_ptr() == b.data_ptr() for a, b in pairs)
    assert all(type(a) is type(b) and a.requires_grad == b.requires_grad for a, b in pairs)


def test_a_copy_has_the_same_modules_and_settings(tiny_base):
    for net in NETS:
        mine, theirs = getattr(tiny_base.copy(), net), getattr(tiny_base, net)
        assert mine is not theirs and str(mine) == str(theirs) and str(mine.config) == str(theirs.config)
        assert not set(map(id, mine.modules())) & set(map(id, theirs.modules()))
        assert [name for name, _ in mine.named_parameters()] == [name for name, _ in theirs.named_parameters()]


def test_tied_weights_stay_tied_in_a_copy(tiny_base):
    model = tiny_base.copy()
    first, second = model.unet.down_blocks[0].resnets
    second.conv1.weight = first.conv1.weight
    first, second = model.copy().unet.down_blocks[0].resnets
    assert first.conv1.weight is second.conv1.weight


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.pipeline().to(torch.bfloat16),
        lambda model: model.unet.half(),
        lambda model: model.vae.half(),
        lambda model: model.text_encoder.to(torch.float64),
        lambda model: [getattr(model, net).to("meta") for net in NETS],  # as .to("cuda") moves them
    ],
)
def test_the_precision_and_the_device_of_a_copy_are_its_own(tiny_base, change):
    before = [(t.dtype, t.device, t.data_ptr()) for t in tensors(tiny_base)]
    for model in (tiny_base.copy(), tiny_base.with_concept(make_concept(tiny_base))):
        change(model)
        assert {(t.dtype, t.device) for t in tensors(model)} != {(torch.float32, torch.device("cpu"))}
        assert [(t.dtype, t.device, t.data_ptr()) for t in tensors(tiny_base)] == before


def test_the_scheduler_and_the_words_of_a_copy_are_its_own(tiny_base):
    one = tiny_base.with_concept(make_concept(tiny_base))
    other = one.copy()
    other.words["<bibi1>"].zero_()
    other.scheduler.alphas_cumprod.zero_()
    assert one.words["<bibi1>"].any() and tiny_base.scheduler.alphas_cumprod.any()


def test_a_model_owns_the_rows_of_its_words(tiny_base):
    concept = make_concept(tiny_base)
    one = tiny_base.with_concept(concept)
    before = one.words["<bibi1>"].clone()
    concept.embeddings["<bibi1>"].zero_()
    assert torch.equal(one.words["<bibi1>"], before)
    one.words["<bibi2>"].zero_()
    assert concept.embeddings["<bibi2>"].any()
