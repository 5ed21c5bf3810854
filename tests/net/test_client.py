"""The store's HTTP client: what it asks for, whom it tells a token, and that nothing can hold it up for ever."""

import gzip
import ipaddress
import logging
import socket
import ssl
import threading

import pytest

from tests.net.servers import RawServer, body, names, redirect, silence, trickle
from tests.waiting import LIMIT_S, until
from worker.net import guard
from worker.net.client import Client
from worker.net.guard import RefusedUrl, join_url

TOKEN = "canary-token-web"


def read(response) -> bytes:
    with response:
        return response.read_all(10_000)


def ranged(content: bytes):
    """An answer to a range request, told by its head."""

    def answer(connection, path):
        first, last = path.strip("/").split("-")
        part = content[int(first) : int(last) + 1]
        head = f"HTTP/1.1 206 Partial\r\nContent-Range: bytes {path.strip('/')}/{len(content)}\r\n"
        connection.sendall(f"{head}Content-Length: {len(part)}\r\n\r\n".encode() + part)

    return answer


class TestAsking:
    def test_a_range_is_asked_for_with_the_version_it_is_meant_for(self):
        with RawServer(ranged(b"0123456789")) as server:
            response = Client(allow_private=True).get(server.url("/2-4"), start=2, end=5, etag='"v1"')
            assert (response.status, response.length) == (206, 3)
            assert response.headers["content-range"] == "bytes 2-4/10"
            assert read(response) == b"234"
        head = server.heads[0].lower()
        assert "range: bytes=2-4\r\n" in head
        assert 'if-range: "v1"' in head
        assert "accept-encoding: identity" in head
        assert "mozilla" not in head

    def test_all_of_a_file_is_asked_for_without_a_range_and_the_rest_with_an_open_one(self):
        with RawServer(body(b"abc")) as server:
            client = Client(allow_private=True)
            read(client.get(server.url(), headers={"If-None-Match": '"v1"'}))
            read(client.get(server.url(), start=7))
        assert "range:" not in server.heads[0].lower()
        assert 'if-none-match: "v1"' in server.heads[0].lower()
        assert "range: bytes=7-\r\n" in server.heads[1].lower()

    @pytest.mark.parametrize("status", ["304 Not Modified", "404 Not Found", "416 Range", "503 Busy"])
    def test_any_status_comes_back_to_the_caller(self, status):
        answer = f"HTTP/1.1 {status}\r\nRetry-After: 7\r\nContent-Length: 0\r\n\r\n".encode()
        with RawServer(lambda connection, path: connection.sendall(answer)) as server:
            response = Client(allow_private=True).get(server.url())
            assert (response.status, response.headers["retry-after"]) == (int(status[:3]), "7")
            assert read(response) == b""

    def test_a_signed_link_goes_on_the_wire_as_it_is(self):
        with RawServer(body(b"abc")) as server:
            read(Client(allow_private=True).get(server.url("/a%2Fb.safetensors?X-Sig=%2B%2F%3D&r=attachment%3B%20f")))
        assert server.heads[0].startswith("GET /a%2Fb.safetensors?X-Sig=%2B%2F%3D&r=attachment%3B%20f HTTP")

    def test_what_is_quoted_in_another_way_than_urllib3_would_do_it_stays_so(self):
        with RawServer(body(b"abc")) as server:
            read(Client(allow_private=True).get(server.url("/a%2fb/%7e//c|d?x=[1]&y=%e4&z=a%20b")))
        assert server.heads[0].startswith("GET /a%2fb/%7e//c|d?x=[1]&y=%e4&z=a%20b HTTP")

    def test_nothing_is_taken_from_the_environment(self, monkeypatch, tmp_path):
        passwords = tmp_path / "netrc"
        passwords.write_text(
            "machine 127.0.0.1 login me password canary-netrc\ndefault login me password canary-netrc\n"
        )
        monkeypatch.setenv("NETRC", str(passwords))
        for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:1")
        with RawServer(body(b"abc")) as server:
            assert read(Client(allow_private=True).get(server.url())) == b"abc"
        assert "authorization" not in server.heads[0].lower()

    def test_no_log_line_of_a_library_holds_what_a_link_may_hold(self, caplog):
        caplog.set_level(logging.DEBUG, logger="urllib3")
        with RawServer(body(b"abc", "no header at all", "Broken\x01: yes")) as server:
            client = Client({server.url(""): TOKEN})
            read(client.get(server.url("/canary-path?signature=canary-query")))
        assert caplog.records, "urllib3 says something of each request"
        assert "canary" not in caplog.text

    def test_a_cookie_is_not_brought_back(self):
        def answer(connection, path):
            if path == "/x.png":
                head = b"HTTP/1.1 302 Found\r\nSet-Cookie: a=1; Path=/\r\nLocation: /moved\r\n"
                connection.sendall(head + b"Content-Length: 0\r\n\r\n")
            else:
                body(b"here", "Set-Cookie: b=2; Path=/")(connection, path)

        with RawServer(answer) as server:
            client = Client(allow_private=True)
            for _ in range(2):
                assert read(client.get(server.url())) == b"here"
        assert len(server.heads) == 4
        assert not any("cookie" in head.lower() for head in server.heads)

    def test_the_connection_ends_with_the_response_although_the_server_would_keep_it(self):
        ended = []

        def keep(connection, path):
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabc")
            connection.settimeout(60)
            ended.append(connection.recv(1))

        with RawServer(keep) as server:
            client = Client(allow_private=True)
            whole, unread = client.get(server.url()), client.get(server.url())
            assert read(whole) == b"abc"
            unread.close()
            until(lambda: len(ended) == 2)
        assert ended == [b"", b""]

    @pytest.mark.parametrize("status", [200, 302, 500])
    def test_what_is_sent_arrives_whole_and_no_redirect_is_followed(self, status):
        sent = b"x" * 300_000 + b"end"
        received = bytearray()

        def take(connection, path):
            received.extend(server.heads[0].encode("latin-1").partition(b"\r\n\r\n")[2])
            while not received.endswith(b"end"):
                received.extend(connection.recv(65_536))
            redirect("/elsewhere", status)(connection, path)

        with RawServer(take) as server:
            url = server.url("/hook")
            with Client(allow_private=True).send("POST", url, headers={"X": "y"}, body=sent) as response:
                assert response.status == status
        assert received == sent
        head = server.heads[0].lower()
        assert head.startswith("post /hook http/1.1\r\n")
        assert "\r\ncontent-length: 300003\r\n" in head
        assert "\r\nx: y\r\n" in head
        assert len(server.heads) == 1

    @pytest.mark.parametrize("nothing", [None, b""])
    def test_nothing_is_sent_as_a_body_of_no_bytes(self, nothing):
        with RawServer(body(b"")) as server:
            Client(allow_private=True).send("POST", server.url(), headers={}, body=nothing).close()
        assert "\r\ncontent-length: 0\r\n" in server.heads[0].lower()
        assert "transfer-encoding" not in server.heads[0].lower()

    def test_an_open_file_is_sent_with_its_length(self, tmp_path):
        (tmp_path / "body").write_bytes(b"from the disk")
        with RawServer(body(b"")) as server, (tmp_path / "body").open("rb") as file:
            Client(allow_private=True).send("PUT", server.url(), headers={"content-length": "13"}, body=file).close()
            file.seek(5)
            Client(allow_private=True).send("PUT", server.url(), headers={}, body=file).close()
        assert [head.lower().count("content-length: ") for head in server.heads] == [1, 1]
        assert "\r\nContent-Length: 8\r\n" in server.heads[1]


