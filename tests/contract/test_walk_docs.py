"""README and the quickstart do what they say, from a fresh copy and without the environment on PATH."""

import base64
import json
import os

import pytest

from tests.conftest import PROJECT
from tests.watch.children import OFF, VARIABLE
from tools import walk_docs
from tools.environment import SIZES
from tools.walk_docs import PAGES, Mistake, Step, Walk, check_environment, check_output, newcomer, steps, walk

PNG = b"\x89PNG\r\n\x1a\n" + bytes(8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_the_pages_does_what_it_says(capfd, monkeypatch):
    # The walk prints each command, prompt and all: what the pages ask for is nobody's secret.
    monkeypatch.setattr(walk_docs, "newcomer", lambda environment: newcomer(environment) | {VARIABLE: OFF})
    assert walk(PAGES) == 0, capfd.readouterr().out


def test_a_page_is_read_as_its_reader_types_it():
    page = """
```bash
make run     # a comment
# only a comment
curl -sf x \\
  -d '{"a":
       1}'
```
```json
{"no": "command"}
```
```python
print(1)
print(2)
```
"""
    assert [(step.language, step.text.split()[0]) for step in steps(page)] == [
        ("bash", "make"),
        ("bash", "curl"),
        ("python", "print(1)"),
    ]
    assert steps(page)[1].text.endswith("1}'")


def test_every_page_has_commands_of_every_kind():
    texts = {page: steps((PROJECT / page).read_text()) for page in PAGES}
    assert [step.text.split("#")[0].strip() for step in texts["README.md"]][:2] == [
        "make run",
        "make draw PROMPT='a green frog'",
    ]
    assert {step.language for step in texts["docs/quickstart.md"]} == {"bash", "python", "javascript"}


@pytest.mark.parametrize(
    ("command", "printed", "why"),
    [
        ("make run", "done\n", "printed no file"),
        ("make run", "saved outputs/none.png\n", "no image"),
        ("make draw PROMPT='x'", "saved outputs/text.png\n", "no image"),
        ("curl -s localhost/run", "<html>", "not JSON"),
        ("curl -s localhost/run", '{"error": "no"}', "is an error"),
        ("curl -s localhost/run", '{"output": {"images": ["bm8gaW1hZ2U="]}}', "no image"),
        ("curl -s localhost/x -o frog.png", "", "frog.png is no image"),
    ],
)
def test_a_command_that_does_not_do_what_the_page_says_is_found(command, printed, why, tmp_path):
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs/text.png").write_text("no image")
    with pytest.raises(Mistake, match=why):
        check_output(Step("bash", command), printed, tmp_path)


def test_what_does_what_the_page_says_passes(tmp_path):
    (tmp_path / "outputs").mkdir()
    for name in ("outputs/a.png", "frog.png"):
        (tmp_path / name).write_bytes(PNG)
    check_output(Step("bash", "make run"), "saved outputs/a.png\n", tmp_path)
    check_output(Step("bash", "curl -s localhost/x -o frog.png"), "", tmp_path)
    answer = json.dumps({"output": {"images": [base64.b64encode(PNG).decode()]}})
    check_output(Step("bash", "curl -s localhost/run"), answer, tmp_path)


def test_a_newcomer_has_no_environment_on_path(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "pyvenv.cfg").touch()
    path = os.pathsep.join([str(tmp_path / "bin"), "/usr/bin"])
    got = newcomer(
        {"PATH": path, "HOME": "/h", "PYTHONPATH": "x", "VIRTUAL_ENV": "y", "API_KEYS": "z", "MAKEFLAGS": ""}
    )
    assert got == {"PATH": "/usr/bin", "HOME": "/h"}


def test_variables_are_remembered_from_command_to_command_and_a_failure_is_told(tmp_path):
    folder = tmp_path / "project"
    folder.mkdir()
    going = Walk(folder, {"PATH": os.environ["PATH"]})
    going.take(Step("bash", "NAME='two words'"))
    going.take(Step("bash", 'test "$NAME" = "two words"'))
    going.take(Step("python", "import os\nassert os.environ['NAME'] == 'two words'"))
    with pytest.raises(Mistake, match=r"exit status 7"):
        going.take(Step("bash", "exit 7"))


def test_an_environment_that_holds_tools_for_tests_or_is_larger_than_said_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("TORCH", "cpu")
    packages = tmp_path / "lib/python3.11/site-packages"
    (packages / "torch-2.13.0.dist-info").mkdir(parents=True)
    with (packages / "torch.so").open("wb") as file:
        file.truncate(int(float(SIZES["cpu"][1].split()[0]) * 1e9))
    check_environment(tmp_path)
    (packages / "pytest_xdist-3.8.0.dist-info").mkdir()
    with pytest.raises(Mistake, match="pytest-xdist was installed"):
        check_environment(tmp_path)
    (packages / "pytest_xdist-3.8.0.dist-info").rmdir()
    with (packages / "cuda.so").open("wb") as file:
        file.truncate(10**9)
    with pytest.raises(Mistake, match=r"takes 2\.\d+ GB"):
        check_environment(tmp_path)
