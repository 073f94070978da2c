"""Five recipes of one loop (paper 3.1, 3.3.1), as data: what is tuned, how it starts and how fast it goes.

    recipe              words              weights                                      paper
    textual_inversion   V                  none                                         Textual Inversion [9]
    p_plus              V+                 none                                         P+ [4]
    lora                V                  LoRA on text encoder and U-Net               LoRA [3]
    ed_lora             V_rand+ V_class+   LoRA on text encoder and U-Net               ED-LoRA, the paper's
    custom_diffusion    V, then the class  whole cross-attention keys and values        Custom Diffusion [11]

`RECIPES` has the pocket model's numbers. `SD15` has the official code's for Stable Diffusion 1.5: those of the paper's
file `tuning`, and what only the engine has (views, wordings, density, dropping). That code has two branches whose
numbers differ: "research", from which the paper's baselines and evaluation seem to come, and "main" (December 2023),
which tunes ED-LoRA with masks, attention regularisation and a limit on the words' length. Each recipe of `SD15` says in
`source` which configuration it is.
"""

import math
import re
from dataclasses import dataclass, replace

from ..model import DiffusionModel
from ..tuning import RECIPES as PAPER
from .arguments import check_number, check_whole, is_number, shown

FRAMINGS = ("zoom", "person", "custom_diffusion")
TEMPLATES = (None, "human", "object")
SWITCHES = ("layerwise", "class_after", "text_lora", "decay", "full_identity", "posterior", "shuffle", "flip")


@dataclass(frozen=True)
class Recipe:
    """What is tuned and how fast; the default numbers are the pocket model's."""

    name: str
    source: str = "pocket"  # where the numbers are from: measured on pocket, or an official branch and configuration
    init: tuple[str, ...] = ("rand", "class")  # one word each: random, as the class word, or as another word
    layerwise: bool = True  # V+ (a row per cross-attention layer) or V (one row for all)
    class_after: bool = False  # prompts name the concept "<v> rabbit", the class word itself untrained
    text_lora: bool = True  # LoRA on the text encoder
    unet_lora: str | None = ""  # which U-Net attention linears get one (a regular expression; "" all), None: none
    rank: int | None = 4  # r; None trains whole updates
    down_std: float | None = None  # A starts normal with this standard deviation; None: uniform, as in the main branch
    slot: int | None = None  # A is frozen, r rows of one orthogonal matrix from row slot * r on: rivals.orthogonal
    drop_context: float = 0.0  # how often a step leaves out the LoRA of a key or value layer of cross-attention
    lr_words: float = 1e-2
    lr_text: float = 1e-3
    lr_unet: float = 6e-3
    lr_spatial: float | None = None  # of U-Net layers other than cross-attention's keys and values; None: lr_unet
    null_space: tuple[int, int, int] = (0, 0, 0)  # directions of the base's inputs that updates leave alone, of text
    # encoder, keys and values, spatial layers; see null_space.py
    weight_decay: float = 0.01
    decay: bool = True  # learning rates fall linearly to 0; False: they stay
    steps: int | None = 400  # None: 500 pictures seen per picture given, as in the official code
    batch: int = 6
    noises: int = 1  # times each drawn picture is in the batch, every time with its own noise; its prompt is read once
    noise_offset: float = 0.01
    background: float = 0.2  # loss weight outside the mask: 1 is Eq. 1, 0 the official masked loss
    attention: float = 0.0  # weight of the attention regularisation; needs masks, see attention_loss.py
    full_identity: bool = False  # it asks the last word to fill the mask, for concepts whose clothes belong to them
    density: float = 0.0  # weight of `wording.density_loss`, which keeps the words where the model's own are
    bandwidth: float = 0.5  # of the kernel in it
    posterior: bool = False  # latents are drawn anew from the VAE's posterior at every step; False: its mean
    variants: int = 1  # cached views of each picture: the centred crop, and variants - 1 random ones
    framing: str = "zoom"  # of the random views: "zoom", "person" or "custom_diffusion", see views.py
    zoom: tuple[float, float] = (1.0, 1.0)  # "zoom": 1 fills the frame, less leaves an unused border
    templates: str | None = None  # captions that begin with the concept are put in one: "human", "object"
    shuffle: bool = False  # the parts of a caption between commas come in any order, the first stays
    flip: bool = False  # also learn from mirrored pictures; only for concepts that are symmetric
    prior: int = 0  # pictures of the class drawn by the base itself, one seen beside each of the concept's
    prior_weight: float = 1.0  # of their loss
    freeze_norm: float | None = None  # freeze the rows when their mean norm reaches this multiple of a random row's

    def __post_init__(self):
        for name in ("batch", "noises", "variants"):
            check_whole(f"{self.name}.{name}", getattr(self, name), most=4096)
        if self.noises > self.batch:
            raise ValueError(
                f"{self.name}.noises={self.noises}: each picture is at most {self.batch} times in the batch."
            )
        for name in ("rank", "steps"):
            if getattr(self, name) is not None:
                check_whole(f"{self.name}.{name}", getattr(self, name), most={"rank": 4096, "steps": 10**7}[name])
        check_whole(f"{self.name}.prior", self.prior, least=0, most=10**5)
        for name in ("lr_words", "lr_text", "lr_unet", "weight_decay", "attention", "density", "prior_weight"):
            check_number(f"{self.name}.{name}", getattr(self, name), 0, 1e38)
        if self.lr_spatial is not None:
            check_number(f"{self.name}.lr_spatial", self.lr_spatial, 0, 1e38)
        check_null_space(self)
        for name in ("background", "drop_context"):
            check_number(f"{self.name}.{name}", getattr(self, name), 0, 1)
        check_number(f"{self.name}.noise_offset", self.noise_offset)
        check_number(f"{self.name}.bandwidth", self.bandwidth, 1e-6)
        if self.freeze_norm not in (None, math.inf):
            check_number(f"{self.name}.freeze_norm", self.freeze_norm, 1e-6)
        if self.down_std is not None:
            check_number(f"{self.name}.down_std", self.down_std, 1e-9)
        check_choices(self)
        check_words_and_layers(self)


