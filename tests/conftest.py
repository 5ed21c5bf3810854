"""A clean environment, one torch thread, and tiny models built once for the whole run."""

import json
import logging
import os
from collections.abc import Generator
from pathlib import Path

import hypothesis
import pytest

os.environ["OMP_NUM_THREADS"] = "1"
# The Hub's client reads this when it is imported: no test may ever leave the machine.
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ["HF_HUB_DISABLE_XET"] = "1"
# One authority whose key is gone: no test leaves the machine, and a client reads the usual 140 for 30 ms each time.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).with_name("authority.pem"))
os.environ.pop("COLUMNS", None)  # a console that is made when its module is imported would keep this width

from tests.clock import clock as clock
from tests.watch import plugin as watch
from worker.app.build import Worker, build_worker
from worker.app.memory import settle
from worker.app.settings import Settings

# The same examples on every machine: a red run can be repeated.
hypothesis.settings.register_profile("repeatable", derandomize=True, database=None, deadline=None)
hypothesis.settings.load_profile("repeatable")

PROJECT = Path(__file__).resolve().parent.parent
_FOREIGN = ("RUNPOD_", "HF_", "BUCKET_", "DIFFUSERS_", "AWS_")


def pytest_configure(config: pytest.Config) -> None:
    """Have the whole run watched for what is private."""
    watch.begin(config)


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Have `make test` run a few rows of a long table, spread over it; the others are slow ones."""
    tables: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("quick_rows") and not item.get_closest_marker("slow"):
            tables.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for rows in tables.values():
        (count,) = rows[0].get_closest_marker("quick_rows").args
        quick = {len(rows) * number // count for number in range(count)}
        for number, item in enumerate(rows):
            if number not in quick:
                item.add_marker(pytest.mark.slow)


def pytest_collection_finish() -> None:
    """Leave what exists before the first test out of every search for garbage, as a worker does: half the time else."""
    settle()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No variable of the machine that runs the tests decides their outcome."""
    for name in list(os.environ):
        if name.upper().lower() in Settings.model_fields or name.startswith(_FOREIGN):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HF_HUB_DISABLE_XET", "1")
    # A trial's process imports the libraries once more. The tests of trials have it on.
    monkeypatch.setenv("TRIAL_LOADS", "off")


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a models.yaml, tiny random pipelines and LoRAs that fit them."""
    # The process that hands the tests to others imports this file too, and needs neither torch nor diffusers.
    from tests import builders, single_files

    root = tmp_path_factory.mktemp("zoo")
    models = root / "models"
    models.mkdir()
    sd1 = builders.tiny_sd1(models / "sd1")
    builders.tiny_sdxl(models / "sdxl")
    builders.tiny_pix2pix(models / "pix2pix")
    builders.tiny_sd3(models / "sd3")
    builders.tiny_flux(models / "flux")
    single_files.single_file(sd1, models / "sd1.safetensors")
    builders.lora_for(sd1, models / "lora.safetensors", dialect="diffusers", seed=5)
    builders.lora_for(sd1, models / "kohya.safetensors", dialect="kohya", seed=6)
    (root / "models.yaml").write_text(
        json.dumps(
            {
                "models": {
                    "tiny": {
                        "source": "file:models/sd1",
                        "aliases": ["small"],
                        "tasks": ["text-to-image", "image-to-image"],
                        "defaults": {"num_inference_steps": 3},
                    },
                    "tiny-xl": {"source": "file:models/sdxl", "defaults": {"num_inference_steps": 3}},
                    "tiny-sd3": {"source": "file:models/sd3", "defaults": {"num_inference_steps": 3}},
                    "tiny-flux": {
                        "source": "file:models/flux",
                        "defaults": {"num_inference_steps": 3, "width": 64, "height": 64},
                    },
                    "tiny-edit": {"source": "file:models/pix2pix", "defaults": {"num_inference_steps": 3}},
                    "tiny-file": {
                        "source": "file:models/sd1.safetensors",
                        "architecture": "sd1",
                        "config": "models/sd1",
                        "defaults": {"num_inference_steps": 3, "width": 64, "height": 64},
                        "limits": {"max_side": 256},
                    },
                    "stabilityai/stable-diffusion-xl-base-1.0": {"architecture": "sdxl", "tasks": ["text-to-image"]},
                    "video": {"source": "org/video", "architecture": "cogvideox", "tasks": ["text-to-video"]},
                }
            }
        )
    )
    return root


@pytest.fixture
def settings(zoo: Path, tmp_path: Path) -> Settings:
    """Settings of a worker that serves the zoo."""
    return Settings(
        models_yaml=zoo / "models.yaml",
        default_model="tiny",
        volume_dir=tmp_path / "volume",
        outputs_dir=tmp_path / "outputs",
        device="cpu",
        timeout_seconds=120,
        warm_up=False,
    )


@pytest.fixture
def worker(settings: Settings) -> Worker:
    """A worker with a real engine, built on first use."""
    return build_worker(settings)


@pytest.fixture(autouse=True)
def _heard() -> Generator[None]:
    """What one test silences the next one hears again."""
    yield
    logging.getLogger("worker").setLevel(logging.NOTSET)
    logging.disable(logging.NOTSET)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Half a surrogate pair in what a test logged must not break the pipe between two test processes."""
    report = yield
    report.sections = [(name, text.encode("utf-8", "replace").decode()) for name, text in report.sections]
    return report
