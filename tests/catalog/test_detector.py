import time
from dataclasses import replace

import pytest

from tests.catalog.corpus import NAMES, index, sparse_file, stored
from worker.catalog.detector import detect, detect_header
from worker.catalog.headers import read_header
from worker.catalog.repositories import task_of
from worker.core.errors import UnsupportedModel
from worker.core.model import Kind, Outline, Task

# stored header -> kind, architecture
EXPECTED = {
    "auraflow-diffusers": (Kind.DENOISER, "auraflow"),
    "chroma-diffusers": (Kind.DENOISER, "chroma"),
    "clip-l": (Kind.TEXT_ENCODER, None),
    "cogview4-unknown": (Kind.UNKNOWN, None),
    "controlnet-flux1-diffusers": (Kind.CONTROLNET, "flux1"),
    "controlnet-sd1": (Kind.CONTROLNET, "sd1"),
    "controlnet-sd1-diffusers": (Kind.CONTROLNET, "sd1"),
    "controlnet-sdxl-diffusers": (Kind.CONTROLNET, "sdxl"),
    "dora-sdxl-kohya": (Kind.LORA, "sdxl"),
    "embedding-sd1": (Kind.TEXTUAL_INVERSION, "sd1"),
    "embedding-sdxl": (Kind.TEXTUAL_INVERSION, "sdxl"),
    "embedding-token": (Kind.TEXTUAL_INVERSION, "sd2"),
    "flux1": (Kind.DENOISER, "flux1"),
    "flux1-all-in-one": (Kind.CHECKPOINT, "flux1"),
    "flux1-control": (Kind.DENOISER, "flux1-control"),
    "flux1-diffusers": (Kind.DENOISER, "flux1"),
    "flux1-fill": (Kind.DENOISER, "flux1-fill"),
    "flux1-fp8-scaled": (Kind.DENOISER, "flux1"),
    "flux1-nf4": (Kind.DENOISER, "flux1"),
    "flux1-schnell": (Kind.DENOISER, "flux1-schnell"),
    "flux2-diffusers": (Kind.DENOISER, "flux2"),
    "flux2-klein-diffusers": (Kind.DENOISER, "flux2-klein"),
    "glm-image": (Kind.DENOISER, "glm-image"),
    "hidream": (Kind.DENOISER, "hidream"),
    "hunyuan-image-diffusers": (Kind.DENOISER, "hunyuan-image"),
    "hunyuan-video-diffusers": (Kind.DENOISER, "hunyuan-video"),
    "ip-adapter-sd1": (Kind.UNKNOWN, None),
    "loha-sd1-kohya": (Kind.LORA, "sd1"),
    "lokr-sdxl-kohya": (Kind.LORA, "sdxl"),
    "kolors-unet-diffusers": (Kind.DENOISER, "kolors"),
    "lora-flux1-comfy": (Kind.LORA, "flux1"),
    "lora-flux1-diffusers": (Kind.LORA, "flux1"),
    "lora-flux1-kohya": (Kind.LORA, "flux1"),
    "lora-flux1-xlabs": (Kind.LORA, "flux1"),
    "lora-qwen-image-bare": (Kind.LORA, "qwen-image"),
    "lora-qwen-image-diffusers": (Kind.LORA, "qwen-image"),
    "lora-sd1-attn-procs": (Kind.LORA, "sd1"),
    "lora-sd1-kohya": (Kind.LORA, "sd1"),
    "lora-sd1-text-encoder-only": (Kind.LORA, None),
    "lora-sd2-kohya": (Kind.LORA, "sd2"),
    "lora-sd3-diffusers": (Kind.LORA, "sd3"),
    "lora-sdxl-diffusers": (Kind.LORA, "sdxl"),
    "lora-sdxl-kohya": (Kind.LORA, "sdxl"),
    "lora-sdxl-peft": (Kind.LORA, "sdxl"),
    "lora-wan-comfy": (Kind.LORA, "wan"),
    "lora-wan-with-diff": (Kind.LORA, "wan"),
    "lora-z-image-comfy": (Kind.LORA, "z-image"),
    "ltx-diffusers": (Kind.DENOISER, "ltx"),
    "lumina2-diffusers": (Kind.DENOISER, "lumina2"),
    "qwen-image": (Kind.DENOISER, "qwen-image"),
    "qwen-image-2.1": (Kind.DENOISER, "qwen-image-2.1"),
    "qwen-image-comfy": (Kind.DENOISER, "qwen-image"),
    "qwen-image-edit-2511": (Kind.DENOISER, "qwen-image-edit-plus"),
    "qwen-vl-text-encoder": (Kind.TEXT_ENCODER, None),
    "sana-diffusers": (Kind.DENOISER, "sana"),
    "sd1": (Kind.CHECKPOINT, "sd1"),
    "sd1-inpaint": (Kind.CHECKPOINT, "sd1"),
    "sd1-no-vae": (Kind.CHECKPOINT, "sd1"),
    "sd1-pix2pix": (Kind.CHECKPOINT, "sd1"),
    "sd1-unet-diffusers": (Kind.DENOISER, "sd1"),
    "sd2": (Kind.CHECKPOINT, "sd2"),
    "sd2-depth": (Kind.CHECKPOINT, "sd2"),
    "sd3": (Kind.CHECKPOINT, "sd3"),
    "sd3-diffusers": (Kind.DENOISER, "sd3"),
    "sd3-large": (Kind.DENOISER, "sd3"),
    "sdxl": (Kind.CHECKPOINT, "sdxl"),
    "sdxl-fp8": (Kind.CHECKPOINT, "sdxl"),
    "sdxl-inpaint": (Kind.CHECKPOINT, "sdxl"),
    "sdxl-playground": (Kind.CHECKPOINT, "sdxl"),
    "sdxl-refiner": (Kind.CHECKPOINT, "sdxl-refiner"),
    "sdxl-unet": (Kind.DENOISER, "sdxl"),
    "sdxl-unet-diffusers": (Kind.DENOISER, "sdxl"),
    "sdxl-v-prediction": (Kind.CHECKPOINT, "sdxl"),
    "ssd-1b-unet-diffusers": (Kind.DENOISER, "ssd-1b"),
    "stable-cascade-c": (Kind.DENOISER, "stable-cascade"),
    "svd-unet-diffusers": (Kind.DENOISER, "svd"),
    "t5-xxl": (Kind.TEXT_ENCODER, None),
    "upscaler-esrgan": (Kind.UNKNOWN, None),
    "vae-16": (Kind.VAE, None),
    "vae-4": (Kind.VAE, None),
    "vae-4-diffusers": (Kind.VAE, None),
    "vega-unet-diffusers": (Kind.DENOISER, "segmind-vega"),
    "wan-i2v-diffusers": (Kind.DENOISER, "wan-i2v"),
    "wan-t2v-diffusers": (Kind.DENOISER, "wan"),
    "z-image-diffusers": (Kind.DENOISER, "z-image"),
}


