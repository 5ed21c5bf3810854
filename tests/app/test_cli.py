"""`python -m worker`: what each command prints, and that every failure is one sentence and exit code 1."""

import base64
import json
import os
import random
import shutil
import subprocess
import sys

import pytest
from PIL import Image

from tests.app.commands import failed, invoke, said
from tests.catalog.corpus import sparse_file, stored
from tests.conftest import PROJECT
from tests.fakes.engine import TRACED, Builder, FakeEngine, shelf
from tests.waiting import until
from worker.app import build as composition
from worker.app.cli import commands
from worker.app.cli.files import TypedFiles
from worker.app.cli.run import read_fields
from worker.core.image import Raster


@pytest.fixture
def builder(monkeypatch):
    """The engine of every worker that a command builds."""
    found = Builder(FakeEngine())
    build = composition.build_worker
    monkeypatch.setattr(composition, "build_worker", lambda settings: build(settings, build_engine=found))
    return found


@pytest.fixture
def run(builder, tmp_path, monkeypatch):
    """Runs a command on the shelf in the place of an operator's folder, as a pipe."""
    monkeypatch.setenv("MODELS_YAML", str(shelf(tmp_path)))
    monkeypatch.setenv("DEFAULT_MODEL", "tiny")
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.setenv("OUTPUTS_DIR", str(tmp_path / "outputs"))
    monkeypatch.setenv("OFFLINE", "1")
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return invoke


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


@pytest.mark.parametrize(("name", "kind"), [("a.png", "PNG"), ("b.JPG", "JPEG"), ("new/c.webp", "WEBP")])
def test_run_writes_the_file_that_is_named_in_its_format(run, tmp_path, name, kind):
    for seed in (1, 2):  # the second takes the place of the first
        assert said(run("run", "x", "--seed", seed, "-o", name)) == f"{name}\n"
    with Image.open(tmp_path / name) as image:
        assert image.format == kind
        assert image.getpixel((0, 0))[0] == pytest.approx(2, abs=2)
    assert [path.name for path in (tmp_path / name).parent.glob("*.part")] == []


def test_a_prompt_may_begin_with_a_dash(run, builder):
    said(run("run", "--seed", 1, "--", "-x marks the spot"))
    assert builder.engine.ran[0].prompt == "-x marks the spot"


def test_a_reader_that_has_had_enough_is_no_failure_to_speak_of(tmp_path):
    script = "import sys; from worker.app.cli.commands import main; sys.exit(main(['keys', 'new', 'anna']))"
    near, far = os.pipe()
    os.close(near)
    ran = subprocess.run([sys.executable, "-c", script], stdout=far, stderr=subprocess.PIPE, cwd=PROJECT, check=False)
    os.close(far)
    assert (ran.returncode, ran.stderr) == (1, b"")


def test_several_images_for_one_file_are_numbered(run, tmp_path):
    assert said(run("run", "x", "-n", 3, "-o", "a.png")).split() == ["a.png", "a-2.png", "a-3.png"]
    assert (tmp_path / "a-3.png").is_file()


def test_options_are_the_fields_of_a_request(run, builder, tmp_path):
    words = ("--size", "96x64", "--steps", 4, "--guidance", "3.5", "--negative", "blur", "--scheduler", "euler")
    assert said(run("run", "x", "-n", 2, "--seed", 9, "--format", "jpg", *words)).count(".jpg") == 2
    (job,) = builder.engine.ran
    assert job.request.num_images == 2
    assert job.negative_prompt == "blur"
    assert job.seeds == (9, 10)
    assert job.scheduler.name == "EulerDiscreteScheduler"
    assert {"width": 96, "height": 64, "num_inference_steps": 4, "guidance_scale": 3.5}.items() <= job.params.items()


def test_a_profile_is_saved_and_shown_beside_the_result(run, tmp_path):
    result = run("run", "x", "--seed", 1, "--profile", "slow.json.gz")
    assert result.stdout.splitlines() == ["slow.json.gz", str(tmp_path / "outputs/x-1.png")]
    assert (tmp_path / "slow.json.gz").read_bytes() == TRACED.trace
    assert ["aten::mm", "21", "1.2", "0.5"] in [line.split() for line in result.stderr.splitlines()]
    assert run("run", "x", "-q", "--profile", "slow.json.gz").stderr == ""
    answer = json.loads(said(run("run", "x", "--json", "--profile", "slow.json.gz")))
    assert answer["profile"]["trace_path"] == "slow.json.gz"
    assert "is a folder" in failed(run("run", "x", "--profile", tmp_path))
    assert "--profile" in failed(run("run", "x", "--profile", "nowhere/slow.json.gz"))


def test_run_prints_json_for_programs(run):
    answer = json.loads(said(run("run", "x", "--seed", 5, "-o", "a.png", "--json")))
    assert (answer["image"], answer["seeds"], answer["model"]) == ("a.png", [5], "tiny")
    refused = run("run", "x", "--steps", 0.5, "--json")
    assert json.loads(refused.stdout)["code"] == "parameter_out_of_range"
    assert failed(refused)


