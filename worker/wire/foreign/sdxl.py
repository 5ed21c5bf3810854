"""The input of RunPod's worker-sdxl: ours, but for a refiner that is always there and a strength without an image."""

from collections.abc import Mapping

from pydantic import JsonValue

from worker.catalog.interface.values import number_in

MARKS = frozenset({"refiner_inference_steps", "high_noise_frac"})
_USUAL_START = 0.8  # as there


def decode(payload: Mapping[str, JsonValue]) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """Return the input in our fields, and what was left out of it.

    The refiner is the model's own, where it has one: from `high_noise_frac` of the steps on, in its own schedule.
    """
    fields: dict[str, JsonValue] = {
        name: value for name, value in payload.items() if name not in MARKS and value is not None
    }
    notes: list[str] = []
    if "strength" in fields and not fields.get("image_url"):
        del fields["strength"]
        notes.append("strength was left out: it is of an image, and none was sent.")
    if "refiner" not in fields:
        notes += _refined(payload, fields)
    return fields, tuple(notes)


def _refined(payload: Mapping[str, JsonValue], fields: dict[str, JsonValue]) -> list[str]:
    share = number_in(payload.get("high_noise_frac", _USUAL_START))
    if share is None or not 0 < share < 1:
        return ["high_noise_frac leaves nothing to refine, or all of it: nothing is refined."]
    refiner: dict[str, JsonValue] = {"model": "own", "start": share, "optional": True}
    if payload.get("refiner_inference_steps") is not None:
        refiner["steps"] = payload["refiner_inference_steps"]
    fields["refiner"] = refiner
    return []
