"""F9: files of models made to run code, to end the process or to fill its memory: refused by a type, and nothing ran.

What each of them is told is in tests/catalog/formats and tests/engine/test_pickles.py.
"""

import json
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.asking import perform
from tests.catalog.formats.test_headers import MALFORMED
from tests.catalog.formats.test_pickles import gadgets
from tests.engine.test_pickles import CALLS, Gadget, zipped
from tests.faults.measuring import measured
from worker.app.build import build_worker
from worker.catalog.formats.headers import read_header
from worker.catalog.formats.pickles import MAX_PICKLE_BYTES
from worker.core.errors import CorruptFile, UnsafeFormat, UnsupportedModel, WorkerError
from worker.engine.pickles import PickleConverter

REFUSED = {"unsafe_format", "unsupported_model", "corrupt_file"}


def running(marker: Path) -> Iterator[bytes]:
    """Pickles that write the marker where an ordinary load reads them."""
    for module, name, argument in CALLS:
        told = [text.format(marker) for text in argument] if isinstance(argument, list) else argument.format(marker)
        yield Gadget(module, name, told).stream()
    yield from (stream for _, stream in gadgets(str(marker)))


def test_no_way_to_read_a_pickle_runs_it(tmp_path, figures):
    marker, folder = tmp_path / "ran", tmp_path / "files"
    folder.mkdir()
    reads, otherwise = 0, []
    for number, stream in enumerate(running(marker)):
        for suffix, content in ((".ckpt", stream), (".pt", zipped(stream)), (".safetensors", stream)):
            path = folder / f"{number}{suffix}"
            path.write_bytes(content)
            for allow_pickles in (False, True):
                reads += 1
                try:
                    read_header(path, allow_pickles)
                    otherwise.append((path.name, allow_pickles))
                except (UnsafeFormat, CorruptFile, UnsupportedModel):
                    pass
    figures("F9", "ways in which a pickle was read", reads, at_least=24 * 5)
    figures("F9", "pickles taken for weights", len(otherwise), at_most=0)
    figures("F9", "markers written by pickles", marker.exists(), at_most=0)


@pytest.mark.slow
def test_no_pickle_runs_where_it_is_converted(tmp_path, figures):
    marker, otherwise = tmp_path / "ran", 0
    for number, stream in enumerate(running(marker)):
        path = tmp_path / f"{number}.ckpt"
        path.write_bytes(zipped(stream))
        try:
            PickleConverter(tmp_path / "converted").convert(path)
            otherwise += 1
        except (UnsafeFormat, CorruptFile):
            pass
    figures("F9", "pickles converted", otherwise, at_most=0)
    figures("F9", "markers written by conversions", marker.exists(), at_most=0)


def code_repositories(body: str) -> dict[str, dict[str, object]]:
    """Files of repositories that bring code and ask for it: `body` is in each of their modules."""
    index = {"_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"]}
    unet = {"_class_name": "UNet2DConditionModel", "cross_attention_dim": 768, "sample_size": 8}
    whole: dict[str, object] = {"model_index.json": index, "unet/config.json": unet}
    changed = {
        "a class of its own": {"model_index.json": {**index, "_class_name": "Mine"}, "mine.py": body},
        "a class and its module": {"model_index.json": {**index, "_class_name": ["pipeline", "Mine"]}},
        "a path for a class": {"model_index.json": {**index, "_class_name": "./pipeline/Mine"}},
        "custom_pipeline": {"model_index.json": {**index, "custom_pipeline": "pipeline"}},
        "a part of its own": {"model_index.json": {**index, "unet": ["mine", "Net"]}, "unet/mine.py": body},
        "a part from os": {"model_index.json": {**index, "unet": ["os", "system"]}},
        "auto_map": {"model_index.json": {**index, "auto_map": {"AutoPipeline": "pipeline.Mine"}}},
        "auto_map in a part": {"unet/config.json": {**unet, "auto_map": {"AutoModel": "pipeline.Mine"}}},
        "an attention kernel": {"unet/config.json": {**unet, "_attn_implementation": "evil/kernel"}},
        "a kernel deep down": {
            "unet/config.json": {**unet, "text_config": {"attn_implementation": "evil/kernel@main"}}
        },
    }
    return {name: {**whole, "pipeline.py": body, **files} for name, files in changed.items()}


# A plain name may be a folder of diffusers' pipelines: it is told, and looked for there alone once it is to be loaded.
ONLY_NAMED = ("a part of its own", "a part from os")


