"""Single-client concept tuning (paper 3.3.1): one loop that minimises Eq. 1 on a client's pictures, for five recipes.

    symbol   here      shape
    V, V+    rows      (1, D), (L, D)          one row for all layers, or one for each
    A, B     factors   (r, d_in), (d_out, r)   see lora.py
    z        views     (V * P + K, C, h, w)    cached latents of the pictures, see views.py
    c        context   (b, L, N, D)            psi of their prompts

The base stays as it is: the loop trains the rows and the factors on a copy that shares the base's weights. A step's
pictures, times and noises are drawn for the whole batch on the CPU, whatever parts it is then worked in: memory
(`accumulate`) and the number of processes change the concept by rounding only.
"""

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..files.concept import PLACEHOLDER, WORD, Concept, slug
from ..files.data import ConceptData
from ..model import DiffusionModel, denoising_loss, draw_noise
from ..tuning import freezing_norm
from . import lora
from .attention_loss import outside_attention, watched
from .checkpoint import Checkpoint, prior_file
from .fusion.grams import CONTEXT_LINEAR
from .layerwise import BEGINNINGS
from .parallel import accelerator_for, add_up, shares
from .recipes import RECIPES, SD15, Recipe, recipe_for
from .views import add_prior, prepare
from .wording import Reader, density_loss, init_rows, quicken

__all__ = ["RECIPES", "SD15", "Recipe", "recipe_for", "tune"]


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
    strip: int | None = None,
    accumulate: int = 1,
    mixed_precision: str | None = None,
    gradient_checkpointing: bool = False,
) -> Concept:
    """Tune one concept on one client (Fig. 4a): pictures and captions in, words and low-rank updates out.

    `steps`, `name` (default: the data's folder), `words` (default: <name1> <name2>) and `class_word` (default: the
    data's) override. `callback` gets dict(step, loss, embedding_norm) after each step, and every `strip` steps and at
    the end also strip: three pictures at LoRA weight 0, 0.7 and 1. With a `checkpoint` file an interrupted run with the
    same arguments goes on where it stopped; at the end the file holds the tuned concept: `checkpoint.discard` it when
    that is saved. The same seed gives the same concept on the same machine.

    Memory: `accumulate` works each batch in that many parts; `gradient_checkpointing` computes features a second time
    instead of keeping them. `mixed_precision` is "no", "bf16" or "fp16" (default: what the base's weights are in).
    Several GPUs: start with `accelerate launch`, load the base on `accelerate.PartialState().device`; they share each
    batch. Raises ValueError on an unknown recipe, a missing class word, words of another form, too small pictures.
    """
    recipe = recipe_for(base, recipe)
    name, class_word = name or data.name, class_word or data.class_word
    words = tuple(words or (f"<{slug(name)}{i + 1}>" for i in range(len(recipe.init))))
    check(recipe, words, class_word, base, steps)
    phrase = " ".join((*words, class_word) if recipe.class_after else words)
    steps = steps or recipe.steps or math.ceil(500 * len(data) / recipe.batch)
    accelerator = accelerator_for(base, mixed_precision)
    first = accelerator.is_main_process  # of several processes: the one that writes, reports and calls back
    checkpoint = checkpoint and Path(checkpoint)

    model = base.copy()
    quicken(model.text_encoder)
    rows = init_rows(base, recipe, words, class_word, seed)
    limit = freezing_norm(recipe, base.text_encoder)
    attach(model, recipe, seed, gradient_checkpointing)
    views = prepare(base, data, recipe, phrase, seed)
    file = prior_file(checkpoint) if checkpoint and first else None
    if recipe.prior:
        views = add_prior(views, base, class_word, recipe.prior, seed, file, progress)
    reader = Reader(model, views.prompts, rows, recipe.text_lora)
    weight = picture_weights(recipe).to(base.device)
    regularised = recipe.attention > 0 and views.masked

    generator = torch.Generator().manual_seed(seed)
    optimizer = accelerator.prepare(make_optimizer(model, rows, recipe))
    tuned = [tensor for group in optimizer.param_groups for tensor in group["params"]]
    schedule = make_schedule(optimizer.optimizer, recipe, steps)
    key = f"{asdict(recipe)} {phrase} {seed} {steps} {base.fingerprint} {data.digest()}"
    parts = {"schedule": schedule, "scaler": accelerator.scaler, "generator": generator}
    state = Checkpoint(checkpoint, key, optimizer, keep=first, **parts)

    def concept() -> Concept:
        return finish(base, model, rows, recipe, name=name, words=words, class_word=class_word, phrase=phrase)

    with tqdm(total=steps, initial=state.step, disable=not (progress and first), desc=f"tuning {name}") as bar:
        for step in range(state.step, steps):
            pick = torch.tensor(views.draw(recipe.batch, generator, recipe.noises))
            t, noise = draw_noise(base, (len(pick), *views.latents.shape[1:]), recipe.noise_offset, generator)
            latents = views.latents_of(pick, generator)  # (b, C, h, w)
            drop_context(model, recipe.drop_context, generator)
            loss = torch.zeros((), device=base.device)
            for part in shares(len(pick), accumulate, accelerator):
                some = pick[part]
                with watched(model.unet, reader.finder(some)) if regularised else nullcontext([]) as maps:
                    with accelerator.autocast():
                        drawn = (latents[part], reader(some), noise[part], t[part], views.counted[some])
                        losses = denoising_loss(model, *drawn, each=True)
                        if regularised:
                            penalty = outside_attention(maps, views.inside[some], recipe.full_identity)
                            losses = losses + recipe.attention * penalty
                        of_part = (weight[part] * losses).sum()
                    accelerator.backward(of_part)
                loss += of_part.detach()
            if recipe.density > 0 and first:  # once a step, whatever parts it is worked in
                loss += backward_density(accelerator, base, rows, recipe)
            loss = add_up(accelerator, tuned, loss)
            norm = torch.cat(list(rows.values())).norm(dim=1).mean().item()
            if norm >= limit:
                freeze(rows)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            state.save(step + 1, last=step + 1 == steps)
            bar.update()
            bar.set_postfix(loss=f"{loss:.3f}")
            record = {"step": step, "loss": loss, "embedding_norm": norm}
            if strip and first and ((step + 1) % strip == 0 or step + 1 == steps):
                record["strip"] = sample_strip(base, concept(), seed)
            if callback is not None and first:
                callback(record)
    return concept()


