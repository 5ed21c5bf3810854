"""Discovery: what is shown can be planned, and what cannot be had is said by name, with what mends it."""

from collections import Counter

import pytest

from tests.fakes.civitai import FakeCivitai
from tests.fakes.engine import ServerContext, make_context
from tests.fakes.hub import FakeHub
from tests.service.discovery.pages import fill_civitai, fill_hub
from worker.core.device import DeviceInfo
from worker.core.discovery import Find, Listed
from worker.core.errors import SourceUnavailable, WorkerError
from worker.core.result import Timings, Usage
from worker.service.accepting.likeness import stem
from worker.service.discovery import finder
from worker.service.discovery.aims import Aim
from worker.service.discovery.ranking import worth
from worker.service.usage.log import UsageLog
from worker.service.usage.record import Record


@pytest.fixture(scope="module")
def sites(tmp_path_factory):
    with FakeCivitai() as site, FakeHub() as hub:
        fill_civitai(site)
        fill_hub(hub, tmp_path_factory.mktemp("hub"))
        yield site, hub


@pytest.fixture
def worker(sites, tmp_path):
    """A context that may ask both sites."""
    return _context(sites, tmp_path)


def _context(sites, root, **changes) -> ServerContext:
    site, hub = sites
    settings = {
        "OFFLINE": False,
        "allow_private_urls": True,
        "allow_unregistered_models": True,
        "civitai_endpoint": site.origin,
        "hf_endpoint": hub.endpoint,
    }
    return make_context(root, **(settings | changes))


def _names(answer, part="finds"):
    return [item["model"] for item in answer[part]]


async def test_what_is_shown_can_be_planned_and_nothing_of_it_is_fetched(sites, worker):
    site, hub = sites
    before = len(site.storage.requests)
    answer = await worker.ask(action="discover", text="anime")
    assert set(_names(answer)) == {"civitai:10@100", "civitai:14@140", "org/anime-xl"}
    for find in answer["finds"]:
        plan = await worker.ask(action="plan", model=find["model"])
        assert plan["fits"] is True
        assert plan["weight_gb"] == pytest.approx(find["size_gb"], abs=0.01)
        assert (plan["architecture"], plan["device"]) == (find["architecture"], "Fake GPU")
    read = [seen.headers["range"] for seen in site.storage.requests[before:]]
    assert read
    assert all(span.startswith("bytes=") for span in read), "headers are read by range"
    assert not any(seen.path.endswith(".safetensors") for seen in hub.requests)
    assert worker.builder.built <= 1, "the device is asked for its memory, and nothing is loaded"
    assert worker.engine.resident == []


async def test_a_find_says_what_it_is_and_what_it_costs(worker):
    find = (await worker.ask(action="discover", text="anime", base="sdxl"))["finds"][0]
    assert find["model"] == "civitai:10@100"
    assert find["licence"] == "commercial use: Image, Rent; credit needed"
    assert find["trigger_words"] == ["dreamy"]
    assert (find["downloads"], find["likes"]) == (90_000, 8_000)
    assert (find["kind"], find["architecture"], find["allowed"], find["registered"]) == ("model", "sdxl", True, None)
    assert 6 < find["size_gb"] < find["estimated_gb"] < 20


async def test_gated_deleted_early_and_hosted_ones_are_said_by_name_with_the_fix(worker):
    withheld = {item["model"]: item for item in (await worker.ask(action="discover", text="anime"))["withheld"]}
    said = {name: (item["code"], item["reason"]) for name, item in withheld.items()}
    assert said["civitai:10@101"][0] == "access_denied"
    assert "is in early access until 2027-01-31" in said["civitai:10@101"][1]
    assert "CIVITAI_TOKEN" in said["civitai:10@101"][1]
    assert said["civitai:11@110"][0] == "model_not_found"
    assert "was removed" in said["civitai:11@110"][1]
    assert "does not allow downloads" in said["civitai:12@120"][1]
    assert said["civitai:13@130"][0] == "unsafe_format"
    assert said["org/anime-gated"][0] == "access_denied"
    assert "accept its licence" in said["org/anime-gated"][1]
    assert "HF_TOKEN" in said["org/anime-gated"][1]
    assert "MyOwnPipeline" in said["org/anime-odd"][1]


