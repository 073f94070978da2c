"""W = W0 + alpha B A on peft (paper 3.1)."""

import pytest
import torch
from peft.tuners.lora import Linear
from torch import nn

from mixofshow_lite.engine import lora


def test_every_attention_linear_of_both_networks_and_nothing_else(tiny_base):
    unet, text = lora.attention_linears(tiny_base.unet), lora.attention_linears(tiny_base.text_encoder)
    assert len(unet) == 16 * 2 * 4 and len(text) == tiny_base.text_encoder.config.num_hidden_layers * 4
    assert "encoder.layers.0.self_attn.q_proj" in text  # no `text_model.` whatever the version of transformers
    assert "mid_block.attentions.0.transformer_blocks.0.attn2.to_out.0" in unet
    with pytest.raises(ValueError, match="no attention linears"):
        lora.attention_linears(nn.Sequential(nn.Linear(2, 2)))


def test_a_share_owns_its_modules_but_not_its_weights(tiny_base):
    before = {name: weight.clone() for name, weight in tiny_base.unet.named_parameters()}
    shared = lora.share(tiny_base.unet)
    pairs = zip(tiny_base.unet.parameters(), shared.parameters(), strict=True)
    assert all(a is b for a, b in pairs) and shared.conv_in is not tiny_base.unet.conv_in
    name, linear = next(iter(lora.attention_linears(shared).items()))
    lora.add_deltas(shared, {name: torch.ones_like(linear.weight)})
    assert torch.equal(lora.attention_linears(shared)[name].weight, before[f"{name}.weight"] + 1)
    assert all(torch.equal(weight, before[n]) for n, weight in tiny_base.unet.named_parameters())


@pytest.mark.parametrize("net", ["text_encoder", "unet"])
def test_attached_at_the_start_changes_nothing(tiny_base, net):
    model = tiny_base.copy()
    module = getattr(model, net)
    layers = lora.attach(module, rank=3)
    assert all(layer.lora_A["default"].weight.shape[0] == 3 for layer in layers.values())
    trainable = {name for name, weight in module.named_parameters() if weight.requires_grad}
    assert len(trainable) == 2 * len(layers) and all("lora_" in name for name in trainable)
    prompt = "a red cat"
    assert torch.equal(features(model, prompt), features(tiny_base, prompt))
    originals = lora.attention_linears(getattr(tiny_base, net))
    assert all(layer.get_base_layer().weight is originals[name].weight for name, layer in layers.items())


@torch.no_grad()
def features(model, prompt):
    """What the U-Net predicts for a fixed latent, through both networks."""
    context = model.context(prompt)
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    return model.unet(z, 500, context).sample


def draw(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rank", [4, None])  # trained factors; a frozen identity and a whole update
@pytest.mark.parametrize("precision", [torch.float64, torch.bfloat16])
def test_our_layer_has_the_output_and_the_gradients_of_peft_s_own(rank, precision):
    half, found = precision == torch.bfloat16, []
    for kind in (Linear, lora.LowRankLinear):
        net = nn.ModuleDict({"attn1": nn.ModuleDict({"to_q": nn.Linear(6, 5)})}).requires_grad_(False)
        net.load_state_dict({name: draw(weight.shape, 4) for name, weight in net.state_dict().items()})
        layer = lora.attach(net, rank, layer=kind)["attn1.to_q"]
        assert type(layer) is kind
        lora.scale(net, 0.7)
        factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        for factor in factors:
            factor.data = draw(factor.shape, 5) if factor.requires_grad else factor.data
        net.to(torch.float32 if half else precision)
        x = draw((2, 3, 6), 6).to(precision).requires_grad_()
        with torch.autocast("cpu", precision, enabled=half):
            y = layer(x)
        (y * draw(y.shape, 7)).sum().backward()
        found.append([y, *(tensor.grad for tensor in (x, *factors))])
    for theirs, ours in zip(*found, strict=True):
        assert (theirs is None) == (ours is None)
        if theirs is not None:
            assert ours.dtype == theirs.dtype
            assert torch.allclose(ours, theirs, rtol=0.02 if half else 1e-12, atol=0.05 if half else 1e-12)


def test_peft_by_hand_and_merged_agree_at_any_alpha(tiny_base):
    """Training's path (peft), a concept's path (add_deltas) and W0 x + alpha B A x by hand are one function."""
    model, generator = tiny_base.copy(), torch.Generator().manual_seed(1)
    for net in (model.text_encoder, model.unet):
        for layer in lora.attach(net, rank=2).values():
            up = layer.lora_B["default"].weight
            up.data = torch.randn(up.shape, generator=generator)
    factors = {net: lora.extract(getattr(model, net)) for net in ("text_encoder", "unet")}
    for alpha in (0.0, 0.5, 1.0):
        for net in (model.text_encoder, model.unet):
            lora.scale(net, alpha)
        merged = tiny_base.copy()
        for net, pairs in factors.items():
            deltas = {name: lora.delta(down, up, alpha) for name, (down, up) in pairs.items()}
            lora.add_deltas(getattr(merged, net), deltas)
        assert torch.allclose(features(model, "a red cat"), features(merged, "a red cat"), atol=1e-4)
        changed = (features(merged, "a red cat") - features(tiny_base, "a red cat")).abs().max()
        assert changed > 0.01 if alpha else changed < 1e-5
    name, layer = next(iter(lora.attached(model.unet).items()))
    down, up = factors["unet"][name]
    x = torch.randn(5, down.shape[1], generator=generator)
    W0 = lora.attention_linears(tiny_base.unet)[name]
    by_hand = x @ W0.weight.T + (0 if W0.bias is None else W0.bias) + x @ down.T @ up.T
    assert torch.allclose(layer(x), by_hand, atol=1e-5)


def test_whole_updates_start_at_zero_and_only_up_is_trained(tiny_base):
    model = tiny_base.copy()
    layers = lora.attach(model.unet, rank=None, only=r"attn2\.to_[kv]$")
    assert len(layers) == 2 * 16
    D = tiny_base.text_encoder.config.hidden_size
    for down, up in lora.extract(model.unet).values():
        assert torch.equal(down, torch.eye(D)) and not up.any()
    assert {n.rsplit(".", 3)[1] for n, w in model.unet.named_parameters() if w.requires_grad} == {"lora_B"}
    with pytest.raises(ValueError, match="select some"):
        lora.attach(tiny_base.copy().unet, rank=4, only="nothing like it")


def test_updates_of_another_architecture_are_refused(tiny_base):
    unet = tiny_base.copy().unet
    with pytest.raises(ValueError, match="another architecture"):
        lora.add_deltas(unet, {"down_blocks.9.to_q": torch.zeros(2, 2)})
    name = next(iter(lora.attention_linears(unet)))
    with pytest.raises(ValueError, match="another base model"):
        lora.add_deltas(unet, {name: torch.zeros(2, 2)})
