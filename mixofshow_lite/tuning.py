"""Single-client concept tuning (paper 3.3.1): one loop that minimises Eq. 1 on a client's pictures, for five recipes.

    min_{V, dPhi}  E_{z, eps, t} || eps - eps_theta(z_t, t, psi(P*)) ||^2     theta, psi = Phi_0 + dPhi, and V in P*

    recipe              words, and how they start     trained weights                      paper
    textual_inversion   V: class                      none                                 Textual Inversion
    p_plus              V+: class                     none                                 P+
    lora                V: class                      LoRA on text encoder and U-Net       LoRA
    custom_diffusion    V: a rare token, then class   whole cross-attention keys, values   Custom Diffusion
    ed_lora             V_rand+ V_class+              LoRA on text encoder and U-Net       ED-LoRA, the paper's

    paper     here            shape
    z, eps    batch.latents   (B, C, h, w)    and batch.noise
    P*        batch.prompts   B strings       captions that name the concept by its words
    V, V+     words           word -> (1, D) or (L, D), trainable
    dPhi      LoRALinear      on the attention linears of a copy of the model, see lora.py

The pictures never leave the client; what it shares is a `Concept`: its words and its low-rank updates.
"""

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from .attention import outside_attention, stored_attention
from .diffusion import Model, denoising_errors, draw_noise, encode_images, sample
from .lora import Concept, attach, extract
from .prompts import bind, class_embedding, embedding_std, random_embedding, word_places

EVERYWHERE = ""  # every attention linear of the U-Net
KEYS_AND_VALUES = r"attn2\.to_[kv]$"  # what Custom Diffusion trains: where the prompt enters


@dataclass(frozen=True)
class Recipe:
    """What is tuned and how fast. The defaults are those of the baselines in the official research branch."""

    name: str
    init: tuple[str, ...]  # one word each: "rand" starts at random, "class" as the class word, else as that word
    layerwise: bool = False  # V+ (an embedding per cross-attention layer) or V (one for all)
    class_after: bool = False  # prompts write "<v> rabbit", with the class word itself untrained
    text_lora: bool = False  # LoRA on the text encoder
    unet_lora: str | None = None  # on which U-Net layers (a regular expression); None: none
    rank: int | None = 4  # r; None trains whole updates
    lr_words: float = 1e-3
    lr_text: float = 1e-5
    lr_unet: float = 1e-4
    decay: bool = True  # learning rates fall linearly to 0; False: they stay
    steps: int | None = 500  # None: 500 times the number of pictures, divided by the batch
    batch: int = 2
    noise_offset: float = 0.0  # see diffusion.draw_noise
    background: float = 1.0  # loss weight outside the concept's mask: 1 is Eq. 1, 0 the official masked loss
    attention: float = 0.0  # weight of `outside_attention`
    freeze_norm: float | None = None  # words freeze at this multiple of a random embedding's norm; None: never
    prior: int = 0  # pictures of the class, one of them beside each of the concept's in a batch
    prior_weight: float = 1.0  # of their loss


RECIPES = {
    # Baselines: research branch, TI_catA, Lora_catA and Custom_Diffusion_catA. P+ there also has a density loss on its
    # words, which is left out.
    "textual_inversion": Recipe("textual_inversion", init=("class",)),
    "p_plus": Recipe("p_plus", init=("class",), layerwise=True),
    "lora": Recipe("lora", init=("class",), text_lora=True, unet_lora=EVERYWHERE, lr_words=5e-4),
    "custom_diffusion": Recipe(
        "custom_diffusion",
        init=("ktn",),  # a rare token
        class_after=True,
        unet_lora=KEYS_AND_VALUES,
        rank=None,
        lr_words=8e-5,  # 2e-5 times the batch
        lr_unet=8e-5,
        decay=False,
        steps=250,
        batch=4,
        prior=200,
        prior_weight=0.25,  # 1 officially, beside a loss that sums over the 4 channels, as `attention` below
    ),
    # The paper's own: main branch, 8101_EDLoRA_potter.
    "ed_lora": Recipe(  # 3.3.1 ED-LoRA
        "ed_lora",
        init=("rand", "class"),  # 3.3.1 V = V_rand+ V_class+
        layerwise=True,
        text_lora=True,
        unet_lora=EVERYWHERE,
        rank=4,
        lr_words=1e-3,
        lr_text=1e-5,
        lr_unet=1e-4,
        decay=True,
        steps=None,
        batch=4,
        noise_offset=0.01,
        background=0.0,
        # 0.01 officially, added to a masked loss that sums over the latent's 4 channels and divides by a mask of one:
        # beside a mean over all numbers, as here, that is a quarter.
        attention=0.0025,
        freeze_norm=1.5,  # officially a norm of 0.55, where a random embedding starts at 0.013 * sqrt(768) = 0.36
    ),
}


