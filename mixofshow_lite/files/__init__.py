"""What is on disk: base models, concept folders, pictures, and LoRA files of other trainers.

What others have written is read, and what is written here others can load:

    dialect         a key                                                      delta W
    official        <module>.lora_down.weight  (in a .pth, with embeddings)    up @ down
    research        <module>_lora.down.weight  (the official research branch)  up @ down
    kohya, A1111    lora_unet_<module_with_underscores>.lora_down.weight       alpha / r * up @ down
    diffusers       unet.<module>.lora.down.weight, ….lora_linear_layer.down…  up @ down, unless its metadata has alpha
    diffusers, old  unet.<….attn1>.processor.to_q_lora.down.weight             up @ down, unless there is an alpha
    peft            base_model.model.<module>.lora_A.weight                    alpha / r * up @ down (adapter_config)

loading     base models
base_checks what can be wrong with their folders
concept     a Concept, all that a client ever shares
folder      the Concept folder
fits        does this concept fit this base?
data        a client's pictures, captions and masks
imagefolder which caption and which mask belong to which picture
listing     files by name, texts in any encoding
pictures    one door for every picture: upright, 8 bits, of a bounded size
mask_files  the same for masks, with what programs write into them
contact_sheet  all pictures of a client at one glance
keys        which tensor of a LoRA file belongs to which layer, for every dialect at once
official    the official implementation's .pth
lora_files  LoRA files: read
lora_writing  LoRA files: written, also for old loaders
patterns    regular expressions in foreign files, which must come to an end
grid        pictures in a labelled grid
writing     a file or a folder is written whole or not at all
resources   where the shipped models and concepts are
"""
