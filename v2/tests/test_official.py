"""As in the official code, where we say so: its configurations, its recordings, and answers measured with it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import make_concept

import mixofshow_lite as mos
from mixofshow_lite import tuning as paper_tuning
from mixofshow_lite.engine import captions, lora, tuning, views, wording
from mixofshow_lite.engine.attention_loss import outside_attention
from mixofshow_lite.engine.fusion import Memory, Settings, gradient_fusion
from mixofshow_lite.engine.recipes import RECIPES, SD15, Recipe, recipe_for
from mixofshow_lite.engine.views import Views
from mixofshow_lite.model import denoising_loss

# name -> rate of the words, steps (None: 500 per picture / batch), batch, noise offset, attention, density, limit
OFFICIAL = {
    "textual_inversion": (1e-3, 500, 2, 0.0, 0.0, 0.0, None),
    "p_plus": (1e-3, 500, 2, 0.0, 0.0, 0.0005, None),
    "lora": (5e-4, 500, 2, 0.0, 0.0, 0.0, None),
    "custom_diffusion": (8e-5, 250, 4, 0.0, 0.0, 0.0, None),
    "ed_lora": (1e-3, None, 4, 0.01, 0.0025, 0.0, 1.5),
    "ed_lora_research": (1e-3, 1000, 4, 0.01, 0.0, 0.0005, None),
    "ed_lora_research_object": (1e-3, 500, 2, 0.01, 0.0, 0.0005, None),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_recipes_of_stable_diffusion_are_the_configurations_they_name(tiny_base, name):
    recipe = recipe_for(tiny_base, name)
    limits = (recipe.attention, recipe.density, recipe.freeze_norm)
    assert (recipe.lr_words, recipe.steps, recipe.batch, recipe.noise_offset, *limits) == OFFICIAL[name]
    assert recipe.source.startswith("main branch" if name == "ed_lora" else "research branch")
    assert recipe.background == (0.0 if name == "ed_lora" else 1.0)
    assert recipe.posterior and recipe.name == name
    if recipe.unet_lora is not None and recipe.rank is not None:
        assert (recipe.lr_text, recipe.lr_unet, recipe.rank) == (1e-5, 1e-4, 4)


def test_the_engine_and_the_papers_file_have_one_table():
    """Whatever both have a field for is equal in both."""
    for name, recipe in paper_tuning.RECIPES.items():
        for field, value in vars(recipe).items():
            assert getattr(SD15[name], field) == value, (name, field)


def test_what_else_the_configurations_say():
    assert set(SD15) == set(OFFICIAL)
    assert (SD15["custom_diffusion"].init, SD15["custom_diffusion"].prior) == (("ktn",), 200)
    assert SD15["custom_diffusion"].prior_weight == 0.25 and not SD15["custom_diffusion"].decay
    assert SD15["ed_lora_research_object"].drop_context == 0.2 and SD15["ed_lora_research"].drop_context == 0.0
    framings = {name: recipe.framing for name, recipe in SD15.items() if recipe.framing != "zoom"}
    assert framings == {"ed_lora": "person", "ed_lora_research": "person", "custom_diffusion": "custom_diffusion"}
    assert SD15["lora"].zoom == (1.0, 1.0)  # the short side fills the frame
    assert {recipe.source for recipe in RECIPES.values()} == {"pocket"}


def test_a_recipe_of_stable_diffusion_is_not_for_pocket(tiny_base):
    pocket = replace(tiny_base, base_id="pocket-v1")
    with pytest.raises(ValueError, match="no recipe 'ed_lora_research' for the pocket model: choose one of textual"):
        recipe_for(pocket, "ed_lora_research")


def test_what_is_added_to_the_loss_weighs_as_much_as_officially(tiny_base):
    """The official loss of a picture is sum(error * mask) / sum(mask) with a mask of one channel, and 0.01 times the
    attention term beside it: our mean over the channels with our weight has the same ratio, so AdamW sees the same.
    """
    z, noise, t = torch.randn(2, 4, 8, 8), torch.randn(2, 4, 8, 8), torch.tensor([100, 700])
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., 2:6, 1:7] = 1
    context = tiny_base.context(["a red cat", "a dog"])
    with torch.no_grad():
        ours = denoising_loss(tiny_base, z, context, noise, t, mask, each=True)
        a = tiny_base.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
        error = (tiny_base.unet(a.sqrt() * z + (1 - a).sqrt() * noise, t, context).sample - noise).square()
    official = (error * mask).sum((1, 2, 3)) / mask.sum((1, 2, 3))
    assert SD15["ed_lora"].attention / ours == pytest.approx(0.01 / official, rel=1e-4)
    # Custom Diffusion's pictures have that loss, its prior the mean.
    assert SD15["custom_diffusion"].prior_weight / ours == pytest.approx(1.0 / official, rel=1e-4)
    assert SD15["p_plus"].density / ours == pytest.approx(0.002 / official, rel=1e-4)


def test_the_density_of_words_is_the_official_one():
    """Its KDELoss gives -3.4409 on these rows, with a gradient of norm 0.87575."""
    generator = torch.Generator().manual_seed(0)
    table, rows = 0.2 * torch.randn(50, 6, generator=generator), 0.4 * torch.randn(3, 6, generator=generator)
    rows.requires_grad_(True)
    loss = wording.density_loss(rows, table, bandwidth=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(-3.440903, rel=1e-5)
    assert rows.grad.norm().item() == pytest.approx(0.875748, rel=1e-4)
    assert rows.grad[0].tolist() == pytest.approx([0.1262, 0.2491, 0.1249, 0.0958, 0.1979, 0.0190], abs=1e-4)


def test_the_full_identity_asks_the_last_word_to_fill_the_mask():
    inside = torch.zeros(2, 1, 4, 4)
    inside[0, :, :2] = 1
    inside[1] = 1  # no mask: nothing to ask
    maps = [torch.rand(2, 2, 16, generator=torch.Generator().manual_seed(0)) for _ in range(3)]
    mean = torch.stack(maps).mean(0)[0]  # (W, T) of the first picture
    mean = mean / mean.amax(dim=1, keepdim=True)
    filled = (mean[1] - inside[0].flatten()).square().mean()
    found = outside_attention(maps, inside, full_identity=True)
    assert found[0] == pytest.approx(float(mean[0, 8:].mean() + filled), rel=1e-5) and found[1] == 0
    assert found[0] != pytest.approx(float(outside_attention(maps, inside)[0]), rel=1e-2)


def test_keys_and_values_are_left_out_at_their_rate(tiny_base):
    model = tiny_base.copy()
    tuning.attach(model, replace(RECIPES["ed_lora"], down_std=0.25), seed=0)
    layers = lora.attached(model.unet)
    first = torch.cat([layer.lora_A["default"].weight.flatten() for layer in layers.values()])
    assert first.std().item() == pytest.approx(0.25, rel=0.05)  # the research branch's start, 1 / r
    generator, dropped = torch.Generator().manual_seed(0), Counter()
    for _ in range(50):
        tuning.drop_context(model, 0.2, generator)
        dropped.update(name for name, layer in layers.items() if layer.scaling["default"] == 0)
    assert len(dropped) == 32 and all("attn2.to_k" in name or "attn2.to_v" in name for name in dropped)
    assert sum(dropped.values()) / (50 * 32) == pytest.approx(0.2, abs=0.03)


def test_a_research_recipe_tunes_all_the_same(tiny_base, tmp_path):
    """Its density, start and dropping in one short run: the words are pulled back, and the losses say so."""
    for i in range(2):
        Image.new("RGB", (64, 96), (200, 40 * i, 0)).save(tmp_path / f"{i}.png")
        (tmp_path / f"{i}.txt").write_text("<TOK>, a hat, a beach")
    data, losses = mos.ConceptData(tmp_path, class_word="robot"), {}
    for weight in (0.0, 1.0):
        recipe = replace(SD15["ed_lora_research_object"], density=weight, variants=2)
        seen = losses.setdefault(weight, [])
        concept = mos.tune(tiny_base, data, recipe, steps=2, progress=False, callback=seen.append)
        assert concept.recipe == "ed_lora_research_object"
    rows = wording.init_rows(tiny_base, recipe, concept.words, "robot", seed=0)
    table = tiny_base.text_encoder.get_input_embeddings().weight
    crowded = wording.density_loss(torch.cat(list(rows.values())), table).item()
    assert losses[1.0][0]["loss"] - losses[0.0][0]["loss"] == pytest.approx(crowded, rel=1e-3)


def test_the_papers_recording_has_the_official_rows_and_prompts(tiny_base):
    """Per concept of two words: 176 rows in the text encoder (16 prompts of 7 tokens and 16 of 4), 6 in keys and values
    (two words and the end, twice), and 20 steps of one picture (81,920 rows in the largest layer at 512 px).
    """
    concept, memory = make_concept(tiny_base), Memory()
    gradient_fusion(tiny_base, [concept], recording="paper", memory=memory, progress=False)
    rows = {stage: Counter(memory.kept["bibi", stage].rows.values()) for _, stage in memory.kept}
    assert set(rows["text encoder"]) == {176} and set(rows["keys and values"]) == {6}
    assert set(rows["spatial layers"]) == {20 * cells for cells in (64, 16, 4, 1)}
    settings = Settings.of("paper")
    both, one = [f"photo of a {concept.phrase}", concept.phrase], [f"photo of a {concept.phrase}"]
    assert settings.contexts(concept) == settings.contexts(concept, "keys and values") == both
    assert settings.contexts(concept, "spatial layers") == one
    assert (settings.guidance, settings.steps) == (1.0, 20)


def test_the_rows_of_keys_and_values_are_those_of_the_words_and_the_end(tiny_base, concept):
    """Second way: the features at those places, multiplied out; the seventh token of the first prompt is the end."""
    memory = Memory()
    gradient_fusion(tiny_base, [concept], recording="paper", memory=memory, progress=False, steps=1)
    seen = memory.kept["bibi", "keys and values"].grams
    fused = gradient_fusion(tiny_base, [concept], recording="paper", memory=memory, progress=False, steps=1)
    a, b = fused.context([f"photo of a {concept.phrase}", concept.phrase])  # (L, N, D) each
    for layer, name in enumerate(tiny_base.layers):
        rows = torch.cat([a[layer, [4, 5, 6]], b[layer, [1, 2, 3]]]).double()
        assert torch.allclose(seen[f"{name}.context"], rows.T @ rows / 6, rtol=1e-3, atol=1e-4)


def test_recordings_that_differ_are_not_mixed_up(tiny_base):
    assert Settings.of("paper").recording() != Settings().recording()
    assert Settings.of("paper", words_only=False).recording() != Settings.of("paper").recording()
    assert Settings(**Settings.of("paper").as_dict()).recording() == Settings.of("paper").recording()
    assert mos.CenterNode(tiny_base, recording="paper").settings == Settings.of("paper")
    with pytest.raises(ValueError, match="recording='papers' is unknown"):
        Settings.of("papers")


def test_each_network_has_its_own_alpha(tiny_base, concept):
    one = tiny_base.with_concept(concept.scaled(text_encoder=0.5, unet=0.25))
    for net, alpha in (("text_encoder", 0.5), ("unet", 0.25)):
        before, after = (lora.attention_linears(getattr(model, net)) for model in (tiny_base, one))
        for name, (down, up) in concept.lora[net].items():
            assert torch.allclose(after[name].weight, before[name].weight + alpha * up @ down, atol=1e-5)
    assert one.words.keys() == dict.fromkeys(concept.words).keys()


def test_captions_are_varied_as_officially():
    assert (len(captions.TEMPLATES["object"]), len(captions.TEMPLATES["human"])) == (27, 19)
    assert {"a photo of my ", "a dark photo of the ", "a rendition of the "} <= set(captions.TEMPLATES["object"])
    assert Counter(captions.TEMPLATES["human"])["a bright photo of the "] == 2
    recipe, generator = Recipe("x", templates="human", shuffle=True), torch.Generator().manual_seed(0)
    found = {captions.reworded("<a>, a hat, a lake", "<a>", recipe, generator) for _ in range(300)}
    orders = {caption.partition("<a>")[2] for caption in found}
    assert orders == {", a hat, a lake", ", a lake, a hat"}
    assert {caption.partition("<a>")[0] for caption in found} == set(captions.TEMPLATES["human"])
    plain = captions.reworded("a photo of a <a> on the moon", "<a>", recipe, generator)
    assert plain.endswith("<a> on the moon") and plain.count("photo of") + plain.count("rend") == 1
    assert captions.reworded("a watercolour of <a>", "<a>", recipe, generator) == "a watercolour of <a>"
    assert captions.reworded("<a>, b, c", "<a>", Recipe("x"), generator) == "<a>, b, c"


def test_a_portrait_keeps_its_top():
    """A picture of 40 x 100 whose rows say how far down they are: a crop starts at the top, the whole is never cut."""
    rows = np.repeat(np.arange(100, dtype=np.uint8)[:, None], 40, 1) + 100
    picture, mask = Image.fromarray(rows).convert("RGB"), Image.new("L", (40, 100), 255)
    generator, heights = torch.Generator().manual_seed(0), []
    for _ in range(60):
        view, _, frame = views.person_view(picture, mask, (64, 64), generator)
        inside = np.asarray(frame) == 255
        shown = np.asarray(view)[..., 0][inside]
        assert shown.min() <= 102  # the top is there
        heights.append(shown.max() - 99)
        assert max(inside.any(0).sum(), inside.any(1).sum()) == 64  # as large as the frame allows
    whole = sum(height > 97 for height in heights) / 60
    assert 0.4 < whole < 0.75 and min(heights) < 55  # half whole, some nearly square


def test_a_landscape_becomes_a_square_at_any_place_or_is_whole():
    columns = np.repeat(np.arange(100, dtype=np.uint8)[None], 40, 0) + 100
    picture, mask = Image.fromarray(columns).convert("RGB"), Image.new("L", (100, 40), 255)
    generator, starts = torch.Generator().manual_seed(0), set()
    for _ in range(40):
        view, _, frame = views.person_view(picture, mask, (64, 64), generator)
        if np.asarray(frame).min() == 255:  # a square fills the frame
            starts.add(int(np.asarray(view)[..., 0].min()) // 10)
    assert len(starts) > 3


def test_custom_diffusions_zooms_and_what_they_are_called():
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(600):
        (zoom, again), opening = views.custom_zoom(generator)
        assert zoom == again
        seen.append((zoom, opening))
    small = [(z, o) for z, o in seen if z < 0.6]
    close = [(z, o) for z, o in seen if z > 1]
    assert {o for _, o in small} == {"a far away ", "very small "} and min(z for z, _ in small) >= 1 / 3
    assert {o for _, o in close} == {"zoomed in ", "close up "} and all(1.2 <= z <= 1.4 for z, _ in close)
    assert all(z == 1 and not o for z, o in seen if 0.6 <= z <= 1)
    assert len(close) / 600 == pytest.approx(1 / 3, abs=0.06)
    assert len(small) / 600 == pytest.approx(2 / 3 * 0.4, abs=0.06)


def test_latents_are_drawn_from_the_posterior(tiny_base):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    mean, deviation = tiny_base.posterior([picture])
    assert torch.equal(mean, tiny_base.encode_images([picture])) and (deviation > 0).all()
    blank = torch.ones(1, 1, 8, 8)
    found = Views(mean, blank, blank, ["x"], 1, 0, False, deviation)
    entries, generator = torch.zeros(400, dtype=torch.long), torch.Generator().manual_seed(0)
    drawn = found.latents_of(entries, generator)
    assert torch.allclose(drawn.std(dim=0), deviation[0], rtol=0.25)
    assert torch.allclose(drawn.mean(dim=0), mean[0], atol=0.25 * deviation.max().item())
    state = generator.get_state()
    assert torch.equal(replace(found, deviation=None).latents_of(entries[:1], generator), mean)
    assert torch.equal(generator.get_state(), state)  # other recipes draw what they always drew
