"""A batch as a folder: in order, each image once, and it goes on where it was stopped."""

import asyncio
import json
from dataclasses import replace
from decimal import Decimal
from pathlib import Path

import pytest

from image_client.batch import Again, BatchRun, Outcome
from image_client.budget import Budget, Limits
from image_client.errors import (
    AuthenticationFailed,
    NotFinished,
    ProviderUnavailable,
    RequestRefused,
    UnknownOutcome,
)
from image_client.job import ProviderJob
from image_client.ledger import Ledger, LedgerError
from image_client.prices import Price, PriceBook
from image_client.prompts_file import read_jobs
from image_client.spending import Call, SpendingLedger
from image_client.starting import begin_batch
from tests.image_client.scripted import ScriptedClient, image_of

ONCE = Again()
THREE_MILLS = Price(provider="scripted", model="*", unit="image", usd="0.003", source="a test", read="2026-11-30")


class Bench:
    """A folder, a budget and a list of prompts."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "results"
        self.list = folder / "prompts.txt"
        self.spending = SpendingLedger(folder / "spending.sqlite")

    def write(self, count: int) -> None:
        self.list.write_text("".join(f"apple {number}\n" for number in range(count)))

    def budget(self, dollars: str | None = None) -> Budget:
        limits = Limits(dollars and Decimal(dollars), None)
        return Budget(self.spending, PriceBook((THREE_MILLS,)), "test", limits)

    def ledger(self) -> Ledger:
        return begin_batch(self.folder, read_jobs(self.list, {}), "scripted", None, source=self.list.name)

    async def run(
        self, client: ScriptedClient, dollars: str | None = None, concurrency: int = 50, again: Again = ONCE
    ) -> Outcome:
        with self.ledger() as ledger:
            budget = self.budget(dollars)
            return await BatchRun(ledger, budget, client.connect, concurrency=concurrency, again=again).run()

    @property
    def spent(self) -> Decimal:
        return self.spending.committed("session", "test")


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


async def test_images_come_in_order_each_once(bench: Bench) -> None:
    bench.write(30)
    client = ScriptedClient(crowd=7)
    outcome = await bench.run(client, concurrency=7)
    assert [record.prompt for record in outcome.records] == [f"apple {number}" for number in range(30)]
    assert set(client.sent.values()) == {1} and client.most_in_flight == outcome.most_in_flight == 7
    assert outcome.cost == bench.spent == Decimal("0.090")
    for record in outcome.records:
        assert (bench.folder / record.file).read_bytes() == image_of_prompt(record.prompt)
        assert (record.seed, record.state) == (7, "drafted")
    lines = [json.loads(line) for line in (bench.folder / "results.jsonl").read_text().splitlines()]
    assert [line["index"] for line in lines] == [*range(30)]


async def test_the_same_command_again_does_nothing_twice(bench: Bench) -> None:
    bench.write(5)
    await bench.run(ScriptedClient())
    again = ScriptedClient()
    outcome = await bench.run(again)
    assert not again.sent and outcome.drawn_now == 0 and outcome.count("drafted") == 5
    bench.write(6)
    with pytest.raises(LedgerError, match="holds another batch"):
        await bench.run(again)


async def test_a_folder_has_one_owner(bench: Bench) -> None:
    bench.write(1)
    with bench.ledger(), pytest.raises(LedgerError, match="open in another process"):
        Ledger.open(bench.folder)
    Ledger.open(bench.folder).close()


async def test_failures_are_told_and_sent_again_on_demand(bench: Bench) -> None:
    bench.write(4)
    answer = lambda request, *_: RequestRefused("too dark") if request.prompt == "apple 2" else None  # noqa: E731
    outcome = await bench.run(ScriptedClient(answer))
    assert outcome.stopped is None
    assert [(r.state, r.error, r.reason) for r in outcome.records][2] == ("failed", "request_refused", "too dark")
    untouched = ScriptedClient()
    await bench.run(untouched)
    assert not untouched.sent
    outcome = await bench.run(untouched, again=Again(failed=True))
    assert dict(untouched.sent) == {"apple 2": 1} and outcome.count("drafted") == 4
    assert outcome.records[2].reason is None and bench.spent == Decimal("0.012")


async def test_the_budget_stops_a_batch_that_goes_on_when_it_is_raised(bench: Bench) -> None:
    bench.write(10)
    client = ScriptedClient()
    outcome = await bench.run(client, dollars="0.0125")
    assert outcome.count("drafted") == 4 and outcome.count("waiting") == 6
    assert "raise it" in outcome.stopped and bench.spent == Decimal("0.012")
    outcome = await bench.run(client, dollars="0.03")
    assert outcome.stopped is None and outcome.count("drafted") == 10
    assert set(client.sent.values()) == {1} and bench.spent == Decimal("0.030")


async def test_a_wrong_key_stops_the_batch_and_fails_nothing(bench: Bench) -> None:
    bench.write(100)
    client = ScriptedClient(lambda *_: AuthenticationFailed("no such token"), slow=0.001)
    outcome = await bench.run(client, concurrency=5)
    assert outcome.stopped == "no such token" and outcome.count("waiting") == 100
    assert sum(client.sent.values()) <= 5 and bench.spent == 0


async def test_a_provider_that_is_away_stops_the_batch(bench: Bench) -> None:
    bench.write(100)
    outcome = await bench.run(ScriptedClient(lambda *_: ProviderUnavailable("nobody listens")), concurrency=2)
    assert outcome.stopped == "nobody listens" and bench.spent == 0
    assert outcome.count("failed") == 4 and outcome.count("waiting") == 96
    sometimes = lambda request, *_: ProviderUnavailable("x") if request.prompt[-1] in "0123" else None  # noqa: E731
    outcome = await bench.run(ScriptedClient(sometimes), concurrency=1, again=Again(failed=True))
    assert outcome.stopped is None and outcome.count("drafted") == 60  # never five in a row


async def test_an_unknown_outcome_is_not_sent_again_unless_asked(bench: Bench) -> None:
    bench.write(3)
    answer = lambda request, _, times: UnknownOutcome("silence") if (request.prompt, times) == ("apple 1", 1) else None  # noqa: E731
    client = ScriptedClient(answer)
    outcome = await bench.run(client)
    assert [r.state for r in outcome.records] == ["drafted", "unknown", "drafted"]
    assert bench.spent == Decimal("0.009")  # it may have been charged
    await bench.run(client)
    assert client.sent["apple 1"] == 1
    outcome = await bench.run(client, again=Again(unknown=True))
    assert outcome.count("drafted") == 3 and bench.spent == Decimal("0.012")  # both calls count


async def test_a_provider_that_knows_our_id_is_asked_again_for_free(bench: Bench) -> None:
    bench.write(2)
    ids: list[str] = []

    def answer(request: object, request_id: str, times: int) -> Exception | None:
        ids.append(request_id)
        return UnknownOutcome("silence") if times == 1 else None

    client = ScriptedClient(answer, idempotent=True)
    await bench.run(client)
    outcome = await bench.run(client)
    assert outcome.count("drafted") == 2 and sorted(ids[:2]) == sorted(ids[2:])
    assert bench.spent == Decimal("0.006")


async def test_a_lost_job_is_looked_for_in_the_list_of_its_provider(bench: Bench) -> None:
    bench.write(2)
    with bench.ledger() as ledger:  # as a process leaves it that is killed while it waits for two answers
        for index in range(2):
            key = f"{ledger.info.id}-{index + 1}-1"
            bench.budget().ledger.reserve(_call(key), [], [])
            ledger.add(index, "sent", request_id=key)
    client = ScriptedClient()
    client.listed["apple 0"] = ProviderJob(provider="scripted", job_id="apple 0", poll_url="http://x", request_id="x")
    outcome = await bench.run(client)
    assert [record.state for record in outcome.records] == ["drafted", "unknown"]
    assert not client.sent and bench.spent == Decimal("0.006")


async def test_an_accepted_job_is_collected_never_sent_again(bench: Bench) -> None:
    bench.write(2)

    def answer(request: object, request_id: str, times: int) -> Exception:
        job = ProviderJob(provider="scripted", job_id=request.prompt, poll_url="http://x", request_id=request_id)
        client.options.on_accepted(job)
        return NotFinished("it still runs", job=job)

    client = ScriptedClient(answer)
    outcome = await bench.run(client)
    assert outcome.count("accepted") == 2 and bench.spent == Decimal("0.006")
    outcome = await bench.run(client)
    assert outcome.count("drafted") == 2 and set(client.sent.values()) == {1}
    assert sorted(job.job_id for job in client.collected) == ["apple 0", "apple 1"]
    assert bench.spent == Decimal("0.006")


async def test_cancelled_amid_it_goes_on(bench: Bench) -> None:
    bench.write(6)
    client = ScriptedClient(slow=0.5, idempotent=True)
    task = asyncio.create_task(bench.run(client, concurrency=3))
    while client.in_flight < 3:
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    outcome = await bench.run(ScriptedClient(idempotent=True))
    assert outcome.count("drafted") == 6 and bench.spent == Decimal("0.018")


async def test_killed_between_a_line_and_its_settlement(bench: Bench) -> None:
    bench.write(1)
    await bench.run(ScriptedClient())
    (call,) = bench.spending.calls()
    bench.spending._database.execute("UPDATE calls SET state = 'reserved', nano = 9000000")
    await bench.run(ScriptedClient())
    assert bench.spent == Decimal("0.003")
    assert [row.key for row in bench.spending.calls()] == [call.key]


def test_a_torn_line_is_forgotten_and_a_damaged_one_told(bench: Bench) -> None:
    bench.write(2)
    with bench.ledger() as ledger:
        ledger.add(0, "sent", request_id="x")
    path = bench.folder / "ledger.jsonl"
    whole = path.read_text()
    path.write_text(whole + '{"index":1,"sta')
    with bench.ledger() as ledger:
        assert [record.state for record in ledger.records()] == ["sent", "waiting"]
        ledger.add(1, "sent")
    assert path.read_text().startswith(whole) and path.read_text().count("\n") == 2
    path.write_text('{"index":7}\n')
    with pytest.raises(LedgerError, match=r"ledger.jsonl:1 is damaged"):
        bench.ledger()


async def test_what_the_safety_checker_said_stays_with_the_image(bench: Bench) -> None:
    bench.write(1)
    said = {"output": {"safety": [{"flagged": True, "label": "nsfw", "score": 0.9}]}}
    client = ScriptedClient(lambda request, request_id, _: replace(image_of(request, request_id), raw=said))
    (record,) = (await bench.run(client)).records
    assert record.scores == {"nsfw": 0.9}


async def test_cut_off_anywhere_the_ledger_says_what_its_whole_lines_say(bench: Bench, tmp_path: Path) -> None:
    bench.write(3)
    await bench.run(ScriptedClient())
    path = bench.folder / "ledger.jsonl"
    whole = path.read_bytes()
    states = {0: ["waiting"] * 3}
    with bench.ledger() as ledger:
        jobs = ledger.jobs
    for end in [index + 1 for index, byte in enumerate(whole) if byte == ord("\n")]:
        events = [json.loads(line) for line in whole[:end].splitlines()]
        last = {event["index"]: event["state"] for event in events}
        states[end] = [last.get(job.index, "waiting") for job in jobs]
    for cut in range(0, len(whole) + 1, 37):
        path.write_bytes(whole[:cut])
        with bench.ledger() as ledger:
            assert [record.state for record in ledger.records()] == states[max(end for end in states if end <= cut)]


async def test_equal_images_are_told(bench: Bench) -> None:
    bench.list.write_text("apple\npear\napple\n")
    outcome = await bench.run(ScriptedClient())
    assert [record.duplicate_of for record in outcome.records] == [None, None, 0]


async def test_a_disk_that_is_full_stops_the_batch(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.write(3)

    def full(*_: object) -> str:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("image_client.batch._write_image", full)
        outcome = await bench.run(ScriptedClient(idempotent=True), concurrency=1)
    assert "No space left" in outcome.stopped and outcome.count("drafted") == 0
    outcome = await bench.run(ScriptedClient(idempotent=True))
    assert outcome.count("drafted") == 3 and bench.spent == Decimal("0.009")


def _call(key: str) -> Call:
    return Call(key, "test", "2026-11", "scripted", None, 1, "reserved", Decimal("0.003"), None, "2026-11-30", None)


def image_of_prompt(prompt: str) -> bytes:
    from image_client.request import ImageRequest

    return image_of(ImageRequest(prompt=prompt), "x").data
