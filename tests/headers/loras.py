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
    hunyuan(native, encoder, xl, encoder_g)
    videos()


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


def hunyuan(native: Shapes, encoder: Shapes, xl: Shapes, encoder_g: Shapes) -> None:
    """Tencent's three models in their authors' names, and OneTrainer's names of the Open Model Initiative."""
    sizes = {"hunyuan-video": (3072, 20, 40), "hunyuan-video-15": (2048, 54, 0), "hunyuan-image": (3584, 20, 40)}
    for name, (width, double, single) in sizes.items():
        modules = tencent(width, double, single, name != "hunyuan-video")
        if name == "hunyuan-video":
            write(f"lora-{name}-native", low_rank(dotted(modules, "diffusion_model."), "lora_A", "lora_B"), "BF16")
        else:
            pairs = low_rank(kohya(modules, "lora_unet_"), "lora_down", "lora_up", alpha=True)
            write(f"lora-{name}-native", pairs, "BF16")
    comfy = {stem.replace("attn_qkv", "attn.qkv"): shape for stem, shape in tencent(3072, 20, 40, False).items()}
    for old, new in (
        ("attn_proj", "attn.proj"),
        ("mlp.fc1", "mlp.0"),
        ("mlp.fc2", "mlp.2"),
        ("mod.linear", "mod.lin"),
        ("modulation.linear", "modulation.lin"),
    ):
        comfy = {stem.replace(old, new): shape for stem, shape in comfy.items()}
    write("lora-hunyuan-video-comfy", low_rank(dotted(comfy, "diffusion_model."), "lora_A", "lora_B"), "BF16")
    omi: Shapes = {}
    for stem, (outputs, inputs) in tencent(3072, 20, 40, False).items():
        parts = 3 if stem.endswith("qkv") else 4 if stem.endswith("linear1") else 1
        for part in range(parts):
            rows = (12288 if part == 3 else 3072) if parts > 1 else outputs
            named = stem.replace("mlp.fc1", "mlp.fc0")
            omi[f"transformer.{named}.{part}" if parts > 1 else f"transformer.{named}"] = (rows, inputs)
    clips = dotted(encoder, "clip_l.")
    write("lora-hunyuan-video-omi", low_rank(omi | clips, "lora_down", "lora_up", alpha=True), "BF16")
    flux: Shapes = {"transformer.img_in.proj": (3072, 64)}
    for stem, (outputs, inputs) in native.items():
        parts = 3 if stem.endswith("qkv") else 4 if stem.endswith("linear1") else 1
        for part in range(parts):
            rows = (12288 if part == 3 else 3072) if parts > 1 else outputs
            flux[f"transformer.{stem}.{part}" if parts > 1 else f"transformer.{stem}"] = (rows, inputs)
    t5 = {f"t5.encoder.block.{at}.layer.0.SelfAttention.{side}": (4096, 4096) for at in range(24) for side in "qkvo"}
    write("lora-flux1-omi", low_rank(flux | clips | t5, "lora_down", "lora_up", alpha=True), "BF16")
    sgm = {ldm_unet_name(f"{name}.weight", {0, 1}).removesuffix(".weight"): shape for name, shape in xl.items()}
    every = dotted(sgm, "unet.") | clips | dotted(encoder_g, "clip_g.")
    write("lora-sdxl-omi", low_rank(every, "lora_down", "lora_up", alpha=True), "F16")


