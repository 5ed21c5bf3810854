"""What holds for the whole zoo."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let libraries warn in the sweeps over all classes: each class has warnings of its own, and none is ours."""
    for item in items:
        if item.get_closest_marker("zoo"):
            item.add_marker(pytest.mark.filterwarnings("default"))
