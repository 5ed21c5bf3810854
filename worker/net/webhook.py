"""The POST that notifies a caller's own server of a finished job: to public addresses only, and signed."""

import base64
import binascii
import hashlib
import hmac
import time

from worker.core.errors import InvalidRequest
from worker.net.client import Client
from worker.net.guard import RefusedUrl, check_url

DEADLINE_S = 15.0


class WebhookSender:
    """Posts to webhooks. Blocking; safe to use from several threads.

    Signed as the Standard Webhooks specification says (webhook-id, -timestamp, -signature: `v1,` and the base64 of
    HMAC-SHA256 over "id.timestamp.body"). `secret` is a text, or `whsec_` and base64.
    """

    def __init__(self, *, secret: str | None = None, allow_private: bool = False) -> None:
        self._key = _key(secret) if secret else None
        self._allow_private = allow_private
        self._client = Client(allow_private=allow_private)

    def check(self, url: str) -> None:
        """Refuse a webhook that will never be called; its host is not looked up. Raises InvalidRequest."""
        try:
            check_url(url, allow_private=self._allow_private)
        except RefusedUrl as error:
            raise InvalidRequest(
                f"webhook cannot be called: {error}; send a public https URL.", field="webhook"
            ) from None

    def post(self, url: str, job_id: str, body: bytes) -> str | None:
        """Call a webhook. Return None if the other side took it, else the reason of the failure."""
        try:
            headers = self._headers(job_id, body)
            with self._client.send("POST", url, headers=headers, body=body, timeout_s=DEADLINE_S) as response:
                return None if 200 <= response.status < 300 else f"it answered {response.status}"
        except RefusedUrl as error:
            return str(error)
        except OSError:
            return "it could not be reached in time"

    def _headers(self, job_id: str, body: bytes) -> dict[str, str]:
        headers = {"Content-Type": "application/json"}
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
