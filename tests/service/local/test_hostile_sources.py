"""What is not what it is taken for, from every kind of source: a sentence, the right field, and nothing kept of it."""

import io
import zipfile

import pytest
import torch
from safetensors.torch import save

from tests.asking import perform
from tests.fakes.civitai import FakeCivitai
from tests.fakes.hub import FakeHub
from worker.app.build import build_worker
from worker.core.errors import WorkerError

WEIGHTS = save({"lora_unet_mid_block_attentions_0_proj_in.weight": torch.zeros(40, 40)})


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file:
        file.writestr("model.safetensors", WEIGHTS)
    return content.getvalue()


def pickle() -> bytes:
    content = io.BytesIO()
    torch.save({"weight": torch.zeros(4)}, content)
    return content.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%b\nsize 9\n" % (b"a" * 64)
VAE = {"decoder.conv_in.weight": torch.zeros(8, 4, 3, 3), "encoder.conv_in.weight": torch.zeros(8, 3, 3, 3)}
# what is sent, the code of the refusal, and words of its sentence; what is whole is named by where it was sent as what
FILES = {
    "truncated": (WEIGHTS[: len(WEIGHTS) // 2], "corrupt_file", "truncated"),
    "page": (b"<!DOCTYPE html><html><body>Sign in</body></html>", "corrupt_file", "HTML page"),
    "pointer": (POINTER, "corrupt_file", "LFS"),
    "archive": (archive(), "unsupported_model", "zip archive"),
    "pickle": (pickle(), "unsafe_format", "pickle"),
    "embedding": (save({"emb_params": torch.zeros(2, 768)}), None, "a textual-inversion"),
    "vae": (save(VAE), None, "a vae"),
}


@pytest.fixture
def sites():
    with FakeCivitai() as civitai, FakeHub() as hub:
        yield civitai, hub


@pytest.fixture
def connected(settings, sites):
    changes = {"allow_unregistered_models": True, "allow_private_urls": True}
    civitai, hub = sites
    return build_worker(
        settings.model_copy(update={"civitai_endpoint": civitai.origin, "hf_endpoint": hub.endpoint, **changes})
    )


def published(place: str, content: bytes, sites, connected, tmp_path) -> str:
    """A reference to these bytes in `place`."""
    civitai, hub = sites
    if place == "civitai":
        civitai.add_model(1, "x", "LORA")
        civitai.add_version(1, 2, "SD 1.5")
        civitai.add_file(2, 3, content, "x.safetensors")
        return "civitai:1"
    folder = tmp_path / "x" if place == "hf" else connected.settings.volume / "own"
    folder.mkdir(parents=True)
    (folder / "x.safetensors").write_bytes(content)
    if place == "hf":
        hub.add_repo("org/x", folder)
        return "org/x"
    return f"file:{folder}/x.safetensors"


@pytest.mark.quick_rows(14)
@pytest.mark.parametrize("field", ["model", "loras"])
@pytest.mark.parametrize("place", ["civitai", "hf", "file"])
@pytest.mark.parametrize("name", FILES)
async def test_it_is_refused_by_name_and_nothing_of_it_is_kept(name, place, field, sites, connected, tmp_path):
    content, code, words = FILES[name]
    reference = published(place, content, sites, connected, tmp_path)
    sent = {"model": reference} if field == "model" else {"loras": [reference]}
    with pytest.raises(WorkerError) as failure:
        await perform(connected, {"prompt": "x", **sent}, "job", lambda progress: None)
    assert failure.value.field == field
    assert code in (None, failure.value.code)
    assert words in failure.value.message or (place, name) == ("hf", "page")  # the transfer sees that it is a page
    assert connected.engine.resident_models == []
    kept = [
        path
        for path in connected.settings.volume.rglob("*")
        if path.is_file() and path.parent.name not in {"own", "usage"}
    ]
    assert kept == []
