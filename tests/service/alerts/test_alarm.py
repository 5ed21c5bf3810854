"""One rule over time: what is counted, how long it must last, and when it is over."""

import pytest

from worker.core.result import Timings, Usage
from worker.service.alerts.alarm import Alarm
from worker.service.alerts.measures import MEASURES, Readings
from worker.service.alerts.schema import Rule
from worker.service.usage.record import Record


def record(outcome="ok", *, model="tiny", queue_s=0.0, load_s=0.0, usd=None, action="generate", caller=None):
    drawn = outcome == "ok" and action == "generate"
    return Record(
        *(action, "job", "-", caller, None, outcome, 0.0, 0.0, 1.0, model, None, None, 0.0),
        timings=Timings(queue_s=queue_s, load_s=load_s) if drawn else None,
        usage=Usage(1.0, 1, 1, 0.0, 0, usd) if drawn else None,
        loras=0,
        encode_s=0.0,
    )


def alarm(**rule):
    return Alarm("x", Rule(**rule), 0.0)


def value(measured, records, readings=None, **rule):
    """The value of a measure once these were noted, a second apart."""
    each = alarm(measure=measured, above=0, **rule)
    for second, noted in enumerate(records):
        each.note(noted, float(second))
    each.look(readings or Readings(), float(len(records)))
    return each.value


FAILED, REFUSED = record("engine_failure"), record("rate_limited", caller="anna")
CASES = {
    "error_rate": (
        [record(), FAILED, record("job_timeout"), record("invalid_request"), record("job_cancelled")],
        2 / 3,
    ),
    "queue_s": ([record(queue_s=wait) for wait in range(20)] + [FAILED], 18),
    "cold_starts": ([record(load_s=2.0), record(), record(load_s=0.1)], 2),
    "cost_usd": ([record(usd=0.25), record(usd=0.5), record()], 0.75),
    "refused": ([REFUSED, REFUSED, record("quota_exceeded", caller="ben"), record("overloaded", caller="ben")], 2),
    "denied": ([record("unauthenticated", action="access"), record("access_denied", action="access"), record()], 2),
    "queue_length": ([], 7),
    "disk_free_gb": ([], 12.5),
    "lost": ([], 1),
}


def test_every_measure_counts_what_it_says():
    now = Readings(queue_length=7, disk_free_gb=12.5, lost=1)
    rules = {"error_rate": {"min_jobs": 3}}
    got = {name: value(name, noted, now, **rules.get(name, {})) for name, (noted, _) in CASES.items()}
    assert got == pytest.approx({name: expected for name, (_, expected) in CASES.items()})
    assert got.keys() == MEASURES.keys()


@pytest.mark.parametrize("measured", CASES)
def test_a_rule_over_every_measure_fires_beyond_its_bound_and_not_at_it(measured):
    noted, expected = CASES[measured]
    now = Readings(queue_length=7, disk_free_gb=12.5, lost=1)
    few = {"min_jobs": 3} if measured == "error_rate" else {}
    bounds = {"below": expected + 1} if measured == "disk_free_gb" else {"above": expected - 0.5}
    at = {"below" if measured == "disk_free_gb" else "above": expected}
    for rule, fires in ((bounds, True), (at, False)):
        each = alarm(measure=measured, **rule, **few)
        for second, record_ in enumerate(noted):
            each.note(record_, float(second))
        assert each.look(now, 30.0) is fires
        assert each.state == ("firing" if fires else "quiet")


def test_few_jobs_say_nothing_and_other_models_do_not_count():
    assert value("error_rate", [FAILED] * 4) is None
    assert value("error_rate", [FAILED] * 5) == 1.0
    assert value("error_rate", [FAILED] * 5, model="other") is None
    assert value("queue_s", []) is None


def test_what_is_older_than_the_window_does_not_count():
    each = alarm(measure="cost_usd", above=1, over_s=60)
    for second in range(100):
        each.note(record(usd=0.1), float(second))
    each.look(Readings(), 100.0)
    assert 5.8 <= each.value <= 6.1  # a sixtieth of the window more or less
    assert each.look(Readings(), 161.0)
    assert (each.value, each.state) == (0, "quiet")


def told(each, waits, step_s=10.0):
    """What is told of a queue of these lengths, looked at every `step_s` seconds: (when, state)."""
    changes = []
    for index, length in enumerate(waits):
        if each.look(Readings(queue_length=length), index * step_s):
            changes.append((index * step_s, each.state))
    return changes


def test_it_must_last_before_anybody_is_told():
    each = alarm(measure="queue_length", above=10, for_s=30)
    assert told(each, [11, 11, 9, 11, 11, 11]) == []
    assert each.state == "pending"
    assert told(alarm(measure="queue_length", above=10, for_s=30), [11] * 8) == [(30.0, "firing")]
    assert told(alarm(measure="queue_length", above=10), [10, 11]) == [(10.0, "firing")]


def test_what_flutters_about_its_bound_is_told_once():
    fluttering = [11, 9, 11, 9, 11, 5, 11, 4, 11]
    plain = told(alarm(measure="queue_length", above=10), fluttering)
    assert len(plain) == len(fluttering)
    steady = told(alarm(measure="queue_length", above=10, until=4), fluttering)
    assert steady == [(0.0, "firing"), (70.0, "quiet"), (80.0, "firing")]


def test_a_lower_bound_works_the_other_way_round():
    each = alarm(measure="queue_length", below=5, until=8)
    assert told(each, [5, 4, 7, 8]) == [(10.0, "firing"), (30.0, "quiet")]


def test_at_the_last_look_a_lost_engine_does_not_wait():
    for measured, fires in (("lost", True), ("queue_length", False)):
        each = alarm(measure=measured, above=0, for_s=300)
        assert each.look(Readings(queue_length=1, lost=1), 0.0, is_last=True) is fires
