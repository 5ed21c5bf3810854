"""Inputs made to hurt: URLs that point inwards, images that are bombs. Nothing is reached, little memory is spent."""

import json
import socket
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from worker.core.errors import InvalidImage
from worker.net.fetch import ImageFetcher

PROJECT = Path(__file__).resolve().parents[2]

INWARDS = [
    "http://example.com/x.png",
    "ftp://example.com/x",
    "file:///etc/passwd",
    "gopher://127.0.0.1:70/_x",
    "data:text/plain,x",
    "//127.0.0.1/x",
    "https:/127.0.0.1/x",
    "https:///127.0.0.1/x",
    "https://",
    "https://?x",
    "https://#x",
    "javascript:alert(1)",
    "https://localhost/x",
    "https://LOCALHOST/x",
    "https://localhost./x",
    "https://localhost:8443/x",
    "https://127.0.0.1/x",
    "https://127.0.0.1:443/x",
    "https://127.1/x",
    "https://127.0.1/x",
    "https://0/x",
    "https://0.0.0.0/x",
    "https://2130706433/x",
    "https://0x7f000001/x",
    "https://0x7f.0.0.1/x",
    "https://017700000001/x",
    "https://0177.0.0.1/x",
    "https://127.000.000.001/x",
    "https://127.127.127.127/x",
    "https://%31%32%37.0.0.1/x",
    "https://127%2e0%2e0%2e1/x",
    "https://①②⑦.0.0.1/x",
    "https://127。0。0。1/x",
    "https://127.0.0.1./x",
    "https://169.254.169.254/latest/meta-data/",
    "https://2852039166/x",
    "https://0xa9fea9fe/x",
    "https://169.254.170.2/x",
    "https://10.0.0.1/x",
    "https://172.16.0.1/x",
    "https://172.31.255.255/x",
    "https://192.168.0.1/x",
    "https://100.64.0.1/x",
    "https://100.100.100.200/x",
    "https://192.0.0.192/x",
    "https://198.18.0.1/x",
    "https://224.0.0.1/x",
    "https://240.0.0.1/x",
    "https://255.255.255.255/x",
    "https://192.0.2.1/x",
    "https://203.0.113.7/x",
    "https://[::1]/x",
    "https://[::]/x",
    "https://[0:0:0:0:0:0:0:1]/x",
    "https://[::ffff:127.0.0.1]/x",
    "https://[::ffff:7f00:1]/x",
    "https://[::ffff:169.254.169.254]/x",
    "https://[::127.0.0.1]/x",
    "https://[64:ff9b::127.0.0.1]/x",
    "https://[64:ff9b::a9fe:a9fe]/x",
    "https://[64:ff9b:1::7f00:1]/x",
    "https://[2002:7f00:1::]/x",
    "https://[2002:a9fe:a9fe::1]/x",
    "https://[2001:0:7f00:1::]/x",
    "https://[fe80::1]/x",
    "https://[fe80::1%25lo]/x",
    "https://[fc00::1]/x",
    "https://[fd00:ec2::254]/x",
    "https://[fec0::1]/x",
    "https://[ff02::1]/x",
    "https://[2001:db8::1]/x",
    "https://[100::1]/x",
    "https://[::ffff:0:127.0.0.1]/x",
    "https://168.63.129.16/x",
    "https://[64:ff9b::a83f:8110]/x",
    "https://[3fff::1]/x",
    "https://[3fff:fff:ffff::1]/x",
    "https://[2001:2::1]/x",
    "https://[2001:10::1]/x",
    "https://[2001:20::1]/x",
    "https://[2001:30::1]/x",
    "https://[2001:1::1]/x",
    "https://[2620:4f:8000::1]/x",
    "https://[5f00::1]/x",
    "https://[100:0:0:1::1]/x",
    "https://[2a00:1450::5efe:a00:1]/x",
    "https://[2a00:1450::200:5efe:7f00:1]/x",
    "https://192.31.196.1/x",
    "https://192.52.193.1/x",
    "https://192.88.99.1/x",
    "https://192.175.48.1/x",
    "https://198.51.100.1/x",
    "https://user@127.0.0.1/x",
    "https://example.com@127.0.0.1/x",
    "https://user:pw@example.com/x",
    "https://@example.com/x",
    "https://example.com\\@127.0.0.1/x",
    "https://127.0.0.1\\.example.com/x",
    "https://example.com:99999/x",
    "https://[::1/x",
    "https://example.com:port/x",
    "https://127.0.0.1#@example.com/x",
    "https://127.0.0.1?@example.com/x",
]
INWARDS += [
    "https://example.com/a b",
    "https://example.com/\r\nHost: x",
    "https://exa\tmple.com/",
    "https://exa\x00mple.com/",
]
INWARDS += ["https://example.com/" + "a" * 5_000, " https://127.0.0.1/x", "https://" + "a" * 300 + ".com/x"]

