"""Names of modules in the models' original code, in trainers and in ComfyUI: the tables of `names.py`.

Each table is read from the diffusers side. Renames as in diffusers 0.42.1's own converters; those of HunyuanVideo 1.5
and HunyuanImage as in its conversion scripts.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Alias:
    """Another name of a module: the `part`-th piece of its rows; `swapped` when its halves lie the other way round."""

    name: str
    part: int = 0
    swapped: bool = False


Table = Mapping[str, tuple[Alias, ...]]


def _rows(text: str) -> dict[str, tuple[Alias, ...]]:
    """Parse lines of `diffusers name = other names`: `[n]` the part, `~` swapped halves, `#` the block's number."""
    table = {}
    for line in text.strip().splitlines():
        module, _, other_names = line.partition("=")
        aliases = []
        for other in other_names.split():
            name, _, part = other.removesuffix("~").partition("[")
            aliases.append(Alias(name, int(part.rstrip("]") or 0), other.endswith("~")))
        table[module.strip()] = tuple(aliases)
    return table


# FLUX.1 and Chroma; the rows of xlabs' processors stand beside them.
_FLUX1 = _rows("""
transformer_blocks.#.attn.to_q = double_blocks.#.img_attn.qkv[0] double_blocks.#.qkv1[0]
transformer_blocks.#.attn.to_k = double_blocks.#.img_attn.qkv[1] double_blocks.#.qkv1[1]
transformer_blocks.#.attn.to_v = double_blocks.#.img_attn.qkv[2] double_blocks.#.qkv1[2]
transformer_blocks.#.attn.add_q_proj = double_blocks.#.txt_attn.qkv[0] double_blocks.#.qkv2[0]
transformer_blocks.#.attn.add_k_proj = double_blocks.#.txt_attn.qkv[1] double_blocks.#.qkv2[1]
transformer_blocks.#.attn.add_v_proj = double_blocks.#.txt_attn.qkv[2] double_blocks.#.qkv2[2]
transformer_blocks.#.attn.to_out.0 = double_blocks.#.img_attn.proj double_blocks.#.proj1
transformer_blocks.#.attn.to_add_out = double_blocks.#.txt_attn.proj double_blocks.#.proj2
transformer_blocks.#.attn.norm_q = double_blocks.#.img_attn.norm.query_norm
transformer_blocks.#.attn.norm_k = double_blocks.#.img_attn.norm.key_norm
transformer_blocks.#.attn.norm_added_q = double_blocks.#.txt_attn.norm.query_norm
transformer_blocks.#.attn.norm_added_k = double_blocks.#.txt_attn.norm.key_norm
transformer_blocks.#.norm1.linear = double_blocks.#.img_mod.lin
transformer_blocks.#.norm1_context.linear = double_blocks.#.txt_mod.lin
transformer_blocks.#.ff.net.0.proj = double_blocks.#.img_mlp.0
transformer_blocks.#.ff.net.2 = double_blocks.#.img_mlp.2
transformer_blocks.#.ff_context.net.0.proj = double_blocks.#.txt_mlp.0
transformer_blocks.#.ff_context.net.2 = double_blocks.#.txt_mlp.2
single_transformer_blocks.#.attn.to_q = single_blocks.#.linear1[0] single_blocks.#.qkv[0]
single_transformer_blocks.#.attn.to_k = single_blocks.#.linear1[1] single_blocks.#.qkv[1]
single_transformer_blocks.#.attn.to_v = single_blocks.#.linear1[2] single_blocks.#.qkv[2]
single_transformer_blocks.#.proj_mlp = single_blocks.#.linear1[3]
single_transformer_blocks.#.proj_out = single_blocks.#.linear2 single_blocks.#.proj
single_transformer_blocks.#.attn.norm_q = single_blocks.#.norm.query_norm
single_transformer_blocks.#.attn.norm_k = single_blocks.#.norm.key_norm
single_transformer_blocks.#.norm.linear = single_blocks.#.modulation.lin
x_embedder = img_in img_in.proj
context_embedder = txt_in
time_text_embed.timestep_embedder.linear_1 = time_in.in_layer
time_text_embed.timestep_embedder.linear_2 = time_in.out_layer
time_text_embed.guidance_embedder.linear_1 = guidance_in.in_layer
time_text_embed.guidance_embedder.linear_2 = guidance_in.out_layer
time_text_embed.text_embedder.linear_1 = vector_in.in_layer
time_text_embed.text_embedder.linear_2 = vector_in.out_layer
norm_out.linear = final_layer.adaLN_modulation.1~
proj_out = final_layer.linear head.head
distilled_guidance_layer.layers.#.linear_1 = distilled_guidance_layer.layers.#.in_layer
distilled_guidance_layer.layers.#.linear_2 = distilled_guidance_layer.layers.#.out_layer
""")

