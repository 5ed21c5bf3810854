"""Each finished job's webhook, in the background: called three times, until the other side takes it."""

import asyncio
import json
import logging
from concurrent.futures import ThreadPoolExecutor

from worker.net.webhook import WebhookSender
from worker.service.jobs.record import JobRecord
from worker.transport.web.runpod_schema import encode_job

_LOG = logging.getLogger(__name__)

PAUSES_S = (10.0, 10.0)  # before the second and the third call, as RunPod has it
MAX_WAITING = 200
_THREADS = 4  # of its own: a slow server must not hold up the threads that jobs need


class Webhooks:
    """Delivers each finished job that names a webhook."""

    def __init__(self, sender: WebhookSender) -> None:
        self._sender = sender
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="webhook")
        self._under_way: set[asyncio.Task[None]] = set()

    def check(self, url: str | None) -> None:
        """Refuse a webhook that will never be called. Raises InvalidRequest."""
        if url is not None:
            self._sender.check(url)

    def notify(self, record: JobRecord) -> None:
        """Deliver this job's end, in the background."""
        if record.options.webhook is None:
            return
        if len(self._under_way) >= MAX_WAITING:
            _LOG.warning("job %s: its webhook was not called; %d others wait", record.id, MAX_WAITING)
            return
        body = json.dumps(encode_job(record), ensure_ascii=False).encode("utf-8", "replace")
        task = asyncio.get_running_loop().create_task(self._deliver(record.options.webhook, record.id, body))
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def close(self, within_s: float = 0.0) -> None:
        """Give up the calls that are not delivered `within_s` seconds from now."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=within_s)
        for task in [*self._under_way]:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _deliver(self, url: str, job_id: str, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        for pause in (*PAUSES_S, None):
            failure = await loop.run_in_executor(self._threads, self._sender.post, url, job_id, body)
            if failure is None:
                return
            if pause is not None:
                await asyncio.sleep(pause)
        _LOG.warning("job %s: its webhook was called %d times: %s", job_id, len(PAUSES_S) + 1, failure)
