import pytest

from tests.catalog.corpus import NAMES, index, stored
from worker.catalog.base_models import declared_base
from worker.catalog.detectors.adapters import detect_lora

LORAS = {
    "dora-flux1-diffusers": ("dora", "diffusers", 418),
    "dora-sdxl-kohya": ("dora", "kohya", 700),
    "full-sdxl-kohya": ("full", "kohya", 700),
    "glora-sd1-kohya": ("glora", "kohya", 160),
    "ia3-sd1-kohya": ("ia3", "kohya", 160),
    "loha-flux1-kohya": ("loha", "kohya", 304),
    "loha-sd1-kohya": ("loha", "kohya", 160),
    "loha-sdxl-kohya": ("loha", "kohya", 700),
    "lokr-flux1-comfy": ("lokr", "comfy", 304),
    "lokr-sdxl-kohya": ("lokr", "kohya", 700),
    "lora-anima": ("lora", "comfy", 84),
    "lora-auraflow": ("lora", "diffusers", 32),
    "lora-chroma": ("lora", "diffusers", 278),
    "lora-cogvideox": ("lora", "diffusers", 120),
    "lora-cogview4": ("lora", "diffusers", 120),
    "lora-flux1-bare": ("lora", "bare", 418),
    "lora-flux1-comfy": ("lora", "comfy", 304),
    "lora-flux1-control": ("lora+control", "bare", 305),
    "lora-flux1-diffusers": ("lora", "diffusers", 418),
    "lora-flux1-kohya": ("lora", "kohya", 304),
    "lora-flux1-kohya-t5": ("lora", "kohya", 472),
    "lora-flux1-onetrainer": ("lora", "kohya", 586),
    "lora-flux1-peft": ("lora", "peft", 418),
    "lora-flux1-xlabs": ("lora", "xlabs", 76),
    "lora-flux2": ("lora", "diffusers", 160),
    "lora-flux2-klein": ("lora", "diffusers", 80),
    "lora-flux1-omi": ("lora", "omi", 663),
    "lora-hunyuan-image-native": ("lora", "kohya", 530),
    "lora-hunyuan-video": ("lora", "diffusers", 280),
    "lora-hunyuan-video-15-native": ("lora", "kohya", 766),
    "lora-hunyuan-video-comfy": ("lora", "comfy", 330),
    "lora-hunyuan-video-native": ("lora", "comfy", 330),
    "lora-hunyuan-video-omi": ("lora", "omi", 606),
    "lora-ltx2-comfy": ("lora", "comfy", 1364),
    "lora-sdxl-omi": ("lora", "omi", 964),
    "lora-wan-i2v-lightx2v": ("lora+diff", "comfy", 482),
    "lora-wan-vace": ("lora", "comfy", 89),
    "lora-krea2": ("lora", "diffusers", 140),
    "lora-krea2-comfy": ("lora", "comfy", 84),
    "lora-ltx": ("lora", "comfy", 224),
    "lora-lumina2": ("lora", "diffusers", 104),
    "lora-mochi": ("lora", "diffusers", 383),
    "lora-qwen-image-bare": ("lora", "bare", 840),
    "lora-qwen-image-comfy": ("lora", "comfy", 840),
    "lora-qwen-image-diffusers": ("lora", "diffusers", 840),
    "lora-qwen-image-kohya": ("lora", "kohya", 840),
    "lora-qwen-image-undecidable": ("lora", "diffusers", 48),
    "lora-sana": ("lora", "diffusers", 160),
    "lora-sd1-attn-procs": ("lora", "diffusers", 128),
    "lora-sd1-kohya": ("lora", "kohya", 232),
    "lora-sd1-norm": ("lora+diff", "kohya", 160),
    "lora-sd1-text-encoder-only": ("lora", "kohya", 72),
    "lora-sd2-kohya": ("lora", "kohya", 160),
    "lora-sd3-diffusers": ("lora", "diffusers", 143),
    "lora-sd3-kohya": ("lora", "kohya", 24),
    "lora-sdxl-bundle": ("lora+embedding", "kohya", 892),
    "lora-sdxl-diffusers": ("lora", "diffusers", 560),
    "lora-sdxl-kohya": ("lora", "kohya", 964),
    "lora-sdxl-peft": ("lora", "peft", 700),
    "lora-sdxl-peft-default": ("lora", "diffusers", 700),
    "lora-wan-comfy": ("lora", "comfy", 160),
    "lora-wan-diffusers": ("lora", "diffusers", 400),
    "lora-wan-kohya": ("lora", "kohya", 160),
    "lora-wan-with-diff": ("lora+diff", "comfy", 160),
    "lora-z-image-comfy": ("lora", "comfy", 210),
    "lora-z-image-diffusers": ("lora", "diffusers", 210),
    "lora-z-image-kohya": ("lora", "kohya", 210),
    "oft-sd1-kohya": ("oft", "kohya", 160),
}


@pytest.mark.parametrize("name", LORAS)
def test_algorithm_dialect_and_modules(name):
    found = detect_lora(stored(name))
    assert found is not None
    assert (found.algorithm, found.dialect, found.modules) == LORAS[name]


