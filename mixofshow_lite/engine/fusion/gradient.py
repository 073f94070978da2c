"""Gradient fusion (paper 3.3.2): one model that behaves like every concept's own model, on that concept's inputs.

    W* = argmin_W  sum_i || (W0 + dW_i) X_i - W X_i ||_F^2        for every layer that a LoRA changed

Averaging (Eq. 2) mixes the concepts, because every update also acts on the other concepts' inputs; this asks for
less. X_i is what the layer sees while the center node samples concept i, so no client is asked for data. As in the
official code there are three stages, each recorded with the earlier ones already fused: text encoder -> keys and
values -> spatial layers.

    paper   here                    shape
    X_i     Statistics.grams        (d_in, d_in)      see `grams`
    W*      report.factors          (r, d_in), (d_out, r), r <= sum r_i, see `algebra`

Departures from the paper: it records "photo of a {}" and "{}" without guidance and runs LBFGS for 500/50 iterations
from W0. On a small model that exact answer overfits what was recorded: prompts outside it turn to noise. So the
default records several contexts with guidance and solves in closed form with a ridge towards the average.
`solver="lbfgs"` is the paper's solver and `recording="paper"` records the rows of the official code; the other choices
are in `settings`.
"""

import hashlib
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ...files.concept import Concept, LoRAFactors
from ...model import DiffusionModel
from .. import lora
from . import algebra
from .drift import drift as measure_drift
from .grams import CONTEXT_LINEAR, Statistics, feed, joined, record_context, record_spatial, record_text
from .memory import Column, Memory, digest, gram_bytes
from .report import STAGES, FusionReport, LayerReport
from .ridge import leave_one_out
from .settings import Settings
from .weight import check_concepts, layer_factors, updated_layers, updating, with_factors

TEXT, CONTEXT, SPATIAL = STAGES
NO_CONCEPT = ""  # stands for "no concept" where a concept's name is asked for: the preservation rows
IN_MEMORY = 2**29  # bytes of Grams a fusion may hold at once; more are kept in a temporary folder
RECORDED = torch.finfo(torch.float32).eps  # Grams are sums of float32 products


def gradient_fusion(
    base: DiffusionModel,
    concepts: Sequence[Concept],
    solver: str = "closed_form",
    weights: Sequence[float] | None = None,
    progress: bool = True,
    memory: Memory | None = None,
    drift: bool = False,
    **settings,
) -> DiffusionModel:
    """The base with the fused update of all concepts and all their words; `.report` says what each concept lost where.

    `settings` are the fields of `Settings`: ridge, towards, prompts, spatial_prompts, words_only, steps, guidance,
    seed, size, padding, iterations, preserve, plain, balance, span, refine; and recording="paper", which records what
    the official code does (its separate alphas of the two networks are `Concept.scaled`). With `drift` the report
    also says how far prompts without any concept have moved (it samples them). The base and the concepts stay as they
    are; their order does not matter. A concept without updates just adds its words; to keep its pictures too, name it
    in `plain` prompts and `preserve` them. What is recorded is taken from `memory` and added to it. Raises ValueError
    with one sentence on unusable concepts, weights or settings.
    """
    if not isinstance(memory, Memory | None):
        raise TypeError(f"memory={memory!r} is no Memory: leave it out, or give Memory(folder).")
    chosen = Settings.of(solver=solver, **settings)
    concepts, w = check_concepts(base, concepts, weights)
    fusion = Fusion(base, concepts, w, chosen)
    total = len(STAGES) * (len(concepts) + (chosen.preserve > 0)) * (1 + chosen.refine)
    with tqdm(total=total, disable=not progress, desc="fusing", leave=False) as bar:
        if memory is None and gram_bytes(fusion.widths(), len(concepts) + 1) > IN_MEMORY:
            with tempfile.TemporaryDirectory() as folder:
                fusion.run(Memory(Path(folder)), bar)
        else:
            fusion.run(Memory() if memory is None else memory, bar)
    fused = fusion.model()
    ridge = fusion.settings.stage_ridge
    shown = {"weights": tuple(w.tolist()), "towards": chosen.prior, "ridge": ridge, "seed": chosen.seed}
    shown |= {name: getattr(chosen, name) for name in ("preserve", "balance", "span", "refine")}
    names = tuple(concept.name for concept in fusion.concepts)
    fused.report = FusionReport(f"gradient fusion ({solver})", names, shown, fusion.reports(), fusion.factors)
    if drift:
        fused.report.drift = measure_drift(base, fused, progress=progress, size=chosen.size)
    return fused


