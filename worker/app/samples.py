"""Samples of a training, generated as serving does, for nobody's account and with a time of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextvars import Context
from typing import Any

import pybase64

from worker.catalog.call import Model
from worker.core.errors import InvalidOutput
from worker.core.image import Raster
from worker.core.result import Artifact, ignore_progress
from worker.media.images import encode
from worker.service.generation import GenerationService
from worker.wire.request import decode_generation

# Generates a prompt with a seed and other fields of a request, and makes it of an image, where there is one: a PNG.
Draw = Callable[[Model, Mapping[str, Any], str, int, Raster | None], Awaitable[bytes]]


def sampled_by(generation: GenerationService) -> Draw:
    """Return what generates a sample."""

    async def draw(model: Model, others: Mapping[str, Any], prompt: str, seed: int, source: Raster | None) -> bytes:
        fields: dict[str, Any] = {"model": model.spec.id, "prompt": prompt, "seed": seed}
        if source is not None:
            fields["image"] = pybase64.b64encode_as_string(encode(source, "png", 92))
        request = decode_generation(fields | dict(others))
        work = generation.generate(request, "sample", ignore_progress)
        result = await asyncio.create_task(work, context=Context())
        (item,) = result.artifacts
        if not isinstance(item, Artifact):
            raise InvalidOutput("A sample came encoded.")
        return encode(item.raster, "png", 92)

    return draw
