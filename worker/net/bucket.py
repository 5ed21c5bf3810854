"""Results in an S3-compatible bucket: put, in parts where they are large, and a presigned URL back.

A bucket is the operator's, or one that a caller names for their own results. Every request to the latter goes through
the client that opens all of a caller's URLs (client.py): boto3 signs and retries, and its connections are ours.
"""

import io
import threading
import time
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from worker.core.errors import InvalidRequest, SourceUnavailable
from worker.net.client import Client
from worker.net.guard import REDIRECTS, RefusedUrl, UnknownHost
from worker.net.s3_address import Addressing, s3_address

# A body over this is sent in parts: one that fails is sent again alone.
PART_BYTES = 8 * 2**20
_TIMEOUT_S = 60.0
_MAX_ANSWER_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class BucketConfig:
    """A bucket for results. Keys are secrets and never shown. `named_by` says where the keys were read from."""

    endpoint_url: str
    name: str
    access_key_id: str
    secret_access_key: str
    url_expires_s: int
    region: str | None = None  # before the one that the endpoint tells
    usual_region: str | None = None  # where the endpoint tells none
    addressing: Addressing | None = None
    named_by: str = "the BUCKET_ settings"

    def __repr__(self) -> str:
        """Show the bucket without its keys."""
        return f"BucketConfig({self.name!r})"


class Bucket:
    """Uploads bytes and answers presigned URLs. Blocking; safe to use from several threads.

    With a `sender` all requests are sent by it.
    """

    def __init__(self, config: BucketConfig, sender: "BucketSender | None" = None) -> None:
        self._config = config
        self._sender = sender
        self._client: Any = None
        self._region: str | None = None  # that the bucket has told, where the endpoint tells none or another
        self._lock = threading.Lock()  # boto3 makes clients in one thread at a time only

    @property
    def host(self) -> str:
        """The endpoint's name and port."""
        return urlsplit(self._config.endpoint_url).netloc.lower()

    def put(self, key: str, body: bytes, content_type: str) -> str:
        """Store `body` under `key` and return a URL that reads it. Raises SourceUnavailable."""
        from boto3.s3.transfer import TransferConfig

        try:
            client = self._connect()
            client.upload_fileobj(
                io.BytesIO(body),
                self._config.name,
                key,
                ExtraArgs={"ContentType": content_type},
                Config=TransferConfig(multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES),
            )
            # boto3 sends the rest to the region that an answer names, but signs addresses for the one of its own.
            url: str = self._connect(self._region).generate_presigned_url(
                "get_object",
                Params={"Bucket": self._config.name, "Key": key},
                ExpiresIn=self._config.url_expires_s,
            )
            return url
        except Exception as error:
            # Not only boto3's own: an endpoint that is no URL is a ValueError, a refusal of the guard an OSError, and
            # a page instead of a store's answer a KeyError. Whatever it is, the images are not lost for that.
            cause = _reason(error)
            raise SourceUnavailable(
                f"The result bucket refused the upload{f' ({cause})' if cause else ''}; check {self._config.named_by}."
            ) from None

    def check(self) -> None:
        """Refuse, before anything is generated, an endpoint that may not be called. Raises InvalidRequest."""
        if self._sender is not None:
            self._sender.check(self._config.endpoint_url)

    def _connect(self, region: str | None = None) -> Any:
        with self._lock:
            if region is not None and region != self._config.region:
                self._config, self._client = replace(self._config, region=region), None
            if self._client is None:
                self._client = self._new_client()
            return self._client

    def _heed_region(self, context: dict[str, Any], **_: object) -> None:
        """Remember the region that a request was sent to after an answer had named it."""
        if context.get("s3_redirect", {}).get("redirected"):
            self._region = context.get("signing", {}).get("region")

    def _new_client(self) -> Any:
        import boto3
        from botocore.config import Config

        config = self._config
        address = s3_address(
            config.endpoint_url,
            config.name,
            region=config.region,
            usual_region=config.usual_region,
            addressing=config.addressing,
        )
        client = boto3.session.Session().client(
            "s3",
            endpoint_url=address.endpoint_url,
            aws_access_key_id=self._config.access_key_id,
            aws_secret_access_key=self._config.secret_access_key,
            region_name=address.region,
            # Stores other than AWS's own refuse the checksum header that boto3 adds by default.
            config=Config(
                signature_version="s3v4",  # or presigned URLs get the old one, which some stores no longer take
                request_checksum_calculation="when_required",
                response_checksum_validation="when_required",
                s3={"addressing_style": address.addressing},
                retries={"max_attempts": 3, "mode": "standard"},
                connect_timeout=5,
                read_timeout=30,
            ),
        )
        client.meta.events.register_first("needs-retry.s3.HeadBucket", _refuse_redirect)
        client.meta.events.register("after-call.s3", self._heed_region)
        client.meta.events.register("after-call.s3.PutObject", _refuse_page)
        if self._sender is not None:
            # Such a handler's answer is taken for the store's, and nothing else is sent.
            client.meta.events.register("before-send.s3", self._sender)
        return client