async def test_adapters_are_recommended_for_a_model_and_fit_it(sites, tmp_path):
    context = _context(sites, tmp_path, allow_unregistered_models=False)
    answer = await context.ask(action="discover", text="anime", model="tiny")  # an SD 1 model
    assert _names(answer) == ["civitai:21@210"]
    assert answer["finds"][0]["goes_with"] == ["tiny"]
    assert answer["finds"][0]["allowed"] is False, "callers may name what models.yaml has"
    found = await context.ask(action="discover", text="anime lora", base="sd1")
    assert _names(found) == ["civitai:21@210"]
    assert found["finds"][0]["goes_with"] == ["tiny", "any"]
    other = await context.ask(action="discover", text="anime sdxl lora")
    assert _names(other) == ["civitai:20@200"]
    assert other["finds"][0]["goes_with"] == ["org/sdxl", "fast"]
    assert other["finds"][0]["trigger_words"] == ["lines style"]


async def test_a_reference_is_looked_at_by_itself(worker):
    answer = await worker.ask(action="discover", reference="civitai:30")
    assert [(find["model"], find["kind"], find["trigger_words"]) for find in answer["finds"]] == [
        ("civitai:30", "vae", ["plain"])
    ]
    gated = await worker.ask(action="discover", reference="org/closed")
    assert [item["code"] for item in gated["withheld"]] == ["access_denied"]
    with pytest.raises(WorkerError) as failure:
        await worker.ask(action="discover", reference="file:/etc/passwd")
    assert failure.value.field == "reference"


async def test_a_prompt_orders_what_is_listed_and_never_leaves_the_worker(sites, worker):
    site, hub = sites
    before = len(site.requests), len(hub.requests)
    answer = await worker.ask(action="discover", kind="lora", prompt="portrait of secretname in lines15")
    assert _names(answer) == ["civitai:21@210", "civitai:20@200"]
    asked = [*site.requests[before[0] :], *hub.requests[before[1] :]]
    assert asked
    assert not any("secretname" in f"{seen.path} {seen.query}" for seen in asked)


async def test_what_an_image_was_made_with_is_found_by_its_digests(sites, worker):
    site, _ = sites
    digests = [site.versions[number]["files"][0]["hashes"] for number in (100, 200)]
    hashes = [digests[0]["AutoV2"], digests[1]["SHA256"], "0123456789"]
    answer = await worker.ask(action="discover", hashes=hashes)
    assert [(find["model"], find["kind"]) for find in answer["finds"]] == [
        ("civitai:10@100", "model"),
        ("civitai:20@200", "lora"),
    ]
    assert answer["finds"][1]["trigger_words"] == ["lines style"]
    more = await worker.ask(action="discover", hashes=hashes[1:], prompt="an anime girl")
    assert _names(more)[0] == "civitai:20@200"
    assert "org/anime-xl" in _names(more), "and what is like it"


async def test_the_same_wish_costs_the_sources_nothing_for_an_hour(sites, worker, tmp_path):
    site, hub = sites
    first = await worker.ask(action="discover", text="anime")
    before = len(site.requests), len(hub.requests)
    again = await worker.ask(action="discover", text="anime")
    assert (len(site.requests), len(hub.requests)) == before
    assert _names(again) == _names(first)
    assert _names(again, "withheld") == _names(first, "withheld")
    restarted = _context(sites, tmp_path)
    assert _names(await restarted.ask(action="discover", text="anime")) == _names(first)
    assert (len(site.requests), len(hub.requests)) == before, "a restart forgets nothing"
    assert not any(b"anime" in path.name.encode() for path in (tmp_path / "volume/state/discovery").iterdir())


async def test_a_source_that_fails_is_named_and_the_other_one_answers(sites, tmp_path):
    site, _ = sites
    context = _context(sites, tmp_path)
    site.down = True
    try:
        answer = await context.ask(action="discover", text="anime")
        assert _names(answer) == ["org/anime-xl"]
        assert any("CivitAI did not deliver" in problem for problem in answer["problems"])
        assert not (tmp_path / "volume/state/discovery").exists(), "half an answer is not kept"
    finally:
        site.down = False


