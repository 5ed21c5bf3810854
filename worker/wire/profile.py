"""A job's profile as JSON, both ways: its trace is base64, or named by its place."""

import pybase64
from pydantic import JsonValue

from worker.core.profile import OperatorCost, Profile


def encode_profile(profile: Profile) -> dict[str, JsonValue]:
    """Write a profile."""
    body: dict[str, JsonValue] = {
        "steps": profile.steps,
        "events": profile.events,
        "left_out": profile.left_out,
        "operators": [
            {
                "name": each.name,
                "calls": each.calls,
                "cpu_ms": round(each.cpu_ms, 3),
                "device_ms": round(each.device_ms, 3),
            }
            for each in profile.operators
        ],
    }
    if profile.url is not None:
        return body | {"trace_url": profile.url}
    if profile.path is not None:
        return body | {"trace_path": profile.path}
    return body | {"trace": pybase64.b64encode_as_string(profile.trace)} if profile.trace else body


def decode_profile(body: JsonValue) -> Profile | None:
    """Read a profile; None where there is none. Raises KeyError, TypeError, ValueError."""
    if not isinstance(body, dict):
        return None
    operators, trace = body["operators"], body.get("trace")
    url, path = body.get("trace_url"), body.get("trace_path")
    return Profile(
        steps=int(str(body["steps"])),
        events=int(str(body["events"])),
        operators=tuple(map(_operator, operators if isinstance(operators, list) else [])),
        left_out=int(str(body.get("left_out") or 0)),
        trace=pybase64.b64decode(trace, validate=True) if isinstance(trace, str) else b"",
        url=url if isinstance(url, str) else None,
        path=path if isinstance(path, str) else None,
    )


def _operator(item: JsonValue) -> OperatorCost:
    if not isinstance(item, dict):
        raise TypeError("an object is needed")
    return OperatorCost(
        str(item["name"]), int(str(item["calls"])), float(str(item["cpu_ms"])), float(str(item["device_ms"]))
    )
