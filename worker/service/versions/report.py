"""How the versions of a model compare, by every worker's usage log: time, errors and cost, with their confidence."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from worker.catalog.versions import ModelVersions
from worker.core.version import ComparedVersion, ComparisonReport
from worker.service.usage.record import OK, STATUS
from worker.service.versions.intervals import mean_interval, percentile, share_interval

_COUNTED = {OK, "failed", "timed_out"}


def compare(model: ModelVersions, lines: Iterable[Mapping[str, Any]], since: str) -> ComparisonReport:
    """Compare by the lines of one model's generations that were served by a version."""
    groups: dict[tuple[str, str | None], list[Mapping[str, Any]]] = {}
    for line in lines:
        if line.get("action") == "generate" and line.get("model") == model.model and line.get("version"):
            groups.setdefault((str(line["version"]), line.get("arm")), []).append(line)
    rows = [
        _row(version, arm, group) for (version, arm), group in sorted(groups.items(), key=lambda item: str(item[0]))
    ]
    return ComparisonReport(model.model, since, tuple(rows), dict(model.split.arms) if model.split else {})


def _row(version: str, arm: str | None, lines: Sequence[Mapping[str, Any]]) -> ComparedVersion:
    statuses = [OK if line.get("outcome") == OK else STATUS.get(str(line.get("outcome")), "failed") for line in lines]
    counted = [status for status in statuses if status in _COUNTED]
    failed = len(counted) - counted.count(OK)
    drawn = [line for line in lines if line.get("outcome") == OK]
    seconds = sorted(_values(drawn, "seconds"))
    costs, images = _values(drawn, "cost_usd"), sum(_values(drawn, "images"))
    return ComparedVersion(
        version=version,
        arm=arm,
        jobs=len(lines),
        failed=failed,
        refused=len(lines) - len(counted),
        error_rate=share_interval(failed, len(counted)),
        seconds_p50=percentile(seconds, 50),
        seconds_p95=percentile(seconds, 95),
        inference_s=mean_interval(_values(drawn, "inference_s"), least=0.0),
        gpu_seconds=sum(_values(drawn, "gpu_seconds")),
        cost_usd=sum(costs) if costs else None,
        cost_per_image=sum(costs) / max(1, images) if costs else None,
        images=int(images),
    )


def _values(lines: Sequence[Mapping[str, Any]], field: str) -> list[float]:
    """Return the values of a field, where there is one."""
    return [float(line[field]) for line in lines if line.get(field) is not None]
