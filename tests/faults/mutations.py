"""Take each guard out in turn and name the test that turns red: `make mutations`.

A guard that can go without a test noticing is not held by anything. Each row of `guards.py` names one: a text of the
source, what stands there without it, and the tests that must fail then. Every change is made in a copy of the project.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.faults.guard import Guard
from tests.faults.guards import GUARDS
from tests.faults.table import REPORT

PROJECT = Path(__file__).resolve().parents[2]
_LEFT_OUT = shutil.ignore_patterns(".git", ".venv", "outputs", "__pycache__", ".*_cache", ".hypothesis", "*.egg-info")
LIMIT_S = 300


def without(guard: Guard, project: Path) -> str:
    """Return the source of the guard's file without it. Raises ValueError when the row does not fit the source."""
    text = (project / guard.file).read_text(encoding="utf-8")
    if text.count(guard.stands) != 1:
        raise ValueError(f"{guard.name}: {guard.file} has its text {text.count(guard.stands)} times, not once.")
    return text.replace(guard.stands, guard.gone)


def red_tests(guard: Guard, project: Path) -> list[str]:
    """Return the tests that fail in `project`, a copy of the project, while the guard is gone."""
    path = project / guard.file
    whole = path.read_text(encoding="utf-8")
    path.write_text(without(guard, project), encoding="utf-8")
    try:
        command = [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "", *guard.tests]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(project)}
        if guard.momentary:
            environment[REPORT] = str(project / "outputs/faults.json")
        done = subprocess.run(
            command, cwd=project, env=environment, capture_output=True, text=True, timeout=LIMIT_S, check=False
        )
    except subprocess.TimeoutExpired:  # without the guard they wait for ever
        return [f"{guard.tests[0]}: not over after {LIMIT_S} s"]
    finally:
        path.write_text(whole, encoding="utf-8")
    if done.returncode not in (0, 1):
        raise ValueError(f"{guard.name}: its tests did not run.\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED tests/", "ERROR tests/"))]


def main() -> int:
    """Print a line for each guard, and return 1 when one can go unnoticed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "words", nargs="*", help="take out only guards of these rows, or whose name has one of these words"
    )
    words = parser.parse_args().words
    unnoticed = 0
    with tempfile.TemporaryDirectory() as folder:
        project = Path(folder) / "project"
        shutil.copytree(PROJECT, project, ignore=_LEFT_OUT)
        for guard in GUARDS:
            if words and not any(word == guard.row or word in guard.name for word in words):
                continue
            began = time.monotonic()
            red = red_tests(guard, project)
            unnoticed += not red
            shown = red[0] if red else "NO TEST TURNED RED"
            print(f"{guard.row:<4}{guard.name:<60} {time.monotonic() - began:5.1f} s  {shown}", flush=True)
    print(f"{unnoticed} guards can go unnoticed")
    return int(unnoticed > 0)


if __name__ == "__main__":
    sys.exit(main())
