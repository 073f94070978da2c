"""What a file is that is no plain LoRA for Stable Diffusion 1.x, said from the names and widths of its tensors.

Every rule is a pattern that one key of the file contains, what such a file is, and what its owner can do. The first
rule that fits names the file, so the rules for whole families stand before those for single layers.
"""

import re
from collections.abc import Mapping

from torch import Tensor

GIVE_LORA = "give a plain LoRA of the linear layers of Stable Diffusion 1.x"
AS_BASE = (
    "give a LoRA here; to use it as the base, write it as a folder with diffusers' "
    "StableDiffusionPipeline.from_single_file(...).save_pretrained(...)"
)
AS_EMBEDDING = "it has words only and no LoRA to fuse, draw with it in a stock pipeline (load_textual_inversion)"
MERGE_DORA = f"merge it into its model with the program that made it, or {GIVE_LORA}"

KINDS = (
    (r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.", "a whole model", AS_BASE),
    (
        r"^(conv_in|encoder\.conv_in|decoder\.conv_in)\.weight$|^text_model\.embeddings",
        "part of a whole model",
        AS_BASE,
    ),
    (r"^control_model\.|controlnet_(cond|down|mid)|^input_hint_block", "a ControlNet", GIVE_LORA),
    (r"^(image_proj|ip_adapter)\.", "an IP-Adapter", GIVE_LORA),
    (r"string_to_(param|token)|^emb_params$|^clip_[lg]$|^<[^<>]+>$", "a textual-inversion embedding", AS_EMBEDDING),
    (r"(double|single)_blocks|single_transformer_blocks", "a LoRA for Flux", GIVE_LORA),
    (r"joint_blocks", "a LoRA for SD 3", GIVE_LORA),
    (
        r"^(base_model\.model\.)?(transformer|diffusion_model)\.(?!(in|out)put_blocks|middle_block)|lora_te3_|lora_transformer_"
        r"|text_encoder_3\.|^(base_model\.model\.|lora_unet_)?transformer_blocks",
        "a LoRA for a transformer such as Flux or SD 3",
        GIVE_LORA,
    ),
    (r"lora_te2_|text_encoder_2\.|transformer_blocks[._][1-9]|add_embedding|label_emb", "a LoRA for SDXL", GIVE_LORA),
    (r"\.hada_[wt]", "a LoHa", GIVE_LORA),
    (r"\.lokr_[wt]", "a LoKr", GIVE_LORA),
    (r"\.(oft_|boft_|on_input|diff(_b)?$|[ab][12]\.weight)", "a LyCORIS file of another kind than LoRA", GIVE_LORA),
    (r"dora_scale|lora_magnitude_vector", "a DoRA, which also rescales the weights", MERGE_DORA),
    (
        r"lora_(A|B|down|up)(\..+)?\.bias$",
        "a LoRA with biases (peft's lora_bias), which an update of the weights cannot hold",
        "train it without lora_bias, or give a plain LoRA",
    ),
    (
        r"^base_model\.model\.(?!.*lora).*\.(weight|bias)$",
        "a LoRA that also replaces whole layers or biases (peft's modules_to_save or bias)",
        "train it without them, or give a plain LoRA",
    ),
    (
        r"lora_mid|resnets|(down|up)samplers|conv_(in|out|shortcut)|time_emb"
        r"|(in|out|emb)_layers_|skip_connection|_blocks_\d+_\d_(op|conv)\b|time_embed_",
        "a LoCon, which also changes convolutions",
        GIVE_LORA,
    ),
)

PEFT_TYPES = {"LOHA": "a LoHa", "LOKR": "a LoKr", "OFT": "an OFT", "BOFT": "a BOFT", "IA3": "an IA3 adapter"}
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2", 2048: "SDXL"}  # by the width of text features
LOAD = {768: ': load such a base, e.g. load_base("sd15")'}


def refuse_other_kinds(tensors: Mapping[str, object], source: str) -> None:
    """Raise ValueError with one sentence that says what the file is, if it is none that this library can use."""
    for pattern, kind, advice in KINDS:
        key = next((key for key in tensors if re.search(pattern, str(key))), None)
        if key is not None:
            raise ValueError(f"{source} is {kind} (it has {key}): {advice}.")
    if len(tensors) == 1:  # textual inversion of a token without brackets: one table of rows as wide as text features
        key, rows = next(iter(tensors.items()))
        if "." not in str(key) and isinstance(rows, Tensor) and rows.ndim in (1, 2) and rows.shape[-1] in FAMILIES:
            raise ValueError(f"{source} is a textual-inversion embedding (it has {key} alone): {AS_EMBEDDING}.")


def refuse_other_widths(width: int, base, source: str) -> None:
    """Raise ValueError if the file reads text features of another width (d_in of keys and values) than the base has."""
    own = base.text_encoder.config.hidden_size
    if width != own and width in FAMILIES:
        raise ValueError(
            f"{source} is a LoRA for {FAMILIES[width]}, whose text features have {width} numbers, "
            f"{base.base_id or 'this base'} has {own}{LOAD.get(width, ': ' + GIVE_LORA)}."
        )
