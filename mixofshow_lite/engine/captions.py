"""How captions are varied while tuning, as in the official code (its two text augmentations).

    shuffle     "<a1> <a2>, a hat, a lake"  ->  "<a1> <a2>, a lake, a hat"      the first part stays
    template    "<a1> <a2>, a hat"          ->  "a good photo of the <a1> <a2>, a hat"

The templates are the common ones of Textual Inversion [9], here as opening -> how it goes on.
"""

import re

import torch

from .recipes import Recipe

OBJECT = {
    "a photo of": "a|the|my|one|a clean|the clean|a dirty|a cool|the cool|a nice|the nice|a small|the small|"
    "the weird|the large",
    "the photo of": "a",
    "a rendering of": "a",
    "a rendition of": "a|the",
    "a cropped photo of": "a|the",
    "a close-up photo of": "a|the",
    "a good photo of": "a|the",
    "a bright photo of": "the",
    "a dark photo of": "the",
}
HUMAN = {
    "a photo of": "a|one|the|a weird|a nice|a cool",
    "the photo of": "a",
    "a rendering of": "a",
    "a rendition of": "a|the",
    "a cropped photo of": "a|the",
    "a bad photo of": "a|the",
    "a weird photo of": "a",
    "a good photo of": "a|the",
    "a bright photo of": "the|the",  # twice officially
}
TEMPLATES = {
    kind: [f"{opening} {article} " for opening, articles in table.items() for article in articles.split("|")]
    for kind, table in (("object", OBJECT), ("human", HUMAN))
}
PHOTO_OF = re.compile(r"^(a |the )?photo of (a |the )?")  # says nothing: a template may take its place


def reworded(caption: str, phrase: str, recipe: Recipe, generator: torch.Generator) -> str:
    """A caption as the recipe varies it. Templates go before captions that begin with the concept's `phrase`, or with
    "photo of a" and it; others say already what kind of picture they are, and stay.
    """
    if recipe.shuffle:
        first, *rest = (part.strip() for part in caption.split(","))
        order = torch.randperm(len(rest), generator=generator).tolist()
        caption = ", ".join([first, *(rest[i] for i in order)])
    if recipe.templates is not None:
        templates = TEMPLATES[recipe.templates]
        chosen = templates[torch.randint(len(templates), (), generator=generator)]
        bare = PHOTO_OF.sub("", caption)
        if bare.startswith(phrase):
            caption = chosen + bare
    return caption
