"""What a ComfyUI workflow is answered with can be sent: each draws with the demo model, once the names are its own."""

import pytest

from tests.asking import perform
from tests.images import encoded, gradient, pixels
from tests.wire.foreign.workflows import WORKFLOWS
from worker.app.build import build_worker
from worker.app.settings import PROJECT_DIR, Settings
from worker.wire.request import decode_input

_COMPANIONS = f"file:{PROJECT_DIR}/models/demo/companions"
_NAMES = {
    "sd15.safetensors": "demo",
    "flux1-dev.safetensors": "demo",
    "flux1-schnell-fp8.safetensors": "demo",
    "ink.safetensors": f"{_COMPANIONS}/grey-style-lora.safetensors",
    "glow.safetensors": f"{_COMPANIONS}/grey-style-lora-kohya.safetensors",
    "canny.safetensors": f"{_COMPANIONS}/edge-control-lora.safetensors",
    "4x.pth": "demo-upscaler",
    "ae.safetensors": f"file:{PROJECT_DIR}/models/demo",
}
_IMAGE = "<base64 or URL>"


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    return build_worker(Settings(volume_dir=tmp_path_factory.mktemp("workflows"), device="cpu"))


def swapped(value):
    """Return a request with the demo model's names in place of those that the workflow had, and images."""
    if isinstance(value, dict):
        return {name: swapped(part) for name, part in value.items()}
    if isinstance(value, list):
        return [swapped(part) for part in value]
    return encoded(gradient(64, 64)) if value == _IMAGE else _NAMES.get(value, value)


def test_there_are_ten():
    assert len(WORKFLOWS) == 10


@pytest.mark.quick_rows(4)
@pytest.mark.parametrize("name", WORKFLOWS)
async def test_the_answered_request_draws(worker, name):
    workflow, _ = WORKFLOWS[name]
    request = decode_input({"workflow": workflow}).request.details["request"]["input"]
    small = {"width": 64, "height": 64} if "width" in request else {}
    sent = swapped(request) | small | {"num_inference_steps": 3}
    answer = await perform(worker, sent, name.replace(" ", "-"), lambda progress: None)
    assert pixels(answer).shape == ((256, 256, 3) if "upscale" in request else (64, 64, 3))
    assert (answer["model"], answer["seed"]) == ("demo", request["seed"])
    assert len(answer["seeds"]) == request.get("num_images", 1)
