"""What is sent again, where, and when: only what cannot have run, or runs once under its id."""

import asyncio
import random

import pytest

from image_client import ClientOptions, ImageClient, ImageRequest, pacing, submission
from image_client.drawing import drawn
from image_client.errors import (
    ContentRefused,
    GenerationFailed,
    InvalidRequest,
    NotFinished,
    ProviderUnavailable,
    RateLimited,
    RequestRefused,
    ResultLost,
    UnknownOutcome,
    Unsupported,
)
from image_client.mock_server import MockServer
from image_client.pacing import Breaker, BreakerOpen, Pacer
from image_client.providers.provider import Pace
from tests.image_client import fake_providers as fakes

APPLE = "a red apple"


@pytest.fixture
def waits(monkeypatch):
    """Waiting takes no time; how long it would have been is written down."""
    slept, real = [], asyncio.sleep

    async def sleep(seconds):
        slept.append(seconds)
        await real(0)

    monkeypatch.setattr(pacing.asyncio, "sleep", sleep)
    monkeypatch.setattr(pacing, "now", lambda: sum(slept))
    monkeypatch.setattr("image_client.route.now", lambda: asyncio.get_running_loop().time())
    return slept


def mock(server, **options):
    return ImageClient("mock", base_url=server.url, options=ClientOptions(**options))


@pytest.mark.parametrize("fault", ["503", "reset", "500", "truncated", "lost", "hang:5"])
async def test_a_provider_that_knows_ids_is_asked_again_under_the_same_one(fault, monkeypatch):
    monkeypatch.setattr(submission, "backoff", lambda number: 0.01)
    attempts = []
    with MockServer(faults=[fault, fault]) as server:
        async with mock(server, first_byte=0.2, on_attempt=attempts.append) as images:
            image = await images.generate(APPLE, seed=7, request_id="mine")
    assert image.data == drawn(APPLE, 256, 256, 7)
    assert (server.state.drawn, server.state.asked) == ({"mine": 1}, {"mine": 3})
    failed = "unavailable" if fault == "503" else "unknown"
    assert [attempt.outcome for attempt in attempts] == [failed, failed, "image"]
    assert [attempt.wait for attempt in attempts] == [0.01, 0.01, None]


async def test_an_expired_link_and_an_error_inside_of_a_200():
    with MockServer(faults=["expired", "", "error"]) as server:
        async with mock(server) as images:
            image = await images.generate(APPLE, seed=7, request_id="a")
            assert image.data == drawn(APPLE, 256, 256, 7)
            with pytest.raises(GenerationFailed, match="The job failed"):
                await images.generate(APPLE, seed=7, request_id="b")
    assert server.state.drawn == {"a": 1, "b": 1}


async def test_a_link_that_has_expired_is_asked_for_again_a_few_times():
    with MockServer(faults=["expired"] * 3) as server:
        async with mock(server) as images:
            assert (await images.generate(APPLE, seed=7, request_id="a")).data == drawn(APPLE, 256, 256, 7)
            server.add_faults(["expired"] * 9)
            with pytest.raises(ResultLost, match="no longer served"):
                await images.generate(APPLE, request_id="b")
    assert server.state.asked == {"a": 4, "b": 4} and server.state.drawn == {"a": 1, "b": 1}


async def test_what_may_have_run_is_unknown_however_the_later_attempts_end(monkeypatch):
    monkeypatch.setattr(submission, "backoff", lambda number: 0.01)
    with MockServer(faults=["lost", "503", "503"]) as server:
        fallback = ImageClient("mock")
        async with mock(server, attempts=2) as images, fallback:
            with pytest.raises(UnknownOutcome):
                await images.generate(APPLE, request_id="mine")
            both = ImageClient("mock", base_url=server.url, fallback=[fallback], options=ClientOptions(attempts=1))
            server.add_faults(["lost"])
            async with both:  # a 503 falls back, and what is lost does not
                assert (await both.generate(APPLE)).adapted == ("mock could not take it; mock drew it.",)
                with pytest.raises(UnknownOutcome):
                    await both.generate(APPLE)


@pytest.mark.parametrize("failure", ["lost", 500, 504])
@pytest.mark.parametrize(("name", "kind"), [("stability", fakes.Stability), ("openai", fakes.OpenAI)])
async def test_a_provider_that_knows_no_ids_is_never_asked_again(name, kind, failure):
    with kind([failure, failure]) as server:
        base = server.origin + ("/v1" if name == "openai" else "")
        async with ImageClient(name, api_token=fakes.TOKEN, base_url=base, fallback=["mock"]) as images:
            with pytest.raises(UnknownOutcome):
                await images.generate(APPLE)
    assert len(server.requests) == 1


async def test_a_prediction_whose_answer_was_lost_is_found_in_the_list_and_not_made_again():
    taken = []
    with fakes.Replicate(["lost"]) as server:
        options = ClientOptions(on_accepted=taken.append)
        async with ImageClient("replicate", api_token=fakes.TOKEN, base_url=server.origin, options=options) as images:
            image = await images.generate(APPLE, seed=7)
            assert image.data == drawn(APPLE, 64, 64, 7)
            assert [job.job_id for job in taken] == list(server.jobs) == [image.job_id]


