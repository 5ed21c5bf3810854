"""The doors for other programs' clients are small, and reach jobs, models and files through `service` alone."""

import ast
from pathlib import Path

import pytest

WEB = Path(__file__).parents[2] / "worker/transport/web"
DOORS = [*sorted(WEB.glob("a1111*.py")), *sorted(WEB.glob("replicate*.py"))]
READERS = sorted((Path(__file__).parents[2] / "worker/wire/foreign").glob("*.py"))
MOST_LINES = 300
# Below `service`: the words of the house and of its JSON, names of samplers, and base64 and pixels of what was sent.
# None of these knows a job, a model's files or a device.
BELOW = {
    "worker.catalog.interface.values", "worker.catalog.samplers", "worker.catalog.schedulers",
    "worker.media", "worker.media.decoding", "worker.media.images", "worker.media.retouching",
}  # fmt: skip


def imported(path: Path) -> set[str]:
    """Return the modules that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize("path", [*DOORS, *READERS], ids=lambda path: path.name)
def test_a_door_is_a_file_that_is_read_at_once(path):
    assert len(path.read_text().splitlines()) <= MOST_LINES


@pytest.mark.parametrize("path", DOORS, ids=lambda path: path.name)
def test_a_door_reaches_nothing_below_service_that_knows_jobs_models_or_devices(path):
    above = ("worker.core", "worker.wire", "worker.service", "worker.transport")
    own = {name for name in imported(path) if name.partition(".")[0] == "worker"}
    assert own
    assert {name for name in own if not name.startswith(above)} <= BELOW
