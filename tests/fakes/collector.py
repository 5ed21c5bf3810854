"""An OpenTelemetry collector: takes spans by OTLP over HTTP, and keeps them as the protocol's own messages."""

from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.fakes import FakeServer


class Collector(FakeServer):
    """Takes whatever it is sent."""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the one route."""
        router.add_post("/v1/traces", self._take)

    async def _take(self, request: web.Request) -> web.Response:
        return web.Response(content_type="application/x-protobuf")

    @property
    def spans(self) -> list[Span]:
        """Every span that came."""
        found = []
        for seen in self.requests:
            message = ExportTraceServiceRequest()
            message.ParseFromString(seen.body)
            found += [span for part in message.resource_spans for scope in part.scope_spans for span in scope.spans]
        return found
