"""Authentication: API keys as `Authorization: Bearer`, what browsers send in its place, and no page of another site."""

import base64
from collections.abc import Callable, Collection
from urllib.parse import urlsplit

from starlette.exceptions import WebSocketException
from starlette.requests import HTTPConnection

from worker.core.errors import AccessDenied, Unauthenticated, WorkerError
from worker.service.limits.api_keys import Caller, Keyring
from worker.transport.web.host_names import HostNames
from worker.transport.web.tokens import Tokens

# The refusal of a door that shows more than the caller's own jobs.
ALL_CALLERS = "What all callers did is told to one of this worker's admin keys only."

_REFUSED = 1008  # before a WebSocket is accepted this is a 403


# A WebSocket of a browser has no other place for a key. The second is the one of OpenAI's realtime API.
_KEY_PROTOCOLS = ("key.", "openai-insecure-api-key.")


class Authenticator:
    """Checks every request to a door that is not open to all, and notes its sender."""

    def __init__(
        self,
        keys: Keyring,
        origins: Collection[str] = (),
        denied: Callable[[str | None, WorkerError], None] = lambda caller, error: None,
        host_names: HostNames | None = None,
        tokens: Tokens | None = None,
    ) -> None:
        self._keys = keys
        self._denied = denied  # hears of everybody who is turned away
        self._host_names = host_names or HostNames()
        self._tokens = tokens or Tokens()
        self._origins = frozenset(origin.rstrip("/") for origin in origins)

    def replace_keys(self, keys: Keyring) -> None:
        """Admit the holders of these keys from now on, and nobody else."""
        self._keys = keys

    @property
    def keys(self) -> Keyring:
        """The keys that are admitted now."""
        return self._keys

    @property
    def asks_for_key(self) -> bool:
        """True if callers without a key are refused."""
        return self._keys.identify(None) is None

    async def check_host(self, connection: HTTPConnection) -> None:
        """Without keys, refuse a request under a name that is not this server's. Raises as `HostNames.check`."""
        if self.asks_for_key:
            return
        try:
            self._host_names.check(connection)
        except AccessDenied as error:
            self._denied(None, error)
            raise

    async def admit(self, connection: HTTPConnection) -> None:
        """Admit a request. Raises Unauthenticated, AccessDenied; WebSocketException for a WebSocket."""
        connection.state.denied = self._denied
        try:
            self._check_origin(connection)
            connection.state.caller = self._identify(connection)
        except WorkerError as error:
            self._denied(None, error)
            if connection.scope["type"] == "websocket":
                raise WebSocketException(_REFUSED) from None
            raise

    async def admit_browser(self, connection: HTTPConnection) -> None:
        """Admit a request that a browser may send without headers of its own: with a token too. Raises as `admit`."""
        is_valid, name = self._tokens.holder(connection.query_params.get("token", ""))
        caller = self._keys.named(name) if is_valid else None
        if caller is None:
            await self.admit(connection)
        else:
            connection.state.caller, connection.state.denied, connection.state.by_token = caller, self._denied, True

    def issue_token(self, connection: HTTPConnection) -> str:
        """Return a token for the sender of an admitted request."""
        return self._tokens.issue(caller_of(connection).name)

    def readmit(self, connection: HTTPConnection) -> None:
        """Admit the holder of an open WebSocket again. Raises WebSocketException if their key is taken away since."""
        name = caller_of(connection).name
        try:
            caller = self._keys.named(name) if getattr(connection.state, "by_token", False) else None
            connection.state.caller = caller or self._identify(connection)
        except WorkerError as error:
            self._denied(name, error)
            raise WebSocketException(_REFUSED) from None

    def _identify(self, connection: HTTPConnection) -> Caller:
        sent = _key_in(connection.headers.get("authorization", "")) or _offered_key(connection)
        caller = self._keys.identify(sent)
        if caller is None:
            raise _unauthenticated()
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
            raise AccessDenied(
                "Web pages of this origin may not use this worker; its operator can set CORS_ORIGINS, or PUBLIC_URL "
                "behind a proxy."
            )


def subprotocol(connection: HTTPConnection) -> str | None:
    """Return the subprotocol to answer a WebSocket with: a browser wants to hear one of those that it offered."""
    offered = _offered(connection)
    return next((name for name in offered if not name.startswith(_KEY_PROTOCOLS)), offered[0] if offered else None)


def _key_in(header: str) -> str | None:
    """Return the key of an Authorization header; RunPod's own examples send it without the word Bearer.

    Of a name and a password, as AUTOMATIC1111's clients send them, the password is the key, or the name alone.
    """
    scheme, _, key = header.strip().partition(" ")
    if scheme.lower() == "basic" and key:
        try:
            name, _, password = base64.b64decode(key.strip(), validate=True).decode().partition(":")
        except ValueError:
            return header.strip()
        return password or name
    return key.strip() if scheme.lower() in ("bearer", "token") else header.strip() or None


def caller_of(connection: HTTPConnection) -> Caller:
    """Return the sender of an admitted request."""
    caller: Caller = connection.state.caller
    return caller


def check_admin(connection: HTTPConnection, refusal: str, field: str | None = None) -> None:
    """Raise AccessDenied with this sentence unless the operator sent the request."""
    caller = caller_of(connection)
    if not caller.admin:
        error = AccessDenied(refusal, field=field)
        connection.state.denied(caller.name, error)
        raise error


def _offered(connection: HTTPConnection) -> list[str]:
    headers = connection.headers.getlist("sec-websocket-protocol") if connection.scope["type"] == "websocket" else []
    return [name for name in map(str.strip, ",".join(headers).split(",")) if name]


def _offered_key(connection: HTTPConnection) -> str | None:
    """Return the key among the subprotocols that a WebSocket offers."""
    for name in _offered(connection):
        for prefix in _KEY_PROTOCOLS:
            if name.startswith(prefix):
                return name.removeprefix(prefix)
    return None


def _unauthenticated() -> Unauthenticated:
    return Unauthenticated(
        "This worker takes requests with one of its API keys only; send it as Authorization: Bearer <key>.",
        field="Authorization",
    )
