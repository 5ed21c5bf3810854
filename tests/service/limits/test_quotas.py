"""What a caller pays for: one request a job, and the work that was drawn for it; never what he was turned away with."""

import asyncio
import json
import subprocess
import sys
import time

import pytest

from tests.asking import perform
from tests.conftest import PROJECT
from tests.fakes.engine import FakeEngine, make_context
from tests.service.limits.test_admission import started
from worker.core.errors import InvalidOutput, LoadFailed, Overloaded, QuotaExceeded, RateLimited, WorkerError
from worker.service.jobs.record import JobOptions
from worker.service.jobs.store import JobStore
from worker.service.limits.accounts import Accounts
from worker.service.limits.quotas import QuotaLimits, Quotas
from worker.transport.job_input import read_input

WORK = 64 * 64 * 5  # of the context's model, at its own steps


class Clock:
    """Wall time that a test moves."""

    def __init__(self):
        self.now = 1_800_000_000.0

    def __call__(self):
        return self.now


def charge(quotas, caller, pixel_steps):
    with quotas.reserve(caller) as reservation:
        quotas.charge(reservation, pixel_steps)


def test_a_rate_refills_with_time():
    clock = Clock()
    quotas = Quotas(QuotaLimits(requests_per_minute=2), now=clock)
    charge(quotas, "a", 1)
    charge(quotas, "a", 1)
    with pytest.raises(RateLimited, match="At most 2 requests a minute") as refused:
        charge(quotas, "a", 1)
    assert refused.value.details["retry_after_s"] == 30
    clock.now += 29
    with pytest.raises(RateLimited):
        quotas.check("a")
    clock.now += 1
    quotas.check("a")
    charge(quotas, "a", 1)
    clock.now -= 3600  # a clock that is set back takes nothing away
    with pytest.raises(RateLimited):
        charge(quotas, "a", 1)
    quotas.check("b")
    quotas.check(None)


def test_a_quota_is_of_one_day():
    clock = Clock()
    quotas = Quotas(QuotaLimits(pixel_steps_per_day=100), now=clock)
    charge(quotas, "a", 60)
    with pytest.raises(QuotaExceeded, match="of which 40 are left, and this job is 41; ask for less") as refused:
        charge(quotas, "a", 41)
    charge(quotas, "a", 40)
    with pytest.raises(QuotaExceeded, match="of which 0 are left; try again in"):
        quotas.check("a")
    clock.now += refused.value.details["retry_after_s"]
    charge(quotas, "a", 100)


def test_a_job_that_is_tried_on_two_models_is_one_request_and_the_work_of_the_second():
    quotas = Quotas(QuotaLimits(requests_per_minute=2, pixel_steps_per_day=100), now=Clock())
    with quotas.reserve("a") as reservation:
        quotas.charge(reservation, 80)
        quotas.charge(reservation, 30)
    charge(quotas, "a", 70)
    with pytest.raises(RateLimited):
        charge(quotas, "a", 1)


def test_what_is_given_back_after_midnight_is_no_gift():
    clock = Clock()
    quotas = Quotas(QuotaLimits(pixel_steps_per_day=100), now=clock)
    with pytest.raises(LoadFailed), quotas.reserve("a") as reservation:
        quotas.charge(reservation, 60)
        clock.now += 86_400
        charge(quotas, "a", 100)
        raise LoadFailed("No.")
    with pytest.raises(QuotaExceeded):
        charge(quotas, "a", 1)


def test_quotas_survive_a_restart_and_a_damaged_file_is_no_reason_to_stop(tmp_path):
    clock, file = Clock(), tmp_path / "state" / "quotas.json"
    limits = QuotaLimits(requests_per_minute=1, pixel_steps_per_day=100)

    def run(pixel_steps):
        quotas = Quotas(limits, Accounts(file), clock)
        try:
            charge(quotas, "a", pixel_steps)
        finally:
            quotas.close()

    run(60)
    clock.now += 60
    with pytest.raises(QuotaExceeded):
        run(60)
    run(40)
    for damage in ("", "{", "[]", '{"a": 5}', '{"a": {"tokens": 1}}'):
        file.write_text(damage)
        run(60)


