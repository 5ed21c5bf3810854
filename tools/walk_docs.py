"""Walk README, the quickstart and the recipes as a newcomer would: run every command, in order.

    python -m tools.walk_docs [--keep] [PAGE …]

Each page starts in an empty folder that holds what a clone would. The environment of this project is not on PATH.
Bash, Python and JavaScript blocks run as printed. A command has to do what the page says: exit with 0, write each image
that it names, print `saved …` of files that are there, and answer JSON without an error. `make serve` goes on in the
background until the page ends, and has to stop when it is told to. Docker's commands run where Docker does.
"""

import argparse
import base64
import binascii
import json
import os
import platform
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tools.environment import SIZES, gpu_present, torch_build

PROJECT = Path(__file__).resolve().parent.parent
PAGES = ("README.md", "docs/quickstart.md", "docs/recipes.md")
PORT = 8000
LIMIT_S = 900
_BLOCK = re.compile(r"^```(bash|python|javascript)\n(.*?)^```$", re.M | re.S)
_IMAGES = {b"\x89PNG\r\n\x1a\n": "png", b"\xff\xd8\xff": "jpg"}
_NAMED = re.compile(r"[\w./-]+\.(?:png|jpg)\b")
# Kept of the environment: where programs and package caches are. The rest is this project's or of no concern.
_KEPT = re.compile(r"PATH|HOME|LANG|TMPDIR|PYENV_\w+|PIP_\w+|UV_\w+|XDG_\w+|SSL_\w+|\w+_proxy|OMP_NUM_THREADS", re.I)


class Mistake(Exception):
    """A command did not do what the page says."""


@dataclass(frozen=True)
class Step:
    """One thing that a page asks its reader to do."""

    language: str
    text: str


def steps(page: str) -> list[Step]:
    """Return the steps of a page: each command of its bash blocks, and its Python and JavaScript blocks whole."""
    found: list[Step] = []
    for language, text in _BLOCK.findall(page):
        found += [Step("bash", command) for command in commands(text)] if language == "bash" else [Step(language, text)]
    return found


def commands(block: str) -> Iterator[str]:
    """Split a bash block into commands: a line, and those after it that it needs to be complete."""
    lines: list[str] = []
    for line in block.splitlines():
        lines.append(line)
        text = "\n".join(lines)
        if text.endswith("\\") or subprocess.run(["bash", "-n"], input=text, text=True, capture_output=True).returncode:
            continue
        lines = []
        if text.strip() and not text.lstrip().startswith("#"):
            yield text
    if lines:
        raise Mistake("a command of the page is not complete:\n" + "\n".join(lines))