# FaceID's files have LoRAs inside; the detector asks for their layout first.
@pytest.mark.parametrize("name", [name for name in NAMES if name not in LORAS and "face-id" not in name])
def test_nothing_else_is_a_lora(name):
    assert detect_lora(stored(name)) is None


def test_a_control_lora_is_named():
    keys = {"img_in.lora_A.weight": (128, 128), "img_in.lora_B.weight": (3072, 128)}
    keys |= {"double_blocks.0.img_attn.qkv.lora_A.weight": (128, 3072)}
    found = detect_lora(index(keys))
    assert found is not None
    assert (found.algorithm, found.base) == ("lora+control", "flux1")


STEM = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k"


@pytest.mark.parametrize(
    ("ends", "algorithm"),
    [
        ((".lora_A.weight", ".lora_B.weight"), "lora"),
        ((".lora_A.default.weight", ".lora_B.default.weight"), "lora"),
        ((".lora.down.weight", ".lora.up.weight"), "lora"),
        ((".lora_linear_layer.down.weight", ".lora_linear_layer.up.weight"), "lora"),
        ((".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"), "dora"),
        ((".oft_blocks", ".alpha"), "oft"),
        ((".on_input",), "ia3"),
        ((".a1.weight", ".a2.weight", ".b1.weight", ".b2.weight"), "glora"),
        ((".diff", ".diff_b"), "full"),
        ((".lokr_w1", ".lokr_w2"), "lokr"),
    ],
)
def test_every_spelling_and_relative_is_named(ends, algorithm):
    found = detect_lora(index({STEM + end: (320, 768) for end in ends}))
    assert found is not None
    assert found.algorithm == algorithm


def test_boft_is_oft_of_several_levels():
    """What the reader refuses as BOFT has that name here too."""
    assert detect_lora(index({f"{STEM}.oft_blocks": (3, 4, 80, 80)})).algorithm == "boft"
    assert detect_lora(index({f"{STEM}.oft_blocks": (4, 80, 80)})).algorithm == "oft"
    assert detect_lora(index({f"{STEM}.oft_R.default.weight": (4, 80)})).algorithm == "oft"


def test_low_rank_branches_of_a_quantized_model_are_no_lora():
    assert detect_lora(index({f"{STEM}.lora_down": (768, 32), f"{STEM}.lora_up": (320, 32)})) is None


@pytest.mark.parametrize("ends", [(".a1", ".a2", ".b1", ".b2"), (".a2", ".a1", ".b2", ".b1")])
def test_both_layouts_of_glora_tell_the_width(ends):
    shapes = ((768, 16), (16, 768), (320, 16), (16, 768))
    keys = {f"{STEM}{end}.weight": shape for end, shape in zip(ends, shapes, strict=True)}
    assert detect_lora(index(keys)).base == "sd1"


def test_a_name_behind_a_doubled_underscore_tells_the_base():
    stem = "lora_unet__blocks_0_self_attn_q"
    assert (
        detect_lora(index({f"{stem}.lora_down.weight": (4, 5120), f"{stem}.lora_up.weight": (5120, 4)})).base == "wan"
    )


def test_an_embedding_inside_is_named():
    keys = {"lora_unet_x.lora_down.weight": (4, 8), "bundle_emb.cat.string_to_param.*": (2, 768)}
    found = detect_lora(index(keys))
    assert found is not None
    assert found.algorithm == "lora+embedding"


def test_metadata_tells_the_base_when_the_keys_do_not():
    keys = {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": (4, 768)}
    keys |= {"lora_te_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": (3072, 4)}
    assert detect_lora(index(keys)).base is None
    told = detect_lora(index(keys, ss_base_model_version="sd_v1"))
    assert told.base == "sd1"
    assert "metadata ss_base_model_version is sd_v1" in told.evidence


def test_keys_win_over_metadata():
    keys = {f"{STEM}.lora_A.weight": (4, 768), f"{STEM}.lora_B.weight": (320, 4)}
    assert detect_lora(index(keys, ss_base_model_version="sdxl_base_v1-0")).base == "sd1"


@pytest.mark.parametrize(("linear1", "base"), [(21504, "flux1"), (27648, "flux2-klein")])
def test_flux_generations_differ_by_a_width(linear1, base):
    stem = "diffusion_model.single_blocks.0.linear1"
    keys = {f"{stem}.lora_A.weight": (4, 3072), f"{stem}.lora_B.weight": (linear1, 4)}
    assert detect_lora(index(keys)).base == base


def test_qwen_attention_alone_is_undecided():
    stem = "transformer.transformer_blocks.3.attn.to_q"
    keys = {f"{stem}.lora_A.weight": (4, 3072), f"{stem}.lora_B.weight": (3072, 4)}
    found = detect_lora(index(keys))
    assert found.base is None
    assert found.evidence[-1] == "the keys and the metadata do not tell the base model"


@pytest.mark.parametrize(
    ("text", "base"),
    [
        ("stable-diffusion-v1/lora", "sd1"),
        ("stable-diffusion-xl-v1-base/lora", "sdxl"),
        ("stable-diffusion-v2-768-v", "sd2"),
        ("flux-1-dev/lora", "flux1"),
        ("sd3_m", "sd3"),
        ("qwen-image", "qwen-image"),
        ("", None),
        ("something", None),
    ],
)
def test_declared_bases(text, base):
    assert declared_base(text) == base