def test_what_is_booked_while_the_file_is_written_is_in_the_file_too(tmp_path):
    file = tmp_path / "quotas.json"
    quotas = Quotas(QuotaLimits(requests_per_minute=1_000_000, pixel_steps_per_day=10**9), Accounts(file))
    for _ in range(500):
        charge(quotas, "a", 1)
    quotas.close()
    assert json.loads(file.read_text())["a"]["used"] == 500


def test_processes_that_share_their_accounts_give_a_caller_one_share(tmp_path):
    limits = QuotaLimits(requests_per_minute=3, pixel_steps_per_day=100)
    file, shared, clock = tmp_path / "state" / "quotas.json", tmp_path / "shared.json", Clock()
    first, second = (Quotas(limits, Accounts(file, shared), clock) for _ in range(2))
    charge(first, "a", 60)
    with pytest.raises(QuotaExceeded):
        charge(second, "a", 60)
    charge(second, "a", 40)
    with pytest.raises(QuotaExceeded):
        first.check("a")
    charge(first, "b", 1)
    charge(second, "b", 1)
    charge(first, "b", 1)
    with pytest.raises(RateLimited):
        charge(second, "b", 1)
    for quotas in (first, second):
        quotas.close()
    again = Quotas(limits, Accounts(file, tmp_path / "next.json"), clock)
    with pytest.raises(QuotaExceeded):
        charge(again, "a", 1)


