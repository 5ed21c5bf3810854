"""The POST that tells a caller's own server of a finished job: to public addresses only, signed, tried three times."""

import asyncio
import base64
import binascii
import hashlib
import hmac
import http.client
import json
import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from worker.core.errors import InvalidRequest
from worker.net.guard import USER_AGENT, RefusedUrl, check_url, connect, request_target, seconds_left
from worker.service.jobs.record import JobRecord
from worker.transport.web.runpod_schema import encode_job

_LOG = logging.getLogger(__name__)

PAUSES_S = (10.0, 10.0)  # before the second and the third call, as RunPod has it
MAX_WAITING = 200
DEADLINE_S = 15.0
_THREADS = 4  # of its own: a slow server must not hold up the threads that jobs need


class Webhooks:
    """Delivers each finished job that names a webhook.

    Signed as the Standard Webhooks specification says (webhook-id, -timestamp, -signature: `v1,` and the base64 of
    HMAC-SHA256 over "id.timestamp.body"). `secret` is a text, or `whsec_` and base64.
    """

    def __init__(self, *, secret: str | None = None, allow_private: bool = False) -> None:
        self._key = _key(secret) if secret else None
        self._allow_private = allow_private
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="webhook")
        self._under_way: set[asyncio.Task[None]] = set()

    def check(self, url: str | None) -> None:
        """Refuse a webhook that will never be called. Raises InvalidRequest."""
        if url is None:
            return
        try:
            check_url(url, allow_private=self._allow_private)
        except RefusedUrl as error:
            raise InvalidRequest(
                f"webhook cannot be called: {error}; send a public https URL.", field="webhook"
            ) from None

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
        """Give up what is not delivered `within_s` seconds from now."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=within_s)
        for task in [*self._under_way]:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def _deliver(self, url: str, job_id: str, body: bytes) -> None:
        loop = asyncio.get_running_loop()
        for pause in (*PAUSES_S, None):
            said = await loop.run_in_executor(self._threads, self._post, url, job_id, body)
            if said is None:
                return
            if pause is not None:
                await asyncio.sleep(pause)
        _LOG.warning("job %s: its webhook was called %d times: %s", job_id, len(PAUSES_S) + 1, said)

    def _post(self, url: str, job_id: str, body: bytes) -> str | None:
        """Why the call failed; None when the other side took it."""
        deadline = time.monotonic() + DEADLINE_S
        try:
            parts = check_url(url, allow_private=self._allow_private)
            connection = connect(parts, allow_private=self._allow_private, deadline=deadline)
            watchdog = threading.Timer(seconds_left(deadline), connection.abort)
            watchdog.daemon = True
            watchdog.start()
            try:
                connection.request("POST", request_target(parts), body=body, headers=self._headers(job_id, body))
                with connection.getresponse() as response:
                    return None if 200 <= response.status < 300 else f"it answered {response.status}"
            finally:
                watchdog.cancel()
                connection.close()
        except RefusedUrl as error:
            return str(error)
        except (OSError, http.client.HTTPException, UnicodeError, ValueError):
            return "it could not be reached in time"

    def _headers(self, job_id: str, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "User-Agent": USER_AGENT, "Connection": "close"}
        if self._key is not None:
            now = str(int(time.time()))
            signed = hmac.new(self._key, f"{job_id}.{now}.".encode() + body, hashlib.sha256).digest()
            signature = f"v1,{base64.b64encode(signed).decode()}"
            headers |= {"webhook-id": job_id, "webhook-timestamp": now, "webhook-signature": signature}
        return headers


def _key(secret: str) -> bytes:
    if secret.startswith("whsec_"):
        try:
            return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
        except binascii.Error:
            raise ValueError("WEBHOOK_SECRET: what follows whsec_ is not base64.") from None
    return secret.encode()