async def test_no_repository_brings_code(settings, tmp_path, figures):
    marker = tmp_path / "ran"
    repositories = code_repositories(f"open({str(marker)!r}, 'w').close()\nclass Mine: pass\nclass Net: pass\n")
    worker = build_worker(settings.model_copy(update={"allow_pickles": True, "allow_unregistered_models": True}))
    asked, otherwise = 0, []
    for number, (name, files) in enumerate(repositories.items()):
        folder = settings.volume / f"repository-{number}"
        for place, content in files.items():
            path = folder / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
        for payload in ({"action": "inspect"}, {"action": "plan"}, {"prompt": "x"}):
            asked += 1
            try:
                await perform(worker, {**payload, "model": f"file:{folder}"}, f"{number}-{asked}")
                if "prompt" in payload or name not in ONLY_NAMED:
                    otherwise.append((name, payload, "taken"))
            except WorkerError as error:
                if error.code not in REFUSED:
                    otherwise.append((name, payload, error.message))
    assert otherwise == []
    figures("F9", "repositories with code", len(repositories), at_least=10)
    figures("F9", "repositories not refused by a type", len(otherwise), at_most=0)
    figures("F9", "models loaded from repositories with code", len(worker.engine.resident_models), at_most=0)
    figures("F9", "markers written by repositories", marker.exists(), at_most=0)


def swollen() -> Iterator[tuple[str, bytes]]:
    """Pickles as long as one may be, each byte of which asks for as much as a byte can."""
    room = MAX_PICKLE_BYTES - 16
    yield "lists", b"\x80\x02" + b"]" * room
    yield "lists in each other", b"\x80\x02" + b"]" * (room // 2) + b"a" * (room // 2 - 1) + b"."
    yield "dicts", b"\x80\x02" + b"}" * room
    yield "marks", b"\x80\x02" + b"(" * room
    yield "a memo", b"\x80\x04N" + b"\x94" * room + b"."
    yield "lists and a memo", b"\x80\x04" + b"]\x94" * (room // 2) + b"."
    yield "sets", b"\x80\x04" + b"\x8f" * room + b"."
    yield "tuples in each other", b"\x80\x02N" + b"\x85" * room + b"."
    yield "names", b"\x80\x02" + b"ca\nb\n" * (room // 5) + b"."
    yield "one list a million times", b"\x80\x02]q\x00(" + b"h\x00" * (room // 2 - 4) + b"e."
    yield "a number of all digits", b"\x80\x02I" + b"9" * room + b"\n."
    yield "a text of exabytes", b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"x"
    yield "bytes of terabytes", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x"
    yield "a memo of two billion places", b"\x80\x02]r\xff\xff\xff\x7f."


KEEPING = ("dicts", "a memo", "lists and a memo", "names")
"""Those of which most is in memory at once."""


def outcome(path: str) -> tuple[str, float]:
    """Run in a child: what comes of a file, and in how many seconds."""
    started = time.perf_counter()
    try:
        read_header(Path(path), allow_pickles=True)
        found = "taken"
    except WorkerError as error:
        found = error.code
    return found, time.perf_counter() - started


@pytest.mark.slow
def test_what_a_hostile_file_costs(tmp_path, figures):
    (tmp_path / "plain").write_bytes(b"\x80\x02]q\x00.")
    paths = []
    for name, content in (*swollen(), *((name, row[0]) for name, row in MALFORMED.items())):
        paths.append(tmp_path / f"{len(paths)} {name}")
        paths[-1].write_bytes(content)
    work, warm = f"{__name__}:outcome", str(tmp_path / "plain")
    results = measured(work, warm, [str(path) for path in paths])
    otherwise = [path.name for path, result in zip(paths, results, strict=True) if result["outcome"][0] not in REFUSED]
    assert otherwise == []
    figures("F9", "safetensors and other files that are malformed", len(MALFORMED), at_least=22)
    figures("F9", "hostile files not refused by a type", len(otherwise), at_most=0)
    keeping = [str(path) for path in paths if path.name.partition(" ")[2] in KEEPING]
    assert len(keeping) == len(KEEPING)
    most = max(result["allocated"] for result in measured(work, warm, keeping, traces=True))
    figures("F9", "allocated for a hostile file", most, "MB", at_most=100)
    most = max(result["peak"] for result in results)
    figures("F9", "memory of a hostile file", most, "MB", at_most=150, momentary=True)
    slowest = max(result["outcome"][1] for result in results)
    figures("F9", "time of a hostile file", slowest, "s", at_most=2, momentary=True)
