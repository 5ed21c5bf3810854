"""Updates: what is newer than what jobs get, and what differs in it, from headers and JSON alone."""

import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from tests.catalog.corpus import header_of, stored
from tests.fakes.civitai import FakeCivitai, Hollow
from tests.fakes.engine import make_context
from tests.fakes.hub import FakeHub
from tests.service.discovery.pages import EARLY, hollow, repository
from worker.core.errors import WorkerError
from worker.core.model import TensorIndex


def _changed(name: str) -> Hollow:
    """The file of a stored header, one tensor of which has another shape, one another name, and one is new."""
    source = stored(name)
    tensors = dict(source.tensors)
    first, second = [key for key, (_, shape) in tensors.items() if len(shape) == 2][:2]
    dtype, shape = tensors[first]
    tensors[first] = (dtype, (shape[0] + 8, shape[1]))
    tensors[f"{second}.renamed"] = tensors.pop(second)
    return Hollow(*header_of(TensorIndex(tensors, source.metadata, "safetensors", 0)))


@dataclass(frozen=True)
class Shelf:
    """How to ask the worker, both sites, and the two commits of org/xl."""

    ask: Callable[..., Awaitable[Any]]
    site: FakeCivitai
    hub: FakeHub
    commits: tuple[str, str]


@pytest.fixture(scope="module")
def worker(tmp_path_factory):
    """A worker whose models have newer versions, no newer ones, or are gone."""
    root = tmp_path_factory.mktemp("updates")
    with FakeCivitai() as site, FakeHub() as hub:
        folder = repository(root / "xl", "StableDiffusionXLPipeline")
        old = hub.add_repo("org/xl", folder, tags=["diffusers", "license:openrail++"])
        hub.add_repo("org/still", folder)
        folder = repository(root / "newer", "StableDiffusionXLPipeline")
        config = folder / "scheduler/scheduler_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"prediction_type": "v_prediction"}))
        new = hub.add_repo("org/xl", folder, tags=["diffusers", "license:other"])
        site.add_model(10, "Dream", "Checkpoint")
        for number, base, content in ((100, "SDXL 1.0", hollow("sdxl")), (101, "SDXL 1.0", _changed("sdxl"))):
            site.add_version(10, number, base)
            site.add_file(number, number * 10, content, f"dream{number}.safetensors")
        site.add_version(10, 102, "Flux.1 D")
        site.add_file(102, 1020, hollow("flux1"), "dream102.safetensors")
        site.add_version(10, 103, availability="EarlyAccess")
        site.refusals[103] = (403, EARLY, {})
        context = make_context(
            root / "shelf",
            OFFLINE=False,
            allow_private_urls=True,
            civitai_endpoint=site.origin,
            hf_endpoint=hub.endpoint,
        )
        path = context.worker.settings.models_yaml
        models = {
            "xl": {"source": f"org/xl@{old}"},
            "still": {"source": "org/still"},
            "dream": {"source": "civitai:10@100#1000"},
            "gone": {"source": "civitai:99@990"},
            "tiny": {"source": "file:models/sd1"},
        }
        path.write_text(json.dumps({"models": models}))
        context.worker.reload()
        yield Shelf(context.ask, site, hub, (old, new))


async def test_every_model_is_newer_current_or_gone_and_nothing_is_fetched(worker):
    answer = await worker.ask(action="updates")
    assert {item["model"] for item in answer["updates"]} == {"xl", "dream"}
    assert answer["current"] == ["still", "tiny"]
    assert [item["model"] for item in answer["failed"]] == ["gone"]
    assert "was removed" in answer["failed"][0]["reason"]
    assert answer["unseen"] == 0
    assert all("range" in seen.headers for seen in worker.site.storage.requests)
    assert not any(seen.path.endswith(".safetensors") for seen in worker.hub.requests)


async def test_a_repository_says_which_configs_and_which_licence_changed(worker):
    (update,) = (await worker.ask(action="updates", model="xl"))["updates"]
    assert (update["old"], update["new"]) == tuple(f"org/xl@{commit}" for commit in worker.commits)
    assert update["configs"] == ["scheduler/scheduler_config.json"]
    assert update["licence"] == {"old": "openrail++", "new": "other", "changed": True}
    assert update["runs"] is True


async def test_a_file_says_which_tensors_changed_and_the_base_stays(worker):
    (update,) = (await worker.ask(action="updates", model="dream"))["updates"]
    assert (update["old"], update["new"]) == ("civitai:10@100#1000", "civitai:10@101")
    told = update["tensors"]
    assert (told["added"], told["removed"], told["reshaped"]) == (1, 1, 1)
    assert any(name.endswith(".renamed") for name in told["some"])
    assert update["new_gb"] >= update["old_gb"] > 6


async def test_an_unknown_model_is_refused_and_so_is_who_may_not_ask(worker, monkeypatch):
    with pytest.raises(WorkerError) as failure:
        await worker.ask(action="updates", model="nonesuch")
    assert failure.value.code == "model_not_found"
    with pytest.raises(WorkerError):
        await worker.ask(action="updates", text="x")