OUTWARDS = ["93.184.216.34", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::1.1.1.1", "172.32.0.1", "100.128.0.1"]
OUTWARDS += ["168.63.129.17", "2001:200::1", "2a00:1450:4001:80b::200e", "2620:4f:8001::1"]
PRIVATE = ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1", "100.64.1.1", "0.0.0.0"]


@pytest.fixture
def connections(monkeypatch):
    """Every address that something connects to; none is reached."""
    tried: list[tuple] = []

    def connect(self, address):
        tried.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket.socket, "connect", connect)
    return tried


def test_the_corpus_is_as_large_as_promised(figures):
    assert len(set(INWARDS)) == len(INWARDS)
    figures("F10", "hostile addresses", len(INWARDS), at_least=63)
    figures("F10", "images that are bombs", len(_bombs()), at_least=20)


@pytest.mark.parametrize("url", INWARDS)
def test_an_url_that_points_inwards_reaches_nothing(url, connections):
    with pytest.raises(InvalidImage) as caught:
        ImageFetcher(deadline_s=5)(url, 1_000)
    assert connections == []
    assert caught.value.field == "image"
    assert "127.0.0.1" not in caught.value.message


def _resolving(monkeypatch, address):
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    answer = [(family, socket.SOCK_STREAM, 6, "", (address, 443))]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: answer)


@pytest.mark.parametrize("address", PRIVATE)
def test_a_name_that_resolves_inwards_reaches_nothing(address, monkeypatch, connections):
    _resolving(monkeypatch, address)
    with pytest.raises(InvalidImage, match="public"):
        ImageFetcher()("https://innocent.example/x.png", 1_000)
    assert connections == []


@pytest.mark.parametrize("address", OUTWARDS)
def test_a_public_address_is_not_blocked_by_mistake(address, monkeypatch, connections):
    _resolving(monkeypatch, address)
    with pytest.raises(InvalidImage, match="in time"):
        ImageFetcher()("https://innocent.example/x.png", 1_000)
    assert connections, "it was tried"


def test_a_name_that_changes_its_address_after_the_check_gains_nothing(monkeypatch):
    answers = iter(["93.184.216.34", "127.0.0.1", "127.0.0.1"])
    family = (socket.AF_INET, socket.SOCK_STREAM, 6, "")
    real, tried = socket.getaddrinfo, []

    def lookup(host, port, *args, **kwargs):
        return [(*family, (next(answers), port))] if host == "innocent.example" else real(host, port, *args, **kwargs)

    def connect(self, address):
        tried.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    monkeypatch.setattr(socket.socket, "connect", connect)
    with pytest.raises(InvalidImage):
        ImageFetcher()("https://innocent.example/x.png", 1_000)
    assert tried == ["93.184.216.34"]


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, data: bytes = b"", extra: bytes = b"", depth: int = 8, color: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + extra + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")


def _webp(width: int, height: int, flags: int = 0) -> bytes:
    """An extended WebP whose canvas is said to be of this size."""
    canvas = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    frame = b"VP8L" + struct.pack("<I", 8) + b"\x2f\0\0\0\0\x88\x88\x08"
    if flags & 2:  # an animation of one frame of a pixel
        head = b"\0" * 12 + b"\0\0\0\0"
        anim = b"ANIM" + struct.pack("<I", 6) + b"\0" * 6
        frame = anim + b"ANMF" + struct.pack("<I", len(head) + len(frame)) + head + frame
    body = b"WEBP" + b"VP8X" + struct.pack("<I", 10) + bytes([flags, 0, 0, 0]) + canvas + frame
    return b"RIFF" + struct.pack("<I", len(body)) + body


def _jpeg(width: int, height: int) -> bytes:
    frame = struct.pack(">HBHHB", 17, 8, height, width, 3) + b"\x01\x11\0\x02\x11\0\x03\x11\0"
    return b"\xff\xd8\xff\xc0" + frame + b"\xff\xda\0\x0c\x03\x01\0\x02\0\x03\0\0?\0" + b"\0" * 100 + b"\xff\xd9"


def _tiff(width: int, height: int, *, endless: bool = False) -> bytes:
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: width * height}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value % 2**32) for tag, value in values.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(values)) + entries + (b"\x08\0\0\0" if endless else bytes(4))


def _gif_frame(width: int, height: int) -> bytes:
    return b"," + struct.pack("<HHHHB", 0, 0, width, height, 0) + b"\x08\x02\0\0\0;"


