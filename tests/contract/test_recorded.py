"""Recorded requests to every door get the answers that were recorded, byte for byte but for what masks.py names."""

import difflib
import re
from pathlib import Path

import pytest

from tests.contract.recorded.conversation import FOLDER, play, read, written
from tests.fakes.web_worker import WebWorker

FILES = sorted(FOLDER.glob("*.json"))


@pytest.mark.quick_rows(6)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_conversation_goes_as_before(path: Path, tmp_path: Path) -> None:
    recorded = read(path)
    today = written(play(recorded, tmp_path))
    if today != written(recorded):
        diff = difflib.unified_diff(
            written(recorded).split("\n"), today.split("\n"), "recorded", "today", lineterm="", n=6
        )
        changed = "\n".join([*diff][:200])
        pytest.fail(
            f"answers of {path.name} have changed; if that is meant, `python -m tests.contract.recorded {path.stem}` "
            f"records them again:\n{changed}",
            pytrace=False,
        )


def test_every_path_of_the_server_is_among_them(tmp_path: Path) -> None:
    with WebWorker(tmp_path) as served:
        document = served.http.get("/openapi.json").json()
    sent = [exchange["send"] for path in FILES for exchange in read(path)["exchanges"]]
    asked = {(send.get("method", "GET"), send["path"].partition("?")[0]) for send in sent if "path" in send}
    for path, methods in document["paths"].items():
        pattern = re.compile(re.sub(r"\\\{\w+\\\}", ".+", re.escape(path)))
        for method in {"get", "post"} & methods.keys():
            images = path == "/v1/images/{id}/content"  # a saved address
            assert images or any(pattern.fullmatch(to) for by, to in asked if by == method.upper()), (method, path)
