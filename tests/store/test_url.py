"""Plain links to weight files: described, fetched, asked for again, and refused where they lead to something else."""

from pathlib import Path

import numpy
import pytest
from aiohttp import web
from safetensors.numpy import save

from tests.fakes import FakeServer
from worker.catalog.formats.headers import header_end, parse_header, read_header
from worker.core.errors import AccessDenied, CorruptFile, ModelNotFound, SourceUnavailable, UnsupportedModel
from worker.core.model import ModelSource
from worker.core.turn import StopSignal
from worker.net import client as net
from worker.store import remote_header
from worker.store import url as module
from worker.store.cache import VolumeCache
from worker.store.remote_header import HeaderReader
from worker.store.transfer import Patience
from worker.store.url import UrlFiles


def weights(seed: int) -> bytes:
    return save({"weight": numpy.random.default_rng(seed).standard_normal(4_000).astype(numpy.float32)})


class FileHost(FakeServer):
    """A web server with files. `validators` is off for one that knows neither ETags nor times; `status` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, tuple[bytes, str]] = {}
        self.validators = True
        self.status = 200

    def put(self, name: str, content: bytes, etag: str = "v1") -> None:
        self.files[name] = (content, f'"{etag}"')

    def url(self, name: str) -> str:
        return f"{self.origin}/dir/{name}"

    def add_routes(self, router: web.UrlDispatcher) -> None:
        router.add_get("/dir/{name}", self._send)

    async def _send(self, request: web.Request) -> web.StreamResponse:
        if self.status != 200:
            return web.Response(status=self.status)
        content, etag = self.files[request.match_info["name"]]
        if self.validators and request.headers.get("If-None-Match") == etag:
            return web.Response(status=304)
        kind = "text/html" if content.startswith(b"<") else "application/octet-stream"
        headers = {"Content-Type": kind} | ({"ETag": etag} if self.validators else {})
        if request.http_range.start is None:
            return web.Response(body=content, headers=headers)
        if not content:
            return web.Response(status=416, headers={"Content-Range": "bytes */0"})
        part = content[request.http_range]
        first = request.http_range.start
        headers["Content-Range"] = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        return web.Response(status=206, body=part, headers=headers)


@pytest.fixture
def host():
    with FileHost() as server:
        server.put("x.safetensors", weights(1))
        yield server


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(remote_header, "_BACKOFF_S", 0.01)


class Client:
    """A worker's way to plain links."""

    def __init__(self, folder: Path, **options) -> None:
        self.folder = folder
        cache = VolumeCache(folder, patience=Patience(attempts=2, backoff_s=0.01))
        headers = HeaderReader(header_end, parse_header, read_header)
        files = net.Client(allow_private=True)
        self.source = UrlFiles(cache, files, headers, **options)

    def peek(self, url: str, sha256: str | None = None):
        return self.source.peek(ModelSource(scheme="url", locator=url, sha256=sha256), None)

    def ensure(self, url: str, sha256: str | None = None):
        source = ModelSource(scheme="url", locator=url, sha256=sha256)
        return self.source.ensure(source, None, lambda progress: None, StopSignal(30))

    def kept(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file() and path.stat().st_size > 10_000]


@pytest.fixture
def client(tmp_path) -> Client:
    return Client(tmp_path / "volume")


def test_a_file_is_described_by_its_header_and_then_fetched_once(client, host):
    outline = client.peek(host.url("x.safetensors"))
    assert set(outline.header.tensors) == {"weight"}
    assert outline.file_name == "x.safetensors"
    assert client.kept() == []
    files = client.ensure(host.url("x.safetensors"))
    assert files.root.read_bytes() == weights(1)
    assert files.bytes_downloaded == len(weights(1))
    asked = len(host.requests)
    assert client.ensure(host.url("x.safetensors")).bytes_downloaded == 0
    assert len(host.requests) == asked


@pytest.mark.parametrize("validators", [True, False])
def test_a_copy_is_kept_as_long_as_the_server_has_the_same_file(client, host, monkeypatch, validators):
    host.validators = validators
    monkeypatch.setattr(module, "MEMORY_S", 0.0)
    client.ensure(host.url("x.safetensors"))
    assert client.ensure(host.url("x.safetensors")).bytes_downloaded == 0
    other = save({"weight": numpy.zeros(9_000, numpy.float32)})
    host.put("x.safetensors", other, etag="v2")
    assert client.ensure(host.url("x.safetensors")).root.read_bytes() == other
    assert client.peek(host.url("x.safetensors")).header.tensors["weight"] == ("F32", (9_000,))