class Fusion:
    """One gradient fusion on its way: what is fused so far, and the three stages that add to it."""

    def __init__(self, base: DiffusionModel, concepts: list[Concept], weights: Tensor, settings: Settings):
        self.concepts, self.weights = updating(concepts, weights)  # n, (n,)
        self.base, self.settings = base, settings.sized(len(self.concepts))
        self.contexts = {(c.name, stage): settings.contexts(c, stage) for c in self.concepts for stage in STAGES}
        self.worded = base.with_words(*concepts)
        self.factors: dict[str, LoRAFactors] = {"text_encoder": {}, "unet": {}}
        self.layers: dict[str, list[LayerReport]] = {}  # stage -> reports
        recording = settings.recording() + base.fingerprint
        self.keys = {c.name: digest(c) + recording for c in self.concepts}
        # Plain prompts may name concepts that are words only.
        self.keys[NO_CONCEPT] = recording + "".join(digest(c) for c in concepts if c.name not in self.keys)
        self.state = state(base, concepts, weights, settings)

    def run(self, memory: Memory, bar) -> None:
        """All stages in their order, then the refining passes, if any."""
        for number, stage in enumerate(STAGES):
            bar.set_postfix_str(stage)
            names, fused = stage_layers(self.concepts, stage)[1], with_factors(self.worded, self.before(stage))
            self.solve(number, [self.known(memory, fused, c, stage, names, bar) for c in self.sources() if names])
        for _ in range(self.settings.refine):
            for number, stage in enumerate(STAGES):
                bar.set_postfix_str(f"{stage}, again")
                with tempfile.TemporaryDirectory() as place:
                    scratch = Memory(Path(place) if memory.folder else None)
                    self.solve(number, self.again(memory, scratch, stage, bar))

    def sources(self) -> list[Concept | None]:
        """Whose inputs are recorded: every concept, and None for the plain prompts where they are preserved."""
        return [*self.concepts, *([None] if self.settings.preserve else [])]

    def known(self, memory: Memory, fused: DiffusionModel, concept, stage: str, names: list[str], bar) -> Statistics:
        """One concept's statistics in a stage, from the memory or recorded now under its own layers."""
        name = concept.name if concept else NO_CONCEPT
        found = memory.get(name, stage, names, self.keys[name])
        if found is None:
            found = self.record(fused, concept, concept, stage, names)
            found.key, found.made_with = self.keys[name], self.state
            found = memory.put(name, stage, found)
        bar.update()
        return found

    def again(self, memory: Memory, scratch: Memory, stage: str, bar) -> list[Statistics]:
        """Every concept's statistics in a stage, half as in the first pass, half under the fused model itself."""
        names, fused, found = stage_layers(self.concepts, stage)[1], self.model(), []
        if not names:
            return found
        for concept in self.sources():
            name = concept.name if concept else NO_CONCEPT
            seen = self.record(fused, concept, None, stage, names)
            found.append(scratch.put(name, stage, memory.kept[name, stage].mixed(seen, share=0.5)))
            bar.update()
        return found

    def record(self, fused: DiffusionModel, concept, own, stage: str, names: list[str]) -> Statistics:
        """Inputs of a stage's layers for the prompts of `concept` (None: the plain ones), with the layers of `own`."""
        prompts = self.contexts[concept.name, stage] if concept else list(self.settings.plain)
        if self.settings.stage_ridge[STAGES.index(stage)] != "auto":
            return record(fused, own, stage, names, prompts, self.settings)
        return joined([record(fused, own, stage, names, [p], self.settings, i) for i, p in enumerate(prompts)])

    def before(self, stage: str) -> dict[str, LoRAFactors]:
        """The fused factors of the stages before this one."""
        earlier = STAGES[: STAGES.index(stage)]
        names = {name for each in earlier for name in stage_layers(self.concepts, each)[1]}
        return {net: {n: pair for n, pair in found.items() if n in names} for net, found in self.factors.items()}

    def model(self) -> DiffusionModel:
        """The base with everything that is fused so far."""
        return with_factors(self.worded, self.factors)

    def solve(self, number: int, statistics: list[Statistics]) -> None:
        """Fuse the layers of a stage on what was recorded."""
        net, names = stage_layers(self.concepts, STAGES[number])
        self.layers[STAGES[number]] = []
        for key in dict.fromkeys(map(feed, names)):
            fed = {n: layer_factors(self.base, self.concepts, net, n) for n in names if feed(n) == key}
            solved = solve_feed(fed, statistics, key, number, self.weights, self.settings)
            for name, (pair, report) in solved.items():
                self.factors[net][name] = pair
                self.layers[STAGES[number]].append(report)

    def reports(self) -> list[LayerReport]:
        return [report for stage in STAGES for report in self.layers[stage]]

    def widths(self) -> list[int]:
        """d_in of every feed of the largest stage."""
        by_stage = []
        for stage in STAGES:
            net, names = stage_layers(self.concepts, stage)
            layers = lora.adaptable(getattr(self.base, net))
            by_stage.append(list({feed(name): layers[name].weight.shape[1] for name in names}.values()))
        return max(by_stage, key=lambda widths: sum(width**2 for width in widths))


