"""JSON of other people's services, read with care: whatever is not of the expected type is left out, never an error."""

from collections.abc import Mapping
from datetime import UTC, datetime

_MAX_CHARS = 300
_MAX_TEXTS = 50


def object_in(value: object) -> Mapping[str, object]:
    """Return an object, or an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def objects_in(value: object) -> list[Mapping[str, object]]:
    """Return the objects of a list."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def text_in(value: object) -> str:
    """Return a short printable text, or "" for anything else."""
    return "".join(char for char in value[:_MAX_CHARS] if char.isprintable()) if isinstance(value, str) else ""


def texts_in(value: object) -> tuple[str, ...]:
    """Return the short printable texts of a list."""
    return tuple(text for item in value[:_MAX_TEXTS] if (text := text_in(item))) if isinstance(value, list) else ()


def number_in(value: object) -> int | None:
    """Return a whole number from 1 up, or None for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**63 else None


def time_in(value: object) -> datetime | None:
    """Return a moment, in UTC unless it says otherwise, or None for anything else."""
    try:
        at = datetime.fromisoformat(text_in(value))
    except ValueError:
        return None
    return at if at.tzinfo else at.replace(tzinfo=UTC)
