"""The adapters of a request, before anything is fetched: whether its model takes them at all."""

from worker.catalog.interface.adapters import adapter_fields, all_adapter_fields
from worker.core.errors import UnknownParameter
from worker.core.model import Detection, ModelSpec, Task
from worker.core.request import GenerationRequest


def check_adapter_fields(request: GenerationRequest, spec: ModelSpec, detection: Detection, task: Task) -> None:
    """Raise UnknownParameter for an adapter field that the model does not take for `task`."""
    taken = adapter_fields(spec, detection, task)
    for field in all_adapter_fields():
        if getattr(request, field) and field not in taken:
            listed = f"; it takes {', '.join(('loras', *taken))}" if taken else ""
            raise UnknownParameter(f"{field} is not taken by {spec.id} for {task}{listed}; leave it out.", field=field)