def check_choices(recipe: Recipe) -> None:
    """Raise ValueError where a recipe has no name, or chooses what there is not."""
    if not isinstance(recipe.name, str) or not recipe.name.strip():
        raise ValueError(f"The recipe is called {shown(recipe.name)}: give it a name, concepts say which one they had.")
    choices = {"framing": FRAMINGS, "templates": TEMPLATES} | dict.fromkeys(SWITCHES, (True, False))
    for name, there in choices.items():
        value = getattr(recipe, name)
        if not any(value is each or (value == each and isinstance(value, str)) for each in there):
            listed = ", ".join(map(repr, there))
            raise ValueError(f"{recipe.name}.{name}={shown(value)}: choose one of {listed}.")


def check_words_and_layers(recipe: Recipe) -> None:
    """Raise ValueError unless a recipe's words, layers and zooms are some."""
    init, zoom = recipe.init, recipe.zoom
    pair = isinstance(zoom, tuple | list) and len(zoom) == 2
    if not isinstance(init, tuple | list) or not init or not all(isinstance(word, str) for word in init):
        raise ValueError(f"{recipe.name}.init={shown(init)}: give how each word starts, such as ('rand', 'class').")
    if not pair or not all(is_number(each, 0.01, 100) for each in zoom) or zoom[0] > zoom[1]:
        raise ValueError(f"{recipe.name}.zoom={shown(zoom)}: give the least and the largest zoom, such as (0.9, 1.5).")
    try:
        re.compile(recipe.unet_lora or "")
    except (re.error, TypeError) as error:
        raise ValueError(f"{recipe.name}.unet_lora is no regular expression ({error}): mend it.") from error


def check_null_space(recipe: Recipe) -> None:
    """Raise ValueError unless three whole numbers say how many directions are left alone."""
    sizes = recipe.null_space
    if not isinstance(sizes, tuple | list) or len(sizes) != 3:
        raise ValueError(
            f"{recipe.name}.null_space={shown(sizes)}: give three numbers of directions, such as (8, 16, 4)."
        )
    for size in sizes:
        check_whole(f"{recipe.name}.null_space", size, least=0, most=10**5)


