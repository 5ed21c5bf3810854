"""CivitAI's JSON with anything in any place of it: a version and a file, or one sentence."""

import contextlib
import copy
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from worker.core.errors import WorkerError
from worker.core.model import ModelSource
from worker.store.civitai_listing import check_file, check_version, choose_file, newest_version, read_version

FILE = {
    **{"id": 302, "name": "style.safetensors", "type": "Model", "sizeKB": 1.5, "primary": True},
    **{"virusScanResult": "Success", "pickleScanResult": "Success", "hashes": {"SHA256": "AB" * 32}},
    "metadata": {"format": "SafeTensor", "size": "full", "fp": "fp16", "quantType": None},
}
VERSION = {
    **{"id": 202, "modelId": 100, "name": "v2", "baseModel": "Pony", "usageControl": "Download", "status": "Published"},
    **{"availability": "Public", "publishedAt": "2025-01-01T00:00:00.000Z", "trainedWords": ["grey"]},
    "model": {"name": "Grey Style", "type": "LORA", "mode": None},
    "files": [FILE, {**FILE, "id": 303, "name": "style.pt", "metadata": {"format": "PickleTensor"}}],
}
MODEL = {"id": 100, "name": "Grey Style", "type": "LORA", "tags": ["style"], "mode": None, "modelVersions": [VERSION]}


def places(value, path=()):
    """Every place of a JSON value, as the keys that lead there."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from places(inner, (*path, key))


WORDS = st.sampled_from(["Model", "VAE", "SafeTensor", "Danger", "Pending", "Archived", "Workflows", "2025", "a\nb"])
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | WORDS
JSON = SCALARS | st.lists(SCALARS, max_size=3) | st.dictionaries(st.text(max_size=5), SCALARS, max_size=3)
CHANGES = st.lists(st.tuples(st.sampled_from(sorted(places(MODEL), key=str)), JSON), max_size=3)


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(changes=CHANGES, choice=st.sampled_from([None, "fp=fp16", "quantType=Q4", "type=Model&format=PickleTensor"]))
def test_any_json_is_a_version_with_a_file_or_one_sentence(changes, choice):
    model = copy.deepcopy(MODEL)
    for path, value in changes:
        with contextlib.suppress(LookupError, TypeError, AttributeError):  # an earlier change took the place away
            inner = model
            for key in path[:-1]:
                inner = inner[key]
            inner[path[-1]] = value
    listed = model["modelVersions"]
    version = listed[0] if isinstance(listed, list) and listed and isinstance(listed[0], dict) else VERSION
    source = ModelSource(scheme="civitai", locator="", choice=choice)
    try:
        assert newest_version(model, datetime.now(UTC)) > 0
        read = read_version(version, model)
        check_version(read, source, {"Veo 3"})
        file = choose_file(read, source)
        check_file(file, read, source, allow_pickles=False)
    except WorkerError as error:
        assert error.field == "model"
        assert error.message.isprintable()
        return
    assert file in read.files
    assert file.format in {"SafeTensor", "GGUF"}
    assert set(file.scans.values()) <= {"Success", ""}


def test_a_format_that_says_nothing_counts_by_the_suffix():
    files = [{**FILE, "name": "style.sft", "metadata": {"format": "Other"}}]
    version = read_version({**VERSION, "files": files}, {})
    assert version.files[0].format == "SafeTensor"


def test_halves_for_high_and_low_noise_are_asked_about():
    names = ("wan22_HighNoise.safetensors", "wan22-low_noise.safetensors")
    files = [{**FILE, "id": number, "name": name} for number, name in enumerate(names, 302)]
    version = read_version({**VERSION, "files": files}, {})
    with pytest.raises(WorkerError, match=r"high and one for low noise.*wan22_HighNoise.*wan22-low_noise"):
        choose_file(version, ModelSource(scheme="civitai", locator="100"))
    assert choose_file(version, ModelSource(scheme="civitai", locator="100", filename="303")).name == names[1]
