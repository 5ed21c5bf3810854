"""Profiles of jobs that ask for one: torch's profiler around the pipeline's calls, and what of it may be told.

It is begun and paused by the job's own progress. So loading is not in it, and of many steps only the first few are: all
steps of a job are alike, and an hour of them fits in no file. What follows the last step is in it again.
"""

import gzip
import json
import logging
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile, supported_activities

from worker.core.job import Batch
from worker.core.profile import MAX_OPERATORS, MAX_STEPS, MAX_TRACE_BYTES, OperatorCost, Profile
from worker.core.result import Emit, EngineReport, Progress

_LOG = logging.getLogger(__name__)
_NOT_MADE = "The job could not be profiled: torch's profiler does not work on this device, or is in use elsewhere."
_MAX_RAW_BYTES = 100_000_000  # of the profiler's own file, which is read as a whole
# What is told of a trace. All else may hold what is nobody's business: a host's name, a path, or a library's own marks,
# which are free text.
_CATEGORIES = frozenset(
    {
        *("cpu_op", "kernel", "gpu_memcpy", "gpu_memset", "ac2g"),
        *("cuda_runtime", "cuda_driver", "xpu_runtime", "cuda_sync"),
    }
)
_PLAIN = frozenset({"ph", "cat", "name", "pid", "tid", "ts", "dur", "id", "bp", "s"})
_ARGUMENTS = frozenset(
    {
        *("External id", "correlation", "device", "stream", "grid", "block", "bytes", "memory bandwidth (GB/s)"),
        *("registers per thread", "shared memory", "warps per SM", "blocks per SM", "est. achieved occupancy %"),
        *("Sequence number", "Fwd thread id", "labels", "sort_index"),
    }
)


class _Recorder:
    """Torch's profiler, on from the first sign of a pipeline's call and off between its fourth step and the last."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._profiler: Any = None
        self._is_on = False
        self._last = 0
        self.steps = 0
        self.failed = False

    def __call__(self, progress: Progress) -> None:
        """Pass progress on, and record or pause as it says."""
        if progress.phase != "inference":
            self._turn(on=False)
            self._last = 0
        else:
            steps = max(0, progress.step - self._last)
            self._last = progress.step
            self.steps += steps if self._is_on and self.steps < MAX_STEPS else 0
            self._turn(on=self.steps < MAX_STEPS or progress.step >= progress.total)
        self._emit(progress)

    def _turn(self, *, on: bool) -> None:
        if self.failed or on == self._is_on:
            return
        try:
            if self._profiler is None:
                self._profiler = profile(activities=_activities())
                self._profiler.start()
            else:
                _wait_for_device()
                self._profiler.toggle_collection_dynamic(on, _activities())
            self._is_on = on
        except Exception as error:  # a job is not to fail for that
            self._fail(error)

    def stop(self) -> Any:
        """Return the profiler with all that it recorded; None where nothing was."""
        profiler, self._profiler = self._profiler, None
        if profiler is None or self.failed:
            return None
        try:
            if self._is_on:
                _wait_for_device()
            profiler.stop()
        except Exception as error:
            self._fail(error)
            return None
        return profiler

    def _fail(self, error: Exception) -> None:
        self.failed = True
        _LOG.warning("torch's profiler failed with %s", type(error).__name__)


def profiled(run: Callable[[Batch, Emit], EngineReport], batch: Batch, emit: Emit) -> EngineReport:
    """Return what `run` returns, with a profile if the batch's job asks for one."""
    if not batch.jobs[0].is_profiled:
        return run(batch, emit)
    recorder = _Recorder(emit)
    with _stopped(recorder) as made:
        report = run(batch, recorder)
        made += [recorder.stop()]
    try:
        told = None if made[0] is None else _profile_of(made[0], recorder.steps)
    except Exception as error:
        _LOG.warning("a profile could not be read: %s", type(error).__name__)
        told = None
    return replace(report, profile=told, warnings=report.warnings + (() if told else (_NOT_MADE,)))


@contextmanager
def _stopped(recorder: _Recorder) -> Iterator[list[Any]]:
    """Have the profiler off afterwards, whatever the job did."""
    try:
        yield []
    finally:
        recorder.stop()


def _activities() -> list[ProfilerActivity]:
    wanted = [ProfilerActivity.CPU]
    if torch.cuda.is_initialized():
        wanted.append(ProfilerActivity.CUDA)
    return [each for each in wanted if each in supported_activities()]


def _wait_for_device() -> None:
    """Wait for what was launched: a kernel is recorded when it runs, which may be steps after its launch."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def _profile_of(profiler: Any, steps: int) -> Profile:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        raw = path.read_bytes() if path.stat().st_size <= _MAX_RAW_BYTES else b""
    operators = _operators(profiler)
    if not raw:
        calls = sum(each.calls for each in operators)
        return Profile(steps, calls, operators[:MAX_OPERATORS], left_out=calls)
    told = [event for event in map(_told, json.loads(raw)["traceEvents"]) if event is not None]
    events = sum(event["ph"] == "X" for event in told)
    trace, left_out = compressed(told)
    return Profile(steps, events, operators[:MAX_OPERATORS], left_out, trace)


def _operators(profiler: Any) -> tuple[OperatorCost, ...]:
    """Return what each operator took by itself, the costliest first. A kernel's time is its operator's."""
    costs = [
        OperatorCost(each.key, each.count, each.self_cpu_time_total / 1000, each.self_device_time_total / 1000)
        for each in profiler.key_averages()
        if each.device_type == DeviceType.CPU and not each.is_user_annotation
    ]
    return tuple(sorted(costs, key=lambda cost: (-cost.device_ms, -cost.cpu_ms, cost.name)))


def _told(event: dict[str, Any]) -> dict[str, Any] | None:
    """Return of an event what may be told; None of one that may not."""
    if event.get("ph") != "M" and event.get("cat") not in _CATEGORIES:
        return None
    told = {name: value for name, value in event.items() if name in _PLAIN}
    arguments = {name: value for name, value in event.get("args", {}).items() if name in _ARGUMENTS}
    return told | {"args": arguments} if arguments else told


def compressed(events: list[dict[str, Any]], max_bytes: int = MAX_TRACE_BYTES) -> tuple[bytes, int]:
    """Return a trace of `events`, gzipped, and how many of them are not in it: the shortest go where it is too large.

    Nothing is returned if even the longest do not fit.
    """
    kept, left_out = events, 0
    while True:
        text = json.dumps({"displayTimeUnit": "ms", "traceEvents": kept}, separators=(",", ":"))
        trace = gzip.compress(text.encode(), mtime=0)
        if len(trace) <= max_bytes:
            return trace, left_out
        lengths = sorted((event["dur"] for event in kept if event["ph"] == "X"), reverse=True)
        fits = len(lengths) * max_bytes * 9 // (len(trace) * 10)
        if not fits:
            return b"", sum(event["ph"] == "X" for event in events)
        # The arrows from launches to kernels go too: one without its ends points nowhere.
        kept = [event for event in kept if event["ph"] == "M" or (event["ph"] == "X" and event["dur"] > lengths[fits])]
        left_out = sum(event["ph"] == "X" for event in events) - sum(event["ph"] == "X" for event in kept)