def state(base: DiffusionModel, concepts: Sequence[Concept], weights: Tensor, settings: Settings) -> str:
    """A short hash of a whole fusion: the recordings of later stages are exact as long as it is the same."""
    named = (base.fingerprint, [digest(c) for c in concepts], weights.tolist(), sorted(settings.as_dict().items()))
    return hashlib.sha256(repr(named).encode()).hexdigest()[:16]


def stage_layers(concepts: Sequence[Concept], stage: str) -> tuple[str, list[str]]:
    """("text_encoder" | "unet", names of the layers that any concept updates) of one stage."""
    if stage == TEXT:
        return "text_encoder", updated_layers(concepts, "text_encoder")
    is_context = stage == CONTEXT
    return "unet", [n for n in updated_layers(concepts, "unet") if bool(CONTEXT_LINEAR.search(n)) == is_context]


def record(
    fused: DiffusionModel,
    concept: Concept | None,
    stage: str,
    names: list[str],
    prompts: list[str],
    settings: Settings,
    first: int = 0,
) -> Statistics:
    """The inputs that one concept's own layers see in a stage, with the stages before it already fused (None: as is).

    With guidance, half of all rows come from the empty prompt, as half of the U-Net's batch does. `first` is the
    number of the first prompt: every prompt is drawn from its own noise.
    """
    guidance = fused.guidance if settings.guidance is None else settings.guidance
    net = "text_encoder" if stage == TEXT else "unet"
    own = concept.lora.get(net, {}) if concept else {}
    scaled = {n: (down, concept.scale * up) for n, (down, up) in own.items() if n in set(names)}
    if stage == SPATIAL:
        sampling = {"steps": settings.steps, "guidance": guidance, "size": settings.size}
        return record_spatial(with_factors(fused, {net: scaled}), names, prompts, settings.seed + first, **sampling)
    if stage == TEXT:
        fused = with_factors(fused, {net: scaled})
    read, how = record_text, [settings.padding]
    if stage == CONTEXT:
        read, how = record_context, [settings.padding, settings.words_only]
    seen = read(fused, names, prompts, *how)
    return seen if guidance == 1 else seen.mixed(read(fused, names, [""], *how), share=0.5)


def solve_feed(
    fed: dict[str, list[algebra.LowRankPair]],
    statistics: list[Statistics],
    key: str,
    number: int,
    weights: Tensor,
    settings: Settings,
) -> dict[str, tuple[algebra.LowRankPair, LayerReport]]:
    """The fused update of all layers of one feed, and what each loses. They share one decomposition."""
    grams, n, prior = Column(statistics, key), len(weights), weights
    if settings.balance:
        weights = balanced(weights, list(fed.values()), grams)
    if settings.preserve:  # one more "concept", which leaves the layers as they are
        weights = torch.cat([weights, torch.tensor([settings.preserve], dtype=weights.dtype)])
        prior = torch.cat([prior, torch.zeros(1, dtype=prior.dtype)])
        fed = {name: [*own, algebra.no_update(own[0][0].shape[1], own[0][1].shape[0])] for name, own in fed.items()}
    ridge = settings.stage_ridge[number]
    if ridge == "auto":
        ridge = leave_one_out(statistics, key, list(fed.values()), weights, prior, settings.prior)[0]
    shared = None if settings.span else algebra.normal_equations(grams, weights, ridge, prior, precision=RECORDED)
    found = {}
    for name, own in fed.items():
        if settings.span:
            basis = algebra.row_span(own)  # (R, d_in)
            inside, narrow = algebra.within(basis, own, grams)
            normal = algebra.normal_equations(narrow, weights, ridge, prior, precision=RECORDED)
            down, up = solve_layer(normal, inside, settings, number)
            pair = algebra.compact((down @ basis, up))
        else:
            normal, pair = shared, algebra.compact(solve_layer(shared, own, settings, number))
        concepts = Column(statistics[:n], key)
        rows = tuple(each.rows[key] for each in statistics[:n])
        how = {"ridge": normal.ridge, "condition": normal.condition, "freedom": normal.freedom, "relative": ridge}
        found[name] = pair, layer_report(STAGES[number], name, own[:n], concepts, pair, prior[:n], rows, **how)
    return found


