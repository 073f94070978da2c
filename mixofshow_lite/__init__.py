"""Mix-of-Show, section by section (NeurIPS 2023): the paper's table of contents as names.

    3.1    text-to-image diffusion, concept tokens     load_base, DiffusionModel, denoising_loss, Concept, ConceptData
    3.3.1  single-client concept tuning                tune, Recipe, RECIPES
    3.2, 3.3.2  the center node                        weight_fusion (Eq. 2), gradient_fusion, CenterNode;
                                                       constrained_fusion, peft_fusion, drift, explain to compare
    3.4    regionally controllable sampling            Region, side_by_side, regional_attention, parse_regions;
                                                       load_adapter, spatial_control, keypose_layout, sketch_layout;
                                                       RegionCanvas
    4.3    evaluation                                  text_alignment, image_alignment

Names are imported when first used: `import mixofshow_lite` itself is instant.
"""

from importlib import import_module

__version__ = "0.1.0"

_HOME = {
    "load_base": "model",
    "DiffusionModel": "model",
    "denoising_loss": "model",
    "noising": "model",
    "Concept": "files.concept",
    "ConceptData": "files.data",
    "tune": "engine.tuning",
    "Recipe": "engine.tuning",
    "RECIPES": "engine.tuning",
    "weight_fusion": "engine.fusion",
    "gradient_fusion": "engine.fusion",
    "constrained_fusion": "rivals",
    "peft_fusion": "rivals",
    "drift": "engine.fusion",
    "explain": "engine.fusion",
    "CenterNode": "center",
    "Region": "engine.regional",
    "regional_attention": "engine.regional",
    "parse_regions": "engine.regional",
    "side_by_side": "engine.regional",
    "load_adapter": "engine.spatial",
    "spatial_control": "engine.spatial",
    "keypose_layout": "engine.spatial",
    "sketch_layout": "engine.spatial",
    "RegionCanvas": "course.widgets",
    "text_alignment": "engine.evaluation",
    "image_alignment": "engine.evaluation",
}
__all__ = list(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
