"""The editors that need torchvision: drawn with in a process where a stand-in takes its place."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conftest import PROJECT

HERE = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_qwens_editors_and_firered_draw_from_images():
    path = [str(PROJECT)] if find_spec("torchvision") else [str(HERE / "stand_in"), str(PROJECT)]
    if known := os.environ.get("PYTHONPATH"):
        path.append(known)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, str(HERE / "inside.py")],
        cwd=PROJECT,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
        timeout=1400,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert "8 passed" in done.stdout
