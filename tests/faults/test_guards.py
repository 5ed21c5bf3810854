"""The rows of guards that `make mutations` takes out fit the source and the tests of today."""

import pytest

from tests.conftest import PROJECT
from tests.faults.guards import GUARDS
from tests.faults.mutations import without
from tests.faults.table import ROWS


@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.name)
def test_a_guard_stands_where_its_row_says(guard):
    compile(without(guard, PROJECT), guard.file, "exec")
    assert guard.row in ROWS
    assert guard.tests
    for name in guard.tests:
        assert (PROJECT / name.split("::")[0]).exists(), name


def test_no_guard_has_two_names():
    assert len({guard.name for guard in GUARDS}) == len(GUARDS)
    assert len({(guard.file, guard.stands) for guard in GUARDS}) == len(GUARDS)