@dataclass
class Pictures:
    """What a client tunes on; it never leaves the client."""

    latents: Tensor  # (n, C, h, w), encoded once
    prompts: list[str]  # n captions that name the concept: by its words, or as <TOK> where `tune` puts them
    masks: Tensor  # (n, 1, h, w) 1 on the concept; all 1 without masks


@dataclass
class Batch:
    """The pictures of one step, and the noise that is added to them."""

    latents: Tensor  # (B, C, h, w)
    prompts: list[str]  # B
    masks: Tensor  # (B, 1, h, w)
    noise: Tensor  # (B, C, h, w)
    t: Tensor  # (B,)
    weight: Tensor  # (B,) of each picture in the loss


def class_pictures(model: Model, class_word: str, n: int, seed: int = 0, steps: int = 25) -> Pictures:
    """Custom Diffusion's prior: n pictures of the class, so that the class word keeps its general meaning.

    Drawn by the model itself; the official code retrieves photographs.
    """
    prompt = f"photo of a {class_word}"
    drawn = []
    for i in range(n):  # one by one: recipes ask for 200
        drawn.append(encode_images(model, sample(model, prompt, seed=seed + i, steps=steps)))
    latents = torch.cat(drawn)  # (n, C, h, w)
    return Pictures(latents, [prompt] * n, torch.ones_like(latents[:, :1]))


def draw_batches(
    model: Model, recipe: Recipe, pictures: Pictures, prior: Pictures | None = None, seed: int = 0
) -> Iterator[Batch]:
    """Batches without end: `recipe.batch` random pictures, with as many of the prior beside them if there is one."""
    # The only source of randomness in the loop: the same seed gives the same concept.
    generator = torch.Generator().manual_seed(seed)
    sources = [(pictures, 1.0)]
    if prior is not None:
        sources.append((prior, recipe.prior_weight))
    while True:
        latents, prompts, masks, weight = [], [], [], []
        for source, loss_weight in sources:
            for i in torch.randint(len(source.prompts), (recipe.batch,), generator=generator).tolist():
                latents.append(source.latents[i])
                prompts.append(source.prompts[i])
                masks.append(source.masks[i])
                weight.append(loss_weight / recipe.batch)
        latents = torch.stack(latents)
        t, noise = draw_noise(model, latents.shape, recipe.noise_offset, generator)
        t, noise = t.to(latents.device), noise.to(latents)
        yield Batch(latents, prompts, torch.stack(masks), noise, t, torch.tensor(weight).to(latents))


def tuning_loss(model: Model, batch: Batch, words: dict[str, Tensor], recipe: Recipe) -> Tensor:
    """Eq. 1 on one batch -> (), inside the concept's masks and with the recipe's regularisation."""
    c = model.context(batch.prompts, words)  # (B, L, N, D)
    with stored_attention(model.unet) if recipe.attention > 0 else nullcontext() as store:
        error = denoising_errors(model, batch.latents, c, batch.noise, batch.t)  # the squares of Eq. 1, (B, C, h, w)
    counted = recipe.background + (1 - recipe.background) * batch.masks  # (B, 1, h, w)
    counted = counted.expand_as(error)
    loss = (error * counted).sum(dim=(1, 2, 3)) / counted.sum(dim=(1, 2, 3)).clamp(min=1)  # (B,)
    if recipe.attention > 0:
        maps = word_attention(model, store.maps(), batch.prompts, words)  # L times (B, W, T)
        loss = loss + recipe.attention * outside_attention(maps, batch.masks)
    return (batch.weight * loss).sum()


def word_attention(model: Model, maps: list[Tensor], prompts: list[str], words: dict[str, Tensor]) -> list[Tensor]:
    """Of attention maps (B, T, N) those of the concept's W words, (B, W, T) for each layer."""
    slots = bind(model.tokenizer, prompts, list(words)).slots.to(maps[0].device)  # (B, N)
    places = word_places(slots, len(words))  # (B, W, N)
    return [places @ weights.transpose(1, 2) for weights in maps]


@dataclass
class Tuning:
    """A concept while it is tuned: what is trained, and all that is needed to make a `Concept` of it."""

    name: str
    class_word: str
    recipe: Recipe
    model: Model  # a copy of the base, with LoRAs attached
    words: dict[str, nn.Parameter]  # word -> (L, D) or (1, D)

    @property
    def phrase(self) -> str:
        """How a prompt names the concept: "<bibi1> <bibi2>", or "<bibi1> rabbit" if the class word comes after."""
        if self.recipe.class_after:
            return " ".join([*self.words, self.class_word])
        return " ".join(self.words)  # 3.3.1 V_rand+ V_class+ in P*