def test_every_stored_header_has_an_expectation():
    assert set(NAMES) == set(EXPECTED)


@pytest.mark.parametrize("name", NAMES)
def test_a_stored_header_is_recognised(name):
    found = detect_header(stored(name))
    assert (found.kind, found.architecture) == EXPECTED[name]
    assert found.evidence
    assert all(len(fact) < 200 for fact in found.evidence)


def test_an_sdxl_file_answers_with_evidence_and_without_its_weights(tmp_path):
    path = sparse_file(tmp_path / "sdxl.safetensors", stored("sdxl"))
    spent = []
    for _ in range(3):
        started = time.thread_time()
        found = detect_header(read_header(path), path.name)
        spent.append(time.thread_time() - started)
    assert min(spent) < 0.050
    assert (found.kind, found.architecture, found.pipeline) == (Kind.CHECKPOINT, "sdxl", "StableDiffusionXLPipeline")
    assert found.tasks == (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.INPAINTING)
    assert found.native_size == 1024
    stem = "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k.weight"
    assert f"{stem} is (640, 2048): sdxl" in found.evidence
    assert "metadata modelspec.architecture is stable-diffusion-xl-v1-base" in found.evidence


@pytest.mark.parametrize(
    ("name", "pipeline", "task"),
    [
        ("sd1-inpaint", "StableDiffusionInpaintPipeline", Task.INPAINTING),
        ("sdxl-inpaint", "StableDiffusionXLInpaintPipeline", Task.INPAINTING),
        ("sd1-pix2pix", "StableDiffusionInstructPix2PixPipeline", Task.IMAGE_EDITING),
        ("sd2-depth", "StableDiffusionDepth2ImgPipeline", Task.IMAGE_TO_IMAGE),
        ("flux1-fill", "FluxFillPipeline", Task.INPAINTING),
        ("sdxl-refiner", "StableDiffusionXLImg2ImgPipeline", Task.IMAGE_TO_IMAGE),
    ],
)
def test_input_channels_choose_the_pipeline(name, pipeline, task):
    found = detect_header(stored(name))
    assert (found.pipeline, found.tasks) == (pipeline, (task,))


