"""Dockerfile.cpu: the gateway's image has no engine in it, and both are made for two kinds of processor."""

import re
import subprocess
from pathlib import Path

import pytest

from tests.contract.test_image import instructions
from worker.app.settings import PROJECT_DIR

TEXT = (PROJECT_DIR / "Dockerfile.cpu").read_text()
STEPS = list(instructions(TEXT))
PINS = dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (PROJECT_DIR / "requirements.lock").read_text(), re.M))


@pytest.fixture(scope="module")
def gateway_lock(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the awk program of the file makes of the lock."""
    folder: Path = tmp_path_factory.mktemp("locks")
    (program,) = (arguments for name, arguments in STEPS if name == "RUN" and arguments.startswith("awk"))
    (folder / "requirements.lock").write_text((PROJECT_DIR / "requirements.lock").read_text())
    subprocess.run(["sh", "-ec", program], cwd=folder, check=True)
    return (folder / "gateway.lock").read_text()


def test_the_gateway_has_what_the_doors_import_and_nothing_of_the_engine(gateway_lock: str) -> None:
    names = set(re.findall(r"^([a-z0-9._-]+)==", gateway_lock, re.M))
    assert names < PINS.keys()
    for engine in ("torch", "diffusers", "transformers", "accelerate", "peft", "safetensors", "runpod", "triton"):
        assert engine not in names
    assert not [name for name in names if name.startswith(("nvidia-", "cuda-"))]
    # Images are decoded, and edges of control images found, before a job is sent anywhere.
    doors = {"fastapi", "uvicorn", "pydantic", "pillow", "numpy", "av", "opencv-python-headless", "jsonschema"}
    assert doors <= names


def test_each_package_that_is_left_keeps_its_digests(gateway_lock: str) -> None:
    entries = re.split(r"^(?=[a-z0-9])", gateway_lock, flags=re.M)[1:]
    assert entries and all("--hash=sha256:" in entry for entry in entries)


def test_bases_and_the_engines_version_are_those_of_the_other_image() -> None:
    other = list(instructions((PROJECT_DIR / "Dockerfile").read_text()))
    bases = {arguments.split()[0] for name, arguments in other if name == "FROM" and ":" in arguments.split()[0]}
    own = {arguments.split()[0] for name, arguments in STEPS if name == "FROM" and ":" in arguments.split()[0]}
    assert own == bases
    assert f"torch=={PINS['torch']}" in TEXT
    assert not re.search(r"--platform[= ]linux/amd64[^,]", "\n".join(arguments for _, arguments in STEPS))


def test_both_run_as_a_user_without_rights_and_start_the_worker() -> None:
    stages: dict[str, list[tuple[str, str]]] = {}
    for name, arguments in STEPS:
        if name == "FROM":
            current = stages.setdefault(arguments.split()[2], [])
        else:
            current.append((name, arguments))
    for stage in ("worker", "gateway"):
        assert [arguments for name, arguments in stages[stage] if name == "USER"][-1] == "worker"
    assert ("CMD", '["python", "-u", "handler.py"]') in stages["code"]
    assert ("ENV", "GATEWAY_MODE=1") in stages["gateway"]
    assert ("ENV", "STANDALONE_MODE=1") in stages["worker"]
