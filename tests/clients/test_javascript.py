"""Clients for JavaScript, and SillyTavern's own server, in Node: our server is what they call."""

import base64
import io
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.clients.ours import KEY, free_port, our_server, running

FOLDER = Path(__file__).parent / "javascript"
MODULES = Path(os.environ.get("NODE_MODULES", ""))
NODE = shutil.which("node")
pytestmark = [
    pytest.mark.skipif(
        NODE is None or not (MODULES / "replicate").is_dir(),
        reason="NODE_MODULES has none of the packages; make test-clients sets it where there is npm",
    ),
    pytest.mark.timeout(900),
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with our_server(tmp_path_factory.mktemp("ours")) as address:
        yield address


def opened(text: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(text)))
    image.load()
    return image


@pytest.mark.parametrize("name", ["fetch", "openai", "replicate"])
def test_a_client_draws(ours: str, tmp_path: Path, name: str) -> None:
    program = shutil.copy(FOLDER / "programs.mjs", tmp_path)
    (tmp_path / "node_modules").symlink_to(MODULES)
    ran = subprocess.run(["node", program, name, ours, KEY], capture_output=True, text=True, timeout=600)
    assert ran.returncode == 0, ran.stderr
    assert opened(ran.stdout).size == (64, 64)


@pytest.fixture(scope="module")
def tavern(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """SillyTavern's server, which builds its page first: that takes minutes."""
    folder, port = tmp_path_factory.mktemp("tavern"), free_port()
    (folder / "data").mkdir()
    address = f"http://127.0.0.1:{port}"
    command = ["node", str(MODULES / "sillytavern/server.js"), "--port", str(port), "--listen", "false",
               "--dataRoot", str(folder / "data"), "--configPath", str(folder / "config.yaml"),
               "--disableCsrf", "true", "--browserLaunchEnabled", "false"]  # fmt: skip
    with running(command, {}, address, folder), httpx.Client(base_url=address, timeout=300) as http:
        yield http


# As its extension stable-diffusion fills it in.
_DRAWN = {
    "prompt": "a red apple", "negative_prompt": "blurry", "sampler_name": "Euler a", "scheduler": "automatic",
    "steps": 4, "cfg_scale": 3, "width": 64, "height": 64, "restore_faces": False, "enable_hr": False,
    "hr_upscaler": "Latent", "hr_scale": 1.0, "hr_additional_modules": [], "denoising_strength": 0.7,
    "hr_second_pass_steps": 0, "override_settings": {"CLIP_stop_at_last_layers": 1},
    "override_settings_restore_afterwards": True, "clip_skip": 1, "save_images": True, "send_images": True,
    "do_not_save_grid": False, "do_not_save_samples": False,
}  # fmt: skip


def test_sillytavern_lists_chooses_and_draws(tavern: httpx.Client, ours: str) -> None:
    where = {"url": ours, "auth": f"anybody:{KEY}"}

    def ask(path: str, **fields: object) -> httpx.Response:
        answer = tavern.post(f"/api/sd/{path}", json=where | fields)
        assert answer.status_code == 200, answer.text
        return answer

    ask("ping")
    assert "demo" in [model["value"] for model in ask("models").json()]
    assert "Euler a" in ask("samplers").json() and "karras" in ask("schedulers").json()
    assert {"demo-upscaler", "Latent"} <= {*ask("upscalers").json()} and ask("vaes").json() == []
    ask("set-model", model="demo")
    assert ask("get-model").text == "demo"
    drawn = ask("generate", **_DRAWN)
    assert opened(drawn.json()["images"][0]).size == (64, 64) and KEY not in drawn.text
    larger = ask("generate", **(_DRAWN | {"enable_hr": True, "hr_scale": 2.0}))
    assert opened(larger.json()["images"][0]).size == (128, 128)
