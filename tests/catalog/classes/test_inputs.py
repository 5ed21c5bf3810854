"""Which media a pipeline takes, by which fields, for which task: for every class of the installed diffusers."""

import pytest

from worker.catalog.call import Model
from worker.catalog.classes.inputs import FIELDS, assign, missing_fields, slots_of
from worker.catalog.classes.refusals import refusal
from worker.catalog.classes.signatures import DENIED, call_parameters, known_pipelines
from worker.catalog.classes.tasks import FROM_TEXT, class_tasks, makes_video
from worker.catalog.pipelines.table import PIPELINES
from worker.core.model import Detection, Kind, ModelSource, ModelSpec, Task
from worker.core.pipeline import Slot

_OTHER = ("Onnx", "Flax", "Audio", "Music", "Dance", "AceStep", "Spectrogram", "ShapE", "Proteina", "LLaDA", "Gemma")
_ENDS = ("Pipeline", "Legacy", "Safe", "Diffusion", "XL")
SPEC = ModelSpec(id="m", source=ModelSource(scheme="hf", locator="org/m"))


def found(pipeline, *tasks):
    return Detection(Kind.PIPELINE, "diffusers", None, pipeline, tasks)


@pytest.fixture(scope="module")
def classes():
    """All classes that draw; their calls are read here, since that takes seconds."""
    names = [name for name in known_pipelines() if "Pipeline" in name and name.endswith(_ENDS)]
    names = [name for name in names if not any(part in name for part in (*_OTHER, "AutoPipeline"))]
    return sorted(name for name in names if call_parameters(name))


def test_every_class_can_be_asked_for_something_or_is_refused_by_name(classes):
    """What a call requires can come from a caller: as words, as a value, as an image; or the class is refused."""
    assert len(classes) > 250
    asked = [name for name in classes if not refusal(name)]
    assert len(asked) > 200
    for name in asked:
        check_class(name)


def check_class(name):
    slots = {slot.parameter for slot in slots_of(name)}
    for parameter in call_parameters(name).values():
        if parameter.required and parameter.name not in slots and parameter.name != "prompt":
            assert parameter.schema is not None, (name, parameter)
            assert not DENIED.fullmatch(parameter.name), (name, parameter)
    for task in class_tasks(name):
        needed = missing_fields(slots_of(name), task, ())
        if task in FROM_TEXT:
            assert needed == ()
        else:
            # Sending just what is asked for means this task, or one that the class has too and that needs no more.
            assert Model(SPEC, found(name, *class_tasks(name))).infer_task(needed) in class_tasks(name)
            assert missing_fields(slots_of(name), task, needed) == ()


@pytest.mark.parametrize(
    ("name", "sent", "task", "into"),
    [
        ("StableDiffusionInpaintPipeline", ("image", "mask_image"), Task.INPAINTING, {"image", "mask_image"}),
        ("StableDiffusionControlNetPipeline", ("control_image",), Task.CONTROLNET, {"image"}),
        ("StableDiffusionControlNetPipeline", ("image",), Task.CONTROLNET, {"image"}),
        ("FluxControlNetImg2ImgPipeline", ("image", "control_image"), Task.CONTROLNET, {"image", "control_image"}),
        ("StableDiffusion3ControlNetInpaintingPipeline", ("image", "mask_image"), Task.CONTROLNET,
         {"control_image", "control_mask"}),
        ("Flux2Pipeline", (), Task.TEXT_TO_IMAGE, set()),
        ("Flux2Pipeline", ("images",), Task.IMAGE_EDITING, {"image"}),
        ("OmniGenPipeline", ("image",), Task.IMAGE_EDITING, {"input_images"}),
        ("WanImageToVideoPipeline", ("image", "last_image"), Task.IMAGE_TO_VIDEO, {"image", "last_image"}),
        ("WanVACEPipeline", ("video", "mask_image"), Task.VIDEO_TO_VIDEO, {"video", "mask"}),
        ("WanAnimatePipeline", ("image", "pose_video", "face_video"), Task.VIDEO_TO_VIDEO,
         {"image", "pose_video", "face_video"}),
        ("AnimateDiffControlNetPipeline", ("video",), Task.CONTROLNET, {"conditioning_frames"}),
        ("CogVideoXFunControlPipeline", ("video",), Task.VIDEO_TO_VIDEO, {"control_video"}),
        ("LTX2ConditionPipeline", ("image",), Task.IMAGE_TO_VIDEO, {"conditions"}),
        ("HeliosPipeline", ("video",), Task.VIDEO_TO_VIDEO, {"video"}),
        ("PaintByExamplePipeline", ("image", "mask_image", "example_image"), Task.IMAGE_EDITING,
         {"image", "mask_image", "example_image"}),
        ("LEditsPPPipelineStableDiffusion", ("image",), Task.IMAGE_EDITING, {"image"}),
        ("MarigoldDepthPipeline", ("image",), Task.IMAGE_TO_IMAGE, {"image"}),
        ("IFSuperResolutionPipeline", ("image",), Task.UPSCALING, {"image"}),
    ],
)  # fmt: skip
def test_what_is_sent_means_a_task_and_finds_its_parameter(name, sent, task, into):
    assert Model(SPEC, found(name, *class_tasks(name))).infer_task(sent) is task
    assert assign(slots_of(name), sent).keys() == into


def test_image_and_images_are_one_list():
    taken = assign(slots_of("QwenImageEditPlusPipeline"), ("images", "image"))
    assert taken == {"image": ("image", "images")}


def test_a_field_that_nothing_takes_is_left_over():
    slots = (Slot("image", ("image", "images")), Slot("last_image"))
    assert assign(slots, ("image", "video", "mask_image")) == {"image": ("image",)}
    assert missing_fields(slots, Task.IMAGE_TO_VIDEO, ()) == ("image",)


def test_a_reason_says_what_and_what_instead():
    refused = {name: row.refusal for name, row in PIPELINES.items() if row.refusal}
    assert refused
    for name, reason in refused.items():
        assert known_pipelines() >= {name}, f"{name} is no class of the installed diffusers"
        assert f"X {reason}."[2].islower()
    assert "image_embeds" in refusal("KandinskyV22Pipeline")
    assert refusal("StableDiffusionPipeline") is None
    assert refusal("DDIMPipeline") is None


def test_what_draws_a_video_is_told_by_class_or_task(classes):
    videos = {name for name in classes if not refusal(name) and makes_video(name, class_tasks(name)[0])}
    assert {"WanPipeline", "PIAPipeline", "AnimateDiffControlNetPipeline", "StableVideoDiffusionPipeline"} <= videos
    images = {"Cosmos2TextToImagePipeline", "CogView4Pipeline", "HunyuanImagePipeline", "Kandinsky5T2IPipeline"}
    assert not videos & images


def test_a_variant_of_a_family_is_not_run_as_its_main_class():
    spec = SPEC.model_copy(update={"architecture": "sd1"})
    pag = found("StableDiffusionPAGPipeline", Task.TEXT_TO_IMAGE)
    assert Model(spec, pag).pipeline_for(Task.TEXT_TO_IMAGE) == "StableDiffusionPAGPipeline"
    assert set(FIELDS) >= {"image", "mask_image", "video"}
