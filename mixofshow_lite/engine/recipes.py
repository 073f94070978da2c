"""Five recipes of one loop (paper 3.1, 3.3.1), as data: what is tuned, how it starts and how fast it goes.

    recipe              words              weights                                      paper
    textual_inversion   V                  none                                         Textual Inversion [9]
    p_plus              V+                 none                                         P+ [4]
    lora                V                  LoRA on text encoder and U-Net               LoRA [3]
    ed_lora             V_rand+ V_class+   LoRA on text encoder and U-Net               ED-LoRA, the paper's
    custom_diffusion    V, then the class  whole cross-attention keys and values        Custom Diffusion [11]

`RECIPES` has the pocket model's numbers, `PAPER` and `PAPER_CUSTOM` the official code's for Stable Diffusion 1.5.
"""

from dataclasses import dataclass, replace

from ..model import DiffusionModel


@dataclass(frozen=True)
class Recipe:
    """What is tuned and how fast; the default numbers are the pocket model's."""

    name: str
    init: tuple[str, ...] = ("rand", "class")  # one word each: random, or the class word's own embedding
    layerwise: bool = True  # V+ (a row per cross-attention layer) or V (one row for all)
    class_after: bool = False  # prompts name the concept "<v> rabbit", the class word itself untrained
    text_lora: bool = True  # LoRA on the text encoder
    unet_lora: str | None = ""  # which U-Net attention linears get one (a regular expression; "" all), None: none
    rank: int | None = 4  # r; None trains whole updates
    lr_words: float = 1e-2
    lr_text: float = 5e-4
    lr_unet: float = 4e-3
    weight_decay: float = 0.01
    decay: bool = True  # learning rates fall linearly to 0; False: they stay
    steps: int | None = 200  # None: 500 pictures seen per picture given, as in the official code
    batch: int = 6
    noises: int = 1  # times each drawn picture is in the batch, every time with its own noise; its prompt is read once
    noise_offset: float = 0.01
    background: float = 1.0  # loss weight outside the mask: 1 is Eq. 1, 0 the official masked loss
    attention: float = 0.0  # weight of the attention regularisation; needs masks, see attention_loss.py
    variants: int = 1  # cached views of each picture: the centred crop, and variants - 1 random ones
    zoom: tuple[float, float] = (1.0, 1.0)  # size of random views: 1 fills the frame, less leaves an unused border
    flip: bool = False  # also learn from mirrored pictures; only for concepts that are symmetric
    prior: int = 0  # pictures of the class drawn by the base itself, one seen beside each of the concept's
    prior_weight: float = 1.0  # of their loss
    freeze_norm: float | None = None  # the rows stop once their mean norm is this many times a random row's at first


# Recipe.freeze_norm on pocket: words end at a length of 1.7, where the model's own have 0.9 to 1.1, a random row 0.42.
# One row that has to say everything reaches it after some 30 steps, the 32 of an ED-LoRA do not (1.67 of fourteen at
# most). paper.word_length measures what that does; the official factor, 1.5 times a word of the model's, would be 3.25.
FREEZE_NORM = 4.09

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("textual_inversion", init=("class",), layerwise=False, text_lora=False, unet_lora=None, steps=300),
        Recipe("p_plus", init=("class",), text_lora=False, unet_lora=None, steps=300),
        Recipe("lora", init=("class",), layerwise=False, freeze_norm=FREEZE_NORM),
        Recipe("ed_lora", freeze_norm=FREEZE_NORM),
        Recipe(
            "custom_diffusion",
            init=("rand",),
            layerwise=False,
            class_after=True,
            text_lora=False,
            unet_lora=r"attn2\.to_[kv]$",
            rank=None,
            lr_unet=5e-4,
            steps=300,
            batch=3,
            prior=24,
        ),
    )
}

# The official configuration 8101_EDLoRA_potter. Its pictures are shown whole with a border half of the time, cropped to
# their short side otherwise: for a 2:3 portrait that is a zoom of 0.67 to 1. It draws a new view at each step; here a
# few are encoded once.
PAPER = {
    "lr_words": 1e-3,
    "lr_text": 1e-5,
    "lr_unet": 1e-4,
    "steps": None,
    "batch": 4,
    "background": 0.0,
    "attention": 0.01,
    "variants": 8,
    "zoom": (0.67, 1.0),
    "freeze_norm": 1.5,  # 0.55 officially, where a random row starts at 0.013 * sqrt(768) = 0.36
}

# The official repository's Custom Diffusion (its catA): 2e-5 times a batch of 4, a third to 1.4 of the frame, mirrored.
# The words it adds to a caption with the zoom ("very small", "close up") are left out.
PAPER_CUSTOM = PAPER | {
    "lr_words": 8e-5,
    "lr_unet": 8e-5,
    "decay": False,
    "steps": 250,
    "background": 1.0,
    "attention": 0.0,
    "zoom": (0.33, 1.4),
    "flip": True,
    "prior": 200,
    "freeze_norm": None,
}


def recipe_for(base: DiffusionModel, recipe: str | Recipe) -> Recipe:
    """A recipe by name with the numbers that suit the base; a Recipe is taken as it is."""
    if isinstance(recipe, Recipe):
        return recipe
    if recipe not in RECIPES:
        raise ValueError(f"There is no recipe {recipe!r}: choose one of {', '.join(RECIPES)}.")
    found = RECIPES[recipe]
    if base.base_id.startswith("pocket"):
        return found
    found = replace(found, **(PAPER_CUSTOM if found.prior else PAPER))
    return found if found.text_lora or found.unet_lora is not None else replace(found, freeze_norm=None)
