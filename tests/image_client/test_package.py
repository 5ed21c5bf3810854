"""The package alone: light to import, installed from its own folder, and as its README says."""

import os
import re
import shutil
import subprocess
import sys

import pytest

import image_client
from image_client import ImageClient, ImageRequest, StableDiffusionClient, SyncImageClient
from image_client.drawing import drawn
from image_client.errors import InvalidRequest
from image_client.providers.table import PROVIDERS
from tests.conftest import PROJECT
from tests.image_client import fake_providers as fakes

FOLDER = PROJECT / "image_client"
README = (FOLDER / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
HEAVY = ("worker", "torch", "PIL", "pandas", "numpy", "diffusers", "yaml", "requests", "typer", "rich")


def run(code, cwd, path):
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(path), "HOME": str(cwd)}
    done = subprocess.run([sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_it_loads_nothing_heavy_and_no_http_client_before_it_is_used():
    code = "import sys, image_client; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run(code, FOLDER.parent, FOLDER.parent).split()}
    assert not loaded & {*HEAVY, "httpx", "pydantic", "asyncio"}
    code = "import sys, image_client.client, image_client.sync; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in run(code, FOLDER.parent, FOLDER.parent).split()}
    assert {"httpx", "pydantic"} <= loaded
    assert not loaded & {*HEAVY} - {"rich"}  # which httpx imports for a command of its own, where it is there


@pytest.mark.slow
def test_it_is_installed_from_its_folder_alone_and_the_readmes_first_example_runs(tmp_path):
    source, target = tmp_path / "source", tmp_path / "site"
    shutil.copytree(FOLDER, source, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    subprocess.run([*pip, "--target", target, source], check=True, cwd=tmp_path)
    told = run(f"{EXAMPLES[0]}\nimport image_client; print(image_client.__file__)", tmp_path, target)
    assert told.startswith("apple.png image/png 7 mock-1\n")
    assert str(target) in told
    assert (tmp_path / "apple.png").read_bytes() == drawn("a red apple", 320, 256, 7)
    assert (target / "image_client" / "py.typed").exists()


def test_the_readmes_examples_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert len(EXAMPLES) >= 4
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), {})
    assert {path.name for path in tmp_path.iterdir()} == {"apple.png", "frog.png", "glass.png"}


def test_the_readmes_table_is_the_table_of_providers():
    section = README.split("## Providers")[1].split("\n## ")[0]
    rows = {name: row for row in section.splitlines() for name in re.findall(r"^\| `(\w+)` \|", row)}
    assert list(rows) == list(PROVIDERS)
    for name, provider in PROVIDERS.items():
        cells = [cell.strip() for cell in rows[name].strip("|").split("|")]
        assert cells[3] == (f"`{provider.default_model}`" if provider.default_model else "its own"), name
        assert all(variable in cells[2] for variable in provider.token_variables), name
        assert cells[4].startswith("yes" if provider.idempotent else "no"), name


def test_every_public_name_is_there():
    assert set(image_client.__all__) == {name for name in image_client.__all__ if getattr(image_client, name)}
    with pytest.raises(AttributeError):
        _ = image_client.nothing


def test_the_sync_face_draws_and_ends_its_thread(tmp_path):
    with SyncImageClient("mock") as images:
        assert images.generate("a", seed=1).data == drawn("a", 256, 256, 1)
        found = images.send_many(ImageRequest(prompt="b", n=2, seed=4))
        assert [image.seed for image in found] == [4, 5]
        with pytest.raises(InvalidRequest):
            images.generate("")
        thread = images._thread
    assert not thread.is_alive()
    images.close()
    with pytest.raises(InvalidRequest):
        SyncImageClient("nobody")


async def test_the_simplest_form_returns_bytes():
    with fakes.Replicate() as server:
        client = StableDiffusionClient(fakes.TOKEN, base_url=server.origin)
        assert await client.generate("a red apple", seed=7) == drawn("a red apple", 64, 64, 7)
        assert server.requests[0].path == "/v1/models/black-forest-labs/flux-schnell/predictions"


async def test_an_image_is_saved_whole_and_opened_by_pillow(tmp_path):
    async with ImageClient() as images:
        image = await images.generate("a red apple", width=96, height=64)
    assert image.save(tmp_path / "deep" / "one") == tmp_path / "deep" / "one.png"
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["one.png"]
    shown = image.pil()
    assert (shown.size, shown.mode, shown.format) == ((96, 64), "RGB", "PNG")
    assert len(set(shown.get_flattened_data())) > 20  # a ground of many shades, and the words on it


async def test_a_token_of_the_environment_goes_to_its_own_provider_only(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("IMAGE_WORKER_API_KEY", "ours")
    for provider, base, expected in (
        ("openai", None, "sk-secret"),
        ("openai", "http://127.0.0.1:9/v1", None),
        ("selfhosted", "http://127.0.0.1:9", "ours"),
    ):
        async with ImageClient(provider, base_url=base) as images:
            assert images._route._token == expected
