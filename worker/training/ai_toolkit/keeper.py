"""Run one command in a process group of its own, and end the whole group once the worker wants it or is no more.

Run as a script. It imports nothing of the worker. Its input is a pipe that only the worker holds: the end of that input
is the wish to stop, whether the worker closed it or died. The command is interrupted then, as by Ctrl-C at a terminal,
and killed after some seconds. Exit status: the command's.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress


def main(grace_s: float, command: list[str]) -> int:
    """Run `command` to its end, or until the input ends and then for at most `grace_s`."""
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def end() -> None:
        while os.read(0, 1):
            pass
        _signal(child.pid, signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            child.wait(grace_s)
        _signal(child.pid, signal.SIGKILL)

    threading.Thread(target=end, daemon=True).start()
    status = child.wait()
    _signal(child.pid, signal.SIGKILL)  # what it has started and left behind
    return status if status >= 0 else 128 - status


def _signal(group: int, number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


if __name__ == "__main__":
    status = main(float(sys.argv[1]), sys.argv[2:])
    os._exit(status)  # the thread still reads
