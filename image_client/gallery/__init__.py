"""The approval gallery: the images of one batch in a browser, for somebody who approves or rejects each.

It serves this machine alone. Its address holds a secret, which becomes a cookie at the first visit; without it nothing
is shown, and no other site can decide. Files are named by their place in the batch, never by a path.

GET /            the page             GET  /records        the lineage of all images, as JSON
GET /images/3    the fourth file      POST /records/3      {"state": "approved"}, {"state": "undecided"} or
                                                           {"state": "rejected", "reason": "…"}
                                      POST /done           nobody decides any more: the server ends
"""

import hmac
import json
import secrets
import threading
from collections.abc import Callable
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

from image_client.approval import approve, reject, undecide
from image_client.errors import ImageClientError
from image_client.ledger import DRAWN, Ledger, Record

_FILES = {"/": ("index.html", "text/html"), "/gallery.css": ("gallery.css", "text/css")}
_FILES |= {"/gallery.js": ("gallery.js", "text/javascript")}
_COOKIE = "image_client_gallery"
_MOST_BYTES = 65_536  # of a decision: a reason is a sentence
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "media-src 'self'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Gallery:
    """A server in threads of its own over an open ledger, which nobody else may use meanwhile.

    Use as a context manager; `wait` returns when somebody has pressed Done. Port 0 is any free one; one that is taken
    raises OSError.
    """

    def __init__(self, ledger: Ledger, *, port: int = 0) -> None:
        self._ledger = ledger
        self._turn = threading.Lock()  # a ledger is one thread's at a time
        self._done = threading.Event()
        self.secret = secrets.token_urlsafe(24)
        self._server = ThreadingHTTPServer(("127.0.0.1", port), self._handler())
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="gallery", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def host(self) -> str:
        """What a request of this page names as its Host."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def url(self) -> str:
        """The address that shows the page to whoever has it."""
        return f"http://{self.host}/?secret={self.secret}"

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until somebody has pressed Done, and return whether that was so."""
        return self._done.wait(timeout)

    def done(self) -> None:
        """End the waiting."""
        self._done.set()

    def records(self) -> list[dict[str, Any]]:
        """Return the lineage of the images that there are, in order."""
        with self._turn:
            records = [record for record in self._ledger.records() if record.state in DRAWN and record.file]
        return [record.model_dump(mode="json", exclude_none=True, exclude={"job"}) for record in records]

    def decide(self, index: int, state: str, reason: str) -> dict[str, Any]:
        """Decide on an image, or take that back; raises InvalidRequest where there is none, ValueError for no state."""
        with self._turn:
            if state == "approved":
                record = approve(self._ledger, index)
            elif state == "rejected":
                record = reject(self._ledger, index, reason)
            elif state == "undecided":
                record = undecide(self._ledger, index)
            else:
                raise ValueError("state is approved, rejected or undecided.")
        return record.model_dump(mode="json", exclude_none=True, exclude={"job"})

    def image(self, index: int) -> tuple[bytes, str] | None:
        """Return an image's file and its media type, None where there is none."""
        with self._turn:
            record: Record | None = self._ledger[index] if 0 <= index < len(self._ledger.jobs) else None
        if record is None or record.state not in DRAWN or record.file is None:
            return None
        try:
            return (self._ledger.folder / record.file).read_bytes(), record.media_type or "image/png"
        except OSError:
            return None

    def _handler(self) -> Callable[..., BaseHTTPRequestHandler]:
        gallery = self

        class Handler(_Handler):
            shown = gallery

        return Handler


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    shown: Gallery
    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may say nothing
    server_version, sys_version = "image-client", ""

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing: the address holds the secret."""

    def do_GET(self) -> None:
        """Show the page, a file of it, the records or an image."""
        address = urlsplit(self.path)
        given = parse_qs(address.query).get("secret", [""])[0]
        if self._is_secret(given) and self._is_ours():  # into a cookie, and out of the address
            cookie = f"{_COOKIE}={given}; HttpOnly; SameSite=Strict; Path=/"
            return self._answer(HTTPStatus.SEE_OTHER, b"", "text/plain", {"Location": "/", "Set-Cookie": cookie})
        if not self._is_allowed():
            return None
        if (page := _FILES.get(address.path)) is not None:
            return self._answer(HTTPStatus.OK, files(__package__).joinpath(page[0]).read_bytes(), page[1])
        if address.path == "/records":
            return self._json(HTTPStatus.OK, self.shown.records())
        found = self.shown.image(_place(address.path, "/images/"))
        if found is None:
            return self._json(HTTPStatus.NOT_FOUND, {"error": "There is nothing here."})
        return self._answer(HTTPStatus.OK, *found)

    def do_POST(self) -> None:
        """Take a decision, or the end of it all."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > _MOST_BYTES:
            self.close_connection = True
            return self._json(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, {"error": f"Send at most {_MOST_BYTES} bytes."})
        body = self.rfile.read(int(length))
        if not self._is_allowed():
            return None
        if self.path == "/done":
            self._json(HTTPStatus.OK, {})
            return self.shown.done()
        try:
            said = json.loads(body)
            decided = self.shown.decide(_place(self.path, "/records/"), said["state"], str(said.get("reason", "")))
        except ImageClientError as error:
            return self._json(HTTPStatus.BAD_REQUEST, {"error": error.message})
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            return self._json(
                HTTPStatus.BAD_REQUEST, {"error": 'Send {"state": "approved", "rejected" or "undecided"}.'}
            )
        return self._json(HTTPStatus.OK, decided)

    def _is_ours(self) -> bool:
        """Return whether the browser asked for this very server, not for a name that leads here."""
        return self.headers.get("Host") == self.shown.host

    def _is_secret(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self.shown.secret.encode())

    def _is_allowed(self) -> bool:
        """Return whether the request has the secret; answer it where it has not."""
        try:
            cookie = SimpleCookie(self.headers.get("Cookie", "")).get(_COOKIE)
        except CookieError:
            cookie = None
        origin = self.headers.get("Origin")
        ours = self._is_ours() and origin in (None, f"http://{self.shown.host}")
        if ours and cookie is not None and self._is_secret(cookie.value):
            return True
        self._json(HTTPStatus.FORBIDDEN, {"error": "Open the address that the command printed: it holds the secret."})
        return False

    def _json(self, status: HTTPStatus, value: object) -> None:
        self._answer(status, json.dumps(value).encode(), "application/json")

    def _answer(self, status: HTTPStatus, body: bytes, media_type: str, more: dict[str, str] | None = None) -> None:
        kind = f"{media_type}; charset=utf-8" if media_type.startswith("text/") else media_type
        self.send_response(status)
        for name, value in {"Content-Type": kind, **_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _place(path: str, before: str) -> int:
    """Return the number after a path's beginning, -1 where there is none."""
    number = path.removeprefix(before)
    return (
        int(number) if path.startswith(before) and number.isascii() and number.isdecimal() and len(number) < 9 else -1
    )
