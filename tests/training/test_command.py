"""The command: a folder in, a LoRA out, and its samples are what serving generates with that very file."""

import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import load_file

from tests.app.commands import failed, invoke, said
from tests.fakes.hub import FakeHub
from tests.waiting import until
from worker.app.cli.commands import parser_of

pytestmark = pytest.mark.slow  # processes of their own

STYLE = Path(__file__).parents[2] / "docs/examples/train-style"
PROMPT = "a blueprint of a red apple"
QUICK = ("--steps", "3", "--save-every", "2", "--rank", "2", "--learning-rate", "0.01", "--sample", PROMPT)


@pytest.fixture
def volume(tmp_path, monkeypatch):
    monkeypatch.setenv("VOLUME_DIR", str(tmp_path / "volume"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def weights(path):
    """A file's tensors as bytes; its metadata has no fixed order."""
    return {name: value.numpy().tobytes() for name, value in load_file(path).items()}


def pixels(path):
    return Image.open(path).convert("RGB").tobytes()


def test_the_last_sample_is_what_the_file_draws_for_anybody(volume):
    told = json.loads(said(invoke("train", STYLE, "-o", "out", "--json", *QUICK)))
    assert told["steps"] == 3
    assert all(Path(file).exists() for file in told["files"])
    samples = sorted((volume / "out/samples").iterdir())
    assert [each.name[5:11] for each in samples] == ["000000", "000002", "000003"]
    said(invoke("run", PROMPT, "--seed", "0", "--lora", told["files"][0], "-o", "mine.png"))
    assert pixels("mine.png") == pixels(samples[-1]) != pixels(samples[0])


def test_the_command_as_the_page_has_it_draws_what_it_learnt(volume):
    said(invoke("train", "--data", STYLE, "--steps", "2"))
    folder = volume / "trained/train-style"
    samples = sorted((folder / "samples").iterdir())
    assert [each.stem[-8:] for each in samples] == ["000000-1", "000000-2", "000002-1", "000002-2"]
    lora = folder / "train-style.safetensors"
    said(invoke("run", "a blueprint of a angry face", "--seed", "0", "--lora", lora, "-o", "mine.png"))
    assert pixels("mine.png") == pixels(samples[2]) != pixels(samples[0])


def test_the_same_command_goes_on_and_another_training_is_refused_there(volume):
    said(invoke("train", STYLE, "-o", "out", *QUICK))
    kept = weights(volume / "out/train-style.safetensors")
    shutil.rmtree(volume / "out/checkpoints/step-000003")
    (volume / "out/train-style.safetensors").unlink()
    said(invoke("train", STYLE, "-o", "out", *QUICK))
    assert weights(volume / "out/train-style.safetensors") == kept
    line = failed(invoke("train", STYLE, "-o", "out", *QUICK, "--seed", "1"))
    assert "--output" in line
    assert "another training" in line


def test_weights_in_fewer_bits_are_trained_and_sampled_with(volume):
    said(invoke("train", STYLE, "-o", "out", *QUICK, "--precision", "4bit"))
    said(
        invoke(
            "run",
            PROMPT,
            "--seed",
            "0",
            "--lora",
            "out/train-style.safetensors",
            "-o",
            "1.png",
            "--param",
            "precision=4bit",
        )
    )
    assert pixels("1.png") == pixels(max((volume / "out/samples").iterdir()))
    assert "--precision" in failed(invoke("train", STYLE, "-o", "other", *QUICK, "--precision", "2bit"))


def test_what_came_of_it_is_published_with_its_card(volume, monkeypatch):
    with FakeHub() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        job = ("train", STYLE, "-o", "out", "--json", *QUICK, "--publish", "org/blue")
        assert "HF_TOKEN is not set" in failed(invoke(*job))
        monkeypatch.setenv("HF_TOKEN", hub.token)
        assert "no repository" in failed(invoke(*job[:-1], "blue"))
        assert not (volume / "out").exists(), "before anything is learnt"
        told = json.loads(said(invoke(*job, "--private")))
        repo = hub.repos["org/blue"]
        assert told["published"].endswith(f"/org/blue/commit/{repo.branches['main']}")
        assert repo.private
        files = {path: file.source.read_bytes() for path, file in repo.commits[repo.branches["main"]].items()}
        kept = {Path(file).relative_to(volume / "out").as_posix(): Path(file).read_bytes() for file in told["files"]}
        assert files == kept
        assert {"README.md", "train-style.safetensors", "samples/step-000003-1.png"} <= files.keys()
        assert "![A sample of this step](samples/step-000003-1.png)" in files["README.md"].decode()


def test_a_check_says_what_is_wrong_and_trains_nothing(volume):
    (volume / "data").mkdir()
    shutil.copy(next(STYLE.glob("*.png")), volume / "data/a.png")
    result = invoke("train", "data", "--check", "--steps", "10")
    assert "images: 1" in said(result)
    assert "1 images have no caption" in result.stderr
    assert not (volume / "trained").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (("nowhere",), "DATA"),
        ((STYLE, "--rank", "0"), "--rank"),
        ((STYLE, "--steps", "many"), "--steps"),
        ((STYLE, "--method", "hyper"), "--method"),
        ((STYLE, "--minutes", "-1"), "--minutes"),
    ],
)
def test_what_cannot_be_trained_is_one_sentence(volume, arguments, names):
    assert names in failed(invoke("train", *arguments))


