import random
import struct

import pytest

from tests.catalog.corpus import gguf_of, index, stored
from worker.catalog.detector import detect_header
from worker.catalog.formats import gguf
from worker.catalog.formats.headers import header_end, parse_header, read_header
from worker.core.errors import CorruptFile, UnsupportedModel
from worker.core.model import Kind, tensor_bytes

VOCABULARY = {"tokenizer.ggml.tokens": [f"word{i}" for i in range(30_000)], "general.alignment": 32}


def head_of(name: str = "flux1-gguf", **pairs: object) -> tuple[bytes, int]:
    return gguf_of(stored(name), pairs)


def test_a_gguf_file_is_read_like_any_other(tmp_path):
    head, size = head_of()
    path = tmp_path / "flux.gguf"
    with path.open("wb") as file:
        file.write(head)
        file.truncate(size)
    read = read_header(path)
    assert (read.container, read.file_bytes) == ("gguf", size)
    assert dict(read.tensors) == dict(stored("flux1-gguf").tensors)
    assert read.metadata["general.architecture"] == "flux"
    found = detect_header(read, path.name)
    assert (found.kind, found.architecture, found.format, found.quantization) == (
        Kind.DENOISER,
        "flux1",
        "gguf",
        "gguf",
    )


def test_shapes_come_in_torchs_order_and_bytes_in_blocks():
    head, size = gguf_of(index({"w": (6, 512)}, dtype="Q4_K"))
    read = parse_header(head, size, "x.gguf")
    assert read.tensors["w"] == ("Q4_K", (6, 512))
    assert read.parameters == 3072
    assert read.weight_bytes == 6 * 2 * 144


@pytest.mark.parametrize(
    ("dtype", "wanted"),
    [("Q8_0", 1024 // 32 * 34), ("Q6_K", 1024 // 256 * 210), ("IQ4_XS", 4 * 136), ("F16", 2048), ("F4", 512)],
)
def test_sizes_of_block_types(dtype, wanted):
    assert tensor_bytes(dtype, (4, 256)) == wanted


def test_a_flux_in_q4_weighs_less_than_7_gb():
    assert 6.4e9 < stored("flux1-gguf").weight_bytes < 7.0e9
    assert 11.8e9 < stored("flux1-gguf").parameters < 12.0e9


def test_the_shape_that_comfyui_noted_is_believed():
    head, size = gguf_of(index({"w": (1, 64)}, dtype="F16"), {"comfy.gguf.orig_shape.w": [4, 4, 2, 2]})
    assert parse_header(head, size, "x").tensors["w"] == ("F16", (4, 4, 2, 2))
    head, size = gguf_of(index({"w": (1, 64)}, dtype="F16"), {"comfy.gguf.orig_shape.w": [9, 9]})
    assert parse_header(head, size, "x").tensors["w"] == ("F16", (1, 64))


def test_a_prefix_that_is_too_short_asks_for_more_and_ends():
    head, size = head_of(**VOCABULARY)
    have, rounds = 512, 0
    while (end := header_end(head[:have], size, "x")) > have:
        have, rounds = end, rounds + 1
    assert end == len(head)
    assert rounds <= 3
    with pytest.raises(CorruptFile, match="too few for its header"):
        parse_header(head[:512], size, "x")


def test_a_remote_header_takes_two_reads():
    head, size = head_of()
    first = header_end(head[:65_536], size, "x")
    assert header_end(head[:first], size, "x") <= max(first, 65_536)


def fields(version: int = 3, tensors: int = 1, pairs: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, pairs)


def tensor(name: bytes = b"w", sizes: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0) -> bytes:
    body = b"".join(struct.pack("<Q", size) for size in sizes)
    return struct.pack("<Q", len(name)) + name + struct.pack("<I", len(sizes)) + body + struct.pack("<IQ", kind, offset)


PAIR = struct.pack("<Q", 1) + b"k"
MALFORMED = {
    "old version": (fields(version=1) + tensor(), UnsupportedModel, "version 1"),
    "many tensors": (fields(tensors=2**40) + tensor(), UnsupportedModel, "the limit is"),
    "many pairs": (fields(pairs=2**40) + tensor(), UnsupportedModel, "the limit is"),
    "no tensors": (fields(tensors=0), UnsupportedModel, "no tensors"),
    "long name": (fields() + struct.pack("<Q", 2**50), CorruptFile, "string of"),
    "many sizes": (fields() + tensor(sizes=(1,) * 9), CorruptFile, "dimensions"),
    "huge": (fields() + tensor(sizes=(2**40, 2**40)), CorruptFile, "impossible shape"),
    "unknown type": (fields() + tensor(kind=99), UnsupportedModel, "unknown GGUF type"),
    "twice": (fields(tensors=2) + tensor() + tensor(offset=16), CorruptFile, "twice"),
    "unknown value": (fields(pairs=1) + PAIR + struct.pack("<I", 77), CorruptFile, "unknown type 77"),
    "deep array": (
        fields(pairs=1) + PAIR + struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQ", 9, 1) * 9,
        CorruptFile,
        "nests",
    ),
    "long array": (fields(pairs=1) + PAIR + struct.pack("<IIQ", 9, 8, 2**40), UnsupportedModel, "values in its header"),
    "weights cut": (fields() + tensor(sizes=(10**6,)), CorruptFile, "truncated"),
    "header cut": (fields(tensors=3) + tensor(), CorruptFile, "truncated"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_gguf_is_refused_by_name(case, tmp_path):
    content, error, text = MALFORMED[case]
    path = tmp_path / "model.gguf"
    path.write_bytes(content + (b"\0" * 600 if "cut" not in case else b""))
    with pytest.raises(error, match=text) as caught:
        read_header(path)
    assert len(caught.value.message) < 400


def test_damage_anywhere_is_a_typed_error():
    head, size = gguf_of(index({"w": (4, 256), "b": (4,)}, dtype="F16"), {"general.name": "x", "list": [1, 2]})
    random_ = random.Random(5)
    refused = 0
    for _ in range(3000):
        content = bytearray(head)
        for _ in range(random_.randint(1, 3)):
            content[random_.randrange(len(head))] = random_.randrange(256)
        try:
            if header_end(bytes(content), size, "x") <= len(content):
                parse_header(bytes(content), size, "x")
        except (CorruptFile, UnsupportedModel):
            refused += 1
    assert refused > 1000


def test_a_header_without_end_is_not_read_forever():
    endless = fields(tensors=40_000) + b"".join(tensor(name=b"%0400d" % at) for at in range(40))
    assert header_end(endless, 2**40, "x") <= gguf.MAX_HEADER_BYTES