def newcomer(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of somebody who has not set anything up: no virtual environment is on PATH."""
    kept = {name: value for name, value in environment.items() if _KEPT.fullmatch(name)}
    folders = kept.get("PATH", os.defpath).split(os.pathsep)
    kept["PATH"] = os.pathsep.join(folder for folder in folders if not (Path(folder).parent / "pyvenv.cfg").exists())
    return kept


def copy_of_the_project(target: Path) -> None:
    """Copy what a clone would have: what git tracks, and what it would if all was added."""
    listing = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(listing, cwd=PROJECT, capture_output=True, check=True, text=True).stdout.split("\0")
    for name in filter(None, names):
        if (PROJECT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(PROJECT / name, target / name)


def kind_of_image(path: Path) -> str:
    """Return png or jpg, or nothing for what is no image."""
    head = path.read_bytes()[:8] if path.is_file() else b""
    return next((kind for magic, kind in _IMAGES.items() if head.startswith(magic)), "")


def check_output(step: Step, printed: str, folder: Path) -> None:
    """Hold what a step left behind against what the page says it does. Raises Mistake."""
    for name in _NAMED.findall(step.text):
        if "://" not in step.text.split(name)[0][-12:] and not kind_of_image(folder / name):
            raise Mistake(f"{name} is no image after the command")
    saved = re.findall(r"^(?:saved )?(outputs/\S+|\S+\.(?:png|jpg))$", printed, re.M)
    if draws(step.text) and not saved:
        raise Mistake("the command draws, and printed no file")
    for name in saved:
        if not kind_of_image(folder / name):
            raise Mistake(f"{name} was printed and is no image")
    if step.text.startswith("curl") and not re.search(r" -o | > ", step.text):
        check_answer(printed)


def draws(command: str) -> bool:
    """Tell whether a command of ours draws and saves images."""
    return bool(re.match(r"make (run|draw)\b|\S*imgworker run\b|\S*python handler\.py\b", command))


def check_answer(printed: str) -> None:
    """Hold a JSON answer against what it has to be: no error, and images that are images. Raises Mistake."""
    try:
        answer = json.loads(printed)
    except ValueError:
        raise Mistake("the answer is not JSON") from None
    if not isinstance(answer, dict) or "error" in answer:
        raise Mistake("the answer is an error")
    output = answer["output"] if isinstance(answer.get("output"), dict) else answer
    for text in output.get("images", [output["image"]] if "image" in output else []):
        try:
            head = base64.b64decode(text[:16])
        except binascii.Error:
            head = b""
        if not head.startswith(tuple(_IMAGES)):
            raise Mistake("an image of the answer is no image")


def check_environment(venv: Path) -> None:
    """Hold what was installed to run the worker against what was said before. Raises Mistake."""
    said = float(SIZES["cpu"][1].split()[0])
    # A file that is linked from a cache counts as well.
    taken = sum(path.lstat().st_size for path in venv.rglob("*") if not path.is_dir()) / 1e9
    installed = {
        path.name.split("-")[0].lower().replace("_", "-") for path in venv.glob("lib/*/site-packages/*.dist-info")
    }
    say(f"   {venv.name}: {len(installed)} packages, {taken:.2f} GB")
    project = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    tools = {re.split(r"[=\[]", line)[0].lower() for line in project["optional-dependencies"]["dev"]}
    # Some of them the worker's own requirements bring along.
    tools -= set(re.findall(r"^([\w.-]+)==", (PROJECT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE))
    if tools & installed:
        raise Mistake(f"{', '.join(sorted(tools & installed))} was installed to run the worker, and only tests it")
    cpu = torch_build(os.environ.get("TORCH", ""), platform.system(), gpu_present()) == "cpu"
    if cpu and not 0.8 * said < taken < 1.1 * said:
        raise Mistake(f"{venv} takes {taken:.2f} GB; tools/environment.py says {said} GB")


def docker_runs() -> bool:
    """Tell whether Docker and its daemon are here."""
    return bool(shutil.which("docker")) and not subprocess.run(["docker", "info"], capture_output=True).returncode


class Walk:
    """One page, walked in one folder."""

    def __init__(self, folder: Path, environment: Mapping[str, str]) -> None:
        self._folder = folder
        self._environment = dict(environment)
        self._state = folder.with_name(f"{folder.name}.state")
        self._server: subprocess.Popen[bytes] | None = None
        self._port = PORT if _free(PORT) else _any_port()
        if self._port != PORT:
            say(f"port {PORT} is taken: {self._port} stands for it")
            self._environment["API_PORT"] = str(self._port)

    def take(self, step: Step) -> None:
        """Do one step. Raises Mistake."""
        if step.text.startswith("docker ") and not docker_runs():
            say("   not run: no Docker here")
        elif re.match(r"make serve\b", step.text):
            self._serve(step.text)
        else:
            self._run(step)

    def end(self) -> None:
        """Stop the server as Ctrl-C does. Raises Mistake if it does not stop."""
        if self._server is None:
            return
        os.killpg(self._server.pid, signal.SIGINT)
        server, self._server = self._server, None
        try:
            server.wait(60)
        except subprocess.TimeoutExpired:
            os.killpg(server.pid, signal.SIGKILL)
            raise Mistake("make serve did not stop within 60 s of Ctrl-C") from None

    def _run(self, step: Step) -> None:
        text = step.text.replace(f"localhost:{PORT}", f"localhost:{self._port}")
        script = {
            "bash": text,
            "python": shlex.join([sys.executable, "-c", text]),
            "javascript": shlex.join(["node", "--input-type=module", "-e", text]),
        }[step.language]
        if step.language == "javascript" and not shutil.which("node"):
            say("   not run: no node here")
            return
        arguments = ["bash", "-c", self._remembering(script)]
        done = subprocess.run(
            arguments, cwd=self._folder, env=self._environment, capture_output=True, text=True, timeout=LIMIT_S
        )
        if done.returncode:
            raise Mistake(f"exit status {done.returncode}\n{_end(done.stdout)}{_end(done.stderr)}")
        try:
            check_output(step, done.stdout, self._folder)
        except Mistake as mistake:
            raise Mistake(f"{mistake}\n{_end(done.stdout)}{_end(done.stderr)}") from None

    def _remembering(self, text: str) -> str:
        """Return a script that starts with the variables of the commands before, as the reader's shell has them."""
        state = self._state
        return f"set -ae\n[ ! -f {state} ] || . {state}\n{text}\nexport -p > {state}"

    def _serve(self, command: str) -> None:
        self._server = subprocess.Popen(
            ["bash", "-c", command], cwd=self._folder, env=self._environment, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT,
        )  # fmt: skip
        until = time.monotonic() + LIMIT_S
        while time.monotonic() < until:
            if self._server.poll() is not None:
                raise Mistake(f"the server ended with exit status {self._server.returncode}")
            try:
                urllib.request.urlopen(f"http://localhost:{self._port}/health", timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                time.sleep(0.3)
        raise Mistake("the server does not answer")


def _end(text: str) -> str:
    return "".join(f"   | {line[:400]}\n" for line in text.splitlines()[-25:])


def _free(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


def _any_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def say(text: str) -> None:
    """Print at once, so that a long command is seen to run."""
    print(text, flush=True)


@contextmanager
def fresh_folder(keep: bool) -> Iterator[Path]:
    """Give a folder with a fresh copy of the project, and remove it afterwards."""
    root = Path(tempfile.mkdtemp(prefix="walk-"))
    try:
        folder = root / "project"
        folder.mkdir()
        copy_of_the_project(folder)
        yield folder
    finally:
        if keep:
            say(f"kept: {root}")
        else:
            shutil.rmtree(root, ignore_errors=True)


def walk(pages: tuple[str, ...], *, keep: bool = False) -> int:
    """Walk the pages in one fresh copy; return how many commands did not do what their page says."""
    wrong = 0
    with fresh_folder(keep) as folder:
        for page in pages:
            going = Walk(folder, newcomer(os.environ))
            try:
                for step in steps((folder / page).read_text(encoding="utf-8")):
                    say(f"{page}: {step.text.strip().splitlines()[0]}")
                    began = time.monotonic()
                    going.take(step)
                    say(f"   {time.monotonic() - began:.1f} s")
                going.end()
                if page == "README.md":
                    check_environment(folder / ".venv")
            except (Mistake, subprocess.TimeoutExpired) as mistake:
                say(f"{page}: WRONG: {mistake}")
                wrong += 1
                try:
                    going.end()
                except Mistake as mistake:
                    say(f"{page}: WRONG: {mistake}")
    return wrong


def main() -> None:
    """Walk what the command line names, else every page; exit with 1 if anything was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pages", nargs="*", default=PAGES)
    parser.add_argument("--keep", action="store_true", help="leave the folder there")
    chosen = parser.parse_args()
    sys.exit(min(1, walk(tuple(chosen.pages), keep=chosen.keep)))


if __name__ == "__main__":
    main()