_FLUX2 = _rows("""
single_transformer_blocks.#.attn.to_qkv_mlp_proj = single_blocks.#.linear1
single_transformer_blocks.#.attn.to_out = single_blocks.#.linear2
transformer_blocks.#.ff.linear_in = double_blocks.#.img_mlp.0
transformer_blocks.#.ff.linear_out = double_blocks.#.img_mlp.2
transformer_blocks.#.ff_context.linear_in = double_blocks.#.txt_mlp.0
transformer_blocks.#.ff_context.linear_out = double_blocks.#.txt_mlp.2
single_stream_modulation.linear = single_stream_modulation.lin
double_stream_modulation_img.linear = double_stream_modulation_img.lin
double_stream_modulation_txt.linear = double_stream_modulation_txt.lin
time_guidance_embed.timestep_embedder.linear_1 = time_in.in_layer
time_guidance_embed.timestep_embedder.linear_2 = time_in.out_layer
time_guidance_embed.guidance_embedder.linear_1 = guidance_in.in_layer
time_guidance_embed.guidance_embedder.linear_2 = guidance_in.out_layer
""")

_SD3 = _rows("""
transformer_blocks.#.attn.to_q = joint_blocks.#.x_block.attn.qkv[0]
transformer_blocks.#.attn.to_k = joint_blocks.#.x_block.attn.qkv[1]
transformer_blocks.#.attn.to_v = joint_blocks.#.x_block.attn.qkv[2]
transformer_blocks.#.attn.add_q_proj = joint_blocks.#.context_block.attn.qkv[0]
transformer_blocks.#.attn.add_k_proj = joint_blocks.#.context_block.attn.qkv[1]
transformer_blocks.#.attn.add_v_proj = joint_blocks.#.context_block.attn.qkv[2]
transformer_blocks.#.attn.to_out.0 = joint_blocks.#.x_block.attn.proj
transformer_blocks.#.attn.to_add_out = joint_blocks.#.context_block.attn.proj
transformer_blocks.#.attn.norm_q = joint_blocks.#.x_block.attn.ln_q
transformer_blocks.#.attn.norm_k = joint_blocks.#.x_block.attn.ln_k
transformer_blocks.#.attn.norm_added_q = joint_blocks.#.context_block.attn.ln_q
transformer_blocks.#.attn.norm_added_k = joint_blocks.#.context_block.attn.ln_k
transformer_blocks.#.attn2.to_q = joint_blocks.#.x_block.attn2.qkv[0]
transformer_blocks.#.attn2.to_k = joint_blocks.#.x_block.attn2.qkv[1]
transformer_blocks.#.attn2.to_v = joint_blocks.#.x_block.attn2.qkv[2]
transformer_blocks.#.attn2.to_out.0 = joint_blocks.#.x_block.attn2.proj
transformer_blocks.#.norm1.linear = joint_blocks.#.x_block.adaLN_modulation.1
transformer_blocks.#.norm1_context.linear = joint_blocks.#.context_block.adaLN_modulation.1
transformer_blocks.#.ff.net.0.proj = joint_blocks.#.x_block.mlp.fc1
transformer_blocks.#.ff.net.2 = joint_blocks.#.x_block.mlp.fc2
transformer_blocks.#.ff_context.net.0.proj = joint_blocks.#.context_block.mlp.fc1
transformer_blocks.#.ff_context.net.2 = joint_blocks.#.context_block.mlp.fc2
pos_embed.proj = x_embedder.proj
time_text_embed.timestep_embedder.linear_1 = t_embedder.mlp.0
time_text_embed.timestep_embedder.linear_2 = t_embedder.mlp.2
time_text_embed.text_embedder.linear_1 = y_embedder.mlp.0
time_text_embed.text_embedder.linear_2 = y_embedder.mlp.2
""")

