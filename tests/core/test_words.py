"""The words that walk between rooms: what they refuse, and what they promise."""

import threading

import pytest
from pydantic import ValidationError

from worker.core.errors import JobCancelled, JobTimeout
from worker.core.model import LoraSpec, ModelSource, ModelSpec, TensorIndex
from worker.core.request import GenerationRequest, OutputOptions
from worker.core.turn import StopSignal
from worker.store.refs import parse_reference


@pytest.mark.parametrize(
    "text",
    [
        *("org/repo", "org/repo@main", "org/repo@abc#a/b.safetensors", "org/repo#x.safetensors"),
        *("file:/models/x", "file:/models#x.safetensors"),
    ],
)
def test_a_source_says_how_it_could_be_asked_for(text):
    source = parse_reference(text)
    assert source.reference == text
    assert parse_reference(source.reference) == source


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (GenerationRequest, {"prompt": "x", "unknown": 1}),
        (GenerationRequest, {"seed": True}),
        (GenerationRequest, {"num_images": 1.0}),
        (GenerationRequest, {"timeout_s": float("inf")}),
        (OutputOptions, {"quality": 0}),
        (LoraSpec, {"model": "x", "weight": float("nan")}),
        (LoraSpec, {"model": "x", "weight": 11}),
        (ModelSpec, {"id": "x", "source": ModelSource(scheme="file", locator="/x"), "dtype": "int8"}),
    ],
)
def test_what_is_parsed_is_parsed_strictly(kind, fields):
    with pytest.raises(ValidationError):
        kind(**fields)


def test_what_was_parsed_does_not_change():
    with pytest.raises(ValidationError):
        GenerationRequest(prompt="x").prompt = "y"


def test_a_stop_signal_is_quiet_until_it_is_needed():
    stop = StopSignal(60)
    stop.check()
    assert not stop.cancelled
    assert 59 < stop.remaining_s <= 60


def test_a_deadline_that_passed_stops_the_job_and_names_its_length():
    with pytest.raises(JobTimeout, match=r"timeout_s of 0\.001 seconds") as failure:
        stop = StopSignal(0.001)
        while True:
            stop.check()
    assert stop.remaining_s <= 0
    assert failure.value.field == "timeout_s"


def test_a_job_is_cancelled_from_any_thread():
    stop = StopSignal(60)
    thread = threading.Thread(target=stop.cancel)
    thread.start()
    thread.join()
    with pytest.raises(JobCancelled):
        stop.check()


def test_a_header_knows_its_weights_without_reading_them():
    tensors = {"a": ("F16", (2, 3)), "b": ("F32", (4,)), "c": ("F8_E4M3", (5, 5)), "scalar": ("I64", ())}
    index = TensorIndex(tensors=tensors, metadata={}, container="safetensors", file_bytes=0)
    assert index.parameters == 6 + 4 + 25 + 1
    assert index.weight_bytes == 12 + 16 + 25 + 8


@pytest.mark.parametrize(
    ("source", "host", "is_repository", "is_local"),
    [
        (ModelSource(scheme="hf", locator="org/m"), "huggingface.co", True, False),
        (ModelSource(scheme="civitai", locator="7"), "civitai.com", False, False),
        (ModelSource(scheme="url", locator="https://Models.example.org:84/m?a=b"), "models.example.org", False, False),
        (ModelSource(scheme="url", locator="https:///m.gguf"), "", False, False),
        (ModelSource(scheme="file", locator="/models/m"), "", False, True),
    ],
    ids=lambda value: value.scheme if isinstance(value, ModelSource) else None,
)  # fmt: skip
def test_a_source_says_where_it_is(source, host, is_repository, is_local):
    assert (source.host, source.is_repository, source.is_local) == (host, is_repository, is_local)