def sample_strip(base: DiffusionModel, concept: Concept, seed: int) -> list[Image.Image]:
    """The concept at LoRA weight 0 (the embedding alone), 0.7 and 1, as the official code validates."""
    models = (base.with_concept(concept, alpha) for alpha in (0.0, 0.7, 1.0))
    return [model.sample(f"photo of a {concept.phrase}", seed=seed, progress=False)[0] for model in models]


def finish(base: DiffusionModel, model: DiffusionModel, rows: dict[str, Tensor], recipe: Recipe, **names) -> Concept:
    """What has been tuned so far, as a Concept with its own tensors on the CPU."""
    factors = {net: lora.extract(getattr(model, net)) for net in ("text_encoder", "unet")}
    factors = {net: found for net, found in factors.items() if found}
    L = len(base.layers)
    return Concept(
        recipe=recipe.name,
        embeddings={word: row.detach().cpu().expand(L, -1).clone() for word, row in rows.items()},
        lora=factors,
        rank=max((down.shape[0] for found in factors.values() for down, _ in found.values()), default=0),
        base_id=base.base_id,
        fingerprint=base.fingerprint,
        layers=base.layers,
        **names,
    )


def check(
    recipe: Recipe, words: tuple[str, ...], class_word: str | None, base: DiffusionModel, steps: int | None
) -> None:
    """Raise one sentence on arguments that cannot be tuned with."""
    if steps is not None and steps < 1:
        raise ValueError(f"steps={steps}: tune for at least one step.")
    text = isinstance(class_word, str) and not WORD.search(class_word)
    if not text or not base.tokenizer(class_word, add_special_tokens=False).input_ids:
        given = "missing" if class_word is None or class_word == "" else f"{class_word!r}, which is no plain word"
        raise ValueError(f'The class word is {given}: say what the concept is, e.g. tune(..., class_word="rabbit").')
    base.check_known([class_word], " (class word)")
    if len(words) != len(recipe.init):
        raise ValueError(
            f"{recipe.name} tunes {len(recipe.init)} words but got {len(words)}: {' '.join(map(str, words))}."
        )
    if len(set(words)) != len(words):
        raise ValueError(f"words={words} has a word twice: give {len(words)} different ones, like <bibi1> <bibi2>.")
    for word in words:
        if not isinstance(word, str) or not WORD.fullmatch(word) or word == PLACEHOLDER:
            raise ValueError(f"{word!r} cannot be a concept word: write it like <bibi1>.")
        if word in base.words:
            raise ValueError(f"The base already has a concept word {word}: choose another.")


