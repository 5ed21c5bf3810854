"""The adapters of a request, before anything is fetched: whether its model takes them at all."""

from worker.catalog.call import ModelCall
from worker.catalog.interface.adapters import adapter_fields, all_adapter_fields
from worker.core.errors import UnknownParameter
from worker.core.request import GenerationRequest


def check_adapter_fields(request: GenerationRequest, call: ModelCall) -> None:
    """Raise UnknownParameter for an adapter field that the call does not take."""
    taken = adapter_fields(call)
    for field in all_adapter_fields():
        if getattr(request, field) and field not in taken:
            listed = f"; it takes {', '.join(('loras', *taken))}" if taken else ""
            raise UnknownParameter(
                f"{field} is not taken by {call.spec.id} for {call.task}{listed}; leave it out.", field=field
            )
