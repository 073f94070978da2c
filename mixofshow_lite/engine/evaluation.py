"""Evaluation (paper 4.3): text-alignment and image-alignment, both cosines in the space of a CLIP model.

    text-alignment    w * max(cos(E_image(x), E_text(prompt)), 0), w = 2.5 (CLIPScore), concept words read as the class
    image-alignment   mean over pairs of max(cos(E_image(x), E_image(reference)), 0)

The paper's CLIP is ViT-B/32, prompts begin with "A photo depicts ", 20 prompts x 50 seeds per concept. For the pocket
base the CLIP is Pocket CLIP (see `pocket.clip`), whose vocabulary has no such opening; both are open_clip models behind
one `Scorer`. Only numbers measured with the same scorer can be compared.
"""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .. import evaluation
from ..evaluation import CLIPSCORE_WEIGHT
from ..files.concept import WORD
from ..files.prompt_check import A1111, as_prompts, foreign_syntax, short, unknown_words
from ..files.resources import pocket_dir
from ..files.warn import warn

# open_clip's name of the paper's CLIP. OpenAI's weights were trained with QuickGELU; plain "ViT-B-32" is built with
# GELU, and open_clip only warns.
HUB_CLIP = ("ViT-B-32-quickgelu", "openai")
HUB_OPENING = "A photo depicts "


@dataclass(eq=False)  # two are the same only if they are one object, so that features can be kept per scorer
class Scorer:
    """A CLIP model that reads pictures and prompts."""

    name: str  # what was asked for: "pocket", "sd15" or a folder
    model: torch.nn.Module  # open_clip's CLIP
    preprocess: object  # PIL image -> (3, size, size)
    tokenize: object  # list of prompts -> (B, N) token ids
    opening: str = ""  # written before every prompt
    device: str = "cpu"
    known_words: frozenset[str] = frozenset()  # the words it was trained on; empty: not limited

    @torch.inference_mode()
    def image_features(self, images: Sequence[Image.Image], batch: int = 64) -> Tensor:
        """Unit-length features (n, D) of PIL pictures of any size."""
        images = _pictures(images)
        rows = []
        for start in range(0, len(images), batch):
            pixels = torch.stack([self.preprocess(i.convert("RGB")) for i in images[start : start + batch]])
            rows.append(self.model.encode_image(pixels.to(self.device), normalize=True).float().cpu())
        return torch.cat(rows)

    @torch.inference_mode()
    def text_features(self, prompts: Sequence[str]) -> Tensor:
        """Unit-length features (n, D) of prompts."""
        ids = self.tokenize([self.opening + p for p in prompts]).to(self.device)
        return self.model.encode_text(ids, normalize=True).float().cpu()


def load_scorer(model: "str | Path | Scorer | None" = None, device: str | None = None) -> Scorer:
    """The CLIP that reads: None or "pocket", "sd15" (ViT-B/32, from the hub), an open_clip folder, or a Scorer itself.

    Raises ImportError when open_clip is not installed, FileNotFoundError for a missing folder, ConnectionError without
    network.
    """
    if isinstance(model, Scorer):
        return model
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return _load(str(model or "pocket"), device)


@functools.lru_cache(maxsize=4)
def _load(name: str, device: str) -> Scorer:
    try:
        import open_clip  # here because it is slow to import and an extra
    except ImportError as error:
        raise ImportError('evaluation needs open_clip: pip install "mixofshow_lite[metrics]"') from error
    if name == "sd15":
        try:
            model, preprocess = open_clip.create_model_from_pretrained(*HUB_CLIP, device=device)
        except Exception as error:  # open_clip wraps every failed download in its own way
            raise ConnectionError(
                f"could not fetch CLIP {HUB_CLIP[0]} ({error}): connect to the internet once"
            ) from error
        return Scorer(name, model.eval(), preprocess, open_clip.get_tokenizer(HUB_CLIP[0]), HUB_OPENING, device)
    folder = pocket_dir() / "clip" if name == "pocket" else Path(name)
    missing = [
        f for f in ("open_clip_config.json", "open_clip_model.safetensors", "tokenizer") if not (folder / f).exists()
    ]
    if missing:
        raise FileNotFoundError(
            f"{folder} is not a CLIP folder, it has no {missing[0]}: "
            "give a folder made by mixofshow_lite.pocket.train.clip"
        )
    model, preprocess = open_clip.create_model_from_pretrained(f"local-dir:{folder}", device=device)
    tokenize = folder_tokenizer(folder / "tokenizer", model.context_length)
    words = pocket_dir() / "words.txt"  # Pocket CLIP was trained on the pocket model's captions
    known = frozenset(words.read_text(encoding="utf-8").split() if name == "pocket" and words.is_file() else ())
    return Scorer(name, model.eval(), preprocess, tokenize, "", device, known)


