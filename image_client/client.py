"""The client: one request to a provider and its image back, elsewhere only where the job cannot have run."""

import asyncio
import os
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack

from pydantic import ValidationError

from image_client.errors import AuthenticationFailed, ContentRefused, InvalidRequest, NotSent, Unsupported
from image_client.image import Image
from image_client.job import ProviderJob
from image_client.options import ClientOptions
from image_client.providers.provider import Provider
from image_client.providers.table import provider_named
from image_client.request import ImageRequest, RequestFields, UpscaleFields
from image_client.route import Route

ImageFile = bytes | str | os.PathLike[str]
MAX_ID_CHARS = 128


class ImageClient:
    """Images from one provider, and from those in `fallback` where the first cannot have run the job.

    `api_token` and `base_url` are those of `provider`; without a token its customary variable is read, for its own
    address. `fallback` names providers, or holds other clients. Used as `async with`; one client belongs to one event
    loop.
    Raises InvalidRequest for an unknown provider or a missing base_url, AuthenticationFailed for a missing token.
    """

    def __init__(
        self,
        provider: str = "mock",
        *,
        api_token: str | None = None,
        base_url: str | None = None,
        model: str | None = None,
        fallback: "Sequence[str | ImageClient]" = (),
        options: ClientOptions | None = None,
    ) -> None:
        self.options = options or ClientOptions()
        row = provider_named(provider)
        base = base_url or row.base_url
        if base is None:
            raise InvalidRequest(f"base_url is missing: {provider} has no address of its own.")
        if "://" not in base and row.short_base is not None:
            base = row.short_base + base
        token = api_token or _customary_token(row, base)
        self._route = Route(row, token=token, base_url=base, model=model or row.default_model, options=self.options)
        self._own = [ImageClient(name, options=self.options) for name in fallback if isinstance(name, str)]
        named = iter(self._own)
        self._fallback = [item if isinstance(item, ImageClient) else next(named) for item in fallback]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections; clients that were given as `fallback` stay open."""
        await self._route.close()
        for client in self._own:
            await client.close()

    @property
    def provider(self) -> str:
        """The name of its provider."""
        return self._route.provider.name

    @property
    def model(self) -> str | None:
        """The model that is asked where a request names none; None where the provider chooses."""
        return self._route.model or None

    @property
    def idempotent(self) -> bool:
        """Whether the provider draws the same request id only once, so that sending it again is safe."""
        return self._route.provider.idempotent

    async def generate(self, prompt: str, **fields: Unpack[RequestFields]) -> Image:
        """Return an image of `prompt`; `fields` are those of `RequestFields`."""
        return await self._one("generate", {"prompt": prompt, **fields})

    async def edit(self, image: ImageFile, prompt: str, **fields: Unpack[RequestFields]) -> Image:
        """Return `image` (bytes of a file, or its path) changed as `prompt` says."""
        return await self._one("edit", {"image": await _bytes(image), "prompt": prompt, **fields})

    async def inpaint(self, image: ImageFile, mask: ImageFile, prompt: str, **fields: Unpack[RequestFields]) -> Image:
        """Return `image` with what is white in `mask` drawn anew."""
        files = {"image": await _bytes(image), "mask": await _bytes(mask)}
        return await self._one("inpaint", {**files, "prompt": prompt, **fields})

    async def upscale(self, image: ImageFile, **fields: Unpack[UpscaleFields]) -> Image:
        """Return `image`, larger."""
        return await self._one("upscale", {"image": await _bytes(image), **fields})

    def check(self, request: ImageRequest) -> tuple[str, ...]:
        """Say how the request would be adapted; raises Unsupported for what the provider cannot do. Sends nothing."""
        return self._route.fit(request, "check")[1]

    async def send(self, request: ImageRequest, *, request_id: str | None = None) -> Image:
        """Return the image of a request with n=1.

        `request_id` is an idempotency key: where the provider knows such, the same request under the same id is drawn
        once, whoever sends it again. Raises a subclass of ImageClientError.
        """
        if request.n != 1:
            raise InvalidRequest(f"n is {request.n}, and send returns one image: use send_many.")
        return (await self.send_many(request, request_id=request_id))[0]

    async def send_many(self, request: ImageRequest, *, request_id: str | None = None) -> tuple[Image, ...]:
        """Return the `n` images of a request, in order."""
        named = _checked_id(request_id or uuid.uuid4().hex)
        first, *others = [self._route, *(client._route for client in self._fallback)]
        try:
            return await first.images(request, named, patient=not others)
        except ContentRefused:
            raise  # what one provider's moderation refuses is not tried at another's
        except NotSent as error:
            if not others or (isinstance(error, InvalidRequest) and not isinstance(error, Unsupported)):
                raise
            return await self._elsewhere(request, named, others, error)

    async def collect(self, job: ProviderJob) -> tuple[Image, ...]:
        """Wait for a job that was accepted earlier, by this process or another, and return its images."""
        return await self._route_of(job.provider).collect(job)

    async def cancel(self, job: ProviderJob) -> None:
        """Take a job back that was accepted; one that is being drawn may still be drawn, and charged.

        Raises Unsupported where the provider does not let jobs be taken back.
        """
        await self._route_of(job.provider).cancel(job)

    async def find(self, request: ImageRequest, *, request_id: str) -> ProviderJob | None:
        """Look for a request that was sent and never answered in the provider's list of jobs; None if it is not there.

        The request must be what was sent, under the same id. Raises Unsupported where the provider has no such list.
        """
        return await self._route.find(request, _checked_id(request_id))

    async def _one(self, operation: str, fields: dict[str, Any]) -> Image:
        request_id = fields.pop("request_id", None)
        return await self.send(request_of(operation, fields), request_id=request_id)

    async def _elsewhere(
        self, request: ImageRequest, request_id: str, routes: list[Route], error: NotSent
    ) -> tuple[Image, ...]:
        """Ask the other providers in turn. Model and `extra` were the first one's, and stay behind."""
        asked = request.model_copy(update={"model": None, "extra": {}})
        for route in routes:
            try:
                images = await route.images(asked, request_id, patient=route is routes[-1])
            except ContentRefused:
                raise
            except NotSent as failure:
                error = failure
                continue
            said = f"{self.provider} could not take it; {route.provider.name} drew it."
            return tuple(replace(image, adapted=(*image.adapted, said)) for image in images)
        raise error

    def _route_of(self, provider: str) -> Route:
        for route in (self._route, *(client._route for client in self._fallback)):
            if route.provider.name == provider:
                return route
        raise InvalidRequest(f"The job is {provider}'s, which this client does not ask.")


