"""The guarded GET: what it brings, where it stops, and that it connects to the address it checked."""

import gc
import gzip
import ipaddress
import socket
import ssl
import time

import pytest

from tests.net.servers import RawServer, body, names, redirect, silence, trickle
from worker.core.errors import InvalidImage, Overloaded
from worker.core.turn import Turn, under_way
from worker.net import guard as module
from worker.net.fetch import ImageFetcher
from worker.net.fetched import FetchedBytes

MEGABYTE = 2**20
PIECE = body(b"x" * 150_000)


@pytest.fixture
def fetch() -> ImageFetcher:
    """For servers on this machine."""
    return ImageFetcher(allow_private=True, deadline_s=5)


class TestBooks:
    """Half a megabyte for all, three quarters of it for one caller."""

    @pytest.fixture
    def books(self) -> FetchedBytes:
        return FetchedBytes(MEGABYTE // 2)

    @pytest.fixture
    def fetch(self, books) -> ImageFetcher:
        return ImageFetcher(allow_private=True, deadline_s=5, books=books)

    @pytest.fixture
    def anna(self):
        token = under_way.set(Turn("anna"))
        yield
        under_way.reset(token)

    def test_a_body_counts_until_nobody_has_it(self, fetch, books):
        with RawServer(PIECE) as server:
            bodies = [fetch(server.url(), MEGABYTE) for _ in range(3)]
            assert books.bytes == 450_000
            with pytest.raises(Overloaded, match="MAX_QUEUED_MB") as caught:
                fetch(server.url(), MEGABYTE)
            assert caught.value.details["retry_after_s"] > 0
            assert books.bytes == 450_000  # of what was refused nothing is left
            bodies.pop()
            gc.collect()
            assert len(fetch(server.url(), MEGABYTE)) == 150_000
        bodies.clear()
        gc.collect()
        assert books.bytes == 0

    def test_one_caller_leaves_room_for_others(self, fetch, books, anna):
        with RawServer(PIECE) as server:
            bodies = [fetch(server.url(), MEGABYTE) for _ in range(2)]
            with pytest.raises(Overloaded, match="your jobs"):
                fetch(server.url(), MEGABYTE)
            under_way.set(Turn("bert"))
            assert len(fetch(server.url(), MEGABYTE)) == 150_000
        assert len(bodies) == 2

    def test_a_body_that_breaks_off_counts_no_more(self, fetch, books):
        with RawServer(body(b"x" * 1000, length=2000)) as server, pytest.raises(InvalidImage):
            fetch(server.url(), MEGABYTE)
        assert books.bytes == 0


class TestBody:
    def test_the_body_comes_back(self, fetch):
        with RawServer(body(b"\x89PNG")) as server:
            assert fetch(server.url("/a%20b/ü.png?x=1&y=%2F#part"), MEGABYTE) == b"\x89PNG"
        head = server.heads[0].lower()
        assert head.startswith("get /a%20b/%c3%bc.png?x=1&y=%2f http/1.1")
        assert "accept-encoding: identity" in head
        assert "cookie" not in head
        assert "authorization" not in head

    @pytest.mark.parametrize("path", ["/my photo.png?name=a b", "/my%20photo.png?name=a%20b"])
    def test_a_space_is_sent_as_browsers_send_it_also_on_a_redirect(self, fetch, path):
        with RawServer(body(b"\x89PNG")) as server, RawServer(redirect(server.url(path))) as first:
            assert fetch(server.url(path), MEGABYTE) == fetch(first.url("/a b"), MEGABYTE) == b"\x89PNG"
        assert all(head.startswith("GET /my%20photo.png?name=a%20b HTTP/1.1") for head in server.heads)
        assert first.heads[0].startswith("GET /a%20b HTTP/1.1")

    def test_a_body_without_a_length_and_one_in_chunks_come_back(self, fetch):
        with RawServer(body(b"abc", length=-1)) as server:
            assert fetch(server.url(), MEGABYTE) == b"abc"
        with RawServer(body(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n", "Transfer-Encoding: chunked", length=-1)) as server:
            assert fetch(server.url(), MEGABYTE) == b"abc"

    @pytest.mark.parametrize(
        "answer",
        [
            body(b"abc", length=10),
            body(b"ff\r\nab", "Transfer-Encoding: chunked", length=-1),
            lambda connection, path: None,
            lambda connection, path: connection.sendall(b"HTTP/1.1 200 OK\r\nCont"),
            lambda connection, path: connection.sendall(b"\0" * 100),
            lambda connection, path: connection.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 500 + b"\r\n"),
            lambda connection, path: connection.sendall(b"HTTP/1.1 200 OK\r\nA: " + b"b" * 70_000 + b"\r\n\r\n"),
            body(b""),
        ],
    )
    def test_an_answer_that_breaks_off_or_is_none_is_typed(self, fetch, answer):
        with RawServer(answer) as server, pytest.raises(InvalidImage, match="base64"):
            fetch(server.url(), MEGABYTE)

    @pytest.mark.parametrize(
        "status", ["404 Not Found", "500 Oops", "204 No Content", "206 Partial", "302 No Location"]
    )
    def test_any_other_status_is_named(self, fetch, status):
        answer = f"HTTP/1.1 {status}\r\nContent-Length: 0\r\n\r\n".encode()
        server = RawServer(lambda connection, path: connection.sendall(answer))
        with server, pytest.raises(InvalidImage, match=status[:3]) as caught:
            fetch(server.url(), MEGABYTE)
        assert "127.0.0.1" not in caught.value.message


class TestLimits:
    def test_a_body_at_the_limit_is_taken_and_one_over_it_not(self, fetch):
        with RawServer(body(b"x" * MEGABYTE)) as server:
            assert len(fetch(server.url(), MEGABYTE)) == MEGABYTE
        with (
            RawServer(body(b"x" * (MEGABYTE + 1), length=-1)) as server,
            pytest.raises(InvalidImage, match="over 1 MB"),
        ):
            fetch(server.url(), MEGABYTE)

    def test_a_declared_size_over_the_limit_is_refused_unread(self, fetch):
        with RawServer(body(b"", length=10**12)) as server, pytest.raises(InvalidImage, match="over 1 MB"):
            fetch(server.url(), MEGABYTE)

    def test_a_body_that_is_compressed_unasked_is_refused(self, fetch):
        bomb = body(gzip.compress(bytes(100 * MEGABYTE)), "Content-Encoding: gzip")
        with RawServer(bomb) as server, pytest.raises(InvalidImage, match="compressed"):
            fetch(server.url(), MEGABYTE)

    def test_an_endless_body_is_left_at_the_limit(self, fetch):
        answer = trickle(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536, pause=0)
        with RawServer(answer) as server, pytest.raises(InvalidImage, match="over 1 MB"):
            fetch(server.url(), MEGABYTE)

    @pytest.mark.parametrize(
        "answer",
        [
            trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"),
            trickle(b"HTTP/1.1 200 OK\r\n\r\n"),
            trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
            trickle(b"HTTP/1.1 200 OK\r\nX: "),
            trickle(b"", b"H"),
            trickle(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
            silence(),
        ],
        ids=["body", "body without length", "chunks", "headers", "status", "continue", "silence"],
    )
    def test_a_server_that_trickles_is_left_at_the_deadline(self, answer):
        with RawServer(answer) as server:
            with pytest.raises(InvalidImage, match="in time"):
                ImageFetcher(allow_private=True, deadline_s=0.4)(server.url(), MEGABYTE)
            assert server.answered == 0

    def test_redirects_share_the_deadline(self):
        def slowly(connection, path):
            time.sleep(0.25)
            redirect("/next")(connection, path)

        # By itself each of them is in time, and after five there is another refusal.
        with RawServer(slowly) as server, pytest.raises(InvalidImage, match="in time"):
            ImageFetcher(allow_private=True, deadline_s=0.6)(server.url(), MEGABYTE)

    def test_five_redirects_are_followed_and_a_sixth_is_not(self, fetch):
        def chain(connection, path):
            left = int(path.strip("/"))
            (redirect(f"/{left - 1}") if left else body(b"there"))(connection, path)

        with RawServer(chain) as server:
            assert fetch(server.url("/5"), MEGABYTE) == b"there"
            with pytest.raises(InvalidImage, match="more than 5"):
                fetch(server.url("/6"), MEGABYTE)

    @pytest.mark.parametrize(
        "location", ["http://[", "file:///etc/passwd", "ftp://host/x", "http://a\\@b/", "http://u@h/"]
    )
    def test_a_redirect_to_no_plain_url_is_refused(self, fetch, location):
        with RawServer(redirect(location)) as server, pytest.raises(InvalidImage):
            fetch(server.url(), MEGABYTE)
        assert server.connections == 1


class TestAddresses:
    def test_the_connection_goes_to_the_address_that_was_checked(self, monkeypatch, fetch):
        with RawServer(body(b"here")) as server:
            asked = names(monkeypatch, {"images.example": ["127.0.0.1"]})
            assert fetch(f"http://images.example:{server.port}/x", MEGABYTE) == b"here"
        assert asked == ["images.example"], "a second look could give another address"
        assert f"host: images.example:{server.port}" in server.heads[0].lower()

    def test_the_next_address_is_tried_when_one_does_not_answer(self, monkeypatch, fetch):
        with RawServer(body(b"here")) as server:
            names(monkeypatch, {"images.example": ["127.0.0.9", "127.0.0.1"]})
            assert fetch(f"http://images.example:{server.port}/x", MEGABYTE) == b"here"

    def test_one_private_address_among_public_ones_is_enough_to_refuse(self, monkeypatch):
        connected = []
        monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: connected.append(args))
        names(monkeypatch, {"images.example": ["93.184.216.34", "10.0.0.1"]})
        with pytest.raises(InvalidImage, match="public") as caught:
            ImageFetcher()("https://images.example/x.png", MEGABYTE)
        assert connected == []
        assert "10.0.0.1" not in caught.value.message

    def test_a_public_name_is_connected_to_by_its_checked_address(self, monkeypatch):
        connected = []

        def connect(address, timeout):
            connected.append(address)
            raise ConnectionRefusedError

        monkeypatch.setattr(socket, "create_connection", connect)
        asked = names(monkeypatch, {"images.example": ["93.184.216.34", "2606:2800:220:1::1"]})
        with pytest.raises(InvalidImage):
            ImageFetcher()("https://images.example/x.png", MEGABYTE)
        assert connected == [("93.184.216.34", 443), ("2606:2800:220:1::1", 443)]
        assert asked == ["images.example"]


class TestTls:
    @pytest.fixture
    def open_gate(self, monkeypatch):
        """Take this machine for a public one, so that the default fetcher can reach a server here."""
        monkeypatch.setattr(module, "is_public", lambda address: ipaddress.ip_address(address).is_loopback)

    def _server(self, certificate, answer=None):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        return RawServer(answer or body(b"secret image"), context)

    def _trust(self, monkeypatch, certificate):
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)

    def test_https_is_spoken_with_the_name_and_not_the_address(self, monkeypatch, open_gate, certificate):
        self._trust(monkeypatch, certificate)
        names(monkeypatch, {"images.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
        with self._server(certificate) as server:
            assert ImageFetcher()(f"https://images.example:{server.port}/x", MEGABYTE) == b"secret image"
            with pytest.raises(InvalidImage):
                ImageFetcher()(f"https://other.example:{server.port}/x", MEGABYTE)
        assert len(server.heads) == 1, "nothing was asked of a server with another's certificate"

    def test_a_certificate_that_nobody_vouches_for_is_refused(self, monkeypatch, open_gate, certificate):
        names(monkeypatch, {"images.example": ["127.0.0.1"]})
        with self._server(certificate) as server, pytest.raises(InvalidImage):
            ImageFetcher()(f"https://images.example:{server.port}/x", MEGABYTE)
        assert server.heads == []

    def test_a_trickling_body_is_left_at_the_deadline(self, monkeypatch, open_gate, certificate):
        self._trust(monkeypatch, certificate)
        names(monkeypatch, {"images.example": ["127.0.0.1"]})
        with self._server(certificate, trickle(b"HTTP/1.1 200 OK\r\n\r\n")) as server:
            with pytest.raises(InvalidImage, match="in time"):
                ImageFetcher(deadline_s=0.5)(f"https://images.example:{server.port}/x", MEGABYTE)
            assert server.answered == 0

    def test_a_trickling_handshake_is_left_at_the_deadline(self, open_gate):
        # a record of 16 kB is announced and then sent byte by byte
        with RawServer(trickle(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x03")) as server:
            with pytest.raises(InvalidImage, match="in time"):
                ImageFetcher(deadline_s=0.5)(server.url(scheme="https"), MEGABYTE)
            assert server.answered == 0

    def test_a_redirect_from_https_to_http_is_refused(self, monkeypatch, open_gate, certificate):
        self._trust(monkeypatch, certificate)
        names(monkeypatch, {"images.example": ["127.0.0.1"]})
        with RawServer(body(b"plain")) as plain, self._server(certificate, redirect(plain.url())) as server:
            with pytest.raises(InvalidImage, match="only https"):
                ImageFetcher()(f"https://images.example:{server.port}/x", MEGABYTE)
            assert plain.connections == 0
