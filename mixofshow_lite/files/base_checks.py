"""What can be wrong with the folder of a base model, each said in one sentence before or while it is read."""

import hashlib
import json
import math
import re
from pathlib import Path

import diffusers
import torch
from diffusers import SchedulerMixin
from safetensors import safe_open
from torch import nn
from transformers import CLIPTokenizer

from .warn import warn

CLASSES = {"unet": "UNet2DConditionModel", "text_encoder": "CLIPTextModel", "vae": "AutoencoderKL"}
PRECISIONS = ("float32", "float16", "bfloat16")
ABOUT = {"base_id": str, "guidance": int | float, "dtype": str, "fingerprint": str}  # mixofshow.json: what is what
CHECKSUM = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")  # a line of SHA256SUMS
SCALE = re.compile(r"(weight_scale|scale_weight)$")  # what packed weights have to be multiplied by
AGAIN = "copy or download the model folder again"


def check_device(device: str | torch.device | None) -> torch.device:
    """The device to load on, None for a GPU where there is one; ValueError if torch has no such device here."""
    try:
        found = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except (RuntimeError, TypeError) as error:
        raise ValueError(f'There is no device {device!r}: say "cpu", "cuda", "cuda:1" or "mps".') from error
    there = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if not there.get(found.type, lambda: True)():
        raise ValueError(f"This machine has no device {found} for torch: give another, e.g. device='cpu', or none.")
    return found


def check_architecture(folder: Path) -> None:
    """Raise one sentence unless the folder's parts are those of Stable Diffusion 1.x."""
    index_file = folder / "model_index.json"
    if not index_file.is_file():
        raise ValueError(
            f"{folder} is no diffusers pipeline (model_index.json is missing): save it with save_pretrained first."
        )
    index = read_json(index_file)
    for net, wanted in CLASSES.items():
        entry = index.get(net)
        found = entry[1] if isinstance(entry, list) and len(entry) == 2 else None
        if found != wanted:
            raise ValueError(
                f"{folder} has {found or 'nothing'} as its {net}, this library needs {wanted}: give an SD 1.x model."
            )
    scheduler = read_json(folder / "scheduler" / "scheduler_config.json")
    if scheduler.get("prediction_type", "epsilon") != "epsilon":
        raise ValueError(
            f"{folder} predicts {scheduler['prediction_type']}, this library needs epsilon: give an SD 1.x model."
        )
    check_setting(scheduler.get("num_train_timesteps", 1000), "num_train_timesteps", folder, whole=True)
    unet, vae, text = (read_json(folder / net / "config.json") for net in ("unet", "vae", "text_encoder"))
    check_setting(text.get("num_hidden_layers", 12), "num_hidden_layers of the text encoder", folder, whole=True)
    side = unet.get("sample_size", 64)
    for number in side if isinstance(side, list) and len(side) == 2 else [side]:
        check_setting(number, "sample_size of the unet", folder, whole=True)
    check_setting(vae.get("scaling_factor", 0.18215), "scaling_factor of the vae", folder)


def check_setting(value, name: str, folder: Path, whole: bool = False) -> None:
    """Raise ValueError unless a setting is a finite number above 0."""
    kind = int if whole else int | float
    if isinstance(value, bool) or not isinstance(value, kind) or not 0 < value < math.inf:
        raise ValueError(f"The {name} in {folder} is {str(value)[:40]}, no {'whole ' * whole}number above 0: {AGAIN}.")


