"""Base models on disk (paper 3.1): find, check, read and write Stable-Diffusion-shaped diffusers folders.

A folder may hold, beside diffusers' own files:
    SHA256SUMS            "<hash>  <relative path>" lines, checked before loading
    mixofshow.json        {"base_id": "pocket-v2", "guidance": 5.0, "dtype": "float32", "fingerprint": "...",
                          "concepts": [["<a1>", "<a2>"]]}, all optional; `dtype` is what it is loaded in on a GPU
                          too, if none is asked for; concepts says which words make one name
    words.txt             the words the model knows, separated by white space
    new_concept_cfg.json  concept words and their per-layer tokens, the format of the official fused models
"""

import copy
import hashlib
import json
import math
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import CLIPTextModel

from ..attention import cross_attention
from ..engine.finite import first_not_finite, model_not_finite
from ..model import DiffusionModel
from .base_checks import (
    AGAIN,
    check_architecture,
    check_complete,
    check_device,
    check_stored,
    read_about,
    read_json,
    read_scheduler,
    read_tokenizer,
    verify,
)
from .concept import WORD
from .fits import ROUNDED
from .prompt_check import named_together
from .warn import warn
from .writing import PIPELINE, atomic_folder, check_target

# The hub id that replaced runwayml/stable-diffusion-v1-5, which vanished; if it moves, any SD 1.5 folder does as well.
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD15_REVISION = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14"
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}
PREFIX = "text_model."  # of the text encoder's weights, as transformers before 5 writes and expects them
NAMED = ("text_encoder", "unet")  # the networks that the fingerprint is of: concepts change nothing else
HEAD = 16  # numbers of each tensor that go into the fingerprint


def load(name: str, device: str | torch.device | None, dtype: torch.dtype | None) -> DiffusionModel:
    """See `base.load_base`."""
    device = check_device(device)
    if not isinstance(dtype, torch.dtype | None):
        raise TypeError(f"dtype={dtype!r} is no precision of torch: give torch.float32, say.")
    usual = torch.float16 if device.type == "cuda" else torch.float32
    folder, default_id = find_base(name, dtype or usual)
    check_architecture(folder)
    verify(folder)
    about = read_about(folder)
    dtype = dtype or (getattr(torch, about["dtype"]) if "dtype" in about else usual)
    nets = read_networks(folder, dtype)
    if not cross_attention(nets["unet"]):
        raise ValueError(
            f"The U-Net in {folder} has no cross-attention layers: give a text-to-image Stable Diffusion 1.x model."
        )
    files = [weights_file(folder / net, net, dtype) for net in NAMED]
    known = folder / "words.txt"
    known_words = known.read_text(encoding="utf-8", errors="replace").lower().split() if known.is_file() else ()
    model = DiffusionModel(
        tokenizer=read_tokenizer(folder, nets["text_encoder"]),
        scheduler=read_scheduler(folder),
        base_id=about.get("base_id", default_id),
        fingerprint=about.get("fingerprint") or fingerprint_of(*(nets[net] for net in NAMED), files=files),
        guidance=about.get("guidance", 7.5),
        known_words=frozenset(known_words),
        **{net: module.to(device) for net, module in nets.items()},
    )
    model.words.update(read_words(folder, model))
    model.names.update(named_together(model.words, about.get("concepts")))
    return model


def find_base(name: str, dtype: torch.dtype) -> tuple[Path, str]:
    """The folder of a base model and its default base id; downloads from the hub where the name is no folder."""
    if name == "pocket":
        from .resources import pocket_dir

        return pocket_dir(), "pocket"
    if os.path.isdir(name):  # False also for names that no system would look for
        return Path(name), Path(name).resolve().name
    if name != "sd15" and (name.count("/") != 1 or name.startswith((".", "/", "~"))):
        raise FileNotFoundError(
            f'There is no base model {name[:99]!r}: say "pocket", "sd15", a diffusers folder or a hub id.'
        )
    hub_id, revision = (SD15, SD15_REVISION) if name == "sd15" else (name, None)
    return download(hub_id, revision, dtype), name


