"""What a caller is told of his job is what metrics, traces and the usage log say of it, whatever became of it."""

import threading
import time
from dataclasses import replace

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.fakes.collector import Collector
from tests.fakes.engine import FakeEngine
from tests.fakes.web_worker import WebWorker
from tests.waiting import LIMIT_S, until
from worker.core.errors import OutOfMemory
from worker.service.usage.log import read_usage

STAGES = ("queue", "download", "load", "inference", "encode")
USAGE = ("gpu_seconds", "pixel_steps", "images", "bytes_downloaded", "peak_memory_gb", "cost_usd")
ROUNDING = 1e-4  # seconds are told with four decimals


class Timed(FakeEngine):
    """Says how long it really took."""

    def run(self, batch, emit):
        began = time.monotonic()
        report = super().run(batch, emit)
        took = time.monotonic() - began - self.load_seconds
        return replace(report, load_s=self.load_seconds, inference_s=took, peak_memory_gb=1.5)


class Books:
    """A server, a collector of its traces, and all that was written down of one job."""

    def __init__(self, root, collector, **changes):
        engine = Timed()
        engine.load_seconds = 0.05
        self.collector = collector
        self.root = root
        self.served = WebWorker(
            root,
            engine=engine,
            gpu_price_per_hour=36,
            otel_exporter_otlp_endpoint=collector.origin,
            **changes,
        )
        self.engine = engine

    def run(self, **sent):
        return self.served.http.post("/run", json={"prompt": "x", "width": 64, "height": 64, **sent})

    def hand_in(self, **sent):
        return self.served.http.post("/v2/any/run", json={"input": {"prompt": "x", **sent}}).json()["id"]

    @property
    def folder(self):
        """Where lines are written."""
        return self.served.context.worker.settings.usage_dir

    def line(self, job):
        """Its one line in the usage log."""
        (found,) = until(lambda: [line for line in read_usage(self.folder) if line["job_id"] == job])
        return found

    def spans(self, job):
        """Its trace: the root, and what is below it, in order of time."""

        def mine(span):
            return any(each.key == "imgworker.job_id" and each.value.string_value == job for each in span.attributes)

        (root,) = until(lambda: [span for span in self.collector.spans if mine(span)])
        below = [span for span in self.collector.spans if span.parent_span_id == root.span_id]
        return root, sorted(below, key=lambda span: (span.start_time_unix_nano, span.end_time_unix_nano))

    def samples(self):
        families = text_string_to_metric_families(self.served.http.get("/metrics").text)
        return {
            (sample.name.removeprefix("imgworker_"), *sorted(sample.labels.values())): sample.value
            for family in families
            for sample in family.samples
        }

    def until_queued(self, count):
        """Wait until so many jobs wait."""
        until(lambda: self.samples()["queue_length",] == count)


@pytest.fixture
def kept(tmp_path):
    """Books of a server with these settings."""
    with Collector() as collector:
        opened = []

        def build(**changes):
            books = Books(tmp_path, collector, **changes)
            opened.append(books.served.__enter__())
            return books

        yield build
        for served in opened:
            served.__exit__(None, None, None)


def seconds(*spans):
    return sum(span.end_time_unix_nano - span.start_time_unix_nano for span in spans) / 1e9


def attribute(span, name):
    (value,) = (each.value for each in span.attributes if each.key == f"imgworker.{name}")
    return value.double_value or value.int_value or value.string_value


