import pytest

from tests.catalog.corpus import stored
from worker.catalog.detector import detect
from worker.catalog.pipelines.names import named_task
from worker.core.errors import UnsupportedModel
from worker.core.model import Kind, Outline, Task


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
        ("WanPipeline", "transformer__config", {"in_channels": 48}, "wan-ti2v"),
        ("WanPipeline", "transformer__config", {"in_channels": 16}, "wan"),
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
    assert named_task(name) is task


POISONED = {
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


@pytest.mark.parametrize("case", POISONED)
def test_remote_code_and_other_media_are_refused_by_name(case):
    config, text = POISONED[case]
    with pytest.raises(UnsupportedModel) as caught:
        detect(Outline(configs={"model_index.json": config}))
    assert text in caught.value.message


def test_remote_code_in_a_part_is_refused():
    with pytest.raises(UnsupportedModel, match="auto_map"):
        detect(outline("FluxPipeline", text_encoder__config={"auto_map": {"AutoModel": "model.Mine"}}))


def test_a_modular_repository_is_a_pipeline_of_its_class():
    place = {"pretrained_model_name_or_path": "org/flux3"}
    parts = {name: ["diffusers", "X", place] for name in ("text_encoder", "tokenizer", "transformer", "vae")}
    files = {f"{name}/config.json": {} for name in parts}
    index = {"_class_name": "Flux3ModularPipeline", "prompt_upsampler": [None, None, {}], **parts}
    detection = detect(Outline(configs={"modular_model_index.json": index, **files}))
    assert (detection.kind, detection.format, detection.pipeline) == (Kind.PIPELINE, "modular", "Flux3ModularPipeline")


def test_a_modular_repository_that_lacks_a_part_of_every_call_is_refused_by_name():
    index = {"_class_name": "Flux3ModularPipeline", "vae": ["diffusers", "X", {}], "transformer": [None, None, {}]}
    with pytest.raises(UnsupportedModel, match="has no text_encoder, tokenizer, transformer, and only"):
        detect(Outline(configs={"modular_model_index.json": index, "vae/config.json": {}}))


def test_null_and_tuple_parts_of_real_repositories_are_fine():
    parts = {"safety_checker": [None, None], "feature_extractor": ["transformers", "CLIPImageProcessor"]}
    files = {"model_index.json": {"_class_name": "StableDiffusionPipeline", "requires_safety_checker": True} | parts}
    assert detect(Outline(configs=files)).architecture == "sd1"


@pytest.mark.parametrize("sample", [None, "64", True, [], [64, None], -1, 10**6])
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


@pytest.mark.parametrize(
    ("config", "kind", "architecture", "name"),
    [
        ({"_class_name": "ControlNetModel", "cross_attention_dim": 2048}, Kind.CONTROLNET, "sdxl", "ControlNetModel"),
        ({"_class_name": "FluxControlNetModel"}, Kind.CONTROLNET, "flux1", "FluxControlNetModel"),
        ({"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768}, Kind.DENOISER, "sd1",
         "UNet2DConditionModel"),
        ({"_class_name": "ZImageTransformer2DModel"}, Kind.DENOISER, "z-image", "ZImageTransformer2DModel"),
        ({"_class_name": "AutoencoderKL"}, Kind.VAE, None, "AutoencoderKL"),
        ({"_class_name": "T2IAdapter", "adapter_type": "full_adapter_xl"}, Kind.T2I_ADAPTER, "sdxl", "T2IAdapter"),
        ({"_class_name": "MotionAdapter", "block_out_channels": [1] * 3}, Kind.MOTION_MODULE, "sdxl", "MotionAdapter"),
        ({"_class_name": "SomethingNew"}, Kind.COMPONENT, None, "SomethingNew"),
        ({"model_type": "clip_vision_model", "architectures": ["CLIPVisionModelWithProjection"]},
         Kind.IMAGE_ENCODER, None, "CLIPVisionModelWithProjection"),
        ({"model_type": "t5", "architectures": ["T5EncoderModel"]}, Kind.TEXT_ENCODER, None, "T5EncoderModel"),
        ({"model_type": "whisper"}, Kind.COMPONENT, None, None),
    ],
)  # fmt: skip
def test_a_component_is_answered_as_what_it_is(config, kind, architecture, name):
    found = detect(Outline(configs={"config.json": config}))
    assert (found.kind, found.architecture, found.component_class) == (kind, architecture, name)


def test_a_peft_adapter():
    config = {"peft_type": "LORA", "base_model_name_or_path": "stabilityai/stable-diffusion-xl-base-1.0"}
    found = detect(Outline(configs={"adapter_config.json": config}))
    assert (found.kind, found.format, found.architecture) == (Kind.LORA, "lora/peft", "sdxl")
    assert detect(Outline(configs={"adapter_config.json": {"peft_type": "LOHA"}})).format == "loha/peft"


@pytest.mark.parametrize(
    ("told", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes_4bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes_8bit"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "sdnq"}, "sdnq"),
        ({"bits": 4}, "unnamed"),
        (None, None),
    ],
)
def test_a_quantized_repository_names_its_method(told, method):
    found = detect(outline("FluxPipeline", transformer__config={"quantization_config": told}))
    assert (found.kind, found.quantization) == (Kind.PIPELINE, method)


def test_a_repository_lists_its_parts():
    parts = {"transformer": ["diffusers", "FluxTransformer2DModel"], "text_encoder_2": [None, None]}
    found = detect(Outline(configs={"model_index.json": {"_class_name": "FluxPipeline"} | parts}))
    assert found.parts == ("transformer",)


@pytest.mark.parametrize(
    "hidden",
    [
        {"text_config": {"auto_map": {"AutoModel": "model.Mine"}}},
        {"text_config": {"_attn_implementation": "evil/kernel"}},
        {"_attn_implementation_internal": "evil/kernel"},
        {"attn_implementation": {"vision": "evil/kernel@main"}},
        {"_attn_implementation": "kernel:function"},
    ],
)
def test_code_is_refused_wherever_a_config_hides_it(hidden):
    with pytest.raises(UnsupportedModel, match="never run here"):
        detect(outline("FluxPipeline", text_encoder__config=hidden))
    with pytest.raises(UnsupportedModel, match="never run here"):
        detect(Outline(configs={"config.json": {"model_type": "t5"} | hidden}))


def test_a_header_beside_configs_is_believed_first():
    configs = {
        "adapter_config.json": {"peft_type": "LORA", "base_model_name_or_path": "runwayml/stable-diffusion-v1-5"}
    }
    found = detect(Outline(configs=configs, header=stored("lora-sdxl-peft")))
    assert (found.kind, found.architecture) == (Kind.LORA, "sdxl")
    found = detect(Outline(header=stored("sdxl")))
    assert (found.kind, found.architecture) == (Kind.CHECKPOINT, "sdxl")


def test_a_config_settles_a_tie_between_classes_with_the_same_names():
    header = stored("wan-t2v-diffusers")
    found = detect(Outline(configs={"config.json": {"_class_name": "WanTransformer3DModel"}}, header=header))
    assert (found.architecture, found.component_class, found.confidence) == ("wan", "WanTransformer3DModel", "high")
    found = detect(Outline(configs={"config.json": {"_class_name": "ChronoEditTransformer3DModel"}}, header=header))
    assert (found.architecture, found.pipeline) == (None, "ChronoEditPipeline")
    assert found.tasks == (Task.TEXT_TO_VIDEO,)
    vae = stored("vae-wan-diffusers")
    found = detect(Outline(configs={"config.json": {"_class_name": "AutoencoderKLQwenImage"}}, header=vae))
    assert (found.kind, found.component_class) == (Kind.VAE, "AutoencoderKLQwenImage")


def test_nothing_to_look_at_is_unknown():
    assert detect(Outline()).kind is Kind.UNKNOWN
