"""Batches against a real HTTP server with faults: every image in order, none twice, the ledger exact to the cent."""

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from decimal import Decimal
from pathlib import Path

import pytest

from image_client.batch import Again, Outcome
from image_client.client import ImageClient
from image_client.mock_server import MockServer
from image_client.options import ClientOptions
from image_client.request import ImageRequest
from tests.fakes.web_worker import WebWorker
from tests.image_client.faulty_proxy import AFTER, BEFORE, FaultyProxy
from tests.image_client.http_batch import budget_of, run

ROOT = Path(__file__).parents[2]
COUNT = 200
# Every third request meets one; so many in a row that the client leaves the server alone would only be slow.
FAULTS = ("429:0.05", "500", "hang:3", "lost", "503", "truncated", "reset", "expired", "429")


def faults(count: int, kinds: tuple[str, ...] = FAULTS) -> list[str]:
    return [kinds[number // 3 % len(kinds)] if number % 3 == 0 else "" for number in range(count)]


def check(outcome: Outcome, folder: Path, count: int = COUNT) -> None:
    """Hold what came out against what is in the folder and in the ledger of money."""
    assert [record.prompt for record in outcome.records] == [f"apple {number}" for number in range(count)]
    assert {record.state for record in outcome.records} == {"drafted"}
    assert len({record.file for record in outcome.records}) == count
    assert len(list((folder / "results").glob("*.png"))) == count
    for record in outcome.records:
        data = (folder / "results" / record.file).read_bytes()
        assert hashlib.sha256(data).hexdigest() == record.sha256 and data.startswith(b"\x89PNG")
    exact = Decimal("0.003") * count
    spending = budget_of(folder).ledger
    assert outcome.cost == exact == spending.committed("session", "test")
    assert {call.state for call in spending.calls()} == {"settled"} and len(spending.calls()) == count
    lines = (folder / "results" / "results.jsonl").read_text().splitlines()
    assert [json.loads(line)["index"] for line in lines] == [*range(count)]


def check_drawn_once(outcome: Outcome, server: MockServer, count: int = COUNT) -> None:
    assert len(server.state.drawn) == count and set(server.state.drawn.values()) == {1}
    assert {record.request_id for record in outcome.records} == set(server.state.drawn)


def kill_three_times(url: str, folder: Path, provider: str, drawn: Callable[[], int]) -> None:
    """Begin the batch three times, and end it with -9 when it has drawn a few more images, at a moment of chance."""
    chance = random.Random(20261130)
    command = [sys.executable, "-m", "tests.image_client.http_batch", url, str(folder), str(COUNT), provider]
    for _ in range(3):
        batch = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        goal = drawn() + chance.randrange(5, 45)
        while drawn() < goal and batch.poll() is None:
            time.sleep(0.005)
        time.sleep(chance.random() / 5)
        batch.send_signal(signal.SIGKILL)
        assert batch.wait() == -signal.SIGKILL
        batch.stdout.close()
    assert 0 < drawn() < COUNT


async def test_two_hundred_images_through_faults(tmp_path: Path) -> None:
    with MockServer(faults=faults(150), seconds=0.01) as server:
        outcome = await run(server.url, tmp_path, COUNT)
        check(outcome, tmp_path)
        check_drawn_once(outcome, server)
    assert outcome.stopped is None and server.state.most_at_work <= 50
    assert server.state.asked.total() > COUNT + 40  # the faults were met


async def test_what_failed_within_a_200_is_told_and_drawn_on_demand(tmp_path: Path) -> None:
    with MockServer(faults=["", "error", "", "error"]) as server:
        outcome = await run(server.url, tmp_path, 6, concurrency=1)
        assert [record.error for record in outcome.records] == [None, "generation_failed"] * 2 + [None] * 2
        assert budget_of(tmp_path).ledger.committed("session", "test") == Decimal("0.012")
        outcome = await run(server.url, tmp_path, 6, again=Again(failed=True))
    assert outcome.count("drafted") == 6 and outcome.cost == Decimal("0.018")


SECONDS = 3.0  # of an image, in which fifty requests can be sent


async def test_fifty_at_once_hold_the_providers_limit_exactly(tmp_path: Path, record_property: object) -> None:
    """The time is only printed: a busy machine needs longer. That all were at work at once is counted."""
    with MockServer(concurrency=50, seconds=SECONDS) as server:
        began = time.monotonic()
        outcome = await run(server.url, tmp_path, 50, options=ClientOptions())
        seconds = time.monotonic() - began
        check(outcome, tmp_path, 50)
        check_drawn_once(outcome, server, 50)
    assert server.state.most_at_work == 50 and server.state.over_limit == 0
    record_property("times_ideal", round(seconds / SECONDS, 2))
    print(f"50 images at once: {seconds / SECONDS:.2f} times the ideal time")


async def test_a_limit_that_nobody_told_is_found_and_held(tmp_path: Path) -> None:
    with MockServer(concurrency=8, seconds=0.05) as server:
        outcome = await run(server.url, tmp_path, 60, concurrency=50)
        check(outcome, tmp_path, 60)
        check_drawn_once(outcome, server, 60)
    assert server.state.most_at_work == 8


@pytest.mark.slow
def test_after_a_ctrl_c_what_is_in_flight_comes_to_its_end(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("".join(f"apple {number}\n" for number in range(40)))
    with MockServer(seconds=1.0) as server:
        options = ["--base-url", server.url, "--concurrency", "4", "--out", "out", "--ledger", "spending.sqlite"]
        command = [sys.executable, "-m", "image_client.cli", "batch", "prompts.txt", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        batch = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        while server.state.at_work < 4:
            time.sleep(0.01)
        batch.send_signal(signal.SIGINT)
        said = batch.communicate(timeout=60)[1]
    assert batch.returncode == 1 and "It was interrupted. `image-client resume out` goes on." in said
    states = [json.loads(line)["state"] for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert states.count("drafted") == len(server.state.drawn) >= 4 and set(states) == {"drafted", "waiting"}


@pytest.mark.slow
async def test_killed_three_times_it_goes_on_where_it_was(tmp_path: Path) -> None:
    with MockServer(faults=faults(150, (*FAULTS[:2], *FAULTS[3:])), seconds=0.3) as server:
        await asyncio.to_thread(kill_three_times, server.url, tmp_path, "mock", lambda: len(server.state.drawn))
        outcome = await run(server.url, tmp_path, COUNT)
        check(outcome, tmp_path)
        check_drawn_once(outcome, server)


async def test_what_our_own_worker_has_drawn_it_gives_again(tmp_path: Path) -> None:
    request = ImageRequest(prompt="a red apple", width=32, height=32)
    with WebWorker(tmp_path) as worker:
        async with ImageClient("selfhosted", base_url=worker.origin) as images:
            first = await images.send(request, request_id="mine")
            again = await images.send(request, request_id="mine")
        assert first.data == again.data and worker.context.engine.calls == [["a red apple"]]


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_our_own_worker_through_faults_and_killed_three_times(tmp_path: Path) -> None:
    """Nothing is drawn twice: the worker knows a request id again, whoever sends it and however its answer was lost."""
    with WebWorker(tmp_path / "worker") as worker:
        engine = worker.context.engine
        met = faults(450, (*BEFORE, *AFTER, "429", "500", "lost"))
        with FaultyProxy(worker.origin, met, hang_s=1.5) as proxy:
            await asyncio.to_thread(
                kill_three_times, proxy.origin, tmp_path, "selfhosted", lambda: sum(map(len, engine.calls))
            )
            outcome = await run(proxy.origin, tmp_path, COUNT, provider="selfhosted")
        check(outcome, tmp_path)
        drawn = [prompt for call in engine.calls for prompt in call]
    assert sorted(drawn) == sorted(f"apple {number}" for number in range(COUNT))
    assert all(proxy.met[fault] > 5 for fault in (*BEFORE, *AFTER))
