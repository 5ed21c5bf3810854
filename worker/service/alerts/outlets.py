"""Where alerts go: the log, a webhook that is signed, e-mail. Whoever does not take one is tried three times."""

import asyncio
import json
import logging
import uuid
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

from worker.net.mail import Mailer
from worker.net.webhook import WebhookSender
from worker.service.alerts.schema import AlertsFile, Rule
from worker.service.limits.pools import Pool

_LOG = logging.getLogger(__name__)
PAUSES_S = (10.0, 60.0)  # before the second and the third attempt
MAX_WAITING = 200


@dataclass(frozen=True, slots=True)
class Notice:
    """What somebody is told: a rule began to hold (`fires`), or holds no more, at a wall time."""

    name: str
    rule: Rule
    fires: bool
    value: float | None
    at: float
    worker: str

    @property
    def state(self) -> str:
        """`firing` or `over`."""
        return "firing" if self.fires else "over"

    @property
    def sentence(self) -> str:
        """The alert in one sentence."""
        rule = self.rule
        side = "above" if rule.above is not None else "below"
        value = "unknown" if self.value is None else f"{self.value:.4g}"
        of_model = f" of {rule.model}" if rule.model else ""
        return (
            f"{self.name} is {self.state}: {rule.measure}{of_model} is {value}, and the bound is {side} {rule.bound:g}"
        )

    def body(self) -> bytes:
        """Return what a webhook is sent."""
        rule = self.rule
        return json.dumps(
            {
                "type": f"alert.{self.state}",
                "timestamp": datetime.fromtimestamp(self.at, UTC).isoformat(timespec="seconds"),
                "data": {
                    "alert": self.name,
                    "state": self.state,
                    "worker": self.worker,
                    "measure": rule.measure,
                    "value": self.value,
                    "above": rule.above,
                    "below": rule.below,
                    "model": rule.model,
                    "message": self.sentence,
                },
            }
        ).encode()


class Outlets:
    """Tells of alerts in the background. Used on one event loop; `pool` has the threads that wait for servers."""

    def __init__(self, pool: Pool, sender: WebhookSender, mailer: Mailer | None = None) -> None:
        self._pool = pool
        self._sender = sender
        self._mailer = mailer
        self._under_way: set[asyncio.Task[None]] = set()

    def tell(self, notice: Notice, file: AlertsFile) -> None:
        """Write the notice into the log, and send it to wherever its rule says."""
        _LOG.log(logging.WARNING if notice.fires else logging.INFO, "alert %s", notice.sentence)
        if "webhook" in notice.rule.to and file.webhook is not None:
            self._begin(self._webhook(notice, file.webhook), notice)
        if "email" in notice.rule.to and file.email is not None and self._mailer is not None:
            self._begin(self._mail(notice, self._mailer, file), notice)

    async def close(self, within_s: float) -> None:
        """Give up what is not delivered `within_s` seconds from now."""
        if self._under_way:
            await asyncio.wait(self._under_way, timeout=within_s)
        for task in [*self._under_way]:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)

    def _begin(self, delivery: Coroutine[None, None, None], notice: Notice) -> None:
        if len(self._under_way) >= MAX_WAITING:
            delivery.close()
            _LOG.warning("alert %s was not sent; %d others wait", notice.name, MAX_WAITING)
            return
        task = asyncio.get_running_loop().create_task(delivery)
        self._under_way.add(task)
        task.add_done_callback(self._under_way.discard)

    async def _webhook(self, notice: Notice, url: str) -> None:
        id, body, host = f"alert-{uuid.uuid4()}", notice.body(), urlsplit(url).netloc.lower()
        await self._try(notice, "webhook", lambda: self._pool.run(self._sender.post, url, id, body, place=host))

    async def _mail(self, notice: Notice, mailer: Mailer, file: AlertsFile) -> None:
        email = file.email
        if email is None:
            return
        subject = f"[{notice.worker}] {notice.name} is {notice.state}"
        send = (mailer.send, email.sender, email.to, subject, f"{notice.sentence}.\n")
        await self._try(notice, "email", lambda: self._pool.run(*send, place=mailer.host))

    async def _try(self, notice: Notice, outlet: str, send: Callable[[], Awaitable[str | None]]) -> None:
        failure = None
        for pause in (*PAUSES_S, None):
            failure = await send()
            if failure is None:
                return
            if pause is not None:
                await asyncio.sleep(pause)
        _LOG.warning("alert %s: its %s was tried %d times: %s", notice.name, outlet, len(PAUSES_S) + 1, failure)