async def test_a_prediction_that_is_not_in_the_list_stays_unknown(monkeypatch):
    monkeypatch.setattr(submission, "SEARCH_PAUSE", 0)
    with fakes.Replicate([500]) as server:
        async with ImageClient("replicate", api_token=fakes.TOKEN, base_url=server.origin) as images:
            with pytest.raises(UnknownOutcome):
                await images.generate(APPLE)
            assert [seen.method for seen in server.requests] == ["POST", "GET", "GET", "GET"]
            assert await images.find(ImageRequest(prompt=APPLE), request_id="later") is None


async def test_after_a_crash_a_prediction_is_found_by_its_request_id():
    with fakes.Replicate() as server:
        arguments = {"api_token": fakes.TOKEN, "base_url": server.origin}
        async with ImageClient("replicate", **arguments) as images:
            first = await images.generate(APPLE, request_id="one")
            await images.generate(APPLE, request_id="two")
        async with ImageClient("replicate", **arguments) as images:  # another process, which heard of neither
            job = await images.find(ImageRequest(prompt=APPLE), request_id="one")
            (image,) = await images.collect(job)
        assert (image.job_id, image.seed, image.data) == (first.job_id, first.seed, first.data)


async def test_a_429_is_waited_out_as_it_says(waits):
    attempts = []
    with fakes.Replicate([429, 429], headers={"Retry-After": "7"}) as server:
        options = ClientOptions(on_attempt=attempts.append)
        async with ImageClient("replicate", api_token=fakes.TOKEN, base_url=server.origin, options=options) as images:
            await images.generate(APPLE)
    assert [attempt.wait for attempt in attempts] == [7.0, 7.0, None]
    assert sum(waits) >= 14


async def test_stabilitys_lock_out_lasts_a_minute_for_everybody(waits):
    with fakes.Stability([429]) as server:
        async with ImageClient("stability", api_token=fakes.TOKEN, base_url=server.origin) as images:
            await images.generate(APPLE)
            assert sum(waits) >= 60
            assert len(server.requests) == 2
    with pytest.raises(RateLimited, match="after the deadline"):
        pacer = Pacer(Pace(lockout=60), "stability")
        pacer.hold(60)
        await pacer.turn(pacing.now() + 10)


async def test_six_hundred_a_minute_are_kept(waits):
    pacer = Pacer(Pace(starts=600, window=60), "replicate")
    for _ in range(1500):
        await pacer.turn(10_000)
    assert 120 <= sum(waits) < 122  # 600 at once, 600 a minute later, and the rest a minute after that


async def test_backoff_doubles_up_to_half_a_minute_and_is_spread():
    random.seed(1)
    longest = [max(pacing.backoff(number) for _ in range(50)) for number in (1, 2, 3, 9)]
    shortest = [min(pacing.backoff(number) for _ in range(50)) for number in (1, 2, 3, 9)]
    assert all(0.45 * top < low < 0.7 * top for low, top in zip(shortest, longest, strict=True))
    assert [round(value) for value in longest] in ([0, 1, 2, 30], [1, 1, 2, 30])


async def test_a_provider_that_keeps_failing_is_left_alone_and_tried_with_one_request():
    clock = [0.0]
    breaker = Breaker("x", clock=lambda: clock[0])
    for _ in range(pacing.FAILURES):
        breaker.enter()
        breaker.failed()
    with pytest.raises(BreakerOpen) as failure:
        breaker.enter()
    assert failure.value.retry_after == pacing.OPEN_SECONDS
    clock[0] = pacing.OPEN_SECONDS + 1
    breaker.enter()
    with pytest.raises(BreakerOpen):
        breaker.enter()  # one tries, the others wait
    breaker.failed()
    with pytest.raises(BreakerOpen):
        breaker.enter()
    clock[0] *= 3
    breaker.enter()
    breaker.well()
    breaker.enter()


async def test_an_open_breaker_sends_everybody_elsewhere_at_once():
    with MockServer(faults=["503"] * 99) as server:
        client = ImageClient("mock", base_url=server.url, fallback=["mock"], options=ClientOptions(attempts=1))
        async with client as images:
            found = [await images.generate(f"number {index}", seed=index) for index in range(12)]
    assert [image.data for image in found] == [drawn(f"number {index}", 256, 256, index) for index in range(12)]
    assert server.state.asked.total() == pacing.FAILURES


