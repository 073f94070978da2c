"""Every way to bring concepts together, behind one interface, so that a study can go through them all.

    for name, way in WAYS.items():
        concepts = [tune(base, data, way.recipe(base, i)) for i, data in enumerate(...)]
        drawn = way.bring(base, concepts).sample(prompt, n=4, seed=0)

What `bring` gives has a `sample`: a fused DiffusionModel, or a sampler that holds all LoRAs. `needs` says what the way
asks for beyond the base and its concepts:

    recordings   the center draws every concept first, from its words
    slots        every client is given a number before it tunes
    regions      a picture says where each concept is
    all LoRAs    nothing is fused: memory, and for some the time of a picture, grow with the number of concepts

No way needs a client's pictures here; the rivals whose authors take task data have `data` in `authors_need`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from ..engine.fusion import gradient_fusion, weight_fusion
from ..engine.recipes import Recipe, recipe_for
from ..files.concept import Concept
from ..model import DiffusionModel
from .composition import Composition
from .constrained import constrained_fusion
from .core_space import core_space_fusion
from .iteris import iteris_fusion
from .knots import knots_fusion
from .ladder import ladder_fusion
from .masked import MaskedLoRAs
from .orthogonal import orthogonal_fusion, orthogonal_recipe
from .peft_merge import peft_fusion
from .regmean import regmean_fusion, regmean_plusplus_fusion
from .ssr_merge import ssr_fusion
from .wudi import wudi_fusion

RECORDINGS, SLOTS, REGIONS, ALL = "recordings", "slots", "regions", "all LoRAs"
FEW_STEPS = 20  # of WUDI's gradient descent


@dataclass(frozen=True)
class Way:
    """One way to bring concepts together."""

    run: Callable[[DiffusionModel, Sequence[Concept]], object]  # -> a DiffusionModel or a sampler
    paper: str  # where it is from
    needs: tuple[str, ...] = ()  # see above
    authors_need: tuple[str, ...] = ()  # what its authors take and we replace
    tuned: str = "ed_lora"  # the recipe of its concepts; "orthogonal": one for each slot

    def bring(self, base: DiffusionModel, concepts: Sequence[Concept]):
        """The fused model, or what samples in its place."""
        return self.run(base, concepts)

    def recipe(self, base: DiffusionModel, number: int) -> Recipe:
        """How concept `number` of this base has to be tuned to take part."""
        return orthogonal_recipe(base, number) if self.tuned == "orthogonal" else recipe_for(base, self.tuned)

    @property
    def solo(self) -> bool:
        """Whether it draws a prompt without being told where its concepts are."""
        return REGIONS not in self.needs


def quiet(fuse: Callable, **options) -> Callable:
    """The same fusion without a progress bar."""
    return partial(fuse, progress=False, **options)


def by_data(fuse: Callable, paper: str, **options) -> Way:
    """A rival whose authors take task data, on recordings."""
    return Way(quiet(fuse, **options), paper, (RECORDINGS,), ("data",))


WAYS: dict[str, Way] = {
    "averaging": Way(weight_fusion, "Mix-of-Show's Eq. 2"),
    "plain sum": Way(partial(weight_fusion, normalise=False), "task arithmetic, Ilharco et al. 2023"),
    "gradient fusion": Way(quiet(gradient_fusion), "Mix-of-Show 3.3.2", (RECORDINGS,)),
    "Custom Diffusion's merge": Way(quiet(constrained_fusion), "Kumari et al., CVPR 2023", (RECORDINGS,)),
    "peft's TIES": Way(partial(peft_fusion, method="ties"), "Yadav et al., NeurIPS 2023"),
    "peft's DARE": Way(partial(peft_fusion, method="dare_linear"), "Yu et al., ICML 2024"),
    "KnOTS-TIES": Way(knots_fusion, "Stoica et al., ICLR 2025"),
    "Core Space, TIES": Way(partial(core_space_fusion, merge="ties"), "Panariello et al., NeurIPS 2025"),
    "Core Space, Iso-C": Way(partial(core_space_fusion, merge="iso_c"), "Panariello et al., NeurIPS 2025"),
    "Core Space, TSV-M": Way(partial(core_space_fusion, merge="tsv_m"), "Panariello et al., NeurIPS 2025"),
    "WUDI": Way(wudi_fusion, "Cheng et al., ICML 2025"),
    "WUDI, ridge": Way(partial(wudi_fusion, ridge=0.1), "Cheng et al., ICML 2025"),
    "WUDI, few steps": Way(partial(wudi_fusion, steps=FEW_STEPS), "Cheng et al., ICML 2025"),
    "RegMean": by_data(regmean_fusion, "Jin et al., ICLR 2023"),
    "RegMean++": by_data(regmean_plusplus_fusion, "Nguyen et al., 2025"),
    "IterIS": by_data(iteris_fusion, "Chen et al., CVPR 2025"),
    "SSR-Merge": by_data(ssr_fusion, "SSR-Merge, ICML 2026"),
    "a number a concept": Way(quiet(ladder_fusion, rung="concept"), "ours, the ladder's first rung", (RECORDINGS,)),
    "a number a column": by_data(ladder_fusion, "after ZipLoRA, Shah et al., ECCV 2024", rung="column"),
    "the whole matrix": Way(quiet(ladder_fusion, rung="matrix"), "ours, the ladder's last rung", (RECORDINGS,)),
    "Orthogonal Adaptation": Way(orthogonal_fusion, "Po et al., CVPR 2024", (SLOTS,), tuned="orthogonal"),
    "LoRA Switch": Way(partial(Composition, how="switch"), "Zhong et al., TMLR 2024", (ALL,)),
    "LoRA Composite": Way(partial(Composition, how="composite"), "Zhong et al., TMLR 2024", (ALL,)),
    "region-masked LoRAs": Way(MaskedLoRAs, "after FreeFuse, 2025", (REGIONS, ALL)),
}
