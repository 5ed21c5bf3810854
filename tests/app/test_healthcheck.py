"""The container's health check asks the server whether it is ready or on its way."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from worker.app import healthcheck
from worker.app.settings import Settings


@pytest.fixture
def answering():
    """A server that answers /ping with the status it is given, else 404."""

    class Ping(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self):
            self.send_response(Ping.status if self.path == "/ping" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Ping)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield server, Ping
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(("status", "code"), [(200, 0), (204, 0), (503, 1), (404, 1)])
def test_a_server_that_is_ready_or_starting_is_healthy(answering, monkeypatch, status, code):
    server, ping = answering
    ping.status = status
    monkeypatch.setenv("STANDALONE_MODE", "1")
    monkeypatch.setenv("API_PORT", str(server.server_port))
    assert healthcheck.main() == code


def test_a_server_that_is_gone_is_not_healthy(answering, monkeypatch):
    server, _ = answering
    port = server.server_port
    server.shutdown()
    server.server_close()
    monkeypatch.setenv("STANDALONE_MODE", "1")
    monkeypatch.setenv("API_PORT", str(port))
    assert healthcheck.main() == 1


def test_a_worker_of_the_queue_has_nothing_to_ask():
    assert healthcheck.address(Settings()) is None
    assert healthcheck.main() == 0


def test_the_address_is_the_one_that_the_platform_or_the_operator_chose():
    assert healthcheck.address(Settings(standalone_mode=True)) == "http://127.0.0.1:8000/ping"
    assert healthcheck.address(Settings(standalone_mode=True, port=9000)) == "http://127.0.0.1:9000/ping"
    assert healthcheck.address(Settings(standalone_mode=True, api_host="10.0.0.5")) == "http://10.0.0.5:8000/ping"


def test_a_gateway_is_asked_like_a_worker_that_serves():
    assert healthcheck.address(Settings(gateway_mode=True)) == "http://127.0.0.1:8000/ping"