async def test_elsewhere_means_where_the_job_cannot_have_run():
    def client(server, fallback):
        return ImageClient("stability", api_token=fakes.TOKEN, base_url=server.origin, fallback=fallback)

    with fakes.Stability([402, 400]) as server:
        async with client(server, ["mock"]) as images:
            image = await images.generate(APPLE, seed=3, extra={"style_preset": "anime"})  # no credit
            assert (image.provider, image.seed, image.model) == ("mock", 3, "mock-1")
            assert image.adapted == ("stability could not take it; mock drew it.",)
            assert (await images.generate(APPLE)).provider == "mock"  # refused
            assert (await images.generate(APPLE, num_inference_steps=9)).provider == "mock"  # cannot do it
            with pytest.raises(ContentRefused):
                await images.generate("moderated")  # is not carried to another provider
            with pytest.raises(InvalidRequest):
                await images.generate(" ")


async def test_a_first_byte_has_ten_seconds_where_a_job_is_handed_in(monkeypatch):
    given = []

    async def send(self, request, *, first_byte, deadline, images=1):
        given.append(first_byte)
        raise UnknownOutcome("not sent")

    monkeypatch.setattr("image_client.transport.Transport.send", send)
    for name, told, expected in (
        *((name, None, 10) for name in ("mock", "selfhosted", "runpod", "replicate", "fal")),
        *((name, None, 120) for name in ("stability", "huggingface")),
        ("openai", None, 180),
        ("stability", 3, 3),
    ):
        options = ClientOptions(first_byte=told, attempts=1)
        async with ImageClient(name, api_token="t", base_url="http://x.example", options=options) as images:
            monkeypatch.setattr(submission, "SEARCHES", 0)
            with pytest.raises(UnknownOutcome):
                await images.generate(APPLE)
        assert given.pop() == expected, name


async def test_a_provider_that_is_not_there_costs_nothing():
    with MockServer() as server:
        gone = server.url
    async with ImageClient("mock", base_url=gone, options=ClientOptions(attempts=1)) as images:
        with pytest.raises(ProviderUnavailable, match="cannot be reached"):
            await images.generate(APPLE)


async def test_a_deadline_ends_every_wait():
    with MockServer(faults=["hang:9", "429:9", "503"]) as server:
        async with mock(server, deadline=0.3) as images:
            with pytest.raises(UnknownOutcome, match="deadline"):
                await images.generate(APPLE)
            with pytest.raises(RateLimited):
                await images.generate(APPLE)
    with fakes.Fal() as server:
        options = ClientOptions(deadline=0.6)
        async with ImageClient("fal", api_token=fakes.TOKEN, base_url=server.origin, options=options) as images:
            with pytest.raises(NotFinished):
                await images.generate(APPLE)


@pytest.mark.parametrize(("name", "kind"), [("replicate", fakes.Replicate), ("fal", fakes.Fal)])
async def test_a_job_that_nobody_waits_for_any_more_is_taken_back(name, kind):
    taken = []
    with kind() as server:
        options = ClientOptions(on_accepted=taken.append)
        async with ImageClient(name, api_token=fakes.TOKEN, base_url=server.origin, options=options) as images:
            waiting = asyncio.ensure_future(images.generate(APPLE))
            while not taken:
                await asyncio.sleep(0)
            waiting.cancel()
            await images.cancel(taken[0])
            assert [job["status"] for job in server.jobs.values()] == ["canceled"]
            elsewhere = taken[0].model_copy(update={"poll_url": "https://elsewhere.example/p1"})
            with pytest.raises(InvalidRequest, match="own address"):
                await images.cancel(elsewhere)
    async with ImageClient("mock") as images:
        with pytest.raises(Unsupported, match="taken back"):
            await images.cancel(taken[0].model_copy(update={"provider": "mock"}))


async def test_fifty_at_once_hold_the_limit_exactly():
    with MockServer(concurrency=50, seconds=0.05) as server:
        async with mock(server, concurrency=50) as images:
            asked = [images.generate(f"number {index}", width=16, height=16, seed=index) for index in range(150)]
            found = await asyncio.gather(*asked)
    assert [image.seed for image in found] == list(range(150))
    assert (server.state.most_at_work, server.state.over_limit) == (50, 0)
    assert set(server.state.drawn.values()) == {1}


async def test_wrong_requests_are_one_sentence_and_send_nothing():
    with MockServer() as server:
        async with mock(server) as images:
            for fields, words in (
                ({"width": 64}, "width and height go together"),
                ({"width": 0, "height": 64}, "width: Input should be greater than or equal to 1"),
                ({"steps": 4}, "steps: Extra inputs are not permitted"),
                ({"n": 2}, "use send_many"),
                ({"request_id": "a b"}, "request_id must have"),
            ):
                with pytest.raises(InvalidRequest, match=words):
                    await images.generate(APPLE, **fields)
    assert server.state.asked == {}
    with pytest.raises(InvalidRequest, match="provider must be one of selfhosted"):
        ImageClient("midjourney")
    with pytest.raises(InvalidRequest, match="base_url is missing"):
        ImageClient("modal")


async def test_a_refused_request_is_not_tried_again():
    with fakes.Fal([422]) as server:
        async with ImageClient("fal", api_token=fakes.TOKEN, base_url=server.origin) as images:
            with pytest.raises(RequestRefused):
                await images.generate(APPLE)
    assert len(server.requests) == 1
