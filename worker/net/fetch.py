"""A GET that cannot be turned against the worker's own network: public addresses only, bounded in bytes and time.

Each redirect is checked anew (guard.py). One total deadline, because a server that sends a byte a second defeats
per-read timeouts.
"""

import http.client
import socket
import threading
import time
from urllib.parse import SplitResult

from worker.core.errors import InvalidImage
from worker.net.guard import (
    MAX_REDIRECTS,
    REDIRECTS,
    USER_AGENT,
    RefusedUrl,
    check_url,
    connect,
    join_url,
    request_target,
    seconds_left,
)


class GuardedFetcher:
    """Fetches what callers name. `allow_private` also takes http and private addresses: an operator's choice."""

    def __init__(self, *, allow_private: bool = False, deadline_s: float = 20.0) -> None:
        self._allow_private = allow_private
        self._deadline_s = deadline_s

    def __call__(self, url: str, max_bytes: int) -> bytes:
        """The body behind `url`. Raises InvalidImage with a sentence that names no address."""
        deadline = time.monotonic() + self._deadline_s
        try:
            for _ in range(MAX_REDIRECTS + 1):
                parts = check_url(url, allow_private=self._allow_private)
                status, location, body = self._get(parts, max_bytes, deadline)
                if status in REDIRECTS and location:
                    url = join_url(url, location)
                elif status == 200:
                    return body
                else:
                    raise _failed(f"its server answered {status}")
        except (RefusedUrl, socket.gaierror) as error:
            raise _failed(str(error)) from None
        except (OSError, http.client.HTTPException, UnicodeError, ValueError):
            raise _failed("its server did not deliver it in time") from None
        raise _failed(f"it redirects more than {MAX_REDIRECTS} times")

    def _get(self, parts: SplitResult, max_bytes: int, deadline: float) -> tuple[int, str | None, bytes]:
        connection = connect(parts, allow_private=self._allow_private, deadline=deadline)
        # Headers can trickle too: at the deadline the socket is shut, whatever is being read.
        watchdog = threading.Timer(seconds_left(deadline), connection.abort)
        watchdog.daemon = True
        watchdog.start()
        try:
            # Identity: a compressed body could be a bomb.
            headers = {"Accept-Encoding": "identity", "User-Agent": USER_AGENT, "Connection": "close"}
            connection.request("GET", request_target(parts), headers=headers)
            with connection.getresponse() as response:
                if response.status != 200:
                    return response.status, response.getheader("Location"), b""
                return 200, None, _read(response, max_bytes, deadline)
        finally:
            watchdog.cancel()
            connection.close()


def _read(response: http.client.HTTPResponse, max_bytes: int, deadline: float) -> bytes:
    declared = response.getheader("Content-Length", "")
    if declared.isdecimal() and int(declared) > max_bytes:
        raise _failed(f"it is over {max_bytes >> 20} MB")
    body = bytearray()
    while chunk := response.read1(65_536):
        body += chunk
        if len(body) > max_bytes:
            raise _failed(f"it is over {max_bytes >> 20} MB")
    seconds_left(deadline)  # a shut socket looks like the end of a body of unknown length
    if declared.isdecimal() and len(body) != int(declared):
        raise _failed("its server broke off")
    if not body:
        raise _failed("its server sent nothing")
    return bytes(body)


def _failed(reason: str) -> InvalidImage:
    return InvalidImage(f"The picture's URL cannot be fetched: {reason}; send the picture as base64.", field="image")
