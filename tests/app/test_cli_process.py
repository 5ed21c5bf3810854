"""`python -m worker` as a process of its own: at a terminal, interrupted, and with the real engine."""

import contextlib
import os
import pty
import signal
import subprocess
import sys

import pytest
from PIL import Image

from tests.conftest import PROJECT
from tests.waiting import LIMIT_S


@pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")
def test_ctrl_c_is_quiet_and_the_spinner_is_there_before_anything_is_imported(tmp_path):
    """At a terminal of its own: the line is shown while modules are imported, and the interrupt ends that."""
    screen, end = pty.openpty()
    env = {
        "PYTHONPATH": str(PROJECT),
        "HOME": str(tmp_path),
        "PATH": os.environ["PATH"],
        "LANG": "C.UTF-8",
        "TERM": "xterm",
    }
    command = [sys.executable, "-m", "worker", "run", "a red apple"]
    process = subprocess.Popen(
        command, env=env, cwd=tmp_path, stdin=end, stdout=end, stderr=end, preexec_fn=_interruptible
    )
    os.close(end)
    shown = os.read(screen, 1000).decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(LIMIT_S) == -signal.SIGINT, shown
    with contextlib.suppress(OSError):  # the end of a terminal is an error on Linux
        while more := os.read(screen, 1000):
            shown += more.decode()
    os.close(screen)
    assert "starting" in shown
    assert shown.endswith("\r\x1b[K")
    assert "Traceback" not in shown
    assert "Interrupt" not in shown


def _interruptible():
    """Tests that were started in the background, as by nohup, hand on that SIGINT is ignored; a terminal does not."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
def test_it_runs_as_a_module_and_draws_with_the_real_engine(zoo, tmp_path):
    env = {
        **{"MODELS_YAML": str(zoo / "models.yaml"), "DEFAULT_MODEL": "tiny", "VOLUME_DIR": str(tmp_path / "volume")},
        **{"DEVICE": "cpu", "PYTHONPATH": str(PROJECT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    }
    command = [sys.executable, "-m", "worker", "run", "a red apple", "--seed", "1"]
    result = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "outputs/a-red-apple-1.png\n"
    with Image.open(tmp_path / "outputs/a-red-apple-1.png") as image:
        assert image.size == (64, 64)
    assert "Traceback" not in result.stderr
