"""Which process a request is for, and how its head goes on."""

import pytest

from worker.transport.processes.head import BadHead, parse_head


def head(first, *lines, prefix=""):
    return parse_head("\r\n".join([first, *lines, "", ""]).encode("latin-1"), prefix)


@pytest.mark.parametrize(
    ("target", "process"),
    [
        ("/v2/mine/status/3b1f-u2", 2),
        ("/v2/mine/stream/sync-3b1f-u12?x=1", 12),
        ("/v2/mine/cancel/3b1f-u1", 1),
        ("/v2/mine/retry/3b1f-u3", 3),
        ("/events/ws-3b1f-u2?token=a.b", 2),
        ("/v1/images/img-3b1f-u2/content", 2),
        ("http://host:1/v2/mine/status/3b1f-u2", 2),
        ("/v2/mine-u2/run", None),
        ("/v2/mine-u2/status/3b1f", None),
        ("/run", None),
        ("/v1/images/generations", None),
    ],
)
def test_the_address_of_a_job_names_its_process(target, process):
    assert head(f"GET {target} HTTP/1.1").process == process


def test_below_a_proxys_prefix_too():
    assert head("GET /worker/v2/x/status/a-u2 HTTP/1.1", prefix="/worker").process == 2
    assert head("GET /worker/metrics HTTP/1.1", prefix="/worker").is_of_all


def test_health_metrics_and_the_queue_are_of_all_processes():
    of_all = ("GET /health", "HEAD /ping", "GET /ready", "GET /metrics?x", "GET /v2/x/health", "POST /v2/x/purge-queue")
    assert all(head(f"{first} HTTP/1.1").is_of_all for first in (*of_all, "GET /jobs?all=true"))
    assert not any(head(f"{first} HTTP/1.1").is_of_all for first in ("GET /models", "POST /health", "POST /run"))


def test_a_connection_carries_one_request_unless_it_becomes_a_websocket():
    ordinary = head("POST /run HTTP/1.1", "Host: a", "Connection: keep-alive", "Content-Length: 3")
    origin = "X-Forwarded-For: 1.2.3.4"
    goes_on = f"POST /run HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n{origin}\r\nConnection: close\r\n\r\n"
    assert ordinary.forwarded("1.2.3.4") == goes_on.encode()
    socket = ("GET /ws HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket")
    assert head(*socket).forwarded("1.2.3.4") == ("\r\n".join([*socket, origin]) + "\r\n\r\n").encode()
    assert head("HEAD /health HTTP/1.1", "Host: a").asked_of_all().startswith(b"GET /health HTTP/1.1\r\nHost: a\r\n")


@pytest.mark.parametrize(
    "data",
    [
        *(
            b"\r\n\r\n",
            b"GET /\r\n\r\n",
            b"GET / HTTP/2\r\n\r\n",
            b"G\0T / HTTP/1.1\r\n\r\n",
            b"GET x HTTP/1.1\r\n\r\n",
        ),
        *(b"GET / HTTP/1.1\r\nnonsense\r\n\r\n", b"GET / HTTP/1.1\r\nA: b\r\n folded\r\n\r\n"),
    ],
)
def test_what_is_no_request_goes_no_further(data):
    with pytest.raises(BadHead):
        parse_head(data)
