"""Each finished job's webhook, in the background: called three times, until the other side takes it."""

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextvars import copy_context
from functools import partial
from urllib.parse import urlsplit

from worker.core.turn import Turn, under_way
from worker.net.webhook import WebhookSender
from worker.service.jobs.record import JobRecord
from worker.service.limits.pools import Pool
from worker.transport.web.runpod_schema import encode_job

_LOG = logging.getLogger(__name__)

PAUSES_S = (10.0, 10.0)  # before the second and the third call, as RunPod has it
MAX_WAITING = 2_000
MAX_OF_HOST = 200  # that wait for one server


class Webhooks:
    """Delivers each finished job that names a webhook."""

    def __init__(self, sender: WebhookSender, pool: Pool) -> None:
        self._sender = sender
        self._pool = pool
        self._under_way: set[asyncio.Task[None]] = set()
        self._of_host: Counter[str] = Counter()

    def check(self, url: str | None) -> None:
        """Refuse a webhook that will never be called. Raises InvalidRequest."""
        if url is not None:
            self._sender.check(url)

    def notify(self, record: JobRecord) -> None:
        """Deliver this job's end, in the background."""
        if (url := record.options.webhook) is not None:
            body = json.dumps(encode_job(record), ensure_ascii=False).encode("utf-8", "replace")
            self.call(record, url, body, record.id)

    def call(
        self,
        record: JobRecord,
        url: str,
        body: bytes,
        message_id: str,
        *,
        after: asyncio.Event | None = None,
        again: bool = True,
    ) -> asyncio.Event | None:
        """Deliver `body`, which tells of this job, in the background. Each message about it has an id of its own.

        It is called once `after` is set, and a second time only if `again`. Return what is set after its first call;
        None for one that is not called at all.
        """
        host = urlsplit(url).netloc.lower()
        if len(self._under_way) >= MAX_WAITING or self._of_host[host] >= MAX_OF_HOST:
            others = min(len(self._under_way), self._of_host[host])
            _LOG.warning("job %s: its webhook was not called; %d others wait", record.id, others)
            return None
        context = copy_context()
        context.run(under_way.set, Turn(record.caller))  # that of the job is over
        called = asyncio.Event()
        delivery = self._deliver(url, message_id, body, after, called, PAUSES_S if again else ())
        task = asyncio.get_running_loop().create_task(delivery, context=context)
        self._under_way.add(task)
        self._of_host[host] += 1
        task.add_done_callback(partial(self._end, host))
        return called

    async def close(self, within_s: float = 0.0) -> None:
        """Give up the calls that are not delivered `within_s` seconds from now."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=within_s)
        for task in [*self._under_way]:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _end(self, host: str, task: "asyncio.Task[None]") -> None:
        self._under_way.discard(task)
        self._of_host[host] -= 1
        if not self._of_host[host]:
            del self._of_host[host]

    async def _deliver(
        self,
        url: str,
        message_id: str,
        body: bytes,
        after: asyncio.Event | None,
        called: asyncio.Event,
        pauses: Sequence[float],
    ) -> None:
        if after is not None:
            await after.wait()
        for pause in (*pauses, None):
            try:
                failure = await self._pool.run(
                    self._sender.post, url, message_id, body, place=urlsplit(url).netloc.lower()
                )
            finally:
                called.set()
            if failure is None:
                return
            if pause is not None:
                await asyncio.sleep(pause)
        _LOG.warning("job %s: its webhook was called %d times: %s", message_id, len(pauses) + 1, failure)
