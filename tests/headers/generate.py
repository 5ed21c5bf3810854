"""Write the stripped headers of this folder: names, dtypes and shapes of real model files, no weights.

    python tests/headers/generate.py            all of them, a few minutes
    python tests/headers/generate.py loras      one group: models, families, companions or loras

Everything is built from diffusers' model classes on the meta device with the families' published sizes. Files in an
original layout (SD, SDXL, SD3, FLUX) are renamed by `layouts.py` and checked through diffusers' single-file converter.
LoRAs are spelled by hand over the real module names of their base. Upscalers, embeddings, encoders that transformers
does not build, the stubs of other programs' files and the metadata are written by hand.
"""

import json
import sys

import companions
import families
import loras
import torch
from building import CONFIGS, HERE, Shapes, build, bundled, must_convert, write
from diffusers.loaders import single_file_utils as single_file
from layouts import clip, flux, ldm_unet, ldm_vae, open_clip, sd3

REFINER = {
    "attention_head_dim": [6, 12, 24, 24], "block_out_channels": [384, 768, 1536, 1536], "cross_attention_dim": 1280,
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2560,
    "transformer_layers_per_block": 4, "use_linear_projection": True, "sample_size": 128,
}  # fmt: skip
SSD1B = {
    "transformer_layers_per_block": [0, 2, 4], "mid_block_type": None,
    "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1],
}  # fmt: skip
VEGA = {
    "transformer_layers_per_block": [0, 1, 2],
    "mid_block_type": None,
    "reverse_transformer_layers_per_block": [[2, 2, 2], [1, 1, 1], 1],
}
KOLORS = {
    "encoder_hid_dim": 4096,
    "encoder_hid_dim_type": "text_proj",
    "projection_class_embeddings_input_dim": 5632,
}


def unet_and_vae(folder: str, **changes: object) -> tuple[Shapes, Shapes]:
    config = json.loads((CONFIGS / folder / "unet" / "config.json").read_text()) | changes
    unet, vae = bundled(f"{folder}/unet", **changes), bundled(f"{folder}/vae")
    original, original_vae = ldm_unet(unet), ldm_vae(vae)
    must_convert(original, unet, single_file.convert_ldm_unet_checkpoint, config={"class_embed_type": None} | config)
    vae_config = json.loads((CONFIGS / folder / "vae" / "config.json").read_text())
    must_convert(original_vae, vae, single_file.convert_ldm_vae_checkpoint, config=vae_config)
    return original, original_vae


