"""`python -m worker`: what each command prints, and that every failure is one sentence and exit code 1."""

import json
import logging
import random
import subprocess
import sys

import pytest
from PIL import Image
from typer.testing import CliRunner

from tests.catalog.corpus import sparse_file, stored
from tests.conftest import PROJECT
from tests.fakes.engine import Builder, FakeEngine, shelf
from worker.app import build as composition
from worker.app.cli import commands as cli
from worker.app.cli import terminal
from worker.core.image import Raster


@pytest.fixture
def builder(monkeypatch):
    """The engine of every worker that a command builds."""
    found = Builder(FakeEngine())
    build = composition.build_worker
    monkeypatch.setattr(terminal, "build_worker", lambda settings: build(settings, build_engine=found))
    yield found
    logging.disable(logging.NOTSET)  # commands keep the libraries quiet, for good: they are processes of their own


@pytest.fixture
def run(builder, tmp_path, monkeypatch):
    """Runs a command on the shelf in a narrow terminal's place, as a pipe."""
    monkeypatch.setenv("MODELS_YAML", str(shelf(tmp_path)))
    monkeypatch.setenv("DEFAULT_MODEL", "tiny")
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("OUTPUTS_DIR", str(tmp_path / "outputs"))
    monkeypatch.setenv("OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *arguments: runner.invoke(cli.app, [*map(str, arguments)])


def failed(result):
    """The one sentence of a command that failed."""
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def size_of(path):
    with Image.open(path) as image:
        return image.size


def test_run_saves_the_images_and_prints_where(run, tmp_path):
    result = run("run", "A red Apple", "--seed", 3, "-p", "num_images=2", "-p", "steps=4", "-p", "sampler=euler_a")
    assert result.exit_code == 0, result.output
    paths = [tmp_path / "outputs" / f"a-red-apple-{seed}.png" for seed in (3, 4)]
    assert result.stdout.splitlines() == [str(path) for path in paths]
    assert size_of(paths[0]) == (64, 64)


def test_run_never_overwrites_and_takes_a_folder(run, tmp_path):
    for _ in range(2):
        assert run("run", "x", "--seed", 1, "-o", tmp_path / "mine").exit_code == 0
    assert len([*(tmp_path / "mine").glob("*.png")]) == 2


def test_run_starts_from_an_image(run, builder, tmp_path):
    Image.new("RGB", (64, 32), "red").save(tmp_path / "in.png")
    assert run("run", "x", "--image", tmp_path / "in.png", "-p", "strength=0.5").exit_code == 0
    assert builder.engine.ran[0].call.task == "image-to-image"
    assert (builder.engine.ran[0].image.width, builder.engine.ran[0].image.height) == (64, 32)


def test_run_keeps_large_images_as_they_are(run, builder, monkeypatch):
    monkeypatch.setenv("MAX_RESPONSE_MB", "0.011")
    builder.engine.pixels = lambda job, seed: Raster("RGB", 64, 64, random.Random(seed).randbytes(64 * 64 * 3))
    result = run("run", "x", "-p", "num_images=8")
    assert result.exit_code == 0
    assert all(line.endswith(".png") for line in result.stdout.splitlines())
    assert "warning" not in result.stderr


def test_models_lists_every_model(run):
    result = run("models")
    assert result.exit_code == 0
    for name in ("tiny", "small", "org/sdxl", "not yet"):
        assert name in result.stdout


@pytest.mark.parametrize(
    ("command", "key", "value"), [("inspect", "architecture", "sd1"), ("plan", "device", "Fake GPU")]
)
def test_inspect_and_plan_print_json(run, command, key, value):
    result = run(command, "small")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)[key] == value


def test_inspect_takes_a_file_that_the_registry_does_not_have(run, builder, tmp_path):
    path = sparse_file(tmp_path / "models/sdxl.safetensors", stored("sdxl"))
    result = run("inspect", f"file:{path}")
    assert json.loads(result.stdout)["architecture"] == "sdxl"
    assert builder.built == 0


def test_schema_prints_json_schema(run):
    schema = json.loads(run("schema").stdout)
    assert schema["title"] == "A request for tiny"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("run", "x", "-p", "widht=64"), "did you mean width?"),
        (("run", "x", "-p", "width=63"), "nearest: 64"),
        (("run", "x", "-p", "nonsense"), "is not name=value"),
        (("run", "x", "-m", "video"), "video is not in the cache"),
        (("run", "x", "-m", "org/sdxl"), "unset OFFLINE"),
        (("run", "x", "--lora", "[/nothing]"), "[/nothing]"),
        (("inspect", "no such model"), "is not in models.yaml"),
        (("plan", "/etc"), "ALLOWED_MODEL_DIRS"),
        (("schema", "nothing"), "nothing"),
        (("cache", "rm", "org/none"), "is not in the cache"),
    ],
)
def test_a_failure_is_one_sentence(run, builder, arguments, said):
    assert said in failed(run(*arguments))
    assert builder.built == 0


def test_a_bad_setting_is_one_sentence(run, monkeypatch):
    monkeypatch.setenv("MAX_IMAGES", "many")
    assert "MAX_IMAGES" in failed(run("models"))
    assert "MAX_IMAGES" in failed(run("cache", "ls"))


def test_a_bad_registry_is_one_sentence_with_file_and_line(run, tmp_path):
    (tmp_path / "models.yaml").write_text("models:\n  a:\n    tsaks: []\n")
    assert "models.yaml:3" in failed(run("run", "x"))


def test_without_arguments_it_explains_itself(run):
    result = run()
    for command in ("run", "inspect", "plan", "schema", "models", "cache"):
        assert command in result.output


def test_it_runs_as_a_module_and_draws_with_the_real_engine(zoo, tmp_path):
    env = {
        **{"MODELS_YAML": str(zoo / "models.yaml"), "DEFAULT_MODEL": "tiny", "VOLUME_DIR": str(tmp_path / "volume")},
        **{"DEVICE": "cpu", "PYTHONPATH": str(PROJECT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    }
    command = [sys.executable, "-m", "worker", "run", "a red apple", "--seed", "1"]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "outputs/a-red-apple-1.png\n"
    assert size_of(tmp_path / "outputs/a-red-apple-1.png") == (64, 64)
    assert "Traceback" not in result.stderr
