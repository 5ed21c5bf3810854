"""OpenTelemetry spans of operations, made of measured times at their end: nothing is traced while they run.

Imported only where an endpoint is configured: the SDK and its exporter cost a third of a second at import.
"""

from collections.abc import Iterator, Mapping

from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased
from opentelemetry.trace import SpanKind, Status, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from worker.service.usage.record import OK, Record

SERVICE = "universal-image-model-worker"
_EVERY_MS = 1_000
_TIMEOUT_S = 5  # of one delivery with its repetitions: a worker that stops waits for the last one


class Tracing:
    """Makes a trace of every operation, below the caller's span if they name one."""

    def __init__(self, version: str, processor: SpanProcessor) -> None:
        # Everything is set here that the SDK would read from the environment by itself.
        self._provider = TracerProvider(
            sampler=ParentBased(ALWAYS_ON),
            resource=Resource({"service.name": SERVICE, "service.version": version}),
        )
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer(SERVICE, version)
        self._propagator = TraceContextTextMapPropagator()

    def close(self) -> None:
        """Return once all spans are sent, or their collector took too long."""
        self._provider.shutdown()

    def note(self, record: Record) -> None:
        """Make the spans of one operation."""
        carrier = {"traceparent": record.traceparent} if record.traceparent else {}
        root = self._tracer.start_span(
            record.action,
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            dict(_attributes(record)),
            start_time=_nanoseconds(record, record.began),
        )
        context = set_span_in_context(root)
        for name, began, ended in record.stages:
            span = self._tracer.start_span(name, context, start_time=_nanoseconds(record, began))
            span.end(_nanoseconds(record, ended))
        if record.outcome != OK:
            root.set_status(Status(StatusCode.ERROR, record.outcome))
        root.end(_nanoseconds(record, record.ended))


def otlp(endpoint: str, headers: Mapping[str, str]) -> SpanProcessor:
    """Return a processor that sends spans to a collector at `endpoint` by OTLP over HTTP, in the background."""
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    exporter = OTLPSpanExporter(f"{endpoint.rstrip('/')}/v1/traces", headers=dict(headers), timeout=_TIMEOUT_S)
    return BatchSpanProcessor(exporter, schedule_delay_millis=_EVERY_MS)


def _attributes(record: Record) -> Iterator[tuple[str, str | int | float]]:
    attributes = {
        "imgworker.job_id": record.job_id,
        "imgworker.request_id": record.request_id,
        "imgworker.outcome": record.outcome,
        "imgworker.caller": record.caller,
        "imgworker.model": record.model or None,
        "imgworker.task": record.task,
    }
    yield from ((name, value) for name, value in attributes.items() if value is not None)
    if record.timings is not None and record.usage is not None:
        yield "imgworker.batch_size", record.timings.batch_size
        yield "imgworker.gpu_seconds", record.usage.gpu_seconds
        yield "imgworker.pixel_steps", record.usage.pixel_steps
        yield "imgworker.images", record.usage.images
        yield "imgworker.bytes_downloaded", record.usage.bytes_downloaded
        yield "imgworker.loras", record.loras


def _nanoseconds(record: Record, moment: float) -> int:
    """Convert `moment` of the monotonic clock to wall time in nanoseconds."""
    return round((record.at + moment - record.began) * 1e9)