def check(books, answer):
    """Line and trace of a job that was drawn are its answer's `timings` and `usage`."""
    timings, usage = answer["timings"], answer["usage"]
    line = books.line(answer["id"])
    assert line["outcome"] == "ok"
    assert {name: line[name] for name in timings} == timings
    assert {name: line[name] for name in USAGE} == {name: usage[name] for name in USAGE}
    root, below = books.spans(answer["id"])
    for name in STAGES:
        told = seconds(*(span for span in below if span.name == name))
        assert told == pytest.approx(timings[f"{name}_s"], abs=2 * ROUNDING), name
    assert seconds(root) == pytest.approx(line["seconds"], abs=2 * ROUNDING)
    assert attribute(root, "outcome") == "ok"
    assert attribute(root, "batch_size") == timings["batch_size"]
    for name in ("gpu_seconds", "pixel_steps", "images"):
        assert attribute(root, name) == pytest.approx(usage[name], abs=ROUNDING), name
    # One stage after the other, all inside the whole, and nothing of any length between them but its answer's way.
    now, (accept,) = root.start_time_unix_nano, [span for span in below if span.name == "accept"]
    for span in below:
        if span.name == "queue" and span.end_time_unix_nano <= accept.end_time_unix_nano:
            continue  # for a thread, while it was being accepted: on a busy machine that takes a time worth telling
        assert span.start_time_unix_nano >= now - 2e5, span.name
        now = span.end_time_unix_nano
    assert now <= root.end_time_unix_nano + 2e5
    told = sum(timings[f"{name}_s"] for name in STAGES)
    assert told <= line["seconds"] + ROUNDING
    assert usage["cost_usd"] == pytest.approx(usage["gpu_seconds"] / 100, abs=1e-6)  # 36 dollars an hour


def check_metrics(books, answers):
    """The counters are the sums of what these callers were told."""
    samples = books.samples()
    assert samples["requests_total", "ok", "text-to-image", "tiny"] == len(answers)
    for name in STAGES[1:]:
        told = sum(answer["timings"][f"{name}_s"] for answer in answers)
        assert samples["stage_seconds_sum", name, "tiny"] == pytest.approx(told, abs=len(answers) * ROUNDING), name
        assert samples["stage_seconds_count", name, "tiny"] == len(answers)
    told = sum(answer["timings"]["queue_s"] for answer in answers)
    assert samples["queue_seconds_sum", "tiny"] == pytest.approx(told, abs=len(answers) * ROUNDING)
    for name in ("gpu_seconds", "pixel_steps", "images", "cost_usd"):
        told = sum(answer["usage"][name] for answer in answers)
        assert samples[f"{name}_total", "tiny"] == pytest.approx(told, abs=len(answers) * ROUNDING), name
    assert samples["batch_size_sum", "tiny"] == sum(answer["timings"]["batch_size"] for answer in answers)
    assert samples["peak_memory_bytes", "tiny"] == 1.5 * 2**30
    whole = sum(books.line(answer["id"])["seconds"] for answer in answers)
    assert samples["request_seconds_sum", "text-to-image", "tiny"] == pytest.approx(whole, abs=len(answers) * ROUNDING)


def check_undrawn(books, job, code, status):
    """A job without an image: one line, one trace and one count, of its code; and nobody pays for it."""
    line = books.line(job)
    assert line["outcome"] == code
    assert "gpu_seconds" not in line
    root, below = books.spans(job)
    assert (attribute(root, "outcome"), root.status.message) == (code, code)
    assert [span.name for span in below] == ["accept"]
    assert seconds(root) == pytest.approx(line["seconds"], abs=2 * ROUNDING)
    samples = books.samples()
    assert samples["errors_total", code] == 1
    assert samples["requests_total", *sorted((status, "text-to-image", "tiny"))] == 1
    assert ("gpu_seconds_total", "tiny") not in samples
    assert samples["request_seconds_sum", "text-to-image", "tiny"] == pytest.approx(line["seconds"], abs=ROUNDING)


@pytest.mark.parametrize("sent", [{}, {"num_images": 2, "seed": 3}])
def test_one_job(kept, sent):
    books = kept()
    answer = books.run(**sent).json()
    assert answer["timings"]["load_s"] >= 0.05
    check(books, answer)
    check_metrics(books, [answer])


def test_a_job_that_waited_behind_another(kept):
    books = kept(max_concurrent_jobs=1)
    answers = {}

    def ask(word):
        answers[word] = httpx.post(f"{books.served.origin}/run", json={"prompt": word}, timeout=60).json()

    books.engine.gate.clear()
    threads = [threading.Thread(target=ask, args=(word,)) for word in "ab"]
    threads[0].start()
    assert books.engine.inside.wait(LIMIT_S)
    threads[1].start()
    books.until_queued(1)
    time.sleep(0.2)
    books.engine.gate.set()
    for thread in threads:
        thread.join()
    assert answers["b"]["timings"]["queue_s"] > 0.1
    for answer in answers.values():
        check(books, answer)
    check_metrics(books, [*answers.values()])


