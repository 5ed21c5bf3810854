"""Commands for the versions of models: list, history, report, promote, rollback, split."""

import getpass
from argparse import Namespace
from collections.abc import Mapping, Sequence
from typing import Any

from worker.app.cli.session import open_worker, perform
from worker.app.cli.terminal import Failure, Terminal
from worker.wire.result import encode_answer

# The options by the fields that they become.
_TYPED = {
    **{"version": "VERSION", "arms": "--arm", "model": "MODEL", "at": "--at", "limit": "--limit", "days": "--days"},
    "paired": "--paired",
}


def list_versions(arguments: Namespace, terminal: Terminal) -> None:
    """List the versions of a model, or of all that have any."""
    _told(_ask(arguments, terminal, {"action": "versions", "model": arguments.model}), arguments, terminal)


def history(arguments: Namespace, terminal: Terminal) -> None:
    """Say who changed what is served, when and why; with a time, what was served then."""
    payload = {"action": "history", "model": arguments.model, "at": arguments.at, "limit": arguments.limit}
    answer = _ask(arguments, terminal, payload)
    if arguments.json:
        terminal.json(answer)
        return
    for model, served in answer.get("served", {}).items():
        if served["version"]:
            terminal.print(f"{model} at {answer['at']}: {served['version']}{_shares(served['shares'])}")
    rows = [
        (_time(change["at"]), change["model"], _said(change), change["who"], change["why"])
        for change in answer["changes"]
    ]
    terminal.table(("when", "model", "what", "who", "why"), rows)


def report(arguments: Namespace, terminal: Terminal) -> None:
    """Compare versions by their jobs."""
    answer = _ask(arguments, terminal, {"action": "report", "model": arguments.model, "days": arguments.days})
    if arguments.json:
        terminal.json(answer)
        return
    head = ("version", "arm", "jobs", "failed", "errors (95 %)", "p50 s", "p95 s", "inference s (95 %)", "USD/image")
    terminal.table(head, [_compared(row) for row in answer["versions"]])
    if answer["pairs"]:
        head = (
            "pair",
            "pairs",
            "failed",
            "distance (95 %)",
            "slower by s (95 %)",
            "USD",
            "choices",
            "prefer (95 %)",
            "chance",
        )
        terminal.table(head, [_paired(row) for row in answer["pairs"]])


def promote(arguments: Namespace, terminal: Terminal) -> None:
    """Have an alias name another version."""
    _change(arguments, terminal, "promote", {"version": arguments.version, "alias": arguments.alias})


def rollback(arguments: Namespace, terminal: Terminal) -> None:
    """Have @stable name the version that it named before."""
    _change(arguments, terminal, "rollback", {"version": arguments.version})


def split(arguments: Namespace, terminal: Terminal) -> None:
    """Share a model's requests out between versions, or end that."""
    arms: dict[str, float] = {}
    for text in arguments.arm:
        name, _, share = text.partition("=")
        try:
            arms[name] = float(share)
        except ValueError:
            raise Failure(f"--arm {text}: write a version or alias and its share, as candidate=10.") from None
    rule = {"errors": arguments.halt_errors, "slower": arguments.halt_slower, "jobs": arguments.halt_jobs}
    halt: dict[str, Any] = {name: value for name, value in rule.items() if value is not None}
    if halt.get("slower") == "off":
        halt["slower"] = None
    _change(arguments, terminal, "split", {"arms": arms, "halt": halt, "paired": arguments.paired})


def _change(arguments: Namespace, terminal: Terminal, action: str, fields: Mapping[str, Any]) -> None:
    payload = {"action": action, "model": arguments.model, "why": arguments.why, **fields}
    _told(_ask(arguments, terminal, payload), arguments, terminal)


def _ask(arguments: Namespace, terminal: Terminal, payload: Mapping[str, Any]) -> dict[str, Any]:
    with open_worker(terminal, unregistered=True, typed=_TYPED) as worker:
        return encode_answer(perform(worker, terminal, payload, user_at_terminal()))


def user_at_terminal() -> str:
    """Return who is at the terminal, for the history."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):  # a container whose user has no name
        return "terminal"


def _told(answer: Mapping[str, Any], arguments: Namespace, terminal: Terminal) -> None:
    if arguments.json:
        terminal.json(answer)
        return
    rows = [row for model in answer["models"] for row in _rows(model)]
    terminal.table(("model", "version", "", "since", "source", "LoRAs", "GB", "why"), rows)
    for model in answer["models"]:
        if model["arms"]:
            paired = f", {model['paired']:g} % paired" if model["paired"] else ""
            terminal.print(f"{model['model']} is split:{_shares(model['arms'])}{paired}")
        if model["entry"] is None and model["versions"]:
            terminal.print(f"{model['model']} in models.yaml is no version yet.")


def _rows(model: Mapping[str, Any]) -> Sequence[tuple[str, ...]]:
    return [
        (
            model["model"],
            each["version"],
            " ".join(f"@{alias}" for alias in each["aliases"]),
            _time(each["at"]),
            f"{each['source']}{'@' + each['revision'][:12] if each['revision'] and '@' not in each['source'] else ''}",
            " ".join(each["loras"]),
            f"{each['bytes'] / 1e9:.3f}",
            each["why"],
        )
        for each in model["versions"]
    ]


def _said(change: Mapping[str, Any]) -> str:
    match change["kind"]:
        case "version":
            return "another version"
        case "alias":
            return f"@{change['alias']}: {change['from'] or 'none'} → {change['to']}"
    if change["halted"]:
        return f"split halted: {change['halted']}"
    return f"split{_shares(change['arms'])}" if change["arms"] else "split ended"


def _shares(arms: Mapping[str, float]) -> str:
    return "".join(f" {name} {share:g}" for name, share in arms.items())


def _time(at: str) -> str:
    return at[:19].replace("T", " ")


def _compared(row: Mapping[str, Any]) -> tuple[str, ...]:
    def seconds(value: float | None) -> str:
        return "-" if value is None else f"{value:.3f}"

    cost = "-" if row["cost_per_image"] is None else f"{row['cost_per_image']:.6f}"
    return (
        row["version"],
        row["arm"] or "-",
        str(row["jobs"]),
        str(row["failed"]),
        _interval(row["error_rate"], 100, " %"),
        seconds(row["seconds_p50"]),
        seconds(row["seconds_p95"]),
        _interval(row["inference_s"], 1, ""),
        cost,
    )


def _paired(row: Mapping[str, Any]) -> tuple[str, ...]:
    first, second, choices = row["first"], row["second"], row["choices"]
    preferred = _interval(row["prefer_second"], 100, " %")
    return (
        f"{first}, {second}",
        str(row["pairs"]),
        str(row["failed"]),
        _interval(row["distance"], 1, ""),
        _interval(row["slower_s"], 1, ""),
        "-" if row["usd"] is None else f"{row['usd']:.6f}",
        f"{first} {choices['first']}, {second} {choices['second']}, equal {choices['equal']}",
        preferred if preferred == "-" else f"{second} {preferred}",
        "-" if row["chance"] is None else f"{row['chance']:.3g}",
    )


def _interval(interval: Mapping[str, float] | None, times: float, unit: str) -> str:
    if interval is None:
        return "-"
    value, low, high = (interval[name] * times for name in ("value", "low", "high"))
    return f"{value:.3g}{unit} ({low:.3g} to {high:.3g})"
