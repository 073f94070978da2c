"""What the tests of the eight paper files share: a tiny model, random concepts and toy pictures, made by them alone."""

import functools

import torch
from diffusers import StableDiffusionPipeline
from PIL import Image

from mixofshow_lite.diffusion import Model, from_pipeline
from mixofshow_lite.lora import Concept, attention_linears
from mixofshow_lite.tuning import Pictures

PROMPTS = ["a photo of <bibi1> <bibi2> on the beach", "<bibi2>", "a red cat"]


@functools.cache
def load_model(folder) -> Model:
    """The tiny base of tests/tiny.py. No test may change it."""
    return from_pipeline(StableDiffusionPipeline.from_pretrained(folder, safety_checker=None))


def random_concept(model, name="bibi", seed=0, rank=2, size=0.3, nets=("text_encoder", "unet"), pattern="") -> Concept:
    """A random ED-LoRA, strong enough to change pictures, on the layers whose names contain `pattern`."""
    generator = torch.Generator().manual_seed(seed)
    L, D = len(model.layers), model.text_encoder.config.hidden_size
    factors = {net: {} for net in nets}
    for net in nets:
        for layer, linear in attention_linears(getattr(model, net)).items():
            if pattern in layer:
                down = torch.randn(rank, linear.in_features, generator=generator) / linear.in_features**0.5
                up = size * torch.randn(linear.out_features, rank, generator=generator)
                factors[net][layer] = (down, up)
    words = (f"<{name}1>", f"<{name}2>")
    embeddings = {word: 0.3 * torch.randn(L, D, generator=generator) for word in words}
    return Concept(name, words, "rabbit", embeddings, factors)


def toy_pictures(model, phrase: str, P: int = 3) -> Pictures:
    """P random latents, captions that name the concept, and masks of different sizes."""
    generator = torch.Generator().manual_seed(5)
    masks = torch.zeros(P, 1, 8, 8)
    for i in range(P):
        masks[i, :, 2 : 6 + i, 1:5] = 1
    prompts = [f"a photo of {phrase}", f"{phrase} on the beach", f"a photo of the {phrase} in the forest"]
    return Pictures(torch.randn(P, 4, 8, 8, generator=generator), prompts[:P], masks)


def weights_of(model) -> dict[str, torch.Tensor]:
    """Every attention weight of both networks, name -> (d_out, d_in)."""
    found = {}
    for net in ("text_encoder", "unet"):
        for name, linear in attention_linears(getattr(model, net)).items():
            found[f"{net}.{name}"] = linear.weight
    return found


def farthest(a, b) -> float:
    """The largest difference between two models' attention weights."""
    first, second = weights_of(a), weights_of(b)
    return max((first[name] - second[name]).abs().max().item() for name in first)


class ColourClip:
    """A CLIP whose space is colour: a picture is its mean colour, a text the colour it names, minus grey if none."""

    axes = {"red": (1.0, 0.0, 0.0), "green": (0.0, 1.0, 0.0), "blue": (0.0, 0.0, 1.0)}

    def __init__(self):
        self.texts = []  # all that was read

    def image_features(self, images):
        rows = []
        for image in images:
            pixels = torch.tensor(list(image.convert("RGB").tobytes())).view(-1, 3).float()
            rows.append(pixels.mean(dim=0) - 20)  # black is opposite to everything
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def text_features(self, prompts):
        self.texts += prompts
        rows = []
        for prompt in prompts:
            named = [axis for colour, axis in self.axes.items() if colour in prompt]
            rows.append(torch.tensor(named[0] if named else (-1.0, -1.0, -1.0)))
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)


def plain(*rgb) -> Image.Image:
    """A picture of one colour."""
    return Image.new("RGB", (16, 16), rgb)