@pytest.mark.parametrize(
    ("name", "prediction"),
    [("sdxl", None), ("sdxl-v-prediction", "v_prediction"), ("sdxl-playground", "edm"), ("sd2", None)],
)
def test_prediction_markers(name, prediction):
    assert detect_header(stored(name)).prediction_type == prediction


def test_zero_terminal_snr_is_told():
    assert "has ztsnr" in detect_header(stored("sdxl-v-prediction")).evidence


@pytest.mark.parametrize(("text", "wanted"), [("v", "v_prediction"), ("epsilon", "epsilon"), ("nonsense", None)])
def test_metadata_declares_the_prediction(text, wanted):
    source = replace(stored("sd2"), metadata={"modelspec.prediction_type": text})
    assert detect_header(source).prediction_type == wanted


@pytest.mark.parametrize(
    ("name", "format"),
    [
        ("sdxl", "safetensors"),
        ("sdxl-fp8", "safetensors"),
        ("flux1-fp8-scaled", "safetensors/fp8-scaled"),
        ("flux1-nf4", "safetensors/nf4"),
        ("dora-sdxl-kohya", "dora/kohya"),
    ],
)
def test_the_format_says_what_a_plain_reading_would_spoil(name, format):
    assert detect_header(stored(name)).format == format


def test_missing_parts_are_told():
    assert "no VAE in the file" in detect_header(stored("sd1-no-vae")).evidence
    assert not any(fact.startswith("no ") for fact in detect_header(stored("sd1")).evidence)


def test_metadata_that_contradicts_the_tensors_is_told_and_loses():
    found = detect_header(replace(stored("sd1"), metadata={"modelspec.architecture": "stable-diffusion-xl-v1-base"}))
    assert found.architecture == "sd1"
    assert "metadata says sdxl, which the tensors contradict" in found.evidence