class TestToken:
    def test_only_the_origin_that_a_token_belongs_to_sees_it(self):
        with RawServer(body(b"here")) as storage, RawServer(redirect(storage.url("/signed"))) as api:
            assert read(Client({api.url(""): TOKEN}, allow_private=True).get(api.url())) == b"here"
        assert f"Authorization: Bearer {TOKEN}\r\n" in api.heads[0]
        assert TOKEN not in storage.heads[0]
        assert "authorization" not in storage.heads[0].lower()

    def test_the_same_host_by_another_name_or_port_is_another_origin(self):
        with RawServer(body(b"here")) as server:
            client = Client({server.url(""): TOKEN}, allow_private=True)
            read(client.get(f"http://localhost:{server.port}/"))
            assert TOKEN not in server.heads[0]

    def test_a_redirect_within_the_origin_keeps_the_token(self):
        def once(connection, path):
            (body(b"here") if path == "/moved" else redirect("/moved", 307))(connection, path)

        with RawServer(once) as server:
            assert read(Client({server.url(""): TOKEN}).get(server.url("/x"))) == b"here"
        assert all(TOKEN in head for head in server.heads)
        assert len(server.heads) == 2

    def test_a_strangers_link_that_leads_to_the_origin_does_not_get_the_token_used(self):
        with RawServer(body(b"public")) as api, RawServer(redirect(api.url("/private"))) as stranger:
            assert read(Client({api.url(""): TOKEN}, allow_private=True).get(stranger.url())) == b"public"
        assert TOKEN not in api.heads[0]

    def test_a_token_is_not_taken_up_again_after_a_detour(self):
        def there(connection, path):
            (body(b"end") if path == "/back" else redirect(stranger.url()))(connection, path)

        with RawServer(lambda connection, path: redirect(api.url("/back"))(connection, path)) as stranger:
            with RawServer(there) as api:
                read(Client({api.url(""): TOKEN}, allow_private=True).get(api.url("/x")))
            assert TOKEN in api.heads[0]
            assert TOKEN not in api.heads[1] + stranger.heads[0]


