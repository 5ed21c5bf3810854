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
QKV = ("to_q", "to_k", "to_v")
IMAGE = ("attn.to_q", "attn.to_k", "attn.to_v")
TEXT = ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj")
SINGLE = (*IMAGE, "proj_mlp")


def back(shapes: Shapes, renames: Renames, fused: Mapping[tuple[str, ...], str] | None = None) -> Shapes:
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
    named = back(
        shapes,
        [
            (r"^all_(x_embedder|final_layer)\.2-1\.", r"\1."),
            (r"\.to_out\.0\.", ".out."),
            (r"\.norm_([qk])\.", r".\1_norm."),
        ],
        {QKV: "qkv"},
    )
    return named | {"norm_final.weight": (3840,)}


def lumina2(shapes: Shapes) -> Shapes:
    return back(
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
        {QKV: "qkv"},
    ) | {"norm_final.weight": (2304,)}


def auraflow(shapes: Shapes) -> Shapes:
    return back(
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
    named = back(
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
    named |= back(self_attention, heads, {QKV: "qkv"})
    return named | {"pos_embed": (1, 1024, 2240), "y_embedder.y_embedding": (300, 2304)}


def krea2(shapes: Shapes) -> Shapes:
    named = back(
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
    return {name: (shape[0] * shape[1],) if flat.match(name) else shape for name, shape in named.items()}


def qwen_image_21(shapes: Shapes) -> Shapes:
    return back(shapes, [], {("img_mlp.gate_layer", "img_mlp.proj"): "img_mlp.gate_up"})


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
    return back(
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
        {SINGLE: "linear1", IMAGE: "img_attn.qkv", TEXT: "txt_attn.qkv"},
    )


def flux2(shapes: Shapes) -> Shapes:
    return back(
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
        {IMAGE: "img_attn.qkv", TEXT: "txt_attn.qkv"},
    )


def stable_cascade(shapes: Shapes) -> Shapes:
    named = {re.sub(r"\.to_out\.0\.", ".attn.out_proj.", name): shape for name, shape in shapes.items()}
    joined = back(named, [(r"in_proj\.(weight|bias)$", r"in_proj_\1")], {QKV: "attn.in_proj"})
    return joined


Original = Callable[[Shapes], Shapes]
