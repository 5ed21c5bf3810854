"""What was spent, for people and programs: cost-tracking.json, a table as CSV, a curve as SVG."""

import csv
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

from image_client.budget import Limits
from image_client.spending import Call

_COLUMNS = ("began", "ended", "session", "month", "provider", "model", "images", "state", "usd", "seconds", "key")


def totals(calls: Iterable[Call]) -> dict[str, Any]:
    """Return how many images there were and what they cost, in dollars.

    `open_usd` is what is reserved for calls whose outcome is not known, and is part of `cost_usd`; calls whose price is
    unknown count in `images_of_unknown_price` alone.
    """
    calls = list(calls)
    return {
        "images": sum(call.images for call in calls if call.state == "settled"),
        "cost_usd": _number(_sum(calls)),
        "open_usd": _number(_sum(call for call in calls if call.state != "settled")),
        "images_of_unknown_price": sum(call.images for call in calls if call.dollars is None),
    }


def tracking(calls: Sequence[Call], limits: Limits) -> dict[str, Any]:
    """Return cost-tracking.json: the sums of all, of each session, month, and provider with its model."""
    return {
        "format": 1,
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "currency": "USD",
        "budget": {
            "session_usd": None if limits.session is None else _number(limits.session),
            "month_usd": None if limits.month is None else _number(limits.month),
            "alerts_at_percent": [*limits.thresholds],
        },
        "total": totals(calls),
        "months": by(calls, lambda call: call.month),
        "sessions": by(calls, lambda call: call.session),
        "models": by(calls, lambda call: f"{call.provider}/{call.model}" if call.model else call.provider),
    }


def by(calls: Sequence[Call], key: Callable[[Call], str]) -> dict[str, dict[str, Any]]:
    """Return the sums of each group, in the order of their first call."""
    groups: defaultdict[str, list[Call]] = defaultdict(list)
    for call in calls:
        groups[key(call)].append(call)
    return {name: totals(group) for name, group in groups.items()}


def write_tracking(path: Path, calls: Sequence[Call], limits: Limits) -> Path:
    """Write cost-tracking.json, whole or not at all."""
    return _write(path, json.dumps(tracking(calls, limits), indent=2) + "\n")


def write_csv(path: Path, calls: Sequence[Call]) -> Path:
    """Write a line for each call."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(_COLUMNS)
        for call in calls:
            usd = "" if call.dollars is None else f"{call.dollars.normalize():f}"
            row = {name: getattr(call, name, None) for name in _COLUMNS} | {"usd": usd}
            writer.writerow(["" if row[name] is None else row[name] for name in _COLUMNS])
    return path


def write_plot(path: Path, calls: Sequence[Call], limit: Decimal | None) -> Path:
    """Write the sum over time as SVG, with the budget as a line."""
    return _write(path, plot(calls, limit))


def plot(calls: Sequence[Call], limit: Decimal | None) -> str:
    """Return the SVG: time to the right from the first call to the last, dollars upwards from 0."""
    width, height, left, foot = 720, 320, 70, 40
    times = [datetime.fromisoformat(call.began).timestamp() for call in calls]
    sums, total = [], Decimal(0)
    for call in calls:
        total += call.dollars or 0
        sums.append(float(total))
    top = max([*sums, float(limit or 0), 0.01]) * 1.1
    first, last = (times[0], max(times[-1], times[0] + 1)) if times else (0.0, 1.0)

    def place(time: float, dollars: float) -> str:
        x = left + (width - left - 20) * (time - first) / (last - first)
        return f"{x:.1f},{20 + (height - 20 - foot) * (1 - dollars / top):.1f}"

    steps = [place(first, 0.0)]
    for index, time in enumerate(times):
        steps += [place(time, sums[index - 1] if index else 0.0), place(time, sums[index])]
    base = height - foot
    marks = "".join(
        f'<text x="{left - 8}" y="{place(first, top * part).split(",")[1]}" text-anchor="end">${top * part:,.2f}</text>'
        for part in (0.0, 0.25, 0.5, 0.75, 1.0)
    )
    days = (
        [datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M") for time in (first, last)] if times else ["", ""]
    )
    line = ""
    if limit is not None:
        y = place(first, float(limit)).split(",")[1]
        line = f'<path d="M{left},{y} H{width - 20}" stroke="#c33" stroke-dasharray="6 4"/>'
        line += f'<text x="{width - 22}" y="{float(y) - 5:.1f}" text-anchor="end" fill="#c33">'
        line += f"budget ${limit:,.2f}</text>"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif" '
        f'font-size="11"><rect width="100%" height="100%" fill="#fff"/>'
        f'<path d="M{left},20 V{base} H{width - 20}" fill="none" stroke="#888"/>{marks}'
        f'<text x="{left}" y="{base + 18}">{escape(days[0])}</text>'
        f'<text x="{width - 20}" y="{base + 18}" text-anchor="end">{escape(days[1])} UTC</text>{line}'
        f'<polyline points="{" ".join(steps)}" fill="none" stroke="#25c" stroke-width="2"/></svg>\n'
    )


def _sum(calls: Iterable[Call]) -> Decimal:
    return sum((call.dollars for call in calls if call.dollars is not None), Decimal(0))


def _number(dollars: Decimal) -> float:
    return float(round(dollars, 6))


def _write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
    return path
