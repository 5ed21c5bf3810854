"""Who is told, how often it is tried, and how much may wait; a watch whose readings fail goes on."""

import asyncio
import json
import logging

import pytest

from worker.service.alerts import measures, outlets
from worker.service.alerts.measures import Counts, Readings
from worker.service.alerts.outlets import Outlets
from worker.service.alerts.schema import AlertsFile
from worker.service.alerts.watch import Alerts

FILE = AlertsFile.model_validate_json(
    json.dumps({"webhook": "https://hooks.example.com/x", "rules": {"queue": {"measure": "queue_length", "above": 0}}})
)
BUSY = Readings(queue_length=1)


class Line:
    """A pool and a sender in one: keeps what is posted, and answers with the next of `answers`."""

    def __init__(self, *answers):
        self.answers, self.posted = list(answers), []
        self.open = asyncio.Event()
        self.open.set()

    async def run(self, function, *args, place):
        await self.open.wait()
        return function(*args)

    def post(self, url, id, body):
        self.posted.append((url, json.loads(body)["data"]["alert"]))
        return self.answers.pop(0) if self.answers else None


def watched(line, read=None):
    async def busy():
        return BUSY

    return Alerts(FILE, Outlets(line, line), read or busy, "w")


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(outlets, "PAUSES_S", (0.0, 0.0))


@pytest.mark.parametrize(("answers", "posts", "gives_up"), [(["it answered 500"], 2, 0), (["no"] * 9, 3, 1)])
async def test_a_webhook_is_tried_three_times_and_its_end_is_in_the_log(answers, posts, gives_up, caplog):
    line = Line(*answers)
    alerts = watched(line)
    await alerts.look()
    for _ in range(50):
        await asyncio.sleep(0)
    await alerts.end(1.0)
    assert line.posted == [("https://hooks.example.com/x", "queue")] * posts
    assert caplog.text.count("its webhook was tried 3 times: no") == gives_up


async def test_what_waits_for_a_server_is_bounded_and_given_up_at_the_end(caplog, monkeypatch):
    monkeypatch.setattr(outlets, "MAX_WAITING", 1)
    line = Line()
    line.open.clear()
    alerts = watched(line)
    await alerts.look()
    alerts.replace(AlertsFile(webhook=FILE.webhook, rules={"other": FILE.rules["queue"]}))
    await alerts.look()
    assert "alert other was not sent; 1 others wait" in caplog.text
    await asyncio.wait_for(alerts.end(0.01), 60)
    line.open.set()
    for _ in range(20):
        await asyncio.sleep(0)
    assert line.posted == []


async def test_a_reading_that_fails_is_told_and_the_next_one_counts(caplog):
    caplog.set_level(logging.INFO, "worker.service.alerts")
    readings = [OSError("gone"), BUSY]

    async def read():
        reading = readings.pop(0)
        if isinstance(reading, Exception):
            raise reading
        return reading

    line = Line()
    alerts = watched(line, read)
    await alerts.look()
    assert "the alerts were not looked at: OSError" in caplog.text
    assert alerts.firing == ()
    await alerts.look()
    assert alerts.firing == ("queue",)
    await alerts.end(1.0) if readings else None


def test_lines_of_the_usage_log_that_are_none_do_not_count():
    alerts = Alerts(AlertsFile(rules={"budget": {"measure": "cost_usd", "above": 0}}))
    alerts.remember([{"cost_usd": 1.0, "at": "yesterday"}, {"cost_usd": "1", "at": "2026-01-01"}, {"at": None}, {}])
    assert alerts.states()[0].value is None


def test_what_one_slot_keeps_of_strangers_and_waits_is_bounded(monkeypatch):
    from tests.service.alerts.test_alarm import record

    monkeypatch.setattr(measures, "_CALLERS", 2)
    monkeypatch.setattr(measures, "_WAITS", 3)
    counts = Counts(0.0)
    for number in range(9):
        counts.note(record("rate_limited", caller=f"caller {number}"))
        counts.note(record(queue_s=float(number)))
    counts.note(record("rate_limited", caller="caller 0"))
    assert counts.refused == {"caller 0": 2, "caller 1": 1}
    assert counts.waits == [0.0, 1.0, 2.0]
    assert counts.jobs == 9
