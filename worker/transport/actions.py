"""One job input to one answer, for every door that speaks the words of docs/api.md: decode, ask the service, encode."""

import asyncio
import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from worker.core.answer import Answer, AnyAnswer
from worker.core.errors import ModelNotFound, WorkerError
from worker.core.result import Emit
from worker.service.generation import GenerationService
from worker.service.introspection.device import DeviceIntrospection
from worker.service.introspection.models import ModelIntrospection
from worker.service.jobs.delivery import Delivery
from worker.service.jobs.record import JobRecord
from worker.service.usage.telemetry import Operation, Telemetry
from worker.transport import request_id
from worker.transport.privacy import kept, redact
from worker.wire.request import Envelope, decode_envelope, decode_generation, decode_model, decode_nothing

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Actions:
    """What a worker can be asked."""

    generation: GenerationService
    introspection: ModelIntrospection
    device: DeviceIntrospection
    delivery: Delivery
    telemetry: Telemetry

    async def perform(self, payload: object, job_id: str, emit: Emit, caller: str | None = None) -> AnyAnswer:
        """Answer one input. Raises WorkerError, and CancelledError when the caller took the job back."""
        traced = request_id.traceparent.get()
        with (
            kept(payload),
            self.telemetry.operation(job_id, request_id.current.get(), caller, traced) as operation,
        ):
            envelope = decode_envelope(payload)
            if (sent := request_id.accept_trace(envelope.traceparent)) is not None:
                operation.traceparent = sent
                request_id.traceparent.set(sent)
            operation.asks(envelope.action, envelope.fields.get("model"))
            try:
                return await self._answer(envelope, operation, emit)
            except ModelNotFound as error:
                if error.field == "model":  # and not an adapter or another part
                    error.details["supported_models"] = [model.id for model in self.introspection.served_models()]
                raise

    def admit(self, record: JobRecord) -> None:
        """Turn a generation away at the door that would be turned away inside, whatever it is.

        Raises Overloaded and its kin, ShuttingDown.
        """
        payload = record.payload
        if not isinstance(payload, dict) or payload.get("action", "generate") == "generate":
            self.generation.check_open(record.caller)

    def refuse(self, record: JobRecord, error: WorkerError) -> None:
        """Put a job into the books that was turned away before anybody looked into it."""
        self.telemetry.refuse(record.id, request_id.current.get(), record.caller, error)

    async def _answer(self, envelope: Envelope, operation: Operation, emit: Emit) -> AnyAnswer:
        fields = envelope.fields
        match envelope.action:
            case "generate":
                return await self._generate(fields, operation, emit)
            case "models":
                decode_nothing(fields)
                return self.introspection.models()
            case "schema":
                return await self.introspection.schema(decode_model(fields))
            case "inspect":
                return await self.introspection.inspect(decode_model(fields))
            case "plan":
                return await self.device.plan(decode_model(fields))
            case "status":
                decode_nothing(fields)
                return self.device.status()
            case "preload":
                return await self.device.preload(decode_model(fields), emit)
            case "unload":
                return await self.device.unload(decode_model(fields))

    async def _generate(self, fields: Mapping[str, JsonValue], operation: Operation, emit: Emit) -> Answer:
        request = decode_generation(fields)
        delivery = self.delivery.of(request)
        if delivery.bucket is None:
            delivery.check(request.output)
        else:  # whose address is looked up
            await asyncio.to_thread(delivery.check, request.output)
        result = await self.generation.generate(request, operation.job_id, emit, operation.caller)
        answer = await asyncio.to_thread(delivery.deliver, result, request.output, operation.job_id)
        operation.encode_s = answer.encode_s
        return answer


def unexpected(error: Exception, payload: object = None) -> WorkerError:
    """Our name for an exception that nothing on the road foresaw; its text goes to the log only, redacted."""
    with kept(payload):
        _LOG.error("unforeseen %s\n%s", type(error).__name__, redact("".join(traceback.format_exception(error))))
    return WorkerError("The worker failed on this job in an unforeseen way; its log has the details.")
