"""Which rows of a long table `make test` runs: a few of each test, and all are run by one of the two."""

import pytest

from tests.conftest import pytest_collection_modifyitems


class Item:
    def __init__(self, nodeid: str, *marks: pytest.MarkDecorator) -> None:
        self.nodeid, self._marks = nodeid, {mark.name: mark.mark for mark in marks}

    def get_closest_marker(self, name: str) -> pytest.Mark | None:
        return self._marks.get(name)

    def add_marker(self, mark: pytest.MarkDecorator) -> None:
        self._marks[mark.name] = mark.mark


def test_some_rows_of_each_table_stay_and_no_other_test_is_touched() -> None:
    quick, slow = pytest.mark.quick_rows(3), pytest.mark.slow
    rows = [Item(f"a.py::test_rows[{number}]", quick, *([slow] if number == 0 else [])) for number in range(10)]
    short = [Item(f"a.py::test_few[{number}]", quick) for number in range(2)]
    plain = [Item("a.py::test_plain"), Item("a.py::test_long", slow)]
    pytest_collection_modifyitems([*rows, *short, *plain])
    left = [item.nodeid for item in (*rows, *short, *plain) if not item.get_closest_marker("slow")]
    assert left == [
        *(f"a.py::test_rows[{number}]" for number in (1, 4, 7)),
        *(f"a.py::test_few[{number}]" for number in (0, 1)),
        "a.py::test_plain",
    ]
