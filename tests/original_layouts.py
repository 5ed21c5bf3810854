"""The names that models are published under, from diffusers' own: the way back of what the worker reads.

Written apart from the converters and from a header's names and shapes alone: a mistake in one is not repeated in the
other. What SD, SDXL, SD3 and FLUX.1 are published as stands in `tests/headers/layouts.py`.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

Shapes = dict[str, tuple[int, ...]]
Renames = Sequence[tuple[str, str]]
_QKV = ("to_q", "to_k", "to_v")
_IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
_TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
_SINGLE = (*_IMAGE, "proj_mlp")


def _back(shapes: Shapes, renames: Renames, fused: Mapping[tuple[str, ...], str] | None = None) -> Shapes:
    """Join the layers that the original keeps in one, then rename by patterns, in their order."""
    joined: Shapes = {}
    for name, shape in shapes.items():
        for group, together in (fused or {}).items():
            layer = next((layer for layer in group if f".{layer}." in name), None)
            names = [name.replace(f".{layer}.", f".{other}.") for other in group]
            if layer is not None and all(other in shapes for other in names):
                joined[name.replace(f".{layer}.", f".{together}.")] = _joined([shapes[one] for one in names])
                break
        else:
            joined[name] = shape
    result: Shapes = {}
    for name, shape in joined.items():
        for pattern, replacement in renames:
            name = re.sub(pattern, replacement, name)
        result[name] = shape
    return result


def _joined(layers: Sequence[Any]) -> Any:
    """Put layers one below the other: their shapes, or the tensors themselves."""
    if isinstance(layers[0], torch.Tensor):
        return torch.cat(list(layers))
    return (sum(shape[0] for shape in layers), *layers[0][1:])


def z_image(shapes: Shapes) -> Shapes:
    back = _back(
        shapes,
        [
            (r"^all_(x_embedder|final_layer)\.2-1\.", r"\1."),
            (r"\.to_out\.0\.", ".out."),
            (r"\.norm_([qk])\.", r".\1_norm."),
        ],
        {_QKV: "qkv"},
    )
    return back | {"norm_final.weight": (3840,)}


def lumina2(shapes: Shapes) -> Shapes:
    return _back(
        shapes,
        [
            (r"^time_caption_embed\.caption_embedder", "cap_embedder"),
            (r"^time_caption_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"^time_caption_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"\.attn\.", ".attention."),
            (r"\.to_out\.0\.", ".out."),
            (r"\.norm_([qk])\.", r".\1_norm."),
            (r"\.linear_([123])\.", r".w\1."),
            (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
            (r"\.norm1\.norm\.", ".attention_norm1."),
            (r"(context_refiner\.\d+)\.norm1\.", r"\1.attention_norm1."),
            (r"\.norm2\.", ".attention_norm2."),
            (r"^norm_out\.w1\.", "final_layer.adaLN_modulation.1."),
            (r"^norm_out\.w2\.", "final_layer.linear."),
        ],
        {_QKV: "qkv"},
    ) | {"norm_final.weight": (2304,)}


def ltx(shapes: Shapes) -> Shapes:
    return _back(
        shapes,
        [("^proj_in", "patchify_proj"), ("^time_embed", "adaln_single"), (r"\.norm_([qk])\.", r".\1_norm.")],
    )


def ltx2(shapes: Shapes) -> Shapes:
    return _back(
        shapes,
        [
            ("^audio_proj_in", "audio_patchify_proj"),
            ("^proj_in", "patchify_proj"),
            ("^av_cross_attn_(video|audio)_scale_shift", r"av_ca_\1_scale_shift_adaln_single"),
            ("^av_cross_attn_video_a2v_gate", "av_ca_a2v_gate_adaln_single"),
            ("^av_cross_attn_audio_v2a_gate", "av_ca_v2a_gate_adaln_single"),
            ("^audio_time_embed", "audio_adaln_single"),
            ("^time_embed", "adaln_single"),
            ("(video|audio)_a2v_cross_attn_scale_shift_table", r"scale_shift_table_a2v_ca_\1"),
            (r"\.norm_([qk])\.", r".\1_norm."),
        ],
    ) | {"video_embeddings_connector.transformer_1d_blocks.0.attn1.to_q.weight": (3840, 3840)}


def wan(shapes: Shapes) -> Shapes:
    return _back(
        shapes,
        [
            (r"^condition_embedder\.time_embedder\.linear_1", "time_embedding.0"),
            (r"^condition_embedder\.time_embedder\.linear_2", "time_embedding.2"),
            (r"^condition_embedder\.text_embedder\.linear_1", "text_embedding.0"),
            (r"^condition_embedder\.text_embedder\.linear_2", "text_embedding.2"),
            (r"^condition_embedder\.time_proj", "time_projection.1"),
            (r"^condition_embedder\.image_embedder\.norm1", "img_emb.proj.0"),
            (r"^condition_embedder\.image_embedder\.ff\.net\.0\.proj", "img_emb.proj.1"),
            (r"^condition_embedder\.image_embedder\.ff\.net\.2", "img_emb.proj.3"),
            (r"^condition_embedder\.image_embedder\.norm2", "img_emb.proj.4"),
            (r"^scale_shift_table", "head.modulation"),
            (r"\.scale_shift_table", ".modulation"),
            (r"^proj_out", "head.head"),
            (r"^(vace_blocks\.\d+)\.proj_in", r"\1.before_proj"),
            (r"^(vace_blocks\.\d+)\.proj_out", r"\1.after_proj"),
            (r"blocks\.(\d+)\.attn1\.", r"blocks.\1.self_attn."),
            (r"blocks\.(\d+)\.attn2\.", r"blocks.\1.cross_attn."),
            (r"_attn\.to_([qkv])\.", r"_attn.\1."),
            (r"_attn\.to_out\.0\.", "_attn.o."),
            (r"_attn\.add_([kv])_proj\.", r"_attn.\1_img."),
            (r"_attn\.norm_added_k\.", "_attn.norm_k_img."),
            (r"\.ffn\.net\.0\.proj\.", ".ffn.0."),
            (r"\.ffn\.net\.2\.", ".ffn.2."),
            (r"(blocks\.\d+)\.norm2\.", r"\1.norm3."),
        ],
    )


def wan_animate(shapes: Shapes) -> Shapes:
    """Wan Animate: Wan, with a motion encoder of StyleGAN's kind and an adapter for faces."""
    face = {name: shape for name, shape in shapes.items() if name.startswith("face_adapter.")}
    motion = {name: shape for name, shape in shapes.items() if name.startswith("motion_encoder.")}
    rest = wan({name: shape for name, shape in shapes.items() if name not in face and name not in motion})
    rest = {re.sub(r"^(face_encoder\.conv\d(?:_local)?)\.", r"\1.conv.", name): shape for name, shape in rest.items()}
    faces = _back(
        face,
        [
            (r"^face_adapter\.", "face_adapter.fuser_blocks."),
            (r"\.norm_([qk])\.", r".\1_norm."),
            (r"\.to_q\.", ".linear1_q."),
            (r"\.to_out\.", ".linear2."),
        ],
        {("to_k", "to_v"): "linear1_kv"},
    )
    motions = _back(
        motion,
        [
            (r"motion_synthesis_weight", "dec.direction.weight"),
            (r"motion_encoder\.conv_in\.weight", "motion_encoder.enc.net_app.convs.0.0.weight"),
            (r"motion_encoder\.conv_in\.act_fn\.bias", "motion_encoder.enc.net_app.convs.0.1.bias"),
            (r"motion_encoder\.conv_out\.weight", "motion_encoder.enc.net_app.convs.8.weight"),
            (r"motion_encoder\.motion_network", "motion_encoder.enc.fc"),
            *(
                (rf"motion_encoder\.res_blocks\.{at}\.{ours}", f"motion_encoder.enc.net_app.convs.{at + 1}.{theirs}")
                for at in range(7)
                for ours, theirs in (
                    (r"conv1\.weight", "conv1.0.weight"), (r"conv1\.act_fn\.bias", "conv1.1.bias"),
                    (r"conv2\.weight", "conv2.1.weight"), (r"conv2\.act_fn\.bias", "conv2.2.bias"),
                    (r"conv_skip\.weight", "skip.1.weight"),
                )
            ),
        ],
    )  # fmt: skip
    biases = {
        name: (1, *shape, 1, 1) if name.endswith(".bias") and ".convs." in name else shape
        for name, shape in motions.items()
    }
    return rest | faces | biases


