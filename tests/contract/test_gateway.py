"""The recorded conversations of every door, held with a gateway before the worker: callers see no difference."""

import difflib
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.contract.recorded.conversation import FOLDER, play, read, written

pytestmark = pytest.mark.slow

FILES = [path for path in sorted(FOLDER.glob("*.json")) if read(path)["worker"].get("door") != "queue"]
# Exchanges that are about the device itself, which a gateway does not have: it refuses, or answers for its fleet.
OF_THE_DEVICE = {
    "preload-as-admin",
    "unload-as-admin",
    "metrics-as-admin",
    "metrics",  # those of a health check while it has not looked at its worker yet, and of the refusals above
    "plan",
    "plan-editor",
    "run-action-plan",
    "run-action-status",
    "run-action-preload",
    "run-action-unload",
    "run-action-unload-again",
    "health-busy",
    "measured",  # a plan
    "fleet",  # a worker has none
    "cache",  # the worker's models on its volume
    "pull",
    "pull-unknown",
    "pin-unknown",
    "pin-wrong",
    "remove-unknown",
    "promote-without-version",  # this gateway has another volume than its worker: it refuses all changes of versions
    "rollback-to-nothing",
    "split-of-nothing",
    "promote-as-an-action",
    "openai-stream-engine-fails",  # its preview may come with the failure, which is then all that is told
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_recorded_conversation_goes_the_same_by_a_gateway(path: Path, tmp_path: Path) -> None:
    recorded = read(path)
    today = json.loads(written(play(recorded, tmp_path, by_gateway=True, at_once=OF_THE_DEVICE)))
    before = written(_plain(json.loads(written(recorded))))
    after = written(_plain(today))
    diff = difflib.unified_diff(before.split("\n"), after.split("\n"), "by a worker", "by a gateway", "", "", 6, "")
    assert before == after, "\n".join([*diff][:120])


def _plain(value: Any) -> Any:
    """Return a conversation without what a gateway adds, and with the keys of objects in one order."""
    if isinstance(value, dict):
        if str(value.get("name")) in OF_THE_DEVICE:
            return {"name": value["name"]}
        return {key: _plain(part) for key, part in sorted(value.items()) if key != "placement"}
    if isinstance(value, list):
        # Which previews a gateway is in time for is a matter of luck: it listens once the job was taken.
        return [_plain(part) for part in value if not _is_preview(part)]
    if isinstance(value, str) and value.startswith("outputs/"):  # of a job that the worker knows by an id of its own
        return re.sub(r"^outputs/[^/]+/", "outputs/<id>/", value)
    if isinstance(value, str) and value.startswith('{"input": {'):  # what stands in an image's metadata
        return json.dumps(json.loads(value), sort_keys=True)
    return value


def _is_preview(part: Any) -> bool:
    return isinstance(part, dict) and str(part.get("event")).endswith(".partial_image")
