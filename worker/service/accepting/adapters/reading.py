"""The adapters of a job, read from its request with the images that come with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from worker.catalog.call import ModelCall
from worker.catalog.interface.adapters import ADAPTERS
from worker.core.adapter import Adapter
from worker.core.request import GenerationRequest
from worker.service.accepting.adapters.image_prompts import read_image_prompts
from worker.service.accepting.media_reader import MediaReader
from worker.service.accepting.rules import all_loras

Read = Callable[[GenerationRequest, ModelCall, MediaReader], Sequence[Adapter[Any]]]

# The request's field -> the reader of a job's adapters, for kinds that need more than was sent.
# ControlNets decide which class is called, and are read by themselves (`controls.py`).
READERS: Mapping[str, Read] = {
    "loras": lambda request, call, _: [Adapter(lora) for lora in all_loras(request, call)],
    "ip_adapters": read_image_prompts,
}


def read_adapters(
    request: GenerationRequest, call: ModelCall, reader: MediaReader
) -> dict[str, Sequence[Adapter[Any]]]:
    """Read a job's adapters, by the request's field. Raises InvalidImage and others, naming the field."""
    return {
        field: READERS[field](request, call, reader)
        if field in READERS
        else [Adapter(spec) for spec in request.adapters if spec.field == field]
        for field in ADAPTERS
    }