def folder_tokenizer(folder: str | Path, length: int):
    """A CLIPTokenizer folder as the callable open_clip expects: list of prompts -> (B, length) ids, cut and padded."""
    from transformers import CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True)

    def tokenize(prompts: Sequence[str]) -> Tensor:
        rows = tokenizer(list(prompts), padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return rows.input_ids

    tokenize.eos_id = tokenizer.eos_token_id
    tokenize.vocab_size = len(tokenizer)
    return tokenize


def plain_prompt(prompt: str, concepts: Iterable = ()) -> str:
    """A prompt that CLIP can read: each concept's words are replaced by its class word ("<bibi1> <bibi2>" -> "rabbit").

    `concepts` are `Concept`s. Raises ValueError if a word in angle brackets is left.
    """
    concepts = list(concepts)
    for concept in concepts:
        prompt = prompt.replace(concept.phrase, concept.class_word)
    for word in WORD.findall(A1111.sub(" ", prompt)):
        owner = next((concept for concept in concepts if word in concept.words), None)
        if owner is not None:
            raise ValueError(f"The prompt has {word} outside the concept's whole name: write {owner.phrase}.")
        raise ValueError(f"CLIP does not know the concept word {word}: pass the concept in concepts=[...]")
    return prompt


def warn_of(prompt: str, scorer: Scorer) -> None:
    """Warn of what CLIP will not read in a prompt: words it never saw, what is too long, A1111's syntax."""
    if unknown := unknown_words([prompt], scorer.known_words):
        warn(f"The CLIP {scorer.name!r} does not know: {', '.join(sorted(unknown))}; its score says nothing of them.")
    if sentence := foreign_syntax(prompt):
        warn(sentence)
    shorter = " ".join(prompt.split()[:-1])
    if not shorter:
        return
    ids, fewer = (scorer.tokenize([scorer.opening + text])[0] for text in (prompt, shorter))
    if torch.equal(ids, fewer):  # the last word changes nothing
        warn(f"The prompt {short(prompt)} is longer than CLIP reads, {len(ids) - 2} tokens: its end does not count.")


def text_scores(
    images, prompt: str, model=None, concepts: Iterable = (), weight: float = CLIPSCORE_WEIGHT
) -> np.ndarray:
    """Text-alignment of every picture -> (n,), see `text_alignment`."""
    scorer = load_scorer(model)
    (prompt,) = as_prompts(prompt)
    prompt = plain_prompt(prompt, concepts)
    warn_of(prompt, scorer)
    return evaluation.text_scores(images, prompt, scorer, weight).numpy()


def text_alignment(images, prompt: str, model=None, concepts: Iterable = (), weight: float = CLIPSCORE_WEIGHT) -> float:
    """How well pictures show what the prompt says (paper 4.3), mean over the pictures.

    images     PIL pictures (one or several)
    prompt     as sampled; with concept words, pass their concepts so that the class word is read instead
    model      see `load_scorer`
    weight     2.5 is CLIPScore, 1 the plain cosine
    """
    return float(text_scores(images, prompt, model, concepts, weight).mean())


def crop(picture: Image.Image, box: tuple[float, float, float, float]) -> Image.Image:
    """The box (left, top, right, bottom), in fractions of the picture, of size (W, H) -> a square RGB picture.

    It is made square by repeating its upper and side edges: readers know square pictures, and what stands in a region
    (3.4) is not to be stretched.
    """
    width, height = picture.size
    left, top, right, bottom = (round(v * side) for v, side in zip(box, (width, height) * 2, strict=True))
    pixels = np.asarray(picture.convert("RGB"))[top:bottom, left:right]
    missing = np.subtract(max(pixels.shape[:2]), pixels.shape[:2])
    sides = missing[1] // 2, missing[1] - missing[1] // 2
    return Image.fromarray(np.pad(pixels, ((missing[0], 0), sides, (0, 0)), mode="edge"))


def image_scores(images, references, model=None) -> np.ndarray:
    """Image-alignment of every picture -> (n,): the mean over the references."""
    return evaluation.image_scores(images, references, load_scorer(model)).numpy()


def image_alignment(images, references, model=None) -> float:
    """How much pictures look like a concept's own (paper 4.3): mean cosine over all pairs, each clipped at 0.

    A picture against itself gives 1. The official script prints the mean against the first reference alone (it zips
    the n pictures with the n * m scores), so its numbers are others.
    """
    return float(image_scores(images, references, model).mean())


def choose(images, prompts: Sequence[str], model=None) -> np.ndarray:
    """Zero-shot reading: for every picture the index of the prompt that fits best -> (n,)."""
    scorer = load_scorer(model)
    return (scorer.image_features(images) @ scorer.text_features(prompts).T).argmax(dim=1).numpy()


def _pictures(images) -> list[Image.Image]:
    images = [images] if isinstance(images, Image.Image) else list(images)
    if not images:
        raise ValueError("there is no picture to score: give at least one")
    wrong = [i for i in images if not isinstance(i, Image.Image)]
    if wrong:
        raise TypeError(
            f"pictures to score must be PIL images, not {type(wrong[0]).__name__}: open the file with PIL.Image.open"
        )
    return images
