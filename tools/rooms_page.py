"""Draw docs/rooms.svg: the rooms of the worker and what each imports, read from the code itself.

    python -m tools.rooms_page

A room is a package of `worker`; its floor is its layer in pyproject.toml's first import contract. An arrow says that a
file of the upper room imports one of the lower; an arrow that a longer way says too is left out. Run it after a wall
was moved; a test compares the image with the code.
"""

import ast
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[1]
IMAGE = PROJECT / "docs" / "rooms.svg"
_WIDTH, _MARGIN, _GAP = 960, 24, 24
_ROOM, _FLOOR = 72, 116  # heights in pixels: of a room, and from one floor to the next
_CHIP, _CHIP_GAP = 24, 8  # of an inner room
_LETTER = 6.8  # width of a small letter in pixels, for text that has to fit
_STYLE = """
  .wall { fill: #ffffff; stroke: #57606a; } .inner { fill: #eef3fa; stroke: #a9b8cc; }
  .name { fill: #1f2328; font: bold 15px sans-serif; } .why, .part { fill: #57606a; font: 11.5px sans-serif; }
  .arrow { stroke: #8c959f; fill: none; } .tip { fill: #8c959f; }
  @media (prefers-color-scheme: dark) {
    .wall { fill: #161b22; stroke: #8b949e; } .inner { fill: #21304a; stroke: #42597a; }
    .name { fill: #e6edf3; } .why, .part { fill: #9aa4af; }
  }
"""

Arrow = tuple[str, str]


def main() -> None:
    """Write the image."""
    IMAGE.write_text(image(), encoding="utf-8")
    print(f"{IMAGE}: {len(room_imports())} arrows before those that a longer way says")


def floors() -> list[list[str]]:
    """The rooms from the top floor down, as pyproject.toml's first layers contract has them."""
    contracts = tomllib.loads((PROJECT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    layers = next(item["layers"] for item in contracts if item["type"] == "layers" and item["containers"] == ["worker"])
    rooms = [[name.strip() for name in layer.split("|")] for layer in layers]
    return [[name for name in floor if _folder(name).is_dir()] for floor in rooms if any(map(_is_room, floor))]


def room_imports() -> set[Arrow]:
    """Every pair of rooms of which a file of the first imports a file of the second."""
    arrows = set()
    for file in (PROJECT / "worker").rglob("*.py"):
        room = file.relative_to(PROJECT / "worker").parts[0]
        arrows |= {(room, other) for other in _imported_rooms(file) if other != room and _is_room(room)}
    return arrows


def reduced(arrows: Iterable[Arrow]) -> set[Arrow]:
    """The arrows without those that a longer way implies."""
    arrows = set(arrows)
    return {(a, b) for a, b in arrows if not any(b in _reached(c, arrows) for x, c in arrows if x == a and c != b)}


def image() -> str:
    """The whole SVG."""
    places = _places(floors())
    height = max(y + tall for _, y, _, tall in places.values()) + _MARGIN
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" role="img" '
        'aria-label="The rooms of the worker, from the top floor down, and what each imports">',
        f"<style>{_STYLE}</style>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path class="tip" d="M0 0L8 4L0 8z"/></marker></defs>',
    ]
    lines += [_arrow(places[a], places[b]) for a, b in sorted(reduced(room_imports()))]
    for name, place in places.items():
        lines += _room(name, place)
    return "\n".join([*lines, "</svg>"]) + "\n"


Place = tuple[int, int, int, int]  # left, top, width and height in pixels


def _places(rooms: Sequence[Sequence[str]]) -> Mapping[str, Place]:
    """Where each room stands: a floor after the other, as wide as the page."""
    places: dict[str, Place] = {}
    top = _MARGIN
    for floor in rooms:
        width = (_WIDTH - 2 * _MARGIN - _GAP * (len(floor) - 1)) // len(floor)
        tall = max(_ROOM + len(_rows_of_parts(name, width)) * (_CHIP + _CHIP_GAP) for name in floor)
        for index, name in enumerate(floor):
            places[name] = (_MARGIN + index * (width + _GAP), top, width, tall)
        top += tall + _FLOOR - _ROOM
    return places


def _room(name: str, place: Place) -> list[str]:
    left, top, width, tall = place
    why = _fitting(_reason(name), width - 24)
    lines = [
        f'<rect class="wall" x="{left}" y="{top}" width="{width}" height="{tall}" rx="8"/>',
        f'<text class="name" x="{left + 14}" y="{top + 28}">{escape(name)}</text>',
        f'<text class="why" x="{left + 14}" y="{top + 50}">{escape(why)}</text>',
    ]
    y = top + _ROOM - 8
    for row in _rows_of_parts(name, width):
        x = left + 14
        for part in row:
            wide = _chip_width(part)
            lines.append(f'<rect class="inner" x="{x}" y="{y}" width="{wide}" height="{_CHIP}" rx="5"/>')
            lines.append(f'<text class="part" x="{x + 8}" y="{y + 16}">{escape(part)}</text>')
            x += wide + _CHIP_GAP
        y += _CHIP + _CHIP_GAP
    return lines


def _arrow(start: Place, end: Place) -> str:
    """A line from the floor of one room to the ceiling of another, between their middles where that is straight."""
    low, high = max(start[0], end[0]), min(start[0] + start[2], end[0] + end[2])
    x1 = x2 = (low + high) // 2
    if high <= low:
        x1, x2 = start[0] + start[2] // 2, end[0] + end[2] // 2
    y1, y2 = start[1] + start[3], end[1] - 2
    return f'<path class="arrow" d="M{x1} {y1}L{x2} {y2}" marker-end="url(#tip)"/>'


def _rows_of_parts(name: str, width: int) -> list[list[str]]:
    """The room's inner rooms, in rows that fit into it."""
    rows: list[list[str]] = []
    room = 0
    for part in sorted(item.name for item in _folder(name).iterdir() if (item / "__init__.py").is_file()):
        if room < _chip_width(part):
            rows.append([])
            room = width - 28
        rows[-1].append(part)
        room -= _chip_width(part) + _CHIP_GAP
    return rows


def _chip_width(part: str) -> int:
    return round(len(part) * _LETTER) + 16


def _fitting(text: str, width: int) -> str:
    """`text`, cut at a word where it is wider than `width` pixels."""
    most = int(width / _LETTER)
    return text if len(text) <= most else f"{text[: most - 1].rsplit(' ', 1)[0]} …"


def _reason(name: str) -> str:
    """The first sentence of the room's docstring."""
    text = ast.get_docstring(ast.parse((_folder(name) / "__init__.py").read_text())) or ""
    return text.split("\n")[0].split(". ")[0].rstrip(".")


def _imported_rooms(file: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            modules |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            modules |= {name.name for name in node.names}
    parts = [module.split(".") for module in modules]
    return {names[1] for names in parts if names[0] == "worker" and len(names) > 1 and _is_room(names[1])}


def _reached(start: str, arrows: set[Arrow]) -> set[str]:
    found, waiting = set(), [start]
    while waiting:
        here = waiting.pop()
        new = {b for a, b in arrows if a == here} - found
        found |= new
        waiting += new
    return found


def _is_room(name: str) -> bool:
    return (_folder(name.strip()) / "__init__.py").is_file()


def _folder(name: str) -> Path:
    return PROJECT / "worker" / name


if __name__ == "__main__":
    main()
