"""One job input to one answer, for every door that speaks CONTRACT §1: decode, ask the service, encode."""

import asyncio
import logging
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from pydantic import JsonValue

from worker.core.errors import WorkerError
from worker.core.result import Emit, Progress
from worker.service.generation import GenerationService
from worker.service.introspection import Introspection
from worker.transport.delivery import Delivery
from worker.transport.wire import decode_envelope, decode_generation, decode_model, decode_nothing

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Actions:
    """What a worker can be asked."""

    generation: GenerationService
    introspection: Introspection
    delivery: Delivery

    async def perform(self, payload: object, job_id: str, emit: Emit) -> dict[str, JsonValue]:
        """Answer one input. Raises WorkerError, and CancelledError when the caller took the job back."""
        envelope = decode_envelope(payload)
        fields = envelope.fields
        match envelope.action:
            case "generate":
                return await self._generate(fields, job_id, emit)
            case "models":
                decode_nothing(fields)
                return self.introspection.models()
            case "schema":
                return await self.introspection.schema(decode_model(fields))
            case "inspect":
                return await self.introspection.inspect(decode_model(fields))
            case "plan":
                return await self.introspection.plan(decode_model(fields))
            case "status":
                decode_nothing(fields)
                return self.introspection.status()
            case "preload":
                return await self.introspection.preload(decode_model(fields), emit)
            case "unload":
                return await self.introspection.unload(decode_model(fields))

    async def _generate(self, fields: Mapping[str, JsonValue], job_id: str, emit: Emit) -> dict[str, JsonValue]:
        request = decode_generation(fields)
        self.delivery.check(request.output)
        result = await self.generation.generate(request, job_id, emit if request.progress else _silent)
        return await asyncio.to_thread(self.delivery.encode, result, request.output, job_id)


def unexpected(error: Exception, payload: object = None) -> WorkerError:
    """Our name for an exception that nothing on the road foresaw; its text goes to the log only, without the prompt."""
    text = "".join(traceback.format_exception(error))
    for name in ("prompt", "negative_prompt"):
        said = payload.get(name) if isinstance(payload, dict) else None
        if isinstance(said, str) and len(said) > 3:
            text = text.replace(said, f"<{name}>")
    _LOG.error("unforeseen %s\n%s", type(error).__name__, text)
    return WorkerError("The worker failed on this job in an unforeseen way; its log has the details.")


def _silent(progress: Progress) -> None:
    """For callers who want no progress."""
