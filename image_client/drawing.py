"""A PNG with words on it, made with the standard library alone: what the mock provider answers."""

import hashlib
import struct
import zlib

_LETTERS = 3  # pixels of a letter's width; five high, and one between two
# One letter is five rows of three pixels, each row an octal digit.
_FONT = {
    "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644", "G": "34553", "H": "55755",
    "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555", "O": "25552", "P": "65644",
    "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552", "W": "55775", "X": "55255",
    "Y": "55222", "Z": "71247", "0": "75557", "1": "26227", "2": "61247", "3": "61216", "4": "55711", "5": "74616",
    "6": "34757", "7": "71122", "8": "75757", "9": "75716", ".": "00002", ",": "00024", "!": "22202", "?": "61202",
    "-": "00700", ":": "02020", "'": "22000", '"': "55000", "(": "12221", ")": "42224", "/": "11244", "+": "02720",
    "=": "07070", "#": "57575", "%": "51245", "&": "25253", "*": "05250", "_": "00007", ";": "02024", " ": "00000",
}  # fmt: skip
_UNKNOWN = "75557"
_INK = b"\xff\xff\xff"


def drawn(prompt: str, width: int, height: int, seed: int) -> bytes:
    """Return a PNG of `width` x `height` pixels with the prompt and its seed on a ground of their own colours.

    The same words, size and seed give the same bytes.
    """
    colours = hashlib.sha256(f"{seed}:{prompt}".encode()).digest()
    top, bottom = [value // 2 for value in colours[:3]], [value // 2 + 64 for value in colours[3:6]]
    rows = []
    for y in range(height):
        mixed = bytes(a + (b - a) * y // max(1, height - 1) for a, b in zip(top, bottom, strict=True))
        rows.append(bytearray(mixed * width))
    _write(rows, f"{prompt} #{seed}".upper(), width, height)
    return _png(rows, width, height)


def size_of_png(data: bytes) -> tuple[int, int] | None:
    """Return width and height in pixels as a PNG's header says them; None for another file."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n") or len(data) < 24:
        return None
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def _write(rows: list[bytearray], text: str, width: int, height: int) -> None:
    """Write the text in lines, as large as it fits in a few steps; what does not fit is left out."""
    scale = max(1, min(width, height) // 64)
    advance, line_height = (_LETTERS + 1) * scale, 7 * scale
    columns = max(1, (width - 2 * scale) // advance)
    lines = _lines(text, columns)[: max(1, (height - scale) // line_height)]
    y = max(0, (height - len(lines) * line_height) // 2)
    for line in lines:
        x = max(0, (width - len(line) * advance) // 2)
        for letter in line:
            _letter(rows, _FONT.get(letter, _UNKNOWN), (x, y), scale, width)
            x += advance
        y += line_height


def _letter(rows: list[bytearray], glyph: str, at: tuple[int, int], scale: int, width: int) -> None:
    for row, digit in enumerate(glyph):
        for column in range(_LETTERS):
            if not int(digit, 8) >> (_LETTERS - 1 - column) & 1:
                continue
            start = at[0] + column * scale
            stop = min(start + scale, width)
            for y in range(at[1] + row * scale, min(at[1] + (row + 1) * scale, len(rows))):
                rows[y][3 * start : 3 * stop] = _INK * max(0, stop - start)


def _lines(text: str, columns: int) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > columns:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
        while len(lines[-1]) > columns:
            lines[-1:] = [lines[-1][:columns], lines[-1][columns:]]
    return lines


def _png(rows: list[bytearray], width: int, height: int) -> bytes:
    pixels = b"".join(b"\0" + row for row in rows)  # 0: no filter on this row
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels, 6)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, data) for kind, data in chunks)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
