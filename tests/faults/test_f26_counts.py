"""Headers and documents with millions of entries: refused by their counts, before anything is made of them."""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiohttp import web

from tests.fakes import FakeServer
from tests.fakes.web_worker import WebWorker
from tests.faults.measuring import measured
from tests.faults.table import Figures
from worker.catalog.formats.headers import MAX_PAIRS, read_header
from worker.core.errors import SourceUnavailable, UnsupportedModel, WorkerError
from worker.core.json_text import JsonLimits, JsonTooLarge, check_counts, parse_bounded
from worker.net.client import Client
from worker.store.civitai_api import CivitaiApi
from worker.store.hub_listing import HubListings
from worker.store.refs import parse_reference

ENTRY = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


def safetensors(header: bytes | dict, data: bytes = bytes(4)) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header, ensure_ascii=False).encode()
    return struct.pack("<Q", len(text)) + text + data


def text(content: bytes) -> bytes:
    return struct.pack("<Q", len(content)) + content


def gguf(value: bytes) -> bytes:
    tensor = text(b"w") + struct.pack("<IQIQ", 1, 1, 0, 0)
    return b"GGUF" + struct.pack("<IQQ", 3, 1, 1) + text(b"key") + value + tensor + bytes(64)


def array(kind: int, count: int, items: bytes) -> bytes:
    return struct.pack("<IIQ", 9, kind, count) + items


def members(thousands: int, value: bytes) -> bytes:
    """Return so many thousand members of a JSON object, each of another name."""
    thousand = b",".join(b'"#%03d":%s' % (index, value) for index in range(1_000))
    return b",".join(thousand.replace(b"#", b"%x." % index) for index in range(thousands))


def hostile_headers() -> Iterator[tuple[str, bytes]]:
    def pairs(thousands: int) -> bytes:
        return b'{"__metadata__":{%s},"w":%s}' % (members(thousands, b'""'), json.dumps(ENTRY).encode())

    yield "2.5 million keys of metadata", safetensors(pairs(2_500))
    yield "a million keys of metadata", safetensors(pairs(1_000))
    empty = b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}'
    yield "200,000 tensors", safetensors(b"{%s}" % members(200, empty), b"")
    yield "a shape of 7 million sizes", safetensors(b'{"w":{"shape":[' + b"0," * 7_000_000 + b"0]}}")
    yield "5 million lists", safetensors(b'{"w":[' + b"[]," * 5_000_000 + b"0]}")
    yield "3 million objects", safetensors(b'{"w":[' + b"{}," * 3_000_000 + b"0]}")
    yield "gguf: 2 million texts", gguf(array(8, 2_000_000, text(b"x") * 2_000_000))
    yield "gguf: 2 million lists", gguf(array(9, 2_000_000, struct.pack("<IQ", 0, 0) * 2_000_000))
    yield "gguf: lists in a list", gguf(array(9, 900_000, struct.pack("<IQ", 0, 0) * 900_000))
    yield "gguf: a text of 60 MB", gguf(struct.pack("<I", 8) + text(b"x" * 60_000_000))


def header_outcome(path: str) -> tuple[str, float]:
    """Run in a child: what comes of a header, and in how many seconds."""
    started = time.perf_counter()
    try:
        read_header(Path(path))
        outcome = "taken"
    except WorkerError as error:
        outcome = error.code
    return outcome, time.perf_counter() - started


def test_a_header_of_millions_of_entries_is_refused_in_little_memory(tmp_path: Path, figures: Figures) -> None:
    (tmp_path / "plain").write_bytes(safetensors({"w": ENTRY}))
    paths = []
    for name, content in hostile_headers():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(content)
    warm, told = str(tmp_path / "plain"), [str(path) for path in paths]
    results = measured(f"{__name__}:header_outcome", warm, told, traces=True)
    outcomes = {path.name: result["outcome"][0] for path, result in zip(paths, results, strict=True)}
    assert set(outcomes.values()) <= {"unsupported_model", "corrupt_file"}, outcomes
    most, kept = (max(result[name] for result in results) for name in ("allocated", "allocated and kept"))
    figures("F26", "allocated for a refused header", most, "MB", at_most=100)
    figures("F26", "of that, kept", kept, "MB", at_most=1)
    most, kept = max(result["peak"] for result in results), sum(result["kept"] for result in results)
    figures("F26", "memory of a refused header", most, "MB", at_most=150, momentary=True)
    figures("F26", "memory kept of all refused headers", kept, "MB", at_most=40, momentary=True)
    slowest = max(result["outcome"][1] for result in results)
    figures("F26", "time of a refused header", slowest, "s", at_most=2, momentary=True)


