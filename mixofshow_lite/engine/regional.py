"""Regionally controllable sampling (paper 3.4): region-aware cross-attention.

    h = softmax(Q(z) K(P_g)^T / sqrt(d)) V(P_g)                       global prompt
    h_i = softmax(Q(z_i) K(P_ri)^T / sqrt(d)) V(P_ri),  h[M_i] = h_i  each region's prompt, inside its mask

is one rule here, at every cross-attention layer and every pixel:  h <- (1 - sum_i w_i) h + sum_i w_i h_i.

    paper   here        shape
    M_i     (masks.py)  a box or mask
            w_i         (R, T)            the masks on the layer's T = h * w cells, summing to at most 1
    P_ri    context_i   (L, N, D)         the region's prompt, layer-wise like every prompt
    z_i     pixels      (R, B, K, C)      the K cells where a region has a share: its attention is computed there only
    K, V    key, value  (R, heads, N, d)  computed once per picture: prompts do not change while it is drawn

Disjoint boxes have w = 1 inside, the paper's replacement exactly; equal overlapping boxes are averaged, as in the
official code. The blend is taken before the layer's output projection: the same, because the weights sum to one.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from ..attention import cross_attention, layer_size, split_heads, swapped
from ..files.warn import warn
from ..model import DiffusionModel
from .arguments import is_number
from .layerwise import READ_LAYERS, LayerAttention, check_processors
from .masks import Region, check_regions, parse_regions, region_weights, side_by_side

__all__ = ["Region", "RegionAttention", "parse_regions", "region_weights", "regional_attention", "side_by_side"]


class Plan:
    """What the processors of one network share: the active regions and their weights at this step of the sampling loop.

    `observe` is its forward pre-hook.

    `halves` has one list per part of the batch, (negative, positive) under classifier-free guidance and (positive,)
    without; each holds every region's context (L, N, D), or None where the region has no say.
    """

    def __init__(self, regions: Sequence[Region], halves: list[list], steps: int | None, T: int, base_ratio: float):
        self.regions, self.halves, self.base_ratio = regions, halves, base_ratio
        self.steps, self.timesteps = steps, T  # denoising steps of a picture, if known; steps of the training schedule
        self.calls, self.last = 0, float("-inf")  # the step of this call, its timestep
        self.put: dict[Attention, object] = {}  # the network's processors as long as this is on
        self.spoken: set[int] = set()  # regions that were active at any call
        self.batch = 0  # of this call; 0 before the first one
        self.differ: Tensor | None = None  # () bool: the halves of an even batch are not the same latents
        self.timed = any(region.start > 0 or region.end < 1 for region in regions)
        self.now: tuple[int, ...] = tuple(range(len(regions)))  # numbers of the regions that are active at this step
        self.speaking = halves  # the halves of this call
        self.cells = (0, 0)  # of the latents
        self.cache: dict[tuple, object] = {}

    def observe(self, network: nn.Module, args: tuple, kwargs: dict) -> None:
        """Read a call's latent size, step and halves off its arguments."""
        given = dict(zip(("sample", "timestep"), args, strict=False)) | kwargs
        if any(module.processor is not processor for module, processor in self.put.items()):
            raise ValueError(
                "The U-Net's attention processors were replaced while regions are on, which would be lost: call "
                "enable_attention_slicing, xformers, set_attn_processor or fuse_qkv_projections on another pipeline, "
                "such as model.copy().pipeline()."
            )
        self.cells = tuple(given["sample"].shape[-2:])
        self.speaking = self.halves[-1:] if given.get("guess_mode") else self.halves  # a ControlNet's option
        if not given.get("guess_mode"):
            self.compare(given["sample"])
        if self.timed:
            progress = self.progress(given)
            self.now = tuple(i for i, region in enumerate(self.regions) if region.active(progress))
        self.spoken |= set(self.now)

    def compare(self, latents: Tensor) -> None:
        """Whether the two halves of a batch (B, C, h, w) are the same, as they are if and only if there is guidance.

        A device's answer is read at the next call, when it has long been there: waiting for it would cost time.
        """
        self.check_halves()
        self.batch = len(latents)
        if self.batch % 2 == 0:
            first, second = latents.nan_to_num().chunk(2)
            differ = (first != second).any()
            self.differ = differ if self.differ is None or len(self.halves) > 1 else self.differ | differ
            if latents.device.type == "cpu":
                self.check_halves()

    def check_halves(self) -> None:
        """Raise ValueError if batches of one picture each were taken for (negative, positive) pairs."""
        if len(self.halves) > 1 and self.differ is not None and self.differ:
            raise ValueError(
                f"The two halves of a batch of {self.batch} are different pictures and no (negative, positive) pair: "
                "with guidance scale 1 say regional_attention(..., guided=False)."
            )

    def progress(self, given: dict) -> float:
        """Steps before this one over all steps; where their number is not known, the part of the timesteps.

        Some schedulers call twice at a timestep (Heun, PNDM's first), which is one step. Others call between the steps
        (KDPM2): there the number of steps is no help, so ValueError is raised.
        """
        t = torch.as_tensor(given["timestep"]).flatten()[0].item()
        if t > self.last or self.steps == 1:  # the next picture begins
            self.calls = 0
        elif t < self.last:
            self.calls += 1
        self.last = t
        if self.steps and self.calls >= self.steps:
            raise ValueError(
                f"The U-Net is called at more than steps={self.steps} timesteps of a picture: leave steps= out, then "
                "the regions' start and end are read off the timesteps, which is right for every scheduler."
            )
        return self.calls / self.steps if self.steps else 1 - (t + 1) / self.timesteps

    def close(self) -> None:
        """What can be told only at the end: warns of regions that never spoke and of options that did not fit."""
        self.check_halves()
        if not self.batch:
            return
        for i in sorted(set(range(len(self.regions))) - self.spoken):
            region = self.regions[i]
            warn(
                f"The region {region.prompt!r} was never active: none of the steps lies between its start "
                f"{region.start} and its end {region.end}, draw with more steps or give it more of them."
            )
        if self.timed and self.steps and self.calls + 1 < self.steps:
            warn(
                f"Only {self.calls + 1} of steps={self.steps} were drawn, so the regions' start and end came late: "
                "give the number of steps that the pipeline draws, or leave steps= out."
            )
        if len(self.halves) == 1 and self.differ is not None and not self.differ:
            warn(
                "With guided=False every region spoke in both halves of the batch, which were the same picture: with a "
                "guidance scale above 1 say guided=True."
            )

    def shares(self, own: tuple[int, ...], like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The weights for features (B, T, C): the global prompt's, (T, 1); for every region of `own` the cells where it
        has any, (R, K), and its weights there, (R, K, 1). Smaller regions are padded with weights of 0.
        """
        h, w = layer_size(like.shape[1], *self.cells)
        key = (h, w, self.now, own)
        if key not in self.cache:
            active = region_weights([self.regions[i] for i in self.now], h, w, self.base_ratio)
            shares = active[[self.now.index(i) for i in own]]  # (R, T)
            rest = (1 - shares.sum(0)).clamp(min=0)[:, None]
            cells = pad_sequence([share.nonzero()[:, 0] for share in shares], batch_first=True)  # (R, K)
            own_cells = torch.arange(cells.shape[1]) < (shares != 0).sum(1, keepdim=True)  # (R, K), false on padding
            there = torch.where(own_cells, shares.gather(1, cells), 0)[:, :, None]
            self.cache[key] = rest.to(like), cells.to(like.device), there.to(like)
        return self.cache[key]

    def may_look(self, T: int, device: torch.device) -> Tensor | None:
        """(T, T) true where cell p may look at cell q: they share a region, or one of them is in none."""
        h, w = layer_size(T, *self.cells)
        key = (h, w, self.now)
        if key not in self.cache and self.now:
            inside = torch.stack([self.regions[i].cover(h, w).flatten() >= 0.5 for i in self.now]).float()  # (R, T)
            outside = inside.sum(0) == 0
            allowed = (inside.T @ inside > 0) | outside[:, None] | outside[None]
            self.cache[key] = allowed.to(device)
        return self.cache.get(key)


class RegionAttention(LayerAttention):
    """Cross-attention of one layer that blends the regions' prompts into the global one."""

    def __init__(self, layer: int, layers: int, tokens: int, plan: Plan):
        super().__init__(layer, layers, tokens)
        self.plan = plan
        self.keys: dict[tuple, tuple[Tensor, Tensor]] = {}  # (half, regions) -> key, value

    def __call__(
        self, attn: Attention, hidden_states, encoder_hidden_states=None, attention_mask=None, *args, **kwargs
    ):
        if attention_mask is not None:
            raise ValueError("Regions do not know what to do with an encoder_attention_mask: leave it out.")
        halves, B = self.plan.speaking, len(hidden_states)
        if B % len(halves):
            raise ValueError(
                f"A batch of {B} is no (negative, positive) pair: with guidance scale 1 say "
                "regional_attention(..., guided=False)."
            )
        query = attn.to_q(hidden_states)  # (B, T, C)
        context = self.own_slice(encoder_hidden_states)  # (B, N, D)
        heads = [split_heads(x, attn.heads) for x in (query, attn.to_k(context), attn.to_v(context))]
        out = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)  # (B, T, C)
        parts = zip(query.chunk(len(halves)), out.chunk(len(halves)), range(-len(halves), 0), strict=True)
        return attn.to_out[0](torch.cat([self.blend(attn, *part) for part in parts]))

    def blend(self, attn: Attention, query: Tensor, out: Tensor, half: int) -> Tensor:
        """Put the regions' attention into that of the global prompt, both (B, T, C); half -1 is the positive one."""
        own = tuple(i for i in self.plan.now if self.plan.speaking[half][i] is not None)
        if not own:
            return out
        if (half, own) not in self.keys:
            contexts = torch.stack([self.plan.speaking[half][i][self.layer] for i in own])  # (R, N, D)
            self.keys[half, own] = tuple(split_heads(to(contexts), attn.heads) for to in (attn.to_k, attn.to_v))
        key, value = self.keys[half, own]  # (R, heads, N, d)
        rest, cells, share = self.plan.shares(own, out)
        pixels = query[:, cells].transpose(0, 1)  # (R, B, K, C)
        theirs = F.scaled_dot_product_attention(split_heads(pixels.flatten(1, 2), attn.heads), key, value)
        theirs = theirs.transpose(1, 2).reshape(pixels.shape) * share[:, None]
        return (rest * out).index_add_(1, cells.flatten(), theirs.transpose(0, 1).flatten(1, 2))


