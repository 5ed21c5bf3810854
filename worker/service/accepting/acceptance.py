"""From a request to a job: all checks that need no weights.

Three stages, each in threads of its kind: what the models are, the links, and everything else.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from types import MappingProxyType
from typing import Any, TypeVar

from pydantic import JsonValue

from worker.catalog.call import Model, ModelCall
from worker.catalog.classes.refusals import refusal
from worker.catalog.classes.signatures import regenerates_by_strength
from worker.catalog.interface.checking import check_parameters
from worker.catalog.interface.prompt_encoding import prompt_form
from worker.catalog.interface.sizes import image_limit
from worker.core.adapter import Adapter, ControlNetSpec
from worker.core.errors import InvalidRequest, ParameterOutOfRange, UnsupportedModel, WorkerError
from worker.core.finishing import Finishing
from worker.core.image import Raster
from worker.core.job import Job, Media, SchedulerChoice, VideoRequest
from worker.core.model import LoraSpec, ModelSpec
from worker.core.prompt_mixing import changes, is_mixed
from worker.core.prompt_syntax import TagKind
from worker.core.request import GenerationRequest
from worker.core.turn import current
from worker.core.version import VersionChoice
from worker.media.decoding import MAX_BYTES
from worker.media.images import is_url, to_base64
from worker.media.keeping import Room
from worker.media.video import Given, Video
from worker.service.accepting.adapters.controls import Recognised, idle_controls, read_controls, recognise_controls
from worker.service.accepting.adapters.fields import check_adapter_fields
from worker.service.accepting.adapters.reading import read_adapters
from worker.service.accepting.finishing import (
    check_upscaling,
    find_refiner,
    find_upscaler,
    refiner_named,
    scale_after,
    settle_refiner,
)
from worker.service.accepting.inputs import (
    check_fields,
    check_outpaint,
    frame_rate,
    on_the_frame_grid,
    read_inputs,
    sent_fields,
    without_media,
)
from worker.service.accepting.links import Link, count_pixels, fetch_all, links_of, reading
from worker.service.accepting.masks import MaskReport
from worker.service.accepting.media_reader import Fetch, MediaReader
from worker.service.accepting.prompt_tags import read_tags
from worker.service.accepting.resolving import ModelResolver
from worker.service.accepting.rules import (
    check_lightning,
    check_output,
    choose_seeds,
    choose_task,
    notes_on,
    prompt_in_its_form,
    read_prompts,
    reads_mixtures,
    second_prompt,
    take_scheduler,
    uses_lightning,
)
from worker.service.limits.job_limits import JobLimits
from worker.service.limits.pixels import PixelBudget
from worker.service.limits.pools import Pools
from worker.service.usage.telemetry import chosen

R = TypeVar("R")
T = TypeVar("T")

_CHECK_S = 0.5  # what a check may take in any case


@dataclass(frozen=True, slots=True)
class _Calls:
    """The call that a request is checked against, and the one that generates it.

    With ControlNets both are of the class that takes them. If each has a scale of 0, the class without generates.
    """

    asked: ModelCall
    generating: ModelCall
    control: Recognised | None
    sent: tuple[str, ...]  # the media fields


@dataclass(frozen=True, slots=True)
class _Resolved:
    """A request whose models are known and whose parameters are checked, before its images are read.

    `others` are the models beside the one that generates, by name, or the reasons why they cannot be had.
    """

    request: GenerationRequest
    calls: _Calls
    params: dict[str, JsonValue]
    scheduler: SchedulerChoice | None
    prompts: tuple[str, str | None]
    links: tuple[Link, ...]
    others: Mapping[str, Model | WorkerError]
    notes: tuple[str, ...]
    choice: VersionChoice | None

    @property
    def makes_video(self) -> bool:
        """True if videos are generated."""
        return self.calls.generating.makes_video

    @property
    def has_media(self) -> bool:
        """True if there are images or videos to decode."""
        return bool(self.calls.sent) or any(adapter.sent_images for adapter in self.request.adapters)

    def other(self, name: str) -> Model:
        """Return the model of this name. Raises the reason why it cannot be had."""
        model = self.others[name]
        if isinstance(model, WorkerError):
            raise model
        return model


@dataclass(frozen=True, slots=True)
class _Read:
    """The contents of a request: its words and numbers as its class takes them, its images and videos."""

    prompt: str
    negative_prompt: str | None
    params: Mapping[str, JsonValue]
    scheduler: SchedulerChoice | None
    media: tuple[Media, ...]
    adapters: tuple[Adapter[Any], ...]
    video: VideoRequest | None
    mask: MaskReport
    enlarged: bool  # by the model's own upscaler
    warnings: tuple[str, ...]


class Acceptor:
    """Makes jobs of requests: resolves the call, reads its inputs, and adds the finishing.

    Where nothing is generated, as at a gateway, images are checked and stay at their own sizes.
    """

    def __init__(
        self,
        resolver: ModelResolver,
        limits: JobLimits,
        pools: Pools,
        fetch: Fetch,
        aliases: Collection[str] = (),
        find_file: Callable[[str, str], str | None] = lambda kind, name: None,
        *,
        generates: bool = True,
    ) -> None:
        self.resolver = resolver
        self._limits = limits
        self._pools = pools
        self._pixels = PixelBudget()
        self._room = Room()
        self._fetch = fetch
        self._aliases = aliases
        self._find_file = find_file
        self.generates = generates

    async def accept(
        self, request: GenerationRequest, job_id: str, given: Mapping[str, Given] = MappingProxyType({})
    ) -> Job:
        """Return the job of `request`, after all checks that need no weights.

        `given` are media that this worker made itself, by the texts that stand for them in the request. Raises
        InvalidRequest and its subclasses, naming the field, and JobTimeout at the deadline of the turn.
        """
        pools = self._pools
        with current().working():
            if self.is_at_hand(request):  # what is wrong with a request is said even if its time is very short
                resolved = await pools.checks.run(self._begin, request, job_id, given, grace_s=_CHECK_S)
            else:
                place = self.resolver.host_of(request.model)
                resolved = await pools.headers.run(self._begin, request, job_id, given, place=place)
            if isinstance(resolved, Job):
                return resolved
            bodies = await fetch_all(resolved.links, self._fetch, pools.images)
            sent = resolved.calls.sent
            pixels = await count_pixels(pools.decoding, resolved.request, sent, reading(bodies), given)
            async with self._pixels.share(pixels) as share:
                return await pools.decoding.run(share.held_by(self._finish), resolved, job_id, bodies, given)

    async def read_image(self, request: GenerationRequest, given: Mapping[str, Given]) -> Raster:
        """Return the pixels of a request's image, as RGB. Raises InvalidRequest and its subclasses."""
        if request.image is None:
            raise InvalidRequest("image is required here; send it.", field="image")
        return await self._read_one(request, "image", given, MediaReader.image, request.image)

    async def read_video(self, request: GenerationRequest, given: Mapping[str, Given]) -> Video:
        """Return the frames of a request's video. Raises InvalidRequest and its subclasses."""
        return await self._read_one(request, "video", given, MediaReader.video, request.video)

    async def _read_one(
        self,
        request: GenerationRequest,
        field: str,
        given: Mapping[str, Given],
        read: Callable[[MediaReader, T, str], R],
        value: T,
    ) -> R:
        sent, pools = (field,), self._pools
        with current().working():
            links = links_of(request.model_copy(update={"adapters": ()}), sent)
            bytes_of = reading(await fetch_all(links, self._fetch, pools.images))
            pixels = await count_pixels(pools.decoding, request, sent, bytes_of, given)
            reader = MediaReader(bytes_of, self._room, given=given)
            async with self._pixels.share(pixels) as share:
                return await pools.decoding.run(share.held_by(read), reader, value, field)

    async def fetch(self, images: Mapping[str, str], max_bytes: int = MAX_BYTES) -> dict[str, str]:
        """Return `images`, texts by their fields, with the files behind links as base64. Raises InvalidImage.

        So whoever needs an image several times asks its server once. Videos may have more bytes.
        """
        links = [Link(text.strip(), name, max_bytes) for name, text in images.items() if is_url(text)]
        bodies = await fetch_all(links, self._fetch, self._pools.images)
        return {name: to_base64(bodies[text.strip()]) if is_url(text) else text for name, text in images.items()}

    def is_at_hand(self, request: GenerationRequest) -> bool:
        """True if no other server has to be asked what the request's models and adapters are."""
        spec = self.resolver.registry.models.get(self.resolver.registered_id(request.model) or "")
        names = [request.model, *_other_names(request, spec)]
        return not request.adapters_of(ControlNetSpec) and all(map(self.resolver.is_at_hand, names))

    def resolve(self, request: GenerationRequest) -> _Resolved:
        """Find out what the models of `request` are, and check all but its media. Blocking. Raises as `accept`."""
        choice = self.resolver.choose(request, current().caller)
        if choice is not None:  # all that follows is of this version, whatever becomes of the alias meanwhile
            chosen(choice)
            request = request.model_copy(update={"model": choice.reference})
        request, notes = read_tags(request, self._find_adapter)
        request, refined = settle_refiner(request, self.resolver.resolve(request.model))
        calls = self._calls(request)
        asked = calls.asked
        raw = without_media(request.params, calls.generating.model)
        checked = check_parameters(raw, asked, max_images=self._limits.max_images, aliases=self._aliases)
        params, scheduler = take_scheduler(checked, raw, asked)
        prompt, negative_prompt = read_prompts(request, asked)
        prompt, formed = prompt_in_its_form(prompt, asked)
        others = {name: self._known(name) for name in _other_names(request, calls.generating.spec)}
        links = links_of(request, calls.sent)
        notes += refined + formed
        return _Resolved(request, calls, params, scheduler, (prompt, negative_prompt), links, others, notes, choice)

    def _begin(self, request: GenerationRequest, job_id: str, given: Mapping[str, Given]) -> _Resolved | Job:
        """Return the job at once where nothing has to be fetched or decoded: another thread would take longer."""
        resolved = self.resolve(request)
        return resolved if resolved.has_media else self._finish(resolved, job_id, {}, given)

    def _known(self, name: str) -> Model | WorkerError:
        try:
            return self.resolver.known(self.resolver.resolve(name))
        except WorkerError as error:
            return error

    def _finish(self, resolved: _Resolved, job_id: str, bodies: Mapping[str, bytes], given: Mapping[str, Given]) -> Job:
        """Return the job, with its images decoded. Takes a processor, and waits for nothing."""
        read = self._read(resolved, MediaReader(reading(bodies), self._room, fits=self.generates, given=given))
        return self._job(resolved, job_id, replace(read, warnings=resolved.notes + read.warnings))

    def _find_adapter(self, kind: TagKind, name: str) -> str | None:
        """Return the reference of an adapter that a prompt names: of models.yaml, else a file of the operator's."""
        return self.resolver.adapter_named(name) or self._find_file(kind, name)

    def _calls(self, request: GenerationRequest) -> _Calls:
        """Return the calls that `request` means, with all the fields that they need and no other."""
        spec = self._limits.in_precision(request, self.resolver.resolve(request.model))
        self._check_counts(request, spec)
        model = self.resolver.known(spec)
        check_outpaint(request, model)
        sent = sent_fields(request, model)
        plain = model.call(choose_task(request, model, sent), lightning=uses_lightning(request, spec))
        check_adapter_fields(request, plain)
        control = recognise_controls(request, plain, self.resolver)
        asked = plain.as_class(control.row.pipeline) if control else plain
        generating = plain if control and not control.acts else asked
        _check_served(generating)
        check_fields(generating, sent)
        check_output(request.output, generating)
        check_lightning(request, spec)
        return _Calls(asked, generating, control, sent)

    def _read(self, resolved: _Resolved, reader: MediaReader) -> _Read:
        """Read the request's media, in the form that its class takes."""
        request, calls, (prompt, negative_prompt) = resolved.request, resolved.calls, resolved.prompts
        generating, model = calls.generating, calls.generating.model
        scale = scale_after(request, generating, resolved.params, calls.sent)
        inputs = read_inputs(request, calls.sent, generating, resolved.params, reader, scale)
        adapters = read_adapters(request, generating, reader)
        params, frames = on_the_frame_grid(inputs, generating)
        negative_prompt, unguided = second_prompt(negative_prompt, params, generating)
        check_upscaling(request, model, params, inputs.media)
        if calls.control is not None:
            adapters["controlnets"], params = read_controls(request, calls.control, model, params, reader)
        video = VideoRequest(frame_rate(inputs, params, generating), frames) if generating.makes_video else None
        return _Read(
            prompt=prompt,
            negative_prompt=negative_prompt,
            params=params,
            scheduler=resolved.scheduler,
            media=inputs.media,
            adapters=tuple(chain(*adapters.values())),
            video=video,
            mask=inputs.mask,
            enlarged=inputs.enlarged,
            warnings=unguided + tuple(dict.fromkeys(reader.notes)) + inputs.mask.notes,
        )

    def _job(self, resolved: _Resolved, job_id: str, read: _Read) -> Job:
        """Return the job, with its refiner and upscaler."""
        request, call, stop = resolved.request, resolved.calls.generating, current().stop
        output = request.output
        stop.limit(self._limits.seconds_for(request, call.spec))
        return Job(
            id=job_id,
            request=request,
            call=call,
            prompt=read.prompt,
            negative_prompt=read.negative_prompt,
            params=read.params,
            scheduler=read.scheduler,
            seeds=choose_seeds(request),
            media=read.media,
            adapters=read.adapters,
            finishing=Finishing(
                find_refiner(request, call, read.params, resolved.other),
                find_upscaler(request, call.spec, read.params, resolved.other, uses_own=read.enlarged),
            ),
            output=output.model_copy(update={"format": output.format_of(video=call.makes_video)}),
            words=prompt_form(call),
            mixes=reads_mixtures(request, call) and (is_mixed(read.prompt) or changes(read.negative_prompt or "")),
            warnings=notes_on(request, call) + read.warnings + idle_controls(request),
            stop=stop,
            generates=_changes_something(call, read),
            video=read.video,
            quality=self._limits.quality_of(request, call.spec),
            choice=resolved.choice,
            mask_reading=read.mask.reading,
        )

    def _check_counts(self, request: GenerationRequest, spec: ModelSpec) -> None:
        limit = image_limit(spec, self._limits.max_images)
        if request.num_images > limit:
            raise ParameterOutOfRange(
                f"num_images must be between 1 and {limit}; {request.num_images} was sent.", field="num_images"
            )
        loras = request.adapters_of(LoraSpec)
        if len(loras) > self._limits.max_loras:
            raise ParameterOutOfRange(
                f"loras may hold at most {self._limits.max_loras} entries; {len(loras)} were sent.",
                field="loras",
            )


def _other_names(request: GenerationRequest, spec: ModelSpec | None) -> list[str]:
    """List the names of the models that a request takes beside the one that generates, which is `spec` if known."""
    upscaler = (spec.upscale if spec else None) if request.upscale is None else request.upscale
    return [name for name in (refiner_named(request, spec), upscaler.model if upscaler else None) if name]


def _changes_something(call: ModelCall, read: _Read) -> bool:
    """True unless strength or mask leave the sent image as it is: then there is nothing to generate."""
    is_kept = read.params.get("strength") == 0 and regenerates_by_strength(call.pipeline)
    return not (is_kept or read.mask.is_empty)


def _check_served(call: ModelCall) -> None:
    """Raise UnsupportedModel for a call without a class, or of one that makes nothing by itself."""
    if not call.pipeline:
        raise UnsupportedModel(f"{call.spec.id} has no pipeline for {call.task}; name another model.", field="model")
    reason = refusal(call.pipeline)
    if reason is not None:
        raise UnsupportedModel(f"{call.spec.id} is a {call.pipeline}, which {reason}.", field="model")
