"""The GET of an image that a caller links to: bounded in bytes, and by one deadline from the name to the last byte."""

import time

from worker.core.errors import InvalidImage
from worker.net.client import Client, Oversize
from worker.net.fetched import FetchedBytes
from worker.net.guard import BrokenOff, RefusedUrl, UnknownHost


class ImageFetcher:
    """Fetches images that callers link to. `allow_private` also takes http and private addresses: an opt-in.

    `books` bound the bytes of all that is fetched and still here.
    """

    def __init__(
        self, *, allow_private: bool = False, deadline_s: float = 20.0, books: FetchedBytes | None = None
    ) -> None:
        self._books = books or FetchedBytes()
        self._client = Client(allow_private=allow_private)
        self._deadline_s = deadline_s

    def __call__(self, url: str, max_bytes: int) -> bytes:
        """Return the body behind `url`. Raises InvalidImage with a sentence that names no address, and Overloaded."""
        deadline = time.monotonic() + self._deadline_s
        try:
            with self._client.get(url, timeout_s=self._deadline_s) as response, self._books.receiving() as receipt:
                if response.status != 200:
                    raise _failed(f"its server answered {response.status}")
                body = receipt.body(response.read_all(max_bytes, deadline, receipt.add))
        except (RefusedUrl, BrokenOff) as error:
            raise _failed(str(error)) from None
        except UnknownHost:
            raise _failed("its host cannot be found") from None
        except Oversize:
            raise _failed(f"it is over {max_bytes >> 20} MB") from None
        except OSError:
            raise _failed("its server did not deliver it in time") from None
        if not body:
            raise _failed("its server sent nothing")
        return body


def _failed(reason: str) -> InvalidImage:
    return InvalidImage(f"The image's URL cannot be fetched: {reason}; send the image as base64.", field="image")
