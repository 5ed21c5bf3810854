"""A worker whose engine only pretends, and whose models weigh nothing."""

from pathlib import Path

import pytest

from tests.fakes.engine import ServerContext, make_context


@pytest.fixture
def context(tmp_path: Path) -> ServerContext:
    return make_context(tmp_path)
