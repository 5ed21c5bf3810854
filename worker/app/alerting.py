"""The watch over the operator's alerts.yaml: settings in, rules, outlets and readings of this machine out."""

from collections.abc import Callable
from functools import partial

from worker.app.settings import Settings, SettingsError
from worker.net.guard import RefusedUrl, check_url
from worker.net.mail import Mailer
from worker.net.webhook import WebhookSender
from worker.service.alerts.measures import Readings
from worker.service.alerts.outlets import Outlets
from worker.service.alerts.rules_file import AlertsError, read_rules
from worker.service.alerts.schema import AlertsFile
from worker.service.alerts.watch import Alerts
from worker.service.limits.pools import Pools
from worker.store.free_space import space_of

Registered = Callable[[str], str | None]


def webhook_sender(settings: Settings) -> WebhookSender:
    """Return what calls webhooks, of jobs and of alerts. Raises SettingsError."""
    secret = settings.webhook_secret
    try:
        return WebhookSender(
            secret=secret.get_secret_value() if secret else None, allow_private=settings.allow_private_urls
        )
    except ValueError as error:
        raise SettingsError(str(error)) from None


def read_alerts(settings: Settings, registered: Registered) -> AlertsFile | None:
    """Read the operator's rules; None without any. Raises SettingsError with the file and the line."""
    if settings.alerts is None:
        return None
    try:
        file = read_rules(settings.alerts, registered, partial(_check_webhook, settings.allow_private_urls))
    except AlertsError as error:
        raise SettingsError(f"ALERTS: {error}") from None
    if file.email is not None and settings.smtp_url is None:
        raise SettingsError(
            f"SMTP_URL is not set, and {settings.alerts.name} has email; set it to smtp://user:password@host:587, or "
            "leave email out."
        )
    return file


def build_alerts(
    settings: Settings, registered: Registered, pools: Pools, now: Callable[[], Readings], worker: str
) -> Alerts:
    """Build the watch of the worker of this name; `now` reads it, and the volume's free bytes are added.

    Raises SettingsError.
    """
    file = read_alerts(settings, registered)
    if file is None:
        return Alerts()

    async def read() -> Readings:
        readings = now()
        space = await pools.own.run(space_of, settings.volume)
        return Readings(readings.queue_length, readings.lost, None if space is None else space.free / 1e9)

    outlets = Outlets(pools.webhooks, webhook_sender(settings), _mailer(settings))
    return Alerts(file, outlets, read, worker)


def _mailer(settings: Settings) -> Mailer | None:
    if settings.smtp_url is None:
        return None
    try:
        return Mailer(settings.smtp_url.get_secret_value())
    except ValueError as error:
        raise SettingsError(f"SMTP_URL: {error}.") from None


def _check_webhook(allow_private: bool, url: str) -> None:
    try:
        check_url(url, allow_private=allow_private)
    except RefusedUrl as error:
        raise ValueError(
            f"webhook cannot be called: {error}; name a public https URL, or set ALLOW_PRIVATE_URLS=true."
        ) from None
