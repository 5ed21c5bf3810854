"""The IP-Adapters of a request with their images."""

from worker.catalog.call import ModelCall
from worker.catalog.interface.adapters import takes_one_image_prompt
from worker.core.adapter import ImagePrompt, IPAdapterSpec
from worker.core.errors import (
    InvalidRequest,
    ParameterOutOfRange,
)
from worker.core.image import Raster
from worker.core.request import GenerationRequest
from worker.service.accepting.media_reader import MediaReader

_FIELD = "ip_adapters"


def read_image_prompts(request: GenerationRequest, call: ModelCall, reader: MediaReader) -> tuple[ImagePrompt, ...]:
    """Read the request's IP-Adapters with their images. Raises InvalidImage and others, naming the field."""
    prompts = []
    for index, spec in enumerate(request.adapters_of(IPAdapterSpec)):
        field = f"{_FIELD}[{index}]"
        if not spec.sent_images:
            raise InvalidRequest(
                f"{field}.image is required: the image to draw after, as base64, data: URI or https URL.",
                field=_FIELD,
            )
        images = tuple(
            reader.kept(reader.take(_read(text, reader, f"{field}.image"), _FIELD)) for text in spec.sent_images
        )
        prompts.append(ImagePrompt(spec, images))
    if takes_one_image_prompt(call) and sum(len(prompt.images) for prompt in prompts) > 1:
        raise ParameterOutOfRange(
            f"{_FIELD} takes one adapter with one image for this model; more were sent.", field=_FIELD
        )
    return tuple(prompts)


def _read(text: str, reader: MediaReader, name: str) -> Raster:
    """Read an image. Errors name `name` in their text, and the request's field as their field."""
    try:
        return reader.image(text, name)
    except InvalidRequest as error:
        error.field = _FIELD
        raise
