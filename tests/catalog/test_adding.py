"""Adding a family and adding an odd class is one row each: detection, schema and acceptance see them by that alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """What a worker of its own process says, to which `toy.py` added two rows and nothing else."""
    command = [sys.executable, "-m", "tests.catalog.toy", str(tmp_path_factory.mktemp("toy"))]
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, timeout=170)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_its_files_its_loras_and_its_names_on_pages_are_recognised(told):
    assert told["file"] == "toy"
    assert told["lora"] == "toy"
    assert told["page"] == ["turbo", "toy"]


def test_its_schema_has_what_the_class_takes_and_the_familys_defaults(told):
    fields = told["schema"]
    assert fields["num_inference_steps"]["default"] == 12
    assert fields["guidance_scale"]["default"] == 3.0
    assert "toy_power" in fields
    assert "toy_curse" not in fields, "the class's row says that it fails on that"
    assert fields["task"]["enum"] == ["text-to-image", "image-editing", None]
    assert fields["scheduler"]["examples"] == ["ddim", "DDIMScheduler"]


def test_a_request_for_it_is_accepted_as_its_rows_say(told):
    assert told["job"] == {
        "task": "image-editing",
        "pipeline": "ToyPipeline",
        "alone": True,
        "steps": 12,
        "images": 2,
    }


def test_and_refused_as_its_rows_say(told):
    assert "toy_curse is not a parameter of text-to-image by toy (Toy)" in told["refused"]
