"""A client that answers what a test says, and remembers what it was asked."""

import asyncio
import hashlib
from collections import Counter
from collections.abc import Callable
from decimal import Decimal

from image_client.image import Image
from image_client.job import ProviderJob
from image_client.options import Attempt, ClientOptions
from image_client.request import ImageRequest

Answer = Callable[[ImageRequest, str, int], Image | BaseException | None]


def image_of(request: ImageRequest, request_id: str, cost: Decimal | None = None) -> Image:
    """An image whose bytes follow from the prompt alone."""
    data = b"PNG " + hashlib.sha256(request.prompt.encode()).digest()
    return Image(
        data, "image/png", "scripted", model=request.model, seed=7, seconds=0.5, cost=cost, request_id=request_id
    )


class ScriptedClient:
    """`answer(request, request_id, times)` returns an image or an error, or None for the usual image.

    The first answer comes once `crowd` requests are here at once.
    """

    def __init__(
        self, answer: Answer = lambda *_: None, *, idempotent: bool = False, slow: float = 0.0, crowd: int = 0
    ) -> None:
        self.answer = answer
        self.idempotent = idempotent
        self.sent: Counter[str] = Counter()
        self.listed: dict[str, ProviderJob] = {}
        self.collected: list[ProviderJob] = []
        self.in_flight = self.most_in_flight = 0
        self._slow = slow
        self._crowd = crowd
        self._crowded = asyncio.Event()

    def connect(self, options: ClientOptions) -> "ScriptedClient":
        self.options = options
        return self

    async def __aenter__(self) -> "ScriptedClient":
        return self

    async def __aexit__(self, *_: object) -> None: ...

    async def send(self, request: ImageRequest, *, request_id: str) -> Image:
        self.sent[request.prompt] += 1
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        if self.in_flight >= self._crowd:
            self._crowded.set()
        try:
            await self._crowded.wait()
            await asyncio.sleep(self._slow)
            answer = self.answer(request, request_id, self.sent[request.prompt])
        finally:
            self.in_flight -= 1
        if isinstance(answer, BaseException):
            raise answer
        image = answer or image_of(request, request_id)
        self.options.on_attempt(Attempt(request_id, "scripted", 1, "image", 200, None))
        return image

    provider, model = "scripted", None

    async def find(self, request: ImageRequest, *, request_id: str) -> ProviderJob | None:
        return self.listed.get(request.prompt)

    async def collect(self, job: ProviderJob) -> tuple[Image, ...]:
        self.collected.append(job)
        return (image_of(ImageRequest(prompt=job.job_id), job.request_id),)