def tencent(width: int, double: int, single: int, apart: bool) -> Shapes:
    """Return the linear layers that trainers reach, q, k and v `apart` or fused, as Tencent's code names them."""
    modules: Shapes = {}

    def attention(stem: str, whole: str) -> None:
        sides = [f"{stem}_{side}" for side in "qkv"] if apart and not whole else [whole or f"{stem}_qkv"]
        modules.update({side: (3 * width // len(sides), width) for side in sides})

    for block in range(2):
        stem = f"txt_in.individual_token_refiner.blocks.{block}."
        attention(stem, f"{stem}self_attn_qkv")
        modules |= {f"{stem}self_attn_proj": (width, width), f"{stem}adaLN_modulation.1": (2 * width, width)}
        modules |= {f"{stem}mlp.fc1": (4 * width, width), f"{stem}mlp.fc2": (width, 4 * width)}
    for block in range(double):
        for side in ("img", "txt"):
            stem = f"double_blocks.{block}.{side}_"
            attention(f"{stem}attn", "")
            modules |= {f"{stem}attn_proj": (width, width), f"{stem}mod.linear": (6 * width, width)}
            modules |= {f"{stem}mlp.fc1": (4 * width, width), f"{stem}mlp.fc2": (width, 4 * width)}
    for block in range(single):
        stem = f"single_blocks.{block}."
        if apart:
            modules |= {f"{stem}linear1_{side}": (width, width) for side in "qkv"}
            modules |= {f"{stem}linear1_mlp": (4 * width, width), f"{stem}linear2.fc": (width, 5 * width)}
        else:
            modules |= {f"{stem}linear1": (7 * width, width), f"{stem}linear2": (width, 5 * width)}
        modules[f"{stem}modulation.linear"] = (3 * width, width)
    return modules


def videos() -> None:
    """LTX-2 with its sound, Wan's VACE, and an image-to-video distillation of Wan 2.1 as LightX2V publishes them."""
    video, audio, stem = 4096, 2048, "transformer_blocks.{}."
    modules = {"patchify_proj": (video, 128), "audio_patchify_proj": (audio, 128)}
    for block in range(48):
        at = stem.format(block)
        for name, width, context in (
            ("attn1", video, video), ("attn2", video, video), ("audio_attn1", audio, audio),
            ("audio_attn2", audio, audio),
        ):  # fmt: skip
            modules |= {f"{at}{name}.to_q": (width, width), f"{at}{name}.to_out.0": (width, width)}
            modules |= {f"{at}{name}.to_{side}": (width, context) for side in "kv"}
        for name, reads, other in (("audio_to_video_attn", video, audio), ("video_to_audio_attn", audio, video)):
            modules |= {f"{at}{name}.to_q": (audio, reads), f"{at}{name}.to_out.0": (reads, audio)}
            modules |= {f"{at}{name}.to_{side}": (audio, other) for side in "kv"}
        for name, width in (("ff", video), ("audio_ff", audio)):
            modules |= {f"{at}{name}.net.0.proj": (4 * width, width), f"{at}{name}.net.2": (width, 4 * width)}
    for name, width, times in (
        ("adaln_single", video, 6), ("audio_adaln_single", audio, 6), ("av_ca_a2v_gate_adaln_single", video, 1),
        ("av_ca_v2a_gate_adaln_single", audio, 1), ("av_ca_video_scale_shift_adaln_single", video, 4),
        ("av_ca_audio_scale_shift_adaln_single", audio, 4),
    ):  # fmt: skip
        modules |= {f"{name}.linear": (times * width, width)}
        modules |= {f"{name}.emb.timestep_embedder.linear_1": (width, 256)}
        modules |= {f"{name}.emb.timestep_embedder.linear_2": (width, width)}
    write("lora-ltx2-comfy", low_rank(dotted(modules, "diffusion_model."), "lora_A", "lora_B"), "BF16")

    def wan(stem: str, image: bool) -> Shapes:
        result = {f"{stem}{attn}.{side}": (5120, 5120) for attn in ("self_attn", "cross_attn") for side in "qkvo"}
        result |= {f"{stem}cross_attn.{side}_img": (5120, 5120) for side in "kv" if image}
        return result | {f"{stem}ffn.0": (13824, 5120), f"{stem}ffn.2": (5120, 13824)}

    vace: Shapes = {"diffusion_model.vace_blocks.0.before_proj": (5120, 5120)}
    for block in range(8):
        vace |= wan(f"diffusion_model.vace_blocks.{block}.", False)
        vace[f"diffusion_model.vace_blocks.{block}.after_proj"] = (5120, 5120)
    write("lora-wan-vace", low_rank(vace, "lora_A", "lora_B"), "BF16")
    low: Shapes = {"diffusion_model.img_emb.proj.1": (1280, 1280), "diffusion_model.img_emb.proj.3": (5120, 1280)}
    rest: Shapes = {}
    for block in range(40):
        at = f"diffusion_model.blocks.{block}."
        low |= wan(at, True)
        norms = ["self_attn.norm_q", "self_attn.norm_k", "cross_attn.norm_q", "cross_attn.norm_k", "norm3"]
        rest |= {f"{at}{norm}.diff": (5120,) for norm in (*norms, "cross_attn.norm_k_img")}
        rest |= {f"{at}norm3.diff_b": (5120,), f"{at}diff_m": (1, 6, 5120)}
    rest |= {f"{name}.diff_b": shape[:1] for name, shape in low.items()}
    write("lora-wan-i2v-lightx2v", low_rank(low, "lora_down", "lora_up") | rest, "BF16")


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
