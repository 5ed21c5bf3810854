"""Whether a webhook is from who it says: signatures of Standard Webhooks, as Replicate and our own worker send them.

Contract: standardwebhooks.com; replicate.com/docs/topics/webhooks/verify-webhook; docs/api.md of the worker.
"""

import base64
import binascii
import hashlib
import hmac
import time
from collections.abc import Mapping

TOLERANCE_SECONDS = 300.0


class InvalidSignature(ValueError):
    """A webhook that is not signed with this secret, or too long ago."""


def verify_webhook(
    body: bytes,
    headers: Mapping[str, str],
    secret: str,
    *,
    tolerance: float = TOLERANCE_SECONDS,
    at: float | None = None,
) -> None:
    """Raise InvalidSignature unless the headers sign exactly this body, with this secret, within `tolerance` seconds.

    `body` is the body as it came, before any JSON is read. `secret` is `whsec_…` as Replicate has it, or the text of
    our worker's WEBHOOK_SECRET. `at` is the time to compare with (Unix seconds), now without it.
    """
    found = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp = found.get("webhook-id", ""), found.get("webhook-timestamp", "")
    signatures = found.get("webhook-signature", "")
    if not (message_id and timestamp and signatures):
        raise InvalidSignature("The headers webhook-id, webhook-timestamp and webhook-signature are not all there.")
    if not (timestamp.isascii() and timestamp.isdigit()):
        raise InvalidSignature("webhook-timestamp is not a number of seconds.")
    if abs((time.time() if at is None else at) - int(timestamp)) > tolerance:
        raise InvalidSignature(f"webhook-timestamp is more than {tolerance:g} seconds away: it may be a replay.")
    signed = f"{message_id}.{timestamp}.".encode() + body
    expected = base64.b64encode(hmac.digest(_key(secret), signed, hashlib.sha256)).decode()
    given = [signature.partition(",") for signature in signatures.split()]
    if not any(version == "v1" and hmac.compare_digest(text.encode(), expected.encode()) for version, _, text in given):
        raise InvalidSignature("No signature of the webhook is one of this body with this secret.")


def _key(secret: str) -> bytes:
    if not secret:
        raise InvalidSignature("The secret is empty.")
    if not secret.startswith("whsec_"):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (ValueError, binascii.Error):
        raise InvalidSignature("The secret after whsec_ is not base64.") from None
