"""A gateway that overflows to a hosted provider: what goes there, what it may cost, and what its failures mean."""

import asyncio
import base64
import json
from dataclasses import replace
from decimal import Decimal

import pytest

from image_client.drawing import drawn, size_of_png
from image_client.mock_server import MockServer
from image_client.providers.openai import OFFICIAL
from image_client.providers.table import PROVIDERS
from tests.fakes.engine import make_context
from tests.fakes.web_worker import WebGateway, WebWorker
from tests.image_client import fake_providers as fakes
from worker.core.errors import EngineFailure, InvalidRequest, Overloaded, Unreachable
from worker.core.result import ignore_progress
from worker.core.turn import StopSignal
from worker.remote import backend as remote
from worker.remote.platforms.hosted_provider import HostedProvider
from worker.remote.platforms.hosted_request import Hosted, request_for
from worker.remote.platforms.hosted_spending import HostedPrice, OverLimit, Spending
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.replica import ReplicaState

APPLE = {"prompt": "an apple", "width": 64, "height": 48, "seed": 7}
FACTS = ReplicaState(name="cloud", kind="hosted", serves=frozenset({"tiny"}), usd_per_image=0.01, max_usd_per_image=1)


def entry(server, **changes):
    return {
        "provider": "mock",
        "url": server.url,
        "provider_models": {"tiny": "mock-2"},
        "usd_per_image": 0.001,
        "max_usd_per_image": 0.01,
        "max_usd_per_day": 1,
    } | changes


def spending(tmp_path, most="1"):
    return Spending(tmp_path / "spending.sqlite", "cloud", HostedPrice(*map(Decimal, ("0.01", "0", "1", most))))


@pytest.fixture
def provider(tmp_path):
    """Opens a provider with a dollar a day at a cent an image."""

    def open_(server, name="mock", model="mock-2", **options):
        return HostedProvider(
            FACTS, {"tiny": model}, spending(tmp_path), name, token=fakes.TOKEN, base_url=server, **options
        )

    return open_


@pytest.fixture
def context(tmp_path):
    return make_context(tmp_path)


def output(answer):
    assert answer.status_code == 200, answer.text
    return answer.json()["output"]


def test_a_job_goes_to_the_provider_where_that_is_cheaper_than_waiting_and_it_can_do_it(tmp_path):
    with MockServer() as server, WebWorker(tmp_path / "worker") as worker:
        # First the one, then the other: FastAPI hides a warning at an app's first request, and Python's list of hidden
        # warnings is one for all threads.
        assert worker.http.get("/health").status_code == 200
        replicas = {"own": {"url": worker.origin}, "cloud": entry(server)}
        with WebGateway(tmp_path / "gateway", replicas) as gateway:
            tiers = {tier["tier"]: tier for tier in gateway.http.post("/plan", json={"model": "tiny"}).json()["tiers"]}
            assert (tiers["cloud"]["chosen"], tiers["cloud"]["expected_usd"]) == (True, 0.001)
            there = output(gateway.http.post("/runsync", json={"input": APPLE | {"sticky": "ann"}}))
            here = output(gateway.http.post("/runsync", json={"input": APPLE | {"scheduler": "euler"}}))
            assert (here["placement"]["replica"], here["placement"]["attempts"]) == ("own", 2)
            # By now the worker has the model in its memory, and asks for no money.
            again = output(gateway.http.post("/runsync", json={"input": APPLE}))
            assert (again["placement"]["replica"], again["placement"]["attempts"]) == ("own", 1)
    assert base64.b64decode(there["image"]) == drawn("an apple", 64, 48, 7)
    assert (there["placement"]["replica"], there["placement"]["expected_usd"]) == ("cloud", 0.001)
    assert "tiny is drawn by a provider" in there["placement"]["reason"]
    assert (there["usage"]["cost_usd"], there["usage"]["gpu_seconds"]) == (0.001, 0.0)
    assert there["reproduce"]["versions"] == {
        "provider": "mock",
        "provider_model": "mock-2",
        "provider_version": "1",
    }
    assert "sticky" not in there["reproduce"]["input"]
    assert (there["model"], there["seed"], there["width"], there["height"]) == ("tiny", 7, 64, 48)
    assert sum(server.state.drawn.values()) == 1


