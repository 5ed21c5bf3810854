"""What the machine itself says of its memory and devices, without torch."""

import sys
from pathlib import Path

from worker.core.device import DeviceInfo

# The devices of NVIDIA's driver, of AMD's, and of Windows' below Linux.
_DRIVERS = ("/dev/nvidiactl", "/proc/driver/nvidia", "/dev/kfd", "/dev/dxg")

# Where version 2 and version 1 of Linux's control groups say a limit, what is used, and what of it is file cache.
_CGROUPS = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    (
        "memory/memory.limit_in_bytes",
        "memory/memory.usage_in_bytes",
        "memory/memory.stat",
        "total_inactive_file",
    ),
)


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
    total, free = values["MemTotal"], values["MemAvailable"]
    limit, used = _container()
    return min(total, limit), max(0, min(free, limit - used))


def _container(root: Path = Path("/sys/fs/cgroup")) -> tuple[int, int]:
    """Return the bytes of memory that this container may have, and those it uses, its file cache left out."""
    for names in _CGROUPS:
        try:
            limit, used = (int((root / name).read_text()) for name in names[:2])
            rows = dict(line.split() for line in (root / names[2]).read_text().splitlines())
            return limit, used - int(rows[names[3]])
        except (OSError, ValueError, KeyError):  # no limit ("max"), or the other version, or another system
            continue
    return sys.maxsize, 0
