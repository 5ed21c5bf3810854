"""The command that lists newer versions of the registered models, and what differs in them."""

import re
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from worker.app.cli.session import LONG_S, open_worker, perform
from worker.app.cli.terminal import Failure, Terminal
from worker.app.cli.versions import user_at_terminal
from worker.core.discovery import Update, Updates
from worker.core.golden import GoldenComparison
from worker.core.turn import StopSignal
from worker.media.decoding import decode_image
from worker.media.images import encode
from worker.service.discovery.updates import updated
from worker.service.versions.changes import By
from worker.store.refs import parse_reference
from worker.wire.discovery import encode_golden, encode_updates

if TYPE_CHECKING:
    from worker.app.build import Worker

_GIB = 2**30


def updates(arguments: Namespace, terminal: Terminal) -> None:
    """List what is newer at the sources, with what differs; with --apply make it the candidate of its model."""
    if arguments.golden:
        _golden(arguments, terminal)
        return
    own = {"discovery_keys": (), "discovery": True}
    question = {"action": "updates"} | ({"model": arguments.model} if arguments.model else {})
    with open_worker(terminal, typed={"model": "MODEL"}, further=own) as worker:
        answer = perform(worker, terminal, question)
        if not isinstance(answer, Updates):
            raise Failure("The worker answered another question.")
        applied = [_apply(worker, update, terminal) for update in answer.updates] if arguments.apply else []
    if arguments.json:
        terminal.json(encode_updates(answer))
        return
    if answer.updates:
        head = ("model", "in use", "newest", "GB", "tensors", "configs", "licence", "runs here")
        terminal.table(head, [_cells(update) for update in answer.updates])
    else:
        terminal.print(f"Nothing is newer than what is in use: {len(answer.current)} models.")
    for model, reason in answer.failed:
        terminal.warn(f"{model}: {reason}")
    for sentence in applied:
        terminal.print(sentence)
    if answer.unseen:
        terminal.warn(f"{answer.unseen} models were not looked at in time; name one of them.")


def _golden(arguments: Namespace, terminal: Terminal) -> None:
    """Generate the golden prompts by today's version and by another one, and write both images of each side by side."""
    if not arguments.model:
        raise Failure("--golden needs a MODEL, since it fetches and loads two versions of it.")
    own = {"discovery_keys": (), "discovery": True, "timeout_seconds": LONG_S}
    question = {"action": "golden", "model": arguments.model}
    question |= {"version": arguments.version} if arguments.version else {}
    with open_worker(terminal, typed={"model": "MODEL", "version": "--version"}, further=own) as worker:
        answer = perform(worker, terminal, question)
    if not isinstance(answer, GoldenComparison):
        raise Failure("The worker answered another question.")
    folder = Path(arguments.golden)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for number, image in enumerate(answer.images, 1):
            name = f"{re.sub(r'[^A-Za-z0-9_.-]', '-', answer.model)}-{number}.png"
            (folder / name).write_bytes(encode(decode_image(image.both, "image").raster, "png", 100))
    except OSError as error:
        raise Failure(f"{folder} cannot be written ({error.strerror}).") from None
    if arguments.json:
        terminal.json(encode_golden(answer, with_images=False))
        return
    rows = [
        (
            str(number),
            image.prompt,
            str(image.seed),
            f"{image.distance:.4f}",
            f"{image.old_s:.2f}",
            f"{image.new_s:.2f}",
        )
        for number, image in enumerate(answer.images, 1)
    ]
    terminal.table(("#", "prompt", "seed", "distance", f"{answer.old}, s", f"{answer.new}, s"), rows)
    terminal.print(f"{folder}: {len(rows)} images, {answer.old} on the left and {answer.new} on the right.")


def _apply(worker: "Worker", update: Update, terminal: Terminal) -> str:
    """Make the newer version the model's candidate; return what became of it, as a sentence."""
    if update.obstacle is not None:
        return f"{update.model} stays as it is: {update.obstacle}"
    if update.version is not None:
        return f"{update.model}: the newest is {update.version} already."
    entry = worker.registry.models[update.model]
    spec = updated(entry, parse_reference(update.new))
    by = By(user_at_terminal(), f"update: {update.old} to {update.new}")
    name = worker.versions.actions.changes.record(entry, spec, "candidate", by, StopSignal(LONG_S))
    return f"{update.model}@candidate is {name} now: {update.new}"


def _cells(update: Update) -> tuple[str, ...]:
    old, new = update.old_bytes / _GIB, update.new_bytes / _GIB
    tensors = f"+{update.added} -{update.removed} ~{update.reshaped}"
    licence = f"{update.old_licence} → {update.new_licence}" if update.licence_changed else update.new_licence or ""
    return (
        *(update.model, _version(update.old), _version(update.new), f"{old:.2f} → {new:.2f}", tensors),
        *(", ".join(update.configs), licence, update.obstacle or "yes"),
    )


def _version(reference: str) -> str:
    revision = reference.partition("@")[2].partition("#")[0].partition("?")[0]
    return revision[:12]
