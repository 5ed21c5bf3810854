"""The LoRA dialects, spelled by hand over the real module names of their base."""

from building import Shapes, build, bundled, dotted, kohya, linears, low_rank, write
from layouts import clip, flux, ldm_unet_name


def write_all() -> None:
    attention = r"transformer_blocks\.\d+\.(attn\d\.to_|ff\.net)"
    encoder = linears(clip(768, 12, 3072, ""), "self_attn|mlp")
    encoder_g = linears(clip(1280, 32, 5120, ""), "self_attn|mlp")
    sd1, xl = linears(bundled("sd1/unet"), attention), linears(bundled("sdxl/unet"), attention)
    sgm = {ldm_unet_name(f"{name}.weight", {0, 1}).removesuffix(".weight"): shape for name, shape in xl.items()}
    about = {"ss_network_module": "networks.lora", "ss_base_model_version": "sdxl_base_v1-0"}

    pair = low_rank(kohya(sd1, "lora_unet_") | kohya(encoder, "lora_te_"), "lora_down", "lora_up", alpha=True)
    write("lora-sd1-kohya", pair, metadata={"ss_base_model_version": "sd_v1"})
    write("lora-sd1-text-encoder-only", low_rank(kohya(encoder, "lora_te_"), "lora_down", "lora_up", alpha=True))
    old = {f"unet.{name.replace('.to_out.0', '.to_out')}": shape for name, shape in sd1.items() if ".attn" in name}
    old = {f"{name.replace('.to_', '.processor.to_')}_lora": shape for name, shape in old.items()}
    write("lora-sd1-attn-procs", low_rank(old, "down", "up"), "F32")
    sd2 = linears(bundled("sd2/unet"), attention)
    write("lora-sd2-kohya", low_rank(kohya(sd2, "lora_unet_"), "lora_down", "lora_up", alpha=True))
    every = kohya(sgm, "lora_unet_") | kohya(encoder, "lora_te1_") | kohya(encoder_g, "lora_te2_")
    write("lora-sdxl-kohya", low_rank(every, "lora_down", "lora_up", alpha=True), metadata=about)
    only = {name: shape for name, shape in dotted(xl, "unet.").items() if ".attn" in name}
    write("lora-sdxl-diffusers", low_rank(only, "lora_A", "lora_B"))
    write("lora-sdxl-peft", low_rank(dotted(xl, "base_model.model."), "lora_A", "lora_B"))
    dora = low_rank(kohya(sgm, "lora_unet_"), "lora_down", "lora_up", alpha=True)
    dora |= {f"{name}.dora_scale": (outputs, 1) for name, (outputs, _) in kohya(sgm, "lora_unet_").items()}
    write("dora-sdxl-kohya", dora)
    loha: Shapes = {}
    for name, (outputs, inputs) in kohya(sd1, "lora_unet_").items():
        for half in ("w1", "w2"):
            loha |= {f"{name}.hada_{half}_a": (outputs, 8), f"{name}.hada_{half}_b": (8, inputs)}
        loha[f"{name}.alpha"] = ()
    write("loha-sd1-kohya", loha, metadata={"ss_network_module": "lycoris.kohya"})
    lokr: Shapes = {}
    for name, (outputs, inputs) in kohya(sgm, "lora_unet_").items():
        lokr |= {f"{name}.lokr_w1": (8, 8), f"{name}.lokr_w2_a": (outputs // 8, 16)}
        lokr |= {f"{name}.lokr_w2_b": (16, inputs // 8), f"{name}.alpha": ()}
    write("lokr-sdxl-kohya", lokr, metadata={"ss_network_module": "lycoris.kohya"})

    blocks = linears(build("FluxTransformer2DModel"), r"transformer_blocks\.\d+\.(attn|ff|proj_)")
    write("lora-flux1-diffusers", low_rank(dotted(blocks, "transformer."), "lora_A", "lora_B"), "BF16")
    native = linears(flux(), r"(double|single)_blocks\.\d+\.(img|txt|linear|modulation)")
    write("lora-flux1-kohya", low_rank(kohya(native, "lora_unet_"), "lora_down", "lora_up", alpha=True), "BF16")
    write("lora-flux1-comfy", low_rank(dotted(native, "diffusion_model."), "lora_A", "lora_B"), "BF16")
    xlabs: Shapes = {}
    for block in range(19):
        for side in ("1", "2"):
            stem = f"double_blocks.{block}.processor."
            xlabs |= low_rank({f"{stem}qkv_lora{side}": (9216, 3072)}, "down", "up")
            xlabs |= low_rank({f"{stem}proj_lora{side}": (3072, 3072)}, "down", "up")
    write("lora-flux1-xlabs", xlabs, "BF16")
    stable3 = linears(build("SD3Transformer2DModel", num_attention_heads=24), r"transformer_blocks\.\d+\.attn")
    write("lora-sd3-diffusers", low_rank(dotted(stable3, "transformer."), "lora_A", "lora_B"))
    qwen = linears(build("QwenImageTransformer2DModel"), r"transformer_blocks\.\d+\.(attn|img_m|txt_m)")
    write("lora-qwen-image-diffusers", low_rank(dotted(qwen, "transformer."), "lora_A", "lora_B"), "BF16")
    write("lora-qwen-image-bare", low_rank(qwen, "lora_down", "lora_up", alpha=True), "BF16")
    turbo = linears(build("ZImageTransformer2DModel"), r"^layers\.\d+\.(attention|feed)")
    write("lora-z-image-comfy", low_rank(dotted(turbo, "diffusion_model."), "lora_A", "lora_B"), "BF16")
    wan: Shapes = {}
    for block in range(40):
        for name in ("self_attn.q", "self_attn.k", "cross_attn.v", "ffn.0"):
            wan[f"diffusion_model.blocks.{block}.{name}"] = (13824 if name == "ffn.0" else 5120, 5120)
    write("lora-wan-comfy", low_rank(wan, "lora_A", "lora_B"), "BF16")
    lightx = low_rank(wan, "lora_down", "lora_up")
    write("lora-wan-with-diff", lightx | {"diffusion_model.blocks.0.norm3.diff": (5120,)}, "BF16")
    trainers(blocks, native, xl, encoder, encoder_g)
    lycoris(sd1, sgm, native)
    bases(qwen, turbo, wan)


def trainers(blocks: Shapes, native: Shapes, xl: Shapes, encoder: Shapes, encoder_g: Shapes) -> None:
    """What OneTrainer, ai-toolkit, kohya with T5, and the embedders write."""
    t5 = {f"encoder.block.{at}.layer.0.SelfAttention.{side}": (4096, 4096) for at in range(24) for side in "qkvo"}
    one = kohya(blocks, "lora_transformer_") | kohya(encoder, "lora_te1_") | kohya(t5, "lora_te2_")
    write("lora-flux1-onetrainer", low_rank(one, "lora_down", "lora_up", alpha=True), "BF16")
    both = kohya(native, "lora_unet_") | kohya(encoder, "lora_te1_") | kohya(t5, "lora_te3_")
    write("lora-flux1-kohya-t5", low_rank(both, "lora_down", "lora_up", alpha=True), "BF16")
    write("lora-flux1-peft", low_rank(dotted(blocks, "base_model.model."), "lora_A", "lora_B"), "BF16")
    write("lora-flux1-bare", low_rank(blocks, "lora_A", "lora_B"), "BF16")
    control = dotted(native, "") | {"img_in": (3072, 128)}
    norms = {f"double_blocks.{at}.img_attn.norm.key_norm.scale": (128,) for at in range(19)}
    write("lora-flux1-control", low_rank(control, "lora_A", "lora_B", rank=128) | norms, "BF16")
    dora = low_rank(dotted(blocks, "transformer."), "lora_A", "lora_B")
    dora |= {f"transformer.{name}.lora_magnitude_vector": (outputs,) for name, (outputs, _) in blocks.items()}
    write("dora-flux1-diffusers", dora, "BF16")
    pair = low_rank(kohya(xl, "lora_unet_") | kohya(encoder_g, "lora_te2_"), "lora_down", "lora_up", alpha=True)
    words = {"bundle_emb.cat.string_to_param.clip_l": (2, 768), "bundle_emb.cat.string_to_param.clip_g": (2, 1280)}
    write("lora-sdxl-bundle", pair | words)
    named = {
        name.replace(".weight", ".default.weight"): s
        for name, s in low_rank(dotted(xl, "unet."), "lora_A", "lora_B").items()
    }
    write("lora-sdxl-peft-default", named)


def lycoris(sd1: Shapes, sgm: Shapes, native: Shapes) -> None:
    """The algorithms of LyCORIS, in kohya's spelling."""
    about = {"ss_network_module": "lycoris.kohya"}
    modules = kohya(sgm, "lora_unet_")
    full = {f"{name}.diff": shape for name, shape in modules.items()}
    write("full-sdxl-kohya", full | {f"{name}.diff_b": shape[:1] for name, shape in modules.items()}, metadata=about)
    narrow = kohya(sd1, "lora_unet_")
    write(
        "ia3-sd1-kohya",
        {f"{name}.weight": s[:1] for name, s in narrow.items()} | {f"{name}.on_input": (1,) for name in narrow},
        metadata=about,
    )
    glora: Shapes = {}
    for name, (outputs, inputs) in narrow.items():
        glora |= {f"{name}.a1.weight": (16, inputs), f"{name}.a2.weight": (inputs, 16)}
        glora |= {f"{name}.b1.weight": (16, inputs), f"{name}.b2.weight": (outputs, 16), f"{name}.alpha": ()}
    write("glora-sd1-kohya", glora, metadata=about)
    norms = {
        f"lora_unet_down_blocks_0_resnets_{at}_norm1.{end}": (320,) for at in (0, 1) for end in ("w_norm", "b_norm")
    }
    write("lora-sd1-norm", low_rank(narrow, "lora_down", "lora_up", alpha=True) | norms, metadata=about)
    write(
        "oft-sd1-kohya",
        {f"{name}.oft_blocks": (4, outputs // 4, outputs // 4) for name, (outputs, _) in narrow.items()},
        metadata=about,
    )
    for base, places in (("sdxl", modules), ("flux1", kohya(native, "lora_unet_"))):
        loha: Shapes = {}
        for name, (outputs, inputs) in places.items():
            for half in ("w1", "w2"):
                loha |= {f"{name}.hada_{half}_a": (outputs, 8), f"{name}.hada_{half}_b": (8, inputs)}
            loha[f"{name}.alpha"] = ()
        write(f"loha-{base}-kohya", loha, metadata=about)
    lokr: Shapes = {}
    for name, (outputs, inputs) in native.items():
        stem = f"diffusion_model.{name}"
        lokr |= {f"{stem}.lokr_w1": (8, 8), f"{stem}.lokr_w2": (outputs // 8, inputs // 8), f"{stem}.alpha": ()}
    write("lokr-flux1-comfy", lokr, "BF16", metadata=about)


def bases(qwen: Shapes, turbo: Shapes, wan: Shapes) -> None:
    """One file for each other base, in the spelling that is most common for it."""
    write("lora-qwen-image-kohya", low_rank(kohya(qwen, "lora_unet_"), "lora_down", "lora_up", alpha=True), "BF16")
    write("lora-qwen-image-comfy", low_rank(dotted(qwen, "diffusion_model."), "lora_A", "lora_B"), "BF16")
    few = {name: shape for name, shape in qwen.items() if ".attn." in name and int(name.split(".")[1]) < 6}
    write("lora-qwen-image-undecidable", low_rank(dotted(few, "transformer."), "lora_A", "lora_B"), "BF16")
    write("lora-z-image-diffusers", low_rank(dotted(turbo, "transformer."), "lora_A", "lora_B"), "BF16")
    write("lora-z-image-kohya", low_rank(kohya(turbo, "lora_unet_"), "lora_down", "lora_up", alpha=True), "BF16")
    bare = {name.removeprefix("diffusion_model."): shape for name, shape in wan.items()}
    write("lora-wan-kohya", low_rank(kohya(bare, "lora_unet_"), "lora_down", "lora_up", alpha=True), "BF16")
    for name, model, config, pattern, prefix in (
        ("flux2", "Flux2Transformer2DModel", {}, r"transformer_blocks\.\d+\.attn", "transformer."),
        (
            "flux2-klein",
            "Flux2Transformer2DModel",
            {"num_layers": 5, "num_single_layers": 20, "num_attention_heads": 24, "joint_attention_dim": 7680},
            r"transformer_blocks\.\d+\.attn",
            "transformer.",
        ),
        ("wan-diffusers", "WanTransformer3DModel", {}, r"blocks\.\d+\.(attn|ffn)", "transformer."),
        ("krea2", "Krea2Transformer2DModel", {}, r"transformer_blocks\.\d+\.attn", "transformer."),
        ("lumina2", "Lumina2Transformer2DModel", {"cap_feat_dim": 2304}, r"^layers\.\d+\.attn", "transformer."),
        ("auraflow", "AuraFlowTransformer2DModel", {}, r"joint_transformer_blocks\.\d+\.attn", "transformer."),
        ("sana", "SanaTransformer2DModel", {}, r"transformer_blocks\.\d+\.attn", "transformer."),
        (
            "cogview4",
            "CogView4Transformer2DModel",
            {"num_attention_heads": 32, "attention_head_dim": 128},
            r"transformer_blocks\.\d+\.attn",
            "transformer.",
        ),
        ("hunyuan-video", "HunyuanVideoTransformer3DModel", {}, r"transformer_blocks\.\d+\.attn", "transformer."),
        ("ltx", "LTXVideoTransformer3DModel", {}, r"transformer_blocks\.\d+\.attn", "diffusion_model."),
        ("mochi", "MochiTransformer3DModel", {}, r"transformer_blocks\.\d+\.attn1", "transformer."),
        ("cogvideox", "CogVideoXTransformer3DModel", {}, r"transformer_blocks\.\d+\.attn1", "transformer."),
        ("chroma", "ChromaTransformer2DModel", {}, r"transformer_blocks\.\d+\.attn|distilled", "transformer."),
    ):
        modules = linears(build(model, **config), pattern)
        write(f"lora-{name}", low_rank(dotted(modules, prefix), "lora_A", "lora_B"), "BF16")
    anima = {f"blocks.{at}.cross_attn.{side}_proj": (2048, 2048) for at in range(28) for side in "qkv"}
    write("lora-anima", low_rank(dotted(anima, "diffusion_model."), "lora_A", "lora_B"), "BF16")
    krea = {f"blocks.{at}.attn.{side}": (6144, 6144) for at in range(28) for side in ("wq", "wo", "gate")}
    write("lora-krea2-comfy", low_rank(dotted(krea, "diffusion_model."), "lora_A", "lora_B"), "BF16")
    joint = {f"joint_blocks.{at}.x_block.attn.qkv": (4608, 1536) for at in range(24)}
    write("lora-sd3-kohya", low_rank(kohya(joint, "lora_unet_"), "lora_down", "lora_up", alpha=True))
