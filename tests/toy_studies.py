"""What tests of studies share: a base that paints instead of drawing, concepts without weights, a reader of colours."""

import zlib
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image

from mixofshow_lite.engine.evaluation import Scorer
from mixofshow_lite.files.concept import Concept


class Eye(Scorer):
    """Stands in for CLIP: a picture is its mean colour, a prompt something as arbitrary, all of unit length."""

    def __init__(self):
        super().__init__("eye", None, None, lambda texts: torch.tensor([[len(text)] for text in texts]))

    def image_features(self, images, batch=64):
        pixels = np.stack([np.asarray(p.convert("RGB").resize((8, 8))).mean((0, 1)) for p in images])
        return torch.nn.functional.normalize(torch.tensor(pixels, dtype=torch.float32) + 1, dim=1)

    def text_features(self, prompts):
        rows = [[len(p), sum(map(ord, p)) % 97, p.count("a")] for p in prompts]
        return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32) + 1, dim=1)


def colour_of(text: str) -> tuple[int, int, int]:
    """An arbitrary colour, the same for the same text."""
    number = zlib.crc32(text.encode())
    return number % 256, number // 256 % 256, number // 65536 % 256


@dataclass
class Painter:
    """A model that paints: `keeps` of a concept's colour where its prompt names it, its own colour elsewhere."""

    name: str = "base"
    keeps: float = 0.0
    known: tuple = ()  # concepts
    size: tuple = (32, 32)
    base_id: str = "pocket-toy"
    fingerprint: str = "toy"
    guidance: float = 5.0
    words: dict = field(default_factory=dict)
    asked: list = field(default_factory=list)  # (model, prompt, seed, number of regions)

    text_encoder = unet = vae = torch.nn.Identity()  # without weights
    dtype, device, scheduler = torch.float32, torch.device("cpu"), SimpleNamespace(config={})

    def with_concept(self, concept, alpha=1.0):
        return Painter(f"{concept.name} {concept.recipe} {alpha:g}", 0.4 + 0.5 * alpha, (concept,), asked=self.asked)

    def fused(self, name, concepts, keeps):
        return Painter(name, keeps, tuple(concepts), asked=self.asked)

    def sample(self, prompt, n=1, seed=0, progress=True, regions=None, **options):
        self.asked.append((self.name, prompt, seed, len(regions or ())))
        own, drawn = np.array(colour_of(self.name)), []
        for i in range(n):
            picture = np.full((32, 32, 3), (own + 3 * i) % 256, dtype=float)
            parts = [(r.prompt, r.box) for r in regions] if regions else [(prompt, (0, 0, 1, 1))]
            for text, (left, top, right, bottom) in parts:
                for concept in self.known:
                    if concept.phrase in text:
                        share = self.keeps - 0.02 * i
                        colour = share * np.array(colour_of(concept.name)) + (1 - share) * own
                        picture[int(32 * top) : int(32 * bottom), int(32 * left) : int(32 * right)] = colour
            drawn.append(Image.fromarray(picture.astype(np.uint8)))
        return drawn


class Album:
    """The data of a concept: pictures of one colour."""

    def __init__(self, name, class_word="rabbit"):
        self.name, self.class_word = name, class_word
        self.pictures = [Image.new("RGB", (32, 32), colour_of(name))] * 3


def toy_concept(name, recipe="ed_lora", class_word="rabbit"):
    """A concept of words alone, written "<name1> <name2>"."""
    return Concept(name, (f"<{name}1>", f"<{name}2>"), class_word, recipe, {}, rank=4)


def no_tuning(asked):
    """What stands for `study.tuned`: a toy concept at once; `asked` notes (name, recipe, label)."""

    def tuned(base, data, recipe, seed, folder, label=None, steps=None, **options):
        recipe_name = recipe if isinstance(recipe, str) else recipe.name
        asked.append((data.name, recipe_name, label or recipe_name))
        return toy_concept(data.name, recipe_name, data.class_word)

    return tuned