def test_no_more_is_spent_than_a_day_allows_and_a_new_gateway_remembers_it(tmp_path, monkeypatch):
    monkeypatch.setattr(remote, "PATIENCE_S", 0.0)
    limits = {"usd_per_image": 0.01, "max_usd_per_image": 0.02, "max_usd_per_day": 0.03}
    with MockServer() as server:
        for sizes in ((1, 1), (1, 2)):
            with WebGateway(tmp_path, {"cloud": entry(server, **limits)}) as gateway:
                answers = [gateway.http.post("/run", json=APPLE | {"num_images": count}) for count in sizes]
        assert [answer.status_code for answer in answers] == [200, 503]
        assert "max_usd_per_day" in answers[1].text or "more today" in answers[1].text
        assert server.state.drawn.total() == 3


def test_an_image_that_is_too_dear_is_not_sent(tmp_path):
    money = Spending(tmp_path / "spending.sqlite", "cloud", HostedPrice(*map(Decimal, ("0", "0.01", "0.01", "9"))))
    money.reserve("mock", "mock-2", 4, (1000, 1000))
    with pytest.raises(OverLimit, match="1024x1024, and max_usd_per_image"):
        money.reserve("mock", "mock-2", 1, (1024, 1024))
    assert money.left() == Decimal("8.96")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"scheduler": "euler"}, "takes no scheduler"),
        ({"output": {"format": "webp"}}, "does not write webp"),
        ({"output": {"quality": 50}}, "sends its own files"),
        ({"seed": 2**60}, "cannot take the job: seed"),
    ],
    ids=["scheduler", "format", "quality", "seed"],
)
def test_what_the_provider_cannot_do_is_refused_before_it_is_asked(tmp_path, fields, words):
    with MockServer() as server, WebGateway(tmp_path, {"cloud": entry(server)}) as gateway:
        answer = gateway.http.post("/run", json=APPLE | fields)
        assert (answer.status_code, server.state.asked.total()) == (400, 0), answer.text
        assert words in answer.json()["error"]


def test_an_image_to_start_from_goes_along(tmp_path):
    start = base64.b64encode(drawn("a pear", 64, 48, 1)).decode()
    with MockServer() as server, WebGateway(tmp_path, {"cloud": entry(server)}) as gateway:
        sent = {"prompt": "blue", "image": start, "strength": 0.5, "seed": 7}
        answer = output(gateway.http.post("/runsync", json={"input": sent}))
        assert base64.b64decode(answer["image"]) == drawn("edit: blue", *size_of_png(drawn("a pear", 64, 48, 1)), 7)
        assert "image" not in answer["reproduce"]["input"]


@pytest.mark.parametrize(
    ("fault", "meaning", "left"),
    [
        ("429:7", (NotTaken, Overloaded, 7.0, False), "1"),
        ("503", (NotTaken, Unreachable, None, True), "1"),
        ("error", (NotTaken, EngineFailure, None, True), "1"),
        ("500", (LostSight, Unreachable, None, None), "0.99"),
        ("lost", (LostSight, Unreachable, None, None), "0.99"),
        ("truncated", (LostSight, Unreachable, None, None), "0.99"),
    ],
)
async def test_a_failure_is_not_sent_or_over_or_unknown_and_costs_accordingly(
    provider, context, tmp_path, fault, meaning, left
):
    job = await context.accept(**APPLE)
    with MockServer(faults=[fault]) as server:
        there = provider(server.url)
        try:
            with pytest.raises((NotTaken, LostSight)) as told:
                await there.send(job, "key", ignore_progress)
            kind, error, retry_after_s, ill = meaning
            assert type(told.value) is kind and type(told.value.error) is error
            assert spending(tmp_path).left() == Decimal(left)
            if kind is NotTaken:
                assert (told.value.retry_after_s, told.value.ill) == (retry_after_s, ill)
                assert await there.reconcile(job, "key", ignore_progress) is None
            else:  # drawn there once, and had by its key
                result = await there.reconcile(job, "key", ignore_progress)
                assert result.artifacts[0].files[0].data == drawn("an apple", 64, 48, 7)
                assert (server.state.drawn["key"], spending(tmp_path).left()) == (1, Decimal("0.99"))
        finally:
            await there.close()


