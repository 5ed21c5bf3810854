"""Headers of remote files: what they cost, servers without ranges, and each kind of file that is no model."""

import json

import pytest

from tests.net.servers import RawServer, body, redirect, trickle
from worker.catalog.formats.headers import header_end, parse_header, read_header
from worker.core.errors import AccessDenied, CorruptFile, SourceUnavailable, UnsafeFormat, UnsupportedModel
from worker.core.model import TensorIndex
from worker.net.client import Client
from worker.store import remote_header
from worker.store.remote_header import HeaderReader, read_remote_header
from worker.store.transfer import RemoteFile

PARSER = HeaderReader(header_end, parse_header, read_header)
SIZE_7_GB = 7_000_000_000


@pytest.fixture(autouse=True)
def hurried(monkeypatch):
    monkeypatch.setattr(remote_header, "_BACKOFF_S", 0.01)


class RangeServer(RawServer):
    """Serves the first bytes of a file that claims to be `size` long, and counts what it sends."""

    def __init__(self, start: bytes, size: int | None = None, *, ranges: bool = True, etag: str = '"v1"') -> None:
        super().__init__(self._serve_file)
        self.start, self.size, self.ranges, self.etag = start, len(start) if size is None else size, ranges, etag
        self.sent = 0
        self.failures: list[int] = []

    def _serve_file(self, connection, path):
        if self.failures:
            status = self.failures.pop(0)
            connection.sendall(f"HTTP/1.1 {status} Fault\r\nContent-Length: 0\r\n\r\n".encode())
            return
        asked = [line for line in self.heads[-1].lower().split("\r\n") if line.startswith("range: bytes=")]
        first, last, head = 0, self.size - 1, "HTTP/1.1 200 OK"
        if asked and self.ranges:
            first, last = (int(number) for number in asked[0].removeprefix("range: bytes=").split("-"))
            last = min(last, self.size - 1)
            if first > last:
                gone = f"HTTP/1.1 416 No\r\nContent-Range: bytes */{self.size}\r\nContent-Length: 0\r\n\r\n"
                connection.sendall(gone.encode())
                return
            head = f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {first}-{last}/{self.size}"
        connection.sendall(f"{head}\r\nETag: {self.etag}\r\nContent-Length: {last - first + 1}\r\n\r\n".encode())
        while first <= last:  # the weights are zeros
            block = (self.start[first : first + 65_536] or bytes(65_536))[: last - first + 1]
            connection.sendall(block)
            self.sent += len(block)
            first += len(block)


def checkpoint(tensors: int) -> tuple[bytes, int]:
    """The header of a file of about 7 GB, and the file's size."""
    each = SIZE_7_GB // tensors // 2
    entries = {
        f"model.diffusion_model.input_blocks.{index}.0.in_layers.2.weight": {
            "dtype": "F16",
            "shape": [each],
            "data_offsets": [index * each * 2, (index + 1) * each * 2],
        }
        for index in range(tensors)
    }
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text, 8 + len(text) + tensors * each * 2


def read(server: RawServer, name: str = "model.safetensors", size: int | None = None):
    def refused(file, status, headers):
        return AccessDenied(f"refused with {status}")

    file = RemoteFile(name, server.url(f"/{name}"), size=size)
    return read_remote_header(Client(allow_private=True), file, PARSER, refused).index


@pytest.mark.parametrize(("tensors", "requests"), [(500, 1), (2_515, 2)])
def test_a_7_gb_checkpoint_costs_two_requests_and_less_than_2_mb(tensors, requests):
    start, size = checkpoint(tensors)
    with RangeServer(start, size) as server:
        index = read(server)
    assert len(index.tensors) == tensors
    assert index.file_bytes == size > 6.9e9
    assert server.connections == requests
    assert server.sent < 2_000_000


@pytest.mark.parametrize("ranges", [True, False])
def test_a_header_that_tells_its_length_only_bit_by_bit_is_read_in_growing_steps(ranges):
    length = 5_000_000

    def end(prefix: bytes, file_bytes: int, name: str) -> int:
        return length if len(prefix) >= length else min(4 * len(prefix), file_bytes)

    def parse(prefix: bytes, file_bytes: int, name: str) -> TensorIndex:
        return TensorIndex({}, {"read": f"{len(prefix)}"}, "gguf", file_bytes)

    parser = HeaderReader(end, parse, read_header)
    with RangeServer(b"GGUF" + bytes(length), 30_000_000, ranges=ranges) as server:
        file = RemoteFile("model.gguf", server.url())
        index = read_remote_header(Client(allow_private=True), file, parser, lambda *_: AccessDenied("no")).index
    assert length <= int(index.metadata["read"]) <= 30_000_000
    assert server.connections == (4 if ranges else 1)
    assert server.sent < 31_000_000


