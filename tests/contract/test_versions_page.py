"""The page of versions: every command runs as printed, in its order, and every JSON input of it is taken."""

import json
import re
import shutil

import pytest

from tests.app.commands import invoke, said
from tests.conftest import PROJECT
from worker.catalog.versions import CONTENT
from worker.core.job_input import VERSION_FIELDS, VersionRequest
from worker.transport.job_input import read_input

PAGE = (PROJECT / "docs/versions.md").read_text()
LINES = [line for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S) for line in block.splitlines()]


@pytest.mark.slow
def test_every_command_does_what_the_page_says(tmp_path, monkeypatch):
    import shlex

    shutil.copytree(PROJECT / "models", tmp_path / "models")
    shutil.copy(PROJECT / "models.yaml", tmp_path)
    for name, value in {
        "MODELS_YAML": str(tmp_path / "models.yaml"),
        "VOLUME_DIR": str(tmp_path / "volume"),
        "DEVICE": "cpu",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    printed = {}
    for line in LINES:
        program, *words = shlex.split(line)
        assert program == "imgworker"
        printed[line] = said(invoke(*words))
        if line.endswith("list demo"):
            (entry,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
            written = (tmp_path / "models.yaml").read_text()
            (before,) = re.findall(r"  demo:\n.*?(    defaults: .*?\n)", written, re.S)
            (tmp_path / "models.yaml").write_text(written.replace(before, entry, 1))
    assert (tmp_path / "candidate.png").read_bytes().startswith(b"\x89PNG")
    compared = next(text for line, text in printed.items() if "--golden" in line)
    assert "4 images, demo@v1 on the left and demo@candidate on the right" in compared
    assert all((tmp_path / f"compared/demo-{number}.png").read_bytes()[:4] == b"\x89PNG" for number in range(1, 5))
    texts = [*printed.values()]
    assert "v1" in texts[0] and "as it came" in texts[1]
    history = next(text for line, text in printed.items() if line.endswith("history demo"))
    assert re.findall(r"@(?:stable|candidate): \w+ → v\d", history) == [
        "@stable: v2 → v1",
        "@stable: v1 → v2",
        "@candidate: none → v2",
        "@stable: none → v1",
    ]


def test_every_input_of_the_page_is_taken_and_every_field_is_named():
    inputs = [json.loads(line)["input"] for line in PAGE.splitlines() if line.startswith('{"input"')]
    assert {each["action"] for each in inputs} == {*VERSION_FIELDS}
    for each in inputs:
        assert isinstance(read_input(each).request, VersionRequest), each
    content = PAGE.split("is content.**", 1)[1].split("\n\n")[0]
    assert {*CONTENT} - {*re.findall(r"`(\w+)`", content)} == set()
