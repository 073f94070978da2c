"""Evaluation (paper 4.3): do pictures show what the prompt says, and do they look like the concept?

    text-alignment     w * max(cos(E_image(x), E_text(P)), 0)             w = 2.5 (CLIPScore), mean over pictures
    image-alignment    max(cos(E_image(x), E_image(y)), 0)                mean over pictures and references
    upper bound        text-alignment of the pretrained model, asked for the class word
    lower bound        image-alignment of the same pictures: as similar as any other of the class
    marks kept         the part of a concept's named marks that a classifier reads from its pictures (ours)

    paper     here          shape
    E_image   clip.image_features(images)     (n, D)   of length 1
    E_text    clip.text_features(prompts)     (n, D)   of length 1
    x, y      images, references              n and m PIL pictures

Only numbers of the same CLIP can be compared; the paper's is ViT-B/32, with "A photo depicts " before every prompt.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from PIL import Image
from torch import Tensor

from .diffusion import Model, sample
from .lora import Concept

CLIPSCORE_WEIGHT = 2.5  # w of CLIPScore, which stretches its cosines to about 0..1


class Clip(Protocol):
    """A model that puts pictures and texts into one space, as rows of length 1."""

    def image_features(self, images: Sequence[Image.Image]) -> Tensor: ...  # (n, D)

    def text_features(self, prompts: Sequence[str]) -> Tensor: ...  # (n, D)


def plain_prompt(prompt: str, concepts: Sequence[Concept] = ()) -> str:
    """A prompt that CLIP can read: every concept's words become its class word ("<bibi1> <bibi2>" -> "rabbit").

    Raises ValueError if a concept word is left over: CLIP would score it as noise, without a warning.
    """
    for concept in concepts:
        prompt = prompt.replace(concept.phrase, concept.class_word)
    left = re.findall(r"<[^<>\s]+>", prompt)
    if left:
        raise ValueError(f"CLIP does not know the concept word {left[0]}: pass its concept in concepts=[...].")
    return prompt


def text_alignment(
    images: Sequence[Image.Image],
    prompt: str,
    clip: Clip,
    concepts: Sequence[Concept] = (),
    weight: float = CLIPSCORE_WEIGHT,
) -> float:
    """How well n pictures show what the prompt says, 0..weight; the concept's words are read as its class word."""
    return float(text_scores(images, plain_prompt(prompt, concepts), clip, weight).mean())


def text_scores(images: Sequence[Image.Image], prompt: str, clip: Clip, weight: float = CLIPSCORE_WEIGHT) -> Tensor:
    """The text-alignment of each picture with a prompt that CLIP can read -> (n,), 0..weight."""
    x = clip.image_features(images)  # (n, D)
    text = clip.text_features([prompt])  # (1, D)
    cosines = (x @ text.T).clamp(min=0)  # (n, 1); the rows have length 1
    return weight * cosines[:, 0]  # 4.3 text-alignment


def image_alignment(images: Sequence[Image.Image], references: Sequence[Image.Image], clip: Clip) -> float:
    """How much n pictures look like a concept's m own, 0..1: the mean over all n * m pairs, each clipped at 0."""
    return float(image_scores(images, references, clip).mean())


def image_scores(images: Sequence[Image.Image], references: Sequence[Image.Image], clip: Clip) -> Tensor:
    """The image-alignment of each picture -> (n,), 0..1: the mean over the references."""
    x = clip.image_features(images)  # (n, D)
    y = clip.image_features(references)  # (m, D)
    cosines = (x @ y.T).clamp(min=0)  # (n, m)
    return cosines.mean(dim=1)  # 4.3 image-alignment


def bounds(
    base: Model, prompt: str, concept: Concept, references: Sequence[Image.Image], clip: Clip, **sampling
) -> tuple[float, float]:
    """(upper bound of text-alignment, lower bound of image-alignment) of one prompt, as in Table 1.

    Both come from the same pictures: the pretrained model's, with the class word in the place of the concept's words.
    `sampling` is passed on to `diffusion.sample`.
    """
    class_prompt = plain_prompt(prompt, [concept])
    images = sample(base, class_prompt, **sampling)
    upper = text_alignment(images, class_prompt, clip)  # 4.3 upper bound
    lower = image_alignment(images, references, clip)  # 4.3 lower bound
    return upper, lower


def marks_kept(
    images: Sequence[Image.Image], marks: Mapping[str, str], classify: Callable[[Image.Image, str], str]
) -> float:
    """The part of a concept's marks that can be read from its pictures, 0..1. Ours, to be checked by eye.

    `marks` names them by kind, {"pattern": "stripes", "part": "cape"}; `classify(picture, "pattern")` is any classifier
    that answers which pattern it sees. Raises ValueError without pictures or without marks.
    """
    if not images or not marks:
        raise ValueError("There is nothing to read: give at least one picture and one mark.")
    found = 0
    for image in images:
        for kind, value in marks.items():
            if classify(image, kind) == value:
                found += 1
    return found / (len(images) * len(marks))  # 4.3 marks kept (ours)