def hunyuan_video(shapes: Shapes) -> Shapes:
    """HunyuanVideo: its way in for text is named as a whole, the single blocks fuse attention with the MLP's way in."""
    text = {name: shape for name, shape in shapes.items() if name.startswith("context_embedder.")}
    single = {name: shape for name, shape in shapes.items() if name.startswith("single_transformer_blocks.")}
    rest = {name: shape for name, shape in shapes.items() if name not in text and name not in single}
    texts = _back(
        text,
        [
            (r"time_text_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"time_text_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"time_text_embed\.text_embedder", "c_embedder"),
            (r"token_refiner\.refiner_blocks", "individual_token_refiner.blocks"),
            (r"\.norm_out\.linear\.", ".adaLN_modulation.1."),
            (r"\.attn\.to_out\.0\.", ".self_attn_proj."),
            (r"\.ff\.net\.0\.proj\.", ".mlp.fc1."),
            (r"\.ff\.net\.2\.", ".mlp.fc2."),
            (r"^context_embedder\.proj_in\.", "txt_in.input_embedder."),
            (r"^context_embedder\.", "txt_in."),
        ],
        {_IMAGE: "self_attn_qkv"},
    )
    singles = _back(
        single,
        [
            (r"^single_transformer_blocks", "single_blocks"),
            (r"\.proj_out\.", ".linear2."),
            (r"\.attn\.norm_([qk])\.", r".\1_norm."),
            (r"\.norm\.linear\.", ".modulation.linear."),
        ],
        {_SINGLE: "linear1"},
    )
    return texts | singles | _back(
        rest,
        [
            (r"^time_text_embed\.timestep_embedder\.linear_1", "time_in.mlp.0"),
            (r"^time_text_embed\.timestep_embedder\.linear_2", "time_in.mlp.2"),
            (r"^time_text_embed\.guidance_embedder\.linear_1", "guidance_in.mlp.0"),
            (r"^time_text_embed\.guidance_embedder\.linear_2", "guidance_in.mlp.2"),
            (r"^time_text_embed\.text_embedder\.linear_1", "vector_in.in_layer"),
            (r"^time_text_embed\.text_embedder\.linear_2", "vector_in.out_layer"),
            ("^x_embedder", "img_in"),
            ("^transformer_blocks", "double_blocks"),
            (r"\.attn\.norm_added_([qk])\.", r".txt_attn_\1_norm."),
            (r"\.attn\.norm_([qk])\.", r".img_attn_\1_norm."),
            (r"\.attn\.to_out\.0\.", ".img_attn_proj."),
            (r"\.attn\.to_add_out\.", ".txt_attn_proj."),
            (r"\.norm1\.linear\.", ".img_mod.linear."),
            (r"\.norm1_context\.linear\.", ".txt_mod.linear."),
            (r"\.ff\.net\.0\.proj\.", ".img_mlp.fc1."),
            (r"\.ff\.net\.2\.", ".img_mlp.fc2."),
            (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.fc1."),
            (r"\.ff_context\.net\.2\.", ".txt_mlp.fc2."),
            (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
            (r"^proj_out\.", "final_layer.linear."),
        ],
        {_IMAGE: "img_attn_qkv", _TEXT: "txt_attn_qkv"},
    )  # fmt: skip


def auraflow(shapes: Shapes) -> Shapes:
    return _back(
        shapes,
        [
            (r"^time_step_proj\.linear_1", "t_embedder.mlp.0"),
            (r"^time_step_proj\.linear_2", "t_embedder.mlp.2"),
            ("^context_embedder", "cond_seq_linear"),
            (r"^pos_embed\.pos_embed", "positional_encoding"),
            (r"^pos_embed\.proj", "init_x_linear"),
            ("^proj_out", "final_linear"),
            (r"^norm_out\.linear", "modF.1"),
            (r"^(joint_transformer_blocks\.\d+)\.ff\.", r"\1.mlpX."),
            (r"^(joint_transformer_blocks\.\d+)\.ff_context\.", r"\1.mlpC."),
            (r"^(joint_transformer_blocks\.\d+)\.norm1\.linear\.", r"\1.modX.1."),
            (r"^(joint_transformer_blocks\.\d+)\.norm1_context\.linear\.", r"\1.modC.1."),
            (r"^(joint_transformer_blocks\.\d+)\.attn\.to_([qkv])\.", r"\1.attn.w2\2."),
            (r"^(joint_transformer_blocks\.\d+)\.attn\.to_out\.0\.", r"\1.attn.w2o."),
            (r"\.attn\.add_([qkv])_proj\.", r".attn.w1\1."),
            (r"\.attn\.to_add_out\.", ".attn.w1o."),
            (r"^(single_transformer_blocks\.\d+)\.ff\.", r"\1.mlp."),
            (r"^(single_transformer_blocks\.\d+)\.norm1\.linear\.", r"\1.modCX.1."),
            (r"^(single_transformer_blocks\.\d+)\.attn\.to_([qkv])\.", r"\1.attn.w1\2."),
            (r"^(single_transformer_blocks\.\d+)\.attn\.to_out\.0\.", r"\1.attn.w1o."),
            (r"\.linear_([12])\.", r".c_fc\1."),
            (r"\.out_projection\.", ".c_proj."),
            ("^joint_transformer_blocks", "double_layers"),
            ("^single_transformer_blocks", "single_layers"),
        ],
    )


def sana(shapes: Shapes) -> Shapes:
    self_attention = {name: shape for name, shape in shapes.items() if ".attn1." in name}
    rest = {name: shape for name, shape in shapes.items() if name not in self_attention}
    back = _back(
        rest,
        [
            (r"^patch_embed\.", "x_embedder."),
            (r"^time_embed\.emb\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"^time_embed\.emb\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"^time_embed\.linear", "t_block.1"),
            (r"^caption_projection\.linear_([12])", r"y_embedder.y_proj.fc\1"),
            ("^caption_norm", "attention_y_norm"),
            (r"\.attn2\.to_q\.", ".cross_attn.q_linear."),
            (r"\.attn2\.kv_linear\.", ".cross_attn.kv_linear."),
            (r"\.attn2\.to_out\.0\.", ".cross_attn.proj."),
            (r"\.ff\.conv_inverted\.", ".mlp.inverted_conv.conv."),
            (r"\.ff\.conv_depth\.", ".mlp.depth_conv.conv."),
            (r"\.ff\.conv_point\.", ".mlp.point_conv.conv."),
            ("^proj_out", "final_layer.linear"),
            ("^scale_shift_table", "final_layer.scale_shift_table"),
            ("^transformer_blocks", "blocks"),
        ],
        {("to_k", "to_v"): "kv_linear"},
    )
    heads = [(r"\.attn1\.", ".attn."), (r"\.to_out\.0\.", ".proj."), ("^transformer_blocks", "blocks")]
    back |= _back(self_attention, heads, {_QKV: "qkv"})
    return back | {"pos_embed": (1, 1024, 2240), "y_embedder.y_embedding": (300, 2304)}


def mochi(shapes: Shapes) -> Shapes:
    return _back(
        shapes,
        [
            (r"^patch_embed\.", "x_embedder."),
            (r"^time_embed\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
            (r"^time_embed\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
            (r"^time_embed\.pooler", "t5_y_embedder"),
            (r"^time_embed\.caption_proj", "t5_yproj"),
            (r"\.norm1\.linear\.", ".mod_x."),
            (r"\.norm1_context\.linear(?:_1)?\.", ".mod_y."),
            (r"\.attn1\.", ".attn."),
            (r"\.attn\.norm_([qk])\.", r".attn.\1_norm_x."),
            (r"\.attn\.norm_added_([qk])\.", r".attn.\1_norm_y."),
            (r"\.attn\.to_out\.0\.", ".attn.proj_x."),
            (r"\.attn\.to_add_out\.", ".attn.proj_y."),
            (r"\.ff\.net\.0\.proj\.", ".mlp_x.w1."),
            (r"\.ff\.net\.2\.", ".mlp_x.w2."),
            (r"\.ff_context\.net\.0\.proj\.", ".mlp_y.w1."),
            (r"\.ff_context\.net\.2\.", ".mlp_y.w2."),
            (r"^norm_out\.linear", "final_layer.mod"),
            ("^proj_out", "final_layer.linear"),
            ("^transformer_blocks", "blocks"),
        ],
        {_QKV: "qkv_x", ("add_q_proj", "add_k_proj", "add_v_proj"): "qkv_y"},
    )


def krea2(shapes: Shapes) -> Shapes:
    back = _back(
        shapes,
        [
            (r"^img_in\.", "first."),
            (r"^time_embed\.linear_1\.", "tmlp.0."),
            (r"^time_embed\.linear_2\.", "tmlp.2."),
            (r"^time_mod_proj\.", "tproj.1."),
            (r"^txt_in\.norm\.weight", "txtmlp.0.scale"),
            (r"^txt_in\.linear_1\.", "txtmlp.1."),
            (r"^txt_in\.linear_2\.", "txtmlp.3."),
            (r"^text_fusion\.", "txtfusion."),
            (r"^final_layer\.linear\.", "last.linear."),
            (r"^final_layer\.norm\.weight", "last.norm.scale"),
            (r"^final_layer\.scale_shift_table", "last.modulation.lin"),
            (r"\.attn\.to_([qkv])\.", r".attn.w\1."),
            (r"\.attn\.to_out\.0\.", ".attn.wo."),
            (r"\.attn\.to_gate\.", ".attn.gate."),
            (r"\.attn\.norm_([qk])\.weight", r".attn.qknorm.\1norm.scale"),
            (r"\.ff\.", ".mlp."),
            (r"\.norm1\.weight", ".prenorm.scale"),
            (r"\.norm2\.weight", ".postnorm.scale"),
            (r"\.scale_shift_table", ".mod.lin"),
            ("^transformer_blocks", "blocks"),
        ],
    )
    flat = re.compile(r"^blocks\.\d+\.mod\.lin$")  # six vectors in one
    return {name: (shape[0] * shape[1],) if flat.match(name) else shape for name, shape in back.items()}


def qwen_image_21(shapes: Shapes) -> Shapes:
    return _back(shapes, [], {("img_mlp.gate_layer", "img_mlp.proj"): "img_mlp.gate_up"})


_BFL: Renames = [
    (r"^(transformer_blocks\.\d+)\.attn\.norm_added_q\.weight", r"\1.txt_attn.norm.query_norm.scale"),
    (r"^(transformer_blocks\.\d+)\.attn\.norm_added_k\.weight", r"\1.txt_attn.norm.key_norm.scale"),
    (r"^(transformer_blocks\.\d+)\.attn\.norm_q\.weight", r"\1.img_attn.norm.query_norm.scale"),
    (r"^(transformer_blocks\.\d+)\.attn\.norm_k\.weight", r"\1.img_attn.norm.key_norm.scale"),
    (r"\.attn\.norm_q\.weight", ".norm.query_norm.scale"),
    (r"\.attn\.norm_k\.weight", ".norm.key_norm.scale"),
    (r"\.attn\.to_out\.0\.", ".img_attn.proj."),
    (r"\.attn\.to_add_out\.", ".txt_attn.proj."),
    (r"^norm_out\.linear", "final_layer.adaLN_modulation.1"),
    ("^proj_out", "final_layer.linear"),
    ("^x_embedder", "img_in"),
    ("^context_embedder", "txt_in"),
]
_BLOCKS: Renames = [("^transformer_blocks", "double_blocks"), ("^single_transformer_blocks", "single_blocks")]


def chroma(shapes: Shapes) -> Shapes:
    return _back(
        shapes,
        [
            (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_1", r"\1.in_layer"),
            (r"^(distilled_guidance_layer\.layers\.\d+)\.linear_2", r"\1.out_layer"),
            (r"^(distilled_guidance_layer\.norms\.\d+)\.weight", r"\1.scale"),
            (r"^(single_transformer_blocks\.\d+)\.proj_out\.", r"\1.linear2."),
            *_BFL,
            (r"\.ff\.net\.0\.proj\.", ".img_mlp.0."),
            (r"\.ff\.net\.2\.", ".img_mlp.2."),
            (r"\.ff_context\.net\.0\.proj\.", ".txt_mlp.0."),
            (r"\.ff_context\.net\.2\.", ".txt_mlp.2."),
            *_BLOCKS,
        ],
        {_SINGLE: "linear1", _IMAGE: "img_attn.qkv", _TEXT: "txt_attn.qkv"},
    )


def flux2(shapes: Shapes) -> Shapes:
    return _back(
        shapes,
        [
            (r"^time_guidance_embed\.timestep_embedder\.linear_1", "time_in.in_layer"),
            (r"^time_guidance_embed\.timestep_embedder\.linear_2", "time_in.out_layer"),
            (r"^time_guidance_embed\.guidance_embedder\.linear_1", "guidance_in.in_layer"),
            (r"^time_guidance_embed\.guidance_embedder\.linear_2", "guidance_in.out_layer"),
            (r"_modulation(_img|_txt)?\.linear\.", r"_modulation\1.lin."),
            (r"^(single_transformer_blocks\.\d+)\.attn\.to_qkv_mlp_proj\.", r"\1.linear1."),
            (r"^(single_transformer_blocks\.\d+)\.attn\.to_out\.", r"\1.linear2."),
            *_BFL,
            (r"\.ff\.linear_in\.", ".img_mlp.0."),
            (r"\.ff\.linear_out\.", ".img_mlp.2."),
            (r"\.ff_context\.linear_in\.", ".txt_mlp.0."),
            (r"\.ff_context\.linear_out\.", ".txt_mlp.2."),
            *_BLOCKS,
        ],
        {_IMAGE: "img_attn.qkv", _TEXT: "txt_attn.qkv"},
    )


def stable_cascade(shapes: Shapes) -> Shapes:
    named = {re.sub(r"\.to_out\.0\.", ".attn.out_proj.", name): shape for name, shape in shapes.items()}
    back = _back(named, [(r"in_proj\.(weight|bias)$", r"in_proj_\1")], {_QKV: "attn.in_proj"})
    return back


Original = Callable[[Shapes], Shapes]
