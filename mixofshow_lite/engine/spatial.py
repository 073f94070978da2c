"""Spatial conditions (paper 3.4, 4.1): a T2I-Adapter or a ControlNet tells the U-Net where things are.

    F_i <- F_i + scale * A_i(picture)    features of the U-Net's i-th down block; an adapter's of a keypose or sketch

A condition is (adapter, picture, scale); the scale may also be several, [(box, weight), ..., weight elsewhere], as the
official command line's weights per region. It works by forward hooks on the U-Net, put on and taken off by a context
manager, so that it composes with regions: `model.sample(prompt, regions=..., spatial=(adapter, picture, 0.8))`. An
adapter's features are computed once per picture; a ControlNet runs along at every step and reads the same prompts.
"""

import math
import numbers
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import ControlNetModel, T2IAdapter
from PIL import Image
from torch import Tensor, nn

from ..attention import cross_attention, swapped
from ..files.pictures import open_picture, plain
from ..model import DiffusionModel
from ..pocket.conditions import KINDS, keypose_layout, sketch_layout
from .layerwise import Guard, LayerAttention
from .masks import Region

__all__ = ["controlnets", "keypose_layout", "layerwise_controlnet", "load_adapter", "sketch_layout", "spatial_control"]

SD15 = {  # the adapters of the official code
    "sd15-keypose": "TencentARC/t2iadapter_openpose_sd14v1",
    "sd15-sketch": "TencentARC/t2iadapter_sketch_sd14v1",
}
MODES = {1: "L", 3: "RGB"}  # channels of a condition -> mode of its picture


def load_adapter(
    name: str | Path, device: str | torch.device | None = None, dtype: torch.dtype | None = None
) -> T2IAdapter | ControlNetModel:
    """Load "pocket-keypose", "pocket-sketch" (shipped), "sd15-keypose", "sd15-sketch", a folder or a hub id.

    Folders and hub ids may hold a diffusers T2IAdapter or ControlNetModel. `device` and `dtype` default as in
    `load_base`. Raises FileNotFoundError, ConnectionError or ValueError with one sentence that says what to do.
    """
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = dtype or (torch.float16 if device.type == "cuda" else torch.float32)
    where = find_adapter(str(name))
    local = Path(where).is_dir()
    try:
        found = T2IAdapter.load_config(where, local_files_only=local).get("_class_name")
    except OSError as error:
        if local:
            raise ValueError(
                f"{where} holds no adapter (its config.json cannot be read): save one there with save_pretrained."
            ) from error
        raise ConnectionError(
            f"{where} is not on this machine and could not be downloaded ({type(error).__name__}): check its spelling, "
            "connect to the internet once, or give the folder of a local copy."
        ) from error
    kind = {"T2IAdapter": T2IAdapter, "ControlNetModel": ControlNetModel}.get(found)
    if kind is None:
        raise ValueError(f"{where} is a {found}: give a T2IAdapter or a ControlNetModel.")
    try:
        adapter = kind.from_pretrained(where, torch_dtype=dtype, local_files_only=local)
    except Exception as error:
        raise ValueError(
            f"The weights of {where} cannot be read ({type(error).__name__}): copy or download it again."
        ) from error
    return adapter.to(device).requires_grad_(False).eval()