def test_a_batch_of_four(kept):
    books = kept(batch_size=4, batch_timeout_ms=5_000)
    answers = {}

    def ask(word):
        answers[word] = httpx.post(f"{books.served.origin}/run", json={"prompt": word}, timeout=60).json()

    threads = [threading.Thread(target=ask, args=(word,)) for word in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(books.engine.calls) == 1
    assert {answer["timings"]["batch_size"] for answer in answers.values()} == {4}
    for answer in answers.values():
        check(books, answer)
    check_metrics(books, [*answers.values()])
    timings = answers["a"]["timings"]
    paid = sum(answer["usage"]["gpu_seconds"] for answer in answers.values())
    # The one call's seconds: what a worker takes to build its engine is told as loading too, and costs nobody anything.
    assert paid == pytest.approx(books.engine.load_seconds + timings["inference_s"], abs=4 * ROUNDING)


def test_a_job_that_failed(kept):
    books = kept()
    books.engine.failures.append(OutOfMemory("Too large."))
    job = books.hand_in()
    check_undrawn(books, job, "gpu_oom", "failed")


@pytest.mark.parametrize("drawing", [True, False])
def test_a_job_that_was_cancelled(kept, drawing):
    books = kept(batch_size=1 if drawing else 4, batch_timeout_ms=10_000)
    books.engine.gate.clear()
    job = books.hand_in()
    if drawing:
        assert books.engine.inside.wait(LIMIT_S)
    else:
        books.until_queued(1)
    assert books.served.http.post(f"/v2/any/cancel/{job}").json()["status"] == "CANCELLED"
    check_undrawn(books, job, "job_cancelled", "cancelled")
    assert bool(books.engine.ran) is drawing
    books.engine.gate.set()


@pytest.mark.parametrize("waits_for", ["company", "a place"])
def test_a_job_that_ran_out_of_time_in_the_queue(kept, waits_for):
    books = kept(max_concurrent_jobs=1, batch_size=4, batch_timeout_ms=10_000)
    if waits_for == "a place":
        books.hand_in(seed=1)
    answer = books.run(timeout_s=0.3)
    assert answer.status_code == 504
    (job,) = {line["job_id"] for line in until(lambda: [*read_usage(books.folder)])}
    check_undrawn(books, job, "job_timeout", "timed_out")
    assert books.engine.ran == []


def test_an_image_that_no_answer_holds_was_drawn_all_the_same(kept):
    books = kept(max_response_mb=0.011)
    job = books.hand_in(width=256, height=256)
    line = books.line(job)
    assert line["outcome"] == "ok"  # a flat image fits
    books.engine.pixels = lambda job, seed: noise_of(256)
    job = books.hand_in(width=256, height=256, seed=2)
    line = books.line(job)
    root, below = books.spans(job)
    assert (line["outcome"], attribute(root, "outcome")) == ("result_too_large", "result_too_large")
    assert line["gpu_seconds"] > 0
    assert attribute(root, "gpu_seconds") == pytest.approx(line["gpu_seconds"], abs=ROUNDING)
    for name in ("queue", "load", "inference"):
        told = seconds(*(span for span in below if span.name == name))
        assert told == pytest.approx(line[f"{name}_s"], abs=2 * ROUNDING), name


def noise_of(side):
    from tests.transport.web.uploads import noise

    return noise(side, side)


def test_nothing_is_left_unwritten_when_the_server_ends(tmp_path):
    with Collector() as collector:
        books = Books(tmp_path, collector, api_keys="anna's own secret key", rate_limit_per_minute=9)
        with books.served as served:
            headers = {"Authorization": "Bearer anna's own secret key"}
            answer = served.http.post("/run", json={"prompt": "x"}, headers=headers).json()
        (line,) = read_usage(tmp_path / "volume/usage")
        assert line["job_id"] == answer["id"]
        assert {span.name for span in collector.spans} >= {"generate", "queue", "inference", "encode"}
        (file,) = (tmp_path / "volume/state").glob("quotas-*.json")
        assert file.stat().st_size > 2
