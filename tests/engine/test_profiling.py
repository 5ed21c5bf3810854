"""A profile says where the seconds went, changes no pixel, and tells nothing of what was asked for."""

import gzip
import json
import socket
from types import SimpleNamespace

import numpy as np
import pybase64
import pytest
import torch

from tests.asking import perform
from tests.fakes.engine import fresh_id
from tests.images import pixels
from worker.core.errors import JobCancelled
from worker.core.result import EngineReport, Progress, ignore_progress
from worker.engine import profiling
from worker.engine.profiling import compressed, profiled

SECRET = "a zanzibarian frog"
PROFILED, PLAIN = (SimpleNamespace(jobs=(SimpleNamespace(is_profiled=value),)) for value in (True, False))


def trace_of(answer):
    return gzip.decompress(pybase64.b64decode(answer["profile"]["trace"])).decode()


async def draw(worker, **fields):
    return await perform(worker, {"prompt": SECRET, "seed": 7, **fields}, fresh_id())


def stepping(steps, between=lambda: None):
    """A run of so many steps, each of two sines, with a load before them and a cosine behind."""

    def run(batch, emit):
        torch.ones(4).exp()
        emit(Progress("load", 1, 1))
        emit(Progress("inference", 0, steps))
        for step in range(steps):
            torch.ones(4).sin(), torch.ones(4).sin()
            between()
            emit(Progress("inference", step + 1, steps))
        torch.ones(4).cos()
        return EngineReport(((),))

    return run


def counts(report):
    return {each.name: each.calls for each in report.profile.operators}


async def test_a_profiled_image_is_the_same_and_its_profile_tells_nothing_of_the_prompt(worker):
    plain = await draw(worker)
    answer = await draw(worker, profile=True)
    assert np.array_equal(pixels(plain), pixels(answer))
    assert "profile" not in plain
    told = answer["profile"]
    assert (told["steps"], told["left_out"]) == (3, 0)
    operators = {each["name"]: each for each in told["operators"]}
    assert 0 < len(operators) <= 20
    assert all(each["cpu_ms"] >= 0 and each["calls"] > 0 for each in operators.values())
    assert any("conv" in name for name in operators)
    text = trace_of(answer)
    events = [event for event in json.loads(text)["traceEvents"] if event["ph"] == "X"]
    assert len(events) == told["events"]
    for secret in ("frog", "zanzibar", socket.gethostname(), "/tmp"):
        assert secret not in text
    assert not torch._C._autograd._profiler_enabled()


def test_of_many_steps_the_first_are_recorded_and_what_follows_the_last():
    found = counts(profiled(stepping(9), PROFILED, ignore_progress))
    assert (found["aten::sin"], found["aten::cos"]) == (8, 1)
    assert "aten::exp" not in found  # nothing of a load
    few = profiled(stepping(2), PROFILED, ignore_progress)
    assert (few.profile.steps, counts(few)["aten::sin"], counts(few)["aten::cos"]) == (2, 4, 1)


def test_a_library_s_own_marks_are_not_told():
    def mark():
        with torch.profiler.record_function(SECRET):
            torch.ones(4).tan()

    report = profiled(stepping(2, mark), PROFILED, ignore_progress)
    assert counts(report)["aten::tan"] == 2
    assert SECRET not in gzip.decompress(report.profile.trace).decode()
    assert SECRET not in counts(report)


def test_a_job_that_stops_midway_leaves_no_profiler_on():
    def stop():
        raise JobCancelled("stop")

    with pytest.raises(JobCancelled):
        profiled(stepping(2, stop), PROFILED, ignore_progress)
    assert not torch._C._autograd._profiler_enabled()
    assert profiled(stepping(2), PROFILED, ignore_progress).profile is not None


def test_where_the_profiler_does_not_work_the_job_does(monkeypatch):
    def fail(**_):
        raise RuntimeError("no CUPTI here")

    monkeypatch.setattr(profiling, "profile", fail)
    report = profiled(stepping(2), PROFILED, ignore_progress)
    assert report.profile is None
    assert "could not be profiled" in report.warnings[0]


def test_a_job_that_asks_for_none_has_none():
    report = profiled(stepping(2), PLAIN, ignore_progress)
    assert (report.profile, report.warnings) == (None, ())


def test_of_a_trace_that_is_too_large_the_shortest_events_go():
    random = np.random.default_rng(0)
    named = {"ph": "M", "name": "process_name"}
    events = [named] + [
        {"ph": "X", "name": f"{random.integers(2**60):x}", "ts": float(random.random()), "dur": dur}
        for dur in map(float, random.permutation(1000))
    ]
    whole, nothing = compressed(events)
    assert nothing == 0
    trace, left_out = compressed(events, len(whole) // 3)
    kept = json.loads(gzip.decompress(trace))["traceEvents"]
    assert len(trace) <= len(whole) // 3
    assert kept[0] == named
    assert {event["dur"] for event in kept[1:]} == {float(dur) for dur in range(left_out, 1000)}
    assert 500 < left_out < 900
    assert compressed(events, 20) == (b"", 1000)