def test_quiet_is_without_warnings(run):
    noisy = ("run", "(x:1.2) <lora:none:1>", "-o", "a.png")
    assert "warning: " in run(*noisy).stderr
    assert run(*noisy, "--quiet") == run(*noisy, "-q")
    assert run(*noisy, "-q").stderr == ""


def test_open_shows_what_was_saved(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "xdg-open is not installed" in run("run", "x", "-o", "a.png", "--open").stderr
    opener, shown = tmp_path / "xdg-open", tmp_path / "shown"
    opener.write_text(f'#!/bin/sh\necho "$1" > {shown}.part && /bin/mv {shown}.part {shown}\n')
    opener.chmod(0o755)
    said(run("run", "x", "-o", "a.png", "--open"))
    until(shown.exists)  # nobody waits for a viewer
    assert shown.read_text() == "a.png\n"


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


def test_models_are_whole_and_for_programs_too(run, tmp_path, monkeypatch):
    name = "an-organisation/a-model-of-its-own-with-a-name-as-long-as-this-one-is"
    registry = json.loads((tmp_path / "models.yaml").read_text())
    registry["models"][name] = {"architecture": "sdxl", "tasks": ["text-to-image"]}
    (tmp_path / "models.yaml").write_text(json.dumps(registry))
    monkeypatch.setenv("COLUMNS", "30")
    assert name in [line.split()[0] for line in said(run("models")).splitlines()]
    assert name in [model["id"] for model in json.loads(said(run("models", "--json")))["models"]]


def test_schedulers_are_those_that_the_model_takes(run, builder):
    names = [line.split()[0] for line in said(run("schedulers")).splitlines()[1:]]
    answer = json.loads(said(run("schedulers", "tiny", "--json")))
    assert [row["name"] for row in answer["schedulers"]] == names
    for name in ("euler_ancestral", "dpmpp_2m"):
        assert name in names
        said(run("run", "x", "--scheduler", name))
    assert "karras" in {row["name"]: row for row in answer["schedulers"]}["euler"]["schedules"]


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
        (
            ("run", "x", "-p", "width=63"),
            "error: width must be a multiple of 8 between 32 and 256; 63 was given (nearest: 64)",
        ),
        (("run", "x", "--size", "63x64"), "error: --size: width must be a multiple of 8"),
        (("run", "x", "--size", "big"), "as 1024x768"),
        (("run", "x", "--steps", "many"), 'error: --steps must be an integer between 1 and 150; "many" was given'),
        (("run", "x", "-p", "steps=0.5"), "error: steps must be an integer"),
        (("run", "x", "--scheduler", "best"), "error: --scheduler 'best' is not known"),
        (("run", "x", "--strength", "0.5"), "error: --strength is not a parameter of text-to-image"),
        (("run",), "error: PROMPT is required"),
        (("run", "x", "-p", "nonsense"), "is not NAME=VALUE"),
        (("run", "x", "--image", "none.png"), "error: --image: none.png does not exist"),
        (("run", "x", "--mask", "models"), "error: --mask: models is no file"),
        (("run", "x", "--ip-image", "models.yaml"), "--ip-adapter"),
        (("run", "x", "-m", "./none"), "There is no file or folder ./none"),
        (("run", "x", "--lora", "none.safetensors:0.5"), "There is no file or folder none.safetensors;"),
        (("run", "x", "-o", "a.tiff"), "end it in .png"),
        (("run", "x", "-o", "a.png", "--format", "webp"), "leave one out"),
        (("run", "x", "-o", "models.yaml/a.png"), "models.yaml is a file"),
        (("run", "x", "-o", "a.mp4"), "error: --output"),
        (("run", "x", "-m", "video"), "video is not in the cache"),
        (("run", "x", "-m", "org/sdxl"), "unset OFFLINE"),
        (("run", "x", "--lora", "[/nothing]"), "[/nothing]"),
        (("inspect", "no such model"), "is not in models.yaml"),
        (("schema", "nothing"), "error: MODEL 'nothing' is not in models.yaml; `python -m worker models` lists"),
        (("plan", "file:/none/at/all"), "does not exist"),
        (("plan", "models"), "models is nothing that the detector knows"),
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
    for command in ("run", "inspect", "plan", "schema", "models", "schedulers", "doctor", "cache"):
        assert command in result.output
    assert "pull" in run("cache").output


def test_a_line_that_is_none_is_one_sentence_and_2(run):
    for line in (("nope",), ("run", "--sise", 1), ("usage", "--days", "x"), ("cache", "rm")):
        result = run(*line)
        assert (result.exit_code, result.stdout, result.stderr.count("\n")) == (2, "", 1)
        assert "--help`" in result.stderr
    assert said(run("--version")).startswith("imgworker ")


class TestFilesOfTheOperator:
    """What is typed at a terminal is trusted where it lies, beyond the folders that a server may read."""

    @pytest.fixture
    def elsewhere(self, tmp_path, zoo):
        """A folder that no setting names, with a model, a LoRA and an image."""
        folder = tmp_path / "my files"
        shutil.copytree(zoo / "models/sd1", folder / "a model")
        shutil.copy(zoo / "models/lora.safetensors", folder)
        Image.new("RGB", (64, 32), "red").save(folder / "in.png")
        return folder

    def test_a_model_and_a_lora_draw_where_they_lie(self, zoo, elsewhere, monkeypatch):
        for name, value in {"MODELS_YAML": zoo / "models.yaml", "DEFAULT_MODEL": "tiny", "DEVICE": "cpu"}.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("VOLUME_DIR", str(elsewhere / "volume"))
        monkeypatch.chdir(elsewhere)
        line = ("run", "x", "-m", "a model/", "--steps", 1, "--size", 64, "--seed", 1, "--json", "-o", "a.png")
        said(invoke(*line))
        plain = (elsewhere / "a.png").read_bytes()
        (lora,) = json.loads(said(invoke(*line, "--lora", elsewhere / "lora.safetensors:0.5")))["loras"]
        assert (lora["weight"], lora["matched"]) == (0.5, lora["total"])
        assert (elsewhere / "a.png").read_bytes() != plain

    @pytest.mark.parametrize(
        "form", ["./my files/a model", "my files/a model", "file:my files/a model", "~/my files/a model"]
    )
    @pytest.mark.parametrize("command", ["inspect", "plan"])
    def test_questions_take_every_form_of_a_path(self, run, elsewhere, monkeypatch, form, command):
        monkeypatch.setenv("HOME", str(elsewhere.parent))
        assert json.loads(said(run(command, form)))["architecture"] == "sd1"

    def test_a_registered_name_goes_before_a_folder_of_that_name(self, run, builder, tmp_path):
        (tmp_path / "small").mkdir()
        said(run("run", "x", "-m", "small"))
        assert builder.engine.ran[0].call.spec.id == "tiny"
        assert "detector" in failed(run("run", "x", "-m", "./small"))

    @pytest.mark.parametrize(
        ("words", "fields"),
        [
            (("--image", "in.png", "--image", "in.png"), {"images": ["IMAGE", "IMAGE"]}),
            (("--image", "in.png", "--mask", "in.png"), {"image": "IMAGE", "mask_image": "IMAGE"}),
            (("--control", "in.png"), {"control_image": "IMAGE"}),
            (("--video", "in.png"), {"video": "IMAGE"}),
            (("--image", "https://a.example/b.png"), {"image": "https://a.example/b.png"}),
            (
                ("--controlnet", "lora.safetensors", "--control", "in.png"),
                {"controlnets": [{"model": "file:FOLDER/lora.safetensors", "image": "IMAGE"}]},
            ),
            (
                ("--ip-adapter", "org/ip#a.safetensors", "--ip-image", "in.png"),
                {"ip_adapters": [{"model": "org/ip#a.safetensors", "images": ["IMAGE"]}]},
            ),
            (
                ("--lora", "lora.safetensors:1", "--lora", "civitai:1:-.5", "--lora", "civitai:12"),
                {
                    "loras": [
                        {"model": "file:FOLDER/lora.safetensors", "weight": 1.0},
                        {"model": "civitai:1", "weight": -0.5},
                        {"model": "civitai:12"},
                    ]
                },
            ),
            (("-p", 'loras=["./lora.safetensors"]'), {"loras": ["file:FOLDER/lora.safetensors"]}),
            (("-p", "vae=./a model"), {"vae": "file:FOLDER/a model"}),
            (
                ("-p", 'ip_adapters=[{"model": "x", "image": "in.png"}]'),
                {"ip_adapters": [{"model": "x", "image": "IMAGE"}]},
            ),
            (("-p", "negative_prompt=in.png"), {"negative_prompt": "in.png"}),
        ],
    )
    def test_every_image_and_adapter_may_be_a_file(self, elsewhere, monkeypatch, words, fields):
        monkeypatch.chdir(elsewhere)
        arguments = commands.parser_of("x").parse_args(["run", "x", *words])
        typed, _ = read_fields(arguments)
        files = TypedFiles(lambda name: False)
        placed = json.dumps({name: files.placed(name, value) for name, value in typed.items() if name != "prompt"})
        image = base64.b64encode((elsewhere / "in.png").read_bytes()).decode()
        assert json.loads(placed.replace(image, "IMAGE").replace(str(elsewhere), "FOLDER")) == fields


def test_help_imports_nothing_that_takes_long():
    script = (
        "import sys; from worker.app.cli.commands import main\ntry: main(['run', '--help'])\nexcept SystemExit: pass\n"
    )
    heavy = "{'pydantic', 'torch', 'rich', 'typer', 'fastapi', 'PIL', 'yaml', 'asyncio', 'worker.app.build'}"
    ran = subprocess.run(
        [sys.executable, "-c", f"{script}assert not {heavy} & sys.modules.keys(), sys.modules.keys()"],
        cwd=PROJECT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stderr
    assert "--negative" in ran.stdout
