"""docs/image-client.md says what the command does: its program runs, and its options are those of the command."""

import re
import subprocess
import sys
from pathlib import Path

import typer.main

from image_client.cli.commands import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/image-client.md").read_text()


def test_the_program_of_the_page_runs(tmp_path: Path) -> None:
    (program,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    environment = {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "0001-a-red-apple.png" in done.stdout and (tmp_path / "fruit" / "0002-a-green-pear.png").is_file()


def test_every_command_and_option_of_the_page_is_one() -> None:
    commands = typer.main.get_command(app).commands
    known = {option for command in commands.values() for parameter in command.params for option in parameter.opts}
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", PAGE)) <= known
    assert set(re.findall(r"image-client ([a-z]+)", PAGE)) <= set(commands)
    variables = {parameter.envvar for command in commands.values() for parameter in command.params}
    assert set(re.findall(r"IMAGE_CLIENT_\w+", PAGE)) <= variables
