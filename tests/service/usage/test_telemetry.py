"""What the worker says of its jobs is what their results say: numbers, traces and the usage log, of every outcome."""

import asyncio
import json
import logging
import os
from dataclasses import replace

import pytest
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families

from tests.asking import perform
from tests.fakes.collector import Collector
from tests.fakes.engine import FakeEngine, fresh_id, make_context
from tests.service.local.test_backend import begun, cancelled, queued
from tests.waiting import until_true
from worker.app.queue import build_door
from worker.core.errors import DiskFull, EngineFailure, OutOfMemory, WorkerError
from worker.service.usage.log import UsageLog, read_usage, sum_usage
from worker.service.usage.request_id import accept_trace, traceparent
from worker.service.usage.telemetry import Telemetry
from worker.service.usage.tracing import Tracing

CALLERS_TRACE, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-01"


class Watched:
    """A context whose spans are kept in memory."""

    def __init__(self, root, **changes):
        self.context = make_context(root, **changes)
        self.exporter = InMemorySpanExporter()
        worker = self.context.worker
        observers = [worker.metrics, worker.usage_log, Tracing("1", SimpleSpanProcessor(self.exporter))]
        operations = replace(worker.operations, telemetry=Telemetry(worker.resolver.registered_id, observers))
        self.context = replace(self.context, worker=replace(worker, operations=operations))

    async def failure(self, **payload):
        with pytest.raises(WorkerError) as raised:
            await self.context.draw(**payload)
        return raised.value.code

    def lines(self):
        """The usage log, complete."""
        self.context.worker.usage_log.close()
        return [*read_usage(self.context.worker.settings.usage_dir)]

    def samples(self):
        text = self.context.worker.metrics.exposition().decode()
        return {
            (sample.name.removeprefix("imgworker_"), *sorted(sample.labels.values())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


@pytest.fixture
def watched(tmp_path):
    return Watched(tmp_path, gpu_price_per_hour=7.2)


def seconds(spans):
    return sum(span.end_time - span.start_time for span in spans) / 1e9


async def test_metrics_trace_and_usage_of_a_job_are_those_of_its_result(watched):
    watched.context.engine.load_seconds = 0.05
    first = await begun(watched.context, prompt="first")
    second = asyncio.create_task(watched.context.draw(num_images=2, _id="the-job"))
    await queued(watched.context, 1)
    await asyncio.sleep(0.1)
    watched.context.engine.gate.set()
    await first
    answer = await second
    timings, usage = answer["timings"], answer["usage"]
    assert timings["queue_s"] > 0.05
    assert usage["cost_usd"] == pytest.approx(usage["gpu_seconds"] / 3600 * 7.2)

    line = next(line for line in watched.lines() if line["job_id"] == "the-job")
    assert {name: line[name] for name in timings} == timings
    assert {name: line[name] for name in usage} == usage
    assert (line["action"], line["outcome"], line["model"], line["caller"]) == ("generate", "ok", "tiny", None)

    mine = [span for span in watched.exporter.get_finished_spans() if span.attributes.get("imgworker.job_id")]
    root = next(span for span in mine if span.attributes["imgworker.job_id"] == "the-job")
    stages = [
        span
        for span in watched.exporter.get_finished_spans()
        if span.parent and span.parent.span_id == root.context.span_id
    ]
    for name in ("queue", "load", "inference", "encode"):
        spans = [span for span in stages if span.name == name]
        assert spans, name
        assert seconds(spans) == pytest.approx(timings[f"{name}_s"], abs=2e-4), name
    assert seconds([root]) == pytest.approx(line["seconds"], abs=2e-4)
    accept = next(span for span in stages if span.name == "accept")
    # On a busy machine it waits for a thread while it is accepted, too.
    later = [span for span in stages if span.name != "encode" and span.start_time >= accept.end_time]
    ordered = [accept, *sorted(later, key=lambda span: span.start_time)]
    assert [span.name for span in ordered] == ["accept", "queue", "provide", "queue", "load", "inference"]
    ends = [root.start_time, *(span.end_time for span in ordered)]
    for before, span in zip(ends, ordered, strict=False):
        assert -1e6 <= span.start_time - before < 60e9  # one after the other
    assert root.attributes["imgworker.gpu_seconds"] == pytest.approx(usage["gpu_seconds"], abs=1e-4)

    samples = watched.samples()
    both = [await first, answer]
    assert samples["requests_total", "ok", "text-to-image", "tiny"] == 2
    for name in ("load", "inference", "encode", "download"):
        total = sum(each["timings"][f"{name}_s"] for each in both)
        assert samples["stage_seconds_sum", name, "tiny"] == pytest.approx(total, abs=1e-3), name
    assert samples["queue_seconds_sum", "tiny"] == pytest.approx(sum(e["timings"]["queue_s"] for e in both), abs=1e-3)
    for name in ("gpu_seconds", "pixel_steps", "images", "cost_usd"):
        total = sum(each["usage"][name] for each in both)
        assert samples[f"{name}_total", "tiny"] == pytest.approx(total, abs=1e-3), name
    assert samples["batch_size_sum", "tiny"] == 2
    assert samples["request_seconds_count", "text-to-image", "tiny"] == 2


@pytest.mark.parametrize(("price", "cost"), [(None, None), (0.0, 0.0), (3.6, 0.00075)])
async def test_a_result_of_the_queue_has_its_cost_where_a_price_is_set(tmp_path, price, cost):
    context = make_context(tmp_path, gpu_price_per_hour=price)
    answer = await build_door(context.worker, concurrency=1).handle({"id": "1", "input": {"prompt": "x"}})
    assert answer["usage"]["gpu_seconds"] == 0.75
    assert answer["usage"]["cost_usd"] == cost


async def test_jobs_of_one_call_share_its_cost_in_all_books(tmp_path):
    watched = Watched(tmp_path, batch_size=4, batch_timeout_ms=300)
    answers = await asyncio.gather(*(watched.context.draw(prompt=word) for word in "abcd"))
    assert {answer["timings"]["batch_size"] for answer in answers} == {4}
    samples = watched.samples()
    assert samples["gpu_seconds_total", "tiny"] == pytest.approx(0.75)  # what the engine reports of its one call
    assert sum(line["gpu_seconds"] for line in watched.lines()) == pytest.approx(0.75, abs=1e-3)
    assert samples["batch_size_sum", "tiny"] == 16


async def test_a_callers_trace_goes_on_through_queue_load_and_denoising(watched):
    await watched.context.draw(traceparent=TRACEPARENT)
    spans = watched.exporter.get_finished_spans()
    assert {format(span.context.trace_id, "032x") for span in spans} == {CALLERS_TRACE}
    root = next(span for span in spans if span.name == "generate")
    assert format(root.parent.span_id, "016x") == CALLERS_SPAN
    assert {"queue", "load", "inference"} <= {
        span.name for span in spans if span.parent.span_id == root.context.span_id
    }


@pytest.mark.parametrize(
    "sent", [None, 5, "", "nonsense", TRACEPARENT.upper(), f"ff{TRACEPARENT[2:]}", f"00-{'0' * 32}-{CALLERS_SPAN}-01"]
)
async def test_what_is_no_traceparent_begins_a_trace_of_its_own(watched, sent):
    assert accept_trace(sent) is None
    await watched.context.draw(traceparent=sent)
    root = next(span for span in watched.exporter.get_finished_spans() if span.name == "generate")
    assert root.parent is None


async def test_a_trace_that_the_caller_does_not_sample_is_not_sent(watched):
    await watched.context.draw(traceparent=f"{TRACEPARENT[:-2]}00")
    assert watched.exporter.get_finished_spans() == ()


async def test_the_callers_trace_is_known_in_the_engines_thread_whoever_came_before(tmp_path):
    seen = {}

    class Asking(FakeEngine):
        def run(self, batch, emit):
            seen[batch.jobs[0].prompt] = traceparent.get()
            return super().run(batch, emit)

    context = make_context(tmp_path, Asking())
    first = await begun(context, prompt="first")
    second = asyncio.create_task(context.draw(prompt="second", traceparent=TRACEPARENT))
    await queued(context, 1)
    third = asyncio.create_task(context.draw(prompt="third"))
    await queued(context, 2)
    context.engine.gate.set()
    await asyncio.gather(first, second, third)
    assert seen == {"first": None, "second": TRACEPARENT, "third": None}


async def test_jobs_without_an_image_are_counted_under_their_codes(tmp_path):
    watched = Watched(tmp_path, max_concurrent_jobs=1, max_queued_jobs=0)
    context = watched.context
    codes = [
        await watched.failure(prompt=5),
        await watched.failure(model="nobody/knows"),
        await watched.failure(widht=64),
        await watched.failure(model="org/sdxl"),  # offline: what it needs cannot be fetched
    ]
    context.engine.failures = [OutOfMemory("Too large."), ValueError("unforeseen")]
    codes.append(await watched.failure())
    with pytest.raises(ValueError, match="unforeseen"):
        await context.draw()
    codes.append("internal_error")
    running = await begun(context)
    codes.append(await watched.failure())
    await cancelled(running)
    codes.append("job_cancelled")
    context.engine.gate.clear()
    codes.append(await watched.failure(timeout_s=0.2))
    context.engine.gate.set()
    await context.worker.operations.generation.admission.close(0)
    codes.append(await watched.failure())
    assert codes[-4:] == ["overloaded", "job_cancelled", "job_timeout", "shutting_down"]

    lines, samples = watched.lines(), watched.samples()
    assert sorted(line["outcome"] for line in lines) == sorted(codes)
    assert not [line for line in lines if "gpu_seconds" in line]
    for code in codes:
        assert samples["errors_total", code] == codes.count(code), code
    counted = {key: value for key, value in samples.items() if key[0] == "requests_total"}
    assert sum(counted.values()) == len(codes)
    statuses = {}
    for key, value in counted.items():
        status = next(part for part in key[1:] if part in {"refused", "failed", "cancelled", "timed_out", "shut_down"})
        statuses[status] = statuses.get(status, 0) + value
    assert statuses == {"refused": 4, "failed": 3, "cancelled": 1, "timed_out": 1, "shut_down": 1}
    assert {label for key in counted for label in key[1:]} >= {"tiny", "org/sdxl", "unregistered"}
    assert "nobody/knows" not in str(samples)
    roots = [span for span in watched.exporter.get_finished_spans() if span.name == "generate"]
    assert sorted(span.status.description for span in roots) == sorted(codes)


async def test_a_job_that_is_cancelled_for_its_time_is_counted_as_late(watched):
    task = await begun(watched.context)
    task.cancel("job_timeout")
    with pytest.raises(asyncio.CancelledError):
        await task
    assert watched.samples()["requests_total", "text-to-image", "timed_out", "tiny"] == 1


async def test_a_second_delivery_is_noted_and_not_paid_twice(watched):
    door = build_door(watched.context.worker, concurrency=2)
    answers = [await door.handle({"id": "twice", "input": {"prompt": "x", "seed": 1}}) for _ in range(2)]
    assert answers[0]["image"] == answers[1]["image"]
    lines = watched.lines()
    assert [("gpu_seconds" in line, line["outcome"]) for line in lines] == [(True, "ok"), (False, "ok")]
    assert {(line["job_id"], line["action"], line["model"]) for line in lines} == {("twice", "generate", "tiny")}
    assert watched.samples()["images_total", "tiny"] == 1


async def test_a_stand_in_is_counted_where_it_ran(tmp_path):
    watched = Watched(tmp_path)
    registry = json.loads((tmp_path / "models.yaml").read_text())
    registry["models"]["org/sdxl"]["fallback"] = "tiny"
    (tmp_path / "models.yaml").write_text(json.dumps(registry))
    watched.context.worker.reload()
    answer = await watched.context.draw(model="org/sdxl")
    assert answer["model"] == "tiny"
    assert [(line["model"], line["outcome"]) for line in watched.lines()] == [("tiny", "ok")]


async def test_every_operation_is_in_the_audit_log_with_who_asked_for_it(watched):
    worker = watched.context.worker
    for payload in ({"action": "models"}, {"action": "inspect", "model": "small"}, {"action": "unload"}):
        await perform(worker, payload, fresh_id(), caller="alice")
    with pytest.raises(WorkerError):
        await perform(worker, "no object", fresh_id(), caller="bob")
    lines = watched.lines()
    assert [(line["caller"], line["action"], line["model"], line["outcome"]) for line in lines] == [
        ("alice", "models", None, "ok"),
        ("alice", "inspect", "tiny", "ok"),
        ("alice", "unload", "tiny", "ok"),
        ("bob", "unknown", None, "invalid_request"),
    ]
    assert all(line["request_id"] and line["at"] and line["worker"] for line in lines)


@pytest.mark.parametrize("trouble", ["unwritable", "full"])
async def test_a_job_is_drawn_whatever_becomes_of_its_usage_record(tmp_path, monkeypatch, caplog, trouble):
    watched = Watched(tmp_path)
    if trouble == "unwritable":
        (tmp_path / "volume").mkdir()
        (tmp_path / "volume/usage").write_text("a file is in the folder's place")
    else:

        def full(file, data):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("worker.service.usage.log.os.write", full)
    for _ in range(3):
        assert (await watched.context.draw())["image"]
    watched.context.worker.usage_log.close()
    assert watched.samples()["requests_total", "ok", "text-to-image", "tiny"] == 3
    assert caplog.text.count("usage is not written down") == 1


async def test_an_observer_that_fails_fails_no_job(tmp_path, caplog):
    class Broken:
        def note(self, record):
            raise RuntimeError("secret words")

    watched = Watched(tmp_path)
    worker = watched.context.worker
    operations = replace(
        worker.operations, telemetry=Telemetry(worker.resolver.registered_id, [Broken(), worker.metrics])
    )
    assert (await perform(replace(worker, operations=operations), {"prompt": "x"}))["image"]
    assert "secret words" not in caplog.text
    assert watched.samples()["requests_total", "ok", "text-to-image", "tiny"] == 1


async def test_a_line_that_a_full_disk_cut_off_costs_only_itself(tmp_path, monkeypatch):
    watched = Watched(tmp_path)
    real, cut = os.write, [20, None]
    monkeypatch.setattr("worker.service.usage.log.os.write", lambda file, data: real(file, data[: cut.pop(0)]))
    for job in ("lost", "kept"):
        await watched.context.draw(job)
    assert [line["job_id"] for line in watched.lines()] == ["kept"]


async def test_sums_are_those_of_the_lines(watched, tmp_path):
    await watched.context.draw()
    await watched.context.draw(model="any", num_images=2)
    watched.context.engine.failures = [EngineFailure("No."), DiskFull("No.")]
    await watched.failure()
    await watched.context.ask(action="models")
    lines = watched.lines()
    by_model = sum_usage(lines, "model")
    assert {key: (each.jobs, each.failed, each.images) for key, each in by_model.items()} == {
        "any": (1, 0, 2),
        "tiny": (2, 1, 1),
    }
    (day,) = sum_usage(lines, "day").values()
    assert day.gpu_seconds == pytest.approx(1.5, abs=0.01)
    assert day.cost_usd == pytest.approx(day.gpu_seconds / 3600 * 7.2, abs=1e-6)
    assert [*sum_usage(lines, "caller")] == ["-"]
    assert [*read_usage(watched.context.worker.settings.usage_dir, "9999-01-01")] == []


async def test_workers_on_one_volume_write_files_of_their_own(watched, tmp_path):
    records = []
    worker = watched.context.worker

    class Keeping:
        def note(self, record):
            records.append(record)

    telemetry = Telemetry(worker.resolver.registered_id, [Keeping()])
    await perform(replace(worker, operations=replace(worker.operations, telemetry=telemetry)), {"action": "models"})
    for name in ("pod/1", "pod-2"):
        usage_log = UsageLog(tmp_path / "shared", name)
        usage_log.note(records[0])
        usage_log.note(replace(records[0], at=records[0].at + 86_400))
        usage_log.close()
    names = sorted(path.name for path in (tmp_path / "shared").iterdir())
    assert [name[11:] for name in names] == ["pod-2.jsonl", "pod_1.jsonl"] * 2
    assert len({name[:10] for name in names}) == 2
    assert len([*read_usage(tmp_path / "shared")]) == 4


async def test_traces_are_sent_to_a_collector_where_one_is_named(tmp_path):
    with Collector() as collector:
        context = make_context(
            tmp_path, otel_exporter_otlp_endpoint=collector.origin, otel_exporter_otlp_headers="x-key=a%20b"
        )
        await context.draw(traceparent=TRACEPARENT)
        await until_true(lambda: collector.spans)
        assert {span.name for span in collector.spans} >= {"generate", "queue", "load", "inference"}
        assert {span.trace_id.hex() for span in collector.spans} == {CALLERS_TRACE}
        assert collector.requests[0].headers["x-key"] == "a b"
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # the collector is gone before the exporter
