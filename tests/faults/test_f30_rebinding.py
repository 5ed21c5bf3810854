"""F30: a web page gives its own name the address of its reader's worker, which answers to its names only."""

import socket
from contextlib import suppress

import httpx
import pytest
from websockets.exceptions import InvalidStatus

from tests.fakes.web_worker import WebWorker
from tests.waiting import connect
from worker.transport.web.host_names import HostNames

EVIL = {"Host": "evil.example", "Origin": "http://evil.example"}
KEY = "anna's own secret key"
# How the doors of other protocols write a refusal.
SENTENCES = (
    lambda body: body["detail"],  # of /edit, A1111's and Replicate's
    lambda body: body["error"]["message"],  # OpenAI's
    lambda body: body["error"],
)


def sentence_of(body):
    for sentence in SENTENCES:
        with suppress(KeyError, TypeError):
            return sentence(body)
    raise AssertionError(body)


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    with WebWorker(tmp_path_factory.mktemp("rebinding"), public_url="https://images.example.com/x") as worker:
        yield worker


def test_every_door_refuses_a_page_whose_name_was_rebound(served, figures):
    document = served.http.get("/openapi.json").json()
    doors = [(path, method) for path, methods in document["paths"].items() for method in methods if path != "/ping"]
    doors += [(path, "get") for path in ("/openapi.json", "/docs", "/favicon.ico", "/ui/docs.js")]
    let_in = []
    for path, method in doors:
        filled = path.replace("{id}", "x").replace("{endpoint}", "x").replace("{model}", "tiny")
        answer = served.http.request(method, filled, headers=EVIL, json={"prompt": "x"} if method == "post" else None)
        if answer.status_code != (400 if path == "/edit" else 403):
            let_in.append((method, path, answer.status_code))
        elif "API_HOSTNAMES" not in sentence_of(answer.json()):
            let_in.append((method, path, answer.text))
    assert len(doors) > 25
    assert served.context.builder.built == 0
    figures("F30", f"of {len(doors)} doors open to a rebound name", len(let_in), "", at_most=0)


def test_a_websocket_of_such_a_page_is_refused(served):
    with socket.create_connection(("127.0.0.1", served.port)) as link, pytest.raises(InvalidStatus) as refused:
        connect("ws://evil.example/ws", sock=link, origin="http://evil.example")
    assert refused.value.response.status_code == 403


def test_a_load_balancer_may_ask_for_health_by_any_name(served):
    assert served.http.get("/ping", headers={"Host": "balancer.example"}).status_code in (200, 204)
    assert served.http.get("/x/ping", headers={"Host": "balancer.example"}).status_code in (200, 204)


USUAL = [
    *("127.0.0.1", "127.0.0.1:8000", "10.0.0.5:8000", "[::1]", "[fd00::5]:8000", "localhost", "LOCALHOST:8000"),
    *("a.localhost", "worker", "worker:8000", "image_worker", "worker.images.svc"),
    *("worker.images.svc.cluster.local:8000", "host.docker.internal:8000", "studio.local", "nas.lan"),
    *("gpu.home.arpa", "localhost."),
    *("abc123-8000.proxy.runpod.net", "abc123.api.runpod.ai", "images.example.com", "images.example.com:443"),
    *(socket.gethostname(), ""),
]  # fmt: skip


@pytest.mark.parametrize("host", USUAL)
def test_usual_deployments_go_on_working(served, host):
    assert served.http.get("/health", headers={"Host": host}).status_code == 200
    answer = served.http.post("/run", json={"prompt": "x"}, headers={"Host": host, "Origin": f"http://{host}"})
    assert answer.status_code == 200 or not host


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "evil.example:8000", "1.2.3", "0x7f.1"),
        *("evil.localhost.example", "proxy.runpod.net.evil.example", "xproxy.runpod.net"),
        *("[::1].evil.example", "a@localhost", "runpod.ai", "local.example", "évil.example", "localhost, evil.example"),
        "images.example.com.evil.example",
    ],
)  # fmt: skip
def test_no_name_that_a_stranger_can_own_is_taken(served, host):
    answer = served.http.get("/health", headers={"Host": host.encode("utf-8")})
    assert (answer.status_code, answer.json()["field"]) == (403, "Host")


def test_of_two_names_both_have_to_be_known(served):
    with socket.create_connection(("127.0.0.1", served.port), timeout=20) as link:
        link.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
        assert link.recv(4_096).startswith(b"HTTP/1.1 403")


def test_the_operator_names_further_ones(tmp_path):
    with WebWorker(tmp_path, api_hostnames="a.example, *.b.example") as served:
        status = {
            host: served.http.get("/health", headers={"Host": host}).status_code
            for host in ("A.example:80", "x.b.example", "x.y.b.example", "b.example", "xa.example", "c.example")
        }
    assert list(status.values()) == [200, 200, 200, 403, 403, 403]


def test_with_keys_no_name_is_asked_for(tmp_path):
    with WebWorker(tmp_path, api_keys=KEY) as served:
        assert served.http.get("/health", headers=EVIL).status_code == 200
        headers = {"Host": "any.example", "Authorization": f"Bearer {KEY}"}
        assert served.http.post("/run", json={"prompt": "x"}, headers=headers).status_code == 200


def test_a_star_takes_any(tmp_path):
    with WebWorker(tmp_path, api_hostnames="*") as served:
        assert httpx.get(f"{served.origin}/health", headers={"Host": "evil.example"}).status_code == 200


def test_names_are_compared_as_browsers_write_them():
    names = HostNames(["Images.Example.com."])
    assert names._has("images.example.com")
    assert names._has("IMAGES.example.com.:8000")
    assert not names._has("images.example.comm")
