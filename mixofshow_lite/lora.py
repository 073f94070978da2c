"""Low-rank adaptation (paper 3.1): W = W0 + dW = W0 + B A, on every attention linear of both networks.

    paper               here                  shape
    W0                  linear.weight         (d_out, d_in)   of the pretrained model, frozen
    A                   down                  (r, d_in)       random at the start
    B                   up                    (d_out, r)      zero at the start: tuning begins at W0 exactly
    dW                  delta(down, up)       (d_out, d_in)   alpha * up @ down, of rank r << min(d_out, d_in)
    Phi_0 + alpha dPhi  with_concept(...)                     the whole model with a concept's updates (Fig. 3)

A LoRA is trained beside the weight (`LoRALinear`) and added into it afterwards (`add_deltas`): the same function.
Three numbers multiply it: `LoRALinear.alpha` in training (1 in every recipe), `Concept.scale` where a file asks for
one, and alpha of `with_concept`, which Fig. 3 turns from 0 to 1.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .diffusion import Model

# q, k, v and out of every attention: of the text encoder, and of the U-Net's attn1 (self) and attn2 (cross).
ATTENTION_LINEAR = re.compile(r"(^|\.)(self_attn\.(q|k|v|out)_proj|attn[12]\.(to_[qkv]|to_out\.0))$")

LoRAFactors = dict[str, tuple[Tensor, Tensor]]  # layer name -> (down (r, d_in), up (d_out, r))


@dataclass
class Concept:
    """All that a client shares (paper 3.2): a few words and low-rank updates, and no picture."""

    name: str
    words: tuple[str, ...]  # in the order in which a prompt writes them, e.g. ("<bibi1>", "<bibi2>")
    class_word: str  # what the concept is in the model's own words, e.g. "rabbit"
    embeddings: dict[str, Tensor]  # word -> (L, D)
    lora: dict[str, LoRAFactors] = field(default_factory=dict)  # "text_encoder" | "unet" -> factors
    scale: float = 1.0  # dW = scale * up @ down; alpha itself and not alpha / r, as in the official code
    phrase: str = ""  # how a prompt names the concept; by default its words in their order

    def __post_init__(self):
        self.phrase = self.phrase or " ".join(self.words)


class LoRALinear(nn.Module):
    """A frozen linear layer with a trainable low-rank update beside it.

    rank None trains the whole update, as Custom Diffusion does: `down` is the identity and stays it, so that `up` is dW
    itself, and all other code treats both kinds alike.
    """

    def __init__(self, linear: nn.Linear, rank: int | None, alpha: float = 1.0):
        super().__init__()
        self.linear = linear
        self.alpha = alpha
        r = linear.in_features if rank is None else rank
        self.down = nn.Parameter(torch.empty(r, linear.in_features))  # A
        self.up = nn.Parameter(torch.zeros(linear.out_features, r))  # B
        if rank is None:
            nn.init.eye_(self.down).requires_grad_(False)
        else:
            nn.init.kaiming_uniform_(self.down, a=math.sqrt(5))

    def forward(self, x: Tensor) -> Tensor:
        """(..., d_in) -> (..., d_out). B (A x) is computed with r columns; the matrix B A is never formed."""
        low_rank = (x @ self.down.T) @ self.up.T  # (..., d_out)
        return self.linear(x) + self.alpha * low_rank  # 3.1 W = W0 + BA


def core(net: nn.Module) -> nn.Module:
    """The module that layer names start from: older transformers wrap the text encoder once more, in `text_model`."""
    return getattr(net, "text_model", net)


def attention_linears(net: nn.Module) -> dict[str, nn.Linear]:
    """Every attention linear of a text encoder or U-Net, name -> module. ValueError if there is none."""
    found = {}
    for name, module in core(net).named_modules():
        if ATTENTION_LINEAR.search(name) and isinstance(module, nn.Linear):
            found[name] = module
    if not found:
        raise ValueError(f"{type(net).__name__} has no attention linears: give a Stable Diffusion 1.x network.")
    return found


def attach(net: nn.Module, rank: int | None, only: str = "", alpha: float = 1.0) -> dict[str, LoRALinear]:
    """Put a LoRALinear in the place of each attention linear of `net` (in place; give it a copy), name -> layer.

    `only` is a regular expression that names must contain. Raises ValueError if none does.
    """
    layers = {}
    for name, linear in attention_linears(net).items():
        if re.search(only, name):
            layers[name] = LoRALinear(linear, rank, alpha).to(linear.weight.device)
            parent, _, leaf = name.rpartition(".")
            setattr(core(net).get_submodule(parent), leaf, layers[name])
    if not layers:
        raise ValueError(f"No attention linear has a name with {only!r}: choose another pattern.")
    return layers


def extract(net: nn.Module) -> LoRAFactors:
    """The attached factors, as copies on the CPU, name -> (down (r, d_in), up (d_out, r)); alpha is put into `up`."""
    factors = {}
    for name, module in core(net).named_modules():
        if isinstance(module, LoRALinear):
            down = module.down.detach().cpu().clone()  # (r, d_in)
            up = module.alpha * module.up.detach().cpu().clone()  # (d_out, r)
            factors[name] = (down, up)
    return factors


def delta(down: Tensor, up: Tensor, alpha: float = 1.0) -> Tensor:
    """dW of factors (r, d_in) and (d_out, r) -> (d_out, d_in)."""
    return alpha * (up @ down)  # 3.1 dW = BA


def add_deltas(net: nn.Module, deltas: dict[str, Tensor]) -> None:
    """W = W0 + dW for every named layer (d_out, d_in), as new tensors: models that share the old ones keep them.

    Raises ValueError if a name or a shape does not fit, which means that the LoRA was made for another model.
    """
    layers = attention_linears(net)
    for name, dW in deltas.items():
        if name not in layers or dW.shape != layers[name].weight.shape:
            raise ValueError(f"The update of {name}, {tuple(dW.shape)}, fits no layer: load the base it was made for.")
        W0 = layers[name].weight  # (d_out, d_in)
        # Summed in the wider of both precisions, as half precision would lose small updates, and on the CPU, because an
        # Apple GPU has no float64.
        W = (W0.cpu() + dW.cpu()).to(W0.dtype).to(W0.device)
        layers[name].weight = nn.Parameter(W, requires_grad=False)


def with_words(model: Model, concepts: Sequence[Concept]) -> Model:
    """A copy that knows the concepts' words, with unchanged weights. Words do not conflict (paper 3.2), names can.

    Raises ValueError on a word that the model knows already, whatever it means there.
    """
    model = model.copy()
    for concept in concepts:
        for word, rows in concept.embeddings.items():
            if word in model.words:
                raise ValueError(f"The word {word} of {concept.name!r} is taken: give the concept another one.")
            model.words[word] = rows
    return model


def with_concept(model: Model, concept: Concept, alpha: float = 1.0) -> Model:
    """Phi_0 + alpha dPhi, with the concept's words (Fig. 3). alpha 0 is the embedding alone, Phi_0(P*)."""
    model = with_words(model, [concept])
    for net, factors in concept.lora.items():
        deltas = {}
        for name, (down, up) in factors.items():
            deltas[name] = delta(down, up, alpha * concept.scale)  # 3.3.1 Phi_0 + alpha dPhi
        add_deltas(getattr(model, net), deltas)
    return model
