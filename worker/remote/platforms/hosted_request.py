"""A job in a hosted provider's words, and the provider's images as a result. No I/O.

What the caller named is taken as it is or refused; what the model's defaults say is for the provider to choose, but for
size, seed and format, which are sent where the provider takes them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pydantic import JsonValue

from image_client.client import request_of
from image_client.errors import InvalidRequest as Impossible
from image_client.errors import Unsupported
from image_client.image import Image
from image_client.providers.fitting import fitted, nearest_size
from image_client.providers.provider import Abilities, Provider
from image_client.request import ImageRequest
from worker.core.errors import InvalidOutput, InvalidRequest
from worker.core.job import Job
from worker.core.model import Task
from worker.core.result import AnswerFile, EncodedArtifact, JobResult, Reproduction, Timings, Usage
from worker.media.images import encode, fit, outline_of
from worker.wire.sending import encode_request

# Fields that have a word at providers, or that say nothing of the image.
_KNOWN = frozenset(
    {
        *("model", "task", "prompt", "negative_prompt", "image", "mask_image", "seed", "num_images"),
        *("width", "height", "num_inference_steps", "guidance_scale", "strength"),
        *("output", "fallback", "progress", "previews", "sticky", "arm"),
    }
)
_OUR_NAMES = {"n": "num_images", "output_format": "output", "mask": "mask_image"}
_MEDIA = ("image", "mask_image")
_NOT_AGAIN = (*_MEDIA, "sticky", "arm")
_TASKS = (Task.TEXT_TO_IMAGE, Task.IMAGE_TO_IMAGE, Task.IMAGE_EDITING, Task.INPAINTING)


@dataclass(frozen=True, slots=True)
class Hosted:
    """A model of ours at a provider. `name` is the operator's for it, `model` the provider's word for the model."""

    name: str
    provider: Provider
    model: str
    abilities: Abilities

    @classmethod
    def of(cls, name: str, provider: Provider, model: str, base_url: str) -> "Hosted":
        """Return it, at the provider's address. Raises image_client's Unsupported for a model that it does not have."""
        return cls(name, provider, model, provider.abilities(model, base_url))


def request_for(hosted: Hosted, job: Job) -> tuple[ImageRequest, tuple[str, ...]]:
    """Return the request for `job`, and warnings for its caller. Raises InvalidRequest for what cannot be done there.

    Encodes the images that the job starts from: not for the event loop.
    """
    _check(hosted, job)
    fields, notes = _chosen(hosted, job, {name: value for name, value in _named(job).items() if value is not None})
    image, mask = job.image, job.mask
    size = _size(job)  # of both, as a worker would see them
    pairs = (("image", image), ("mask", mask))
    files = {name: encode(fit(raster, *size), "png", 100) for name, raster in pairs if raster}
    operation = "generate" if image is None else "edit" if mask is None else "inpaint"
    try:
        request = request_of(operation, {**fields, **files, "prompt": job.prompt, "model": hosted.model})
        request = request.model_copy(update={"n": len(job.seeds)})
        return fitted(request, hosted.abilities, hosted.name, "strict")[0], notes
    except Unsupported as error:
        field = _OUR_NAMES.get(error.field, error.field)
        raise InvalidRequest(f"{error.message.rstrip('.')}; change it or leave it out.", field=field) from None
    except Impossible as error:
        raise InvalidRequest(f"{hosted.name} cannot take the job: {error.message}") from None


def _chosen(hosted: Hosted, job: Job, named: Mapping[str, object]) -> tuple[Mapping[str, object], tuple[str, ...]]:
    """Return `named`, with size, seed and format where the caller named none; and warnings."""
    can, size, chosen = hosted.abilities, _size(job), dict(named)
    is_drawn = "size" in can.fields and nearest_size(size, can.sizes) == size
    if is_drawn or "width" in named or "height" in named:  # one that was named goes with the model's own other side
        chosen |= {"width": size[0], "height": size[1]}
    if "png" in can.formats:
        chosen.setdefault("output_format", "png")
    if "seed" in named:
        return chosen, ()
    if "seed" not in can.fields:
        return chosen, (f"{hosted.name} takes no seed: the same image does not come again.",)
    return chosen | {"seed": job.seeds[0] % (min(can.max_seed, 2**53 - 1) + 1)}, ()


def result_of(
    job: Job, hosted: Hosted, request: ImageRequest, images: Sequence[Image], warnings: Sequence[str], *, usd: float
) -> JobResult:
    """Return the result of `job`. Raises InvalidOutput where a file is no image."""
    seeds = job.seeds if request.seed is None else [request.seed + index for index in range(request.n)]
    artifacts = tuple(map(_artifact, images, seeds))
    first, image, spec = artifacts[0], images[0], job.call.spec
    sent: dict[str, JsonValue] = request.model_dump(
        mode="json", include={"num_inference_steps", "guidance_scale", "strength"}, exclude_none=True
    )
    versions = {"provider": hosted.provider.name, "provider_model": image.model or hosted.model}
    if image.version is not None:
        versions["provider_version"] = image.version
    again = {name: value for name, value in encode_request(job).items() if name not in _NOT_AGAIN} | {
        "seed": first.seed
    }
    notes = [f"{hosted.name} drew it, a hosted provider: a worker draws another image from the same seed.", *warnings]
    if (came := first.files[0].format) != (job.request.output.format or "png"):
        notes.append(f"{hosted.name} writes {came}.")
    return JobResult(
        artifacts=artifacts,
        model=spec.id,
        revision=None,
        task=job.call.task,
        prompt=job.prompt,
        parameters={**sent, "width": first.width, "height": first.height},
        loras=(),
        timings=Timings(inference_s=max(image.seconds for image in images)),
        usage=Usage(
            gpu_seconds=0.0,
            images=len(artifacts),
            pixel_steps=first.width * first.height * (request.num_inference_steps or 1) * len(artifacts),
            peak_memory_gb=0.0,
            bytes_downloaded=0,
            cost_usd=usd,
        ),
        reproduce=Reproduction(spec.id, (), versions, again),
        mask=job.mask_reading,
        warnings=(*job.warnings, *notes),
    )


def _check(hosted: Hosted, job: Job) -> None:
    """Raise InvalidRequest for a job that has no form at a provider."""
    if job.call.task not in _TASKS or job.video is not None:
        raise InvalidRequest(
            f"{hosted.name} makes images only; task {job.call.task.value} is for a worker.", field="task"
        )
    if job.mixes:
        raise InvalidRequest(f"{hosted.name} takes one prompt for all steps; send a plain one.", field="prompt")
    sent = encode_request(job)
    if (unknown := next((name for name in sent if name not in _KNOWN), None)) is not None:
        raise InvalidRequest(f"{hosted.name} takes no {unknown}, which is for a worker; leave it out.", field=unknown)
    output = job.request.output
    if output.delivery not in ("base64", "stream") or output.metadata or "quality" in output.model_fields_set:
        raise InvalidRequest(
            f"{hosted.name} sends its own files; output takes format alone there, and delivery base64 or stream.",
            field="output",
        )


def _named(job: Job) -> Mapping[str, object]:
    """Return what the caller named of an image, in ImageRequest's words."""
    request = job.request
    named: dict[str, object] = {name: request.params.get(name) for name in ("num_inference_steps", "guidance_scale")}
    named |= {name: request.params.get(name) for name in ("width", "height", "strength")}
    return named | {
        "seed": request.seed,
        "negative_prompt": request.negative_prompt,
        "output_format": request.output.format,
    }


def _size(job: Job) -> tuple[int, int]:
    """Return width and height of the job's images, in pixels."""
    usual = job.call.detection.native_size or 1024
    width, height = (side if isinstance(side := job.params.get(name), int) else usual for name in ("width", "height"))
    return width, height


def size_of(request: ImageRequest, job: Job) -> tuple[int, int]:
    """Return the width and height that a request is priced by: those that it names, else the job's."""
    return (request.width, request.height) if request.width and request.height else _size(job)


def _artifact(image: Image, seed: int) -> EncodedArtifact:
    outline = outline_of(image.data)
    if outline is None:
        raise InvalidOutput("The provider's file is no PNG, JPEG or WebP.")
    format_, width, height = outline
    seed = seed if image.seed is None else image.seed
    return EncodedArtifact((AnswerFile(format_, image.data),), seed, width, height)
