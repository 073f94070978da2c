"""Text-to-image diffusion (paper 3.1): one model class for the base, for base + concept, and for the fused model.

    L = E_{z, c, eps, t} || eps - eps_theta(z_t, t, c) ||^2                                   (Eq. 1)

    paper        here              shape
    z            latents           (B, C, h, w)     VAE code of the picture, times the VAE's scaling factor
    z_t          add_noise(...)    (B, C, h, w)     sqrt(a_t) z + sqrt(1 - a_t) eps
    c = psi(P)   context(prompts)  (B, L, N, D)     one text feature map per cross-attention layer
    V+           words[word]       (L, D)           layer-wise rows of a concept word

The L cross-attention layers are counted down -> mid -> up, the order in which a sample passes through them. Every size
is read from the model.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DPMSolverMultistepScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor, nn
from tqdm.auto import tqdm

from .attention import cross_attention
from .diffusion import add_noise, draw_noise, guided_noise
from .engine import lora
from .engine.arguments import SEEDS, check_callback, check_number, check_switch, check_whole, is_number, is_whole
from .engine.finite import culprit, is_finite
from .engine.layerwise import check_processors, encode, install
from .files.concept import Concept, bind
from .files.fits import check_fits
from .files.prompt_check import as_prompts, cut_off, foreign_syntax, half_named, not_joined, unknown_words
from .files.warn import warn

LARGEST_SIDE = 16384  # pixels


@dataclass
class DiffusionModel:
    """A Stable-Diffusion-shaped model. Its methods never change it: what they return shares all unchanged weights."""

    tokenizer: object  # CLIPTokenizer
    text_encoder: nn.Module  # CLIPTextModel, psi
    unet: UNet2DConditionModel  # epsilon_theta
    vae: AutoencoderKL
    scheduler: object  # any diffusers scheduler; only its betas and its configuration are used
    base_id: str = ""  # "pocket-v2", "sd15", a folder's or hub id's name
    fingerprint: str = ""  # of the base's weights; concepts and fused models keep the one of their base
    words: dict[str, Tensor] = field(default_factory=dict)  # concept word -> (L, D)
    names: dict[str, tuple[str, ...]] = field(default_factory=dict)  # concept word -> all words of its concept
    report: object = None  # what a fusion says about itself, per layer
    guidance: float = 7.5  # default scale of classifier-free guidance
    known_words: frozenset[str] = frozenset()  # the pocket model's vocabulary in plain words; empty: not limited
    warned: set[str] = field(default_factory=set, repr=False)  # what the user has been told of prompts and words
    layers: tuple[str, ...] = field(init=False)  # names of the L cross-attention layers, down -> mid -> up

    def __post_init__(self):
        self.layers = install(self.unet, self.tokens)
        for net in (self.text_encoder, self.unet, self.vae):
            net.requires_grad_(False).eval()

    @property
    def tokens(self) -> int:
        """N, the length of a tokenized prompt."""
        return self.tokenizer.model_max_length

    @property
    def device(self) -> torch.device:
        return self.unet.device

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype

    @property
    def factor(self) -> int:
        """Pixels per latent cell along one side, f."""
        return 2 ** (len(self.vae.config.block_out_channels) - 1)

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels of the pictures the model was trained on."""
        side = self.unet.config.sample_size
        h, w = side if isinstance(side, (tuple, list)) else (side, side)
        return h * self.factor, w * self.factor

    def copy(self) -> "DiffusionModel":
        """The same model with modules, scheduler and words of its own, its weights in the same memory.

        Change the copy as you like, also its precision or device (`.half()`, `.to("cuda")`): this model stays as it
        is. Only writing into the weights' numbers in place would reach both.
        """
        nets = {name: lora.share(getattr(self, name)) for name in ("text_encoder", "unet", "vae")}
        words = {word: rows.clone() for word, rows in self.words.items()}
        own = {"scheduler": copy.deepcopy(self.scheduler), "words": words, "names": dict(self.names)}
        return replace(self, **nets, **own, report=copy.copy(self.report))

    def with_concept(self, concept: Concept, alpha: float = 1.0) -> "DiffusionModel":
        """Phi_0 + alpha * dPhi with the concept's words; alpha = 0 is the embedding alone, Phi_0(P*) (Fig. 3).

        Raises ValueError on an alpha, or a concept, that is not finite here.
        """
        if not is_number(alpha):
            raise ValueError(f"alpha={alpha}: give a finite number, 1 for the whole update.")
        model = self.with_words(concept)
        if alpha == 0:
            return model
        for net, factors in concept.lora.items():
            deltas = {name: lora.delta(down, up, alpha * concept.scale) for name, (down, up) in factors.items()}
            lora.add_deltas(getattr(model, net), deltas)
        return model

    def with_words(self, *concepts: Concept) -> "DiffusionModel":
        """The same weights with the concepts' words; raises ValueError on another architecture or a taken word."""
        model = self.copy()
        for concept in concepts:
            check_fits(concept, self)
            for word, rows in concept.embeddings.items():
                if word in model.words and not torch.equal(model.words[word].cpu().float(), rows.cpu().float()):
                    raise ValueError(
                        f"The word {word} of {concept.name!r} is taken by another concept: give it other words with "
                        'concept.renamed("another-name").'
                    )
                model.words[word] = rows.detach().to(self.device, torch.float32, copy=True)
                model.names[word] = tuple(concept.words)
        return model

    def context(
        self, prompts: str | Sequence[str], words: dict[str, Tensor] | None = None, called: str = "prompt"
    ) -> Tensor:
        """psi(P): prompts -> (B, L, N, D). A prompt without concept words is encoded once and expanded over the layers.

        A prompt with concept words is bound to L layer prompts (layer l uses row l of each word) and encoded L times.
        Gradients flow into `words` (default: the model's own) and the text encoder where they are enabled. Warns of
        what will not be understood (`check_prompts`), in sentences that call it `called`. Raises TypeError if a prompt
        is no text.
        """
        prompts = as_prompts(prompts)
        words = self.words if words is None else words
        unique = list(dict.fromkeys(prompts))
        bound = bind(self.tokenizer, unique, list(words))
        self.check_prompts(unique, bound.cut, words, called)
        table = torch.stack([*words.values()]) if words else None  # (W, L, D)
        contexts = dict(zip(unique, encode(self.text_encoder, bound, table, len(self.layers)), strict=True))
        if len(prompts) == 1:
            return contexts[prompts[0]][None]
        return torch.stack([contexts[prompt] for prompt in prompts])

    def check_prompts(self, prompts: Sequence[str], cut: Sequence[str] = (), words=(), called: str = "prompt") -> None:
        """Warn, each thing once, of what in the prompts will not be understood: see `files.prompt_check`.

        `cut` is what did not fit of each prompt, `words` are the concept words they may use, `called` says in the
        sentences what they are.
        """
        names = {word: name for word, name in self.names.items() if word in words}
        said = [
            cut_off(prompt, rest, words, self.tokens - 2, called) for prompt, rest in zip(prompts, cut, strict=False)
        ]
        said += [foreign_syntax(prompt, called) for prompt in prompts]
        said += [half_named(prompt, names, called) for prompt in prompts]
        by_key = {sentence: sentence for sentence in said if sentence} | not_joined(prompts, list(words))
        for key in by_key.keys() - self.warned:
            self.warned.add(key)
            warn(by_key[key])
        self.check_known(prompts)

    def check_known(self, prompts: Sequence[str], called: str = "") -> None:
        """Warn, once a word, of plain words that a model with a small vocabulary does not know."""
        unknown = unknown_words(prompts, self.known_words) - self.warned
        if unknown:
            self.warned |= unknown
            warn(
                f"The {self.base_id} model does not know{called}: {', '.join(sorted(unknown))}. "
                f"It knows: {', '.join(sorted(self.known_words))}."
            )

    def prompt_embeds(self, prompts: str | Sequence[str]) -> Tensor:
        """The context as stock pipelines take it (`prompt_embeds`, `negative_prompt_embeds`): (B, L * N, D).

        Raises ValueError on a U-Net whose attention processors were replaced, which would misread it.
        """
        check_processors(cross_attention(self.unet))
        with torch.no_grad():
            return self.context(prompts).flatten(1, 2).to(self.dtype)

    def encode_images(self, pictures: Sequence[Image.Image]) -> Tensor:
        """PIL pictures of one size -> latents (B, C, h, w): the mean of the VAE's posterior, scaled."""
        return self.posterior(pictures)[0]

    @torch.no_grad()
    def posterior(self, pictures: Sequence[Image.Image]) -> tuple[Tensor, Tensor]:
        """What the VAE makes of PIL pictures of one size: mean and deviation of their latents, (B, C, h, w), scaled."""
        x = np.stack([np.asarray(picture.convert("RGB")) for picture in pictures])
        x = torch.from_numpy(x).permute(0, 3, 1, 2).to(self.device, self.vae.dtype) / 127.5 - 1  # (B, 3, H, W)
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        found, factor = self.vae.encode(x).latent_dist, self.vae.config.scaling_factor
        return (found.mean - shift) * factor, found.std * factor

    @torch.no_grad()
    def decode(self, latents: Tensor, context: Tensor | None = None) -> list[Image.Image]:
        """Latents (B, C, h, w) -> PIL pictures; one that is not finite is black.

        A warning says then where the numbers were lost, the better the more is known: `context` (B, L, N, D) is what
        the latents were drawn from.
        """
        shift = getattr(self.vae.config, "shift_factor", None) or 0.0
        x = self.vae.decode(latents.to(self.vae.dtype) / self.vae.config.scaling_factor + shift).sample  # (B, 3, H, W)
        if not is_finite(x):
            black = len(x) - x.isfinite().flatten(1).all(dim=1).sum().item()
            where, advice = culprit(self, context, latents)
            warn(f"{black} of {len(x)} pictures are black, because {where} are not finite: {advice}.")
            x = x.nan_to_num(-1, -1, -1)
        x = ((x.float() + 1) * 127.5).clamp(0, 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
        return [Image.fromarray(picture) for picture in x]

    def noise(self, n: int, seed: int, size: int | tuple[int, int] | None = None) -> Tensor:
        """(n, C, h, w) Gaussian noise on the CPU; picture i has its own seed + i, whatever n is.

        `size` in pixels, an int or (height, width); raises ValueError unless the latents have whole cells. The U-Net
        takes any number of them: what it cannot halve it rounds up, and cuts off again on its way back.
        """
        size = self.size if size is None else size
        size = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
        whole = len(size) == 2 and all(is_whole(side, self.factor, LARGEST_SIDE) for side in size)
        if not whole or any(side % self.factor for side in size):
            raise ValueError(
                f"size={size} does not fit this model: both sides must be multiples of {self.factor} pixels, "
                f"up to {LARGEST_SIDE}."
            )
        shape = (self.unet.config.in_channels, size[0] // self.factor, size[1] // self.factor)
        return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed + i)) for i in range(n)])

    @torch.no_grad()
    def sample(
        self,
        prompt: str | Sequence[str],
        n: int = 1,
        seed: int = 0,
        steps: int = 25,
        guidance: float | None = None,
        negative_prompt: str = "",
        size: int | tuple[int, int] | None = None,
        regions: Sequence | None = None,
        callback: Callable[[dict], None] | None = None,
        progress: bool = True,
        batch: int = 8,
        base_ratio: float = 0.0,
        isolate: bool = False,
        spatial: tuple | Sequence[tuple] | None = None,
    ) -> list[Image.Image]:
        """Draw n pictures of the prompt (of each, if it is a list) with DPM-Solver++(2M) and classifier-free guidance.

        `guidance` 1 is the conditional model alone; None is the model's default. An empty prompt is allowed and draws
        unconditionally, with a warning. `regions` are `regional.Region`s (3.4); `base_ratio` is the global prompt's
        share inside them, `isolate` keeps them apart in self-attention too. `spatial` is one condition (adapter,
        picture, scale) of `spatial.load_adapter`, or several. `callback` gets a dict(step, t, latents, model) after
        every step, for each batch of at most `batch` pictures. Raises ValueError on n, steps, size or guidance out of
        range; warns where a picture is black because numbers were not finite.
        """
        prompts = as_prompts(prompt)
        for name, value in {"n": n, "steps": steps, "batch": batch}.items():
            check_whole(name, value, least=1 if name == "batch" else 0, most=10_000)
        check_whole("seed", seed, *SEEDS)
        check_number("base_ratio", base_ratio, 0, 1)
        check_switch("isolate", isolate)
        check_callback(callback)
        if not isinstance(negative_prompt, str):
            raise TypeError(f"negative_prompt={negative_prompt!r}: give one text, for all pictures.")
        if n < 1 or steps < 1 or not prompts:
            raise ValueError(f"n={n}, steps={steps}, {len(prompts)} prompts: ask for at least one of each.")
        if not all(p.strip() for p in prompts):
            warn("The prompt is empty: the model draws whatever it likes (unconditionally).")
        guidance = self.guidance if guidance is None else guidance
        if not is_number(guidance):
            raise ValueError(f"guidance={guidance}: give a finite number, 1 for the conditional model alone.")
        noise = self.noise(n, seed, size).repeat(len(prompts), 1, 1, 1)
        context = self.context([p for p in prompts for _ in range(n)])  # (B, L, N, D)
        negative = self.context(negative_prompt, called="negative prompt")  # (1, L, N, D)
        pictures = []
        with self._controls(
            regions, spatial, guided=guidance != 1, steps=steps, base_ratio=base_ratio, isolate=isolate
        ):
            chunks = list(zip(noise.split(batch), context.split(batch), strict=True))
            with tqdm(total=steps * len(chunks), disable=not progress, desc="sampling", leave=False) as bar:
                for z, c in chunks:
                    pictures += self.decode(self.denoise(z, c, negative, steps, guidance, callback, bar), c)
        return pictures

    @torch.no_grad()
    def denoise(
        self,
        z: Tensor,
        context: Tensor,
        negative: Tensor,
        steps: int,
        guidance: float,
        callback: Callable[[dict], None] | None = None,
        bar: tqdm | None = None,
    ) -> Tensor:
        """Noise (B, C, h, w), contexts (B, L, N, D) and (1, L, N, D) -> latents (B, C, h, w), see `sampling_loop`."""
        context, negative = context.to(self.dtype), negative.to(self.dtype)

        def predict(step: int, z: Tensor, t: Tensor) -> Tensor:
            return guided_noise(self, z, t, context, negative, guidance)

        return sampling_loop(self, z, steps, predict, callback, bar)

    def _controls(self, regions, spatial, **options) -> ExitStack:
        """Spatial conditions and regions, on until the stack is closed; arrows that point up, for public names."""
        with ExitStack() as stack:
            nets = []
            if spatial:
                from .engine.spatial import controlnets, spatial_control

                stack.enter_context(spatial_control(self, spatial))
                nets = controlnets(spatial)
            if regions:
                from .engine.regional import regional_attention

                stack.enter_context(regional_attention(self, regions, controlnets=nets, **options))
            return stack.pop_all()

    def pipeline(self) -> StableDiffusionPipeline:
        """A stock diffusers pipeline on these very networks, so that `regional_attention(model, ...)` acts in it too.

        What the pipeline loads (`load_lora_weights`) therefore changes this model: `model.copy().pipeline()` keeps them
        apart, also in another precision (`.to(torch.float16)`), as long as nothing is fused in place (`fuse_lora`).
        Plain prompts work as they are; for concept words pass `prompt_embeds=model.prompt_embeds(prompt)` and
        `negative_prompt_embeds=model.prompt_embeds("")`.
        """
        scheduler = DPMSolverMultistepScheduler.from_config(self.scheduler.config, algorithm_type="dpmsolver++")
        return StableDiffusionPipeline(
            vae=self.vae,
            text_encoder=self.text_encoder,
            tokenizer=self.tokenizer,
            unet=self.unet,
            scheduler=scheduler,
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )

    def save_pipeline(self, folder: str | Path) -> Path:
        """Write a plain diffusers folder whose concept words are real tokens; `load_base(folder)` reads them back.

        All or nothing: an older one that this wrote is replaced, FileExistsError if the folder holds anything else.
        """
        from .files.loading import save_pipeline

        return save_pipeline(self, folder)

    def to_lora(self, file: str | Path, format: str = "diffusers") -> Path:
        """Write a fused update as an ordinary "diffusers" or "kohya" LoRA file, or a folder of "peft" adapters.

        Raises ValueError if nothing was fused. It shows the fused update, no single client's factors; `fusion.export`
        says what can still be learnt from it.
        """
        from .engine.fusion import to_lora  # a public name of the model; the work is the center node's

        return to_lora(self, file, format)