async def test_a_site_that_hangs_ends_nobodys_patience(tmp_path, monkeypatch):
    monkeypatch.setattr(finder, "SEARCH_S", 0.2)
    with FakeCivitai() as site, FakeHub() as hub:
        site.down = hub.hang = True
        with pytest.raises(SourceUnavailable, match="did not answer the search in time"):
            await _context((site, hub), tmp_path).ask(action="discover", text="anime")
        hub.hang = False


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"discovery": False}, "DISCOVERY=true"),
        ({"discovery_keys": ("ann",)}, "DISCOVERY_KEYS"),
        ({"OFFLINE": True}, "OFFLINE"),
    ],
)
async def test_the_operator_says_who_may_ask(sites, tmp_path, changes, said):
    site, _ = sites
    context = _context(sites, tmp_path, **changes)
    before = len(site.requests)
    with pytest.raises(WorkerError) as failure:
        await context.ask(action="discover", text="anime")
    assert said in failure.value.message
    assert len(site.requests) == before


async def test_what_is_too_large_for_the_device_is_withheld_with_the_reason(sites, tmp_path):
    context = _context(sites, tmp_path)
    context.engine.device_info = lambda **asked: DeviceInfo("cuda", "a small GPU", 2**30, 2**28)
    answer = await context.ask(action="discover", reference="civitai:10@100")
    assert _names(answer) == []
    assert answer["withheld"][0]["reason"].startswith("civitai:10@100 does not run here: ")


async def test_what_the_operator_denies_to_everybody_is_not_shown_and_not_looked_at(sites, tmp_path):
    site, hub = sites
    context = _context(sites, tmp_path, denied_orgs=("ORG",), denied_hosts=("127.0.0.1", "civitai.com"))
    before = len(hub.requests), len(site.storage.requests)
    answer = await context.ask(action="discover", text="anime")
    assert _names(answer) == []
    reasons = {item["model"]: (item["code"], item["reason"]) for item in answer["withheld"]}
    for model in ("org/anime-xl", "civitai:10@100"):
        assert reasons[model][0] == "model_not_found"
        assert "is not allowed on this worker" in reasons[model][1]
    assert not any("anime-xl/resolve" in seen.path for seen in hub.requests[before[0] :])
    assert len(site.storage.requests) == before[1]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"base": "nonesuch"}, "base"),
        ({"base": "Sora 2"}, "base"),
        ({"kind": "film"}, "kind"),
        ({"limit": 21}, "limit"),
        ({"hashes": ["xyz"]}, "hashes"),
        ({"size": 3}, "size"),
        ({"model": "nonesuch"}, "model"),
    ],
)
async def test_a_wish_that_makes_no_sense_is_refused_before_anybody_is_asked(sites, worker, fields, field):
    site, _ = sites
    before = len(site.requests)
    with pytest.raises(WorkerError) as failure:
        await worker.ask(action="discover", **fields)
    assert failure.value.field == field
    assert len(site.requests) == before


def test_what_this_worker_s_users_used_comes_before_what_is_a_little_more_famous(tmp_path):
    log = UsageLog(tmp_path, "pod")
    facts = {"action": "generate", "request_id": "-", "caller": None, "traceparent": None, "outcome": "ok", "at": 1e9}
    facts |= {"began": 0.0, "ended": 1.0, "model": "demo", "source": "org/model", "task": None, "accepted_at": 0.0}
    facts |= {"timings": Timings(), "usage": Usage(0.0, 1, 1, 0.0, 0), "loras": 1, "encode_s": 0.0}
    for number in range(50):
        log.note(Record(job_id=str(number), adapters=("org/used@abc",), **facts))
    log.close()
    uses = Counter({stem(name): count for name, count in log.uses("2000-01-01").items()})
    assert uses == {"org/model": 50, "org/used": 50}
    used, famous = (
        Find(
            Listed(name, "style", "", downloads=downloads), "lora", "sdxl", None, None, "safetensors", None, (), None, 1
        )
        for name, downloads in (("org/used", 100), ("org/famous", 200))
    )
    aim = Aim(("lora",), "style", frozenset({"style"}))
    assert worth(used, aim, uses) > worth(famous, aim, uses)
    assert worth(used, aim, Counter()) < worth(famous, aim, Counter())
