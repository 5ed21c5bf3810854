"""Short-lived tokens: a browser's EventSource sends no header, and a key in an address ends in somebody's log."""

import base64
import hashlib
import hmac
import json
import secrets
import time
from dataclasses import dataclass, field

LIFE_S = 300


@dataclass(frozen=True, slots=True)
class Tokens:
    """Signs a caller's name for a few minutes. Only processes with the same secret take them."""

    secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)

    def issue(self, name: str | None) -> str:
        """Return a token for the caller of this name."""
        claims = json.dumps({"name": name, "until": int(time.time()) + LIFE_S}, separators=(",", ":")).encode()
        return f"{_text(claims)}.{_text(self._sign(claims))}"

    def holder(self, token: str) -> tuple[bool, str | None]:
        """Return if `token` counts still, and whose it is."""
        try:
            claims, signature = (base64.urlsafe_b64decode(f"{part}==") for part in token.split("."))
        except ValueError:
            return False, None
        if not hmac.compare_digest(self._sign(claims), signature):
            return False, None
        facts = json.loads(claims)
        return facts["until"] > time.time(), facts["name"]

    def _sign(self, claims: bytes) -> bytes:
        return hmac.digest(self.secret, claims, hashlib.sha256)


def _text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
