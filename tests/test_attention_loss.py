"""Attention regularisation: the penalty against a second computation, and what it does."""

import pytest
import torch

from mixofshow_lite.attention import cross_attention, outside_attention
from mixofshow_lite.engine.attention_loss import captured_attention
from mixofshow_lite.engine.layerwise import LayerAttention
from mixofshow_lite.engine.wording import PromptEncoder
from mixofshow_lite.files.concept import bind
from mixofshow_lite.prompts import word_places

PROMPTS = ["a photo of <bibi1> <bibi2> on the beach", "<bibi1> <bibi2>", "a red cat"]


@pytest.fixture
def scene(tiny_base, concept):
    """A model with a concept, three noisy latents, their contexts, slots and masks."""
    model = tiny_base.with_concept(concept)
    slots = bind(model.tokenizer, PROMPTS, list(concept.words)).slots
    inside = torch.zeros(3, 1, 8, 8)
    inside[0, :, 2:6, 1:5] = 1
    inside[1, :, :, :3] = 1
    inside[2] = 1
    return model, model.noise(3, 0), model.context(PROMPTS), slots, inside


@torch.no_grad()
def by_hand(model, z, context, slots, inside):
    """The penalty from the queries and keys that hooks see, one picture, word and size at a time."""
    seen, handles = {}, []
    for name, attn in cross_attention(model.unet).items():
        for side in ("to_q", "to_k"):
            put = lambda _, args, out, key=(name, side): seen.__setitem__(key, out)  # noqa: E731
            handles.append(getattr(attn, side).register_forward_hook(put))
    model.unet(z, 500, context)
    for handle in handles:
        handle.remove()
    totals = []
    for b in range(len(z)):
        total = 0.0
        for size in (8, 4, 2, 1):
            for word in (0, 1):
                (place,) = (slots[b] == word).nonzero().flatten().tolist() or [None]
                if place is None:
                    continue
                maps = []
                for name, attn in cross_attention(model.unet).items():
                    q, k = seen[name, "to_q"][b], seen[name, "to_k"][b]
                    if len(q) == size * size:
                        for h in range(attn.heads):
                            d = q.shape[1] // attn.heads
                            scores = q[:, h * d : (h + 1) * d] @ k[:, h * d : (h + 1) * d].T / d**0.5
                            maps.append(scores.softmax(1)[:, place])
                mean = torch.stack(maps).mean(0)
                mask = inside[b, 0].view(size, 8 // size, size, 8 // size).mean((1, 3)).flatten()
                if (1 - mask).sum() > 0:
                    total += ((mean / mean.max()) * (1 - mask)).sum() / (1 - mask).sum()
        totals.append(float(total))
    return torch.tensor(totals)


def test_the_penalty_by_hand(scene):
    model, z, context, slots, inside = scene
    with torch.no_grad():
        plain = model.unet(z, 500, context).sample
        with captured_attention(model.unet, word_places(slots, 2)) as maps:
            seen = model.unet(z, 500, context).sample
    assert torch.allclose(seen, plain, atol=1e-5)
    assert all(type(m.processor) is LayerAttention for m in cross_attention(model.unet).values())
    assert sorted(m.shape[2] for m in maps) == [1] + [4] * 5 + [16] * 5 + [64] * 5
    penalty = outside_attention(maps, inside)
    assert torch.allclose(penalty, by_hand(model, z, context, slots, inside), atol=1e-4)
    assert penalty[2] == 0 and (penalty[:2] > 0.1).all()
    assert (outside_attention(maps, torch.ones_like(inside)) == 0).all()


def test_a_mask_on_smaller_maps():
    inside = torch.zeros(1, 1, 8, 6)
    inside[..., :4, :2] = 1
    for T, within, outside in ((48, 1, 3), (12, 0, 1), (12, 3, 5)):  # pixels of 8 x 6 and 4 x 3
        for pixel, wanted in ((within, 0), (outside, 1)):
            look = torch.nn.functional.one_hot(torch.tensor(pixel), T).float().view(1, 1, T)
            area = T - T // 6  # of the pixels outside
            assert outside_attention([look], inside).item() == pytest.approx(wanted / area)


def test_following_the_gradient_turns_the_words_to_the_mask(scene, concept):
    """Only the rows are moved, only by the penalty: it falls."""
    model, z, _, slots, inside = scene
    rows = {word: torch.nn.Parameter(concept.embeddings[word].clone()) for word in concept.words}
    encoder = PromptEncoder(model, PROMPTS, rows, text_tuned=False)
    entries = torch.arange(2)
    optimizer = torch.optim.Adam(rows.values(), lr=0.02)
    penalties = []
    for _ in range(6):
        with captured_attention(model.unet, encoder.token_mask(entries)) as maps:
            model.unet(z[:2], 500, encoder(entries))
        penalty = outside_attention(maps, inside[:2]).sum()
        optimizer.zero_grad()
        penalty.backward()
        optimizer.step()
        penalties.append(penalty.item())
    assert penalties[-1] < penalties[0] - 0.02


def test_a_word_that_stands_twice_counts_once():
    slots = torch.tensor([[-1, 0, 1, 0, -1], [-1, -1, -1, -1, -1]])
    found = word_places(slots, 2)
    assert found[0].tolist() == [[0, 0.5, 0, 0.5, 0], [0, 0, 1, 0, 0]] and not found[1].any()