def find_adapter(name: str) -> str:
    """The folder or hub id of an adapter."""
    maker, _, kind = name.partition("-")
    if maker == "pocket" and kind in KINDS:
        from ..files.resources import pocket_dir

        folder = pocket_dir() / "adapters" / kind
        if not folder.is_dir():
            command = f"python -m mixofshow_lite.pocket.train.adapters {kind}"
            raise FileNotFoundError(f"The pocket {kind} adapter is missing: train it with `{command}`.")
        return str(folder)
    if name in SD15 or Path(name).is_dir():
        return SD15.get(name, name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        known = ", ".join([*(f"pocket-{kind}" for kind in KINDS), *SD15])
        raise FileNotFoundError(f"There is no adapter {name!r}: say {known}, a folder or a hub id.")
    return name


@contextmanager
def spatial_control(model: DiffusionModel, spatial: tuple | Sequence[tuple]) -> Iterator[None]:
    """While on, `model.unet` follows one condition (adapter, picture[, scale]) or the sum of several.

    The picture, of any size, is stretched over what is drawn. `scale` is a number, or a list: pairs (box, weight), a
    box being (left, top, right, bottom) as fractions of the picture, and last the weight everywhere else; where boxes
    overlap the later one counts. Raises ValueError on a condition that is none, and on an
    adapter made for another U-Net.
    """
    with ExitStack() as stack:
        for adapter, picture, scale in conditions(spatial):
            check_adapter(model, adapter)
            if isinstance(adapter, ControlNetModel):
                stack.enter_context(layerwise_controlnet(model, adapter))
                guide = ControlNetGuide(adapter, picture, scale, model.factor)
            else:
                guide = AdapterGuide(adapter, picture, scale, model.factor)
            stack.callback(model.unet.register_forward_pre_hook(guide, with_kwargs=True).remove)
        yield


@dataclass(frozen=True)
class Scale:
    """How much a condition counts: one weight, and others inside boxes."""

    weight: float
    regions: tuple[tuple[Region, float], ...] = ()  # a Region is a box here, its prompt is not used

    def on(self, feature: Tensor) -> Tensor:
        """The feature (B, C, h, w) times its weight in every cell. Boxes count as in `masks.Region.cover`."""
        if not self.regions:
            return self.weight * feature
        h, w = feature.shape[-2:]
        weights = torch.full((h, w), self.weight)
        for region, weight in self.regions:
            inside = region.cover(h, w)  # (h, w)
            weights = (1 - inside) * weights + inside * weight
        return weights.to(feature) * feature


def read_scale(given: float | Sequence) -> Scale:
    """A number, or [(box, weight), ..., weight elsewhere]; ValueError on anything else or what is not finite."""
    *pairs, weight = given if isinstance(given, (list, tuple)) and given else [given]
    paired = all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs)
    weights = [weight, *(pair[1] for pair in pairs if paired)]
    if not paired or not all(isinstance(each, numbers.Real) and math.isfinite(each) for each in weights):
        raise ValueError(
            f"The scale {given!r} of a spatial condition must be a finite number, or a list of pairs "
            "((left, top, right, bottom), weight) with the weight everywhere else as its last entry."
        )
    return Scale(float(weight), tuple((Region("a condition's weight", box=box), float(w)) for box, w in pairs))


def conditions(spatial: tuple | Sequence[tuple]) -> list[tuple[nn.Module, Image.Image, Scale]]:
    """One condition or several -> [(adapter, picture, scale)]; the scale may be left out and is 1 then."""
    given = list(spatial) if isinstance(spatial, list) else [spatial]
    out = []
    for condition in given:
        fields = isinstance(condition, (tuple, list)) and len(condition) in (2, 3)
        adapter, picture, scale = (*condition, 1.0)[:3] if fields else (None, None, 0)
        known = isinstance(adapter, (T2IAdapter, ControlNetModel)) and isinstance(picture, (Image.Image, str, Path))
        if not known:
            raise ValueError(
                "A spatial condition is (adapter, picture, scale): an adapter of load_adapter, a PIL picture or its "
                "file, a number."
            )
        picture = plain(picture) if isinstance(picture, Image.Image) else open_picture(picture)
        out.append((adapter, picture, read_scale(scale)))
    return out


def controlnets(spatial: tuple | Sequence[tuple] | None) -> list[ControlNetModel]:
    """The ControlNets among the conditions, which regions need to know of."""
    return [adapter for adapter, *_ in conditions(spatial or []) if isinstance(adapter, ControlNetModel)]


def check_adapter(model: DiffusionModel, adapter: T2IAdapter | ControlNetModel) -> None:
    """Raise one sentence unless the adapter's features fit the model's U-Net."""
    of_net = isinstance(adapter, ControlNetModel)
    made_for = list(adapter.config.block_out_channels if of_net else adapter.config.channels)
    widths = list(model.unet.config.block_out_channels)
    channels = adapter.config.conditioning_channels if of_net else adapter.config.in_channels
    factor = model.factor if of_net else adapter.config.downscale_factor
    if channels not in MODES:
        raise ValueError(f"The adapter reads pictures of {channels} channels: give one for grey or RGB pictures.")
    if made_for != widths or factor != model.factor:
        raise ValueError(
            f"The adapter was made for a U-Net of widths {made_for} at 1/{factor} size, {model.base_id}'s has {widths} "
            f"at 1/{model.factor}: load one that was trained for this base."
        )


