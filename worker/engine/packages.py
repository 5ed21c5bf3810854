"""Packages that are imported with care: those that would fetch code and run it as they are imported."""

import sys
from typing import Any


def bitsandbytes_package() -> Any:
    """Return bitsandbytes, imported without `kernels`: on some CPUs it would fetch a kernel from the Hub by that."""
    if "bitsandbytes" not in sys.modules:
        known = sys.modules.get("kernels")
        sys.modules["kernels"] = None  # type: ignore[assignment]  # what the import system takes for absent
        try:
            import bitsandbytes
        finally:
            if known is None:
                del sys.modules["kernels"]
            else:
                sys.modules["kernels"] = known
    import bitsandbytes

    return bitsandbytes
