"""The four users of the guarded client side by side: nothing that one of them opens gets further than another's."""

import ipaddress
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable

import pytest

from tests.net.servers import RawServer, body, names, redirect, silence, trickle
from tests.waiting import LIMIT_S, until
from worker.catalog.formats.headers import header_end, parse_header, read_header
from worker.core.errors import SourceUnavailable, WorkerError
from worker.net import bucket, guard, webhook
from worker.net.bucket import Bucket, BucketConfig, BucketSender
from worker.net.client import Client
from worker.net.fetch import ImageFetcher
from worker.net.webhook import WebhookSender
from worker.store import remote_header
from worker.store.remote_header import HeaderReader, read_remote_header
from worker.store.transfer import RemoteFile

DEADLINE_S = LIMIT_S
HASTY_S = 0.3

# What a user says of opening a URL: the sentence of its failure, or "" when all went well.
User = Callable[[str, bool], str]


def image(url: str, allow_private: bool) -> str:
    ImageFetcher(allow_private=allow_private, deadline_s=DEADLINE_S)(url, 2**20)
    return ""


def model(url: str, allow_private: bool) -> str:
    file = RemoteFile("model.safetensors", url)
    reader = HeaderReader(header_end, parse_header, read_header)
    client = Client(allow_private=allow_private)
    read_remote_header(client, file, reader, lambda _, status, __: SourceUnavailable(f"answered {status}"))
    return ""


def results(url: str, allow_private: bool) -> str:
    config = BucketConfig(url, "images", "access", "secret", url_expires_s=600)
    Bucket(config, BucketSender(allow_private=allow_private)).put("a.png", b"x", "image/png")
    return ""


def call(url: str, allow_private: bool) -> str:
    return WebhookSender(allow_private=allow_private).post(url, "job", b"{}") or ""


USERS: dict[str, User] = {"images": image, "models": model, "buckets": results, "webhooks": call}
FOLLOWS = {"images", "models"}


