"""A server whose engine only pretends."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fakes.web_worker import WebWorker


@pytest.fixture
def served(tmp_path: Path) -> Iterator[WebWorker]:
    with WebWorker(tmp_path) as worker:
        yield worker
