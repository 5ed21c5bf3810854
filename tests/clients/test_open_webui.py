"""Open WebUI itself, from its own environment: our server is its AUTOMATIC1111 and then its OpenAI."""

import io
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from PIL import Image

from tests.clients.ours import KEY, our_server, running
from tests.ports import free_port

COMMAND = os.environ.get("OPEN_WEBUI", "")
pytestmark = [
    pytest.mark.skipif(not Path(COMMAND).is_file(), reason="OPEN_WEBUI names no program; make test-clients sets it"),
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with our_server(tmp_path_factory.mktemp("ours")) as address:
        yield address


@pytest.fixture(scope="module")
def webui(ours: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder, port = tmp_path_factory.mktemp("webui"), free_port()
    environment = {
        "DATA_DIR": str(folder),
        "OFFLINE_MODE": "true",
        "HF_HUB_OFFLINE": "1",
        "ENABLE_OLLAMA_API": "False",
        "ENABLE_OPENAI_API": "False",
        "RAG_EMBEDDING_ENGINE": "openai",
        "BYPASS_EMBEDDING_AND_RETRIEVAL": "true",
        "WEBUI_SECRET_KEY": "of this test alone",
        "ENABLE_IMAGE_GENERATION": "True",
        "IMAGE_GENERATION_ENGINE": "automatic1111",
        "AUTOMATIC1111_BASE_URL": ours,
        "AUTOMATIC1111_API_AUTH": f"anybody:{KEY}",
        "IMAGE_SIZE": "64x64",
        "IMAGE_STEPS": "4",
    }
    address = f"http://127.0.0.1:{port}"
    command = [COMMAND, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (
        running(command, environment, f"{address}/health", folder),
        httpx.Client(base_url=address, timeout=120) as http,
    ):
        account = {"name": "a", "email": "a@b.example", "password": "Long-enough-1"}
        token = http.post("/api/v1/auths/signup", json=account).json()["token"]
        http.headers["Authorization"] = f"Bearer {token}"
        yield http


def drawn(webui: httpx.Client, prompt: str) -> Image.Image:
    answer = webui.post("/api/v1/images/generations", json={"prompt": prompt})
    assert answer.status_code == 200, answer.text
    image = Image.open(io.BytesIO(webui.get(answer.json()[0]["url"]).content))
    image.load()
    return image


def test_as_its_automatic1111(webui: httpx.Client) -> None:
    assert "demo" in [model["id"] for model in webui.get("/api/v1/images/models").json()]
    image = drawn(webui, "a red apple")
    assert image.size == (64, 64) and image.text["parameters"].startswith("a red apple\nSteps: 4")


def test_as_its_openai(webui: httpx.Client, ours: str) -> None:
    config = webui.get("/api/v1/images/config").json() | {
        "IMAGE_GENERATION_ENGINE": "openai",
        "IMAGES_OPENAI_API_BASE_URL": f"{ours}/v1",
        "IMAGES_OPENAI_API_KEY": KEY,
        "IMAGE_GENERATION_MODEL": "demo",
    }
    assert webui.post("/api/v1/images/config/update", json=config).status_code == 200
    assert drawn(webui, "a green frog").size == (64, 64)
