"""What the framework builds of the routes, it builds with the application, and for one of them at a time."""

import sys
import threading
import warnings
from collections import Counter

from starlette.testclient import TestClient

from tests.fakes.engine import make_context
from worker.app.server import build_app
from worker.transport.web.openapi import BUILDING


def test_the_first_requests_build_nothing(tmp_path, monkeypatch):
    """The framework sets warnings aside for it, and two applications at once would put them back in a wrong order."""
    app = build_app(make_context(tmp_path).worker)
    aside, enter = Counter(), warnings.catch_warnings.__enter__

    def counted(catching):
        aside[sys._getframe(1).f_globals["__name__"].partition(".")[0]] += 1
        return enter(catching)

    monkeypatch.setattr(warnings.catch_warnings, "__enter__", counted)
    client = TestClient(app)
    for path in ("/ping", "/models", "/v1/models", "/sdapi/v1/options", "/nowhere"):
        assert client.get(path).status_code in (200, 204, 404, 503)
    assert aside["fastapi"] == 0


def test_one_application_is_described_at_a_time(tmp_path):
    apps = [build_app(make_context(tmp_path / name).worker) for name in ("one", "other")]
    documents = []
    threads = [threading.Thread(target=lambda app=app: documents.append(app.openapi())) for app in apps]
    with BUILDING:
        for thread in threads:
            thread.start()
        threads[0].join(0.2)
        assert documents == []
    for thread in threads:
        thread.join(60)
    assert len(documents) == 2
    assert documents[0]["paths"] == documents[1]["paths"]