# HunyuanVideo, HunyuanVideo 1.5 and HunyuanImage. The last two keep q, k and v apart; OneTrainer counts `fc` from 0;
# ComfyUI names the blocks as FLUX.1's are named.
_HUNYUAN = _rows("""
transformer_blocks.#.attn.to_q = double_blocks.#.img_attn_qkv[0] double_blocks.#.img_attn_q
transformer_blocks.#.attn.to_k = double_blocks.#.img_attn_qkv[1] double_blocks.#.img_attn_k
transformer_blocks.#.attn.to_v = double_blocks.#.img_attn_qkv[2] double_blocks.#.img_attn_v
transformer_blocks.#.attn.add_q_proj = double_blocks.#.txt_attn_qkv[0] double_blocks.#.txt_attn_q
transformer_blocks.#.attn.add_k_proj = double_blocks.#.txt_attn_qkv[1] double_blocks.#.txt_attn_k
transformer_blocks.#.attn.add_v_proj = double_blocks.#.txt_attn_qkv[2] double_blocks.#.txt_attn_v
transformer_blocks.#.attn.to_out.0 = double_blocks.#.img_attn_proj
transformer_blocks.#.attn.to_add_out = double_blocks.#.txt_attn_proj
transformer_blocks.#.attn.norm_q = double_blocks.#.img_attn_q_norm
transformer_blocks.#.attn.norm_k = double_blocks.#.img_attn_k_norm
transformer_blocks.#.attn.norm_added_q = double_blocks.#.txt_attn_q_norm
transformer_blocks.#.attn.norm_added_k = double_blocks.#.txt_attn_k_norm
transformer_blocks.#.norm1.linear = double_blocks.#.img_mod.linear
transformer_blocks.#.norm1_context.linear = double_blocks.#.txt_mod.linear
transformer_blocks.#.ff.net.0.proj = double_blocks.#.img_mlp.fc1 double_blocks.#.img_mlp.fc0
transformer_blocks.#.ff.net.2 = double_blocks.#.img_mlp.fc2
transformer_blocks.#.ff_context.net.0.proj = double_blocks.#.txt_mlp.fc1 double_blocks.#.txt_mlp.fc0
transformer_blocks.#.ff_context.net.2 = double_blocks.#.txt_mlp.fc2
single_transformer_blocks.#.attn.to_q = single_blocks.#.linear1_q
single_transformer_blocks.#.attn.to_k = single_blocks.#.linear1_k
single_transformer_blocks.#.attn.to_v = single_blocks.#.linear1_v
single_transformer_blocks.#.attn.norm_q = single_blocks.#.q_norm
single_transformer_blocks.#.attn.norm_k = single_blocks.#.k_norm
single_transformer_blocks.#.proj_mlp = single_blocks.#.linear1_mlp
single_transformer_blocks.#.proj_out = single_blocks.#.linear2.fc
single_transformer_blocks.#.norm.linear = single_blocks.#.modulation.linear
x_embedder.proj = img_in.proj
cond_type_embed = cond_type_embedding
image_embedder.norm_in = vision_in.proj.0
image_embedder.linear_1 = vision_in.proj.1
image_embedder.linear_2 = vision_in.proj.3
image_embedder.norm_out = vision_in.proj.4
context_embedder.proj_in = txt_in.input_embedder
context_embedder.time_text_embed.text_embedder.linear_1 = txt_in.c_embedder.linear_1 txt_in.c_embedder.in_layer
context_embedder.time_text_embed.text_embedder.linear_2 = txt_in.c_embedder.linear_2 txt_in.c_embedder.out_layer
context_embedder_2.norm = byt5_in.layernorm
context_embedder_2.linear_1 = byt5_in.fc1
context_embedder_2.linear_2 = byt5_in.fc2
context_embedder_2.linear_3 = byt5_in.fc3
""") | {
    # A timestep's two layers, of whichever embedder and in whichever code.
    f"{path}.linear_{at + 1}": tuple(Alias(f"{name}.{layer}") for layer in (f"mlp.{2 * at}", *more))
    for path, name in (
        ("context_embedder.time_text_embed.timestep_embedder", "txt_in.t_embedder"),
        ("time_text_embed.timestep_embedder", "time_in"), ("time_text_embed.guidance_embedder", "guidance_in"),
        ("time_embed.timestep_embedder", "time_in"), ("time_embed.timestep_embedder_r", "time_r_in"),
        ("time_guidance_embed.timestep_embedder", "time_in"),
        ("time_guidance_embed.timestep_embedder_r", "time_r_in"),
        ("time_guidance_embed.guidance_embedder", "guidance_in"),
    )
    for at, more in enumerate((("in_layer", "linear_1"), ("out_layer", "linear_2")))
} | {
    f"context_embedder.token_refiner.refiner_blocks.#.{module}": tuple(
        Alias(f"txt_in.individual_token_refiner.blocks.#.{name}", part) for name in names
    )
    for module, part, names in (
        ("norm1", 0, ("norm1",)), ("norm2", 0, ("norm2",)), ("norm_out.linear", 0, ("adaLN_modulation.1",)),
        ("attn.to_q", 0, ("self_attn_qkv", "self_attn.qkv")), ("attn.to_k", 1, ("self_attn_qkv", "self_attn.qkv")),
        ("attn.to_v", 2, ("self_attn_qkv", "self_attn.qkv")),
        ("attn.to_out.0", 0, ("self_attn_proj", "self_attn.proj")),
        ("ff.net.0.proj", 0, ("mlp.fc1", "mlp.fc0", "mlp.0")), ("ff.net.2", 0, ("mlp.fc2", "mlp.2")),
    )
}  # fmt: skip