def test_a_copy_outlives_its_server_and_the_network(client, host, monkeypatch):
    monkeypatch.setattr(module, "MEMORY_S", 0.0)
    kept = client.ensure(host.url("x.safetensors")).root
    host.status = 503
    assert client.ensure(host.url("x.safetensors")).root == kept
    host.requests.clear()
    offline = Client(client.folder, offline=True)
    assert offline.ensure(host.url("x.safetensors")).root == kept
    with pytest.raises(SourceUnavailable, match="offline"):
        offline.ensure(host.url("y.safetensors"))
    assert host.requests == []


def test_a_pin_is_kept_and_a_pinned_copy_is_not_asked_for_again(client, host, monkeypatch):
    monkeypatch.setattr(module, "MEMORY_S", 0.0)
    with pytest.raises(CorruptFile):
        client.ensure(host.url("x.safetensors"), "ab" * 32)
    assert client.kept() == []
    right = client.ensure(host.url("x.safetensors")).sha256
    asked = len(host.requests)
    assert client.ensure(host.url("x.safetensors"), right).bytes_downloaded == 0
    assert len(host.requests) == asked


def test_a_link_that_is_withdrawn_is_told_although_there_is_a_copy(client, host, monkeypatch):
    monkeypatch.setattr(module, "MEMORY_S", 0.0)
    client.ensure(host.url("x.safetensors"))
    host.status = 404
    with pytest.raises(ModelNotFound):
        client.ensure(host.url("x.safetensors"))


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"<!DOCTYPE html><html>Sign in</html>", CorruptFile, "web page"),
        (b"PK\x03\x04" + bytes(100), UnsupportedModel, "zip archive"),
        (b"\x1f\x8b" + bytes(100), UnsupportedModel, "gzip archive"),
        (weights(1)[:9_000], CorruptFile, "truncated"),
        (b"", CorruptFile, "empty"),
    ],
)
def test_what_is_no_model_is_refused_by_name_and_not_kept(client, host, content, error, words):
    host.put("y.safetensors", content)
    for attempt in (client.peek, client.ensure):
        with pytest.raises(error, match=words) as caught:
            attempt(host.url("y.safetensors"))
        assert "127.0.0.1" not in caught.value.message
    assert client.kept() == []


@pytest.mark.parametrize(
    ("status", "error"), [(401, AccessDenied), (403, AccessDenied), (404, ModelNotFound), (429, SourceUnavailable)]
)
def test_each_refusal_of_the_server_is_told_apart(client, host, status, error):
    host.status = status
    with pytest.raises(error) as caught:
        client.ensure(host.url("x.safetensors"))
    assert caught.value.field == "model"
    assert "127.0.0.1" not in caught.value.message


@pytest.mark.parametrize("name", ["..%2F..%2Fetc%2Fpasswd", "%2e%2e", "a%00b", "x" * 300, ".ok", "CON.gguf"])
def test_a_name_in_a_link_is_never_a_path(client, host, name, tmp_path):
    for known in (name, "../../etc/passwd", "..", "a\0b"):
        host.put(known, weights(2))
    try:
        root = client.ensure(f"{host.origin}/dir/{name}").root
    except ModelNotFound:
        return  # a server of its own mind about such paths
    assert root.resolve().is_relative_to(client.folder)
    assert root.suffix == ".safetensors"
    assert {path.name for path in tmp_path.iterdir()} == {"volume"}


def test_a_signature_in_a_link_is_not_written_to_disk(client, host):
    client.ensure(host.url("x.safetensors?X-Amz-Signature=canary-signature"))
    listed = "".join(str(path) for path in client.folder.rglob("*"))
    read = b"".join(path.read_bytes() for path in client.folder.rglob("*") if path.is_file())
    assert "canary" not in listed
    assert b"canary" not in read


def test_a_private_address_is_refused(tmp_path, host):
    client = Client(tmp_path / "volume")
    client.source._client = net.Client()
    with pytest.raises(AccessDenied, match="public"):
        client.ensure("https://127.0.0.1/x.safetensors")
    assert host.requests == []
