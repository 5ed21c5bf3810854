"""Set up .venv: `run` installs what the worker runs with, `dev` also what tests and checks it. The Makefile calls it.

Only the standard library is used, since nothing is installed yet. uv does the work, that on PATH or else one that pip
puts into .venv: with what it needs in its cache it is done in seconds, where pip takes most of a minute. Where uv fails
pip has its turn. Byte code is not compiled ahead: Python compiles what is imported, and most of it never is.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
UV = "uv==0.13.9"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# What is downloaded, and what it takes on disk. tools/walk_docs.py holds the CPU numbers against what was installed.
SIZES = {"cpu": ("0.5 GB", "1.6 GB"), "cuda": ("3.1 GB", "7 GB"), "default": ("0.5 GB", "2 GB")}
DEV_SIZES = ("0.1 GB", "0.2 GB")
# What pip was told about this machine's packages, by uv's names: uv does not read pip's files.
_PIP_OPTIONS = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_INDEX",
    "find-links": "UV_FIND_LINKS",
    "constraint": "UV_CONSTRAINT",
    "cert": "SSL_CERT_FILE",
}


class SetupError(Exception):
    """The environment cannot be set up; the text says why and what to do."""


@dataclass(frozen=True)
class Installer:
    """pip or uv, bound to one environment."""

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str]

    def run(self, *arguments: str) -> bool:
        """Install; say on the terminal what is fetched."""
        return not subprocess.run([*self.command, "install", *arguments], env=self.environment, cwd=PROJECT).returncode

    def offers(self, requirement: str) -> bool:
        """Tell whether the indexes of this machine have `requirement`."""
        words = [*self.command, "install", "--dry-run", "--no-deps", "--quiet", requirement]
        return not subprocess.run(words, env=self.environment, capture_output=True).returncode


def gpu_present() -> bool:
    """Tell whether an NVIDIA GPU and its driver are here."""
    if any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    if not shutil.which("nvidia-smi"):
        return False
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
    return listed.returncode == 0 and "GPU " in listed.stdout


def torch_build(wanted: str, system: str, gpu: bool) -> str:
    """Return the build of torch to install: `cpu`, `cuda`, or `default` where PyPI has only one for this system."""
    if wanted not in {"", "auto", "cpu", "cuda"}:
        raise SetupError(f"TORCH must be auto, cpu or cuda; {wanted!r} was given.")
    if system != "Linux":
        return "default"
    return wanted if wanted in {"cpu", "cuda"} else "cuda" if gpu else "cpu"


def pinned(name: str) -> str:
    """Return the requirement of `name` as requirements.txt pins it."""
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    return next(line.split("#")[0].strip() for line in lines if line.startswith(f"{name}=="))


def steps(build: str, installer: str, *, cpu_offered: bool, dev: bool) -> list[tuple[str, ...]]:
    """Return the arguments of each call of the installer, in order."""
    lean = ("--no-compile",) if installer == "pip" else ()
    if dev:
        return [(*lean, "--no-build-isolation", "--editable", ".[dev]")]
    calls = []
    if build == "cpu" and not cpu_offered:
        # By itself, so that nothing else comes from that index.
        calls.append((*lean, "--no-deps", "--index-url", CPU_INDEX, pinned("torch")))
    calls.append((*lean, "--requirement", "requirements-gpu.txt" if build == "cuda" else "requirements.txt"))
    # setuptools, which builds the link to this folder, came with torch.
    link = ("--no-deps", "--no-build-isolation", "--requirement", "requirements-spandrel.txt", "--editable", ".")
    calls.append((*lean, *link))
    return calls


def uv_environment(pip_options: str, environment: Mapping[str, str]) -> dict[str, str]:
    """Return the environment for uv: what pip is told by its files (`pip config list`) holds for uv too."""
    told = dict(environment)
    for line in pip_options.splitlines():
        name, _, value = line.partition("=")
        variable = _PIP_OPTIONS.get(name.rsplit(".", 1)[-1])
        values = value.strip("'\"").replace("\\n", " ").split()
        if variable and values:
            separator = "," if variable == "UV_FIND_LINKS" else " "
            told.setdefault(variable, separator.join(values))
    if told.get("UV_INDEX"):
        told.setdefault("UV_INDEX_STRATEGY", "unsafe-best-match")  # pip takes the best of all its indexes
    return told


def make_environment(venv: Path, uv: str | None) -> None:
    """Make the virtual environment unless it is there."""
    if (venv / "bin" / "python").exists():
        return
    shutil.rmtree(venv, ignore_errors=True)
    words = [uv, "venv", "--quiet", "--python", sys.executable] if uv else [sys.executable, "-m", "venv"]
    if subprocess.run([*words, str(venv)]).returncode:
        raise SetupError(f"{venv} could not be made with {' '.join(words)}; what it said stands above.")


def pip_of(venv: Path) -> Installer | None:
    """Return pip of the environment; None where neither it nor what brings it is there."""
    python = str(venv / "bin" / "python")
    for module in ("pip", "ensurepip"):
        if module == "ensurepip":  # uv made this environment
            subprocess.run([python, "-m", module], capture_output=True)
        if not subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode:
            return Installer("pip", (python, "-m", "pip", "--disable-pip-version-check"), os.environ)
    return None


def uv_of(venv: Path, uv: str | None) -> Installer | None:
    """Return uv, bound to the environment: that on PATH, else one that pip puts there; None where it cannot be had."""
    python = str(venv / "bin" / "python")
    if uv is None:
        uv = str(venv / "bin" / "uv")
        words = [python, "-m", "pip", "--disable-pip-version-check", "--quiet", "install", UV]
        if not Path(uv).exists() and subprocess.run(words, capture_output=True).returncode:
            return None
    asked = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True)
    environment = uv_environment(asked.stdout, os.environ) | {"VIRTUAL_ENV": str(venv.resolve())}
    return Installer("uv", (uv, "pip"), environment)


def announcement(build: str, venv: Path, *, dev: bool) -> str:
    """Say what is going to be downloaded, before it is."""
    if dev:
        download, disk = DEV_SIZES
        return f"Adding to {venv} what tests and checks the worker: up to {download} to download, {disk} on disk."
    download, disk = SIZES[build]
    torch = {
        "cpu": "the CPU build of torch, since no NVIDIA GPU is here (TORCH=cuda takes the other)",
        "cuda": "the CUDA build of torch with its libraries (TORCH=cpu takes the small one)",
        "default": "the only build of torch for this system",
    }[build]
    return (
        f"Setting up {venv}, once: what the worker runs with, and {torch}.\n"
        f"Up to {download} to download, less what is in the cache of uv or pip; {disk} on disk."
    )


def install(installer: Installer, build: str, *, dev: bool) -> str:
    """Install everything; return what could not be installed, or nothing."""
    cpu_offered = dev or build != "cpu" or installer.offers(f"{pinned('torch')}+cpu")
    for arguments in steps(build, installer.name, cpu_offered=cpu_offered, dev=dev):
        if not installer.run(*arguments):
            return arguments[-1]
    return ""


def set_up(venv: Path, wanted: str, *, dev: bool) -> None:
    """Install into `venv`. Raises SetupError."""
    build = torch_build(wanted, platform.system(), gpu_present())
    print(announcement(build, venv, dev=dev), flush=True)
    uv = shutil.which("uv")
    make_environment(venv, uv)
    failed = "uv or pip"
    for find in (lambda: uv_of(venv, uv), lambda: pip_of(venv)):
        installer = find()
        if installer is None:
            continue
        failed = install(installer, build, dev=dev)
        if not failed:
            return
        print(f"{installer.name} could not install {failed}.", flush=True)
    raise SetupError(f"{failed} could not be installed; the reason stands above. Run make again to go on.")


def main(arguments: Sequence[str]) -> None:
    """Set up what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("run", "dev"))
    parser.add_argument("--venv", type=Path, default=Path(".venv"))
    parser.add_argument("--torch", default="auto", help="auto, cpu or cuda")
    chosen = parser.parse_args(arguments)
    try:
        set_up(chosen.venv, chosen.torch, dev=chosen.what == "dev")
    except SetupError as error:
        sys.exit(f"make: {error}")


if __name__ == "__main__":
    main(sys.argv[1:])