_Z_IMAGE_AND_LUMINA2 = _rows("""
layers.#.attention.to_q = layers.#.attention.qkv[0]
layers.#.attention.to_k = layers.#.attention.qkv[1]
layers.#.attention.to_v = layers.#.attention.qkv[2]
layers.#.attention.to_out.0 = layers.#.attention.out layers.#.attention.o
layers.#.attention.norm_q = layers.#.attention.q_norm
layers.#.attention.norm_k = layers.#.attention.k_norm
layers.#.attn.to_q = layers.#.attention.qkv[0]
layers.#.attn.to_k = layers.#.attention.qkv[1]
layers.#.attn.to_v = layers.#.attention.qkv[2]
layers.#.attn.to_out.0 = layers.#.attention.out
layers.#.attn.norm_q = layers.#.attention.q_norm
layers.#.attn.norm_k = layers.#.attention.k_norm
layers.#.feed_forward.linear_1 = layers.#.feed_forward.w1
layers.#.feed_forward.linear_2 = layers.#.feed_forward.w2
layers.#.feed_forward.linear_3 = layers.#.feed_forward.w3
layers.#.norm1.linear = layers.#.adaLN_modulation.1
all_x_embedder.2-1 = x_embedder
all_final_layer.2-1.linear = final_layer.linear
all_final_layer.2-1.adaLN_modulation.1 = final_layer.adaLN_modulation.1
""")