def test_a_charge_of_each_process_counts(tmp_path):
    code = (
        "import sys; from pathlib import Path\n"
        "from worker.service.limits.accounts import Accounts; from worker.service.limits.quotas import *\n"
        "quotas = Quotas(QuotaLimits(10**6, 10**9), Accounts(None, Path(sys.argv[1])))\n"
        "for _ in range(300):\n"
        "    with quotas.reserve('a') as reservation: quotas.charge(reservation, 1)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "shared.json")]
    processes = [subprocess.Popen(command, cwd=PROJECT) for _ in range(3)]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    with Accounts(None, tmp_path / "shared.json").held() as accounts:
        assert accounts["a"].used == 900


class Paying:
    """A context whose jobs are those of one caller."""

    def __init__(self, root, **changes):
        self.engine = FakeEngine()
        limits = {"rate_limit_per_minute": 1_000, "quota_pixel_steps_per_day": 100 * WORK}
        self.context = make_context(root, self.engine, **{**limits, **changes})
        moment = time.time()
        self.context.worker.quotas._now = lambda: moment  # requests come back by the clock, on a slow machine too

    async def draw(self, job_id, **fields):
        payload = {"prompt": "an apple", "width": 64, "height": 64, **fields}
        return await perform(self.context.worker, payload, job_id, caller="a")

    @property
    def paid(self):
        """Requests and pixel-steps."""
        with self.context.worker.quotas._accounts.held() as accounts:
            account = accounts.get("a")
        return (round(1_000 - account.tokens), account.used) if account else (0, 0)


async def test_a_second_delivery_costs_nothing(tmp_path):
    paying = Paying(tmp_path)
    store, answers = JobStore(paying.context.worker.operations.perform), []
    for _ in range(2):
        asked = read_input({"prompt": "an apple", "width": 64, "height": 64, "seed": 1})
        record = store.submit(asked, "same-job", JobOptions(), "a")
        await record.wait()
        answers.append(record.outcome())
    assert answers[0] is answers[1]
    assert paying.paid == (1, WORK)
    assert await paying.context.draw("platforms-job")  # a platform's jobs are nobody's
    assert paying.paid == (1, WORK)


@pytest.mark.parametrize("steps", [5, 2])
async def test_a_job_that_a_stand_in_draws_is_paid_once(tmp_path, steps):
    make_context(tmp_path)
    registry = json.loads((tmp_path / "models.yaml").read_text())
    registry["models"]["weak"] = {"source": "file:models/sd1", "fallback": "tiny"}
    (tmp_path / "weak.yaml").write_text(json.dumps(registry))
    paying = Paying(tmp_path, models_yaml=tmp_path / "weak.yaml", rate_limit_per_minute=1_000)
    paying.engine.failures.append(LoadFailed("Damaged."))
    answer = await paying.draw("1", model="weak", steps=steps)
    assert answer["model"] == "tiny"
    assert [job.call.spec.id for job in paying.engine.ran] == ["weak", "tiny"]
    assert paying.paid == (1, 64 * 64 * steps)


@pytest.mark.parametrize(
    "sent",
    [{"model": "nope"}, {"widht": 1}, {"steps": -1}, {"num_images": 99}, {"model": "org/sdxl"}, {"image": "no image"}],
)
async def test_a_request_that_is_refused_costs_no_work(tmp_path, sent):
    paying = Paying(tmp_path)
    with pytest.raises(WorkerError):
        await paying.draw("1", **sent)
    assert paying.engine.ran == []
    assert paying.paid[1] == 0


async def test_too_much_work_and_a_full_queue_cost_nothing_at_all(tmp_path):
    paying = Paying(tmp_path, max_pixel_steps=2 * WORK, max_concurrent_jobs=1, max_queued_jobs=0)
    with pytest.raises(WorkerError, match="at most"):
        await paying.draw("1", num_images=3)
    assert paying.paid == (0, 0)
    paying.engine.gate.clear()
    running = asyncio.create_task(paying.context.draw())
    await started(paying.context, 1)
    with pytest.raises(Overloaded):
        await paying.draw("2")
    assert paying.paid == (0, 0)
    paying.engine.gate.set()
    await running


async def test_what_fails_is_not_paid_for(tmp_path):
    paying = Paying(tmp_path)
    paying.engine.failures.append(InvalidOutput("Black."))
    with pytest.raises(InvalidOutput):
        await paying.draw("1")
    assert paying.paid == (1, 0)


async def test_who_takes_a_job_back_pays_for_it_once_it_is_drawn_at(tmp_path):
    paying = Paying(tmp_path, max_concurrent_jobs=1)
    paying.engine.gate.clear()
    first = asyncio.create_task(paying.draw("first"))
    await started(paying.context, 1)
    second = asyncio.create_task(paying.draw("second"))
    await started(paying.context, 2)
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert paying.paid == (2, WORK)  # of the second one nothing was drawn
    first.cancel()  # before its first step
    with pytest.raises(asyncio.CancelledError):
        await first
    assert paying.paid == (2, 0)
    paying.engine.gate.set()
    seen = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(progress):
        if progress.phase == "inference" and not seen.is_set():
            paying.engine.gate.clear()
            loop.call_soon_threadsafe(seen.set)

    third = asyncio.create_task(
        perform(paying.context.worker, {"prompt": "x", "width": 64, "height": 64}, "third", tell, "a")
    )
    await seen.wait()
    third.cancel()
    with pytest.raises(asyncio.CancelledError):
        await third
    assert paying.paid == (3, WORK)
    paying.engine.gate.set()


def test_a_job_larger_than_a_whole_day_is_not_worth_another_try():
    quotas = Quotas(QuotaLimits(pixel_steps_per_day=100), now=Clock())
    with quotas.reserve("anna") as reservation:
        with pytest.raises(QuotaExceeded, match=r"101 pixel-steps.* 100 a day; ask for fewer") as refused:
            quotas.charge(reservation, 101)
        assert (refused.value.retryable, "retry_after_s" in refused.value.details) == (False, False)
        quotas.charge(reservation, 100)
    with quotas.reserve("anna") as reservation:
        with pytest.raises(QuotaExceeded) as refused:
            quotas.charge(reservation, 1)
        assert (refused.value.retryable, "retry_after_s" in refused.value.details) == (True, True)  # tomorrow
