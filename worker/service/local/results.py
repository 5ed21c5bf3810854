"""The result of a finished job: images, seconds, cost, and the input that reproduces them."""

from collections.abc import Mapping
from functools import cache
from importlib import metadata

from pydantic import JsonValue

from worker.catalog.classes.inputs import FIELDS
from worker.catalog.interface.adapters import ADAPTERS
from worker.catalog.interface.request_fields import spread
from worker.catalog.interface.sizes import FRAME_COUNTS
from worker.core.image import Raster
from worker.core.job import Batch, Job
from worker.core.model import LoraSpec, ModelSpec
from worker.core.precision import Weights
from worker.core.result import JobResult, Reproduction, Timings, Usage
from worker.service.local.batch_run import Generated

# An input image larger than this is not sent back: it would crowd out the generated ones.
MAX_ECHO_CHARS = 100_000
_NO_MEDIA = "reproduce.input leaves out {}, which is large; send it along to get the same result again."
_NOTHING_FASTER = (
    "quality {}: nothing faster is proven for this model on this device yet; it was generated as with quality exact."
)
_VERSIONED = ("diffusers", "transformers", "torch", "universal-image-model-worker")


def bytes_downloaded(batch: Batch) -> int:
    """Return the bytes that were downloaded for a job."""
    adapter_bytes = sum(item.files.bytes_downloaded for item in batch.adapters)
    return batch.files.bytes_downloaded + batch.finishing.bytes_downloaded + adapter_bytes


def result_of(job: Job, batch: Batch, generated: Generated, timings: Timings) -> JobResult:
    """Return the result of `job`; `batch` has its files, `generated` its images."""
    report, artifacts = generated.report, generated.artifacts
    artifact, spec = artifacts[0], job.call.spec
    raster = artifact.raster
    parameters: dict[str, JsonValue] = {**_params(job), "width": raster.width, "height": raster.height}
    if job.scheduler is not None:
        parameters |= job.scheduler.parameters
    parameters |= _finishing_parameters(job, batch)
    revision = batch.files.revision
    left_out = _large_media(job)
    # The denoising steps that really ran: image-to-image skips those outside its strength.
    steps = float(str(job.params.get("num_inference_steps") or 1)) * float(str(job.params.get("strength") or 1))
    return JobResult(
        artifacts=artifacts,
        model=spec.id,
        revision=revision,
        task=job.call.task,
        prompt=job.prompt,
        parameters=parameters,
        loras=report.loras_of(job.id),
        adapters=report.adapters,
        safety=report.safety.get(job.id, ()),
        timings=timings,
        usage=Usage(
            gpu_seconds=(report.inference_s + report.load_s) * generated.share,
            images=len(artifacts),
            pixel_steps=_generated_pixels(job, raster)
            * max(1, int(steps))
            * len(artifacts)
            * max(1, len(artifact.frames)),
            peak_memory_gb=report.peak_memory_gb,
            bytes_downloaded=bytes_downloaded(batch),
        ),
        reproduce=Reproduction(
            model=spec.source.model_copy(update={"revision": revision}).reference if revision else spec.served_name,
            loras=tuple(f"{item.model}#{item.sha256}" for item in report.loras_of(job.id)),
            versions=_versions(),
            input=_input(job, report.weights),
        ),
        mask=job.mask_reading,
        quality=job.quality,
        levers=report.levers,
        weights=_told(report.weights, spec),
        profile=report.profile,
        warnings=job.warnings
        + _length_warning(job, len(artifact.frames))
        + report.warnings
        + report.notes.get(job.id, ())
        + ((_NOTHING_FASTER.format(job.quality),) if job.quality != "exact" and not report.levers else ())
        + ((_NO_MEDIA.format(" and ".join(left_out)),) if left_out else ()),
    )


def _generated_pixels(job: Job, raster: Raster) -> int:
    """Return the pixels of one image as its model generated it, before an upscaler."""
    width, height = job.params.get("width"), job.params.get("height")
    if job.finishing.upscaler is not None and isinstance(width, int) and isinstance(height, int):
        return width * height
    return raster.width * raster.height


def _params(job: Job) -> dict[str, JsonValue]:
    """Return the parameters with the number of frames that was asked for: the model may have generated more."""
    wanted = job.video.frames if job.video else None
    counts = {} if wanted is None else {name: wanted for name in FRAME_COUNTS if name in job.params}
    return {**job.params, **counts}


