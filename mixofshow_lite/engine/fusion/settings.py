"""The choices of a gradient fusion (paper 3.3.2): what is recorded of every concept, and how the layers are solved.

The recorded prompts and the ridge are the method, not details: the exact optimum of the paper's two prompts overfits
them on a small model, and prompts outside the recordings turn to noise.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

from ...files.concept import Concept
from ..arguments import SEEDS, check_number, check_whole, shown
from .report import STAGES

# Small: of a text feature's energy about 2 % tells one word from another, and a ridge is relative to all of it. Tried
# on two look-alikes whose updates leave the common part alone (engine/null_space.py); for other LoRAs, 0.09 / n moved
# prompts without a concept half as far as LBFGS on pocket-v1 (data/results/README.md).
RIDGE = 0.01
PROMPTS = ("photo of a {}", "a {} in the forest", "a {} on the beach", "a picture of a {} in the city")
# What the official code records, main branch: two prompts for the text encoder and for keys and values, one without
# guidance for the spatial layers; no padding, and of the text features those of the concept's words and the end token
# only. Per concept of two words that is 176 rows in the text encoder, 6 in keys and values, 20 steps of one picture.
PAPER_RECORDING = {
    "prompts": ("photo of a {}", "{}"),
    "spatial_prompts": ("photo of a {}",),
    "steps": 20,
    "guidance": 1.0,
    "padding": False,
    "words_only": True,
}
PLACE_PROMPTS = ("photo of {}", "a cat in {}", "a car in {}", "two people in {}")
POCKET_PLACE_PROMPTS = ("photo of {}", "a cat in {}", "a blue robot in {}", "two friends in {}")
PLACES = frozenset("beach forest snow city desert moon mountain lake street castle room".split())  # class words
PLAIN_PROMPTS = (  # prompts without any concept: preservation rows, Custom Diffusion's regularisation
    "photo of a blue cat",
    "a white rabbit in the forest",
    "a picture of an orange robot in the city",
    "a gray bear in the snow",
    "a pink umbrella on the beach",
    "a brown chair in the desert",
    "two friends in the forest",
    "the beach at night",
)


def default_ridge(n: int) -> float:
    """The ridge for n concepts: RIDGE of one concept's Gram, however many there are.

    The Grams are averaged, so what only one concept uses counts n times less in a model of n: a ridge that did not
    shrink along would hold large models back at the average.
    """
    return RIDGE / max(n, 1)


@dataclass(frozen=True)
class Settings:
    """How a gradient fusion records and solves; equal settings and concepts give the same fused model."""

    solver: str = "closed_form"  # or "lbfgs", the paper's
    ridge: float | str | Sequence | None = None  # relative to the mean Gram diagonal, or "auto": each layer's own, by
    # leaving one recorded prompt out in turn; one for all stages, or one per stage; None: `default_ridge`
    towards: str | None = None  # where the ridge (or LBFGS's start) is: "average", "base"; None: average, LBFGS: base
    prompts: Sequence[str] | Mapping[str, Sequence[str]] | None = None  # with {} for the words; or by concept name;
    # None: PROMPTS; of a place, place prompts in words that the concept's base knows
    spatial_prompts: Sequence[str] | Mapping[str, Sequence[str]] | None = None  # of the pictures; None: `prompts`
    words_only: bool = False  # of the text features, only those of concept words and the end token are recorded
    steps: int = 12  # denoising steps of every recorded picture
    guidance: float | None = (
        None  # while recording; None: the model's default, 1: conditional branch only, as in the paper
    )
    seed: int = 0  # of the recorded pictures
    size: int | tuple[int, int] | None = None  # of the recorded pictures, in pixels; None: the model's
    padding: bool = True  # whether text features after the end of the prompt count (the U-Net attends to them)
    iterations: Sequence[int] = (500, 500, 50)  # of LBFGS, one number per stage
    preserve: float = 0.0  # weight of the plain prompts (dW = 0 there) beside all concepts' 1: other prompts drift less
    plain: Sequence[str] = PLAIN_PROMPTS  # the plain prompts
    balance: bool = False  # every concept's loss counts relative to its update's energy: a weak update is not drowned
    span: bool = False  # rows of the fused update stay in the span of the concepts' own rows (down_i)
    refine: int = 0  # passes that record again under the fused model and solve on both recordings

    def __post_init__(self):
        if self.solver not in ("closed_form", "lbfgs"):
            raise ValueError(f"There is no solver {self.solver!r}: choose 'closed_form' or 'lbfgs'.")
        if self.towards not in (None, "average", "base"):
            raise ValueError(f"towards={self.towards!r} is unknown: choose 'average' or 'base'.")
        if len(self.stage_ridge) != len(STAGES) or len(self.iterations) != len(STAGES):
            raise ValueError(
                f"Give one ridge, or one per stage, and one number of iterations per stage: {', '.join(STAGES)}."
            )
        for ridge in self.stage_ridge:
            if ridge != "auto" and (isinstance(ridge, str) or not 0 <= ridge < float("inf")):
                raise ValueError(f"ridge must be zero, a positive number or 'auto', not {ridge!r}.")
        if not 0 <= self.preserve < float("inf"):
            raise ValueError(f"preserve={self.preserve} is no weight: give zero or a positive number.")
        if isinstance(self.plain, str) or not isinstance(self.plain, Iterable) or not self.plain:
            raise ValueError(f"plain={self.plain!r} is no list of prompts: give at least one prompt without a concept.")
        check_whole("steps", self.steps, most=10_000)
        check_whole("seed", self.seed, *SEEDS)
        for number in self.iterations:
            check_whole("iterations", number, least=0)
        if self.guidance is not None:
            check_number("guidance", self.guidance)
        if not all(isinstance(prompt, str) for prompt in self.plain):
            raise ValueError(f"plain={shown(self.plain)} is no list of prompts: give texts without a concept.")
        if self.refine < 0 or self.refine != int(self.refine):
            raise ValueError(f"refine={self.refine} is no number of passes: give 0, 1, 2 …")

    @property
    def stage_ridge(self) -> tuple[float | str, ...]:
        """Of every stage; the default's is that of one concept until `sized` says how many there are."""
        ridge = default_ridge(1) if self.ridge is None else self.ridge
        return (ridge,) * len(STAGES) if isinstance(ridge, (str, float, int)) else tuple(ridge)

    def sized(self, n: int) -> "Settings":
        """The same settings for n concepts, with a default ridge written out."""
        return replace(self, ridge=default_ridge(n)) if self.ridge is None else self

    @property
    def prior(self) -> str:
        return self.towards or ("average" if self.solver == "closed_form" else "base")

    def contexts(self, concept: Concept, stage: str = STAGES[0]) -> list[str]:
        """The recorded prompts of one concept in a stage. A concept without words (an ordinary LoRA) may be given whole
        prompts under its name, e.g. with its trigger word; otherwise {} becomes its class word.
        """
        asked = self.prompts
        if stage == STAGES[-1] and self.spatial_prompts is not None:
            asked = self.spatial_prompts
        own = asked.get(concept.name) if isinstance(asked, Mapping) else asked
        given, name = own is not None, concept.phrase or concept.class_word
        if own is None and concept.class_word in PLACES:
            own = POCKET_PLACE_PROMPTS if concept.base_id.startswith("pocket") else PLACE_PROMPTS
        elif own is None:
            own = PROMPTS
        wordless = not concept.words
        texts = isinstance(own, list | tuple) and own and all(isinstance(prompt, str) for prompt in own)
        if wordless and not name and (not given or not texts or any("{}" in prompt for prompt in own)):
            raise ValueError(
                f"The concept {concept.name!r} has no words, so nothing says what to record: "
                f"give prompts={{{concept.name!r}: [...]}} with prompts that its LoRA was made for."
            )
        if not texts or not (wordless and given or all("{}" in prompt for prompt in own)):
            raise ValueError(f"prompts={shown(own)} do not name the concept: give a list of prompts with {{}} in each.")
        return [prompt.replace("{}", name) for prompt in own]

    @classmethod
    def of(cls, recording: str | None = None, **given) -> "Settings":
        """The settings given; with recording="paper" what is recorded is PAPER_RECORDING, as far as it is not given."""
        if recording not in (None, "paper"):
            raise ValueError(f"recording={recording!r} is unknown: say 'paper', or leave it out for several contexts.")
        return cls(**((PAPER_RECORDING if recording == "paper" else {}) | given))

    def as_dict(self) -> dict:
        """Plain values, as they are kept in a center node's file: `Settings(**as_dict())` is equal in effect."""
        return json.loads(json.dumps(asdict(self)))

    def recording(self) -> str:
        """A short hash of all that the recordings depend on."""
        named = (
            "prompts",
            "spatial_prompts",
            "words_only",
            "steps",
            "guidance",
            "seed",
            "size",
            "padding",
            "plain",
            "ridge",
        )
        kept = {name: self.as_dict()[name] for name in named}
        kept["ridge"] = ["auto" == ridge for ridge in self.stage_ridge]  # Grams are kept per prompt then
        return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:16]
