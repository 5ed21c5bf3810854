"""Samples of a training, generated as serving does, for nobody's account and with a time of its own."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import ExitStack
from contextvars import Context
from pathlib import Path
from typing import Any

import pybase64

from worker.catalog.call import Model
from worker.core.errors import InvalidOutput
from worker.core.image import Raster
from worker.core.result import Artifact, ignore_progress
from worker.core.tuned import in_its_place
from worker.media.images import encode
from worker.service.generation import GenerationService
from worker.wire.request import decode_generation

# Generates a prompt with a seed and other fields of a request, and makes it of an image, where there is one: a PNG.
Draw = Callable[[Model, Mapping[str, Any], str, int, Raster | None], Awaitable[bytes]]


def sampled_by(generation: GenerationService) -> Draw:
    """Return what generates a sample.

    A whole model is lent to serving as the entry that it was trained from, with other files.
    """

    async def draw(model: Model, others: Mapping[str, Any], prompt: str, seed: int, source: Raster | None) -> bytes:
        fields: dict[str, Any] = {"model": model.spec.id, "prompt": prompt, "seed": seed}
        if source is not None:
            fields["image"] = pybase64.b64encode_as_string(encode(source, "png", 92))
        fields |= dict(others)
        with ExitStack() as lent:
            if (folder := others.get("model")) is not None:
                whole = in_its_place(model.spec, Path(folder[0]))
                fields["model"] = lent.enter_context(generation.acceptor.resolver.lent(whole))
            request = decode_generation(fields)
            work = generation.generate(request, "sample", ignore_progress)
            result = await asyncio.create_task(work, context=Context())
        (item,) = result.artifacts
        if not isinstance(item, Artifact):
            raise InvalidOutput("A sample came encoded.")
        return encode(item.raster, "png", 92)

    return draw