def request_of(operation: str, fields: dict[str, Any]) -> ImageRequest:
    """Return a checked request; raises InvalidRequest with one sentence about the first field that is wrong."""
    try:
        return ImageRequest.model_validate({"operation": operation, **fields})
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        raise InvalidRequest(f"{place}: {said}." if place else said) from None


def _customary_token(row: Provider, base: str) -> str | None:
    """Return the token of the customary variable: for the provider's own address only, never for another server."""
    official = row.base_url or row.short_base
    if row.token_required and not (official and base.startswith(official)):
        return None
    token = next((value for name in row.token_variables if (value := os.environ.get(name))), None)
    if token is None and row.token_required:
        names = " or ".join(row.token_variables)
        raise AuthenticationFailed(f"api_token is missing: give one, or set {names}.", provider=row.name)
    return token


def _checked_id(request_id: str) -> str:
    if not (0 < len(request_id) <= MAX_ID_CHARS and all(char.isalnum() or char in "._:-" for char in request_id)):
        raise InvalidRequest(f"request_id must have 1 to {MAX_ID_CHARS} letters, digits and ._:- only.")
    return request_id


async def _bytes(image: ImageFile) -> bytes:
    return image if isinstance(image, bytes) else await asyncio.to_thread(Path(image).read_bytes)