def download(hub_id: str, revision: str | None, dtype: torch.dtype) -> Path:
    """Fetch (or find in the cache) only what is needed of a hub model, float16 weights where they serve."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    plain = ["model_index.json", "scheduler/*", "tokenizer/*", *(f"{net}/config.json" for net in WEIGHTS)]
    half, full = ([f"{net}/{file}{kind}.safetensors" for net, file in WEIGHTS.items()] for kind in (".fp16", ""))
    try:
        for weights in (half, full) if dtype == torch.float16 else (full,):
            folder = Path(snapshot_download(hub_id, revision=revision, allow_patterns=plain + weights))
            if all((folder / file).is_file() for file in weights):
                return folder
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"The hub has no model {hub_id!r}: check its spelling, or give a diffusers folder."
        ) from error
    except Exception as error:
        raise ConnectionError(
            f"{hub_id} is not on this machine and could not be downloaded ({type(error).__name__}): "
            'connect to the internet once, give the folder of a local copy, or use load_base("pocket").'
        ) from error
    raise FileNotFoundError(f"{hub_id} offers no safetensors weights: convert it to a diffusers folder and give that.")


def read_networks(folder: Path, dtype: torch.dtype) -> dict[str, nn.Module]:
    """The text encoder, U-Net and VAE of a folder, on the CPU in `dtype`."""
    nets = {}
    for net, kind in {"text_encoder": CLIPTextModel, "unet": UNet2DConditionModel, "vae": AutoencoderKL}.items():
        part = folder / net
        file = weights_file(part, net, dtype)
        variant = "fp16" if file.name.endswith(".fp16.safetensors") else None
        if not file.is_file() and not any(part.glob("*.bin")):
            raise FileNotFoundError(f"{file} is missing: the model folder is incomplete, copy or download it again.")
        dtype_name = "dtype" if net == "text_encoder" else "torch_dtype"  # transformers and diffusers differ here
        try:
            nets[net], info = kind.from_pretrained(
                part, variant=variant, local_files_only=True, output_loading_info=True, **{dtype_name: dtype}
            )
        except Exception as error:
            raise ValueError(f"{file} cannot be read ({type(error).__name__}): {AGAIN}.") from error
        check_complete(sorted(info["missing_keys"]), file)
        if file.is_file():  # else it is a pickle
            check_stored(file, nets[net])
        lost = first_not_finite(dict(nets[net].named_parameters()))
        if lost:
            wider = "" if dtype == torch.float32 else "load it in torch.float32, or "
            raise ValueError(f"{lost} in {file} is not finite in {dtype}: {wider}{AGAIN}.")
    return nets


def weights_file(part: Path, net: str, dtype: torch.dtype) -> Path:
    """Where a network's weights are, whether they are there or not: the float16 ones where these serve."""
    half = part / f"{WEIGHTS[net]}.fp16.safetensors"
    return half if dtype == torch.float16 and half.is_file() else part / f"{WEIGHTS[net]}.safetensors"


@torch.no_grad()
def fingerprint_of(*nets: nn.Module, files: Sequence[Path] = ()) -> str:
    """A short hash of names, shapes and the first numbers of every tensor, in float16.

    The numbers are taken from the `files` that the networks were read from where they are there, as a base that is
    loaded in bfloat16 has lost digits: the fingerprint is of the weights, not of the precision they are loaded in.
    Weights that are stored in bfloat16 have lost theirs for good: their fingerprint says so.
    """
    digest, rounded = hashlib.sha256(), False
    for net, file in zip_longest(nets, files):
        stored = first_numbers(file) if file and file.is_file() else {}
        for name, tensor in sorted(net.named_parameters()):
            name, own = name.removeprefix("text_model."), (tuple(tensor.shape), tensor.flatten()[:HEAD])
            shape, head = stored.get(name, own) if stored.get(name, own)[0] == own[0] else own
            digest.update(f"{name}{shape}".encode() + head.half().cpu().numpy().tobytes())
            rounded |= head.dtype == torch.bfloat16
    return ROUNDED * rounded + digest.hexdigest()[:16]


def first_numbers(file: Path) -> dict[str, tuple[tuple[int, ...], Tensor]]:
    """Name -> (shape, first numbers) of every tensor of a safetensors file, without reading the rest of it."""
    found = {}
    with safe_open(file, "pt") as stored:
        for name in stored.keys():
            part = stored.get_slice(name)
            shape = tuple(part.get_shape())
            rows = math.ceil(HEAD / max(1, math.prod(shape[1:])))
            head = part[:rows].flatten()[:HEAD] if shape else stored.get_tensor(name).flatten()
            found[name.removeprefix("text_model.")] = shape, head
    return found