class TestGuard:
    @pytest.mark.parametrize(
        "url",
        [
            "http://93.184.216.34/x",
            "https://127.0.0.1/x",
            "https://169.254.169.254/latest/meta-data",
            "https://[::1]/x",
            "https://10.0.0.1/x",
            "https://2130706433/x",
            "https://user:word@host.example/x",
            "file:///etc/passwd",
            "https://host\\@evil.example/x",
            "https:///x",
            "https://host example/x",
            "https://host.example\n/x",
        ],
    )
    def test_what_is_not_https_at_a_public_address_is_refused_before_a_connection(self, url, monkeypatch):
        monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: pytest.fail("connected"))
        with pytest.raises(RefusedUrl):
            Client({"https://huggingface.co": TOKEN}).get(url)

    def test_an_operators_endpoint_may_be_private_but_what_it_redirects_to_may_not(self):
        with RawServer(body(b"inside")) as inside, RawServer(redirect(inside.url())) as mirror:
            with pytest.raises(RefusedUrl, match="https"):
                Client({mirror.url(""): None}).get(mirror.url())
            assert inside.connections == 0
            assert read(Client({mirror.url(""): None, inside.url(""): None}).get(mirror.url())) == b"inside"

    def test_a_redirect_without_an_end_is_left(self):
        with RawServer(redirect("/again")) as server, pytest.raises(RefusedUrl, match="more than"):
            Client(allow_private=True).get(server.url())
        assert server.connections == 6

    @pytest.mark.parametrize("answer", [lambda connection, path: None, body(b"abc", length=9)], ids=["mute", "cut"])
    def test_a_broken_connection_is_told_without_an_address(self, answer):
        with RawServer(answer) as server, pytest.raises(ConnectionError) as caught:
            read(Client({server.url(""): TOKEN}).get(server.url()))
        told = f"{caught.value!r} {caught.value.__cause__!r}"
        assert "127.0.0.1" not in told
        assert TOKEN not in told

    def test_a_server_that_is_not_there_and_a_name_that_nobody_has(self):
        with socket.socket() as deaf:
            deaf.bind(("127.0.0.1", 0))
            for url in (f"http://127.0.0.1:{deaf.getsockname()[1]}/x", "http://nobody.invalid/x"):
                with pytest.raises(ConnectionError, match="cannot be reached"):
                    Client(allow_private=True).get(url)