def test_a_model_that_generates_nothing_from_text_is_refused(volume):
    result = invoke("train", STYLE, "-m", "demo-upscaler")
    assert result.exit_code == 1
    assert "generates no images" in result.stderr.splitlines()[-1]


def test_the_page_shows_commands_that_are_understood():
    page = (Path(__file__).parents[2] / "docs/training.md").read_text()
    (block,) = re.findall(r"```bash\n(.*?)```", page, re.S)
    lines = [line for line in block.replace("\\\n", "").splitlines() if "imgworker" in line]
    assert len(lines) == 2
    for line in lines:
        parser_of("imgworker").parse_args(shlex.split(line, comments=True)[1:])
    options = {
        option
        for line in page.splitlines()
        if line.startswith("| `--")
        for option in re.findall("--[a-z-]+", line.split("|")[1])
    }
    assert options >= {"--steps", "--method", "--rank", "--minutes"}
    for option in options - {
        "--method",
        "--optimizer",
        "--sample",
        "--targets",
        "--flip",
        "--text-encoder",
        "--tensorboard",
    }:
        parser_of("imgworker").parse_args(["train", "x", option, "1"])


@pytest.mark.timeout(900)
def test_an_interrupt_says_how_to_go_on(tmp_path):
    command = [sys.executable, "-m", "worker", "train", str(STYLE), "--save-every", "1", "--rank", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VOLUME_DIR": str(tmp_path / "volume")}
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [*command, "-o", str(tmp_path / "out")], env=environment, cwd=root, stderr=subprocess.PIPE, text=True
    )
    until(lambda: list(tmp_path.glob("out/checkpoints/step-*")) or process.poll() is not None)
    process.send_signal(signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 1
    assert "the same command goes on from the last checkpoint" in said


@pytest.mark.timeout(900)
def test_two_processes_never_train_one_training_twice(tmp_path):
    command = [sys.executable, "-m", "worker", "train", str(STYLE), "--steps", "12", "--save-every", "4", "--rank", "2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VOLUME_DIR": str(tmp_path / "volume")}
    root = Path(__file__).parents[2]
    both = [
        subprocess.Popen(
            [*command, "-o", str(tmp_path / "out")], env=environment, cwd=root, stderr=subprocess.PIPE, text=True
        )
        for _ in range(2)
    ]
    said = [each.communicate()[1] for each in both]
    ends = [each.returncode for each in both]
    assert 0 in ends
    assert all(end == 0 or "Another process trains" in words for end, words in zip(ends, said, strict=True))
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/progress.jsonl").read_text().splitlines()]
    assert steps == [*range(1, 13)], "each step was taken once"


@pytest.mark.timeout(1_800)
def test_killed_three_times_it_ends_in_the_bits_of_a_training_that_was_not(tmp_path):
    command = [
        *(sys.executable, "-m", "worker", "train", str(STYLE), "--steps", "24", "--save-every", "3"),
        *("--rank", "2", "--batch-size", "2", "--learning-rate", "0.01"),
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "VOLUME_DIR": str(tmp_path / "volume")}
    root, chance = Path(__file__).parents[2], random.Random(5)

    def checkpoints(folder):
        return len(list(folder.glob("checkpoints/step-*/state.json")))

    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, env=environment, cwd=root)
    killed = 0
    for steps in sorted(chance.sample(range(3, 24), 3)):
        process = subprocess.Popen([*command, "-o", str(tmp_path / "torn")], env=environment, cwd=root)
        log = tmp_path / "torn/progress.jsonl"
        while process.poll() is None and not (log.exists() and f'"step": {steps},' in log.read_text()):
            time.sleep(0.02)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            killed += 1
        process.wait()
        assert checkpoints(tmp_path / "torn") >= 1 or steps == 3
    subprocess.run([*command, "-o", str(tmp_path / "torn")], check=True, env=environment, cwd=root)
    files = [tmp_path / name / "train-style.safetensors" for name in ("whole", "torn")]
    assert weights(files[0]) == weights(files[1])
    assert killed >= 1
