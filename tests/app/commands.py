"""Commands of `python -m worker`, run in the test's own process."""

import io
import logging
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import pytest

from worker.app.cli.commands import main


@dataclass(frozen=True)
class Result:
    """What a command printed, and the status that it would have ended with."""

    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """All that it printed."""
        return self.stdout + self.stderr


def invoke(*arguments: object) -> Result:
    """Run one command as in a pipe."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            logging.disable(logging.NOTSET)  # commands keep the libraries quiet, for good: they are processes
    return Result(code, out.getvalue(), err.getvalue())


def said(result: Result) -> str:
    """The output of a command that did its work."""
    assert result.exit_code == 0, result.output
    return result.stdout


def failed(result: Result) -> str:
    """The one sentence of a command that failed."""
    assert result.exit_code == 1, result.output
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("error: ")
    return line


def use_volume(patch: pytest.MonkeyPatch, folder: Path, registry: str, endpoint: str) -> None:
    """Have commands serve `registry` from an empty volume in `folder`, with a Hub at `endpoint`."""
    (folder / "models.yaml").write_text(registry)
    values = {
        "MODELS_YAML": folder / "models.yaml",
        "DEFAULT_MODEL": "org/model",
        "VOLUME_DIR": folder / "volume",
        "HF_ENDPOINT": endpoint,
        "HOME": folder,
    }
    for name, value in values.items():
        patch.setenv(name, str(value))
    for name in ("HF_HOME", "HF_HUB_CACHE"):
        patch.delenv(name, raising=False)
