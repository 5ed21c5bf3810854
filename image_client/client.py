"""The client: one request to a provider and its image back, tried again only where the job cannot have run."""

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from image_client.image import Image
from image_client.job import ProviderJob
from image_client.options import ClientOptions
from image_client.request import ImageRequest

ImageFile = bytes | str | os.PathLike[str]


class ImageClient:
    """Images from one provider, and from those in `fallback` where the first cannot have run the job.

    `api_token` and `base_url` are those of `provider`; without a token its customary variable is read. `fallback` names
    providers, or holds other clients. Used as `async with`; one client belongs to one event loop.
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
        raise NotImplementedError

    async def __aenter__(self) -> Self:
        raise NotImplementedError

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close its connections."""
        raise NotImplementedError

    async def generate(self, prompt: str, **fields: Any) -> Image:
        """Return an image of `prompt`; `fields` are those of `ImageRequest`."""
        raise NotImplementedError

    async def edit(self, image: ImageFile, prompt: str, **fields: Any) -> Image:
        """Return `image` (bytes of a file, or its path) changed as `prompt` says."""
        raise NotImplementedError

    async def inpaint(self, image: ImageFile, mask: ImageFile, prompt: str, **fields: Any) -> Image:
        """Return `image` with what is white in `mask` drawn anew."""
        raise NotImplementedError

    async def upscale(self, image: ImageFile, **fields: Any) -> Image:
        """Return `image`, larger."""
        raise NotImplementedError

    def check(self, request: ImageRequest) -> tuple[str, ...]:
        """Say how the request would be adapted; raises Unsupported for what the provider cannot do. Sends nothing."""
        raise NotImplementedError

    async def send(self, request: ImageRequest, *, request_id: str | None = None) -> Image:
        """Return the image of a request with n=1.

        `request_id` is an idempotency key: where the provider knows such, the same request under the same id is drawn
        once, whoever sends it again. Raises a subclass of ImageClientError.
        """
        raise NotImplementedError

    async def send_many(self, request: ImageRequest, *, request_id: str | None = None) -> tuple[Image, ...]:
        """Return the `n` images of a request, in order."""
        raise NotImplementedError

    async def collect(self, job: ProviderJob) -> tuple[Image, ...]:
        """Wait for a job that was accepted earlier, by this process or another, and return its images."""
        raise NotImplementedError

    @property
    def idempotent(self) -> bool:
        """Whether the provider draws the same request id only once, so that sending it again is safe."""
        raise NotImplementedError