def start_tuning(base: Model, name: str, class_word: str, recipe: Recipe, seed: int = 0) -> Tuning:
    """The recipe's words <name1>, <name2> ... and fresh LoRAs on a copy of the base; the base stays as it is."""
    model = base.copy()
    copies = len(base.layers) if recipe.layerwise else 1
    words = {}
    for number, kind in enumerate(recipe.init, start=1):
        word = f"<{name}{number}>"
        if kind == "rand":
            row = random_embedding(base.text_encoder, word, seed)
        else:
            like = class_word if kind == "class" else kind
            row = class_embedding(base.text_encoder, base.tokenizer, like)
        # Every layer starts from the same embedding; tuning makes them differ.
        words[word] = nn.Parameter(row.to(base.unet.device).repeat(copies, 1))  # (L, D) or (1, D)
    with torch.random.fork_rng():
        torch.manual_seed(seed)  # of A, the random half of the LoRAs
        if recipe.text_lora:
            attach(model.text_encoder, recipe.rank)
        if recipe.unet_lora is not None:
            attach(model.unet, recipe.rank, recipe.unet_lora)
    return Tuning(name, class_word, recipe, model, words)


def make_optimizer(tuning: Tuning) -> torch.optim.AdamW:
    """AdamW with a learning rate of its own for the words, the text encoder and the U-Net."""
    recipe = tuning.recipe
    groups = [{"params": list(tuning.words.values()), "lr": recipe.lr_words}]
    for net, lr in ((tuning.model.text_encoder, recipe.lr_text), (tuning.model.unet, recipe.lr_unet)):
        trainable = [weight for weight in net.parameters() if weight.requires_grad]
        if trainable:
            groups.append({"params": trainable, "lr": lr})
    return torch.optim.AdamW(groups, betas=(0.9, 0.999), weight_decay=0.01)


def freezing_norm(recipe: Recipe, text_encoder: nn.Module) -> float:
    """The mean norm of the embeddings at which they are frozen, so that the LoRA has to learn the rest."""
    if recipe.freeze_norm is None:
        return math.inf
    D = text_encoder.config.hidden_size
    return recipe.freeze_norm * embedding_std(text_encoder) * math.sqrt(D)  # a random embedding is std * sqrt(D) long


def tuning_steps(tuning: Tuning, batches: Iterator[Batch], steps: int) -> Iterator[dict]:
    """The loop, as a generator: tunes in place and yields dict(step, loss, embedding_norm, tuning) after each step.

    Progress bar, checkpoint and preview stand outside; `to_concept` gives the concept so far.
    """
    recipe, words = tuning.recipe, tuning.words
    optimizer = make_optimizer(tuning)
    decay = 1 / steps if recipe.decay else 0.0  # linearly to 0
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - decay * step)
    limit = freezing_norm(recipe, tuning.model.text_encoder)
    for step in range(steps):
        loss = tuning_loss(tuning.model, next(batches), words, recipe)
        loss.backward()
        norm = torch.cat(list(words.values())).norm(dim=1).mean().item()
        if norm >= limit:
            for row in words.values():
                row.grad = None  # AdamW leaves alone what has no gradient
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        yield {"step": step, "loss": loss.item(), "embedding_norm": norm, "tuning": tuning}


def to_concept(tuning: Tuning) -> Concept:
    """What has been tuned so far, as a Concept with tensors of its own."""
    L = len(tuning.model.layers)
    embeddings = {}
    for word, rows in tuning.words.items():
        embeddings[word] = rows.detach().cpu().expand(L, -1).clone()  # (L, D), also of a V
    lora = {}
    for net in ("text_encoder", "unet"):
        factors = extract(getattr(tuning.model, net))
        if factors:
            lora[net] = factors
    words = tuple(tuning.words)
    return Concept(tuning.name, words, tuning.class_word, embeddings, lora, phrase=tuning.phrase)


def tune(
    base: Model, name: str, class_word: str, pictures: Pictures, recipe: Recipe = RECIPES["ed_lora"], seed: int = 0
) -> Concept:
    """Single-client tuning as a whole (Fig. 4a): n pictures, whose captions may say <TOK>, in; the Concept out."""
    run = start_tuning(base, name, class_word, recipe, seed)
    pictures = replace(pictures, prompts=[prompt.replace("<TOK>", run.phrase) for prompt in pictures.prompts])
    prior = None
    if recipe.prior > 0:
        prior = class_pictures(base, class_word, recipe.prior, seed)
    batches = draw_batches(base, recipe, pictures, prior, seed)
    steps = recipe.steps
    if steps is None:
        steps = math.ceil(500 * len(pictures.prompts) / recipe.batch)  # every picture is seen 500 times
    for _ in tuning_steps(run, batches, steps):
        pass  # the place for a progress bar
    return to_concept(run)
