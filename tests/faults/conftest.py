"""The figures of the fault table, gathered from every process that runs tests."""

import json
import os
import platform
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from tests.faults.table import REPORT, ROWS, Figure, Figures


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Figures:
    """Say what was measured: `figures("F24", "answer after the deadline", 0.4, "s", at_most=2, momentary=True)`."""
    return Figures(request.node.user_properties)


def _reported(reporter: Any) -> Iterator[Figure]:
    for reports in reporter.stats.values():
        for report in reports:
            if getattr(report, "when", "") == "call":
                yield from (Figure(**value) for name, value in report.user_properties if name == REPORT)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the table and write it, for `make faults`."""
    if REPORT not in os.environ:
        return
    measured = sorted(_reported(terminalreporter), key=lambda figure: (int(figure.row[1:]), figure.what))
    for row, title in ROWS.items():
        terminalreporter.write_line(f"{row:<4}{title}")
        for figure in (figure for figure in measured if figure.row == row):
            mark = " " if figure.inside else "!"
            terminalreporter.write_line(
                f"  {mark} {figure.what:<72} {figure.value:>10.4g} {figure.unit:<6} {figure.bar}"
            )
        if not any(figure.row == row for figure in measured):
            terminalreporter.write_line("  ! nothing was measured")
    path = Path(os.environ[REPORT])
    path.parent.mkdir(parents=True, exist_ok=True)
    report = {
        "machine": {"cores": os.cpu_count(), "python": platform.python_version(), "system": platform.platform()},
        "rows": ROWS,
        "figures": [asdict(figure) | {"inside": figure.inside} for figure in measured],
    }
    path.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    terminalreporter.write_line(f"written to {path}")
