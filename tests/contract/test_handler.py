"""`python handler.py` in a terminal: one job from a file or the command line, and RunPod's local API."""

import json
import urllib.request

import pytest
from PIL import Image

from tests.conftest import PROJECT
from tests.fakes.worker_process import WorkerProcess
from tests.ports import free_port

HANDLER = PROJECT / "handler.py"


@pytest.fixture
def env(zoo, tmp_path):
    return {
        "MODELS_YAML": str(zoo / "models.yaml"),
        "DEFAULT_MODEL": "tiny",
        "VOLUME_DIR": str(tmp_path / "volume"),
        "HOME": str(tmp_path),
        "DEVICE": "cpu",
    }


def test_a_test_input_saves_the_image_and_prints_where(env, tmp_path):
    job = json.dumps({"input": {"prompt": "a red apple", "seed": 3, "num_images": 2}})
    with WorkerProcess(HANDLER, "--test_input", job, env=env, cwd=tmp_path) as worker:
        assert worker.wait() == 0, worker.output
    lines = worker.output.strip().splitlines()
    assert lines[-1].startswith("saved outputs/") or lines[-2].startswith("saved outputs/")
    saved = sorted((tmp_path / "outputs").glob("*.png"))
    assert [path.name for path in saved] == ["a-red-apple-3.png", "a-red-apple-4.png"]
    with Image.open(saved[0]) as image:
        assert image.size == (64, 64)


def test_test_input_json_is_taken_from_the_working_folder(env, tmp_path):
    (tmp_path / "test_input.json").write_text(json.dumps({"input": {"prompt": "from a file", "widht": 1}}))
    with WorkerProcess(HANDLER, env=env, cwd=tmp_path) as worker:
        assert worker.wait() == 1
    assert "widht is not a parameter" in worker.output


def test_an_empty_input_exits_1_and_names_the_prompt(env, tmp_path):
    with WorkerProcess(HANDLER, "--test_input", '{"input": {}}', env=env, cwd=tmp_path) as worker:
        assert worker.wait() == 1
    assert "prompt is required" in worker.output
    assert "Traceback" not in worker.output
    assert not (tmp_path / "outputs").exists()


def test_a_broken_registry_exits_1_with_file_and_line(env, tmp_path):
    (tmp_path / "models.yaml").write_text("models:\n  a:\n    tsaks: []\n")
    with WorkerProcess(HANDLER, env=env | {"MODELS_YAML": str(tmp_path / "models.yaml")}, cwd=tmp_path) as worker:
        assert worker.wait() == 1
    assert "models.yaml:3" in worker.output
    assert "Traceback" not in worker.output


@pytest.mark.slow
def test_the_local_api_answers(env, tmp_path):
    port = free_port()
    arguments = ("--rp_serve_api", "--rp_api_host", "127.0.0.1", "--rp_api_port", str(port))
    with WorkerProcess(HANDLER, *arguments, env=env, cwd=tmp_path) as worker:
        worker.wait_for_output("Uvicorn running")

        def post(payload):
            request = urllib.request.Request(
                f"http://127.0.0.1:{port}/runsync",
                json.dumps({"input": payload}).encode(),
                {"Content-Type": "application/json"},
            )
            return json.load(urllib.request.urlopen(request, timeout=60))

        answer = post({"prompt": "x", "seed": 1})
        assert answer["status"] == "COMPLETED"
        assert "images" not in answer["output"]
        assert len(answer["output"]["image"]) > 1000  # the image itself, not a file name
        assert post({"action": "status"})["output"]["resident_models"] == ["tiny"]
        assert post({})["status"] == "FAILED"