def test_unknown_is_an_answer_with_what_is_near():
    small = {"input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (32, 32)}
    small |= {"output_blocks.0.0.in_layers.0.weight": (32,), "first.weight": (3,)}
    tiny = {f"model.diffusion_model.{name}": shape for name, shape in small.items()}
    tiny |= {"first_stage_model.decoder.conv_in.weight": (32, 4, 3, 3), "cond_stage_model.x": (1,)}
    found = detect_header(index(tiny))
    assert (found.kind, found.architecture, found.pipeline) == (Kind.UNKNOWN, None, None)
    assert "sd1" in found.near
    assert len(found.near) <= 3


@pytest.mark.parametrize(("name", "near"), [("upscaler-esrgan", "upscaler"), ("ip-adapter-sd1", "ip-adapter")])
def test_other_files_are_named(name, near):
    assert detect_header(stored(name)).near == (near,)


def test_strange_files_are_unknown_and_never_sd1():
    for tensors in ({"x": (1,)}, {"weight": ()}, {"a.lora": (3,)}, {f"layer.{i}.weight": (8, 8) for i in range(300)}):
        found = detect_header(index(tensors))
        assert (found.kind, found.architecture) == (Kind.UNKNOWN, None)


# --- repositories


def outline(class_name, **configs):
    files = {"model_index.json": {"_class_name": class_name, "vae": ["diffusers", "AutoencoderKL"]}}
    return Outline(configs=files | {name.replace("__", "/") + ".json": value for name, value in configs.items()})


def sd_repository(dim=768, sample=64, name="StableDiffusionPipeline", channels=4, prediction="epsilon"):
    return outline(
        name,
        unet__config={"cross_attention_dim": dim, "sample_size": sample, "in_channels": channels},
        vae__config={"block_out_channels": [128, 256, 512, 512]},
        scheduler__scheduler_config={"prediction_type": prediction},
    )


@pytest.mark.parametrize(
    ("dim", "sample", "architecture", "size"),
    [(768, 64, "sd1", 512), (1024, 96, "sd2", 768), (128, 16, "sd1", 128), (32, 8, "sd1", 64)],
)
def test_stable_diffusion_repositories(dim, sample, architecture, size):
    found = detect(sd_repository(dim, sample, prediction="v_prediction"))
    assert (found.kind, found.format, found.architecture) == (Kind.PIPELINE, "diffusers", architecture)
    assert found.pipeline == "StableDiffusionPipeline"
    assert found.tasks == (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.INPAINTING)
    assert (found.native_size, found.prediction_type) == (size, "v_prediction")


def test_nine_input_channels_make_an_inpainting_model():
    found = detect(sd_repository(channels=9))
    assert (found.pipeline, found.tasks) == ("StableDiffusionInpaintPipeline", (Task.INPAINTING,))


@pytest.mark.parametrize(
    ("name", "architecture", "tasks"),
    [
        ("StableDiffusionInpaintPipeline", "sd1", (Task.INPAINTING,)),
        ("StableDiffusionInstructPix2PixPipeline", "sd1", (Task.IMAGE_EDITING,)),
        ("StableDiffusionControlNetPipeline", "sd1", (Task.CONTROLNET,)),
        ("StableDiffusionXLPipeline", "sdxl", (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.INPAINTING)),
        ("FluxPipeline", "flux1", (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.INPAINTING)),
        ("FluxFillPipeline", "flux1-fill", (Task.INPAINTING,)),
        ("FluxKontextPipeline", "flux1-kontext", (Task.IMAGE_EDITING, Task.INPAINTING)),
        ("QwenImageEditPipeline", "qwen-image-edit", (Task.IMAGE_EDITING, Task.INPAINTING)),
        ("GlmImagePipeline", "glm-image", (Task.TEXT_TO_IMAGE, Task.IMAGE_EDITING)),
        ("WanImageToVideoPipeline", "wan-i2v", (Task.IMAGE_TO_VIDEO,)),
        ("StableDiffusionUpscalePipeline", "sd-x4-upscaler", (Task.UPSCALING,)),
        ("PaintByExamplePipeline", None, (Task.IMAGE_EDITING,)),
        ("SomethingNewPipeline", None, (Task.TEXT_TO_IMAGE,)),
        ("SomethingNewImg2ImgPipeline", None, (Task.IMAGE_TO_IMAGE,)),
        ("SomethingNewVideoPipeline", None, (Task.TEXT_TO_VIDEO,)),
    ],
)
def test_pipeline_classes(name, architecture, tasks):
    found = detect(outline(name))
    assert (found.kind, found.architecture, found.tasks) == (Kind.PIPELINE, architecture, tasks)
    assert found.pipeline == name


@pytest.mark.parametrize(
    ("name", "file", "config", "architecture"),
    [
        ("StableDiffusionXLImg2ImgPipeline", "unet__config", {"cross_attention_dim": 1280}, "sdxl-refiner"),
        ("StableDiffusionXLImg2ImgPipeline", "unet__config", {"cross_attention_dim": 2048}, "sdxl"),
        ("FluxPipeline", "transformer__config", {"guidance_embeds": False}, "flux1-schnell"),
        ("FluxPipeline", "transformer__config", {"guidance_embeds": True}, "flux1"),
        ("FluxPipeline", "transformer__config", {"guidance_embeds": 0}, "flux1"),
    ],
)
def test_siblings_are_told_apart_by_a_config_value(name, file, config, architecture):
    assert detect(outline(name, **{file: config})).architecture == architecture


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("StableDiffusionXLControlNetInpaintPipeline", Task.CONTROLNET),
        ("FluxControlPipeline", Task.CONTROLNET),
        ("KandinskyImg2ImgPipeline", Task.IMAGE_TO_IMAGE),
        ("IFInpaintingPipeline", Task.INPAINTING),
        ("IFSuperResolutionPipeline", Task.UPSCALING),
        ("JoyImageEditPipeline", Task.IMAGE_EDITING),
        ("Kandinsky5I2IPipeline", Task.IMAGE_EDITING),
        ("Kandinsky5I2VPipeline", Task.IMAGE_TO_VIDEO),
        ("StableVideoDiffusionPipeline", Task.IMAGE_TO_VIDEO),
        ("SkyReelsV2DiffusionForcingVideoToVideoPipeline", Task.VIDEO_TO_VIDEO),
        ("AllegroPipeline", Task.TEXT_TO_VIDEO),
        ("BriaPipeline", Task.TEXT_TO_IMAGE),
    ],
)
def test_a_class_name_tells_its_task(name, task):
    assert task_of(name) is task