_WAN = _rows("""
blocks.#.attn1.to_q = blocks.#.self_attn.q
blocks.#.attn1.to_k = blocks.#.self_attn.k
blocks.#.attn1.to_v = blocks.#.self_attn.v
blocks.#.attn1.to_out.0 = blocks.#.self_attn.o
blocks.#.attn1.norm_q = blocks.#.self_attn.norm_q
blocks.#.attn1.norm_k = blocks.#.self_attn.norm_k
blocks.#.attn2.to_q = blocks.#.cross_attn.q
blocks.#.attn2.to_k = blocks.#.cross_attn.k
blocks.#.attn2.to_v = blocks.#.cross_attn.v
blocks.#.attn2.to_out.0 = blocks.#.cross_attn.o
blocks.#.attn2.norm_q = blocks.#.cross_attn.norm_q
blocks.#.attn2.norm_k = blocks.#.cross_attn.norm_k
blocks.#.attn2.add_k_proj = blocks.#.cross_attn.k_img
blocks.#.attn2.add_v_proj = blocks.#.cross_attn.v_img
blocks.#.attn2.norm_added_k = blocks.#.cross_attn.norm_k_img
blocks.#.norm2 = blocks.#.norm3
blocks.#.ffn.net.0.proj = blocks.#.ffn.0
blocks.#.ffn.net.2 = blocks.#.ffn.2
blocks.#.scale_shift_table = blocks.#.modulation
scale_shift_table = head.modulation
condition_embedder.text_embedder.linear_1 = text_embedding.0
condition_embedder.text_embedder.linear_2 = text_embedding.2
condition_embedder.time_embedder.linear_1 = time_embedding.0
condition_embedder.time_embedder.linear_2 = time_embedding.2
condition_embedder.time_proj = time_projection.1
condition_embedder.image_embedder.norm1 = img_emb.proj.0
condition_embedder.image_embedder.ff.net.#.proj = img_emb.proj.1
condition_embedder.image_embedder.ff.net.# = img_emb.proj.3
condition_embedder.image_embedder.norm2 = img_emb.proj.4
""")

_WAN_ANIMATE = _rows("""
face_adapter.#.to_q = face_adapter.fuser_blocks.#.linear1_q
face_adapter.#.to_k = face_adapter.fuser_blocks.#.linear1_kv[0]
face_adapter.#.to_v = face_adapter.fuser_blocks.#.linear1_kv[1]
face_adapter.#.to_out = face_adapter.fuser_blocks.#.linear2
face_adapter.#.norm_q = face_adapter.fuser_blocks.#.q_norm
face_adapter.#.norm_k = face_adapter.fuser_blocks.#.k_norm
face_encoder.conv1_local = face_encoder.conv1_local.conv
face_encoder.conv2 = face_encoder.conv2.conv
face_encoder.conv3 = face_encoder.conv3.conv
motion_encoder.motion_network.# = motion_encoder.enc.fc.#
proj_out = head.head
""")

# VACE's second row of blocks is built as the first.
_WAN_VACE = {
    f"vace_{path}": tuple(replace(alias, name=f"vace_{alias.name}") for alias in names)
    for path, names in _WAN.items()
    if path.startswith("blocks.")
} | _rows("""
vace_blocks.#.proj_in = vace_blocks.#.before_proj
vace_blocks.#.proj_out = vace_blocks.#.after_proj
""")