class Guide:
    """A forward pre-hook of the U-Net that adds what an adapter makes of a picture to each call."""

    def __init__(self, adapter: nn.Module, picture: Image.Image, scale: Scale, factor: int):
        self.adapter, self.picture, self.scale, self.factor = adapter, picture, scale, factor
        self.cache: dict[tuple[int, int], object] = {}  # by the latent's size

    def __call__(self, unet: nn.Module, args: tuple, kwargs: dict):
        call = dict(zip(("sample", "timestep", "encoder_hidden_states"), args, strict=False)) | kwargs
        cells = tuple(call["sample"].shape[-2:])
        if cells not in self.cache:
            self.cache[cells] = self.prepare([side * self.factor for side in cells])
        return args, kwargs | self.residuals(self.cache[cells], call)

    def pixels(self, size: Sequence[int], channels: int) -> Tensor:
        """The picture as the adapter reads it, (1, channels, H, W) in 0..1."""
        picture = self.picture.convert(MODES[channels]).resize((size[1], size[0]), Image.Resampling.LANCZOS)
        x = torch.from_numpy(np.asarray(picture, dtype=np.float32) / 255).view(*size, channels)
        return x.permute(2, 0, 1)[None].to(self.adapter.device, self.adapter.dtype)


class AdapterGuide(Guide):
    """A T2I-Adapter: features of the picture alone, computed once."""

    def prepare(self, size) -> list[Tensor]:
        with torch.no_grad():
            return [self.scale.on(f) for f in self.adapter(self.pixels(size, self.adapter.config.in_channels))]

    def residuals(self, features: list[Tensor], call: dict) -> dict:
        name = "down_intrablock_additional_residuals"
        mine = [f.to(call["sample"]).expand(len(call["sample"]), -1, -1, -1) for f in features]  # (B, C_i, h_i, w_i)
        others = call.get(name)  # a list that the U-Net empties: always a new one
        return {name: mine if others is None else [a + b for a, b in zip(mine, others, strict=True)]}


class ControlNetGuide(Guide):
    """A ControlNet: a copy of the U-Net's first half that sees the picture, the noisy latents and the prompt."""

    def prepare(self, size) -> Tensor:
        return self.pixels(size, self.adapter.config.conditioning_channels)

    def residuals(self, picture: Tensor, call: dict) -> dict:
        down, middle = self.adapter(
            call["sample"],
            call["timestep"],
            encoder_hidden_states=call["encoder_hidden_states"],
            controlnet_cond=picture.expand(len(call["sample"]), -1, -1, -1),
            return_dict=False,
        )
        down, middle = [self.scale.on(f) for f in down], self.scale.on(middle)
        if call.get("mid_block_additional_residual") is not None:
            down = [a + b for a, b in zip(down, call["down_block_additional_residuals"], strict=True)]
            middle = middle + call["mid_block_additional_residual"]
        return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}


@contextmanager
def layerwise_controlnet(model: DiffusionModel, controlnet: ControlNetModel) -> Iterator[None]:
    """While on, the ControlNet reads the model's layer-wise prompts (`prompt_embeds`), also in a stock pipeline.

    It is a copy of the U-Net's down and middle blocks, so its layers are the U-Net's first ones. Whatever processors it
    had before are on again afterwards; ValueError on a call if they are replaced meanwhile.
    """
    guard = Guard(cross_attention(controlnet), len(model.layers), model.tokens, "ControlNet", controlled=1)
    make = partial(LayerAttention, layers=len(model.layers), tokens=model.tokens)
    with swapped(controlnet, make), model.unet.layerwise_guard.knowing(1):
        hook = controlnet.register_forward_pre_hook(guard, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()
