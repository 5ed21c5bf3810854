"""What the environment makes of the registry, and what is checked before a worker takes jobs."""

import gc
from importlib import metadata

import pytest
from pydantic import SecretStr

from tests.store.conftest import write_pipeline
from worker.app import build
from worker.app.build import build_worker
from worker.app.fitness import check_device, check_volume
from worker.app.posture import library_warnings
from worker.app.registry import build_registry
from worker.app.settings import SettingsError, read_settings
from worker.app.stores import build_bucket, build_store
from worker.catalog.registry import RegistryError
from worker.core.turn import StopSignal
from worker.store.refs import parse_reference


def test_a_model_id_of_the_registry_becomes_the_default(settings):
    changed = settings.model_copy(update={"model_id": "small"})  # an alias of tiny
    assert build_registry(changed).find(changed.default_model_id).id == "tiny"


def test_a_model_id_outside_the_registry_is_served_without_editing_the_file(settings):
    changed = settings.model_copy(update={"model_id": "org/model", "model_revision": "v2"})
    spec = build_registry(changed).find("org/model")
    assert spec.source.reference == "org/model@v2"
    assert "org/model" not in build_registry(settings).models


def test_no_collection_of_garbage_looks_at_the_libraries(settings):
    try:
        build._settled(build._diffusers_engine(settings, {}))
        assert len(gc.get_objects()) < gc.get_freeze_count() / 10
    finally:
        gc.unfreeze()


def test_settings_of_a_fleet_are_warned_of_in_one_worker(settings, monkeypatch):
    monkeypatch.setenv("DIFFUSERS_A10G_TIMEOUT", "60")
    assert not [text for text in settings.warnings() if "DIFFUSERS_" in text]
    monkeypatch.setenv("DIFFUSERS_L40S_SCALEDOWN", "60")
    monkeypatch.setenv("DIFFUSERS_A10G_MAX_CONTAINERS", "2")
    (warning,) = [text for text in settings.warnings() if "DIFFUSERS_" in text]
    assert warning.startswith("DIFFUSERS_A10G_MAX_CONTAINERS and DIFFUSERS_L40S_SCALEDOWN")


def test_a_revision_pins_a_model_of_the_registry(settings):
    changed = settings.model_copy(update={"model_id": "video", "model_revision": "0" * 40})
    spec = build_registry(changed).find("video")
    assert spec.source.revision == "0" * 40
    assert spec.architecture == "cogvideox"


def test_loras_of_the_environment_belong_to_the_default_model(settings):
    changed = settings.model_copy(update={"loras": ("org/style#a.safetensors",)})
    registry = build_registry(changed)
    assert [lora.model for lora in registry.find("tiny").loras] == ["org/style#a.safetensors"]
    assert registry.find("tiny-xl").loras == ()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"default_model": "nosuch"}, "DEFAULT_MODEL 'nosuch'"),
        ({"model_id": "not a reference"}, "MODEL_ID"),
        ({"model_id": "urn:air:sdxl:lora:leonardo:1@2"}, "MODEL_ID"),
    ],
)
def test_what_cannot_be_served_is_named(settings, changes, said):
    with pytest.raises(SettingsError, match=said):
        build_registry(settings.model_copy(update=changes))


@pytest.mark.parametrize(
    ("name", "value"),
    [("MAX_IMAGES", "0"), ("WORKER_CONCURRENCY", "two"), ("DEVICE", "tpu"), ("TIMEOUT_SECONDS", "-1")],
)
def test_a_bad_variable_is_named_with_its_value(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name}: .*{value}"):
        read_settings()


def test_lists_are_comma_separated_and_empty_means_unset(monkeypatch):
    monkeypatch.setenv("ALLOWED_ORGS", " org-a, org-b ,")
    monkeypatch.setenv("MAX_IMAGES", "")
    read = read_settings()
    assert read.allowed_orgs == ("org-a", "org-b")
    assert read.max_images == 8


def test_every_loosened_default_is_said_at_start(settings):
    assert settings.warnings() == []
    loose = settings.model_copy(
        update={"allow_unregistered_models": True, "allow_private_urls": True, "bucket_name": "only-a-name"}
    )
    said = " ".join(loose.warnings())
    for name in ("ALLOW_UNREGISTERED_MODELS", "ALLOW_PRIVATE_URLS", "BUCKET_ENDPOINT_URL"):
        assert name in said


def test_a_token_for_an_endpoint_without_tls_is_said_at_start(settings):
    plain = settings.model_copy(update={"civitai_endpoint": "http://mirror.lan", "civitai_token": SecretStr("canary")})
    assert [warning for warning in plain.warnings() if "CIVITAI_TOKEN" in warning and "canary" not in warning]


