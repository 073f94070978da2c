"""Gradient fusion (paper 3.3.2): one model that behaves like every concept's own model, on that concept's inputs.

    W* = argmin_W  sum_i || (W0 + dW_i) X_i - W X_i ||_F^2        for every layer that a LoRA changed

Averaging (Eq. 2) mixes the concepts, because every update also acts on the other concepts' inputs; this asks for
less. X_i is what the layer sees while the center node samples concept i, so no client is asked for data. As in the
official code there are three stages, each recorded with the earlier ones already fused: text encoder -> keys and
values -> spatial layers.

    paper   here                    shape
    X_i     Statistics.grams        (d_in, d_in)      see `grams`
    W*      report.factors          (r, d_in), (d_out, r), r = sum r_i, see `algebra`

Departures from the paper: it records "photo of a {}" and "{}" without guidance and runs LBFGS for 500/50 iterations
from W0. On a small model that exact answer overfits what was recorded: prompts outside it turn to noise. So the
default records several contexts with guidance and solves in closed form with a ridge towards the average.
`solver="lbfgs"` is the paper's solver.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tqdm.auto import tqdm

from ..base import DiffusionModel
from ..concept import Concept, Factors
from . import algebra
from .grams import CONTEXT_LINEAR, Statistics, feed, record_context, record_spatial, record_text
from .report import STAGES, FusionReport, LayerReport
from .weight import check, layer_factors, updated_layers, with_factors

PROMPTS = ("photo of a {}", "a {} in the forest", "a {} on the beach", "a picture of a {} in the city")
PLACE_PROMPTS = ("photo of {}", "a cat in {}", "a blue robot in {}", "two friends in {}")
PLACES = frozenset(
    "beach forest snow city desert moon mountain lake street castle room".split()
)  # class words of scenes
TEXT, CONTEXT, SPATIAL = STAGES


@dataclass(frozen=True)
class Settings:
    """How a gradient fusion records and solves; equal settings and concepts give the same fused model."""

    solver: str = "closed_form"  # or "lbfgs"
    ridge: float | Sequence[float] = 0.3  # relative to the mean diagonal of the Grams; one number, or one per stage
    towards: str | None = None  # where the ridge (or LBFGS's start) is: "average", "base"; None: average, LBFGS: base
    prompts: Sequence[str] | Mapping[str, Sequence[str]] | None = None  # with {} for the words; or by concept name;
    # None: PROMPTS, or PLACE_PROMPTS where the class word is a place
    steps: int = 12  # denoising steps of every recorded picture
    guidance: float | None = (
        None  # while recording; None: the model's default, 1: conditional branch only, as in the paper
    )
    seed: int = 0  # of the recorded pictures
    size: int | tuple[int, int] | None = None  # of the recorded pictures, in pixels; None: the model's
    padding: bool = True  # whether text features after the end of the prompt count (the U-Net attends to them)
    iterations: Sequence[int] = (500, 500, 50)  # of LBFGS, one number per stage

    def __post_init__(self):
        if self.solver not in ("closed_form", "lbfgs"):
            raise ValueError(f"There is no solver {self.solver!r}: choose 'closed_form' or 'lbfgs'.")
        if self.towards not in (None, "average", "base"):
            raise ValueError(f"towards={self.towards!r} is unknown: choose 'average' or 'base'.")
        if len(self.stage_ridge) != len(STAGES) or len(self.iterations) != len(STAGES):
            raise ValueError(
                f"Give one ridge, or one per stage, and one number of iterations per stage: {', '.join(STAGES)}."
            )

    @property
    def stage_ridge(self) -> tuple[float, ...]:
        return tuple(self.ridge) if isinstance(self.ridge, Sequence) else (self.ridge,) * len(STAGES)

    @property
    def prior(self) -> str:
        return self.towards or ("average" if self.solver == "closed_form" else "base")

    def contexts(self, concept: Concept) -> list[str]:
        """The recorded prompts of one concept."""
        own = self.prompts.get(concept.name) if isinstance(self.prompts, Mapping) else self.prompts
        if own is None:
            own = PLACE_PROMPTS if concept.class_word in PLACES else PROMPTS
        if isinstance(own, str) or not own or not all("{}" in prompt for prompt in own):
            raise ValueError(f"prompts={own!r} do not name the concept: give a list of prompts with {{}} in each.")
        return [prompt.replace("{}", concept.phrase or concept.class_word) for prompt in own]


@dataclass
class Memory:
    """Recorded statistics by (concept name, stage): what is in it is used, what is missing is recorded and added."""

    kept: dict[tuple[str, str], Statistics] = field(default_factory=dict)

    def get(self, concept: Concept, stage: str, names: list[str]) -> Statistics | None:
        found = self.kept.get((concept.name, stage))
        return found if found is not None and all(feed(name) in found.grams for name in names) else None

    def forget(self, concept: str | None = None, stage: str | None = None) -> None:
        """Drop the statistics of one concept (or all) in one stage (or all)."""
        self.kept = {(c, s): v for (c, s), v in self.kept.items() if concept not in (None, c) or stage not in (None, s)}


def gradient_fusion(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    solver: str = "closed_form",
    weights: Sequence[float] | None = None,
    progress: bool = True,
    memory: Memory | None = None,
    **settings,
) -> DiffusionModel:
    """The base with the fused update of all concepts and all their words; `.report` says what each concept lost where.

    `settings` are the fields of `Settings`: ridge, towards, prompts, steps, guidance, seed, size, padding,
    iterations. The base and the concepts stay as they are; their order does not matter. `memory` is for the center
    node. Raises ValueError with one sentence on unusable concepts, weights or settings.
    """
    chosen = Settings(solver=solver, **settings)
    concepts, w = check(base, concepts, weights)
    contexts = {concept.name: chosen.contexts(concept) for concept in concepts}
    memory = Memory() if memory is None else memory
    fused, factors, layers = base.with_words(*concepts), {"text_encoder": {}, "unet": {}}, []
    with tqdm(total=len(STAGES) * len(concepts), disable=not progress, desc="fusing", leave=False) as bar:
        for number, stage in enumerate(STAGES):
            net, names = stage_layers(concepts, stage)
            bar.set_postfix_str(stage)
            statistics = []
            for concept in concepts if names else ():
                known = memory.get(concept, stage, names)
                if known is None:
                    known = memory.kept[concept.name, stage] = record(fused, concept, stage, names, contexts, chosen)
                statistics.append(known)
                bar.update()
            solved, reports = solve(base, concepts, w, number, statistics, chosen)
            fused = with_factors(fused, {net: solved})
            factors[net] |= solved
            layers += reports
    shown = {"weights": tuple(w.tolist()), "towards": chosen.prior, "ridge": chosen.stage_ridge, "seed": chosen.seed}
    names = tuple(concept.name for concept in concepts)
    fused.report = FusionReport(f"gradient fusion ({solver})", names, shown, layers, factors)
    return fused


def stage_layers(concepts: Sequence[Concept], stage: str) -> tuple[str, list[str]]:
    """("text_encoder" | "unet", names of the layers that any concept updates) of one stage."""
    if stage == TEXT:
        return "text_encoder", updated_layers(concepts, "text_encoder")
    is_context = stage == CONTEXT
    return "unet", [n for n in updated_layers(concepts, "unet") if bool(CONTEXT_LINEAR.search(n)) == is_context]


def record(
    fused: DiffusionModel, concept: Concept, stage: str, names: list[str], contexts: dict, settings: Settings
) -> Statistics:
    """The inputs that one concept's own layers see in a stage, with the stages before it already fused.

    With guidance, half of all rows come from the empty prompt, as half of the U-Net's batch does.
    """
    prompts = contexts[concept.name]
    guidance = fused.guidance if settings.guidance is None else settings.guidance
    net = "text_encoder" if stage == TEXT else "unet"
    scaled = {n: (down, concept.scale * up) for n, (down, up) in concept.lora.get(net, {}).items() if n in set(names)}
    if stage == SPATIAL:
        sampling = {"steps": settings.steps, "guidance": guidance, "size": settings.size}
        return record_spatial(with_factors(fused, {net: scaled}), names, prompts, settings.seed, **sampling)
    if stage == TEXT:
        fused = with_factors(fused, {net: scaled})
    read = record_text if stage == TEXT else record_context
    seen = read(fused, names, prompts, settings.padding)
    return seen if guidance == 1 else seen.mixed(read(fused, names, [""], settings.padding), share=0.5)


def solve(
    base: DiffusionModel, concepts: list[Concept], w, number: int, statistics: list[Statistics], settings: Settings
) -> tuple[Factors, list[LayerReport]]:
    """The fused update of every layer of a stage and what it loses. Layers of one feed share one decomposition."""
    net, names = stage_layers(concepts, STAGES[number])
    normals = {}
    solved, reports = {}, []
    for name in names:
        key = feed(name)
        if key not in normals:
            grams = [own.grams[key] for own in statistics]
            normals[key] = algebra.normal_equations(grams, w, settings.stage_ridge[number])
        normal, own = normals[key], layer_factors(base, concepts, net, name)
        if settings.solver == "closed_form":
            solved[name] = algebra.closed_form(normal, own, settings.prior)
        else:
            solved[name] = algebra.lbfgs(normal, own, settings.prior, settings.iterations[number])
        rows = tuple(s.rows[key] for s in statistics)
        reports.append(layer_report(STAGES[number], name, normal, own, solved[name], rows))
    return solved, reports


def layer_report(stage: str, name: str, normal: algebra.Normal, own: list, fused: algebra.Factors, rows) -> LayerReport:
    """What each concept loses in one layer under weight fusion and under the fused update."""
    energy = [algebra.energy(factors, gram) for factors, gram in zip(own, normal.grams, strict=True)]

    def residuals(update: algebra.Factors) -> tuple[float, ...]:
        lost = [algebra.difference_energy(update, f, gram) for f, gram in zip(own, normal.grams, strict=True)]
        return tuple(part / whole if whole > 0 else float("nan") for part, whole in zip(lost, energy, strict=True))

    return LayerReport(
        stage=stage,
        name=name,
        before=residuals(algebra.average(own, normal.weights)),
        after=residuals(fused),
        energy=tuple(energy),
        rows=rows,
        rank=fused[0].shape[0],
        ridge=normal.ridge,
        condition=normal.condition,
        freedom=normal.freedom,
    )
