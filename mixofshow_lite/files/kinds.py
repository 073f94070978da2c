"""What a file is that is no plain LoRA for Stable Diffusion 1.x, said from the names and widths of its tensors.

Every rule is a pattern that one key of the file contains, what such a file is, and what its owner can do. The first
rule that fits names the file, so the rules for whole families stand before those for single layers.
"""

import re
from collections.abc import Mapping

from torch import Tensor

from ..engine.arguments import printable

GIVE_LORA = "give a plain LoRA of the linear layers of Stable Diffusion 1.x"
WHOLE, PART, EMBEDDING = "a whole model", "part of a whole model", "a textual-inversion embedding"
LOHA, LOKR, DORA = "a LoHa", "a LoKr", "a DoRA, which also rescales the weights"
LOCON, TRANSFORMER = "a LoCon, which also changes convolutions", "a LoRA for a transformer such as Flux or SD 3"
BIASES = "a LoRA with biases (peft's lora_bias), which an update of the weights cannot hold"
REPLACING = "a LoRA that also replaces whole layers or biases (peft's modules_to_save or bias)"

KINDS = {  # pattern -> what such a file is
    r"^(model\.diffusion_model|first_stage_model|cond_stage_model|conditioner)\.": WHOLE,
    r"^(conv_in|encoder\.conv_in|decoder\.conv_in)\.weight$|^text_model\.embeddings": PART,
    r"^control_model\.|controlnet_(cond|down|mid)|^input_hint_block": "a ControlNet",
    r"^(image_proj|ip_adapter)\.": "an IP-Adapter",
    r"string_to_(param|token)|^emb_params$|^clip_[lg]$|^<[^<>]+>$": EMBEDDING,
    r"(double|single)_blocks|single_transformer_blocks": "a LoRA for Flux",
    r"joint_blocks": "a LoRA for SD 3",
    r"^(base_model\.model\.)?(transformer|diffusion_model)\.(?!(in|out)put_blocks|middle_block)|lora_te3_|lora_transformer_"
    r"|text_encoder_3\.|^(base_model\.model\.|lora_unet_)?transformer_blocks": TRANSFORMER,
    r"lora_te2_|text_encoder_2\.|transformer_blocks[._][1-9]|add_embedding|label_emb": "a LoRA for SDXL",
    r"\.hada_[wt]": LOHA,
    r"\.lokr_[wt]": LOKR,
    r"\.(oft_|boft_|on_input|diff(_b)?$|[ab][12]\.weight)": "a LyCORIS file of another kind than LoRA",
    r"dora_scale|lora_magnitude_vector": DORA,
    r"lora_(A|B|down|up)(\..+)?\.bias$": BIASES,
    r"^base_model\.model\.(?!.*lora).*\.(weight|bias)$": REPLACING,
    r"lora_mid|resnets|(down|up)samplers|conv_(in|out|shortcut)|time_emb"
    r"|(in|out|emb)_layers_|skip_connection|_blocks_\d+_\d_(op|conv)\b|time_embed_": LOCON,
}
AS_BASE = (
    "give a LoRA here; to use it as the base, write it as a folder with diffusers' "
    "StableDiffusionPipeline.from_single_file(...).save_pretrained(...)"
)
ADVICE = {  # what its owner can do, where that is more than GIVE_LORA
    WHOLE: AS_BASE,
    PART: AS_BASE,
    EMBEDDING: "it has words only and no LoRA to fuse, draw with it in a stock pipeline (load_textual_inversion)",
    DORA: f"merge it into its model with the program that made it, or {GIVE_LORA}",
    BIASES: "train it without lora_bias, or give a plain LoRA",
    REPLACING: "train it without them, or give a plain LoRA",
}
PEFT_TYPES = {"LOHA": LOHA, "LOKR": LOKR, "OFT": "an OFT", "BOFT": "a BOFT", "IA3": "an IA3 adapter"}
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2", 2048: "SDXL"}  # by the width of text features
LONGEST_NAME = 500  # characters of a tensor's name; the rules above take their time over one of thousands
LOAD = {768: ': load such a base, e.g. load_base("sd15")'}


def refuse_other_kinds(tensors: Mapping[str, object], source: str) -> None:
    """Raise ValueError with one sentence that says what the file is, if it is none that this library can use."""
    longest = max((len(str(key)) for key in tensors), default=0)
    if longest > LONGEST_NAME:
        raise ValueError(f"{source} has a tensor whose name is {longest} characters long: get the file again.")
    for pattern, kind in KINDS.items():
        key = next((key for key in tensors if re.search(pattern, str(key))), None)
        if key is not None:
            raise ValueError(f"{source} is {kind} (it has {printable(key)}): {ADVICE.get(kind, GIVE_LORA)}.")
    if len(tensors) == 1:  # textual inversion of a token without brackets: one table of rows as wide as text features
        key, rows = next(iter(tensors.items()))
        if "." not in str(key) and isinstance(rows, Tensor) and rows.ndim in (1, 2) and rows.shape[-1] in FAMILIES:
            raise ValueError(f"{source} is {EMBEDDING} (it has {printable(key)} alone): {ADVICE[EMBEDDING]}.")


def refuse_other_widths(width: int, base, source: str) -> None:
    """Raise ValueError if the file reads text features of another width (d_in of keys and values) than the base has."""
    own = base.text_encoder.config.hidden_size
    if width != own and width in FAMILIES:
        raise ValueError(
            f"{source} is a LoRA for {FAMILIES[width]}, whose text features have {width} numbers, "
            f"{base.base_id or 'this base'} has {own}{LOAD.get(width, ': ' + GIVE_LORA)}."
        )
