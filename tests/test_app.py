"""What the environment makes of the registry, and what is checked before a worker takes jobs."""

import pytest

from worker.app import build_registry, check_device, check_volume
from worker.catalog.registry import RegistryError
from worker.settings import SettingsError, read_settings


def test_a_model_id_of_the_registry_becomes_the_default(settings):
    changed = settings.model_copy(update={"model_id": "small"})  # an alias of tiny
    assert build_registry(changed).find(changed.default_model_id).id == "tiny"


def test_a_model_id_outside_the_registry_is_served_without_editing_the_file(settings):
    changed = settings.model_copy(update={"model_id": "org/model", "model_revision": "v2"})
    spec = build_registry(changed).find("org/model")
    assert spec.source.reference == "org/model@v2"
    assert "org/model" not in build_registry(settings).models


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
        ({"model_id": "civitai:123"}, "MODEL_ID"),
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


def test_a_volume_that_cannot_be_written_is_unfit(settings, tmp_path):
    check_volume(settings)()
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(RuntimeError, match="VOLUME_DIR"):
        check_volume(settings.model_copy(update={"volume_dir": blocked}))()


def test_a_cuda_device_that_should_be_there_is_asked(settings, monkeypatch):
    check_device(settings)()  # the CPU needs no driver

    def no_driver(name):
        raise OSError(name)

    monkeypatch.setattr("worker.app.ctypes.CDLL", no_driver)
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

    monkeypatch.setattr("worker.app.ctypes.CDLL", lambda name: Driver())
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
