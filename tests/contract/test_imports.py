"""What importing costs, and who may read the environment."""

import json
import os
import re
import subprocess
import sys

import pytest

from tests.conftest import PROJECT

HEAVY = ("torch", "diffusers", "transformers", "accelerate", "peft", "av", "numpy")
HEAVY += ("runpod", "fastapi", "boto3", "huggingface_hub")


def imported(code):
    return imported_with(code)


def imported_with(code, **env):
    """The names of all modules once `code` has run in a new process."""
    script = f"import json, sys; {code}\nprint(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", script], cwd=PROJECT, env=os.environ | env, capture_output=True, text=True, check=True
    )
    return json.loads(out.stdout)


def test_the_composition_root_imports_little_and_no_torch():
    modules = imported("import worker.app.build")
    assert not set(HEAVY) & set(modules)
    assert len([name for name in modules if not name.startswith("worker")]) < 600  # torch brings 900 more


def test_the_queues_worker_starts_without_the_web_framework_and_the_server_without_torch():
    assert not {"fastapi", "torch"} & set(imported("import worker.app.start"))
    assert "torch" not in imported("import worker.app.server")


def test_handler_imports_nothing_at_top_level():
    modules = imported("import handler")
    assert not [name for name in modules if name.startswith(("worker", *HEAVY))]


@pytest.mark.parametrize(("command", "most"), [("--help", 170), ("models", 640), ("plan demo", 840)])
def test_a_command_imports_what_it_needs_and_a_plan_for_a_cpu_no_torch(command, most):
    words = command.split()
    code = "import contextlib, io; from worker.app.cli.commands import main\n"
    code += "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):\n"
    modules = imported_with(f"{code}    main({words!r})", DEVICE="cpu")
    assert not set(HEAVY) & set(modules)
    assert len(modules) < most  # torch brings 900, and diffusers with it 3,000


@pytest.mark.slow
def test_the_engine_is_where_torch_is():
    assert "torch" in imported("import worker.engine.engine")


def test_only_settings_reads_the_environment():
    readers = [
        path.relative_to(PROJECT).as_posix()
        for path in [*PROJECT.glob("worker/**/*.py"), PROJECT / "handler.py"]
        if re.search(r"\bos\.environ|\bgetenv\b", path.read_text())
    ]
    # TERM is the terminal's, and read before anything that takes time
    assert sorted(readers) == ["worker/app/cli/terminal.py", "worker/app/settings.py"]


def test_no_file_is_longer_than_four_hundred_lines():
    files = [
        path for folder in ("worker", "tests", "tools", "benchmarks") for path in PROJECT.glob(f"{folder}/**/*.py")
    ]
    long = {path.name: lines for path in files if (lines := len(path.read_text().splitlines())) > 400}
    assert not long
