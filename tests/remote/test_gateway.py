"""A gateway before workers with fake engines, on real ports: what callers see, and what the workers are asked."""

import pytest

from tests.fakes.web_worker import WebGateway, WebWorker

APPLE = {"prompt": "an apple", "width": 64, "height": 64}


@pytest.fixture
def worker(tmp_path):
    with WebWorker(tmp_path / "worker") as served:
        yield served


@pytest.fixture
def gateway(tmp_path, worker):
    with WebGateway(tmp_path / "gateway", {"one": {"url": worker.origin}}) as served:
        yield served


def test_an_image_comes_through_as_it_was_encoded_with_the_place_where_it_was_made(gateway, worker):
    sent = APPLE | {"seed": 7}
    through = gateway.http.post("/runsync", json={"input": sent}).json()
    direct = worker.http.post("/runsync", json={"input": sent}).json()
    assert through["output"]["image"] == direct["output"]["image"]
    placement = through["output"]["placement"]
    assert placement["replica"] == "one"
    assert "tiny" in placement["reason"]
