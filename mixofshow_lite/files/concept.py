"""Concepts (paper 3.1 and 3.3.1): the words a client tunes, and the file it shares.

A concept is written with two words, V = V_rand+ V_class+. Each word is layer-wise: it owns one embedding row for every
cross-attention layer of the U-Net, so one prompt becomes L layer prompts that differ only in those rows.

    paper      here                 shape
    V+         embeddings[word]     (L, D)                     one row per cross-attention layer: down, mid, up
    A, B       lora[net][module]    (r, d_in), (d_out, r)      delta W = scale * B @ A
    P*         bind(...).ids        (B, N)                     token ids; a concept word takes one place
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from .. import prompts
from ..engine.arguments import as_path, shown

PLACEHOLDER = "<TOK>"
WORD = re.compile(r"<[^<>\s|]+>")  # what a concept word looks like: <bibi1>
LONGEST_WORD = 100  # characters of a concept word
LONGEST_TEXT = 500  # characters of a class word or a phrase, far more than a prompt takes in
LoRAFactors = dict[str, tuple[Tensor, Tensor]]  # module name -> (down (r, d_in), up (d_out, r)), as in lora.py


@dataclass
class Concept:
    """All that a client shares: a few words and low-rank updates, no pictures (paper 3.2)."""

    name: str  # folder-friendly name
    words: tuple[str, ...]  # in the order they are written in a prompt, e.g. ("<bibi1>", "<bibi2>")
    class_word: str  # what it is in the model's own words, e.g. "rabbit"
    recipe: str  # how it was tuned, a key of tuning.RECIPES
    embeddings: dict[str, Tensor]  # word -> (L, D)
    lora: dict[str, LoRAFactors] = field(default_factory=dict)  # "text_encoder" | "unet" -> factors
    rank: int = 0  # largest rank among the factors, 0 without LoRA
    scale: float = 1.0  # delta W = scale * up @ down; alpha itself, not alpha / rank
    base_id: str = ""  # the base model it was tuned on
    fingerprint: str = ""  # of that base's weights, see base.fingerprint_of
    layers: tuple[str, ...] = ()  # names of the L cross-attention layers, in the order of the embedding rows
    phrase: str = ""  # how a prompt names it; its words in their order (or the class word), unless a recipe says more
    source: str = ""  # the file it was read from and what matched there, empty if it was tuned here
    preview: object = field(default=None, repr=False, compare=False)  # a PIL strip of sample pictures

    def __post_init__(self):
        self.phrase = self.phrase or " ".join(self.words) or self.class_word

    def save(self, folder: str | Path, preview=None, dtype: torch.dtype = torch.float32) -> Path:
        """Write the concept folder, all or nothing (see `files.folder`).

        An older concept there is replaced; other files beside it stay, and so does its README.md if it was edited.

        `preview` is a PIL picture, or a list of them for a strip. With dtype torch.float16 the file is half as large;
        it is read back as float32, rounded to about 3 digits. Raises FileExistsError if the folder holds something
        else, OSError if it cannot be written.
        """
        from . import folder as on_disk

        return on_disk.save(self, as_path(folder), preview, dtype)

    @classmethod
    def load(cls, folder: str | Path, base=None, beside: Sequence["Concept"] = ()) -> "Concept":
        """Read a folder written by `save`; with a base or other concepts, `check` it against them.

        Raises FileNotFoundError or ValueError with one sentence, and warns as `check` does.
        """
        from . import folder as on_disk

        concept = on_disk.load(as_path(folder))
        concept.check(base, beside)
        return concept

    def check(self, base=None, beside: Sequence["Concept"] = ()) -> None:
        """Raise ValueError if the concept cannot act on this base, or shares a word or its name with another one.

        Warns if the base has the same architecture and other weights than those it was tuned on (see `files.fits`).
        """
        from . import folder as on_disk

        on_disk.check(self, base, beside)

    @classmethod
    def from_official(
        cls, file: str | Path, base, name: str | None = None, class_word: str = "", verbose: bool = True
    ) -> "Concept":
        """Read an official Mix-of-Show ED-LoRA (.pth); `verbose` prints how many tensors matched.

        Raises FileNotFoundError or ValueError with one sentence, also on a pickle that holds more than tensors.
        """
        from .official import read_official

        check_is_model(base)
        check_texts(class_word)
        words, factors, source = read_official(file, base)
        return cls._read(file, base, name, class_word, "", factors, source, verbose, words)

    @classmethod
    def from_lora(
        cls,
        file: str | Path,
        base,
        class_word: str,
        name: str | None = None,
        phrase: str = "",
        verbose: bool = True,
    ) -> "Concept":
        """Read a kohya/A1111, diffusers or peft LoRA for Stable Diffusion 1.x (safetensors); the dialect is detected.

        Such a file has no words of its own: `phrase` is what wakes it in a prompt (its trigger words), by default the
        class word. `verbose` prints how many tensors matched. Raises FileNotFoundError or ValueError with one sentence,
        also where both are empty.
        """
        from .lora_files import read_lora

        check_is_model(base)
        check_texts(class_word, phrase)
        if not class_word and not phrase:
            raise ValueError(
                "Nothing says how a prompt wakes this LoRA: give its trigger words as phrase=..., or class_word='dog'."
            )
        factors, source = read_lora(file, base)
        return cls._read(file, base, name, class_word, phrase, factors, source, verbose, {})

    @classmethod
    def _read(cls, file, base, name, class_word, phrase, factors, source, verbose, embeddings) -> "Concept":
        from .fits import check_fits

        if verbose:
            print(source)
        concept = cls(
            name=name or slug(Path(file).stem),
            words=tuple(embeddings),
            class_word=class_word,
            recipe="ed_lora" if embeddings else "lora",
            embeddings=embeddings,
            lora=factors,
            rank=max((len(down) for found in factors.values() for down, _ in found.values()), default=0),
            layers=base.layers,  # base_id and fingerprint stay empty: such files do not say which base it was
            phrase=phrase,
            source=source,
        )
        check_fits(concept, base)
        return concept

    def to_lora(self, file: str | Path, format: str = "diffusers") -> Path:
        """Write the LoRA alone as a "diffusers" or "kohya" safetensors file, for `pipe.load_lora_weights` or A1111.

        With "peft" it becomes a folder, whose `unet` and `text_encoder` peft's `PeftModel.from_pretrained` reads.
        The words do not travel in it: it acts as `with_concept(...)` does on prompts without them. Raises ValueError if
        there is no LoRA or no such format, OSError if it cannot be written.
        """
        from .lora_writing import write_lora

        scaled = {net: {m: (down, self.scale * up) for m, (down, up) in f.items()} for net, f in self.lora.items()}
        return write_lora(scaled, file, format)

    def scaled(self, text_encoder: float = 1.0, unet: float = 1.0) -> "Concept":
        """The same concept with its updates of each network times a number, W0 + alpha dW: the official code's
        `text_encoder_alpha` and `unet_alpha`. The words stay as they are.
        """
        alphas = {"text_encoder": text_encoder, "unet": unet}
        lora = {net: {m: (down, alphas[net] * up) for m, (down, up) in f.items()} for net, f in self.lora.items()}
        return replace(self, lora=lora)

    def renamed(self, name: str | None = None, words: Sequence[str] | None = None) -> "Concept":
        """The same concept under another name, with other words, or both; settles clashes.

        Without `words` a new name brings <name1> <name2>. Raises ValueError if the words are not as many, not
        different or not written like <bibi1>.
        """
        words = tuple(
            words or (f"<{slug(name)}{i + 1}>" for i in range(len(self.words))) if name or words else self.words
        )
        if len(words) != len(self.words) or len(set(words)) != len(words) or not all(map(is_word, words)):
            raise ValueError(f"{' '.join(words)} do not fit: give {len(self.words)} different words like <bibi1>.")
        new = dict(zip(self.words, words, strict=True))
        phrase = re.sub("|".join(map(re.escape, new)), lambda found: new[found[0]], self.phrase) if new else self.phrase
        embeddings = {new[word]: rows for word, rows in self.embeddings.items()}
        return replace(self, name=name or self.name, words=words, embeddings=embeddings, phrase=phrase)


def check_is_model(base) -> None:
    """Raises TypeError unless `base` is a model, as far as a reader of files needs one."""
    if not hasattr(base, "unet"):
        raise TypeError(f"The base is a {type(base).__name__}, no model: give what load_base(...) returned.")


def is_word(text) -> bool:
    """Whether a text can be a concept word."""
    return isinstance(text, str) and bool(WORD.fullmatch(text)) and text != PLACEHOLDER and len(text) <= LONGEST_WORD


def check_texts(class_word: str, phrase: str = "") -> None:
    """Raise TypeError or ValueError unless a class word and a phrase are texts, each "" or something to be read."""
    for what, text in (("class word", class_word), ("phrase", phrase)):
        if not isinstance(text, str):
            raise TypeError(f"The {what} {shown(text)} is no text: give the class word and the phrase as strings.")
        if text and (not text.strip() or PLACEHOLDER in text or len(text) > LONGEST_TEXT or "\n" in text):
            raise ValueError(f"The {what} {shown(text)} cannot stand in a prompt: give a few plain words.")
    if WORD.search(class_word):
        raise ValueError(f"The class word {shown(class_word)} is none: give what the concept is, such as 'dog'.")


def slug(name: str) -> str:
    """A name as it may stand in a concept word: letters, digits, - and _; raises TypeError on what is no text."""
    if not isinstance(name, str):
        raise TypeError(f"The name {name!r} is no text: give the concept a name of letters.")
    return re.sub(r"[^\w-]+", "_", name.lower()).strip("_") or "concept"


def tensors_of(concept: Concept) -> dict[str, Tensor]:
    """All tensors of a concept by the names they have in its folder."""
    tensors = {f"embeddings.{word}": rows for word, rows in concept.embeddings.items()}
    for net, factors in concept.lora.items():
        for module, (down, up) in factors.items():
            tensors |= {f"{net}.{module}.lora_A.weight": down, f"{net}.{module}.lora_B.weight": up}
    return tensors


@dataclass
class Bound(prompts.Bound):
    """Prompts as token ids, with the places where concept words stand, and what did not fit."""

    cut: list[str]  # of each prompt, "" if all did


def bind(tokenizer, texts: Iterable[str], words: Sequence[str]) -> Bound:
    """`prompts.bind`, which also says what was cut off.

    Without concept words this equals `tokenizer(texts, padding="max_length", truncation=True)`.
    """
    room = tokenizer.model_max_length - 2
    all_ids, all_slots, cut = [], [], []
    for text in texts:
        found = prompts.tokenize(tokenizer, text, list(words))
        cut.append(" ".join(pieces(tokenizer, *(run[room:] for run in found), words)))
        ids, slots = prompts.fill_up(tokenizer, *found)
        all_ids.append(ids)
        all_slots.append(slots)
    return Bound(torch.tensor(all_ids), torch.tensor(all_slots), cut)


def pieces(tokenizer, ids: list[int], slots: list[int], words: Sequence[str]) -> list[str]:
    """Token ids as text again: each concept word, and what stands between them."""
    found = []
    for slot, group in itertools.groupby(zip(ids, slots, strict=True), key=lambda pair: pair[1]):
        run = [token for token, _ in group]
        found += [words[slot]] * len(run) if slot >= 0 else [tokenizer.decode(run).strip()]
    return found