async def test_what_may_have_run_stays_unknown_and_paid_for_however_the_second_look_ends(provider, context, tmp_path):
    job = await context.accept(**APPLE)
    with MockServer(faults=["lost", "429"]) as server:
        there = provider(server.url)
        for ask in (there.send, there.reconcile):
            with pytest.raises(LostSight):
                await ask(job, "key", ignore_progress)
        assert spending(tmp_path).left() == Decimal("0.99")
        await there.close()


async def test_a_refused_key_is_the_operators_affair(provider, context, tmp_path):
    job = await context.accept(**APPLE)
    with fakes.Replicate([401]) as server:
        there = provider(server.origin, "replicate", "someone/something")
        with pytest.raises(NotTaken, match="operator has to mend") as told:
            await there.send(job, "key", ignore_progress)
        assert (told.value.ill, spending(tmp_path).left()) == (True, Decimal(1))
        await there.close()


async def test_an_accepted_job_is_taken_back_at_its_deadline_and_counts_as_paid(provider, context, tmp_path):
    job = await context.accept(**APPLE)
    with fakes.Replicate() as server:
        server.advance = lambda job_id, status: status == "canceled" and fakes.Replicate.advance(server, job_id, status)
        there = provider(server.origin, "replicate", "someone/something")
        waiting = asyncio.ensure_future(there.send(replace(job, stop=StopSignal(3_600)), "key", ignore_progress))
        while not server.jobs or there._jobs["key"].job is None:
            await asyncio.sleep(0.01)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await there.close()
        assert [known["status"] for known in server.jobs.values()] == ["canceled"]
    assert spending(tmp_path).left() == Decimal("0.99")


async def test_a_field_that_a_provider_lacks_is_refused_by_its_name_and_a_seed_left_out_with_a_word(context):
    openai = Hosted.of("cloud", PROVIDERS["openai"], "gpt-image-2", OFFICIAL)
    stability = Hosted.of("cloud", PROVIDERS["stability"], "core", "")
    for there, fields, field in (
        (openai, {"seed": 7}, "seed"),
        (openai, {"width": 64, "height": 64}, "width"),
        (stability, {"num_images": 2}, "num_images"),
        (stability, {"output": {"format": "jpeg"}, "num_inference_steps": 4}, "num_inference_steps"),
    ):
        with pytest.raises(InvalidRequest) as told:
            request_for(there, await context.accept(**fields))
        assert told.value.field == field
    request, warnings = request_for(openai, await context.accept())
    assert (request.seed, request.width, request.model) == (None, None, "gpt-image-2")
    assert "takes no seed" in warnings[0]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"max_usd_per_day": None}, "must have max_usd_per_image and max_usd_per_day"),
        ({"usd_per_image": None}, "must have usd_per_image or usd_per_megapixel"),
        ({"usd_per_image": 0.5}, "has a price above max_usd_per_image"),
        ({"provider_models": None}, "must have provider_models"),
        ({"provider_models": {"tinny": "x"}}, "tinny is not in models.yaml; did you mean tiny?"),
        ({"usd_per_hour": 2}, "says usd_per_hour, which is of a worker"),
        ({"provider": None}, "says provider_models, which is of a provider"),
        ({"provider": "midjourney"}, "provider must be 'replicate'"),
        ({"provider": "fal"}, "key is missing"),
        ({"provider": "stability", "key": "SOME_KEY"}, "model must be one of sd3.5-large"),
    ],
)
def test_a_mistake_in_the_file_is_one_sentence(tmp_path, monkeypatch, changes, words):
    monkeypatch.setenv("SOME_KEY", "a-token")
    written = {name: value for name, value in (entry(MockServer()) | changes).items() if value is not None}
    with pytest.raises(ValueError, match=r"fleet.yaml:1: ") as told:
        WebGateway(tmp_path, {"cloud": json.loads(json.dumps(written))})
    assert words in str(told.value)