def test_an_endpoint_that_is_no_url_stops_the_start(settings):
    with pytest.raises(SettingsError, match="CIVITAI_ENDPOINT"):
        build_worker(settings.model_copy(update={"civitai_endpoint": "civitai.com"}))


@pytest.mark.parametrize(
    "value", ["s3.amazonaws.com", "//s3.amazonaws.com", "s3://images", "https://", "localhost:9000"]
)
def test_an_endpoint_of_a_bucket_that_can_never_work_stops_the_start(monkeypatch, value):
    monkeypatch.setenv("BUCKET_ENDPOINT_URL", value)
    with pytest.raises(SettingsError, match=f"BUCKET_ENDPOINT_URL: .*https://.*{value}"):
        read_settings()


def test_a_buckets_region_is_the_operators_before_that_of_the_machine(monkeypatch):
    for name, value in {"BUCKET_ENDPOINT_URL": "https://a.example", "BUCKET_NAME": "images", "AWS_REGION": "eu-west-3",
                        "BUCKET_ACCESS_KEY_ID": "a", "BUCKET_SECRET_ACCESS_KEY": "b"}.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    assert build_bucket(read_settings())._connect().meta.region_name == "eu-west-3"
    monkeypatch.setenv("BUCKET_REGION", "fsn1")
    monkeypatch.setenv("BUCKET_ADDRESSING", "virtual")
    client = build_bucket(read_settings())._connect()
    assert (client.meta.region_name, client.meta.config.s3["addressing_style"]) == ("fsn1", "virtual")


def test_a_volume_that_cannot_be_written_is_unfit(settings, tmp_path):
    check_volume(settings)()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RuntimeError, match="VOLUME_DIR"):
        check_volume(settings.model_copy(update={"volume_dir": blocked}))()


def test_models_that_an_earlier_version_fetched_are_still_found(settings, tmp_path):
    snapshot = tmp_path / "volume" / "huggingface" / "hub" / "models--org--model" / "snapshots" / ("0" * 40)
    write_pipeline(snapshot)
    store = build_store(settings.model_copy(update={"volume_dir": tmp_path / "volume", "offline": True}))
    files = store.ensure(parse_reference("org/model"), None, pytest.fail, StopSignal(5))
    assert files.root == snapshot
    assert store.peek(parse_reference("org/model")).configs["model_index.json"]
    assert not (tmp_path / "volume" / "models").exists()


def test_a_cuda_device_that_should_be_there_is_asked(settings, monkeypatch):
    check_device(settings)()  # the CPU needs no driver

    def no_driver(name):
        raise OSError(name)

    monkeypatch.setattr("worker.app.fitness.ctypes.CDLL", no_driver)
    with pytest.raises(RuntimeError, match="No CUDA driver"):
        check_device(settings.model_copy(update={"device": "cuda"}))()


@pytest.mark.parametrize(("code", "devices", "fit"), [(0, 1, True), (0, 0, False), (802, 0, False)])
def test_the_drivers_answer_decides(settings, monkeypatch, code, devices, fit):
    class Driver:
        def cuInit(self, flags):  # noqa: N802
            return code

        def cuDeviceGetCount(self, pointer):  # noqa: N802
            pointer._obj.value = devices
            return 0

    monkeypatch.setattr("worker.app.fitness.ctypes.CDLL", lambda name: Driver())
    check = check_device(settings.model_copy(update={"device": "cuda"}))
    if fit:
        check()
    else:
        with pytest.raises(RuntimeError, match="CUDA driver answers"):
            check()


def test_a_missing_list_of_subjects_stops_the_start_with_its_line(settings, tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text("models:\n  tiny:\n    source: org/tiny\n    subjects: nowhere.txt\n")
    with pytest.raises(RegistryError, match=r"models\.yaml:4: nowhere\.txt cannot be read"):
        build_registry(settings.model_copy(update={"models_yaml": path}))


@pytest.mark.parametrize(
    ("torch", "torchvision", "warned"),
    [
        ("2.13.0+cpu", "0.28.0", True),
        ("2.13.0", "0.28.0+cpu", True),
        ("2.13.0+cpu", "0.28.0+cpu", False),
        ("2.13.0", "0.28.0", False),
        ("2.13.0+cpu", None, False),
    ],
)
def test_a_torchvision_of_another_build_is_said_at_start(monkeypatch, torch, torchvision, warned):
    def version(name):
        found = {"torch": torch, "torchvision": torchvision}[name]
        if found is None:
            raise metadata.PackageNotFoundError(name)
        return found

    monkeypatch.setattr("worker.app.posture._version_of", version)
    warnings = library_warnings()
    assert len(warnings) == warned
    assert all("uninstall torchvision" in text for text in warnings)
