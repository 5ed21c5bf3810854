"""The names that video models are published under, from diffusers' own."""

import re

from tests.original_layouts import IMAGE, QKV, SINGLE, TEXT, Shapes, back


def ltx(shapes: Shapes) -> Shapes:
    return back(
        shapes,
        [("^proj_in", "patchify_proj"), ("^time_embed", "adaln_single"), (r"\.norm_([qk])\.", r".\1_norm.")],
    )


def ltx2(shapes: Shapes) -> Shapes:
    return back(
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
    return back(
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
    faces = back(
        face,
        [
            (r"^face_adapter\.", "face_adapter.fuser_blocks."),
            (r"\.norm_([qk])\.", r".\1_norm."),
            (r"\.to_q\.", ".linear1_q."),
            (r"\.to_out\.", ".linear2."),
        ],
        {("to_k", "to_v"): "linear1_kv"},
    )
    motions = back(
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
    texts = back(
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
        {IMAGE: "self_attn_qkv"},
    )
    singles = back(
        single,
        [
            (r"^single_transformer_blocks", "single_blocks"),
            (r"\.proj_out\.", ".linear2."),
            (r"\.attn\.norm_([qk])\.", r".\1_norm."),
            (r"\.norm\.linear\.", ".modulation.linear."),
        ],
        {SINGLE: "linear1"},
    )
    return texts | singles | back(
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
        {IMAGE: "img_attn_qkv", TEXT: "txt_attn_qkv"},
    )  # fmt: skip


def mochi(shapes: Shapes) -> Shapes:
    return back(
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
        {QKV: "qkv_x", ("add_q_proj", "add_k_proj", "add_v_proj"): "qkv_y"},
    )
