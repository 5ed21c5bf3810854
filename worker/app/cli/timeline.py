"""The command that shows where the seconds go: of a start here, and of a job."""

from argparse import Namespace

from worker.app.cli.files import TypedFiles
from worker.app.cli.session import failures, open_worker, perform, settings_of
from worker.app.cli.terminal import Terminal
from worker.app.registry import build_registry
from worker.core.answer import TimelineReport
from worker.wire.introspection import encode_timeline

_TYPED = {"model": "MODEL"}


def timeline(arguments: Namespace, terminal: Terminal) -> None:
    """Start a worker here, generate once with a model, and print what took how long."""
    settings = settings_of(terminal)
    files = TypedFiles(lambda name: build_registry(settings).find(name) is not None)
    fields = {"prompt": arguments.prompt}
    if arguments.model is not None:
        with failures(terminal):
            fields["model"] = files.reference(arguments.model)
    with open_worker(terminal, unregistered=True, roots=files.roots, typed=_TYPED) as worker:
        perform(worker, terminal, fields)
        report = worker.operations.timeline(None)
    if arguments.json:
        terminal.json(encode_timeline(report))
        return
    terminal.table(("what", "from", "seconds"), [*_rows(report)])


def _rows(report: TimelineReport) -> list[tuple[str, str, str]]:
    """Return the moments of the start, then the stages of the job."""
    rows: list[tuple[str, str, str]] = []
    before = 0.0
    for name, at in report.start:
        rows.append((name, f"{before:.3f}", f"{at - before:.3f}"))
        before = at
    for job in report.jobs[:1]:
        rows.append((f"the job, {job.outcome}", "0.000", f"{job.seconds:.3f}"))
        rows += [(f"  {name}", f"{began:.3f}", f"{seconds:.3f}") for name, began, seconds in job.stages]
    return rows