def read_json(path: Path) -> dict:
    """A JSON file of the model folder, with one sentence if it is missing or broken."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(
            f"{path} is missing: the model folder is incomplete, copy or download it again."
        ) from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no readable JSON ({error}): {AGAIN}.") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, no names and values: {AGAIN}.")
    return found


def read_about(folder: Path) -> dict:
    """mixofshow.json, {} if there is none; ValueError if something in it is of another kind."""
    file = folder / "mixofshow.json"
    about = read_json(file) if file.is_file() else {}
    for name, kind in ABOUT.items():
        if name in about and not isinstance(about[name], kind):
            raise ValueError(f"{name} in {file} is {str(about[name])[:40]!r}: mend it there, or leave it out.")
    if about.get("dtype", "float32") not in PRECISIONS or not math.isfinite(about.get("guidance", 1)):
        raise ValueError(f"dtype or guidance in {file} is none: mend it there, or leave it out.")
    return about


def verify(folder: Path) -> None:
    """Compare the files with SHA256SUMS, where there is one; raises one sentence naming the first that differs."""
    sums = folder / "SHA256SUMS"
    lines = sums.read_text(encoding="utf-8", errors="replace").splitlines() if sums.is_file() else ()
    for line in lines:
        if not line.strip():
            continue
        entry = CHECKSUM.fullmatch(line.strip())
        if not entry:
            raise ValueError(f"{sums} has a line that is no checksum: {AGAIN}, or remove it to load unchecked.")
        wanted, path = entry[1].lower(), folder / entry[2]
        if not path.is_file():
            raise FileNotFoundError(
                f"{path} is missing: the model folder is incomplete, check it out or install it again."
            )
        with open(path, "rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != wanted:
                raise ValueError(
                    f"{path} is damaged (its checksum differs from SHA256SUMS): check it out or install it again."
                )


def check_stored(file: Path, net: nn.Module) -> None:
    """Raise ValueError on weights that are stored as whole numbers, warn of weights in 8 bits."""
    names = {name.removeprefix("text_model.") for name, _ in net.named_parameters()}
    with safe_open(file, "pt") as stored:
        own = [key for key in stored.keys() if key.removeprefix("text_model.") in names]
        kinds = {key: stored.get_slice(key).get_dtype() for key in own}
        scales = [key for key in stored.keys() if SCALE.search(key)]
    short = [key for key, kind in kinds.items() if kind.startswith("F8")]
    packed = [key for key, kind in kinds.items() if not kind.startswith(("F", "BF"))] or scales and short
    if packed:
        raise ValueError(
            f"{packed[0]} in {file} is stored as {kinds[packed[0]]} and means nothing without the program that packed "
            "it: give the model in 16 or 32 bits."
        )
    if short:
        warn(
            f"{len(short)} of {len(kinds)} weights of {file} have 8 bits, rounded to one or two digits: it will draw "
            "worse than the model it was made from, give that in 16 or 32 bits if there is one."
        )


def check_complete(missing: list[str], file: Path) -> None:
    """Raise ValueError if weights are missing in a file: the network would have random ones in their place."""
    if missing:
        raise ValueError(f"{file} lacks {len(missing)} tensors, e.g. {missing[0]}: {AGAIN}.")


def read_scheduler(folder: Path) -> SchedulerMixin:
    """The scheduler that the folder names in its scheduler_config.json; ValueError unless it has betas."""
    name = read_json(folder / "scheduler" / "scheduler_config.json").get("_class_name", "DDIMScheduler")
    kind = getattr(diffusers, name, None) if isinstance(name, str) and name.isidentifier() else None
    try:
        found = kind.from_pretrained(folder / "scheduler", local_files_only=True)
    except Exception as error:
        raise ValueError(
            f"{str(name)[:40]} in {folder}/scheduler cannot be read as a scheduler ({type(error).__name__}): {AGAIN}."
        ) from error
    if not isinstance(getattr(found, "alphas_cumprod", None), torch.Tensor):
        raise ValueError(f"{name} in {folder}/scheduler adds noise in another way than SD 1.x: give an SD 1.x model.")
    return found


def read_tokenizer(folder: Path, text_encoder: nn.Module) -> CLIPTokenizer:
    """The tokenizer of a folder, for prompts as long as the text encoder reads; ValueError if it cannot be read."""
    where, most = folder / "tokenizer", text_encoder.config.max_position_embeddings
    try:
        if not where.is_dir():
            raise FileNotFoundError
        found = CLIPTokenizer.from_pretrained(where, local_files_only=True)
    except Exception as error:
        raise ValueError(f"{where} holds no tokenizer that can be read ({type(error).__name__}): {AGAIN}.") from error
    length = found.model_max_length
    if not isinstance(length, int) or length > most:  # a huge number where its settings are missing
        found.model_max_length = length = most
    if length < 3:  # begin, one token, end
        raise ValueError(f"The model_max_length in {where} is {length}, which leaves no room for a prompt: {AGAIN}.")
    return found