def solve_layer(
    normal: algebra.Normal, own: list[algebra.LowRankPair], settings: Settings, number: int
) -> algebra.LowRankPair:
    """One layer by the chosen solver."""
    if settings.solver == "closed_form":
        return algebra.closed_form(normal, own, settings.prior)
    return algebra.lbfgs(normal, own, settings.prior, settings.iterations[number])


def balanced(weights: Tensor, layers: list[list[algebra.LowRankPair]], grams: Sequence[Tensor]) -> Tensor:
    """Weights (n,) that make every concept's loss relative to the energy of its update in these layers, sum 1.

    A concept without an update here counts as if it had the mean energy.
    """
    energies = torch.tensor(
        [sum(algebra.energy(own[i], grams[i]) for own in layers) for i in range(len(weights))], dtype=weights.dtype
    )
    updated = energies > 0
    if not updated.any():
        return weights
    energies[~updated] = energies[updated].mean()
    relative = weights / energies
    return relative / relative.sum() * weights.sum()


def layer_report(
    stage: str,
    name: str,
    own: list[algebra.LowRankPair],
    grams: Sequence[Tensor],
    fused: algebra.LowRankPair,
    prior: Tensor,
    rows: tuple[int, ...],
    **solved: float,
) -> LayerReport:
    """What each concept loses in one layer under weight fusion and under the fused update, from the same Grams.

    `solved` says how it was solved: ridge, condition, freedom, relative.
    """
    average = algebra.average(own, prior)
    energy, before, after = [], [], []
    for factors, gram in zip(own, grams, strict=True):
        whole = algebra.energy(factors, gram)
        energy.append(whole)
        for lost, update in ((before, average), (after, fused)):
            part = algebra.difference_energy(update, factors, gram)
            lost.append(part / whole if whole > 0 else float("nan"))
    return LayerReport(
        stage=stage,
        name=name,
        before=tuple(before),
        after=tuple(after),
        energy=tuple(energy),
        rows=rows,
        rank=fused[0].shape[0],
        **solved,
    )


def explain(
    base: DiffusionModel, concepts: Sequence[Concept], fused: DiffusionModel, memory: Memory
) -> tuple[LayerReport, ...]:
    """What any fusion of the same concepts loses on what a gradient fusion recorded in `memory`: one yardstick for all.

    Raises ValueError if the model was not fused or the memory does not hold all concepts.
    """
    concepts, w = updating(*check_concepts(base, concepts))
    solutions = getattr(fused.report, "factors", None)
    if solutions is None:
        raise ValueError("This model was not fused, there is nothing to explain: fuse the concepts first.")
    found = []
    for stage in STAGES:
        net, names = stage_layers(concepts, stage)
        missing = [c.name for c in concepts if names and (c.name, stage) not in memory.kept]
        if missing:
            raise ValueError(
                f"Nothing was recorded of {missing[0]!r} ({stage}): pass the memory to gradient_fusion first."
            )
        for name in names:
            own, statistics = layer_factors(base, concepts, net, name), [memory.kept[c.name, stage] for c in concepts]
            grams, rows = Column(statistics, feed(name)), tuple(s.rows[feed(name)] for s in statistics)
            pair = algebra.as_double(solutions[net][name])
            found.append(layer_report(stage, name, own, grams, pair, w, rows))
    return tuple(found)