def test_pairs_of_metadata_have_a_number(tmp_path: Path) -> None:
    """All of them are kept with the header."""
    pairs = json.dumps({str(number): "" for number in range(MAX_PAIRS + 1)}).encode()
    (tmp_path / "many").write_bytes(safetensors(b'{"__metadata__":%s,"w":%s}' % (pairs, json.dumps(ENTRY).encode())))
    with pytest.raises(UnsupportedModel, match="pairs of metadata"):
        read_header(tmp_path / "many")


DOCUMENTS = {
    "lists": b'{"a": [' + b"[]," * 1_000_000 + b"0]}",
    "numbers": b'{"a": [' + b"0," * 1_000_000 + b"0]}",
    "keys": b"{%s}" % members(500, b"0"),
    "nested 960 deep": b'{"prompt": "x", "eta": ' + b"[" * 960 + b"]" * 960 + b"}",
    "nested 100,000 deep": b'{"prompt": "x", "eta": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
}
DOORS = ("/run", "/runsync", "/v2/any/runsync", "/diffusers/generate", "/v1/images/generations", "/inspect", "/plan")


def test_a_body_of_millions_of_values_is_refused_by_name_at_every_door(tmp_path: Path, figures: Figures) -> None:
    wrong = []
    with WebWorker(tmp_path) as served:
        for door in DOORS:
            for name, document in DOCUMENTS.items():
                answer = served.http.post(door, content=document, headers={"Content-Type": "application/json"})
                if answer.status_code != 400 or "body" not in answer.text:
                    wrong.append((door, name, answer.status_code, answer.text[:80]))
        assert served.context.builder.built == 0
    assert wrong == []
    figures("F26", "bodies answered otherwise than with a 400", len(wrong), at_most=0)


class TestCounting:
    @pytest.mark.parametrize("block", [1, 2, 3, 7, 100])
    @pytest.mark.parametrize("kind", [str, str.encode])
    def test_only_what_stands_outside_of_texts_counts(self, monkeypatch, block, kind):
        monkeypatch.setattr("worker.core.json_text._BLOCK", block)
        value = {'"[\\{,:': ["\\", '\\"', "[[[[", {"é": [1, 2, "\\\\"]}], "": "}]" * 3}
        document = kind(json.dumps(value, ensure_ascii=False))
        exact = JsonLimits(values=11, texts=8, depth=4)
        assert parse_bounded(document, exact) == value
        for tight in (JsonLimits(10, 8, 4), JsonLimits(11, 7, 4), JsonLimits(11, 8, 3)):
            with pytest.raises(JsonTooLarge):
                check_counts(document, tight)

    def test_json_of_windows_is_read_and_counted_too(self):
        assert parse_bounded('{"a": "b"}'.encode("utf-16")) == parse_bounded('\ufeff{"a": "b"}'.encode()) == {"a": "b"}
        with pytest.raises(JsonTooLarge):
            parse_bounded(('["\\"",' + "[]," * 300_000 + "0]").encode("utf-16"))


class Answering(FakeServer):
    """Answers every question with the same body."""

    def __init__(self) -> None:
        super().__init__()
        self.body = b""

    def add_routes(self, router: web.UrlDispatcher) -> None:
        """Register the one route."""
        router.add_get("/{path:.*}", self._answer)

    async def _answer(self, request: web.Request) -> web.Response:
        return web.Response(body=self.body, content_type="application/json")


LISTINGS = {
    "HTML": (b"<!doctype html><p>Sign in", SourceUnavailable),
    "nothing": (b"", SourceUnavailable),
    "a list": (b"[]", SourceUnavailable),
    "nested 10,000 deep": (b'{"siblings":' + b"[" * 10_000 + b"]" * 10_000 + b"}", WorkerError),
    "a million files": (b'{"siblings":[' + b'{"rfilename":"x"},' * 1_000_000 + b"{}]}", WorkerError),
    "20 MB": (b'{"x":"' + b"x" * 20_000_000 + b'"}', WorkerError),
    "of other types": (b'{"siblings":[1,{"rfilename":2},{"rfilename":"a","size":"b","lfs":[1]}],"tags":5}', None),
}


@pytest.mark.parametrize("case", LISTINGS)
@pytest.mark.parametrize("service", ["hub", "civitai"])
def test_a_listing_that_is_none_is_refused_by_a_typed_error(case: str, service: str) -> None:
    body, error = LISTINGS[case]
    with Answering() as server:
        server.body = body
        client = Client({server.origin: None})
        source = parse_reference("org/model" if service == "hub" else "civitai:1@2")
        if error is None and service == "hub":
            assert HubListings(server.origin, client).ask(source, attempts=1).files.keys() == {"a"}
            return
        with pytest.raises(error or WorkerError) as caught:
            if service == "hub":
                HubListings(server.origin, client).ask(source, attempts=1)
            else:
                CivitaiApi(client, server.origin, has_token=False).version(source, attempts=1)
    assert caught.value.field == "model"
    assert caught.value.code in ("source_unavailable", "unsupported_model")
