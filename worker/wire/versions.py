"""Versions of models as operators ask for them and are told of them."""

from collections.abc import Mapping

import pybase64
from pydantic import JsonValue, ValidationError

from worker.core.errors import UnknownParameter
from worker.core.job_input import VERSION_FIELDS, VersionAction, VersionRequest
from worker.core.version import (
    AliasMoved,
    Change,
    ComparedPairs,
    ComparedVersion,
    ComparisonReport,
    HaltRule,
    Interval,
    PairToJudge,
    SplitChanged,
    VersionAdded,
    VersionHistory,
    VersionList,
    VersionsOfModel,
)
from worker.wire.texts import utf8
from worker.wire.validation import field_error, with_plain_values


def decode_versions(action: VersionAction, fields: Mapping[str, JsonValue]) -> VersionRequest:
    """Read an action on versions. Raises UnknownParameter for a field of another one, and what a value is wrong for."""
    taken = VERSION_FIELDS[action]
    for name in fields:
        if name not in taken:
            text = f"{utf8(name)[:80]} is not a field of {action}; it takes {', '.join(taken)}."
            raise UnknownParameter(text, field=utf8(name)[:80])
    sent = {**fields, "action": action}
    try:
        return VersionRequest.model_validate(sent)
    except ValidationError as error:
        refusal = error
    try:
        return VersionRequest.model_validate(with_plain_values(sent, refusal))
    except ValidationError as error:
        raise field_error(error) from None


def encode_version_answer(
    answer: VersionList | VersionHistory | ComparisonReport | PairToJudge,
) -> dict[str, JsonValue]:
    """Write the answer to an action on versions."""
    match answer:
        case VersionList():
            return encode_versions(answer)
        case VersionHistory():
            return encode_history(answer)
        case ComparisonReport():
            return encode_report(answer)
        case PairToJudge():
            return encode_pair(answer)


def encode_versions(answer: VersionList) -> dict[str, JsonValue]:
    """Write the versions of models."""
    return {"models": [_model(model) for model in answer.models]}


def encode_history(answer: VersionHistory) -> dict[str, JsonValue]:
    """Write changes, and what was served at a time."""
    body: dict[str, JsonValue] = {"changes": [encode_change(change) for change in answer.changes]}
    if answer.at is None:
        return body
    served: dict[str, JsonValue] = {
        each.model: {"version": each.stable, "arms": dict(each.arms), "shares": dict(each.shares)}
        for each in answer.served
    }
    body |= {"at": answer.at, "served": served}
    return body


def encode_change(change: Change) -> dict[str, JsonValue]:
    """Write one change: what a version holds stands in the history on the volume."""
    body: dict[str, JsonValue] = {
        "at": change.at,
        "who": change.who,
        "why": change.why,
        "model": change.model,
        "kind": change.kind,
    }
    match change:
        case VersionAdded():
            return body | {"digest": change.content.digest}
        case AliasMoved():
            return body | {"alias": change.alias, "from": change.moved_from, "to": change.moved_to}
        case SplitChanged():
            return body | {"arms": dict(change.arms), "paired": change.paired, "halted": change.halted}


def encode_report(answer: ComparisonReport) -> dict[str, JsonValue]:
    """Write how versions compare."""
    return {
        "model": answer.model,
        "since": answer.since,
        "arms": dict(answer.arms),
        "versions": [_compared(row) for row in answer.versions],
        "pairs": [_pairs(row) for row in answer.pairs],
    }


def encode_pair(answer: PairToJudge) -> dict[str, JsonValue]:
    """Write two images that a person is to choose between."""
    body: dict[str, JsonValue] = {"model": answer.model, "waiting": answer.waiting, "pair": answer.id}
    if answer.id is None:
        return body
    return body | {
        "format": "webp",
        "left": pybase64.b64encode_as_string(answer.left),
        "right": pybase64.b64encode_as_string(answer.right),
    }


def _model(model: VersionsOfModel) -> dict[str, JsonValue]:
    versions: list[JsonValue] = [
        {
            "version": facts.name,
            "aliases": [*facts.aliases],
            "at": facts.at,
            "who": facts.who,
            "why": facts.why,
            "source": facts.source,
            "revision": facts.revision,
            "loras": [*facts.loras],
            "bytes": facts.bytes,
            "digest": facts.digest,
        }
        for facts in model.versions
    ]
    return {
        "model": model.model,
        "versions": versions,
        "entry": model.entry,
        "rollback_to": model.before,
        "arms": dict(model.arms),
        "paired": model.paired,
        "halt": None if model.halt is None else _halt(model.halt),
        "changes": model.changes,
    }


def _halt(rule: HaltRule) -> dict[str, JsonValue]:
    return {"errors": rule.errors, "slower": rule.slower, "jobs": rule.jobs}


def _compared(row: ComparedVersion) -> dict[str, JsonValue]:
    return {
        "version": row.version,
        "arm": row.arm,
        "jobs": row.jobs,
        "failed": row.failed,
        "refused": row.refused,
        "error_rate": encode_interval(row.error_rate),
        "seconds_p50": row.seconds_p50,
        "seconds_p95": row.seconds_p95,
        "inference_s": encode_interval(row.inference_s),
        "images": row.images,
        "gpu_seconds": round(row.gpu_seconds, 4),
        "cost_usd": row.cost_usd,
        "cost_per_image": row.cost_per_image,
    }


def _pairs(row: ComparedPairs) -> dict[str, JsonValue]:
    return {
        "first": row.first,
        "second": row.second,
        "pairs": row.pairs,
        "failed": row.failed,
        "error_rate": encode_interval(row.error_rate),
        "distance": encode_interval(row.distance),
        "slower_s": encode_interval(row.slower_s),
        "usd": row.usd,
        "choices": {"first": row.chose_first, "second": row.chose_second, "equal": row.chose_equal},
        "prefer_second": encode_interval(row.prefer_second),
        "chance": None if row.chance is None else round(row.chance, 6),
        "newest": [
            {
                "at": pair.at,
                "distance": None if pair.distance is None else round(pair.distance, 6),
                "first_s": pair.first_s,
                "second_s": pair.second_s,
                "choice": pair.choice,
            }
            for pair in row.newest
        ],
    }


def encode_interval(interval: Interval | None) -> JsonValue:
    """Write a value with its bounds; null where there is none."""
    if interval is None:
        return None
    return {"value": round(interval.value, 6), "low": round(interval.low, 6), "high": round(interval.high, 6)}
