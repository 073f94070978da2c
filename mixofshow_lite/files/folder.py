"""A concept is a folder: all that a client shares (paper 3.2), and nothing that could run.

    concept.safetensors    embeddings.<word>                      (L, D)
                           unet.<module>.lora_A.weight, lora_B    (r, d_in), (d_out, r); text_encoder.… alike
    concept.json           words, class word, recipe, rank, alpha convention, layers and their order, base, versions
    preview.png            optional: a strip of sample pictures
    README.md              a card for people

It is written all or nothing, and read with one sentence for everything that can be wrong with it.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from .. import __version__
from ..engine.arguments import is_number, is_whole, printable, shown
from ..engine.finite import first_not_finite
from .concept import Concept, LoRAFactors, is_word, tensors_of
from .fits import check_finite, check_fits
from .grid import grid
from .keys import NETS, kind_of, ordinary, split, warn_of_8_bits
from .lora_files import read_safetensors
from .pictures import open_rgb
from .warn import warn
from .writing import CONCEPT, atomic_folder, check_target

FORMAT, VERSION = "mixofshow-concept", 2  # version 1 had other tensor names and no card
TEXTS = ("name", "class_word", "recipe", "base_id", "fingerprint", "phrase", "source")
CONVENTION = "delta W = scale * lora_B @ lora_A (not divided by the rank)"
CARD = """# {name}

