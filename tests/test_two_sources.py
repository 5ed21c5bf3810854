"""One job that takes a LoRA from CivitAI by its page and another from Hugging Face by its repository."""

import logging

import pytest
from pydantic import SecretStr

from tests.engine.test_generation import draw
from tests.fakes.civitai import FakeCivitai
from tests.fakes.hub import FakeHub
from tests.images import assert_differs, pixels
from worker.app.build import build_worker
from worker.core.errors import ModelNotFound

PAGE = "https://civitai.com/models/100/grey-style?modelVersionId=200"
TOKENS = {"civitai": "canary-civitai-key", "hf": "canary-hf-key"}


@pytest.fixture
def sources(zoo, tmp_path):
    """A CivitAI and a Hub; each holds one LoRA of the tiny model, for members only."""
    with FakeCivitai(token=TOKENS["civitai"]) as civitai, FakeHub(token=TOKENS["hf"]) as hub:
        civitai.add_model(100, "Grey Style", "LORA")
        civitai.add_version(100, 200, "SD 1.5", trainedWords=["grey style"])
        civitai.add_file(200, 300, (zoo / "models" / "kohya.safetensors").read_bytes(), "grey style.safetensors")
        civitai.members_only.add(200)
        folder = tmp_path / "lora"
        folder.mkdir()
        (folder / "pytorch_lora_weights.safetensors").write_bytes((zoo / "models" / "lora.safetensors").read_bytes())
        hub.add_repo("org/style", folder, private=True)
        yield civitai, hub


def with_sites(settings, civitai, hub):
    """Settings of a worker that may fetch anything from these two."""
    changes = {
        "civitai_endpoint": civitai.origin,
        "civitai_token": SecretStr(TOKENS["civitai"]),
        "hf_endpoint": hub.endpoint,
        "hf_token": SecretStr(TOKENS["hf"]),
        "allow_unregistered_models": True,
        "allow_private_urls": True,  # the storage behind CivitAI is on this machine
    }
    return settings.model_copy(update=changes)


async def test_both_are_fetched_applied_and_named_and_no_token_goes_astray(sources, zoo, settings, worker, caplog):
    caplog.set_level(logging.DEBUG)
    civitai, hub = sources
    connected = build_worker(with_sites(settings, *sources))
    answer = await draw(connected, loras=[PAGE, "org/style"], seed=5)
    assert [lora["model"] for lora in answer["loras"]] == [PAGE, "org/style"]
    assert answer["loras"][0]["trigger_words"] == ["grey style"]
    local = [f"file:{zoo}/models/{name}.safetensors" for name in ("kohya", "lora")]
    assert (pixels(answer) == pixels(await draw(worker, loras=local, seed=5))).all()
    assert_differs(pixels(answer), pixels(await draw(worker, seed=5)))
    assert TOKENS["hf"] not in str(civitai.requests) + civitai.told
    assert TOKENS["civitai"] not in str(hub.requests) + civitai.told
    written = b"".join(path.read_bytes() for path in settings.volume.rglob("*") if path.is_file())
    for token in TOKENS.values():
        assert token not in str(answer) + caplog.text
        assert token.encode() not in written


async def test_what_was_fetched_once_is_drawn_by_a_new_worker_while_both_are_down(sources, settings):
    connected = with_sites(settings, *sources)
    fields = {"loras": [PAGE, "org/style"], "seed": 6}
    first = pixels(await draw(build_worker(connected), **fields))
    for site in sources:
        site.down = True
    assert (pixels(await draw(build_worker(connected), **fields)) == first).all()


@pytest.mark.parametrize("lora", [PAGE, "org/style", "https://example.com/style.safetensors"])
async def test_without_the_operators_leave_neither_is_asked(sources, settings, lora):
    closed = build_worker(with_sites(settings, *sources).model_copy(update={"allow_unregistered_models": False}))
    with pytest.raises(ModelNotFound) as refused:
        await draw(closed, loras=[lora])
    assert "ALLOW_UNREGISTERED_MODELS" in refused.value.message
    assert not any(site.requests for site in sources)
    assert closed.engine.resident_models == []