# Recipe.freeze_norm on pocket: words end at a length of 1.79, where the model's own have 0.8 to 1.2, a random row 0.44.
# One row that has to say everything reaches it after some 30 steps, the 32 of an ED-LoRA later. On pocket-v1, where it
# was chosen (1.7; words of 0.9 to 1.1, a random row of 0.42), no ED-LoRA reached it. paper.word_length measured there
# what it does; the factor of the official main branch, 1.5 times a word of the model's, would have been 3.25; its
# research branch has no limit.
FREEZE_NORM = 4.09

# LoRAs that can be fused, on pocket: they leave alone what every prompt has in common (null_space.py), and most of what
# they learn goes through keys and values, where the words tell concepts apart. Spatial layers see nearly the same
# for two look-alikes, whatever is tuned. Chosen on two white rabbits that do not ship, see data/results/README.md.
FUSIBLE = {"null_space": (8, 16, 4), "lr_spatial": 9e-4}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("textual_inversion", init=("class",), layerwise=False, text_lora=False, unet_lora=None, steps=300),
        Recipe("p_plus", init=("class",), text_lora=False, unet_lora=None, steps=300),
        Recipe("lora", init=("class",), layerwise=False, freeze_norm=FREEZE_NORM, **FUSIBLE),
        Recipe("ed_lora", freeze_norm=FREEZE_NORM, **FUSIBLE),
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

CACHED = {"variants": 8, "posterior": True}  # officially a new view at every step; here a few are encoded once
# The short side of a picture fills the frame, at a random place. Official losses are sums over the latent's 4 channels
# divided by a mask of one, 4 times the mean over all numbers that Eq. 1 is here: what they add weighs a quarter here.
RESEARCH = CACHED | {"templates": "object", "shuffle": True, "down_std": 1 / 4}  # 1 / r
DENSITY = {"density": 0.002 / 4, "bandwidth": 0.5}
PERSON = {"framing": "person", "templates": "human"}
FREE = {"null_space": (0, 0, 0), "lr_spatial": None}  # as in the paper


def from_paper(recipe: str, source: str, **more) -> Recipe:
    """A recipe of the paper's file `tuning`, with what the engine has beside it."""
    shared = {name: value for name, value in vars(PAPER[recipe]).items() if name != "name"} | FREE
    return replace(RECIPES[recipe], **(shared | {"source": source} | more))


ED_LORA_RESEARCH = from_paper(
    "ed_lora",
    "research branch, EDLoRA_potter_Cmix_B4_Iter1K",  # characters; scenes are the same without PERSON
    name="ed_lora_research",
    steps=1000,
    background=1.0,
    attention=0.0,
    freeze_norm=None,
    **(RESEARCH | DENSITY | PERSON),
)

SD15: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        from_paper("textual_inversion", "research branch, TI_catA_Cmix_B2_Iter500", **RESEARCH),
        from_paper("p_plus", "research branch, PPlus_catA_Cmix_B2_Iter500", **(RESEARCH | DENSITY)),
        from_paper("lora", "research branch, Lora_catA_Cmix_B2_Iter500", **RESEARCH),
        from_paper("ed_lora", "main branch, 8101_EDLoRA_potter_Cmix_B4_Repeat500", shuffle=True, **(CACHED | PERSON)),
        ED_LORA_RESEARCH,
        replace(
            ED_LORA_RESEARCH,
            name="ed_lora_research_object",
            source="research branch, EDLoRA_catA_Cmix_dropkv02_B2_Iter500",
            steps=500,
            batch=2,
            drop_context=0.2,
            framing="zoom",
            templates="object",
        ),
        # Its 200 pictures of the class are photographs with captions of their own officially, drawn by the base here.
        from_paper(
            "custom_diffusion",
            "research branch, Custom_Diffusion_catA_Cmix_B4_Iter250",
            framing="custom_diffusion",
            flip=True,
            **CACHED,
        ),
    )
}


def recipe_for(base: DiffusionModel, recipe: str | Recipe) -> Recipe:
    """A recipe by name with the numbers that suit the base; a Recipe is taken as it is. ValueError on unknown names."""
    if isinstance(recipe, Recipe):
        return recipe
    table = RECIPES if base.base_id.startswith("pocket") else SD15
    if recipe not in table:
        kind = "the pocket model" if table is RECIPES else "Stable Diffusion"
        raise ValueError(f"There is no recipe {recipe!r} for {kind}: choose one of {', '.join(table)}.")
    return table[recipe]
