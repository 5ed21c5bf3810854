"""Denoisers of the families that have one layout, and stubs in the original layout where diffusers has no way back."""

import sys

from building import HERE, Shapes, build, bundled, write
from layouts import flux

sys.path.append(str(HERE.parents[1]))
from tools.component_signatures import CONFIGURATIONS

# header -> model class with its published sizes, which are diffusers' defaults unless said
CLASSES = {
    "allegro-diffusers": "AllegroTransformer3DModel", "bria-diffusers": "BriaTransformer2DModel",
    "bria-fibo-diffusers": "BriaFiboTransformer2DModel", "bria-fibo-2-diffusers": "BriaFibo2Transformer2DModel",
    "cogview3-diffusers": "CogView3PlusTransformer2DModel", "ernie-image-diffusers": "ErnieImageTransformer2DModel",
    "flux3-diffusers": "Flux3Transformer2DModel", "hunyuan-dit-diffusers": "HunyuanDiT2DModel",
    "hunyuan-video-15-diffusers": "HunyuanVideo15Transformer3DModel",
    "ideogram4-diffusers": "Ideogram4Transformer2DModel",
    "joyimage-diffusers": "JoyImageEditTransformer3DModel", "kandinsky3-diffusers": "Kandinsky3UNet",
    "kandinsky5-diffusers": "Kandinsky5Transformer3DModel", "krea2-diffusers": "Krea2Transformer2DModel",
    "latte-diffusers": "LatteTransformer3DModel", "ltx2-diffusers": "LTX2VideoTransformer3DModel",
    "lumina-next-diffusers": "LuminaNextDiT2DModel", "mochi-diffusers": "MochiTransformer3DModel",
    "nucleus-image-diffusers": "NucleusMoEImageTransformer2DModel", "omnigen-diffusers": "OmniGenTransformer2DModel",
    "ovis-image-diffusers": "OvisImageTransformer2DModel", "prx-diffusers": "PRXTransformer2DModel",
    "wan-animate-diffusers": "WanAnimateTransformer3DModel",
    "wan-vace-diffusers": "WanVACETransformer3DModel", "sana-video-diffusers": "SanaVideoTransformer3DModel",
    "cosmos-diffusers": "CosmosTransformer3DModel",
}  # fmt: skip
X4 = {
    "in_channels": 7, "block_out_channels": [256, 512, 512, 1024], "cross_attention_dim": 1024,
    "num_class_embeds": 1000,
    "attention_head_dim": 8, "use_linear_projection": True, "only_cross_attention": [True, True, True, False],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
}  # fmt: skip


def write_all() -> None:
    for name, model in CLASSES.items():
        write(name, build(model, **CONFIGURATIONS.get(model, {})), "BF16")
    pixart = {"caption_channels": 4096, "sample_size": 128}
    write("pixart-sigma-diffusers", build("PixArtTransformer2DModel", use_additional_conditions=False, **pixart))
    write("pixart-alpha-diffusers", build("PixArtTransformer2DModel", use_additional_conditions=True, **pixart))
    write(
        "sana-sprint-diffusers", build("SanaTransformer2DModel", guidance_embeds=True, qk_norm="rms_norm_across_heads")
    )
    write("qwen-image-layered", build("QwenImageTransformer2DModel", use_additional_t_cond=True), "BF16")
    write("cogvideox-diffusers", build("CogVideoXTransformer3DModel", num_attention_heads=48, num_layers=42), "BF16")
    write("cogvideox-i2v-diffusers", build(
        "CogVideoXTransformer3DModel", num_attention_heads=48, num_layers=42, in_channels=32
    ), "BF16")  # fmt: skip
    write("latent-consistency-unet", bundled("sd1/unet", time_cond_proj_dim=256))
    write("sd-x4-upscaler-unet", build("UNet2DConditionModel", **X4))
    write("longcat-image-diffusers", build("LongCatImageTransformer2DModel"), "BF16")
    write("wan-ti2v-5b-diffusers", build(
        "WanTransformer3DModel", in_channels=48, out_channels=48, num_attention_heads=24, num_layers=30, ffn_dim=14336
    ), "BF16")  # fmt: skip
    gguf = flux()
    plain = {".bias": "F32", ".scale": "F32", "img_in.weight": "F16", "mod.lin.weight": "Q5_K"}
    write("flux1-gguf", gguf, "Q4_K", {"general.architecture": "flux"}, "gguf", **plain)
    turbo = {
        name.replace("all_x_embedder.2-1", "x_embedder"): s for name, s in build("ZImageTransformer2DModel").items()
    }
    about = {"general.architecture": "lumina2"}  # what Z-Image's quantizers write
    write("z-image-gguf", turbo, "Q8_0", about, "gguf", **{".bias": "F32", "norm1.weight": "F32", "pad_token": "F32"})
    originals()
    strangers()


