"""Modules that some variants of a family have and others lack, by the names that LoRA files give them."""

import re

# Modules that some variants of a family lack, by the names that files give them, with `_` for dots. A LoRA of a sibling
# brings them along; nothing else of it depends on them.
_SOME_VARIANTS = re.compile(
    # Wan 2.1's image-to-video reads the image in its attention; 2.2 and text-to-video do not
    r"blocks_\d+_(?:cross_attn_(?:[kv]_img|norm_k_img)|attn2_(?:add_[kv]_proj|norm_added_k))"
    r"|(?:img_emb|condition_embedder_image_embedder)_\w+"
    # VACE and Animate
    r"|vace_(?:blocks_\d+_\w+|patch_embedding)|(?:face_adapter|motion_encoder)_\w+|pose_patch_embedding"
    # models distilled of their guidance, or of many steps; FLUX.1 schnell and Chroma have no guidance, base models no r
    r"|(?:guidance_in|time_r_in)_\w+|time(?:_text|_guidance)?_embed_(?:guidance_embedder|timestep_embedder_r)_\w+"
    # Chroma makes the modulation of all blocks in one place
    r"|(?:double|single)_blocks_\d+_(?:img_mod|txt_mod|modulation)_lin|(?:time|vector)_in_\w+"
    r"|(?:single_)?transformer_blocks_\d+_norm1?(?:_context)?_linear|time_text_embed_t\w+_embedder_\w+"
    r"|distilled_guidance_layer_\w+"
    # LTX-2.3, Qwen-Image-Layered, Z-Image-Omni
    r"|(?:audio_)?prompt_adaln_\w+|time_text_embed_addition_t_embedding|siglip_\w+"
)


def only_in_variants(name: str) -> bool:
    """True of a module (`_` for dots) that some variants of its family have, and others are known to lack."""
    return _SOME_VARIANTS.fullmatch(name) is not None