def limit_to(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    monkeypatch.setattr(f"{__name__}.DEADLINE_S", seconds)
    monkeypatch.setattr(bucket, "_TIMEOUT_S", seconds)
    monkeypatch.setattr(webhook, "DEADLINE_S", seconds)
    monkeypatch.setattr(remote_header, "DEADLINE_S", seconds)


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let none of the four wait for long."""
    limit_to(monkeypatch, HASTY_S)


@pytest.fixture(params=USERS)
def user(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> User:
    """One of the four; answers the sentence that it fails with."""
    limit_to(monkeypatch, DEADLINE_S)
    monkeypatch.setattr(remote_header, "_BACKOFF_S", 0)

    def opened(url: str, allow_private: bool = False) -> str:
        try:
            return USERS[request.param](url, allow_private)
        except WorkerError as error:
            return error.message

    opened.name = request.param
    return opened


@pytest.fixture
def serve(monkeypatch, certificate):
    """A server called images.example, whose address 127.0.0.1 is taken for the only public one."""
    monkeypatch.setattr(guard, "is_public", lambda address: ipaddress.ip_address(address).is_loopback)
    trusting = ssl.create_default_context(cafile=str(certificate))
    monkeypatch.setattr(ssl, "create_default_context", lambda: trusting)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return lambda answer: RawServer(answer, context)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "169.254.169.254", "10.0.0.1", "[::1]", "[::ffff:10.0.0.1]", "2130706433", "localhost"]
)
def test_a_private_address_is_never_connected_to(user, host, monkeypatch):
    monkeypatch.setattr(socket, "create_connection", lambda *args, **kwargs: pytest.fail("connected"))
    words = user(f"https://{host}/x")
    assert "its host is not a public one" in words
    assert host not in words


def test_a_name_without_an_address_is_told_without_it(user):
    words = {
        "images": "its host cannot be found",
        "models": "its server cannot be reached",
        "buckets": "refused the upload; check",
        "webhooks": "it could not be reached in time",
    }
    for host in ("nobody.invalid", "n" * 64 + ".invalid"):
        assert words[user.name] in user(f"https://{host}/x")
        assert "nobody" not in user(f"https://{host}/x")


def test_http_is_not_spoken(user):
    with RawServer(body(b"x")) as server:
        assert "only https" in user(server.url())
    assert server.connections == 0


def test_a_name_is_looked_up_once_and_its_checked_address_is_connected_to(user, serve, monkeypatch):
    with serve(body(b"x")) as server:
        asked = names(monkeypatch, {"images.example": ["127.0.0.1"]})
        user(f"https://images.example:{server.port}/x")
    assert server.heads
    assert all(f"\r\nhost: images.example:{server.port}\r\n" in head.lower() for head in server.heads)
    assert len(asked) == server.connections


def test_a_name_that_means_a_private_address_the_second_time_gains_nothing(user, monkeypatch):
    answers, connected = iter(["93.184.216.34"]), []

    def lookup(host, port, *args, **kwargs):
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (next(answers, "127.0.0.1"), port))]

    def connect(address, timeout):
        connected.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket, "create_connection", connect)
    words = user("https://images.example/x")
    assert connected == ["93.184.216.34"]
    assert words
    assert "93.184" not in words


@pytest.mark.parametrize("location", ["https://10.0.0.1/x", "http://127.0.0.1:{port}/x", "file:///etc/passwd"])
def test_a_redirect_inwards_is_not_followed(user, serve, location, monkeypatch):
    names(monkeypatch, {"images.example": ["127.0.0.1"]})
    with RawServer(body(b"inside")) as inside, serve(redirect(location.format(port=inside.port))) as server:
        connected, real = [], socket.create_connection
        monkeypatch.setattr(socket, "create_connection", lambda *args: connected.append(args[0]) or real(*args))
        words = user(f"https://images.example:{server.port}/x")
    assert set(connected) == {("127.0.0.1", server.port)}
    assert words
    if user.name in FOLLOWS:
        assert "not a public one" in words or "only https" in words


@pytest.mark.quick_rows(5)
@pytest.mark.parametrize(
    "answer",
    [trickle(b"HTTP/1.1 200 OK\r\nX: ", pause=0.02), trickle(b"", b"H", pause=0.02), silence()],
    ids=["headers", "status", "silence"],
)
def test_an_answer_that_trickles_is_left_at_the_deadline(user, hasty, answer):
    with RawServer(answer) as server:
        words = user(server.url(), allow_private=True)
        assert server.answered == 0
    assert words
    assert "127.0.0.1" not in words


def test_a_handshake_that_trickles_is_left_at_the_deadline(user, hasty, serve, monkeypatch):
    names(monkeypatch, {"images.example": ["127.0.0.1"]})
    # a record of 16 kB is announced and then sent byte by byte
    with RawServer(trickle(b"\x16\x03\x03\x40\x00\x02\x00\x3f\xfc", b"\x03", pause=0.02)) as server:
        assert until(
            lambda: (words := user(f"https://images.example:{server.port}/x")) and server.connections and words
        )
        assert server.answered == 0


def test_a_name_server_that_does_not_answer_is_left_at_the_deadline(user, hasty, monkeypatch):
    shut_down, answered = threading.Event(), []

    def lookup(*args, **kwargs):
        shut_down.wait(LIMIT_S)
        answered.append(True)
        raise socket.gaierror

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    assert user("https://images.example/x")
    assert answered == []
    shut_down.set()


def test_a_body_without_an_end_is_left(user, hasty):
    sent = []

    def endless(connection, path):
        connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(4_000):
            sent.append(connection.send(b"x" * 65_536))

    with RawServer(endless) as server:
        words = user(server.url(), allow_private=True)
    assert words or user.name == "webhooks", "whose answer's body nobody reads"
    assert sum(sent) < 100_000_000, "far from all of it"


def test_a_process_that_opens_no_url_does_not_wait_for_the_libraries():
    code = (
        "import sys; from worker.net import bucket, client, fetch, webhook;"
        "client.Client({'https://huggingface.co': None}); fetch.ImageFetcher(); webhook.WebhookSender();"
        "print(sorted({'requests', 'urllib3', 'boto3'} & sys.modules.keys()))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
