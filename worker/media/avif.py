"""AVIF images, decoded in a process of their own: see `avif_child`."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from PIL import Image

_CHILD = Path(__file__).with_name("avif_child.py")
_TIMEOUT_S = 60


def read_avif(
    data: bytes, check_size: Callable[[int, int], None], max_side: int, max_pixels: int
) -> tuple[Image.Image, bool]:
    """Return the first frame, upright, as RGB or RGBA, and True if there are more.

    Over the limits nothing is decoded, and `check_size` is what refuses. Raises ValueError for what cannot be read.
    """
    process = subprocess.run(
        [sys.executable, "-I", str(_CHILD), str(max_side), str(max_pixels)],
        input=data,
        env={"PATH": os.defpath},
        capture_output=True,
        timeout=_TIMEOUT_S,
    )
    line, _, pixels = process.stdout.partition(b"\n")
    if line:
        mode, width, height, more = line.decode().split()
        check_size(int(width), int(height))
    if process.returncode != 0:
        raise ValueError(f"status {process.returncode}")
    return Image.frombytes(mode, (int(width), int(height)), pixels), more == "1"
