"""Authentication: API keys as `Authorization: Bearer`, and no web page of another site."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection

from worker.core.errors import AccessDenied, Unauthenticated, WorkerError
from worker.service.limits.api_keys import Caller, Keyring

# The refusal of a door that shows more than the caller's own jobs.
ALL_CALLERS = "What all callers did is told to one of this worker's admin keys only."

_REFUSED = 1008  # before a WebSocket is accepted this is a 403


class Authenticator:
    """Checks every request to a door that is not open to all, and notes its sender."""

    def __init__(self, keys: Keyring, origins: Collection[str] = ()) -> None:
        self._keys = keys
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    def replace_keys(self, keys: Keyring) -> None:
        """Admit the holders of these keys from now on, and nobody else."""
        self._keys = keys

    async def admit(self, connection: HTTPConnection) -> None:
        """Admit a request. Raises Unauthenticated, AccessDenied; WebSocketException for a WebSocket."""
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
        """Refuse browsers on pages of other origins: a page elsewhere must not drive its reader's own worker.

        Forms and WebSockets are sent from any page without the browser asking this server first.
        """
        origin = connection.headers.get("origin")
        if origin is None or connection.scope.get("method") in ("GET", "HEAD"):
            return
        allowed = {"*", origin} & self._origins
        if not allowed and urlsplit(origin).netloc != connection.headers.get("host"):
            raise AccessDenied("Web pages of this origin may not use this worker; its operator can set CORS_ORIGINS.")


def caller_of(connection: HTTPConnection) -> Caller:
    """Return the sender of an admitted request."""
    caller: Caller = connection.state.caller
    return caller


def check_admin(connection: HTTPConnection, refusal: str, field: str | None = None) -> None:
    """Raise AccessDenied with this sentence unless the operator sent the request."""
    if not caller_of(connection).admin:
        raise AccessDenied(refusal, field=field)