def test_a_server_without_ranges_is_left_as_soon_as_the_header_is_here():
    start, size = checkpoint(2_515)
    with RangeServer(start, size, ranges=False) as server:
        assert len(read(server).tensors) == 2_515
    assert server.connections == 1
    assert server.sent < 30_000_000, "what the kernel's buffers hold, not the 7 GB"


def test_a_header_comes_back_with_its_metadata():
    text = json.dumps({"a": {"dtype": "F16", "shape": [1], "data_offsets": [0, 2]}, "__metadata__": {"ss_base": "x"}})
    content = len(text).to_bytes(8, "little") + text.encode() + b"\0\0"
    with RangeServer(content) as server:
        index = read(server)
    assert index.metadata == {"ss_base": "x"}
    assert index.tensors == {"a": ("F16", (1,))}


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [
        (b"", CorruptFile, "is empty"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", CorruptFile, "HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n", CorruptFile, "git-LFS pointer"),
        (b"PK\x03\x04" + bytes(26) + b"archive/data.pkl" + bytes(64), UnsafeFormat, "can run code"),
        (b"\x80\x02}q\x00." + bytes(64), UnsafeFormat, "can run code"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(64), UnsupportedModel, "7z archive"),
        (b"\x89PNG\r\n\x1a\n" + bytes(64), UnsupportedModel, "PNG image"),
        (b'{"error": "not here"}', CorruptFile, "JSON text"),
        (checkpoint(5)[0], CorruptFile, "truncated"),
        (checkpoint(5)[0][:100], CorruptFile, "truncated"),
    ],
    ids=["empty", "html", "lfs", "zip pickle", "pickle", "archive", "image", "json", "no weights", "half header"],
)
@pytest.mark.parametrize("ranges", [True, False])
def test_what_is_no_model_is_named_before_it_is_downloaded(content, error, words, ranges):
    with RangeServer(content, ranges=ranges) as server, pytest.raises(error, match=words):
        read(server)


def test_a_page_by_its_content_type_and_any_refusal_are_the_sources_to_explain():
    page = body(b"<p>Sign in", "Content-Type: text/html; charset=utf-8")
    with RawServer(page) as server, pytest.raises(AccessDenied, match="with 200"):
        read(server)
    with RangeServer(b"") as server:
        server.failures = [403]
        with pytest.raises(AccessDenied, match="with 403"):
            read(server)


def test_another_size_than_announced_is_damage():
    start, size = checkpoint(5)
    with RangeServer(start, size) as server, pytest.raises(CorruptFile, match="announced"):
        read(server, size=size + 1)


def test_a_server_that_fails_once_is_asked_again_and_one_that_keeps_failing_is_unavailable():
    start, size = checkpoint(5)
    with RangeServer(start, size) as server:
        server.failures = [503]
        assert len(read(server).tensors) == 5
        server.failures = [503, 500]
        with pytest.raises(SourceUnavailable) as caught:
            read(server)
    assert "127.0.0.1" not in caught.value.message


def test_a_file_that_changes_between_two_requests_is_read_from_its_start():
    start, size = checkpoint(2_515)
    with RangeServer(start, size) as server:
        whole = server._serve_file

        def swap(connection, path):
            server.ranges = server.connections == 1  # the second answer is 200 and whole: the ETag was another
            whole(connection, path)

        server._answer = swap
        assert len(read(server).tensors) == 2_515
    assert 'if-range: "v1"' in server.heads[1].lower()


def test_a_link_that_leads_into_the_workers_own_network_is_refused():
    with RawServer(redirect("http://169.254.169.254/latest")) as server:
        file = RemoteFile("x.safetensors", server.url())
        with pytest.raises(AccessDenied) as caught:
            read_remote_header(Client({server.url(""): None}), file, PARSER, lambda *_: AccessDenied("no"))
    assert "169.254" not in caught.value.message


def test_a_trickling_header_is_left_at_the_deadline(monkeypatch):
    monkeypatch.setattr(remote_header, "DEADLINE_S", 0.5)
    answer = trickle(b"HTTP/1.1 206 Partial\r\nContent-Range: bytes 0-999/1000\r\nContent-Length: 1000\r\n\r\n")
    with RawServer(answer) as server, pytest.raises(SourceUnavailable):
        read(server)
