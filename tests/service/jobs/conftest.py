"""A bucket of one's own."""

import pytest

from tests.fakes.bucket import FakeBucket


@pytest.fixture
def bucket():
    with FakeBucket() as server:
        yield server
