"""A worker whose engine only pretends, and whose models weigh nothing."""

from pathlib import Path

import pytest

from tests.fakes.engine import Desk, make_desk


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return make_desk(tmp_path)