def originals() -> None:
    """Stubs: the first block of each, with the names that its authors use."""
    wan: Shapes = {"patch_embedding.weight": (1536, 16, 1, 2, 2), "head.modulation": (1, 2, 1536)}
    wan |= {
        f"blocks.{at}.{side}_attn.{to}.weight": (1536, 1536)
        for at in range(30)
        for side in ("self", "cross")
        for to in "qkvo"
    }
    write("wan-original", wan, "BF16")
    mochi: Shapes = {"x_embedder.proj.weight": (3072, 12, 2, 2), "t5_yproj.weight": (1536, 4096)}
    mochi |= {f"blocks.{at}.attn.qkv_x.weight": (9216, 3072) for at in range(48)}
    mochi |= {f"blocks.{at}.attn.qkv_y.weight": (9216, 1536) for at in range(48)}
    write("mochi-original", mochi, "BF16")
    krea: Shapes = {"first.weight": (6144, 64), "txtfusion.projector.weight": (1, 12), "txtmlp.0.scale": (2560,)}
    krea |= {f"blocks.{at}.attn.{to}.weight": (6144, 6144) for at in range(28) for to in ("wq", "wo", "gate")}
    write("krea2-original", krea, "BF16")
    pixart: Shapes = {"t_block.1.weight": (6912, 1152), "y_embedder.y_embedding": (300, 4096)}
    pixart |= {f"blocks.{at}.cross_attn.q_linear.weight": (1152, 1152) for at in range(28)}
    write("pixart-sigma-original", pixart)
    write(
        "pixart-alpha-original",
        pixart | {"csize_embedder.mlp.0.weight": (384, 256), "ar_embedder.mlp.0.weight": (384, 256)},
    )
    dit: Shapes = {"mlp_t5.0.weight": (8192, 2048), "pooler.positional_embedding": (257, 2048)}
    dit |= {f"blocks.{at}.attn1.Wqkv.weight": (4224, 1408) for at in range(40)}
    write("hunyuan-dit-original", dit)
    ltx2: Shapes = {"patchify_proj.weight": (4096, 128), "audio_patchify_proj.weight": (2048, 128)}
    ltx2["av_ca_a2v_gate_adaln_single.emb.timestep_embedder.linear_1.weight"] = (4096, 256)
    ltx2 |= {f"transformer_blocks.{at}.attn1.to_q.weight": (4096, 4096) for at in range(48)}
    write("ltx2-original", {f"model.diffusion_model.{name}": s for name, s in ltx2.items()}, "BF16")
    nunchaku: Shapes = {"x_embedder.weight": (3072, 64), "context_embedder.weight": (3072, 4096)}
    nunchaku |= {f"transformer_blocks.{at}.qkv_proj.qweight": (9216, 1536) for at in range(19)}
    write("flux1-svdquant", nunchaku, "BF16", {"model_class": "NunchakuFluxTransformer2dModel"}, qweight="I8")
    packed = flux(prefix="model.diffusion_model.")
    packed["model.diffusion_model.img_in.weight"] = (98304, 1)
    packed["model.diffusion_model.img_in.weight.quant_state.bitsandbytes__nf4"] = (88,)
    write("flux1-nf4-packed", packed, "BF16", **{"img_in.weight": "U8", "nf4": "U8"})


def strangers() -> None:
    """Stubs of files that are refused by name."""
    write(
        "refused-flux3",
        {"early_stream_modulations.image.lin.weight": (9216, 3072), "emb_in.image.weight": (3072, 128)},
        "BF16",
    )
    anima: Shapes = {f"blocks.{at}.cross_attn.q_proj.weight": (2048, 2048) for at in range(28)}
    write("refused-anima", anima | {"llm_adapter.blocks.0.cross_attn.q_proj.weight": (1024, 1024)}, "BF16")
    write("refused-omnigen2", {
        "ref_image_patch_embedder.weight": (2520, 64), "time_caption_embed.caption_embedder.0.weight": (2048,),
        "time_caption_embed.caption_embedder.1.weight": (2520, 2048), "x_embedder.weight": (2520, 64),
    }, "BF16")  # fmt: skip
    write("refused-stable-audio", {
        "model.model.preprocess_conv.weight": (64, 64, 1),
        "pretransform.model.decoder.layers.0.weight_v": (2048, 64, 7),
    })  # fmt: skip
    write(
        "refused-sam",
        {"mask_decoder.iou_token.weight": (1, 256), "prompt_encoder.no_mask_embed.weight": (1, 256)},
        "F32",
    )