def save_pipeline(model: DiffusionModel, folder: str | Path) -> Path:
    """Write `model` as a plain diffusers folder, all or nothing (see `DiffusionModel.save_pipeline`).

    A word <v> becomes L tokens <v_0> ... <v_{L-1}> that hold its L rows, and a token <v> that holds their mean: a stock
    pipeline that is given <v> draws an approximation of the concept (one row for all layers), this library reads the L
    rows back through new_concept_cfg.json. The official code reads the same file: it puts token <v_l> in the place of
    <v> in the l-th of its L copies of a prompt, so its layers must be counted as here: down, mid, up. Its own versions
    of diffusers and transformers (0.19 and 4.31) open the folder too.
    """
    from transformers import CLIPTokenizer

    check_target(folder, PIPELINE)
    lost = model_not_finite(model)
    if lost:
        raise ValueError(f"{lost} are not finite, so the model was not saved: load or fuse it again, in float32.")
    pipeline = model.copy().pipeline()
    with atomic_folder(folder, PIPELINE) as temporary:
        model.tokenizer.save_pretrained(temporary / "tokenizer")
        tokenizer = CLIPTokenizer.from_pretrained(
            temporary / "tokenizer", local_files_only=True
        )  # a private copy to extend
        listing, rows = {}, []
        for word, table in model.words.items():
            names = [f"{word[:-1]}_{layer}>" for layer in range(len(table))]
            tokenizer.add_tokens([word, *names])
            ids = tokenizer.convert_tokens_to_ids([word, *names])
            rows += zip(ids, [table.mean(dim=0), *table], strict=True)
            listing[word] = {"concept_token_ids": ids[1:], "concept_token_names": names}
        if rows:  # in a table of its own: resizing works in place, and `model` shares its weights with the copy
            own = copy.deepcopy(pipeline.text_encoder.get_input_embeddings())
            pipeline.text_encoder.set_input_embeddings(own)
            pipeline.text_encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
            weight = pipeline.text_encoder.get_input_embeddings().weight.data
            for token, row in rows:
                weight[token] = row.to(weight)
        pipeline.tokenizer = tokenizer
        pipeline.save_pretrained(temporary)
        write_for_old_loaders(temporary)
        about = {"base_id": model.base_id, "fingerprint": model.fingerprint, "guidance": model.guidance}
        about["concepts"] = [list(words) for words in dict.fromkeys(model.names.values())]
        (temporary / "mixofshow.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if listing:
            (temporary / "new_concept_cfg.json").write_text(json.dumps(listing, indent=2) + "\n", encoding="utf-8")
        if model.known_words:
            (temporary / "words.txt").write_text("\n".join(sorted(model.known_words)) + "\n", encoding="utf-8")
    return Path(folder)


def write_for_old_loaders(folder: Path) -> None:
    """Add to a diffusers folder what transformers before 5 reads it by; the present one reads it as before.

    It needs vocab.json, merges.txt and added_tokens.json beside tokenizer.json, and the prefix `text_model.` in the
    text encoder's weights: without them it raises a TypeError, or goes on with random weights and a warning.
    """
    tokenizer = read_json(folder / "tokenizer" / "tokenizer.json")
    vocabulary, merges = tokenizer["model"]["vocab"], tokenizer["model"]["merges"]
    added = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    added = {word: number for word, number in added.items() if word not in vocabulary}
    lines = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    texts = {"vocab.json": json.dumps(vocabulary, ensure_ascii=False)}
    texts["merges.txt"] = "\n".join(["#version: 0.2", *lines]) + "\n"
    if added:
        texts["added_tokens.json"] = json.dumps(added, ensure_ascii=False, indent=2) + "\n"
    for name, text in texts.items():
        (folder / "tokenizer" / name).write_text(text, encoding="utf-8")
    file = folder / "text_encoder" / f"{WEIGHTS['text_encoder']}.safetensors"
    weights = {PREFIX + name.removeprefix(PREFIX): tensor for name, tensor in load_file(file).items()}
    renamed = file.with_suffix(".renamed")
    save_file(weights, renamed, metadata={"format": "pt"})
    del weights  # they are mapped from the file that is replaced now, which some systems do not allow
    os.replace(renamed, file)


def read_words(folder: Path, model: DiffusionModel) -> dict[str, Tensor]:
    """The layer-wise rows (L, D) of the concept words that new_concept_cfg.json lists."""
    path = folder / "new_concept_cfg.json"
    if not path.is_file():
        return {}
    table, L, words = model.text_encoder.get_input_embeddings().weight, len(model.layers), {}
    for word, entry in read_json(path).items():
        numbers = entry.get("concept_token_ids") if isinstance(entry, dict) else None
        if (
            not WORD.fullmatch(word)
            or not isinstance(numbers, list)
            or not all(type(i) is int and 0 <= i < len(table) for i in numbers)
        ):
            raise ValueError(f"{word!r} in {path} is no concept word with tokens of this model: {AGAIN}.")
        words[word] = table[numbers].float().clone()
    for word, rows in words.items():
        if len(rows) != L:
            warn(f"{word} in {path} has {len(rows)} rows for {L} layers and is left out.")
    return {word: rows for word, rows in words.items() if len(rows) == L}
