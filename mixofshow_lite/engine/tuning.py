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
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from accelerate import PartialState
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..diffusion import draw_noise
from ..files.concept import WORD, Concept, check_is_model, is_word, slug
from ..files.data import ConceptData
from ..files.fits import check_finite, check_proportions
from ..model import DiffusionModel, denoising_loss
from ..tuning import freezing_norm
from . import finite, lora
from .arguments import SEEDS, as_path, check_callback, check_switch, check_whole, is_whole, shown
from .attention_loss import captured_attention, outside_attention
from .checkpoint import Checkpoint, prior_file
from .fusion.grams import CONTEXT_LINEAR
from .layerwise import PREFIX_ATTENTION
from .null_space import NullSpace
from .parallel import Precision, parts_of_batch, processes_for, sum_over_processes
from .recipes import RECIPES, SD15, Recipe, recipe_for
from .views import Views, add_prior, prepare
from .wording import PromptEncoder, check_starts, density_loss, init_rows

LONGEST_NAME = 100  # characters of a concept's name, which becomes a folder and, with a number, a word

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
    batch. Raises ValueError on a bad recipe, class word or words, too small pictures, and numbers that are not finite.
    """
    check_kinds(base, data, seed=seed, name=name, words=words, strip=strip, accumulate=accumulate, callback=callback)
    recipe = recipe_for(base, recipe)
    name, class_word = name or data.name, class_word or data.class_word
    words = tuple(words or (f"<{slug(name)}{i + 1}>" for i in range(len(recipe.init))))
    check_words_and_steps(recipe, words, class_word, base, steps)
    phrase = " ".join((*words, class_word) if recipe.class_after else words)
    names = {"name": name, "words": words, "class_word": class_word, "phrase": phrase}
    steps = steps or recipe.steps or math.ceil(500 * len(data) / recipe.batch)
    check_switch("gradient_checkpointing", gradient_checkpointing)
    memory = {"mixed_precision": mixed_precision, "gradient_checkpointing": gradient_checkpointing}
    file = None if checkpoint is None else as_path(checkpoint)
    run = start(base, data, recipe, names, seed, steps, file, progress, **memory)
    shown = tqdm(total=steps, initial=run.state.step, disable=not (progress and run.first), desc=f"tuning {name}")
    with run.state, shown as bar:
        for record in tuning_steps(run, accumulate):
            bar.update()
            bar.set_postfix(loss=f"{record['loss']:.3f}")
            done = record["step"] + 1
            if strip and run.first and (done % strip == 0 or done == steps):
                record["strip"] = sample_strip(base, run.concept(), seed)
            if callback is not None and run.first:
                callback(record)
            run.state.stop_if_asked(done)
    return run.concept()


@dataclass
class Run:
    """One run: what its steps work on and move."""

    base: DiffusionModel
    recipe: Recipe
    names: dict  # of its concept: name, words, class_word, phrase
    steps: int  # all of them
    precision: Precision
    processes: PartialState
    model: DiffusionModel  # a copy of the base that holds the recipe's LoRAs
    null_space: NullSpace  # what their updates leave alone
    rows: dict[str, Tensor]  # word -> (1, D) or (L, D)
    views: Views
    encoder: PromptEncoder
    generator: torch.Generator  # of all that is drawn at a step
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LambdaLR
    state: Checkpoint  # knows the step to begin with

    @property
    def first(self) -> bool:
        """Of several processes: whether this is the one that writes, reports and calls back."""
        return self.processes.is_main_process

    def concept(self) -> Concept:
        """What has been tuned so far."""
        return finish(self.base, self.model, self.rows, self.recipe, **self.names)


def start(
    base: DiffusionModel,
    data: ConceptData,
    recipe: Recipe,
    names: dict,
    seed: int,
    steps: int,
    checkpoint: Path | None,
    progress: bool,
    mixed_precision: str | None,
    gradient_checkpointing: bool,
) -> Run:
    """Everything before the first step, or before the next one of an interrupted run; see `tune` for errors."""
    precision, processes = Precision(base, mixed_precision), processes_for(base)
    first = processes.is_main_process
    model = base.copy()
    rows = init_rows(base, recipe, names["words"], names["class_word"], seed)
    attach(model, recipe, seed, gradient_checkpointing)
    null_space = NullSpace(base, model, names["class_word"], recipe.null_space)
    views = prepare(base, data, recipe, names["phrase"], seed)
    if recipe.prior:
        file = prior_file(checkpoint) if checkpoint and first else None
        views = add_prior(views, base, names["class_word"], recipe.prior, seed, file, progress)
    encoder = PromptEncoder(model, views.prompts, rows, recipe.text_lora)
    generator = torch.Generator().manual_seed(seed)
    optimizer = make_optimizer(model, rows, recipe)
    schedule = make_schedule(optimizer, recipe, steps)
    key = f"{asdict(recipe)} {names['phrase']} {seed} {steps} {base.fingerprint} {data.digest()}"
    parts = {"schedule": schedule, "scaler": precision.scaler, "generator": generator}
    state = Checkpoint(checkpoint, key, optimizer, keep=first, waits=processes.num_processes == 1, **parts)
    work = (model, null_space, rows, views, encoder, generator, optimizer, schedule, state)
    return Run(base, recipe, names, steps, precision, processes, *work)


def tuning_steps(run: Run, accumulate: int = 1) -> Iterator[dict]:
    """The loop: dict(step, loss, embedding_norm) after each step that is left, once its checkpoint is written.

    The norm is that of before the step. Raises ValueError where losses are not finite.
    """
    recipe, rows = run.recipe, run.rows
    tuned = [tensor for group in run.optimizer.param_groups for tensor in group["params"]]
    patience = 10 if run.precision.scaler.is_enabled() else 0
    watch = LossWatch(run.base, run.model, rows, f"Tuning {run.names['name']!r}", patience)
    limit = freezing_norm(recipe, run.base.text_encoder)
    for step in range(run.state.step, run.steps):
        loss = backward_batch(run, accumulate)
        if recipe.density > 0 and run.first:  # once a step, whatever parts it is worked in
            loss += backward_density(run.precision, run.base, rows, recipe)
        loss = watch(step, sum_over_processes(run.processes, tuned, loss))
        norm = torch.cat(list(rows.values())).norm(dim=1).mean().item()
        if norm >= limit:
            freeze(rows)
        run.precision.step(run.optimizer)
        run.null_space.project()
        run.schedule.step()
        run.state.save(step + 1, last=step + 1 == run.steps)
        yield {"step": step, "loss": loss, "embedding_norm": norm}


def backward_batch(run: Run, accumulate: int) -> Tensor:
    """Draw a batch and add the gradients of its loss (Eq. 1), part by part -> the loss of this process, ()."""
    recipe, views, generator = run.recipe, run.views, run.generator
    pick = torch.tensor(views.draw(recipe.batch, generator, recipe.noises))
    t, noise = draw_noise(run.base, (len(pick), *views.latents.shape[1:]), recipe.noise_offset, generator)
    latents = views.latents_of(pick, generator)  # (b, C, h, w)
    drop_context(run.model, recipe.drop_context, generator)
    weight = picture_weights(recipe).to(run.base.device)
    regularised = recipe.attention > 0 and views.masked
    loss = torch.zeros((), device=run.base.device)
    for part in parts_of_batch(len(pick), accumulate, run.processes):
        some = pick[part]
        capture = nullcontext([])
        if regularised:
            capture = captured_attention(run.model.unet, run.encoder.token_mask(some))
        with capture as maps:
            with run.precision.autocast():
                drawn = (latents[part], run.encoder(some), noise[part], t[part], views.counted[some])
                losses = denoising_loss(run.model, *drawn, each=True)
                if regularised:
                    penalty = outside_attention(maps, views.inside[some], recipe.full_identity)
                    losses = losses + recipe.attention * penalty
                of_part = (weight[part] * losses).sum()
            run.precision.backward(of_part)
        loss += of_part.detach()
    return loss


def sample_strip(base: DiffusionModel, concept: Concept, seed: int) -> list[Image.Image]:
    """The concept at LoRA weight 0 (the embedding alone), 0.7 and 1, as the official code validates."""
    models = (base.with_concept(concept, alpha) for alpha in (0.0, 0.7, 1.0))
    return [model.sample(f"photo of a {concept.phrase}", seed=seed, progress=False)[0] for model in models]


def finish(base: DiffusionModel, model: DiffusionModel, rows: dict[str, Tensor], recipe: Recipe, **names) -> Concept:
    """What has been tuned so far, as a Concept with its own tensors on the CPU."""
    factors = {net: lora.extract(getattr(model, net)) for net in ("text_encoder", "unet")}
    factors = {net: found for net, found in factors.items() if found}
    L = len(base.layers)
    concept = Concept(
        recipe=recipe.name,
        embeddings={word: row.detach().cpu().expand(L, -1).clone() for word, row in rows.items()},
        lora=factors,
        rank=max((down.shape[0] for found in factors.values() for down, _ in found.values()), default=0),
        base_id=base.base_id,
        fingerprint=base.fingerprint,
        layers=base.layers,
        **names,
    )
    check_finite(concept)
    check_proportions(concept, base)
    return concept


@dataclass
class LossWatch:
    """Stops a run whose loss is not finite: what it would save could not be used.

    fp16's scaler leaves out a step that overflows and scales less from then on, so that a few in a row are no fault:
    `patience` is how many are borne.
    """

    base: DiffusionModel
    model: DiffusionModel  # what is tuned
    rows: dict[str, Tensor]
    what: str  # the run, for a sentence
    patience: int
    lost: int = 0  # steps in a row without a finite loss

    def __call__(self, step: int, loss: float) -> float:
        """The loss again; raises ValueError once too many were not finite."""
        self.lost = 0 if math.isfinite(loss) else self.lost + 1
        if self.lost > self.patience:
            raise ValueError(f"{self.what} stopped at step {step + 1}, nothing was saved: {self.where()}.")
        return loss

    def where(self) -> str:
        """Where the numbers were lost, and what to do."""
        found = finite.model_not_finite(self.base)
        if found:
            return f"{found} of the base are not finite, load it again"
        word = finite.first_not_finite(self.rows)
        found = f"the rows of {word}" if word else finite.model_not_finite(self.model) or "the values of its loss"
        return f"{found} are not finite, tune in float32 or with smaller learning rates"


def check_kinds(base, data, *, seed, name, words, strip, accumulate, callback) -> None:
    """Raise TypeError or ValueError with one sentence on arguments of `tune` that are of another kind."""
    check_is_model(base)
    if not isinstance(data, ConceptData):
        raise TypeError(f"{shown(data)} is no ConceptData: give ConceptData(folder).")
    if name is not None and (not isinstance(name, str) or not name.strip() or len(name) > LONGEST_NAME):
        raise ValueError(f"name={shown(name)}: give the concept a name of 1 to {LONGEST_NAME} characters.")
    if isinstance(words, str) or not isinstance(words, Iterable | None):
        raise TypeError(f'words={shown(words)}: give a list of texts, like ("<bibi1>", "<bibi2>").')
    check_whole("seed", seed, *SEEDS)
    check_whole("strip", 1 if strip is None else strip)
    check_whole("accumulate", accumulate)
    check_callback(callback)


def check_words_and_steps(
    recipe: Recipe, words: tuple[str, ...], class_word: str | None, base: DiffusionModel, steps: int | None
) -> None:
    """Raise one sentence on arguments that cannot be tuned with."""
    if steps is not None and not is_whole(steps):
        raise ValueError(f"steps={shown(steps)}: tune for at least one step, a whole number of them.")
    text = isinstance(class_word, str) and not WORD.search(class_word)
    if not text or not base.tokenizer(class_word, add_special_tokens=False).input_ids:
        given = "missing" if class_word is None or class_word == "" else f"{class_word!r}, which is no plain word"
        raise ValueError(f'The class word is {given}: say what the concept is, e.g. tune(..., class_word="rabbit").')
    base.check_known([class_word], " (class word)")
    check_starts(base, recipe)
    if len(words) != len(recipe.init):
        raise ValueError(
            f"{recipe.name} tunes {len(recipe.init)} words but got {len(words)}: {' '.join(map(str, words))}."
        )
    if len(set(words)) != len(words):
        raise ValueError(f"words={words} has a word twice: give {len(words)} different ones, like <bibi1> <bibi2>.")
    for word in words:
        if not is_word(word):
            raise ValueError(f"{shown(word)} cannot be a concept word: write it like <bibi1>, in up to 100 characters.")
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
        if recipe.slot is not None:
            for net in (model.text_encoder, model.unet):
                if lora.attached(net):
                    lora.start_orthogonal(net, recipe.slot)
    if gradient_checkpointing:
        model.unet.enable_gradient_checkpointing()
        enable = getattr(model.text_encoder, "activation_checkpointing_enable", None)  # since transformers 5.23
        (enable or model.text_encoder.gradient_checkpointing_enable)({"use_reentrant": False})
        model.text_encoder.train()  # transformers recomputes in training mode only; CLIP has no dropout
        # Also while it recomputes, after `encode` has returned.
        model.text_encoder.set_attn_implementation(PREFIX_ATTENTION)


def picture_weights(recipe: Recipe) -> Tensor:
    """The weight of each picture of a batch in the loss: the concept's, then as many of the prior if there is one."""
    beside = recipe.batch if recipe.prior else 0
    return torch.tensor([1.0] * recipe.batch + [recipe.prior_weight] * beside) / recipe.batch


def backward_density(precision: Precision, base: DiffusionModel, rows: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """Add the gradient of what the words alone cost, their density among the base's own; returns the loss, ()."""
    table = base.text_encoder.get_input_embeddings().weight.float()  # (V, D)
    loss = recipe.density * density_loss(torch.cat(list(rows.values())), table, recipe.bandwidth)
    precision.backward(loss)
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
    """AdamW with one learning rate for the words, the text encoder and the U-Net each, or two for the U-Net."""
    spatial = re.compile(r"(?<!attn2\.to_[kv])\.lora_" if recipe.lr_spatial is not None else "$^")
    of_text = [weight for weight in model.text_encoder.parameters() if weight.requires_grad]
    of_unet = [(name, weight) for name, weight in model.unet.named_parameters() if weight.requires_grad]
    groups = [
        {"params": list(rows.values()), "lr": recipe.lr_words},
        {"params": of_text, "lr": recipe.lr_text},
        {"params": [weight for name, weight in of_unet if not spatial.search(name)], "lr": recipe.lr_unet},
        {"params": [weight for name, weight in of_unet if spatial.search(name)], "lr": recipe.lr_spatial},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=recipe.weight_decay, fused=True)
