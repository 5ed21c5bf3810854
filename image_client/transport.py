"""All I/O of the client: requests to a provider, and images behind links. What could not be sent is told apart.

A request to a provider carries its token, follows no redirect and goes out once. A link is opened without any token, at
an address that `guard` has checked, at every hop.
"""

import asyncio
import json
from http.cookiejar import CookieJar, DefaultCookiePolicy
from urllib.parse import urljoin, urlsplit

import httpx

from image_client import mock_service
from image_client.errors import ProviderUnavailable, ResultLost, UnknownOutcome
from image_client.guard import RefusedLink, Target, checked
from image_client.providers.answers import is_whole, media_type_of
from image_client.providers.mock import IN_PROCESS
from image_client.providers.provider import HttpAnswer, HttpRequest

USER_AGENT = "universal-image-client/0.1"
CONNECT_SECONDS, WRITE_SECONDS, LINK_SECONDS = 10.0, 60.0, 30.0
MAX_REDIRECTS = 5
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
# Raised before any byte of the request has reached the provider.
_NOT_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError, httpx.UnsupportedProtocol)


class LinkExpired(ResultLost):
    """The link is no longer served: a new one may be had by asking for the job again."""


class LinkBroken(ResultLost):
    """The image did not come whole this time."""


class Transport:
    """The connections to one provider, and those to where its images lie."""

    def __init__(self, base_url: str, *, concurrency: int, max_image_bytes: int) -> None:
        self._own = urlsplit(base_url)
        self._max_image_bytes = max_image_bytes
        limits = httpx.Limits(max_connections=concurrency, max_keepalive_connections=concurrency)
        self._provider = httpx.AsyncClient(limits=limits, headers={"User-Agent": USER_AGENT}, cookies=_no_cookies())
        # No connection is kept: two names at one address must not share one that was made for the other.
        once = httpx.Limits(max_connections=concurrency, max_keepalive_connections=0)
        self._links = httpx.AsyncClient(limits=once, headers={"User-Agent": USER_AGENT}, cookies=_no_cookies())

    async def close(self) -> None:
        """Close all connections."""
        await self._provider.aclose()
        await self._links.aclose()

    async def send(self, request: HttpRequest, *, first_byte: float, deadline: float, images: int = 1) -> HttpAnswer:
        """Send a request once and read its answer, with room for so many `images` in it.

        `first_byte` is in seconds, `deadline` on the event loop's clock.

        Raises ProviderUnavailable where nothing was sent, UnknownOutcome where it was and no whole answer came.
        """
        if request.url.startswith(IN_PROCESS):
            return mock_service.answer(json.dumps(request.json).encode(), request.headers["Idempotency-Key"])
        built = self._built(request, first_byte)
        limit = 2 * self._max_image_bytes * images + 2**20  # base64 is a third longer
        try:
            async with asyncio.timeout_at(deadline):
                answer = await self._provider.send(built, stream=True)
                try:
                    body = await _body(answer, limit)
                finally:
                    await answer.aclose()
        except TimeoutError:
            raise UnknownOutcome("The deadline passed while the request was under way.") from None
        except _NOT_SENT as error:
            raise ProviderUnavailable(f"The provider cannot be reached: {_reason(error)}.") from error
        except _TooLarge as error:
            raise UnknownOutcome(f"The answer is larger than {limit // 2**20} MB (max_image_mb).") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise UnknownOutcome(f"The request was sent and not answered: {_reason(error)}.") from error
        return HttpAnswer(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, body)

    async def fetch(self, url: str) -> bytes:
        """Return the image file behind a link. Raises ResultLost, as LinkExpired or LinkBroken where that may pass."""
        for _ in range(MAX_REDIRECTS + 1):
            try:
                target = await checked(url, self._own)
            except RefusedLink as refused:
                raise ResultLost(f"The image's link is not opened: {refused}.") from None
            except OSError:
                raise LinkBroken("The image's link names a host that cannot be found.") from None
            found = await self._hop(target)
            if isinstance(found, bytes):
                return found
            url = urljoin(url, found)
        raise ResultLost(f"The image's link redirects more than {MAX_REDIRECTS} times.")

    async def _hop(self, target: Target) -> bytes | str:
        """Open one link: the file, or where it redirects to."""
        timeout = httpx.Timeout(LINK_SECONDS, connect=CONNECT_SECONDS)
        headers, names = {"Host": target.host, "Accept": "image/*"}, {"sni_hostname": target.server_name}
        request = self._links.build_request("GET", target.url, headers=headers, timeout=timeout, extensions=names)
        try:
            answer = await self._links.send(request, stream=True)
            try:
                if answer.status_code in _REDIRECTS and "location" in answer.headers:
                    return answer.headers["location"]
                if answer.status_code in (401, 403, 404, 410):
                    raise LinkExpired(f"The image's link is no longer served (status {answer.status_code}).")
                if not answer.is_success:
                    raise LinkBroken(f"The image's link is not served now (status {answer.status_code}).")
                return whole_image(await _body(answer, self._max_image_bytes))
            finally:
                await answer.aclose()
        except _TooLarge:
            limit = self._max_image_bytes // 2**20
            raise ResultLost(f"The image is larger than {limit} MB (max_image_mb).") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise LinkBroken(f"The image did not arrive: {_reason(error)}.") from error

    def _built(self, request: HttpRequest, first_byte: float) -> httpx.Request:
        timeout = httpx.Timeout(first_byte, connect=CONNECT_SECONDS, write=WRITE_SECONDS, pool=None)
        headers = dict(request.headers)
        try:
            if not request.form:
                return self._provider.build_request(
                    request.method, request.url, headers=headers, json=request.json, timeout=timeout
                )
            files = [
                (part.name, (part.filename, part.value, part.media_type) if part.media_type else (None, part.value))
                for part in request.form
            ]
            return self._provider.build_request(
                request.method, request.url, headers=headers, files=files, timeout=timeout
            )
        except httpx.InvalidURL as error:
            raise ProviderUnavailable(f"base_url is no valid URL: {error}.") from error


class _TooLarge(Exception):
    pass


def whole_image(data: bytes) -> bytes:
    """Return an image file if it is one and has its end. Raises ResultLost, LinkBroken where it was cut off."""
    if media_type_of(data) is None:
        raise ResultLost("What came in the image's place is no image.")
    if not is_whole(data):
        raise LinkBroken("The image was cut off on its way.")
    return data


async def _body(answer: httpx.Response, limit: int) -> bytes:
    pieces, size = [], 0
    async for piece in answer.aiter_bytes():
        size += len(piece)
        if size > limit:
            raise _TooLarge
        pieces.append(piece)
    return b"".join(pieces)


def _reason(error: Exception) -> str:
    """Return what happened in a few words; the text of a library's error may hold addresses."""
    names = {
        httpx.ConnectTimeout: "no connection in time",
        httpx.ReadTimeout: "no answer in time",
        httpx.WriteTimeout: "it could not be sent in time",
        httpx.PoolTimeout: "no free connection in time",
        httpx.ConnectError: "no connection",
        httpx.RemoteProtocolError: "the connection was closed early",
        httpx.DecodingError: "the answer cannot be unpacked",
    }
    return next((words for kind, words in names.items() if isinstance(error, kind)), "the connection broke")


def _no_cookies() -> CookieJar:
    return CookieJar(policy=DefaultCookiePolicy(allowed_domains=[]))
