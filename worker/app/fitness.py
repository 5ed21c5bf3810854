"""Fitness checks of this machine: the volume, the device, the models. They import no torch."""

import ctypes
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from worker.app.settings import Settings
from worker.service.introspection.readiness import Readiness


def check_volume(settings: Settings) -> Callable[[], None]:
    """Return a fitness check: the folder of models can be written."""

    def volume_writable() -> None:
        try:
            settings.models_dir.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=settings.models_dir) as file:
                file.write(b"1")
        except OSError as error:
            raise RuntimeError(
                f"{settings.models_dir} cannot be written ({error.strerror}); "
                "attach a network volume or set VOLUME_DIR."
            ) from None

    return volume_writable


def check_models(readiness: Readiness) -> Callable[[], Awaitable[None]]:
    """Return a fitness check: the default model and those to be preloaded are there. It reads no weights."""

    async def models_available() -> None:
        await readiness.prepare(loaded=False)
        if problems := readiness.problems():
            raise RuntimeError(" ".join(problems))

    return models_available


def check_device(settings: Settings) -> Callable[[], None]:
    """Return a fitness check: an expected GPU answers. It asks the driver: importing torch takes too long."""

    def device_usable() -> None:
        if settings.device != "cuda" and not Path("/proc/driver/nvidia/version").exists():
            return
        try:
            driver = ctypes.CDLL("libcuda.so.1")
        except OSError:
            raise RuntimeError("No CUDA driver in this container; run it with the NVIDIA runtime.") from None
        count = ctypes.c_int(0)
        code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
        if code or count.value < 1:
            raise RuntimeError(f"The CUDA driver answers with error {code} and {count.value} devices.")

    return device_usable
