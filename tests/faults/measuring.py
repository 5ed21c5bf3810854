"""Work in a process of its own, whose memory is its own too."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).resolve().parents[2]
_CHILD = """
import importlib, json, sys, tracemalloc
from pathlib import Path
from tests.faults.measuring import peak_mb, resident_mb
module, _, name = sys.argv[1].partition(":")
work = getattr(importlib.import_module(module), name)
work(*sys.argv[2:3])  # once, for what it imports and remembers
traces = sys.argv[3] == "traced"
for argument in sys.argv[4:]:
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = resident_mb()
    result = {"outcome": work(argument), "peak": peak_mb() - before, "kept": resident_mb() - before}
    if traces:
        tracemalloc.start()
        work(argument)
        kept, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        result |= {"allocated": most / 2**20, "allocated and kept": kept / 2**20}
    print(json.dumps(result), flush=True)
"""


def measured(
    work: str, warm_up: str, arguments: Sequence[str], timeout_s: float = 280, *, traces: bool = False
) -> list[dict[str, Any]]:
    """Call `work`, "module:function", with each argument, and return its outcomes, and the MB it took and kept.

    What a process takes is of the moment. With `traces` the work is done again and all that Python allocates counted,
    the same on every machine.
    """
    command = [sys.executable, "-c", _CHILD, work, warm_up, "traced" if traces else "", *arguments]
    child = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=timeout_s, check=False)
    assert child.returncode == 0, child.stderr[-2_000:]
    return [json.loads(line) for line in child.stdout.splitlines()]


def resident_mb() -> float:
    """Return the memory of this process that is in use now."""
    return _status("VmRSS")


def peak_mb() -> float:
    """Return the most memory that this process ever had in use."""
    return _status("VmHWM")


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) / 1024
