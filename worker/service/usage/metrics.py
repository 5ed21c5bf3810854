"""Metrics for Prometheus. Labels are few by construction: models of models.yaml, tasks, codes, stages; never ids."""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from operator import attrgetter

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from worker.core.quality import LeverReport
from worker.service.limits.admission import Load
from worker.service.limits.pools import Pool
from worker.service.usage.record import OK, Record
from worker.store.free_space import Space

PREFIX = "imgworker"
# From a refusal to a long video.
SECONDS = (0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600, 1200)
_JOBS = (1, 2, 3, 4, 6, 8, 12, 16, 32)


class Metrics:
    """Counts operations. `load`, `levers` and `disk` are called at each scrape, and `pools` are looked at."""

    def __init__(
        self,
        version: str,
        load: Callable[[], Load],
        pools: Sequence[Pool] = (),
        levers: Callable[[], Sequence[LeverReport]] = tuple,
        disk: Callable[[], Space | None] = lambda: None,
    ) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # a second line for each series, which nobody plots
        self._registry = CollectorRegistry()
        self._registry.register(_Levers(levers))
        self._registry.register(_Disk(disk))
        self._gauge("jobs_running", "Jobs that are worked on.").set_function(lambda: load().running)
        self._gauge("queue_length", "Jobs that wait for a place, for company or for the device.").set_function(
            lambda: load().queued
        )
        active = self._gauge("pool_active", "Threads that work, by kind of blocking work.", "pool")
        waiting = self._gauge("pool_waiting", "Callers that wait for such a thread.", "pool")
        for pool in pools:
            active.labels(pool.name).set_function(partial(attrgetter("active"), pool))
            waiting.labels(pool.name).set_function(partial(attrgetter("waiting"), pool))
        self._gauge("info", "1, with the worker's version.", "version").labels(version).set(1)
        self._requests = self._counter("requests", "Generations by outcome.", "model", "task", "status")
        self._operations = self._counter("operations", "Everything asked for, by action.", "action", "status")
        self._errors = self._counter("errors", "Operations that failed, by error code.", "code")
        self._latency = self._histogram("request_seconds", "From request to answer, whatever it was.", "model", "task")
        self._queue = self._histogram("queue_seconds", "Waiting: for a place, for company, for the device.", "model")
        self._stage = self._histogram("stage_seconds", "The stages of jobs that were drawn.", "stage", "model")
        self._batch = Histogram(
            f"{PREFIX}_batch_size",
            "Jobs that shared the pipeline call, counted at each of them.",
            ["model"],
            buckets=_JOBS,
            registry=self._registry,
        )
        self._gpu = self._counter("gpu_seconds", "The device's time, shared out to its jobs.", "model")
        self._pixels = self._counter("pixel_steps", "Width x height x frames x steps x images.", "model")
        self._images = self._counter("images", "Images and videos.", "model")
        self._bytes = self._counter("downloaded_bytes", "Fetched for jobs.")
        self._loras = self._counter("loras_applied", "LoRAs put on a model for a job.", "model")
        self._cost = self._counter("cost_usd", "The price of the device's time, if GPU_PRICE_PER_HOUR is set.", "model")
        self._peak = self._gauge("peak_memory_bytes", "The device's memory at the last job's peak.", "model")
        by_version = ("model", "version", "arm")
        self._versions = self._counter(
            "version_requests", "Generations of models that have versions.", *by_version, "status"
        )
        self._version_s = self._histogram("version_inference_seconds", "Inference of such jobs.", *by_version)
        self._http = self._counter("http_responses", "Answers of the HTTP server.", "status")

    def note(self, record: Record) -> None:
        """Count one operation."""
        self._operations.labels(record.action, record.status).inc()
        if record.outcome != OK:
            self._errors.labels(record.outcome).inc()
        if record.action != "generate":
            return
        model, task = record.model, record.task or "unknown"
        self._requests.labels(model, task, record.status).inc()
        self._latency.labels(model, task).observe(record.seconds)
        version = (model, record.choice.version, record.choice.arm or "") if record.choice else None
        if version is not None:
            self._versions.labels(*version, record.status).inc()
        if record.timings is None or record.usage is None:
            return
        if version is not None:
            self._version_s.labels(*version).observe(record.timings.inference_s)
        timings, usage = record.timings, record.usage
        self._queue.labels(model).observe(timings.queue_s)
        self._batch.labels(model).observe(timings.batch_size)
        stages = {"download": timings.download_s, "load": timings.load_s, "inference": timings.inference_s}
        for stage, seconds in (stages | {"encode": record.encode_s}).items():
            self._stage.labels(stage, model).observe(seconds)
        self._gpu.labels(model).inc(usage.gpu_seconds)
        self._pixels.labels(model).inc(usage.pixel_steps)
        self._images.labels(model).inc(usage.images)
        self._bytes.inc(usage.bytes_downloaded)
        self._loras.labels(model).inc(record.loras)
        self._peak.labels(model).set(usage.peak_memory_gb * 2**30)
        if usage.cost_usd is not None:
            self._cost.labels(model).inc(usage.cost_usd)

    def close(self) -> None:
        """Do nothing: metrics are only in memory."""

    def answered(self, status: int) -> None:
        """Count an answer of the HTTP server."""
        self._http.labels(str(status)).inc()

    def exposition(self) -> bytes:
        """Return all metrics in Prometheus' text format."""
        return generate_latest(self._registry)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"{PREFIX}_{name}", text, labels, registry=self._registry)

    def _gauge(self, name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"{PREFIX}_{name}", text, labels, registry=self._registry)

    def _histogram(self, name: str, text: str, *labels: str) -> Histogram:
        return Histogram(f"{PREFIX}_{name}", text, labels, buckets=SECONDS, registry=self._registry)


class _Levers(Collector):
    """The decisions on levers, read at each scrape: their models come and go with the device's memory."""

    def __init__(self, levers: Callable[[], Sequence[LeverReport]]) -> None:
        self._levers = levers

    def collect(self) -> Iterator[Metric]:
        text = "1 of a faster way to generate that is used, 0 of one that was tried and is off."
        family = GaugeMetricFamily(f"{PREFIX}_lever_on", text, labels=["model", "lever"])
        for lever in self._levers():
            if lever.verdict != "trying":
                family.add_metric([lever.model, lever.lever], float(lever.verdict == "on"))
        yield family


class _Disk(Collector):
    """The room of the volume's disk; no series where nothing is known of it, which a rule would take for 0."""

    def __init__(self, disk: Callable[[], Space | None]) -> None:
        self._disk = disk

    def collect(self) -> Iterator[Metric]:
        space = self._disk()
        free = GaugeMetricFamily(f"{PREFIX}_volume_free_bytes", "Free on the disk of the volume.")
        total = GaugeMetricFamily(f"{PREFIX}_volume_bytes", "The size of that disk.")
        if space is not None:
            free.add_metric([], space.free)
            total.add_metric([], space.total)
        yield from (free, total)
