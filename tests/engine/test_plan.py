"""How a model is put on a device: numbers in, a plan or a refusal out; no torch."""

from dataclasses import replace
from pathlib import Path

import pytest

from worker.catalog.call import Model
from worker.catalog.families.row import FEW_STEP_SCHEDULERS
from worker.core import precision as precisions
from worker.core.device import DeviceInfo
from worker.core.errors import OutOfMemory, UnsupportedModel
from worker.core.model import Detection, Kind, ModelFiles, ModelSource, ModelSpec
from worker.core.precision import Reducible
from worker.engine.machine import only_cpu
from worker.engine.plan import GIB, make_plan, resident_key

# SDXL in half precision: UNet 4.8 GiB, text encoders 0.2 and 1.3, VAE 0.2.
SDXL = {"unet": 2_567_463_684, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840, "vae": 83_653_863}

REDUCIBLE = {
    "unet": Reducible(2_000_000_000, 400_000_000),
    "text_encoder": Reducible(80_000_000),
    "text_encoder_2": Reducible(600_000_000),
}


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
    precision=None,
    held=0,
):
    source = ModelSource(scheme="hf", locator="a/m")
    spec = ModelSpec(id="m", source=source, dtype=dtype, min_vram_gb=minimum, precision=precision)
    files = ModelFiles(
        root,
        total_bytes,
        parameters=SDXL if parameters is None else parameters,
        packed=packed or {},
        reducible=REDUCIBLE if parameters is None else {},
    )
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
    return make_plan(Model(spec, found), files, info, megapixels=1.0, held_bytes=held)


@pytest.mark.parametrize(
    ("gib", "offload"), [(80, "none"), (24, "none"), (10, "none"), (8.7, "group"), (8, "model"), (3, "sequential")]
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
        ("mps", None, "float16"),
        ("cpu", "bfloat16", "float32"),
    ],
)
def test_the_dtype_is_the_models_where_the_device_can(device, wanted, got):
    assert plan(device, 80, dtype=wanted).dtype == got


@pytest.fixture
def bare(monkeypatch):
    """Nothing but what comes with the worker is installed."""
    monkeypatch.setattr(precisions, "find_spec", lambda package: None)


@pytest.fixture
def equipped(monkeypatch):
    """All packages that hold weights are installed."""
    monkeypatch.setattr(precisions, "find_spec", lambda package: package)


WHOLE = sum(SDXL.values())
MATRICES = sum(each.matrices for each in REDUCIBLE.values())


@pytest.mark.parametrize(
    ("asked", "held", "quantizer", "weights"),
    [
        (None, "fp16", None, 2 * WHOLE),
        ("fp32", "fp32", None, 4 * WHOLE),
        ("fp8", "fp8", "casting", 2 * WHOLE - (MATRICES + 400_000_000)),  # convolutions too
        ("int8", "int8", "gguf", 2 * WHOLE - MATRICES + MATRICES // 16),
        ("4bit", "4bit", "gguf", 2 * WHOLE - 2 * MATRICES + 5 * MATRICES // 8),
        ("auto", "fp16", None, 2 * WHOLE),
    ],
)
def test_a_precision_is_counted_in_its_own_bytes(bare, asked, held, quantizer, weights):
    made = plan("cuda", 80, dtype="float16", precision=asked)
    assert (made.precision, made.quantizer, made.offload) == (held, quantizer, "none")
    assert made.weight_bytes == weights
    assert made.dtype == ("float32" if asked == "fp32" else "float16")


@pytest.mark.parametrize(
    ("asked", "quantizer"),
    [("int8", "torchao"), ("8bit", "bitsandbytes"), ("4bit", "bitsandbytes"), ("fp8", "casting")],
)
def test_what_is_installed_holds_the_weights_on_a_gpu_and_ours_where_they_are_offloaded(equipped, asked, quantizer):
    assert plan("cuda", 80, precision=asked).quantizer == quantizer
    offloaded = plan("cuda", 6 if asked != "4bit" else 5.4, precision=asked)
    assert (offloaded.offload, offloaded.quantizer) == ("model", "casting" if asked == "fp8" else "gguf")


def test_auto_takes_the_nearest_that_fits_and_offloads_only_what_none_fits(bare):
    made = {gib: plan("cuda", gib, dtype="float16", precision="auto") for gib in (10, 8, 6, 3)}
    assert [(each.precision, each.offload) for each in made.values()] == [
        ("fp16", "none"), ("fp8", "none"), ("4bit", "none"), ("fp16", "sequential")
    ]  # fmt: skip
    assert made[8].reasons[1] == "weights in fp8 by casting, since all at once is too large"


def test_what_a_device_does_not_have_is_refused_with_what_it_has(bare):
    with pytest.raises(UnsupportedModel, match=r"precision fp8 .* Apple's GPUs; use fp16, int8 or 4bit") as refused:
        plan("mps", 80, precision="fp8")
    assert refused.value.field == "precision"
    assert plan("mps", 80, precision="4bit").quantizer == "gguf"
    assert plan("cpu", 80, precision="bf16").dtype == "bfloat16"


def test_two_precisions_are_two_residents():
    spec = ModelSpec(id="m", source=ModelSource(scheme="hf", locator="a/m"))
    files = ModelFiles(Path("m"), 1)
    keys = {resident_key(spec.model_copy(update={"precision": asked}), files) for asked in (None, "fp8", "int8")}
    assert len(keys) == 3


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
    offloads = [planned(free, beside).offload for beside in (0, 0.5, 1.5)]
    assert offloads == ["none", "group", "model"]


def test_a_machine_without_a_gpus_driver_has_a_cpu_only_and_one_with_it_is_asked(tmp_path):
    driver = tmp_path / "nvidiactl"
    drivers = (str(driver),)
    assert only_cpu("auto", drivers, "linux")
    assert not only_cpu("cuda", drivers, "linux")
    assert not only_cpu("auto", drivers, "darwin")  # which may have Metal
    driver.touch()
    assert not only_cpu("auto", drivers, "linux")
    assert only_cpu("cpu", drivers, "linux")