def stable_diffusion() -> None:
    noise: Shapes = {"alphas_cumprod": (1000,), "betas": (1000,), "sqrt_alphas_cumprod": (1000,)}
    unet, vae = unet_and_vae("sd1")
    text = clip(768, 12, 3072, "cond_stage_model.transformer.")
    text["cond_stage_model.transformer.text_model.embeddings.position_ids"] = (1, 77)
    write("sd1", unet | vae | text | noise, position_ids="I64")
    write("sd1-no-vae", unet | text)
    inpaint, _ = unet_and_vae("sd1", in_channels=9)
    write("sd1-inpaint", inpaint | vae | text)
    edit, _ = unet_and_vae("sd1", in_channels=8)
    write("sd1-pix2pix", edit | vae | text)
    write("sd1-unet-diffusers", bundled("sd1/unet"))
    write("vae-4", {name.removeprefix("first_stage_model."): shape for name, shape in vae.items()})
    write("vae-4-diffusers", bundled("sd1/vae"))
    write("clip-l", clip(768, 12, 3072, ""))

    unet, vae = unet_and_vae("sd2")
    text = open_clip(1024, 24, 1024, "cond_stage_model.model.")
    write("sd2", unet | vae | text)
    depth, _ = unet_and_vae("sd2", in_channels=5)
    write("sd2-depth", depth | vae | text)

    unet, vae = unet_and_vae("sdxl")
    text = clip(768, 12, 3072, "conditioner.embedders.0.transformer.")
    text["conditioner.embedders.0.transformer.text_model.embeddings.position_ids"] = (1, 77)
    text |= open_clip(1280, 32, 1280, "conditioner.embedders.1.model.")
    about = {"modelspec.architecture": "stable-diffusion-xl-v1-base", "modelspec.title": "an XL model"}
    write("sdxl", unet | vae | text, metadata=about)
    write("sdxl-fp8", unet | vae | text, dtype="F8_E4M3")
    write("sdxl-v-prediction", unet | vae | text | {"v_pred": (0,), "ztsnr": (0,)})
    write("sdxl-playground", unet | vae | text | {"edm_mean": (4,), "edm_std": (4,)})
    write("sdxl-unet", {name.removeprefix("model.diffusion_model."): shape for name, shape in unet.items()})
    write("sdxl-unet-diffusers", bundled("sdxl/unet"))
    inpaint, _ = unet_and_vae("sdxl", in_channels=9)
    write("sdxl-inpaint", inpaint | vae | text)

    refiner = ldm_unet(build("UNet2DConditionModel", **REFINER))
    must_convert(
        refiner, build("UNet2DConditionModel", **REFINER), single_file.convert_ldm_unet_checkpoint,
        config=REFINER | {"class_embed_type": None, "layers_per_block": 2, "num_class_embeds": None},
    )  # fmt: skip
    text = open_clip(1280, 32, 1280, "conditioner.embedders.0.model.")
    write("sdxl-refiner", refiner | vae | text)
    write("ssd-1b-unet-diffusers", bundled("sdxl/unet", **SSD1B))
    write("vega-unet-diffusers", bundled("sdxl/unet", **VEGA))
    write("kolors-unet-diffusers", bundled("sdxl/unet", **KOLORS))
    write("svd-unet-diffusers", build("UNetSpatioTemporalConditionModel"))
    write("stable-cascade-c", build(
        "StableCascadeUNet", in_channels=16, out_channels=16, patch_size=1, block_out_channels=[2048, 2048],
        num_attention_heads=[32, 32], down_num_layers_per_block=[8, 24], up_num_layers_per_block=[24, 8],
        clip_text_in_channels=1280, clip_text_pooled_in_channels=1280, clip_image_in_channels=768,
        conditioning_dim=2048, down_blocks_repeat_mappers=[1, 1], up_blocks_repeat_mappers=[1, 1],
        block_types_per_layer=[["SDCascadeResBlock", "SDCascadeTimestepBlock", "SDCascadeAttnBlock"]] * 2,
        dropout=[0.1, 0.1], self_attn=True, timestep_conditioning_type=["sca", "crp"],
    ), "BF16")  # fmt: skip


