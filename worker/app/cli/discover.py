"""The command that finds models of others, and writes one of them into models.yaml."""

from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from worker.app.cli.session import open_worker, perform, settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.models_file import ModelsFileError, accept, add_find
from worker.app.settings import Settings
from worker.core.discovery import Discovery, Find
from worker.core.errors import WorkerError
from worker.media.retouching import text_in
from worker.wire.discovery import encode_discovery
from worker.wire.foreign.image_notes import origin_of

_GIB = 2**30
_TYPED = {"text": "TEXT", "reference": "TEXT", "model": "--for", "kind": "--kind", "base": "--base", "limit": "--limit"}


def discover(arguments: Namespace, terminal: Terminal) -> None:
    """Find models and adapters that others publish and this worker can run; with --add one goes into models.yaml."""
    if arguments.accept:
        _accept(settings_of(terminal), arguments.accept, terminal)
        return
    words = " ".join(arguments.text)
    is_reference = bool(words) and " " not in words and (":" in words or "/" in words)
    wish: dict[str, Any] = {"action": "discover", "limit": arguments.limit}
    wish |= {"reference" if is_reference else "text": words}
    wish |= {name: value for name in ("kind", "base", "prompt") if (value := getattr(arguments, name))}
    wish |= {"model": arguments.goes_with} if arguments.goes_with else {}
    wish |= _of_image(arguments.image) if arguments.image else {}
    # The operator's own terminal may ask, whoever else may.
    own = {"discovery_keys": (), "discovery": True}
    with open_worker(terminal, unregistered=True, typed=_TYPED, further=own) as worker:
        answer = perform(worker, terminal, wish)
        settings = worker.settings
    if not isinstance(answer, Discovery):
        raise Failure("The worker answered another question.")
    if arguments.add:
        _add(settings, arguments.add, _picked(answer, arguments.pick), terminal)
    elif arguments.json:
        terminal.json(encode_discovery(answer))
    else:
        _show(answer, terminal)


def _of_image(path: str) -> dict[str, Any]:
    """Return what an image says of its making, as fields of a wish. The image itself is sent nowhere."""
    try:
        origin = origin_of(text_in(Path(path).read_bytes(), "image"))
    except OSError as error:
        raise Failure(f"{path} cannot be read ({error.strerror}).") from None
    except WorkerError as error:
        raise Failure(f"{path}: {error.message}") from None
    if not origin.prompt and not origin.hashes:
        raise Failure(f"{path} says nothing of its making; name a prompt with --prompt.")
    return {"hashes": [*origin.hashes]} | ({"prompt": origin.prompt} if origin.prompt else {})


def _show(answer: Discovery, terminal: Terminal) -> None:
    for problem in answer.problems:
        terminal.warn(problem)
    if answer.finds:
        head = ("#", "model", "name", "kind", "family", "GB", "VRAM GB", "image", "downloads", "licence", "words")
        terminal.table(head, [_cells(number, find) for number, find in enumerate(answer.finds, 1)])
    else:
        terminal.print("Nothing was found that this worker can run.")
    if answer.withheld:
        terminal.print("\nListed, and not to be had or run here:")
        for item in answer.withheld:
            terminal.print(f"  {item.reference} ({item.name}): {item.reason}")
    if answer.unseen:
        terminal.print(f"\n{answer.unseen} more were listed and not looked at in time; ask again.")


def _cells(number: int, find: Find) -> tuple[str, ...]:
    listed = find.listed
    vram = "" if find.estimated_bytes is None else f"{find.estimated_bytes / _GIB:.1f}"
    image = "" if find.seconds is None else f"{find.seconds:.1f} s"
    image += "" if find.usd is None else f", ${find.usd:.4f}"
    marks = f" (in models.yaml: {find.registered})" if find.registered else ""
    return (
        *(str(number), listed.reference, listed.name[:48] + marks, find.kind, find.family or find.architecture or ""),
        *(f"{find.size_bytes / _GIB:.2f}", vram, image, f"{listed.downloads:,}", listed.licence or ""),
        ", ".join(listed.trigger_words)[:60],
    )


def _picked(answer: Discovery, number: int) -> Find:
    if not 1 <= number <= len(answer.finds):
        reasons = " ".join(item.reason for item in answer.withheld[:1])
        raise Failure(f"--pick must be between 1 and the {len(answer.finds)} that were found. {reasons}".strip())
    return answer.finds[number - 1]


def _add(settings: Settings, name: str, find: Find, terminal: Terminal) -> None:
    """Write a find into models.yaml, or where the operator wants to review it first."""
    with _failing():
        added = add_find(settings, name, find)
    if added.waits:
        terminal.print(f"{added.file}: {name} waits for review; `{terminal.prog} discover --accept {name}` adds it.")
    else:
        terminal.print(f"{added.file}: {name} is {added.reference}; a server reads the file again on SIGHUP.")


def _accept(settings: Settings, name: str, terminal: Terminal) -> None:
    """Move a reviewed entry into models.yaml."""
    with _failing():
        path = accept(settings, name)
    terminal.print(f"{path.name}: {name} is added.")


@contextmanager
def _failing() -> Iterator[None]:
    try:
        yield
    except ModelsFileError as error:
        raise Failure(str(error)) from None
