"""The process of ai-toolkit: started with next to no environment, read by line, and ended with all its children."""

import os
import re
import select
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

_KEEPER = Path(__file__).with_name("keeper.py")
_GRACE_S = 20.0  # for what an interrupt lets it do
_CHUNK = 65_536
_MAX_LINE = 8_192
_ENDS = re.compile(rb"[\r\n]+")  # a bar is drawn again after a carriage return


@dataclass(frozen=True, slots=True)
class Toolkit:
    """An installation of ai-toolkit: its folder, the interpreter of its own environment, and all of that environment.

    `environment` is everything that its process gets: no secret of the worker is among it.
    """

    folder: Path
    python: Path
    environment: Mapping[str, str]
    on_cpu: bool = False

    @property
    def script(self) -> Path:
        """The script that trains."""
        return self.folder / "run.py"

    def fault(self) -> str | None:
        """Say what is missing of it; None where it can be started."""
        if not self.script.is_file():
            return "AI_TOOLKIT names no folder with ai-toolkit's run.py"
        if not os.access(self.python, os.X_OK):
            return "the Python of ai-toolkit's environment is not there; AI_TOOLKIT_PYTHON names it"
        return None

    def start(self, config: Path, seed: int) -> "Running":
        """Let it train as `config` says, in the folder of that file."""
        command = [str(self.python), "-u", str(self.script), str(config)]
        return Running(command, config.parent, {**self.environment, "SEED": str(seed)})


class Running:
    """A command that runs. What it prints to either stream comes as lines, those of its bar among them."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> None:
        self._rest = b""
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(_KEEPER), str(_GRACE_S), *command],
            cwd=folder,
            env=dict(environment),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # a terminal's interrupt is the worker's
        )
        self._output, self._wish = cast(IO[bytes], self._process.stdout), cast(IO[bytes], self._process.stdin)

    def lines(self, within_s: float) -> list[str] | None:
        """Return the lines that come within so many seconds, as soon as there are some; None once it has ended."""
        if self._output.closed:
            return None
        source = self._output.fileno()
        if not select.select([source], [], [], within_s)[0]:
            return []
        chunk = os.read(source, _CHUNK)
        *whole, self._rest = _ENDS.split(self._rest + chunk)
        if not chunk:
            whole, self._rest = [*whole, self._rest], b""
            return _texts(whole) or None
        self._rest = self._rest[-_MAX_LINE:]
        return _texts(whole)

    def stop(self) -> None:
        """Have it interrupted, and killed after some seconds."""
        with suppress(OSError):
            self._wish.close()

    def end(self) -> int:
        """Have it stopped, and return its exit status once nothing of it is left."""
        self.stop()
        while self.lines(_GRACE_S) is not None:
            pass
        status = self._process.wait()
        self._output.close()
        return status


def _texts(lines: Sequence[bytes]) -> list[str]:
    return [line[:_MAX_LINE].decode(errors="replace") for line in lines if line.strip()]