def _bmp(width: int, height: int, compression: int = 0) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, compression, 0, 0, 0, 2, 0)
    return b"BM" + struct.pack("<IHHI", 0, 0, 0, 62) + header + bytes(8) + b"\1\0" * 50_000


def _bombs() -> dict[str, bytes]:
    zeros = zlib.compress(bytes(40 * 2**20), 9)
    text = _chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(200 * 2**20), 9))
    profile = _chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(100 * 2**20), 9))
    return {
        "png 17 megapixels": _png(4_200, 4_200, zeros),
        "png 88 megapixels": _png(9_400, 9_400, zeros),
        "png 144 megapixels": _png(12_000, 12_000, zeros),
        "png 4 gigapixels": _png(65_500, 65_500, zeros),
        "png of 2^31": _png(2**31 - 1, 2**31 - 1, zeros),
        "png of no width": _png(0, 100, zeros),
        "png one bit": _png(60_000, 60_000, zeros, depth=1, color=0),
        "png ribbon": _png(8_000, 1, zeros),
        "png wide": _png(8_193, 500, zeros),
        "png without pixels": _png(4_000, 4_000),
        "png with too few pixels": _png(4_000, 4_000, zlib.compress(bytes(1_000))),
        "png of noise": _png(4_000, 4_000, b"\xff" * 10_000),
        "png text bomb": _png(16, 16, zlib.compress(bytes(16 * 49)), text),
        "png profile bomb": _png(16, 16, b"", profile),
        "webp canvas": _webp(16_384, 16_384),
        "webp canvas of 2^24": _webp(2**24, 2**24),
        "webp animation": _webp(16_384, 16_384, flags=2),
        "webp animation, middling": _webp(8_000, 8_000, flags=2),
        "jpeg 4 gigapixels": _jpeg(65_500, 65_500),
        "jpeg 100 megapixels": _jpeg(10_000, 10_000),
        "jpeg without pixels": _jpeg(4_000, 4_000),
        "tiff 4 gigapixels": _tiff(65_500, 65_500),
        "tiff 100 megapixels": _tiff(10_000, 10_000),
        "tiff without pixels": _tiff(4_000, 4_000),
        "tiff of pages without end": _tiff(16, 16, endless=True),
        "gif 4 gigapixels": b"GIF89a\xdc\xff\xdc\xff\0\0\0" + _gif_frame(65_500, 65_500),
        "gif of a frame beyond its canvas": b"GIF89a\x10\0\x10\0\0\0\0" + _gif_frame(65_500, 65_500),
        "gif without pixels": b"GIF89a\xa0\x0f\xa0\x0f\0\0\0" + _gif_frame(4_000, 4_000),
        "bmp 4 gigapixels": _bmp(65_500, 65_500),
        "bmp of runs": _bmp(4_000, 4_000, compression=1),
        "bmp without pixels": _bmp(4_000, 4_000),
        "zip": b"PK\x03\x04" + bytes(1_000),
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg' width='99999' height='99999'/>",
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 99999 99999\n",
    }


_CHILD = """
import json, sys, tracemalloc
from PIL.Image import core
from tests.counting import Count
from worker.core.errors import InvalidImage
from worker.media.images import decode_image, encode, Raster
decode_image(encode(Raster("RGB", 2, 2, bytes(12)), "webp", 90))
outcomes = {}
tracemalloc.start()
for path in sys.argv[1:]:
    data = open(path, "rb").read()
    core.reset_stats()
    tracemalloc.reset_peak()
    with Count() as count:
        try:
            decode_image(data)
            outcome = "taken"
        except InvalidImage:
            outcome = "refused"
    pixels = core.get_stats()["allocated_blocks"] * core.get_block_size()
    outcomes[path] = (outcome, count.calls, (pixels + tracemalloc.get_traced_memory()[1]) / 2**20)
print(json.dumps(outcomes))
"""


def test_bombs_are_refused_in_little_memory_and_work(tmp_path, figures):
    bombs = _bombs()
    for name, data in bombs.items():
        (tmp_path / name).write_bytes(data)
    child = subprocess.run(
        [sys.executable, "-c", _CHILD, *(str(tmp_path / name) for name in bombs)],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    outcomes = {Path(path).name: found for path, found in json.loads(child.stdout).items()}
    assert {name for name, (outcome, _, _) in outcomes.items() if outcome != "refused"} <= {"png text bomb"}
    figures("F10", "calls for one bomb", max(calls for _, calls, _ in outcomes.values()), at_most=20_000)
    figures("F10", "memory of one bomb", max(megabytes for _, _, megabytes in outcomes.values()), "MB", at_most=150)
    assert max(megabytes for _, _, megabytes in outcomes.values()) > 60, "16 million pixels are taken, and counted"