_KREA2 = _rows("""
img_in = first
final_layer.linear = last.linear
time_embed.linear_1 = tmlp.0
time_embed.linear_2 = tmlp.2
time_mod_proj = tproj.1
txt_in.linear_1 = txtmlp.1
txt_in.linear_2 = txtmlp.3
text_fusion.projector = txtfusion.projector
""") | {
    f"{own}.#.{module}": (Alias(f"{other}.#.{native}"),)
    for own, other in (
        ("transformer_blocks", "blocks"),
        ("text_fusion.layerwise_blocks", "txtfusion.layerwise_blocks"),
        ("text_fusion.refiner_blocks", "txtfusion.refiner_blocks"),
    )
    for module, native in (
        ("attn.to_q", "attn.wq"), ("attn.to_k", "attn.wk"), ("attn.to_v", "attn.wv"), ("attn.to_out.0", "attn.wo"),
        ("attn.to_gate", "attn.gate"), ("ff.gate", "mlp.gate"), ("ff.up", "mlp.up"), ("ff.down", "mlp.down"),
    )
}  # fmt: skip

_MOCHI = _rows("""
patch_embed.proj = x_embedder.proj
time_embed.timestep_embedder.linear_1 = t_embedder.mlp.0
time_embed.timestep_embedder.linear_2 = t_embedder.mlp.2
time_embed.pooler.to_kv = t5_y_embedder.to_kv
time_embed.pooler.to_q = t5_y_embedder.to_q
time_embed.pooler.to_out = t5_y_embedder.to_out
time_embed.caption_proj = t5_yproj
transformer_blocks.#.norm1.linear = blocks.#.mod_x
transformer_blocks.#.norm1_context.linear = blocks.#.mod_y
transformer_blocks.#.norm1_context.linear_1 = blocks.#.mod_y
transformer_blocks.#.attn1.to_q = blocks.#.attn.qkv_x[0]
transformer_blocks.#.attn1.to_k = blocks.#.attn.qkv_x[1]
transformer_blocks.#.attn1.to_v = blocks.#.attn.qkv_x[2]
transformer_blocks.#.attn1.add_q_proj = blocks.#.attn.qkv_y[0]
transformer_blocks.#.attn1.add_k_proj = blocks.#.attn.qkv_y[1]
transformer_blocks.#.attn1.add_v_proj = blocks.#.attn.qkv_y[2]
transformer_blocks.#.attn1.to_out.0 = blocks.#.attn.proj_x
transformer_blocks.#.attn1.to_add_out = blocks.#.attn.proj_y
transformer_blocks.#.attn1.norm_q = blocks.#.attn.q_norm_x
transformer_blocks.#.attn1.norm_k = blocks.#.attn.k_norm_x
transformer_blocks.#.attn1.norm_added_q = blocks.#.attn.q_norm_y
transformer_blocks.#.attn1.norm_added_k = blocks.#.attn.k_norm_y
transformer_blocks.#.ff.net.0.proj = blocks.#.mlp_x.w1~
transformer_blocks.#.ff.net.2 = blocks.#.mlp_x.w2
transformer_blocks.#.ff_context.net.0.proj = blocks.#.mlp_y.w1~
transformer_blocks.#.ff_context.net.2 = blocks.#.mlp_y.w2
norm_out.linear = final_layer.mod~
""")

# PixArt, and Sana's attention, which is named as PixArt's.
_PIXART = _rows("""
transformer_blocks.#.attn1.to_q = blocks.#.attn.qkv[0]
transformer_blocks.#.attn1.to_k = blocks.#.attn.qkv[1]
transformer_blocks.#.attn1.to_v = blocks.#.attn.qkv[2]
transformer_blocks.#.attn1.to_out.0 = blocks.#.attn.proj
transformer_blocks.#.attn2.to_q = blocks.#.cross_attn.q_linear
transformer_blocks.#.attn2.to_k = blocks.#.cross_attn.kv_linear[0]
transformer_blocks.#.attn2.to_v = blocks.#.cross_attn.kv_linear[1]
transformer_blocks.#.attn2.to_out.0 = blocks.#.cross_attn.proj
transformer_blocks.#.ff.net.0.proj = blocks.#.mlp.fc1
transformer_blocks.#.ff.net.2 = blocks.#.mlp.fc2
adaln_single.linear = t_block.1
caption_projection.linear_1 = y_embedder.y_proj.fc1
caption_projection.linear_2 = y_embedder.y_proj.fc2
""") | {
    f"adaln_single.emb.{path}.linear_{at + 1}": (Alias(f"{name}.mlp.{2 * at}"),)
    for path, name in (
        ("timestep_embedder", "t_embedder"), ("resolution_embedder", "csize_embedder"),
        ("aspect_ratio_embedder", "ar_embedder"),
    )
    for at in range(2)
}  # fmt: skip

