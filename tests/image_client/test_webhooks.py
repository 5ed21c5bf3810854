"""Signatures of webhooks: what was signed by the worker's own sender passes, and nothing else does."""

import time

import pytest

from image_client import InvalidSignature, verify_webhook
from tests.fakes.web_worker import Listener
from worker.net.webhook import WebhookSender

BODY = b'{"id": "job", "status": "COMPLETED"}'


@pytest.mark.parametrize("secret", ["a plain text", "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"])
def test_what_the_worker_signs_passes_and_what_was_changed_does_not(secret):
    with Listener() as listener:
        assert WebhookSender(secret=secret, allow_private=True).post(f"{listener.origin}/hook", "job", BODY) is None
        (seen,) = listener.requests
    verify_webhook(seen.body, seen.headers, secret)
    verify_webhook(seen.body, {name.title(): value for name, value in seen.headers.items()}, secret)
    changed = [
        (seen.body + b" ", seen.headers, secret),
        (seen.body, seen.headers, "another"),
        (seen.body, seen.headers | {"webhook-id": "other"}, secret),
        (seen.body, seen.headers | {"webhook-timestamp": str(int(time.time()) + 1)}, secret),
        (seen.body, seen.headers | {"webhook-timestamp": "now"}, secret),
        (seen.body, seen.headers | {"webhook-signature": "v2," + seen.headers["webhook-signature"][3:]}, secret),
        (seen.body, seen.headers | {"webhook-signature": "v1,é"}, secret),
        (seen.body, {}, secret),
        (seen.body, seen.headers, ""),
        (seen.body, seen.headers, "whsec_%"),
    ]
    for body, headers, key in changed:
        with pytest.raises(InvalidSignature):
            verify_webhook(body, headers, key)
    with pytest.raises(InvalidSignature, match="replay"):
        verify_webhook(seen.body, seen.headers, secret, at=time.time() + 301)
    both = {**seen.headers, "webhook-signature": f"v1,AAAA {seen.headers['webhook-signature']}"}
    verify_webhook(seen.body, both, secret)  # a secret that is being changed signs twice