def attach(model: DiffusionModel, recipe: Recipe, seed: int, gradient_checkpointing: bool = False) -> None:
    """Put the recipe's LoRAs on the model, the same ones for the same seed."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if recipe.text_lora:
            lora.attach(model.text_encoder, recipe.rank)
        if recipe.unet_lora is not None:
            lora.attach(model.unet, recipe.rank, recipe.unet_lora)
        if recipe.down_std is not None:
            for net in (model.text_encoder, model.unet):
                lora.start_normal(net, recipe.down_std)
    if gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        enable = getattr(model.text_encoder, "activation_checkpointing_enable", None)  # since transformers 5.23
        (enable or model.text_encoder.gradient_checkpointing_enable)({"use_reentrant": False})
        model.text_encoder.train()  # transformers recomputes in training mode only; CLIP has no dropout
        model.text_encoder.set_attn_implementation(BEGINNINGS)  # also while it recomputes, after `encode` has returned


def picture_weights(recipe: Recipe) -> Tensor:
    """The weight of each picture of a batch in the loss: the concept's, then as many of the prior if there is one."""
    beside = recipe.batch if recipe.prior else 0
    return torch.tensor([1.0] * recipe.batch + [recipe.prior_weight] * beside) / recipe.batch


def backward_density(accelerator: Accelerator, base: DiffusionModel, rows: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """Add the gradient of what the words alone cost, their density among the base's own; returns the loss, ()."""
    table = base.text_encoder.get_input_embeddings().weight.float()  # (V, D)
    loss = recipe.density * density_loss(torch.cat(list(rows.values())), table, recipe.bandwidth)
    accelerator.backward(loss)
    return loss.detach()


def freeze(rows: dict[str, Tensor]) -> None:
    """Leave the words as they are in this step: AdamW leaves alone what has no gradient."""
    for row in rows.values():
        row.grad = None


def drop_context(model: DiffusionModel, rate: float, generator: torch.Generator) -> None:
    """Leave out each LoRA of cross-attention's keys and values for this step with probability `rate` (in place).

    What the concept is then has to be in its words and in the other layers, as in the official research branch.
    """
    if rate == 0:
        return
    for name, layer in lora.attached(model.unet).items():
        if CONTEXT_LINEAR.search(name):
            layer.scaling["default"] = float(torch.rand((), generator=generator) >= rate)


def make_schedule(optimizer: torch.optim.Optimizer, recipe: Recipe, steps: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Learning rates that fall linearly to 0 over the steps, or stay."""

    def factor(step: int) -> float:
        return max(0.0, 1 - step / steps) if recipe.decay else 1.0

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def make_optimizer(model: DiffusionModel, rows: dict[str, Tensor], recipe: Recipe) -> torch.optim.AdamW:
    """AdamW with one learning rate for the words, the text encoder and the U-Net each."""
    groups = [{"params": list(rows.values()), "lr": recipe.lr_words}]
    for net, lr in ((model.text_encoder, recipe.lr_text), (model.unet, recipe.lr_unet)):
        trainable = [weight for weight in net.parameters() if weight.requires_grad]
        if trainable:
            groups.append({"params": trainable, "lr": lr})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=recipe.weight_decay, fused=True)
