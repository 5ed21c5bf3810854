"""What the machine itself says of its memory and devices, without torch."""

import sys
from pathlib import Path

from worker.core.device import DeviceInfo

# The devices of NVIDIA's driver, of AMD's, and of Windows' below Linux.
_DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/kfd", "/dev/dxg")


def only_cpu(wanted: str, drivers: tuple[str, ...] = _DRIVERS, platform: str = sys.platform) -> bool:
    """True if `wanted` (DEVICE) can be nothing but the CPU here: torch need not be asked."""
    if wanted == "cpu":
        return True
    return wanted == "auto" and platform == "linux" and not any(Path(path).exists() for path in drivers)


def cpu_info() -> DeviceInfo:
    """Return the memory of the CPU, as of now."""
    total, free = ram()
    return DeviceInfo("cpu", "CPU", total, free)


def ram() -> tuple[int, int]:
    """Return the bytes of memory, and those that can be had now."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 16 * 2**30, 8 * 2**30  # not Linux: assume a laptop
    values = {line.split(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return values["MemTotal"], values["MemAvailable"]
