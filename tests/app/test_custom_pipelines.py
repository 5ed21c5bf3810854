"""A pipeline class of the operator's own: served by its signature, and never one that others can change."""

import shutil

import numpy as np
import pytest

from tests.asking import perform
from tests.conftest import PROJECT
from tests.images import pixels
from worker.app.build import build_worker
from worker.app.custom_pipelines import custom_pipelines
from worker.app.registry import build_registry
from worker.app.settings import Settings, SettingsError
from worker.catalog.classes.custom import serve_custom
from worker.catalog.classes.signatures import call_parameters
from worker.core.errors import LoadFailed, UnsupportedModel

EXAMPLE = PROJECT / "docs/examples/custom_pipelines/negative.py"
MODELS = """
models:
  demo: {source: file:models/demo, architecture: sd1, tasks: [text-to-image]}
  negative: {source: file:models/demo, architecture: sd1, tasks: [text-to-image], pipeline: NegativePipeline}
"""


@pytest.fixture(autouse=True)
def _without_afterwards():
    yield
    serve_custom({})


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pipelines"
    folder.mkdir(mode=0o755)
    shutil.copyfile(EXAMPLE, folder / "negative.py")
    (folder / "negative.py").chmod(0o644)
    return folder


@pytest.fixture
def settings(tmp_path, folder):
    (tmp_path / "models").symlink_to(PROJECT / "models")
    (tmp_path / "models.yaml").write_text(MODELS)
    return Settings(
        models_yaml=tmp_path / "models.yaml",
        volume_dir=tmp_path / "volume",
        allowed_model_dirs=(PROJECT / "models",),
        device="cpu",
        custom_pipelines=folder,
    )


async def test_its_schema_is_that_of_its_signature_and_the_start_warns_of_it(settings):
    worker = build_worker(settings)
    schema = await perform(worker, {"action": "schema", "model": "negative"})
    inversion = schema["properties"]["inversion"]
    assert (inversion["default"], inversion["type"]) == (1.0, ["number", "null"])
    assert "eta" not in schema["properties"]  # which only its parent's call takes
    (warning,) = [sentence for sentence in settings.warnings() if "CUSTOM_PIPELINES" in sentence]
    assert "with all of its rights" in warning
    build_registry(settings.model_copy(update={"custom_pipelines": None, "models_yaml": PROJECT / "models.yaml"}))
    assert call_parameters("NegativePipeline") is None


@pytest.mark.slow
async def test_it_generates(settings):
    worker = build_worker(settings)
    request = {"prompt": "a red apple", "seed": 7, "width": 64, "height": 64}
    request |= {"num_inference_steps": 4, "guidance_scale": 2.5}
    plain = pixels(await perform(worker, {**request, "model": "demo"})).astype(int)
    negative = pixels(await perform(worker, {**request, "model": "negative"})).astype(int)
    assert np.abs(255 - negative - plain).max() <= 1
    same = pixels(await perform(worker, {**request, "model": "negative", "inversion": 0})).astype(int)
    assert np.abs(same - plain).max() <= 1


async def test_without_the_folder_the_class_is_unknown(settings):
    worker = build_worker(settings.model_copy(update={"custom_pipelines": None}))
    with pytest.raises(UnsupportedModel, match="NegativePipeline, which negative needs, is not in the installed diff"):
        await perform(worker, {"model": "negative", "prompt": "x"})


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("others may write the file", r"negative\.py can be changed by other users; run chmod go-w"),
        ("others may write the folder", r"pipelines can be changed by other users"),
        ("others may write a folder above", r"can be changed by other users"),
        ("a link", r"negative\.py is a link"),
        ("no Python", r"negative\.py:2: is not valid Python"),
        ("a name of diffusers", r"negative\.py:1: StableDiffusionPipeline is a class of diffusers; name yours"),
        ("twice", r"second\.py:\d+: NegativePipeline is defined in negative\.py, too"),
        ("none", r"defines no class whose name holds Pipeline"),
        ("no folder", r"is no folder"),
    ],
)
def test_what_others_can_change_and_what_cannot_work_stops_the_start(settings, folder, tmp_path, fault, said):
    file = folder / "negative.py"
    match fault:
        case "others may write the file":
            file.chmod(0o666)
        case "others may write the folder":
            folder.chmod(0o777)
        case "others may write a folder above":
            tmp_path.chmod(0o770)
        case "a link":
            file.rename(tmp_path / "elsewhere.py")
            file.symlink_to(tmp_path / "elsewhere.py")
        case "no Python":
            file.write_text("class APipeline:\n  def (:\n")
        case "a name of diffusers":
            file.write_text("class StableDiffusionPipeline:\n    pass\n")
        case "twice":
            shutil.copy(file, folder / "second.py")
        case "none":
            file.write_text("def pipeline():\n    pass\n")
        case "no folder":
            settings = settings.model_copy(update={"custom_pipelines": tmp_path / "none"})
    with pytest.raises(SettingsError, match=f"^CUSTOM_PIPELINES: .*{said}"):
        build_registry(settings)


def test_a_file_of_another_user_is_refused(settings, folder, monkeypatch):
    monkeypatch.setattr("os.getuid", lambda: 12_345)
    if folder.stat().st_uid == 0:
        assert custom_pipelines(settings)
        monkeypatch.setattr("worker.app.custom_pipelines.ROOT", -1)
    with pytest.raises(SettingsError, match="belongs to another user; it must be this one's, or root's"):
        custom_pipelines(settings)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import nowhere\nclass NegativePipeline:\n    pass\n", r"cannot be imported \(ModuleNotFoundError\)"),
        (
            "class NegativePipeline:\n    def __call__(self, prompt: str): ...\n",
            "NegativePipeline is no pipeline of diffusers",
        ),
    ],
)
async def test_a_broken_one_fails_its_own_model_alone(settings, folder, text, said):
    (folder / "negative.py").write_text(text)
    worker = build_worker(settings)
    with pytest.raises((LoadFailed, UnsupportedModel), match=said):
        await perform(worker, {"model": "negative", "prompt": "x"})
    small = {"model": "demo", "prompt": "x", "num_inference_steps": 1, "width": 64, "height": 64}
    assert (await perform(worker, small))["model"] == "demo"
