"""Concepts (paper 3.1 and 3.3.1): the words a client tunes, and the file it shares.

A concept is written with two words, V = V_rand+ V_class+. Each word is layer-wise: it owns one embedding row for every
cross-attention layer of the U-Net, so one prompt becomes L layer prompts that differ only in those rows.

    paper      here                 shape
    V+         embeddings[word]     (L, D)                     one row per cross-attention layer: down, mid, up
    A, B       lora[net][module]    (r, d_in), (d_out, r)      delta W = scale * B @ A
    P*         bind(...).ids        (B, N)                     token ids; a concept word takes one place
"""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

PLACEHOLDER = "<TOK>"
WORD = re.compile(r"<[^<>\s|]+>")  # what a concept word looks like: <bibi1>
Factors = dict[str, tuple[Tensor, Tensor]]  # module name -> (down (r, d_in), up (d_out, r))


@dataclass
class Concept:
    """All that a client shares: a few words and low-rank updates, no pictures (paper 3.2)."""

    name: str  # folder-friendly name
    words: tuple[str, ...]  # in the order they are written in a prompt, e.g. ("<bibi1>", "<bibi2>")
    class_word: str  # what it is in the model's own words, e.g. "rabbit"
    recipe: str  # how it was tuned, a key of tuning.RECIPES
    embeddings: dict[str, Tensor]  # word -> (L, D)
    lora: dict[str, Factors] = field(default_factory=dict)  # "text_encoder" | "unet" -> factors
    rank: int = 0  # largest rank among the factors, 0 without LoRA
    scale: float = 1.0  # delta W = scale * up @ down; alpha itself, not alpha / rank
    base_id: str = ""  # the base model it was tuned on
    fingerprint: str = ""  # of that base's weights, see base.fingerprint_of
    layers: tuple[str, ...] = ()  # names of the L cross-attention layers, in the order of the embedding rows
    phrase: str = ""  # how a prompt names it; the words in their order, unless a recipe adds the class word

    def __post_init__(self):
        self.phrase = self.phrase or " ".join(self.words)

    def save(self, folder: str | Path) -> Path:
        """Write concept.json and concept.safetensors into `folder`, all or nothing; replaces an older concept there."""
        folder = Path(folder)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "concept.json").exists()):
            raise FileExistsError(f"{folder} exists and holds something else than a concept: choose another folder.")
        tensors = {f"embeddings.{word}": rows for word, rows in self.embeddings.items()}
        for net, factors in self.lora.items():
            for module, (down, up) in factors.items():
                tensors[f"{net}.{module}.lora_down"], tensors[f"{net}.{module}.lora_up"] = down, up
        about = {
            k: getattr(self, k) for k in ("name", "words", "class_word", "recipe", "rank", "scale", "base_id", "phrase")
        }
        about |= {"fingerprint": self.fingerprint, "layers": self.layers, "format": "mixofshow-concept", "version": 1}
        with atomic_folder(folder) as temporary:
            save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary / "concept.safetensors")
            (temporary / "concept.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Concept":
        """Read a folder written by `save`; raises FileNotFoundError or ValueError with one sentence."""
        folder = Path(folder)
        for name in ("concept.json", "concept.safetensors"):
            if not (folder / name).is_file():
                raise FileNotFoundError(
                    f"{folder} holds no concept ({name} is missing): give the folder that `save` wrote."
                )
        try:
            about = json.loads((folder / "concept.json").read_text(encoding="utf-8"))
            tensors = load_file(folder / "concept.safetensors")
            if about.pop("format") != "mixofshow-concept" or about.pop("version") != 1:
                raise ValueError("unknown format")
            about["words"], about["layers"] = tuple(about["words"]), tuple(about["layers"])
            embeddings = {word: tensors.pop(f"embeddings.{word}") for word in about["words"]}
            lora: dict[str, Factors] = {}
            for key in [k for k in tensors if k.endswith(".lora_down")]:
                net, module = key.removesuffix(".lora_down").split(".", 1)
                lora.setdefault(net, {})[module] = (tensors[key], tensors[f"{net}.{module}.lora_up"])
            return cls(**about, embeddings=embeddings, lora=lora)
        except Exception as error:
            raise ValueError(f"{folder} is no readable concept ({error}): save it again or copy it again.") from error


class atomic_folder:
    """`with atomic_folder(target) as temporary`: fill `temporary`; it becomes `target` only if the block succeeds."""

    def __init__(self, target: str | Path):
        self.target = Path(target)

    def __enter__(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        self.temporary = Path(tempfile.mkdtemp(prefix=f".{self.target.name}.", dir=self.target.parent))
        return self.temporary

    def __exit__(self, kind, error, trace) -> None:
        if kind is None:
            old = self.temporary.with_suffix(".old")
            if self.target.exists():
                os.rename(self.target, old)
            os.chmod(self.temporary, 0o755)  # mkdtemp makes private folders
            os.rename(self.temporary, self.target)
            shutil.rmtree(old, ignore_errors=True)
            return
        shutil.rmtree(self.temporary, ignore_errors=True)
        if isinstance(error, OSError) or "No space left" in str(error):
            raise OSError(
                f"Could not write {self.target} ({error}): free some space or choose another folder."
            ) from error


@dataclass
class Bound:
    """Prompts as token ids, with the places where concept words stand."""

    ids: Tensor  # (B, N) long; a concept word's place holds the unknown token, its row is put in by the text encoder
    slots: Tensor  # (B, N) long; index of the concept word at that place, -1 elsewhere
    cut: list[str]  # what did not fit, one string per prompt, "" if all did


def bind(tokenizer, prompts: Iterable[str], words: Sequence[str]) -> Bound:
    """Tokenize prompts to the tokenizer's full length, every concept word as one token, also beside punctuation.

    Without concept words this equals `tokenizer(prompt, padding="max_length", truncation=True)`.
    """
    index = {word: i for i, word in enumerate(words)}
    pattern = re.compile("|".join(map(re.escape, sorted(words, key=len, reverse=True))) or r"(?!)")
    N, filler = tokenizer.model_max_length, tokenizer.unk_token_id
    all_ids, all_slots, cut = [], [], []
    for prompt in prompts:
        ids, slots, position = [], [], 0
        for match in [*pattern.finditer(prompt), None]:
            text = prompt[position : match.start() if match else None]
            tokens = (
                tokenizer(text, add_special_tokens=False, truncation=False, verbose=False).input_ids
                if text.strip()
                else []
            )
            ids, slots = ids + tokens, slots + [-1] * len(tokens)
            if match:
                ids, slots, position = [*ids, filler], [*slots, index[match.group()]], match.end()
        rest = zip(ids[N - 2 :], slots[N - 2 :], strict=True)
        cut.append(" ".join(words[s] if s >= 0 else tokenizer.decode([i]).strip() for i, s in rest))
        ids, slots = ids[: N - 2], slots[: N - 2]
        pad = N - 2 - len(ids)
        all_ids.append([tokenizer.bos_token_id, *ids, tokenizer.eos_token_id, *[tokenizer.pad_token_id] * pad])
        all_slots.append([-1, *slots, -1, *[-1] * pad])
    return Bound(torch.tensor(all_ids), torch.tensor(all_slots), cut)