class TestTime:
    @pytest.mark.parametrize(
        "answer",
        [
            trickle(b"HTTP/1.1 200 OK\r\nX: "),
            trickle(b"", b"H"),
            trickle(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
            silence(),
        ],
        ids=["headers", "status", "chunk size", "silence"],
    )
    def test_an_answer_that_never_comes_is_left_in_time(self, answer):
        with RawServer(answer) as server:
            with pytest.raises(TimeoutError):
                read(Client(allow_private=True).get(server.url(), timeout_s=0.4))
            assert server.answered == 0

    def test_a_trickling_body_is_handed_over_as_it_comes(self):
        with RawServer(trickle(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")) as server:
            with Client(allow_private=True).get(server.url()) as response:
                assert response.read() == b"x"
                assert response.read() == b"x"
            assert server.answered == 0
            with pytest.raises(TimeoutError):
                read(Client(allow_private=True).get(server.url(), timeout_s=0.4))

    def test_a_name_server_that_does_not_answer_is_left_in_time(self, monkeypatch):
        answer = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer.wait(LIMIT_S) and [])
        with pytest.raises(TimeoutError):
            Client().get("https://images.example/x", timeout_s=0.2)
        assert not answer.is_set()
        answer.set()

    @pytest.mark.parametrize("coding", ["gzip", "br", "identity, GZIP", "zstd"])
    def test_a_body_that_is_compressed_unasked_is_not_read(self, coding):
        answer = body(gzip.compress(bytes(10_000)), f"Content-Encoding: {coding}")
        with RawServer(answer) as server, Client(allow_private=True).get(server.url()) as response:
            assert response.status == 200
            for read_it in (response.read, lambda: response.read_all(10_000)):
                with pytest.raises(RefusedUrl, match="compressed"):
                    read_it()

    def test_a_body_longer_than_the_limit_is_left(self):
        endless = trickle(b"HTTP/1.1 200 OK\r\n\r\n", b"x" * 65_536, pause=0)
        with RawServer(endless) as server, pytest.raises(ValueError, match="over"):
            read(Client(allow_private=True).get(server.url()))


class TestTls:
    @pytest.fixture
    def serve(self, monkeypatch, certificate):
        """A server called images.example, taken for a public one."""
        monkeypatch.setattr(guard, "is_public", lambda address: ipaddress.ip_address(address).is_loopback)
        names(monkeypatch, {"images.example": ["127.0.0.1"]})
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        return lambda answer: RawServer(answer, context)

    def test_a_token_goes_over_https_and_not_on_to_the_next_host(self, monkeypatch, serve, certificate):
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
        with serve(body(b"here")) as storage:
            there = f"https://images.example:{storage.port}/signed"
            with serve(redirect(there)) as api:
                here = f"https://images.example:{api.port}"
                assert read(Client({here: TOKEN}).get(f"{here}/x")) == b"here"
        assert TOKEN in api.heads[0]
        assert TOKEN not in storage.heads[0]

    def test_the_usual_port_is_not_named(self, monkeypatch, serve, certificate):
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
        with serve(body(b"here")) as server:
            real = socket.create_connection
            monkeypatch.setattr(socket, "create_connection", lambda at, left: real((at[0], server.port), left))
            assert read(Client().get("https://images.example/x")) == b"here"
        assert "\r\nhost: images.example\r\n" in server.heads[0].lower()

    def test_a_body_that_stops_is_left_in_time(self, monkeypatch, serve, certificate):
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)

        with serve(silence(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc")) as server:
            response = Client().get(f"https://images.example:{server.port}/x", timeout_s=1)
            assert response.read() == b"abc"
            with pytest.raises(TimeoutError, match="stopped sending"):
                response.read()
            response.close()

    def test_a_certificate_that_nobody_vouches_for_is_told_and_nothing_is_sent(self, serve):
        with serve(body(b"x")) as server, pytest.raises(ConnectionError, match="certificate") as caught:
            Client({f"https://images.example:{server.port}": TOKEN}).get(f"https://images.example:{server.port}/x")
        assert server.heads == []
        assert "images.example" not in str(caught.value)


def test_a_space_in_a_redirect_is_encoded():
    assert (
        join_url("https://a.example/x", "/a file.safetensors?n=a b") == "https://a.example/a%20file.safetensors?n=a%20b"
    )
