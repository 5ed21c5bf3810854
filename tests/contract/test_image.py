"""The image: its Dockerfile, the lock that it is made from, and the compose file that serves it."""

import fnmatch
import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import yaml

from tests.contract.deploy_page import SETTINGS, table
from worker.app.settings import PROJECT_DIR, Settings


def instructions(dockerfile: str) -> Iterator[tuple[str, str]]:
    """Each instruction of a Dockerfile with its arguments on one line."""
    lines = (line for line in dockerfile.splitlines() if not line.lstrip().startswith("#"))
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        if line.strip():
            name, _, arguments = line.strip().partition(" ")
            yield name.upper(), arguments.strip()


DOCKERFILE = list(instructions((PROJECT_DIR / "Dockerfile").read_text()))

IMAGE_ENV = dict(
    re.match(r'([A-Z_]+)="?([^"]*)"?', pair).groups()
    for name, arguments in DOCKERFILE
    if name == "ENV"
    for pair in arguments.split()
)


def test_image_starts_the_worker_so_that_signals_arrive() -> None:
    assert [arguments for name, arguments in DOCKERFILE if name == "CMD"] == ['["python", "-u", "handler.py"]']
    assert not [name for name, _ in DOCKERFILE if name == "ENTRYPOINT"]


def test_image_environment() -> None:
    assert IMAGE_ENV["RUNPOD_LOG_LEVEL"] == "INFO"
    assert IMAGE_ENV["RUNPOD_SKIP_GPU_CHECK"] == "true"
    assert "PYTHONDONTWRITEBYTECODE" not in IMAGE_ENV
    assert IMAGE_ENV.keys() & SETTINGS.keys() == {"MODEL_ID", "MODEL_REVISION"}
    foreign = IMAGE_ENV.keys() - SETTINGS.keys()
    conventional = {"PATH", "UV_COMPILE_BYTECODE", "UV_LINK_MODE", "UV_PYTHON_DOWNLOADS", "VIRTUAL_ENV"}
    assert foreign - conventional - set(table("Variables that others read")) == set()


def test_no_secret_is_a_build_argument_or_in_the_environment() -> None:
    secret = re.compile(r"TOKEN\b(?!IZERS)|SECRET|KEY|PASSWORD")
    assert [arguments for name, arguments in DOCKERFILE if name in {"ARG", "ENV"} and secret.search(arguments)] == []


def test_base_images_are_exact() -> None:
    stages = [arguments.split() for name, arguments in DOCKERFILE if name == "FROM"]
    bases = {words[0] for words in stages} - {words[2] for words in stages}
    assert bases, "no FROM"
    for base in bases:
        assert re.fullmatch(r"[\w./-]+:[\w.-]*\d+\.\d+\.\d+[\w.-]*", base), base


def test_image_copies_only_what_exists_and_is_not_ignored() -> None:
    lines = (PROJECT_DIR / ".dockerignore").read_text().splitlines()
    rules = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
    assert rules[0] == "*", ".dockerignore is an allow-list"
    for name, arguments in DOCKERFILE:
        words = arguments.split()
        if name not in {"COPY", "ADD"} or words[0].startswith("--from"):
            continue
        for source in words[:-1]:
            if source != "models.lock*":  # a pattern, because a registry need not be locked
                assert (PROJECT_DIR / source).exists(), source
            ignored = False
            for rule in rules:
                if fnmatch.fnmatchcase(source.rstrip("/"), rule.removeprefix("!")):
                    ignored = not rule.startswith("!")
            assert not ignored, source
    copied = " ".join(arguments for name, arguments in DOCKERFILE if name == "COPY")
    for needed in ("handler.py", "models.yaml", "worker/", "models/", "LICENSE"):
        assert needed in copied.split()


def steps_of(stage: str) -> list[tuple[str, str]]:
    """The instructions that make a stage, those of the stages it stands on first."""
    steps: list[tuple[str, str]] = []
    base, current = "", ""
    for name, arguments in DOCKERFILE:
        if name == "FROM":
            words = arguments.split()
            current = words[2]
            base = words[0] if current == stage else base
        elif current == stage:
            steps.append((name, arguments))
    return (steps_of(base) if base and ":" not in base else []) + steps


