"""An S3-compatible store in miniature for boto3's ``put_object`` and presigned addresses (path style)."""

import datetime
import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from xml.sax.saxutils import escape

from aiohttp import web

from tests.fakes import FakeServer


@dataclass(frozen=True)
class StoredObject:
    """One object as it was put."""

    bucket: str
    key: str
    body: bytes
    content_type: str
    signed: bool
    """Whether the request carried an Authorization header."""
    headers: dict[str, str]
    parts: int = 1
    """In how many parts it came."""


class FakeBucket(FakeServer):
    """The store; signatures are not checked, only that there is one.

    ``buckets`` are the buckets that exist, by default any. ``access_key`` is the only key let in, by default any.
    ``refuse_checksums`` behaves like the stores that do not know the checksum headers newer clients add.
    """

    def __init__(
        self,
        *,
        buckets: Collection[str] | None = None,
        access_key: str | None = None,
        refuse_checksums: bool = False,
    ) -> None:
        super().__init__()
        self.buckets = buckets
        self.access_key = access_key
        self.refuse_checksums = refuse_checksums
        self.objects: dict[tuple[str, str], StoredObject] = {}
        self._refusal: tuple[int, str] | None = None
        self._parts: dict[str, dict[int, bytes]] = {}
        self._kinds: dict[str, str] = {}
        self._broken_parts = 0

    @property
    def endpoint(self) -> str:
        """The address for ``endpoint_url``."""
        return self.origin

    def env(self) -> dict[str, str]:
        """Return the variables RunPod's own upload helper reads."""
        return {
            "BUCKET_ENDPOINT_URL": self.endpoint,
            "BUCKET_ACCESS_KEY_ID": self.access_key or "test-access",
            "BUCKET_SECRET_ACCESS_KEY": "test-secret",
        }

    def s3_config(self, bucket: str = "images") -> dict[str, str]:
        """Return a request's ``s3Config`` for this store."""
        return {
            "endpointUrl": self.endpoint,
            "bucketName": bucket,
            "accessId": self.access_key or "test-access",
            "accessSecret": "test-secret",
        }

    def refuse(self, status: int = 403, code: str = "AccessDenied") -> None:
        """Answer everything with an error from now on."""
        self._refusal = (status, code)

    def break_parts(self, count: int) -> None:
        """Answer the next ``count`` parts with a server's error."""
        self._broken_parts = count

    def accept(self) -> None:
        """Take ``refuse`` back."""
        self._refusal = None

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register objects below buckets."""
        router.add_put("/{bucket}/{key:.+}", self._put)
        router.add_post("/{bucket}/{key:.+}", self._post)
        router.add_get("/{bucket}/{key:.+}", self._get)
        router.add_delete("/{bucket}/{key:.+}", self._delete)

    async def _put(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        bucket, key = request.match_info["bucket"], request.match_info["key"]
        headers = {name.lower(): value for name, value in request.headers.items()}
        if self.refuse_checksums and any(
            name.startswith(("x-amz-checksum-", "x-amz-sdk-checksum")) for name in headers
        ):
            return _error(501, "NotImplemented", "A header you provided implies functionality that is not implemented")
        body = await request.read()
        if headers.get("x-amz-content-sha256", "").startswith("STREAMING-"):
            body = _unchunk(body)
        if "partNumber" in request.query:
            parts = self._parts.get(request.query["uploadId"])
            if parts is None:
                return _error(404, "NoSuchUpload", "The specified upload does not exist.")
            if self._broken_parts:
                self._broken_parts -= 1
                return _error(500, "InternalError", "We encountered an internal error. Please try again.")
            parts[int(request.query["partNumber"])] = body
            return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})
        kind = headers.get("content-type", "binary/octet-stream")
        self.objects[bucket, key] = StoredObject(bucket, key, body, kind, "authorization" in headers, headers)
        return web.Response(headers={"ETag": f'"{hashlib.md5(body).hexdigest()}"'})

    async def _post(self, request: web.Request) -> web.Response:
        """Begin or complete an upload in parts."""
        if refused := self._refused(request):
            return refused
        bucket, key = request.match_info["bucket"], request.match_info["key"]
        if "uploads" in request.query:
            upload = f"upload-{len(self._parts)}"
            self._parts[upload] = {}
            self._kinds[upload] = request.headers.get("Content-Type", "binary/octet-stream")
            return _answer("InitiateMultipartUploadResult", f"<UploadId>{upload}</UploadId>")
        upload = request.query["uploadId"]
        parts = self._parts.pop(upload, None)
        if not parts:
            return _error(404, "NoSuchUpload", "The specified upload does not exist.")
        body = b"".join(parts[number] for number in sorted(parts))
        headers = {name.lower(): value for name, value in request.headers.items()}
        signed = "authorization" in headers
        self.objects[bucket, key] = StoredObject(
            bucket, key, body, self._kinds.pop(upload), signed, headers, len(parts)
        )
        return _answer("CompleteMultipartUploadResult", f'<ETag>"{hashlib.md5(body).hexdigest()}"</ETag>')

    async def _get(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        stored = self.objects.get((request.match_info["bucket"], request.match_info["key"]))
        if stored is None:
            return _error(404, "NoSuchKey", "The specified key does not exist.")
        kind = request.query.get("response-content-type", stored.content_type)
        return web.Response(body=stored.body, headers={"Content-Type": kind})

    async def _delete(self, request: web.Request) -> web.Response:
        if refused := self._refused(request):
            return refused
        self.objects.pop((request.match_info["bucket"], request.match_info["key"]), None)
        return web.Response(status=204)

    def _refused(self, request: web.Request) -> web.Response | None:
        if self._refusal is not None:
            return _error(*self._refusal, "told to refuse")
        query, header = request.query, request.headers.get("Authorization", "")
        presigned = "X-Amz-Signature" in query or "Signature" in query
        if not header and not presigned:
            return _error(403, "AccessDenied", "Access Denied")
        if _expired(request):
            return _error(403, "AccessDenied", "Request has expired")
        credentials = header + query.get("X-Amz-Credential", "") + query.get("AWSAccessKeyId", "")
        if self.access_key is not None and self.access_key not in credentials:
            return _error(403, "InvalidAccessKeyId", "The access key you provided does not exist.")
        if self.buckets is not None and request.match_info["bucket"] not in self.buckets:
            return _error(404, "NoSuchBucket", "The specified bucket does not exist")
        return None


def _expired(request: web.Request) -> bool:
    query, now = request.query, datetime.datetime.now(datetime.UTC)
    if "X-Amz-Expires" in query:
        signed_at = datetime.datetime.strptime(query["X-Amz-Date"], "%Y%m%dT%H%M%S%z")
        return now > signed_at + datetime.timedelta(seconds=int(query["X-Amz-Expires"]))
    # the older signature carries the end itself
    return now.timestamp() > int(query.get("Expires", "9999999999"))


def _answer(name: str, content: str) -> web.Response:
    return web.Response(text=f"<?xml version='1.0'?><{name}>{content}</{name}>", content_type="application/xml")


def _error(status: int, code: str, message: str) -> web.Response:
    text = f"<?xml version='1.0'?><Error><Code>{escape(code)}</Code><Message>{escape(message)}</Message></Error>"
    return web.Response(status=status, text=text, content_type="application/xml")


def _unchunk(body: bytes) -> bytes:
    """Return the content of an ``aws-chunked`` body: chunks of ``size;extension``, then trailers."""
    content = b""
    while body:
        line, _, body = body.partition(b"\r\n")
        size = int(line.partition(b";")[0], 16)
        if size == 0:
            break
        content, body = content + body[:size], body[size + 2 :]
    return content
