"""What a schema cannot say of two fields, and the grid of sizes that a repository's parts make."""

import pytest

from worker.catalog.call import Model
from worker.catalog.detector import detect
from worker.catalog.interface.checking import check_parameters
from worker.catalog.interface.sizes import size_bounds
from worker.core.errors import ParameterOutOfRange
from worker.core.model import ModelSpec, Outline, Task
from worker.store.refs import parse_reference


def model_of(class_name: str, **configs: dict[str, object]) -> Model:
    parts = {name: ["diffusers", "X"] for name in configs}
    files = {"model_index.json": {"_class_name": class_name, **parts}}
    files |= {f"{name}/config.json": config for name, config in configs.items()}
    spec = ModelSpec(id="m", source=parse_reference("file:m"))
    return Model(spec, detect(Outline(configs=files)))


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"control_guidance_start": 1}, "control_guidance_start"),
        ({"control_guidance_end": 0}, "control_guidance_start"),
        ({"control_guidance_start": 0.5, "control_guidance_end": 0.5}, "control_guidance_start"),
    ],
)
def test_a_window_of_no_steps_is_refused(sent, field):
    call = model_of("StableDiffusionXLControlNetPipeline", unet={}, vae={}).call(Task.CONTROLNET)
    with pytest.raises(ParameterOutOfRange, match="must be less than its end") as error:
        check_parameters(sent, call, max_images=1)
    assert error.value.field == field
    assert check_parameters({"control_guidance_start": 0.2, "control_guidance_end": 0.3}, call, max_images=1)


LTX_VAE = {"patch_size": 4, "spatio_temporal_scaling": [True, True, True, False]}


@pytest.mark.parametrize(
    ("class_name", "configs", "multiple"),
    [
        ("SanaWMPipeline", {"transformer": {"patch_size": [1, 1, 1]}, "vae": {"spatial_compression_ratio": 32}}, 32),
        ("LTXLatentUpsamplePipeline", {"vae": LTX_VAE}, 32),
        ("ConsisIDPipeline", {"transformer": {"patch_size": 2}, "vae": {"block_out_channels": [1, 1, 1, 1]}}, 16),
        ("KandinskyImg2ImgCombinedPipeline", {"unet": {}}, 64),
        ("StableDiffusionXLAdapterPipeline", {"unet": {}}, 16),
        ("HeliosPyramidPipeline", {"vae": {"scale_factor_spatial": 8}, "transformer": {"patch_size": [1, 2, 2]}}, 64),
        ("LTX2DFRPipeline", {"vae": LTX_VAE}, 64),
    ],
)
def test_sides_are_multiples_of_what_the_parts_and_the_class_work_in(class_name, configs, multiple):
    assert size_bounds(model_of(class_name, **configs)).multiple == multiple


@pytest.mark.parametrize("patch", [0, -2, "2", [], [None], 5_000, True, {"a": 1}])
def test_a_strange_patch_changes_nothing(patch):
    model = model_of("SanaWMPipeline", transformer={"patch_size": patch}, vae={"spatial_compression_ratio": 32})
    assert size_bounds(model).multiple == 16


def test_what_only_two_steps_take_is_unset_for_others_and_refused_where_it_was_sent():
    call = model_of("SanaSprintPipeline", transformer={}, vae={}).call(Task.TEXT_TO_IMAGE)
    assert check_parameters({"num_inference_steps": 1}, call, max_images=1)["intermediate_timesteps"] is None
    assert check_parameters({"intermediate_timesteps": 1.2, "num_inference_steps": 2}, call, max_images=1)
    with pytest.raises(ParameterOutOfRange, match="is for two steps") as error:
        check_parameters({"intermediate_timesteps": 1.2, "num_inference_steps": 4}, call, max_images=1)
    assert error.value.field == "intermediate_timesteps"


_LENGTHENING = "SkyReelsV2DiffusionForcingVideoToVideoPipeline"  # it continues the last 17 frames of the sent video


@pytest.mark.parametrize(
    ("pipeline", "refused", "taken"),
    [
        ("PRXPipeline", {"guidance_scale": 0.9}, {"guidance_scale": 1}),
        ("KandinskyV22CombinedPipeline", {"prior_num_inference_steps": 1}, {"prior_num_inference_steps": 2}),
        ("LatentConsistencyModelPipeline", {"original_inference_steps": 0}, {"original_inference_steps": 50}),
        (
            "LatentConsistencyModelPipeline",
            {"original_inference_steps": 3, "num_inference_steps": 4},
            {"original_inference_steps": 4, "num_inference_steps": 4},
        ),
        ("LTXI2VLongMultiPromptPipeline", {"temporal_tile_size": 15}, {"temporal_tile_size": 16}),
        ("MochiPipeline", {"num_inference_steps": 1}, {"num_inference_steps": 2}),
        ("TextToVideoZeroPipeline", {"t1": 50, "num_inference_steps": 50}, {"t1": 49, "num_inference_steps": 50}),
        (_LENGTHENING, {"overlap_history": 0}, {"overlap_history": 1}),
        (_LENGTHENING, {"num_frames": 20}, {"num_frames": 21}),
        (_LENGTHENING, {"causal_block_size": 7, "num_frames": 21}, {"causal_block_size": 6, "num_frames": 21}),
        ("SkyReelsV2DiffusionForcingPipeline", {"causal_block_size": 0}, {"causal_block_size": 1}),
        ("MarigoldDepthPipeline", {"output_uncertainty": True}, {"output_uncertainty": True, "ensemble_size": 3}),
        ("LTX2HDRPipeline", {"stg_scale": 1}, {"stg_scale": 1, "spatio_temporal_guidance_blocks": [28]}),
        ("HunyuanVideoFramepackPipeline", {"latent_window_size": 0}, {"latent_window_size": 9}),
        (_LENGTHENING, {"num_frames": 5, "overlap_history": 5}, {"num_frames": 9, "overlap_history": 5}),
    ],
)
def test_what_a_class_fails_below_is_refused(pipeline, refused, taken):
    model = model_of(pipeline)
    call = model.call(model.tasks[0])
    with pytest.raises(ParameterOutOfRange, match=r"at least|at most|between|less than|beside it") as error:
        check_parameters(refused, call, max_images=1)
    assert error.value.field == next(iter(refused))
    assert taken.items() <= check_parameters(taken, call, max_images=1).items()


def test_the_registers_of_ltx2_are_filled_whole():
    call = model_of("LTX2Pipeline").call(Task.TEXT_TO_VIDEO)
    with pytest.raises(ParameterOutOfRange, match="multiple of 128") as error:
        check_parameters({"max_sequence_length": 200}, call, max_images=1)
    assert error.value.field == "max_sequence_length"
    assert check_parameters({"max_sequence_length": 256}, call, max_images=1)["max_sequence_length"] == 256


def test_a_default_that_names_a_step_which_is_not_there_is_told():
    call = model_of("TextToVideoZeroPipeline").call(Task.TEXT_TO_VIDEO)
    with pytest.raises(ParameterOutOfRange, match="less than num_inference_steps, 25") as error:
        check_parameters({"num_inference_steps": 25}, call, max_images=1)
    assert error.value.field == "t0"
    assert check_parameters({"num_inference_steps": 25, "t0": 22, "t1": 23}, call, max_images=1)
