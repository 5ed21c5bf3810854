"""RunPod's SDK, imported in half of its time."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from worker.app.unsearched import unsearched
from worker.core import moments


def import_sdk() -> ModuleType:
    """Import `runpod`."""
    with _quick_cpuinfo(), unsearched():
        import runpod
    moments.note("import of the SDK")
    sdk: ModuleType = runpod
    return sdk


@contextmanager
def _quick_cpuinfo() -> Iterator[None]:
    """Answer the one question that the SDK has for py-cpuinfo: that asks a dozen programs, for more than a second."""
    quick = ModuleType("cpuinfo")
    quick.__dict__["get_cpu_info"] = lambda: {"brand_raw": _processor()}
    known = sys.modules.get("cpuinfo")
    sys.modules["cpuinfo"] = known or quick
    try:
        yield
    finally:
        if known is None:
            sys.modules.pop("cpuinfo", None)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
