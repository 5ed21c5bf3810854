"""POST /edit: a form with an image and an instruction in, the changed image out as PNG."""

from fastapi import Request
from fastapi.responses import Response
from pydantic import BaseModel, Field, JsonValue

from worker.core import errors
from worker.core.errors import InvalidImage, InvalidRequest, UnknownParameter
from worker.media.kinds import IMAGES, kind_of
from worker.transport.web import openapi
from worker.transport.web.context import ServerContext
from worker.transport.web.door import Door
from worker.transport.web.errors import Failure, answered_by, json_response
from worker.transport.web.file_response import encode_file, output_as
from worker.transport.web.forms import Form, read_form

_FIELDS = ("image", "prompt", "seed", "guidance_scale", "steps", "model")
_PROPERTIES = {
    "image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."},
    "prompt": {"type": "string", "maxLength": 8_000, "description": "What to change."},
    "seed": {"type": "integer", "minimum": 0, "maximum": 2**63 - 1},
    "guidance_scale": {"type": "number", "minimum": 0, "maximum": 30},
    "steps": {"type": "integer", "minimum": 1},
    "model": {"type": "string", "maxLength": 512, "description": "Else EDIT_MODEL, MODEL_ID or the default model."},
}
# In the sentences about a request, which the rooms below write for all doors: a list of models follows anyway.
_WORDS = {"num_inference_steps": "steps", '; {"action": "models"} lists those there are.': "."}
# This door's clients know three numbers only, a fourth for refused callers and a fifth for a wrong method.
STATUSES = {400: 400, 401: 401, 403: 400, 404: 400, 405: 405, 413: 400, 415: 400, 504: 504}
# And one word for each way in which drawing itself fails, but for gpu_oom.
_FAILURES = (errors.EngineFailure, errors.LoadFailed, errors.InvalidOutput, errors.DeviceLost, errors.WorkerError)
CODES = {errors.JobTimeout.code: "timeout", **{error.code: "inference_error" for error in _FAILURES}}
_TYPES = {f"image/{name.lower()}" for name in (*IMAGES, "jpg")}


class InvalidFile(InvalidImage):
    """A file that is no image, or none that is read here: this door's callers tell it from a damaged one."""

    code = "invalid_file"


class EditError(BaseModel):
    """Any failure."""

    error: str = Field(description="Its name for programs.", examples=["invalid_image"])
    detail: str = Field(description="One sentence: what, which limit, how to mend it.")
    request_id: str


def routes(context: ServerContext) -> Door:
    """Return the route of POST /edit."""
    router = Door(tags=["edit"], route_class=answered_by(_encode_failure))

    @router.post(
        "/edit",
        summary="Change an image as a prompt says",
        description="The answer is the image; `X-Seed` is the seed that made it.",
        responses=openapi.files("image/png") | openapi.refusals(400, 401, 503, 504, shape=EditError),
        openapi_extra=openapi.takes_form(_PROPERTIES, "image", "prompt"),
    )
    async def edit(request: Request) -> Response:
        form = await read_form(request, context.incoming)
        fields = _decode(form)
        fields.setdefault("model", context.editor())
        try:
            return encode_file(await context.generate(request, fields))
        except InvalidImage as error:
            raise _of_file(form, error) from None

    return router


def _decode(form: Form) -> dict[str, JsonValue]:
    form.check_files(("image",))
    for name in form.texts:
        if name not in _FIELDS:
            raise UnknownParameter(f"{name[:80]} is not taken here; there are {', '.join(_FIELDS)}.", field=name[:80])
    images = form.images("image")
    if len(images) != 1:
        raise InvalidRequest("image is required, and one only: the image to change, as a file.", field="image")
    if not isinstance(prompt := form.texts.get("prompt"), str) or not prompt:
        raise InvalidRequest("prompt is required: say in words what to change.", field="prompt")
    return {**form.values(but=("image",)), "image": images[0], "output": output_as("png")}


def _of_file(form: Form, error: InvalidImage) -> InvalidImage:
    """Return `error`, or InvalidFile where the file neither claims to be an image nor begins like one."""
    for data, kind in zip(form.files.get("image", ()), form.types.get("image", ()), strict=True):
        if kind not in _TYPES and kind_of(data) not in IMAGES:
            return InvalidFile(error.message, field="image")
    return error


def _encode_failure(failure: Failure) -> Response:
    detail = failure.message
    for ours, theirs in _WORDS.items():
        detail = detail.replace(ours, theirs)
    if models := failure.supported_models:
        detail += f" There are {', '.join(models)}."
    body = {"error": CODES.get(failure.code, failure.code), "detail": detail, "request_id": failure.body["request_id"]}
    return json_response(body, STATUSES.get(failure.status, 503), failure.headers)
