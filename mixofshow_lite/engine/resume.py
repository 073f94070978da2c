"""A concept is tuned once: it stays in its folder, and an interrupted tuning goes on."""

import json
from collections.abc import Callable
from pathlib import Path

from ..files.concept import Concept
from ..files.data import ConceptData
from ..files.writing import write_text
from ..model import DiffusionModel
from .checkpoint import discard
from .recipes import Recipe, recipe_for
from .tuning import tune


def tune_once(
    base: DiffusionModel,
    data: ConceptData,
    place: str | Path,
    recipe: str | Recipe = "ed_lora",
    seed: int = 0,
    steps: int | None = None,
    progress: bool = True,
    callback: Callable[[dict], None] | None = None,
) -> Concept:
    """The concept in the folder `place`, tuned and saved there if it is not yet; arguments as in `tune`.

    It is taken as it is if it was tuned on this base, on these pictures and captions, with this seed and number of
    steps, as its `tuned.json` says. A concept without that note, like those that ship, counts as tuned in full. A
    change of the recipe's other numbers is not noticed: give changed recipes another place. Raises what `tune` raises,
    OSError on a full disk.
    """
    place = Path(place)
    note, checkpoint = place / "tuned.json", place.with_name(f".{place.name}.pt")
    own = recipe_for(base, recipe).steps if steps is None else steps
    how = {"steps": own, "seed": seed, "fingerprint": base.fingerprint, "data": data.digest()}
    said = json.loads(note.read_text(encoding="utf-8")) if note.is_file() else {}
    same = said.items() <= how.items() if said else steps is None  # older notes do not name their data
    if same and (concept := kept(place, base)):
        return concept
    options = {"progress": progress, "callback": callback, "checkpoint": checkpoint}
    concept = tune(base, data, recipe, seed=seed, steps=steps, **options)
    concept.save(place)
    write_text(note, json.dumps(how) + "\n")
    discard(checkpoint)
    return concept


def kept(place: str | Path, base: DiffusionModel) -> Concept | None:
    """The concept in a folder, if there is one and it was tuned on this base."""
    if not (Path(place) / "concept.json").is_file():
        return None
    concept = Concept.load(place)
    return concept if concept.fingerprint == base.fingerprint else None
