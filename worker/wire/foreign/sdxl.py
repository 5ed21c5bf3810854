"""The input of RunPod's worker-sdxl: ours, but for a refiner that is always there and a strength without an image."""

from collections.abc import Mapping

from pydantic import JsonValue

from worker.catalog.interface.values import number_in

MARKS = frozenset({"refiner_inference_steps", "high_noise_frac"})
_REFINER = "stabilityai/stable-diffusion-xl-refiner-1.0"


def decode(payload: Mapping[str, JsonValue]) -> tuple[dict[str, JsonValue], tuple[str, ...]]:
    """Return the input in our fields, and what was left out of it. A refiner is a second model: it has to be named."""
    fields: dict[str, JsonValue] = {
        name: value for name, value in payload.items() if name not in MARKS and value is not None
    }
    notes: list[str] = []
    if "strength" in fields and not fields.get("image_url"):
        del fields["strength"]
        notes.append("strength was left out: it is of an image, and none was sent.")
    share = number_in(payload.get("high_noise_frac"))
    start = share if share is not None and 0 < share < 1 else 0.8
    if "refiner" not in fields:
        notes.append(
            "refiner_inference_steps and high_noise_frac were left out: nothing is refined here unless a refiner is "
            f'named, as "refiner": {{"model": "{_REFINER}", "start": {start:g}}}; it shares num_inference_steps.'
        )
    return fields, tuple(notes)