def _length_warning(job: Job, frames: int) -> tuple[str, ...]:
    """Return a warning for a video that is shorter than was asked for."""
    wanted = job.video.frames if job.video else None
    if wanted is None or frames >= wanted:
        return ()
    return (f"num_frames {wanted} became {frames}, which is all that the model makes of what was sent.",)


def _finishing_parameters(job: Job, batch: Batch) -> dict[str, JsonValue]:
    """Return the parameters of refiner and upscaler, with the revisions of their files."""
    parameters: dict[str, JsonValue] = {}
    refiner, upscaler = job.finishing.refiner, job.finishing.upscaler
    if refiner is not None and batch.finishing.refiner is not None:
        parameters["refiner"] = {
            "model": refiner.call.spec.id,
            "revision": batch.finishing.refiner.revision,
            "start": refiner.spec.start,
            **({"steps": refiner.spec.steps} if refiner.spec.steps is not None else {}),
        }
    if upscaler is not None and batch.finishing.upscaler is not None:
        parameters["upscale"] = {
            "model": upscaler.model.spec.id,
            "revision": batch.finishing.upscaler.revision,
            "scale": upscaler.spec.scale,
            "tile": upscaler.spec.tile,
        }
    return parameters


def _told(weights: Weights | None, spec: ModelSpec) -> Weights | None:
    """Return the form of the weights where somebody has chosen it, or they did not stay on the device."""
    return weights if weights is not None and (spec.precision is not None or weights.offload != "none") else None


def _input(job: Job, weights: Weights | None) -> dict[str, JsonValue]:
    """Return the input that gives the same images, with everything written out that was chosen for the caller."""
    request = job.request
    large = _large_media(job)
    left_out = {
        "params",
        "progress",
        "previews",
        "profile",
        "timeout_s",
        "lightning",
        "loras",
        "sticky",
        "arm",
        "negative_prompt",
        "output",
        "upscale",
        *large,
    }
    fields: dict[str, JsonValue] = spread(request).model_dump(mode="json", exclude=left_out, exclude_defaults=True)
    output = request.output.model_dump(mode="json", exclude={"delivery"}, exclude_defaults=True)
    fields |= {"output": output} if output else {}
    media_fields = {item.field for item in job.media} & request.params.keys()  # by the pipeline's own names
    fields |= {name: request.params[name] for name in media_fields if name not in large}
    fields |= {
        "model": job.call.spec.served_name,
        "task": job.call.task.value,
        "prompt": job.prompt,
        "seed": job.seeds[0],
    }
    fields |= _params(job)
    if job.quality != "exact":
        fields["quality"] = job.quality
    if request.precision is not None and weights is not None:
        fields["precision"] = weights.precision
    if job.negative_prompt is not None:
        fields["negative_prompt"] = job.negative_prompt
    if job.scheduler is not None:
        fields |= job.scheduler.parameters
    if loras := request.adapters_of(LoraSpec):
        fields["loras"] = [lora.model_dump(mode="json", exclude_defaults=True) for lora in loras]
    if job.call.spec.lightning is not None:
        fields["lightning"] = job.call.lightning
    upscaler = job.finishing.upscaler
    if upscaler is not None:
        fields["upscale"] = upscaler.spec.model_dump(mode="json", exclude_defaults=True)
    elif job.call.spec.upscale is not None:
        fields["upscale"] = False
    return fields


def _large_media(job: Job) -> list[str]:
    """List the fields whose images or videos are too large to be sent back."""
    sent = {name: getattr(job.request, name) for name in FIELDS}
    sent |= {item.field: job.request.params[item.field] for item in job.media if item.field in job.request.params}
    for field in reversed([*ADAPTERS]):
        sent[field] = [text for spec in job.request.adapters if spec.field == field for text in spec.sent_images]
    sizes = {
        name: sum(map(len, value)) if isinstance(value, list | tuple) else len(value or "")
        for name, value in sent.items()
    }
    return [name for name, size in sizes.items() if size > MAX_ECHO_CHARS]


@cache
def _versions() -> Mapping[str, str]:
    versions = {}
    for name in _VERSIONED:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions
