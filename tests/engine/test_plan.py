"""How a model is put on a device: numbers in, a plan or a refusal out; no torch."""

from dataclasses import replace
from pathlib import Path

import pytest

from worker.catalog.call import Model
from worker.catalog.families.row import FEW_STEP_SCHEDULERS
from worker.core.device import DeviceInfo
from worker.core.errors import OutOfMemory
from worker.core.model import Detection, Kind, ModelFiles, ModelSource, ModelSpec
from worker.engine.machine import only_cpu
from worker.engine.plan import GIB, make_plan, resident_key

# SDXL in half precision: UNet 4.8 GiB, text encoders 0.2 and 1.3, VAE 0.2.
SDXL = {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863}


def plan(
    device,
    gib,
    *,
    dtype=None,
    parameters=None,
    minimum=None,
    total=None,
    prediction=None,
    root=Path("m"),
    packed=None,
    total_bytes=0,
    variant=None,
):
    spec = ModelSpec(id="m", source=ModelSource(scheme="hf", locator="a/m"), dtype=dtype, min_vram_gb=minimum)
    files = ModelFiles(root, total_bytes, parameters=SDXL if parameters is None else parameters, packed=packed or {})
    found = Detection(
        Kind.PIPELINE,
        "diffusers",
        "sdxl",
        "StableDiffusionXLPipeline",
        prediction_type=prediction,
        variant=variant,
        few_steps=FEW_STEP_SCHEDULERS.get(variant or ""),
    )
    info = DeviceInfo(device, "a device", int((total or gib) * GIB), int(gib * GIB))
    return make_plan(Model(spec, found), files, info, megapixels=1.0)


@pytest.mark.parametrize(
    ("gib", "offload"), [(80, "none"), (24, "none"), (10, "none"), (8, "model"), (3, "sequential")]
)
def test_offloading_follows_the_free_memory(gib, offload):
    assert plan("cuda", gib, dtype="float16").offload == offload


def test_what_cannot_fit_is_refused_with_numbers():
    with pytest.raises(OutOfMemory, match=r"needs 2\.8 GiB .* has 2\.0 GiB"):
        plan("cuda", 2, dtype="float16")


def test_a_cpu_does_not_offload_and_needs_float32():
    assert plan("cpu", 20).dtype == "float32"
    assert plan("cpu", 20).offload == "none"
    assert plan("cpu", 20).weight_bytes == 4 * sum(SDXL.values())
    with pytest.raises(OutOfMemory):
        plan("cpu", 12)


@pytest.mark.parametrize(
    ("device", "wanted", "got"),
    [
        ("cuda", "float16", "float16"),
        ("cuda", None, "bfloat16"),
        ("cuda", "float32", "float32"),
        ("mps", "bfloat16", "float16"),
        ("cpu", "bfloat16", "float32"),
    ],
)
def test_the_dtype_is_the_models_where_the_device_can(device, wanted, got):
    assert plan(device, 80, dtype=wanted).dtype == got


def test_a_gpu_below_the_models_minimum_is_refused():
    with pytest.raises(OutOfMemory, match="min_vram_gb"):
        plan("cuda", 20, total=24, minimum=40)
    assert plan("cuda", 40, total=40, minimum=40).offload == "none"


def test_a_single_files_own_words_go_to_the_scheduler(tmp_path):
    file = tmp_path / "m.safetensors"
    file.write_bytes(b"")
    assert plan("cuda", 80, root=file, prediction="v_prediction").scheduler_options == {
        "prediction_type": "v_prediction"
    }
    assert plan("cuda", 80, prediction="v_prediction").scheduler_options == {}


def test_a_playground_or_cosxl_file_gets_the_scheduler_that_it_was_trained_for(tmp_path):
    file = tmp_path / "m.safetensors"
    file.write_bytes(b"")
    made = plan("cuda", 80, root=file, prediction="edm")
    assert (made.scheduler, made.scheduler_options["sigma_max"]) == ("EDMDPMSolverMultistepScheduler", 80.0)
    made = plan("cuda", 80, root=file, prediction="edm_v_prediction")
    assert (made.scheduler, made.scheduler_options["prediction_type"]) == ("EDMEulerScheduler", "v_prediction")
    assert plan("cuda", 80, root=file, prediction="epsilon").scheduler is None


@pytest.mark.parametrize(
    ("variant", "scheduler", "spacing"),
    [
        ("turbo", "EulerAncestralDiscreteScheduler", "trailing"),
        ("lightning", "EulerDiscreteScheduler", "trailing"),
        ("hyper", "DDIMScheduler", "trailing"),
        ("lcm", "LCMScheduler", None),
        ("pony", None, None),
    ],
)
def test_a_file_of_few_steps_gets_the_scheduler_of_its_authors(tmp_path, variant, scheduler, spacing):
    file = tmp_path / "m.safetensors"
    file.write_bytes(b"")
    made = plan("cuda", 80, root=file, variant=variant)
    assert (made.scheduler, made.scheduler_options.get("timestep_spacing")) == (scheduler, spacing)
    assert plan("cuda", 80, variant=variant).scheduler is None, "a repository has a config of its own"
    assert plan("cuda", 80, root=file, variant=variant, prediction="v_prediction").scheduler_options["prediction_type"]


def test_the_format_is_the_files(tmp_path):
    for name, container in (("m.gguf", "gguf"), ("m.safetensors", "safetensors")):
        (tmp_path / name).write_bytes(b"")
        assert plan("cuda", 80, root=tmp_path / name).format == container
    assert plan("cuda", 80).format == "diffusers"


def test_what_stays_quantized_needs_what_it_is_stored_in():
    packed = plan("cuda", 80, dtype="bfloat16", parameters={"vae": 100}, packed={"model": 7_000})
    assert packed.weight_bytes == 2 * 100 + 7_000
    partly = plan("cuda", 80, dtype="bfloat16", parameters={"vae": 100, "model": 50}, packed={"model": 7_000})
    assert partly.weight_bytes == 2 * (100 + 50) + 7_000


def test_unseen_weights_double_where_the_device_computes_in_full_precision():
    stored = 4 * 10**9
    assert plan("cuda", 80, parameters={}, total_bytes=stored).weight_bytes == stored
    assert plan("cpu", 80, parameters={}, total_bytes=stored).weight_bytes == 2 * stored


@pytest.mark.parametrize(
    "change",
    [
        {"base": Path("b")},
        {"parts": {"vae": Path("v")}},
        {"root": Path("n")},
        {"variant": "fp16"},
        {"config": Path("c")},
    ],
)
def test_whatever_changes_the_weights_changes_what_is_resident(change):
    spec = ModelSpec(id="m", source=ModelSource(scheme="hf", locator="a/m"))
    files = ModelFiles(Path("m"), 0)
    assert resident_key(spec, files) != resident_key(spec, replace(files, **change))
    assert resident_key(spec, files) == resident_key(spec.model_copy(update={"id": "n"}), files)
    for other in ({"dtype": "float16"}, {"prediction_type": "epsilon"}, {"config": "c"}, {"pipeline": "XPipeline"}):
        assert resident_key(spec, files) != resident_key(spec.model_copy(update=other), files)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_small_model_of_a_large_family_needs_little(device):
    small = {name: count // 1_000 for name, count in SDXL.items()}
    assert plan(device, 2, parameters=small).estimated_bytes < 1 * GIB
    assert plan(device, 80).estimated_bytes > sum(SDXL.values()) * 2 + 2 * GIB  # the family's own figure at full size


def test_a_controlnet_counts_beside_the_model_however_that_is_offloaded():
    spec = ModelSpec(id="m", source=ModelSource(scheme="hf", locator="a/m"))
    files = ModelFiles(Path("m"), 0, parameters=SDXL)
    found = Detection(Kind.PIPELINE, "diffusers", "sdxl", "StableDiffusionXLPipeline")

    def planned(free, beside):
        device = DeviceInfo("cuda", "GPU", 80 * GIB, int(free * GIB))
        return make_plan(Model(spec, found), files, device, megapixels=1.0, beside_bytes=int(beside * GIB))

    alone = planned(80, 0).estimated_bytes
    assert planned(80, 2.5).estimated_bytes - alone == int(2.5 * GIB)
    free = alone / GIB + 0.1
    assert (planned(free, 0).offload, planned(free, 1).offload) == ("none", "model")


def test_a_machine_without_a_gpus_driver_has_a_cpu_only_and_one_with_it_is_asked(tmp_path):
    driver = tmp_path / "nvidiactl"
    drivers = (str(driver),)
    assert only_cpu("auto", drivers, "linux")
    assert not only_cpu("cuda", drivers, "linux")
    assert not only_cpu("auto", drivers, "darwin")  # which may have Metal
    driver.touch()
    assert not only_cpu("auto", drivers, "linux")
    assert only_cpu("cpu", drivers, "linux")