{preview}A concept for [Mix-of-Show](https://arxiv.org/abs/2305.18292), to be used with mixofshow_lite: {what}.
It holds tuned numbers only, none of the pictures it was tuned on.

| | |
|---|---|
| in a prompt | `{phrase}` |
| class word | {class_word} |
| recipe | {recipe}, rank {rank} |
| holds | {numbers:,} numbers in {tensors} tensors |
| tuned on | {base} |
| from | {source} |

```python
import mixofshow_lite as mos

concept = mos.Concept.load("{name}")
model = mos.load_base().with_concept(concept)  # load_base(...) of the base it was tuned on
model.sample("a photo of {phrase}")
```

Licence: (whoever shares this folder says here who owns the pictures and what is allowed)
"""


def save(
    concept: Concept,
    folder: Path,
    preview: Image.Image | Sequence[Image.Image] | None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """See `Concept.save`."""
    check_target(folder, CONCEPT)
    tensors = tensors_of(concept)
    stored = storable(concept, tensors, dtype)
    about = {"format": FORMAT, "version": VERSION, "library": __version__}
    about |= {name: getattr(concept, name) for name in ("words", *TEXTS, "rank", "scale")}
    about |= {"convention": CONVENTION, "layers": concept.layers}
    preview = concept.preview if preview is None else strip(preview)
    edited = edited_card(folder)
    with atomic_folder(folder, CONCEPT) as temporary:
        save_file(stored, temporary / "concept.safetensors")
        (temporary / "concept.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        text = card(concept, tensors, preview is not None).encode()
        (temporary / "README.md").write_bytes(text if edited is None else edited)
        if preview is not None:
            preview.save(temporary / "preview.png")
    return folder


def edited_card(folder: Path) -> bytes | None:
    """The README.md of a concept folder if somebody has changed it since it was written, which it asks for."""
    file = folder / "README.md"
    if not file.is_file():
        return None
    text = file.read_bytes()
    try:
        old = load(folder)
        if text.decode().splitlines() == card(old, tensors_of(old), old.preview is not None).splitlines():
            return None
    except (OSError, ValueError):
        pass  # a damaged concept; its card may be all that is left of it
    warn(f"{file} has been edited and stays as it is: see that it still fits.")
    return text


def storable(concept: Concept, tensors: dict[str, Tensor], dtype: torch.dtype) -> dict[str, Tensor]:
    """The tensors as they go into the file; raises ValueError if one is not finite, or overflows in `dtype`."""
    check_finite(concept, tensors)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point or dtype.itemsize < 2:
        raise ValueError(f"{dtype} cannot hold a concept: save it in torch.float32 or torch.float16.")
    # Clones, because safetensors refuses tensors that share memory.
    stored = {k: v.detach().to("cpu", dtype).contiguous().clone() for k, v in tensors.items()}
    lost = first_not_finite(stored)
    if lost:
        raise ValueError(f"{lost} of the concept {concept.name!r} is too large for {dtype}: save it in torch.float32.")
    return stored


def strip(pictures: Image.Image | Sequence[Image.Image]) -> Image.Image:
    """Pictures side by side, as wide as the widest; one picture is taken as it is."""
    if isinstance(pictures, Image.Image):
        return pictures
    if not isinstance(pictures, Sequence) or not pictures or not all(isinstance(p, Image.Image) for p in pictures):
        raise TypeError(f"preview={shown(pictures)}: give a PIL picture or a list of them.")
    return grid(list(pictures), gap=0)


def card(concept: Concept, tensors: dict[str, Tensor], preview: bool) -> str:
    """The README.md of a concept folder."""
    base = (
        f"{concept.base_id} (fingerprint {concept.fingerprint or 'not recorded'})"
        if concept.base_id
        else "not recorded"
    )
    return CARD.format(
        name=concept.name,
        preview="![what it draws](preview.png)\n\n" if preview else "",
        what=f"one {concept.class_word}" if concept.class_word else "one subject",
        phrase=concept.phrase,
        class_word=concept.class_word or "not recorded",
        recipe=concept.recipe or "not recorded",
        rank=concept.rank,
        numbers=sum(t.numel() for t in tensors.values()),
        tensors=len(tensors),
        base=base,
        source=concept.source or "tuning",
    )


def load(folder: Path) -> Concept:
    """See `Concept.load`."""
    for name in ("concept.json", "concept.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no concept ({name} is missing): give the folder that `save` wrote."
            )
    about = read_about(folder / "concept.json")
    tensors = read_safetensors(folder / "concept.safetensors")[0]
    for name, tensor in tensors.items():
        if not ordinary(tensor):
            raise ValueError(
                f"{printable(name)} in {folder} is {kind_of(tensor)}, no decimal numbers: copy the folder again."
            )
    warn_of_8_bits(tensors, str(folder))
    tensors = {name: tensor.float() for name, tensor in tensors.items()}
    embeddings = {word: tensors.pop(f"embeddings.{word}", None) for word in about["words"]}
    lora: dict[str, LoRAFactors] = {}
    keys = {split(key): key for key in sorted(tensors)}
    for path, part in keys:
        net, _, module = path.partition(".")
        if net in NETS and part == "down" and (path, "up") in keys:
            lora.setdefault(net, {})[module] = tuple(tensors.pop(keys[path, end]) for end in ("down", "up"))
    missing = [word for word, rows in embeddings.items() if rows is None]
    if missing or tensors:
        what = (
            f"the rows of {missing[0]} are missing"
            if missing
            else f"{printable(next(iter(tensors)))} belongs to nothing"
        )
        raise ValueError(f"{folder} is no whole concept ({what}): save it again or copy it again.")
    concept = Concept(**about, embeddings=embeddings, lora=lora, preview=read_preview(folder / "preview.png"))
    check_shapes(concept, folder)
    check_finite(concept)
    return concept


def read_about(file: Path) -> dict:
    """The fields of concept.json that a Concept has; raises ValueError with one sentence."""
    try:
        about = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(about, dict):
            raise ValueError("no names and values")
        kind, version = about["format"], about["version"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file} does not describe a concept ({error!r}): save it again or copy it again.") from error
    if kind != FORMAT or version not in range(1, VERSION + 1):
        raise ValueError(
            f"{file} has the unknown format {kind!r}, version {version!r} (written by mixofshow_lite "
            f"{about.get('library', 'of unknown version')}); this is {__version__} and reads {FORMAT} up to version "
            f"{VERSION}: update mixofshow_lite."
        )
    fields = {name: about.get(name, "") for name in TEXTS}
    fields |= {"words": about.get("words"), "layers": about.get("layers"), "rank": about.get("rank", 0)}
    fields["scale"] = about.get("scale", 1.0)
    lists = all(isinstance(fields[k], list) and all(isinstance(x, str) for x in fields[k]) for k in ("words", "layers"))
    texts = all(isinstance(fields[name], str) for name in TEXTS) and fields["name"]
    numbers = is_whole(fields["rank"], 0) and is_number(fields["scale"], -1e30, 1e30)
    if not (lists and texts and numbers) or isinstance(fields["scale"], bool):
        raise ValueError(f"{file} lacks a field or has one of another type: save the concept again or copy it again.")
    if not all(map(is_word, fields["words"])) or len(set(fields["words"])) < len(fields["words"]):
        raise ValueError(
            f"The words {shown(fields['words'])} in {file} are not different words like <bibi1>: mend them there."
        )
    return fields | {"words": tuple(fields["words"]), "layers": tuple(fields["layers"])}


def read_preview(file: Path) -> Image.Image | None:
    """The preview strip; a broken one is no reason to refuse a concept."""
    try:
        return open_rgb(file)
    except (FileNotFoundError, ValueError):
        return None


def check_shapes(concept: Concept, folder: Path) -> None:
    """Raises ValueError unless every word has L rows of one width and every pair of factors has one rank."""
    widths = {rows.shape[-1] for rows in concept.embeddings.values() if rows.ndim}
    for word, rows in concept.embeddings.items():
        if rows.ndim != 2 or len(widths) > 1 or len(rows) != len(concept.layers or rows):
            raise ValueError(
                f"The rows of {word} in {folder} are {tuple(rows.shape)} for {len(concept.layers)} layers: "
                "the folder is damaged, copy it again."
            )
    for net, factors in concept.lora.items():
        for module, (down, up) in factors.items():
            if down.ndim != 2 or up.ndim != 2 or len(down) != up.shape[1] or not len(down):
                raise ValueError(
                    f"The update of {net}.{module} in {folder} is {tuple(up.shape)} @ {tuple(down.shape)}: "
                    "the folder is damaged, copy it again."
                )


def check(concept: Concept, base, beside: Sequence[Concept]) -> None:
    """See `Concept.check`."""
    if base is not None:
        check_fits(concept, base)
    if concept.name in [other.name for other in beside]:
        raise ValueError(
            f'There is already a concept called {concept.name!r}: rename it with concept.renamed("{concept.name}2").'
        )
    taken = dict.fromkeys(base.words if base is not None else (), "the base model")
    taken |= {word: repr(other.name) for other in beside for word in other.words}
    clash = next((word for word in concept.words if word in taken), None)
    if clash:
        raise ValueError(
            f"The word {clash} of {concept.name!r} is already used by {taken[clash]}: "
            f'give it other words with concept.renamed("{concept.name}2").'
        )
