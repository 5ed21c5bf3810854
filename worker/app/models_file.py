"""models.yaml with one entry more: a find is written, or waits for a review and is accepted. Blocking.

The file is read back before it takes the old one's place, so that all other models stay what they were.
"""

import shutil
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from worker.app.settings import Settings
from worker.catalog.registry import RegistryError, load_registry
from worker.catalog.registry_edit import EditError, entry_block, taken_out, with_entry
from worker.core.discovery import Added, Find
from worker.store.entries import write_atomically
from worker.store.refs import parse_reference


class ModelsFileError(ValueError):
    """An entry that cannot be written; the message is a sentence with the fix."""


def add_find(settings: Settings, name: str, find: Find) -> Added:
    """Write a find into models.yaml, or where the operator wants to review it first. Raises ModelsFileError."""
    path = settings.models_review or settings.models_yaml
    fields = {"source": _pinned(find), "description": _description(find)}
    day = datetime.now(UTC).date().isoformat()
    comment = f"discovered {day}; licence: {find.listed.licence or 'not told'}; {find.listed.page}".rstrip("; ")
    block = entry_block(name, fields, comment)
    _write(path, _edited(path, lambda text: with_entry(text, name, block)))
    return Added(name, find.listed.reference, path.name, settings.models_review is not None)


def accept(settings: Settings, name: str) -> Path:
    """Move a reviewed entry into models.yaml, and return that file. Raises ModelsFileError."""
    review = settings.models_review
    if review is None:
        raise ModelsFileError("MODELS_REVIEW names no file; --add writes into models.yaml at once.")
    taken: list[str] = []

    def take(text: str) -> str:
        rest, block = taken_out(text, name)
        taken.append(block)
        return rest

    rest = _edited(review, take)
    _write(settings.models_yaml, _edited(settings.models_yaml, lambda text: with_entry(text, name, taken[0])))
    write_atomically(review.resolve(), rest)
    return settings.models_yaml


def _pinned(find: Find) -> str:
    """Return the reference at the revision that was looked at, so that it stays what it was."""
    source = parse_reference(find.listed.reference)
    if source.revision is None and find.revision and "+" not in find.revision:
        source = source.model_copy(update={"revision": find.revision})
    return source.reference


def _description(find: Find) -> str:
    words = f" Trigger words: {', '.join(find.listed.trigger_words)}." if find.listed.trigger_words else ""
    return f"{find.listed.name}.{words}"


def _edited(path: Path, edit: Callable[[str], str]) -> str:
    try:
        before = path.read_text(encoding="utf-8") if path.exists() else ""
        return edit(before)
    except EditError as error:
        raise ModelsFileError(f"{path.name}: {error}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ModelsFileError(f"{path.name} cannot be read ({type(error).__name__}).") from None


def _write(path: Path, text: str) -> None:
    """Replace the file in one step, once it was read back: its other models are what they were."""
    real = path.resolve()  # of a link the file that it leads to
    new = real.with_name(f".{real.stem}-{uuid.uuid4().hex[:8]}.yaml")
    try:
        new.write_text(text, encoding="utf-8", newline="")
        after = load_registry(new, parse_source=parse_reference)
        if real.exists():
            shutil.copymode(real, new)
            before = load_registry(real, parse_source=parse_reference).models
            if any(after.models.get(name) != spec for name, spec in before.items()):
                raise ModelsFileError(f"{path.name} is not changed: another model would have become a different one.")
        new.replace(real)
    except RegistryError as error:
        raise ModelsFileError(f"{path.name} is not changed: {str(error).replace(new.name, path.name)}") from None
    except OSError as error:
        raise ModelsFileError(f"{path.name} cannot be written ({error.strerror}); add this:\n{text}") from None
    finally:
        new.unlink(missing_ok=True)