def test_what_changes_least_is_the_lowest_layer_of_the_image() -> None:
    """Torch, then the other packages, then a baked model, then the code: a changed line moves only what is above it."""
    steps = [f"{name} {arguments}" for name, arguments in steps_of("runtime")]
    wanted = ["-r /locks/torch.lock", "-r /locks/rest.lock", "/opt/models /opt/models", "COPY worker/"]
    places = [next(place for place, step in enumerate(steps) if text in step) for text in wanted]
    assert places == sorted(places)
    sources = [step for step in steps if step.startswith("COPY") and "--from" not in step]
    assert all(steps.index(step) > places[2] for step in sources)
    # The other packages' lock is no input of torch's layer.
    assert not [step for step in steps[: places[0]] if "rest.lock" in step or "requirements.lock" in step]


def locked() -> dict[str, tuple[str, list[str]]]:
    """The lock's packages: version and digests."""
    text = (PROJECT_DIR / "requirements.lock").read_text()
    entries = re.findall(r"^([a-z0-9._-]+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, re.M)
    return {name: (version, re.findall(r"sha256:([0-9a-f]{64})", digests)) for name, version, digests in entries}


def test_the_lock_pins_everything_by_digest_and_agrees_with_the_requirements() -> None:
    text = (PROJECT_DIR / "requirements.lock").read_text()
    assert len(locked()) == len(re.findall(r"^[^\s#]", text, re.M)) > 100
    assert "make lock" in text.splitlines()[1]
    assert not re.search(r"https?://|file:|--(extra-)?index-url|--find-links| @ ", text)
    for file in ("requirements.txt", "requirements-gpu.txt", "requirements-spandrel.txt"):
        for name, version in re.findall(
            r"^([A-Za-z0-9._-]+)(?:\[\w+\])?==(\S+)", (PROJECT_DIR / file).read_text(), re.M
        ):
            assert locked()[name.lower().replace("_", "-")][0] == version, name
    # For a GPU: the libraries of the CUDA release that everything else agrees on.
    assert locked()["cuda-toolkit"][0].startswith("13.0.")
    assert not {"kernels", "pytest", "ruff", "mypy"} & set(locked())


def test_the_image_is_made_from_the_lock_alone() -> None:
    installs = [arguments for name, arguments in DOCKERFILE if name == "RUN" and "pip install" in arguments]
    assert len([line for line in installs if "--require-hashes --no-deps -r /locks/" in line]) == 2
    assert [line for line in installs if "--require-hashes" not in line] == ["pip install --no-cache-dir uv==0.13.9"]


def test_the_halves_of_the_lock_are_the_whole(tmp_path: Path) -> None:
    """The awk program of the Dockerfile, run: torch and CUDA in one half, the rest in the other."""
    (program,) = (arguments for name, arguments in DOCKERFILE if name == "RUN" and arguments.startswith("awk"))
    lock = (PROJECT_DIR / "requirements.lock").read_text()
    (tmp_path / "requirements.lock").write_text(lock)
    subprocess.run(["sh", "-ec", program], cwd=tmp_path, check=True)
    torch, rest = ((tmp_path / f"{half}.lock").read_text() for half in ("torch", "rest"))
    assert sorted((torch + rest).splitlines()) == sorted(lock.splitlines())
    names = set(re.findall(r"^([a-z0-9._-]+)==", torch, re.M))
    assert {"torch", "torchvision", "triton", "nvidia-cublas", "cuda-toolkit"} <= names
    assert {name for name in names if not name.startswith(("nvidia-", "cuda-"))} == {"torch", "torchvision", "triton"}
    assert not re.search(r"^(nvidia|cuda)-", rest, re.M)


def test_the_image_says_its_port_and_how_to_ask_after_its_health() -> None:
    assert [arguments for name, arguments in DOCKERFILE if name == "EXPOSE"] == [str(Settings().api_port)]
    (check,) = (arguments for name, arguments in DOCKERFILE if name == "HEALTHCHECK")
    assert json.loads(check.split("CMD", 1)[1]) == ["python", "-m", "worker.app.healthcheck"]


def test_compose_serves_on_the_images_port_and_keeps_the_models() -> None:
    compose = yaml.safe_load((PROJECT_DIR / "compose.yaml").read_text())
    worker = compose["services"]["worker"]
    assert worker["environment"].keys() - SETTINGS.keys() == set()
    assert worker["environment"]["STANDALONE_MODE"] == "1"
    port = Settings().api_port
    assert worker["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert worker["volumes"] == ["models:/runpod-volume"] and "models" in compose["volumes"]
    assert int(worker["stop_grace_period"].removesuffix("s")) > Settings().shutdown_grace_seconds + 10
    assert re.search(rf"--tag {re.escape(worker['image'])} \.", (PROJECT_DIR / "README.md").read_text())