class IsolatedAttention:
    """Self-attention in which the cells of one region do not look at those of another."""

    def __init__(self, plan: Plan):
        self.plan = plan

    def __call__(self, attn: Attention, hidden_states, encoder_hidden_states=None, *args, **kwargs):
        qkv = [split_heads(to(hidden_states), attn.heads) for to in (attn.to_q, attn.to_k, attn.to_v)]
        mask = self.plan.may_look(hidden_states.shape[1], hidden_states.device)
        out = F.scaled_dot_product_attention(*qkv, attn_mask=mask)  # (B, heads, T, d)
        return attn.to_out[0](out.transpose(1, 2).flatten(2))


@contextmanager
def regional_attention(
    model: DiffusionModel,
    regions: Sequence[Region],
    guided: bool = True,
    *,
    base_ratio: float = 0.0,
    isolate: bool = False,
    steps: int | None = None,
    controlnets: Sequence[nn.Module] = (),
) -> Iterator[None]:
    """While on, `model.unet` draws every region by its own prompt (Fig. 5), also inside a stock pipeline on this U-Net.

    guided       batches are (negative, positive) pairs; a region speaks in the positive half, and in the negative one
                 if it has a negative prompt
    base_ratio   share of the global prompt inside the regions, 0 <= base_ratio < 1
    isolate      regions do not see each other in self-attention either
    steps        number of denoising steps, to which the regions' start and end refer; None reads them off the
                 timesteps, which is the same to a step
    controlnets  ControlNets that draw along: copies of the U-Net's first half, whose layers read the same prompts;
                 regions may then be empty

    Weights of the model must not change inside. Raises TypeError on what is no Region, ValueError on a base_ratio out
    of range and where the attention processors are others, before or while this is on; inside also on batches and
    steps that are not as said. Warns at the end of regions that were never active.
    """
    regions = check_regions(regions)
    if not is_number(base_ratio) or not 0 <= base_ratio < 1:
        raise ValueError(f"base_ratio is {base_ratio}: give the global prompt's share, 0 <= base_ratio < 1.")
    check_processors(cross_attention(model.unet), READ_LAYERS)
    if not all(type(module.processor) is LayerAttention for module in cross_attention(model.unet).values()):
        raise ValueError("Regions or a recording are on this model already: end their `with` first.")
    negative = "region's negative prompt"
    halves = [contexts(model, [region.negative_prompt for region in regions], negative)] if guided else []
    halves.append(contexts(model, [region.prompt for region in regions]))
    T = model.scheduler.config.num_train_timesteps
    with ExitStack() as stack:
        stack.enter_context(model.unet.layerwise_guard.knowing(len(controlnets)))
        plans = [Plan(regions, halves, steps, T, base_ratio) for _ in (model.unet, *controlnets)]
        for network, plan in zip((model.unet, *controlnets), plans, strict=True):
            stack.callback(network.register_forward_pre_hook(only_of(network, plan), with_kwargs=True).remove)
            make = {cross_attention: partial(RegionAttention, layers=len(model.layers), tokens=model.tokens, plan=plan)}
            if isolate:
                make[self_attention] = lambda _, plan=plan: IsolatedAttention(plan)
            for find, processor in make.items():
                ours = stack.enter_context(swapped(network, processor, find))
                plan.put |= dict(zip(find(network).values(), ours, strict=True))
        yield
        plans[0].close()  # of the U-Net; a ControlNet's would say the same again


def only_of(network: nn.Module, plan: Plan) -> Callable:
    """The plan's forward pre-hook for this network; a copy of it that is made meanwhile has no regions."""

    def observe(module: nn.Module, args: tuple, kwargs: dict) -> None:
        if module is network:
            plan.observe(module, args, kwargs)

    return observe


def self_attention(network: nn.Module) -> dict[str, Attention]:
    """The self-attention modules of a U-Net or ControlNet, name -> module."""
    return {n: m for n, m in network.named_modules() if isinstance(m, Attention) and n.endswith("attn1")}


@torch.no_grad()
def contexts(
    model: DiffusionModel, prompts: Sequence[str | None], called: str = "region's prompt"
) -> list[Tensor | None]:
    """The context (L, N, D) of each prompt, None for None; `called` is what warnings call them."""
    given = [prompt for prompt in prompts if prompt is not None]
    found = dict(zip(given, model.context(given, called=called).to(model.dtype), strict=True)) if given else {}
    return [None if prompt is None else found[prompt] for prompt in prompts]