noising = add_noise  # its public name, `mixofshow_lite.noising`


def sampling_loop(
    model: DiffusionModel,
    z: Tensor,
    steps: int,
    predict: Callable[[int, Tensor, Tensor], Tensor],
    callback: Callable[[dict], None] | None = None,
    bar: tqdm | None = None,
) -> Tensor:
    """The one loop that samples: noise (B, C, h, w) -> latents, by DPM-Solver++(2M).

    `predict(step, z, t)` gives the noise in z (B, C, h, w) at time t (); `callback` and `bar` see every step.
    """
    scheduler = DPMSolverMultistepScheduler.from_config(model.scheduler.config, algorithm_type="dpmsolver++")
    scheduler.set_timesteps(steps, device=model.device)
    z = z.to(model.device, model.dtype) * scheduler.init_noise_sigma
    for step, t in enumerate(scheduler.timesteps):
        eps = predict(step, scheduler.scale_model_input(z, t), t)
        z = scheduler.step(eps, t, z).prev_sample
        if bar is not None:
            bar.update()
        if callback is not None:
            callback({"step": step, "t": t.item(), "latents": z, "model": model})
    return z


def denoising_loss(
    model: DiffusionModel,
    latents: Tensor,
    context: Tensor,
    noise: Tensor | None = None,
    t: Tensor | None = None,
    mask: Tensor | None = None,
    noise_offset: float = 0.0,
    generator: torch.Generator | None = None,
    each: bool = False,
) -> Tensor:
    """Eq. 1: the mean of || eps - eps_theta(z_t, t, c) ||^2 over latents (B, C, h, w) with context (B, L, N, D).

    t and noise that are not given come from `draw_noise`. With a mask (B, 1, h, w) in 0..1 only the masked cells count.
    With `each` every picture has its own mean, (B,), as the official masked loss takes them.
    """
    if t is None or noise is None:
        drawn = draw_noise(model, latents.shape, noise_offset, generator)
        t, noise = (drawn[0] if t is None else t), (drawn[1] if noise is None else noise)
    t, noise = t.to(latents.device), noise.to(latents.device, latents.dtype)
    predicted = model.unet(add_noise(model, latents, noise, t), t, context).sample
    error = F.mse_loss(predicted.float(), noise.float(), reduction="none")  # (B, C, h, w)
    over = (1, 2, 3) if each else (0, 1, 2, 3)
    if mask is None:
        return error.mean(dim=over)
    mask = mask.to(error).expand_as(error)
    return (error * mask).sum(dim=over) / mask.sum(dim=over).clamp(min=1)


def load_base(
    name: str | Path = "pocket", device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> DiffusionModel:
    """Load "pocket" (shipped, offline), "sd15" (pinned, from the hub), a diffusers folder or a hub id.

    `device` defaults to CUDA where there is one, `dtype` to float16 there and float32 on the CPU (pocket: float32
    everywhere). Raises
    FileNotFoundError, ConnectionError or ValueError with one sentence that says what to do.
    """
    from .files.loading import load

    return load(str(name), device, dtype)
