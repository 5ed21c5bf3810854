"""RunPod's SDK, imported in half of its time."""

import platform
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from worker.core import moments
from worker.core.unsearched import unsearched


def import_sdk() -> ModuleType:
    """Import `runpod`."""
    with _stood_in(), unsearched():
        import runpod
    moments.note("import of the SDK")
    sdk: ModuleType = runpod
    return sdk


@contextmanager
def _stood_in() -> Iterator[None]:
    """Stand in for two packages that no worker needs.

    py-cpuinfo is asked one question, for which it asks a dozen programs, for more than a second. paramiko is for the
    SDK's commands over SSH, and brings cryptography along.
    """
    cpuinfo, paramiko = ModuleType("cpuinfo"), ModuleType("paramiko")
    cpuinfo.__dict__["get_cpu_info"] = lambda: {"brand_raw": _processor()}
    stand_ins = {module.__name__: module for module in (cpuinfo, paramiko) if module.__name__ not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        for name in stand_ins:
            sys.modules.pop(name, None)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())