REFUSED = {
    "custom class": ({"_class_name": "MyModel"}, "remote code"),
    "list": ({"_class_name": ["pipeline", "MyPipeline"]}, "pipeline/MyPipeline"),
    "path": ({"_class_name": "./my/Pipeline"}, "remote code"),
    "missing": ({}, "remote code"),
    "number": ({"_class_name": 3}, "remote code"),
    "auto map": ({"_class_name": "FluxPipeline", "auto_map": {"x": "y"}}, "auto_map"),
    "custom pipeline": ({"_class_name": "FluxPipeline", "custom_pipeline": "lpw"}, "custom_pipeline"),
    "custom part": ({"_class_name": "FluxPipeline", "unet": ["./mine", "Net"]}, "unet"),
    "dotted part": ({"_class_name": "FluxPipeline", "unet": ["os.path", "join"]}, "unet"),
    "long part": ({"_class_name": "FluxPipeline", "unet": ["diffusers", "Net", "x"]}, "unet"),
    "kernel": ({"_class_name": "FluxPipeline", "_attn_implementation": "evil/kernel"}, "kernel"),
    "audio": ({"_class_name": "StableAudioPipeline"}, "audio"),
    "3D": ({"_class_name": "ShapEPipeline"}, "3D"),
    "ONNX": ({"_class_name": "OnnxStableDiffusionPipeline"}, "ONNX"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_remote_code_and_other_media_are_refused_by_name(case):
    config, text = REFUSED[case]
    with pytest.raises(UnsupportedModel) as caught:
        detect(Outline(configs={"model_index.json": config}))
    assert text in caught.value.message


def test_remote_code_in_a_part_is_refused():
    with pytest.raises(UnsupportedModel, match="auto_map"):
        detect(outline("FluxPipeline", text_encoder__config={"auto_map": {"AutoModel": "model.Mine"}}))


def test_a_modular_repository_is_recognised_and_refused():
    with pytest.raises(UnsupportedModel, match="modular") as caught:
        detect(Outline(configs={"modular_model_index.json": {"_class_name": "Flux3ModularPipeline"}}))
    assert "Flux3ModularPipeline" in caught.value.message


def test_null_and_tuple_parts_of_real_repositories_are_fine():
    parts = {"safety_checker": [None, None], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    files = {"model_index.json": {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": True} | parts}
    assert detect(Outline(configs=files)).architecture == "sd1"


@pytest.mark.parametrize("sample", [None, "64", True, [], [64, None], -1, 10**9])
def test_a_strange_sample_size_leaves_the_familys_size(sample):
    assert detect(sd_repository(sample=sample)).native_size == 512


@pytest.mark.parametrize("junk", [None, 3, "x", [], ["a"], [1, 2], {}, {"a": {}}, True, 1e308, "x" * 10_000])
def test_junk_in_a_config_never_breaks_the_answer(junk):
    for file in ("unet/config.json", "vae/config.json", "scheduler/scheduler_config.json"):
        keys = ("sample_size", "block_out_channels", "cross_attention_dim", "in_channels", "prediction_type")
        configs = sd_repository().configs | {file: dict.fromkeys(keys, junk)}
        found = detect(Outline(configs=configs))
        assert found.architecture == "sd1"
        assert all(len(fact) < 200 for fact in found.evidence)
    for file in ("adapter_config.json", "config.json"):
        keys = ("peft_type", "base_model_name_or_path", "_class_name", "model_type")
        assert detect(Outline(configs={file: dict.fromkeys(keys, junk)})).kind in Kind
    try:
        detect(Outline(configs={"model_index.json": {"_class_name": "FluxPipeline", "vae": junk, "_x": junk}}))
        detect(Outline(configs={"model_index.json": {"_class_name": junk}}))
    except UnsupportedModel as error:
        assert len(error.message) < 400


def test_a_component_and_a_peft_adapter():
    found = detect(Outline(configs={"config.json": {"_class_name": "ControlNetModel"}}))
    assert (found.kind, found.evidence) == (Kind.COMPONENT, ("config.json: ControlNetModel",))
    config = {"peft_type": "LORA", "base_model_name_or_path": "stabilityai/stable-diffusion-xl-base-1.0"}
    found = detect(Outline(configs={"adapter_config.json": config}))
    assert (found.kind, found.format, found.architecture) == (Kind.LORA, "lora/peft", "sdxl")
    assert detect(Outline(configs={"adapter_config.json": {"peft_type": "LOHA"}})).format == "loha/peft"


def test_a_header_beside_configs_is_believed_first():
    configs = {
        "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "runwayml/stable-diffusion-v1-5"}
    }
    found = detect(Outline(configs=configs, header=stored("lora-sdxl-peft")))
    assert (found.kind, found.architecture) == (Kind.LORA, "sdxl")
    found = detect(Outline(header=stored("sdxl")))
    assert (found.kind, found.architecture) == (Kind.CHECKPOINT, "sdxl")


def test_nothing_to_look_at_is_unknown():
    assert detect(Outline()).kind is Kind.UNKNOWN
