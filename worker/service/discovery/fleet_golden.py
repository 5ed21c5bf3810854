"""Golden prompts behind a gateway: one worker compares, on one device, so that the seconds of both can be compared."""

from dataclasses import dataclass

from pydantic import JsonValue

from worker.core.errors import EngineFailure, ModelNotFound
from worker.core.golden import GoldenComparison, GoldenRequest
from worker.core.result import Emit
from worker.remote.asking import Asker
from worker.service.generation import GenerationService
from worker.service.limits.pools import Pool
from worker.wire.discovery import decode_comparison


@dataclass(frozen=True, slots=True)
class FleetComparer:
    """Has a worker compare the version that a model is served as with another one."""

    generation: GenerationService
    asker: Asker
    headers: Pool

    async def compare(self, request: GoldenRequest, job_id: str, emit: Emit, caller: str | None) -> GoldenComparison:
        """Pass the question on to the worker that would do a job for the model soonest.

        Raises ModelNotFound, what `Asker.ask` does, and whatever the worker refuses it for.
        """
        resolver = self.generation.acceptor.resolver
        entry = resolver.registry.find(request.model)
        if entry is None:
            raise ModelNotFound(f"model {request.model[:120]!r} is not in models.yaml.", field="model")
        fields: dict[str, JsonValue] = {"action": "golden", "model": entry.id}
        if request.version is not None:
            fields["version"] = request.version
        with self.generation.entered(caller):
            known = await self.headers.run(resolver.known, resolver.resolve(entry.id), place=resolver.host_of(entry.id))
            replica, answer = await self.asker.ask(known, fields, job_id, emit)
        try:
            return decode_comparison(answer)
        except ValueError:
            raise EngineFailure(
                f"The comparison by the worker {replica} cannot be read; it is of another version."
            ) from None
