"""The mock server as a command of its own: faults on demand, and what it says of itself."""

import subprocess
import sys

import httpx
import pytest

from image_client.mock_server import MockServer
from tests.conftest import PROJECT


def test_it_is_a_command_that_takes_faults_while_it_runs():
    words = [sys.executable, "-m", "image_client.mock_server", "--port", "0", "--faults", "429:2"]
    process = subprocess.Popen(words, cwd=PROJECT, stdout=subprocess.PIPE, text=True)
    try:
        url = process.stdout.readline().split("answers at ")[1].split(";")[0]
        with httpx.Client(base_url=url, timeout=60) as http:
            job, key = {"prompt": "a", "width": 16, "height": 16}, {"Idempotency-Key": "one"}
            refused = http.post("/images", json=job, headers=key)
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "2")
            assert http.post("/faults", json=["500"]).json() == {"faults": ["500"]}
            assert http.post("/images", json=job, headers=key).status_code == 500
            first, second = (http.post("/images", json=job, headers=key) for _ in range(2))
            assert first.content == second.content and first.json()["id"] == "mock-one"
            assert http.post("/images", content=b"no JSON").status_code == 400
            assert http.get("/nowhere").status_code == 404
            state = http.get("/state").json()
            assert (state["drawn"], state["asked"]["one"], state["at_work"]) == ({"one": 1}, 4, 0)
    finally:
        process.terminate()
        process.wait(60)
        process.stdout.close()


def test_a_fault_that_is_not_known_is_refused():
    with pytest.raises(ValueError, match="A fault is one of"):
        MockServer(faults=["418"])


def test_a_port_that_is_taken_is_told():
    with MockServer() as server, pytest.raises(OSError, match="in use"), MockServer(port=server.port):
        pass


def test_a_token_may_be_asked_for_and_a_limit_held():
    with MockServer(token="t", concurrency=0) as server, httpx.Client(base_url=server.url, timeout=60) as http:
        assert http.post("/images", json={"prompt": "a"}).status_code == 401
        busy = http.post("/images", json={"prompt": "a"}, headers={"Authorization": "Bearer t"})
        assert (busy.status_code, server.state.over_limit) == (429, 1)
