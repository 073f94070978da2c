"""Single-client concept tuning (paper 3.3.1): five recipes of one loop that minimises Eq. 1 on a client's pictures.

    recipe              words              weights                                      paper
    textual_inversion   V                  none                                         Textual Inversion [9]
    p_plus              V+                 none                                         P+ [4]
    lora                V                  LoRA on text encoder and U-Net               LoRA [3]
    ed_lora             V_rand+ V_class+   LoRA on text encoder and U-Net               ED-LoRA, the paper's
    custom_diffusion    V, then the class  whole cross-attention keys and values        Custom Diffusion [11]

    symbol   here      shape
    V, V+    rows      (1, D), (L, D)          one row for all layers, or one for each
    A, B     factors   (r, d_in), (d_out, r)   see lora.py
    z        latents   (P, C, h, w)            of all P pictures, encoded once

The base stays as it is: the loop trains the rows and the factors on a copy that shares the base's weights. Left out of
the official recipe: its attention regularisation (weight 0.01), because fused attention kernels give no attention maps.
"""

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm.auto import tqdm

from . import lora
from .base import DiffusionModel, denoising_loss
from .checkpoint import Checkpoint
from .concept import PLACEHOLDER, WORD, Concept
from .data import ConceptData


@dataclass(frozen=True)
class Recipe:
    """What is tuned and how fast; the numbers are the pocket model's, see `PAPER` for Stable Diffusion's."""

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
    steps: int | None = 300  # None: 500 pictures seen per picture given, as in the official code
    batch: int = 6
    noise_offset: float = 0.01
    background: float = 1.0  # loss weight outside the mask: 1 is Eq. 1, 0 the official masked loss
    flip: bool = False  # also learn from mirrored pictures; only for concepts that are symmetric
    freeze_norm: float | None = (
        None  # the rows stop once their mean norm is this many times a random row's at the start
    )


RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("textual_inversion", init=("class",), layerwise=False, text_lora=False, unet_lora=None),
        Recipe("p_plus", init=("class",), text_lora=False, unet_lora=None),
        Recipe("lora", init=("class",), layerwise=False),
        Recipe("ed_lora"),
        Recipe(
            "custom_diffusion",
            init=("rand",),
            layerwise=False,
            class_after=True,
            text_lora=False,
            unet_lora=r"attn2\.to_[kv]$",
            rank=None,
            lr_unet=5e-4,
        ),
    )
}

# The official numbers for Stable Diffusion 1.5 (its configuration 8101_EDLoRA_potter).
PAPER = {
    "lr_words": 1e-3,
    "lr_text": 1e-5,
    "lr_unet": 1e-4,
    "steps": None,
    "batch": 4,
    "background": 0.0,
    "freeze_norm": 1.5,  # 0.55 officially, where a random row starts at 0.013 * sqrt(768) = 0.36
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
    found = replace(found, **PAPER)
    return found if found.text_lora or found.unet_lora is not None else replace(found, freeze_norm=None)


def tune(
    base: DiffusionModel,
    data: ConceptData,
    recipe: str | Recipe = "ed_lora",
    seed: int = 0,
    steps: int | None = None,
    callback: Callable[[dict], None] | None = None,
    name: str | None = None,
    words: tuple[str, ...] | None = None,
    class_word: str | None = None,
    progress: bool = True,
    checkpoint: str | Path | None = None,
) -> Concept:
    """Tune one concept on one client (Fig. 4a): pictures and captions in, words and low-rank updates out.

    `steps`, `name` (default: the data's folder), `words` (default: <name1> <name2>) and `class_word` (default: the
    data's) override. `callback` gets dict(step, loss, embedding_norm) after each step. With a `checkpoint` file an
    interrupted run with the same arguments goes on where it stopped, and the file is removed at the end. The same seed
    gives the same concept on the same machine. Raises ValueError on an unknown recipe, a missing class word or words
    of another form.
    """
    recipe = recipe_for(base, recipe)
    name, class_word = name or data.name, class_word or data.class_word
    words = tuple(words or (f"<{slug(name)}{i + 1}>" for i in range(len(recipe.init))))
    check(recipe, words, class_word, base, steps)
    phrase = " ".join((*words, class_word) if recipe.class_after else words)
    steps = steps or recipe.steps or math.ceil(500 * len(data) / recipe.batch)

    model = base.copy()
    rows = init_rows(base, recipe, words, class_word, seed)
    limit = (recipe.freeze_norm or math.inf) * spread(base) * base.text_encoder.config.hidden_size**0.5
    attach(model, recipe, seed)
    latents, weights, prompts = prepare(base, data, recipe, phrase)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model, rows, recipe)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))
    half = base.dtype == torch.float16
    scaler = torch.amp.GradScaler(base.device.type, enabled=half)
    key = f"{asdict(recipe)} {phrase} {seed} {steps} {base.fingerprint} {data.captions}"
    state = Checkpoint(checkpoint, key, optimizer, schedule=schedule, scaler=scaler, generator=generator)

    with tqdm(total=steps, initial=state.step, disable=not progress, desc=f"tuning {name}") as bar:
        for step in range(state.step, steps):
            pick = draw(len(latents), recipe.batch, generator)
            with torch.autocast(base.device.type, base.dtype, enabled=half):
                context = model.context([prompts[i] for i in pick], expand(rows, len(base.layers)))  # (B, L, N, D)
                mask = None if weights is None else weights[pick]
                loss = denoising_loss(
                    model, latents[pick], context, mask=mask, noise_offset=recipe.noise_offset, generator=generator
                )
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            norm = torch.cat(list(rows.values())).norm(dim=1).mean().item()
            if norm >= limit:
                for row in rows.values():
                    row.grad = None  # AdamW leaves alone what has no gradient
            scaler.step(optimizer)
            scaler.update()
            schedule.step()
            state.save(step + 1)
            bar.update()
            bar.set_postfix(loss=f"{loss.item():.3f}")
            if callback is not None:
                callback({"step": step, "loss": loss.item(), "embedding_norm": norm})

    factors = {net: lora.extract(getattr(model, net)) for net in ("text_encoder", "unet")}
    factors = {net: found for net, found in factors.items() if found}
    state.remove()
    return Concept(
        name=name,
        words=words,
        class_word=class_word,
        recipe=recipe.name,
        embeddings={word: row.detach().cpu() for word, row in expand(rows, len(base.layers)).items()},
        lora=factors,
        rank=max((down.shape[0] for found in factors.values() for down, _ in found.values()), default=0),
        base_id=base.base_id,
        fingerprint=base.fingerprint,
        layers=base.layers,
        phrase=phrase,
    )


