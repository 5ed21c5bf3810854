"""The same client without async: its event loop runs in a thread of its own."""

import asyncio
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack

from image_client.client import ImageClient, ImageFile
from image_client.image import Image
from image_client.job import ProviderJob
from image_client.request import ImageRequest, RequestFields, UpscaleFields

T = TypeVar("T")


class SyncImageClient:
    """`ImageClient` for programs that are not async: `with SyncImageClient("mock") as images: images.generate(…)`.

    It may be used from several threads. It takes what ImageClient takes.
    """

    def __init__(self, provider: str = "mock", **arguments: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="image-client", daemon=True)
        self._thread.start()
        try:
            self._client = self._run(_made(provider, arguments))
        except BaseException:
            self._stop()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close its connections and end its thread."""
        if not self._loop.is_closed():
            self._run(self._client.close())
            self._stop()

    def generate(self, prompt: str, **fields: Unpack[RequestFields]) -> Image:
        """Return an image of `prompt`; `fields` are those of `RequestFields`."""
        return self._run(self._client.generate(prompt, **fields))

    def edit(self, image: ImageFile, prompt: str, **fields: Unpack[RequestFields]) -> Image:
        """Return `image` (bytes of a file, or its path) changed as `prompt` says."""
        return self._run(self._client.edit(image, prompt, **fields))

    def inpaint(self, image: ImageFile, mask: ImageFile, prompt: str, **fields: Unpack[RequestFields]) -> Image:
        """Return `image` with what is white in `mask` drawn anew."""
        return self._run(self._client.inpaint(image, mask, prompt, **fields))

    def upscale(self, image: ImageFile, **fields: Unpack[UpscaleFields]) -> Image:
        """Return `image`, larger."""
        return self._run(self._client.upscale(image, **fields))

    def check(self, request: ImageRequest) -> tuple[str, ...]:
        """Say how the request would be adapted; raises Unsupported for what the provider cannot do."""
        return self._client.check(request)

    def send(self, request: ImageRequest, *, request_id: str | None = None) -> Image:
        """Return the image of a request with n=1."""
        return self._run(self._client.send(request, request_id=request_id))

    def send_many(self, request: ImageRequest, *, request_id: str | None = None) -> tuple[Image, ...]:
        """Return the `n` images of a request, in order."""
        return self._run(self._client.send_many(request, request_id=request_id))

    def collect(self, job: ProviderJob) -> tuple[Image, ...]:
        """Wait for a job that was accepted earlier, and return its images."""
        return self._run(self._client.collect(job))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        future: Future[T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C takes the work back too
            raise

    def _stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class StableDiffusionClient:
    """The simplest form: a prompt in, the bytes of an image out. flux-schnell at Replicate unless told otherwise.

    `generate` is async; a client may be used in several event loops, since it keeps no connection.
    """

    def __init__(self, api_token: str | None = None, *, provider: str = "replicate", **arguments: Any) -> None:
        self._arguments = {"provider": provider, "api_token": api_token, **arguments}

    async def generate(self, prompt: str, **params: Any) -> bytes:
        """Return the bytes of an image of `prompt`; `params` are fields of `ImageRequest`."""
        async with ImageClient(**self._arguments) as images:
            return (await images.generate(prompt, **params)).data


async def _made(provider: str, arguments: dict[str, Any]) -> ImageClient:
    return ImageClient(provider, **arguments)
