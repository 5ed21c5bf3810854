import json
import random
import struct

import numpy
import pytest
from safetensors.numpy import save_file

from tests.catalog.corpus import header_of, index, sparse_file, stored
from tests.counting import Count, bytes_read, calls_of
from worker.catalog.formats import headers
from worker.catalog.formats.headers import header_end, parse_header, read_header
from worker.core.errors import CorruptFile, UnsafeFormat, UnsupportedModel


def build(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def one(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


def two(second: int) -> dict[str, object]:
    return {
        "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]},
        "b": {"dtype": "F32", "shape": [1], "data_offsets": [second, second + 4]},
    }


WHOLE = build(one(), b"\0" * 8)
MANY = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(headers.MAX_TENSORS + 1)}

MALFORMED = {
    "empty": (b"", CorruptFile, "empty"),
    "five bytes": (b"\1\0\0\0\0", CorruptFile, "holds no header"),
    "html": (b"<!DOCTYPE html><html><body>Log in</body></html>", CorruptFile, "HTML page"),
    "html after blanks": (b"\r\n  <html lang='en'>" + b" " * 600, CorruptFile, "HTML page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", CorruptFile, "git-LFS pointer"),
    "json error": (b'{"error":"Unauthorized","message":"log in"}', CorruptFile, "JSON text"),
    "empty gguf": (b"GGUF\3\0\0\0" + b"\0" * 64, UnsupportedModel, "no tensors"),
    "torch zip": (b"PK\3\4\0\0\0\x08\0\0" + b"\0" * 20 + b"archive/data.pkl", UnsafeFormat, "convert it"),
    "legacy pickle": (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", UnsafeFormat, "convert it to safetensors"),
    "protocol 4 pickle": (b"\x80\x04\x95\x10\0\0\0\0\0\0\0}\x94.", UnsafeFormat, "Python pickle"),
    "plain zip": (b"PK\3\4\x14\0\0\0\x08\0" + b"\0" * 20 + b"model.safetensors", UnsupportedModel, "zip archive"),
    "gzip": (b"\x1f\x8b\x08\0" + b"\0" * 64, UnsupportedModel, "gzip archive"),
    "tar": (b"a.txt" + b"\0" * 252 + b"ustar\0" + b"\0" * 249, UnsupportedModel, "tar archive"),
    "image": (b"\x89PNG\r\n\x1a\n" + b"\0" * 64, UnsupportedModel, "PNG image"),
    "webp": (b"RIFF\0\0\0\0WEBPVP8 " + b"\0" * 64, UnsupportedModel, "WebP image"),
    "video": (b"\0\0\0\x20ftypisom" + b"\0" * 64, UnsupportedModel, "is a video"),
    "dduf": (b"PK\3\4\x14\0\0\0\0\0" + b"\0" * 20 + b"model_index.json{}", UnsupportedModel, "DDUF archive"),
    "numpy": (b"PK\3\4\x14\0\0\0\0\0" + b"\0" * 20 + b"w.npy", UnsupportedModel, "NumPy archive"),
    "core ml": (b"PK\3\4\x14\0\0\0\0\0" + b"\0" * 20 + b"unet.mlmodelc/x", UnsupportedModel, "Core ML"),
    "onnx": (b"\x08\x07\x12\x07pytorch\x1a\x052.1.0" + b"\0" * 64, UnsupportedModel, "ONNX model"),
    "tensorrt": (b"ftrt" + b"\0" * 64, UnsupportedModel, "TensorRT engine"),
    "keras": (b"\x89HDF\r\n\x1a\n" + b"\0" * 64, UnsupportedModel, "Keras"),
    "pdf": (b"%PDF-1.7" + b"\xff" * 64, UnsupportedModel, "PDF"),
    "workflow": (b'{"last_node_id": 9, "nodes": []}', UnsupportedModel, "ComfyUI workflow"),
    "brace in a text": (b'{"a": 1,{' + b" " * 64, CorruptFile, "JSON text"),
    "shard index": (b'{"metadata": {}, "weight_map": {"a": "b"}}', UnsupportedModel, "index of a sharded model"),
    "yaml": (b"model:\n  base_learning_rate: 1.0e-04\n" * 9, UnsupportedModel, "is a text"),
    "noise": (b"\x17\x2a" * 64, UnsupportedModel, "not a safetensors file"),
    "absurd length": (build(b"{}", length=2**63), CorruptFile, "claims a header"),
    "long header": (build(b"{}", length=headers.MAX_HEADER_BYTES + 1), UnsupportedModel, "the limit is"),
    "header cut": (WHOLE[:20], CorruptFile, "truncated"),
    "weights cut": (WHOLE[:-1], CorruptFile, "truncated"),
    "trailing bytes": (WHOLE + b"\0", CorruptFile, "after its last tensor"),
    "not json": (build(b"{nope}"), CorruptFile, "not JSON"),
    "not utf-8": (build(b'{"\xff":1}'), CorruptFile, "not JSON"),
    "deep json": (build(b'{"a":' + b"[" * 100_000), UnsupportedModel, "nested"),
    "duplicate name": (build(b'{"w":1,"w":1}'), CorruptFile, "twice"),
    "no tensors": (build({}), UnsupportedModel, "no tensors"),
    "too many": (build(MANY), UnsupportedModel, "the limit is"),
    "entry no object": (build({"w": 3}), CorruptFile, "not an object"),
    "unknown dtype": (build(one(dtype="F7")), UnsupportedModel, "unknown dtype"),
    "dtype no text": (build(one(dtype=["F32"])), UnsupportedModel, "unknown dtype"),
    "negative size": (build(one(shape=(-2,))), CorruptFile, "list of sizes"),
    "size is a bool": (build(one(shape=(True,))), CorruptFile, "list of sizes"),
    "size is a float": (build(one(shape=(2.0,))), CorruptFile, "list of sizes"),
    "nine dimensions": (build(one(shape=(1,) * 9, offsets=(0, 4))), CorruptFile, "9 dimensions"),
    "no offsets": (build(one(offsets=(0,))), CorruptFile, "data_offsets"),
    "wrong bytes": (build(one(offsets=(0, 4)), b"\0" * 4), CorruptFile, "has 4 bytes for"),
    "overlap": (build(two(2), b"\0" * 6), CorruptFile, "overlap"),
    "hole": (build(two(8), b"\0" * 12), CorruptFile, "hole"),
    "huge sizes": (build(one(shape=(2**62, 2**62))), CorruptFile, "bytes for a"),
    "metadata no text": (build(one() | {"__metadata__": {"a": 1}}, b"\0" * 8), CorruptFile, "metadata"),
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_file_is_refused_by_name(case, tmp_path):
    content, error, text = MALFORMED[case]
    path = tmp_path / "secret-folder" / "model.safetensors"
    path.parent.mkdir()
    path.write_bytes(content)
    with Count() as count, pytest.raises(error) as caught:
        read_header(path)
    assert type(caught.value) is error
    assert text in caught.value.message
    assert "model.safetensors" in caught.value.message
    assert "secret-folder" not in caught.value.message
    assert len(caught.value.message) < 400
    assert count.calls < 300_000


def test_each_malformed_case_has_its_own_answer(tmp_path):
    messages = {}
    for case in ("empty", "html", "lfs pointer", "dduf", "torch zip", "plain zip", "noise", "weights cut", "not json"):
        path = tmp_path / "x.safetensors"
        path.write_bytes(MALFORMED[case][0])
        with pytest.raises((CorruptFile, UnsafeFormat, UnsupportedModel)) as caught:
            read_header(path)
        messages[caught.value.message] = case
    assert len(messages) == 9


def test_a_good_file_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(build({"__metadata__": {"format": "pt"}} | one(), b"\0" * 8))
    read = read_header(path)
    assert read.tensors == {"w": ("F32", (2,))}
    assert read.metadata == {"format": "pt"}
    assert read.file_bytes == path.stat().st_size
    assert read.weight_bytes == 8


def test_scalars_and_empty_tensors_are_allowed():
    header = {
        "alpha": {"dtype": "F16", "shape": [], "data_offsets": [0, 2]},
        "v_pred": {"dtype": "F32", "shape": [0], "data_offsets": [2, 2]},
    }
    content = build(header, b"\0\0")
    assert parse_header(content, len(content), "x").tensors["v_pred"] == ("F32", (0,))


def test_files_of_the_safetensors_library_are_read(tmp_path):
    path = tmp_path / "lib.safetensors"
    save_file({"b": numpy.zeros((3, 4), "float16"), "a": numpy.zeros((5,), "int64")}, path, metadata={"k": "v"})
    read = read_header(path)
    assert dict(read.tensors) == {"b": ("F16", (3, 4)), "a": ("I64", (5,))}
    assert read.metadata == {"k": "v"}


def test_a_missing_file_and_a_folder_are_answered(tmp_path):
    with pytest.raises(CorruptFile, match="is not there"):
        read_header(tmp_path / "no.safetensors")
    with pytest.raises(UnsupportedModel, match="is a folder"):
        read_header(tmp_path)


def test_a_remote_prefix_says_how_much_is_needed():
    head, size = header_of(stored("sdxl"))
    end = header_end(head[:512], size, "sdxl.safetensors")
    assert end == len(head)
    with pytest.raises(CorruptFile, match="512 of the"):
        parse_header(head[:512], size, "sdxl.safetensors")
    assert len(parse_header(head, size, "sdxl.safetensors").tensors) == 2515


def test_a_header_is_parsed_in_a_few_calls_for_each_tensor():
    head, size = header_of(stored("sdxl"))
    tensors = len(parse_header(head, size, "sdxl").tensors)
    assert calls_of(lambda: parse_header(head, size, "sdxl")) < 40 * tensors


def test_a_large_tag_table_is_no_obstacle():
    source = index({"w": (4,)}, ss_tag_frequency="x" * 8_000_000, ss_network_dim="8")
    head, size = header_of(source)
    assert parse_header(head, size, "kohya").metadata == {"ss_network_dim": "8"}, "and nobody keeps it"


def test_damage_anywhere_is_a_typed_error():
    rng = random.Random(7)
    header = {"__metadata__": {"format": "pt"}} | two(4)
    whole = build(header, b"\0" * 8)
    refused = 0
    for _ in range(3000):
        content = bytearray(whole)
        for _ in range(rng.randint(1, 3)):
            content[rng.randrange(len(whole) - 8)] = rng.randrange(256)
        try:
            parse_header(bytes(content), len(content), "x")
        except (CorruptFile, UnsafeFormat, UnsupportedModel):
            refused += 1
    assert refused > 2500


def test_only_the_header_is_read(tmp_path):
    path = sparse_file(tmp_path / "sdxl.safetensors", stored("sdxl"))
    assert path.stat().st_size > 6_900_000_000
    assert path.stat().st_blocks * 512 < 2_000_000, "the test file must be a hole"
    before = bytes_read()
    assert len(read_header(path).tensors) == 2515
    assert bytes_read() - before < 1_000_000