class BucketSender:
    """Sends boto3's requests with the guarded client; `allow_private` also takes http and private addresses."""

    def __init__(self, *, allow_private: bool) -> None:
        self._client = Client(allow_private=allow_private)

    def check(self, endpoint_url: str) -> None:
        """Raise InvalidRequest for an endpoint that may not be called."""
        try:
            self._client.check(endpoint_url, timeout_s=_TIMEOUT_S)
        except (RefusedUrl, UnknownHost, TimeoutError) as error:
            reason = error if isinstance(error, RefusedUrl) else "its host cannot be found"
            raise InvalidRequest(
                f"s3Config.endpointUrl cannot be used: {reason}; name a public https endpoint.", field="s3Config"
            ) from None

    def __call__(self, request: Any, **_: object) -> Any:
        """Return the store's answer to one prepared request, as boto3 wants it."""
        from botocore.awsrequest import AWSResponse

        deadline = time.monotonic() + _TIMEOUT_S
        headers = {
            name: value.decode("latin-1") if isinstance(value, bytes) else str(value)
            for name, value in request.headers.items()
        }
        with self._client.send(
            request.method, request.url, headers=headers, body=request.body, timeout_s=_TIMEOUT_S
        ) as response:
            content = response.read_all(_MAX_ANSWER_BYTES, deadline)
            return AWSResponse(request.url, response.status, dict(response.headers), _Body(content))


class _Body(io.BytesIO):
    """An answer's content as botocore reads it."""

    def stream(self, amount: int = 1024, **_: object) -> Any:
        """Yield the content, block by block."""
        while block := self.read(amount):
            yield block


def _refuse_redirect(response: tuple[Any, Any] | None, **_: object) -> None:
    """End boto3's search for the region of a bucket that redirects: it asks again and again, one call in the other."""
    reply = response[0] if response else None
    if reply is not None and reply.status_code in REDIRECTS and "x-amz-bucket-region" not in reply.headers:
        raise RefusedUrl("it redirects")


def _refuse_page(http_response: Any, parsed: dict[str, Any], **_: object) -> None:
    """Refuse an answer without the digest that every store sends: a page that says 200 to all has stored nothing."""
    if http_response.status_code < 300 and "ETag" not in parsed:
        raise RefusedUrl("what answers there is no bucket")


def _reason(error: Exception) -> str:
    """Return the store's own code for a refusal, or the guard's reason; nothing that could hold a host or a key."""
    from boto3.exceptions import S3UploadFailedError
    from botocore.exceptions import ClientError

    cause = error.__context__ if isinstance(error, S3UploadFailedError) else error
    if isinstance(cause, ClientError):
        return str(cause.response.get("Error", {}).get("Code", ""))
    return str(cause) if isinstance(cause, RefusedUrl) else ""
