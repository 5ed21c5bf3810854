"""Who may come in: API keys as `Authorization: Bearer`, and no web page of another site."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection

from worker.core.errors import AccessDenied, Unauthenticated, WorkerError
from worker.service.limits.api_keys import Caller, Keyring

# What a door says that tells of more than the asking caller's own jobs.
ALL_CALLERS = "What all callers did is told to one of this worker's admin keys only."

_REFUSED = 1008  # before a WebSocket is accepted this is a 403


class Authenticator:
    """Looks at every request to a door that is not open to all, and says afterwards who sent it."""

    def __init__(self, keys: Keyring, origins: Collection[str] = ()) -> None:
        self._keys = keys
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    def replace_keys(self, keys: Keyring) -> None:
        """Let in whoever has one of these from now on."""
        self._keys = keys

    async def admit(self, connection: HTTPConnection) -> None:
        """Let a request in. Raises Unauthenticated, AccessDenied; WebSocketException for a WebSocket."""
        try:
            self._check_origin(connection)
            connection.state.caller = self._identify(connection)
        except WorkerError:
            if connection.scope["type"] == "websocket":
                raise WebSocketException(_REFUSED) from None
            raise

    def _identify(self, connection: HTTPConnection) -> Caller:
        scheme, _, key = connection.headers.get("authorization", "").partition(" ")
        caller = self._keys.identify(key.strip() if scheme.lower() == "bearer" else None)
        if caller is None:
            raise Unauthenticated(
                "This worker takes requests with one of its API keys only; send it as Authorization: Bearer <key>.",
                field="Authorization",
            )
        return caller

    def _check_origin(self, connection: HTTPConnection) -> None:
        """Only what a browser says of itself: a page elsewhere must not drive its reader's own worker.

        Forms and WebSockets are sent from any page without the browser asking this server first.
        """
        origin = connection.headers.get("origin")
        if origin is None or connection.scope.get("method") in ("GET", "HEAD"):
            return
        allowed = {"*", origin} & self._origins
        if not allowed and urlsplit(origin).netloc != connection.headers.get("host"):
            raise AccessDenied("Web pages of this origin may not use this worker; its operator can set CORS_ORIGINS.")


def caller_of(connection: HTTPConnection) -> Caller:
    """Who sent a request that was let in."""
    caller: Caller = connection.state.caller
    return caller


def check_admin(connection: HTTPConnection, refusal: str, field: str | None = None) -> None:
    """Raise AccessDenied with this sentence unless the operator sent the request."""
    if not caller_of(connection).admin:
        raise AccessDenied(refusal, field=field)