def slug(name: str) -> str:
    """A name as it may stand in a concept word: letters, digits, - and _."""
    return re.sub(r"[^\w-]+", "_", name.lower()).strip("_") or "concept"


def check(
    recipe: Recipe, words: tuple[str, ...], class_word: str | None, base: DiffusionModel, steps: int | None
) -> None:
    """Raise one sentence on arguments that cannot be tuned with."""
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps}: tune for at least one step.")
    if not class_word:
        raise ValueError('The class word is missing: say what the concept is, e.g. tune(..., class_word="rabbit").')
    if len(words) != len(recipe.init):
        raise ValueError(f"{recipe.name} tunes {len(recipe.init)} words but got {len(words)}: {' '.join(words)}.")
    for word in words:
        if not WORD.fullmatch(word) or word == PLACEHOLDER:
            raise ValueError(f"{word!r} cannot be a concept word: write it like <bibi1>.")
        if word in base.words:
            raise ValueError(f"The base already has a concept word {word}: choose another.")


def spread(base: DiffusionModel) -> float:
    """Standard deviation of the numbers in the model's own token embeddings."""
    return base.text_encoder.get_input_embeddings().weight.float().std().item()


def init_rows(
    base: DiffusionModel, recipe: Recipe, words: tuple[str, ...], class_word: str, seed: int
) -> dict[str, nn.Parameter]:
    """The trainable rows, word -> (L, D) or (1, D): "rand" draws with the spread of the model's own embeddings, "class"
    copies the class word's (the mean of its tokens); every layer starts from the same row.
    """
    table = base.text_encoder.get_input_embeddings().weight.detach().float()
    tokens = base.tokenizer(class_word, add_special_tokens=False).input_ids
    generator = torch.Generator().manual_seed(seed)
    starts = {
        "class": table[tokens].mean(dim=0),
        "rand": torch.randn(table.shape[1], generator=generator).to(table.device) * spread(base),
    }
    copies = len(base.layers) if recipe.layerwise else 1
    return {word: nn.Parameter(starts[kind].repeat(copies, 1)) for word, kind in zip(words, recipe.init, strict=True)}


def expand(rows: dict[str, Tensor], L: int) -> dict[str, Tensor]:
    """word -> (L, D), whether the word has a row per layer or one for all."""
    return {word: row.expand(L, -1) for word, row in rows.items()}


def attach(model: DiffusionModel, recipe: Recipe, seed: int) -> None:
    """Put the recipe's LoRAs on the model, the same ones for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if recipe.text_lora:
            lora.attach(model.text_encoder, recipe.rank)
        if recipe.unet_lora is not None:
            lora.attach(model.unet, recipe.rank, recipe.unet_lora)


def prepare(
    base: DiffusionModel, data: ConceptData, recipe: Recipe, phrase: str
) -> tuple[Tensor, Tensor | None, list[str]]:
    """Encode all pictures once: latents (P, C, h, w), loss weights (P, 1, h, w) or None, and the P prompts."""
    height, width = base.size
    pictures = [ImageOps.fit(picture, (width, height)) for picture in data.pictures]
    masks = [mask and ImageOps.fit(mask, (width, height)) for mask in data.masks]
    prompts = data.prompts(phrase)
    if recipe.flip:
        pictures += [ImageOps.mirror(picture) for picture in pictures]
        masks, prompts = masks + [mask and ImageOps.mirror(mask) for mask in masks], prompts * 2
    latents = torch.cat([base.encode_images([picture]) for picture in pictures]).float()
    if recipe.background == 1 or not any(masks):
        return latents, None, prompts
    inside = torch.stack([torch.ones(1, height, width) if mask is None else to_tensor(mask) for mask in masks])
    inside = F.adaptive_avg_pool2d(inside, latents.shape[-2:]).to(latents.device)  # (P, 1, h, w)
    return latents, recipe.background + (1 - recipe.background) * inside, prompts


def to_tensor(mask: Image.Image) -> Tensor:
    """A grey picture -> (1, H, W) in 0..1."""
    return torch.from_numpy(np.array(mask, dtype=np.float32))[None] / 255


def make_optimizer(model: DiffusionModel, rows: dict[str, Tensor], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with one learning rate for the words, the text encoder and the U-Net each."""
    groups = [{"params": list(rows.values()), "lr": recipe.lr_words}]
    for net, lr in ((model.text_encoder, recipe.lr_text), (model.unet, recipe.lr_unet)):
        trainable = [weight for weight in net.parameters() if weight.requires_grad]
        if trainable:
            groups.append({"params": trainable, "lr": lr})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=recipe.weight_decay)


def draw(P: int, batch: int, generator: torch.Generator) -> list[int]:
    """Indices of a batch: all pictures differ until every one has been drawn."""
    rounds = [torch.randperm(P, generator=generator) for _ in range(math.ceil(batch / P))]
    return torch.cat(rounds)[:batch].tolist()