_TIMESTEPS = ("linear", "emb.timestep_embedder.linear_1", "emb.timestep_embedder.linear_2")
# LTX-Video and LTX-2, whose blocks hold the same modules again for sound.
_LTX = (
    _rows("""
proj_in = patchify_proj
audio_proj_in = audio_patchify_proj
transformer_blocks.#.video_a2v_cross_attn_scale_shift_table = transformer_blocks.#.scale_shift_table_a2v_ca_video
transformer_blocks.#.audio_a2v_cross_attn_scale_shift_table = transformer_blocks.#.scale_shift_table_a2v_ca_audio
text_proj_in = aggregate_embed
""")
    | {
        f"{path}.{layer}": (Alias(f"{name}.{layer}"),)
        for path, name in (
            ("time_embed", "adaln_single"), ("audio_time_embed", "audio_adaln_single"),
            ("prompt_adaln", "prompt_adaln_single"), ("audio_prompt_adaln", "audio_prompt_adaln_single"),
            ("av_cross_attn_video_scale_shift", "av_ca_video_scale_shift_adaln_single"),
            ("av_cross_attn_audio_scale_shift", "av_ca_audio_scale_shift_adaln_single"),
            ("av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
            ("av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
        )
        for layer in _TIMESTEPS
    }
    | {
        f"transformer_blocks.#.{attention}.norm_{side}": (Alias(f"transformer_blocks.#.{attention}.{side}_norm"),)
        for attention in (
            "attn1", "attn2", "audio_attn1", "audio_attn2", "audio_to_video_attn", "video_to_audio_attn",
        )
        for side in "qk"
    }
)  # fmt: skip

FAMILIES: tuple[Table, ...] = (
    _FLUX1, _FLUX2, _SD3, _HUNYUAN, _Z_IMAGE_AND_LUMINA2, _WAN, _WAN_VACE, _WAN_ANIMATE, _KREA2, _LTX, _MOCHI, _PIXART,
)  # fmt: skip
# The tables of each class, the more special ones first; none for a class that names its modules as its authors do. Of
# others nobody's own names are known here, or only those of some modules.
TABLES: Mapping[str, tuple[Table, ...]] = {
    "FluxTransformer2DModel": (_FLUX1,),
    "ChromaTransformer2DModel": (_FLUX1,),
    "Flux2Transformer2DModel": (_FLUX2, _FLUX1),
    "SD3Transformer2DModel": (_SD3,),
    "HunyuanVideoTransformer3DModel": (_HUNYUAN,),
    "Lumina2Transformer2DModel": (_Z_IMAGE_AND_LUMINA2,),
    "ZImageTransformer2DModel": (_Z_IMAGE_AND_LUMINA2,),
    "WanTransformer3DModel": (_WAN,),
    "WanVACETransformer3DModel": (_WAN_VACE, _WAN),
    "Krea2Transformer2DModel": (_KREA2,),
    "LTXVideoTransformer3DModel": (_LTX,),
    "MochiTransformer3DModel": (_MOCHI,),
    "PixArtTransformer2DModel": (_PIXART,),
    "QwenImageTransformer2DModel": (),
}
REFINERS = ("noise_refiner.", "context_refiner.")  # of Z-Image and Lumina 2: blocks like those of `layers`