def dit() -> None:
    kinds = {"flux1": (64, True), "flux1-schnell": (64, False), "flux1-fill": (384, True), "flux1-control": (128, True)}
    for name, (channels, guidance) in kinds.items():
        original = flux(channels, guidance)
        wanted = build("FluxTransformer2DModel", guidance_embeds=guidance, in_channels=channels, out_channels=64)
        must_convert(original, wanted, single_file.convert_flux_transformer_checkpoint_to_diffusers)
        write(name, original, "BF16")
    write("flux1-diffusers", build("FluxTransformer2DModel", guidance_embeds=True), "BF16")
    vae = {f"vae.{name}": shape for name, shape in ldm_vae(bundled("sdxl/vae", latent_channels=16), "").items()}
    text = clip(768, 12, 3072, "text_encoders.clip_l.transformer.")
    write("flux1-all-in-one", flux(prefix="model.diffusion_model.") | vae | text, "F8_E4M3")
    scales = {f"{name}.scale_weight": () for name in ("img_in", "txt_in")}
    write("flux1-fp8-scaled", flux(prefix="model.diffusion_model.") | scales, "F8_E4M3", scale_weight="F32")
    nf4 = flux(prefix="model.diffusion_model.")
    nf4["model.diffusion_model.double_blocks.0.img_attn.qkv.weight.quant_state.bitsandbytes__nf4"] = (88,)
    write("flux1-nf4", nf4, "BF16", nf4="U8")

    medium = sd3()
    wanted = build(
        "SD3Transformer2DModel", num_layers=24, num_attention_heads=24, caption_projection_dim=1536,
        pos_embed_max_size=192, sample_size=128,
    )  # fmt: skip
    must_convert(medium, wanted, single_file.convert_sd3_transformer_checkpoint_to_diffusers)
    vae = {
        name.removeprefix("first_stage_model."): shape
        for name, shape in ldm_vae(
            bundled("sdxl/vae", latent_channels=16, use_quant_conv=False, use_post_quant_conv=False)
        ).items()
    }
    text = clip(768, 12, 3072, "text_encoders.clip_l.transformer.")
    text |= clip(1280, 32, 5120, "text_encoders.clip_g.transformer.")
    write("sd3", medium | {f"first_stage_model.{name}": shape for name, shape in vae.items()} | text)
    write("sd3-large", sd3(2432, 38, prefix=""))
    write("sd3-diffusers", wanted)
    write("vae-16", vae, "BF16")

    write("chroma-diffusers", build("ChromaTransformer2DModel"), "BF16")
    write("flux2-diffusers", build("Flux2Transformer2DModel"), "BF16")
    klein = {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680}
    write("flux2-klein-diffusers", build("Flux2Transformer2DModel", **klein), "BF16")
    write("z-image-diffusers", build("ZImageTransformer2DModel"), "BF16")
    qwen = build("QwenImageTransformer2DModel")
    write("qwen-image", qwen, "BF16")
    write("qwen-image-comfy", {f"model.diffusion_model.{name}": shape for name, shape in qwen.items()}, "F8_E4M3")
    write("qwen-image-edit-2511", qwen | {"__index_timestep_zero__": (0,)}, "BF16")
    write("qwen-image-2.1", build("QwenImage21Transformer2DModel"), "BF16")
    write("lumina2-diffusers", build("Lumina2Transformer2DModel", cap_feat_dim=2304), "BF16")
    write("auraflow-diffusers", build("AuraFlowTransformer2DModel"))
    write("sana-diffusers", build("SanaTransformer2DModel"))
    write("glm-image", build("GlmImageTransformer2DModel"), "BF16")
    write("hidream", build(
        "HiDreamImageTransformer2DModel", patch_size=2, in_channels=16, num_layers=16, num_single_layers=32,
        attention_head_dim=128, num_attention_heads=20, caption_channels=[4096, 4096], text_emb_dim=2048,
        num_routed_experts=4, num_activated_experts=2, axes_dims_rope=[64, 32, 32], max_resolution=[128, 128],
        llama_layers=list(range(32)) + [31] * 16,
    ), "BF16")  # fmt: skip
    write("wan-t2v-diffusers", build("WanTransformer3DModel"))
    write("wan-i2v-diffusers", build("WanTransformer3DModel", in_channels=36))
    write("ltx-diffusers", build("LTXVideoTransformer3DModel"), "BF16")
    write("hunyuan-video-diffusers", build("HunyuanVideoTransformer3DModel"), "BF16")
    write("hunyuan-image-diffusers", build("HunyuanImageTransformer2DModel", text_embed_2_dim=1472), "BF16")
    write(
        "cogview4-diffusers",
        build("CogView4Transformer2DModel", num_attention_heads=32, attention_head_dim=128, num_layers=28),
        "BF16",
    )


def models() -> None:
    stable_diffusion()
    dit()


GROUPS = {
    "models": models, "families": families.write_all, "companions": companions.write_all, "loras": loras.write_all,
}  # fmt: skip

if __name__ == "__main__":
    torch.set_num_threads(1)
    wanted = sys.argv[1:] or list(GROUPS)
    if wanted == list(GROUPS):
        for old_file in HERE.glob("*.json.gz"):
            old_file.unlink()
    for group in wanted:
        GROUPS[group]()
