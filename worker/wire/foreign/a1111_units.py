"""ControlNet's units in `alwayson_scripts` of AUTOMATIC1111's payload, as our `controlnets`."""

from collections.abc import Mapping

from pydantic import JsonValue

from worker.core.errors import ParameterOutOfRange, UnknownParameter

# The preprocessors of the extension that are arithmetic alone -> ours. The others need a model of their own.
MODULES: Mapping[str, str | None] = {
    "none": None,
    "canny": "canny",
    "lineart_standard": "lineart",
    "lineart_standard (from white bg & black line)": "lineart",
    "invert": "invert",
    "invert (from white bg & black line)": "invert",
    "threshold": "threshold",
    "tile_resample": "tile",
    "blur_gaussian": "blur",
    "recolor_luminance": "grayscale",
}
_SCRIPT = "controlnet"
_WEIGHTS = {"weight": "scale", "guidance_start": "start", "guidance_end": "end"}


def control_units(scripts: Mapping[str, JsonValue]) -> tuple[list[JsonValue], list[str]]:
    """Return the units that are on, as `controlnets`, and the names of all other scripts that were given arguments.

    Raises UnknownParameter for a preprocessor that is not served, ParameterOutOfRange for units that are none.
    """
    units: list[JsonValue] = []
    others: list[str] = []
    for name, script in scripts.items():
        arguments = script.get("args") if isinstance(script, dict) else script
        if name.lower() != _SCRIPT:
            if _is_on(arguments):
                others.append(name)
            continue
        if arguments is not None and not isinstance(arguments, list):
            raise ParameterOutOfRange("alwayson_scripts.ControlNet.args must be a list.", field="alwayson_scripts")
        units += [
            _unit(unit) for unit in arguments or () if isinstance(unit, dict) and unit.get("enabled") is not False
        ]
    return units, others


def _is_on(arguments: JsonValue) -> bool:
    """True if an extension was given something to do: most have a first argument that turns them on."""
    return bool(arguments) and not (isinstance(arguments, list) and arguments[0] is False)


def _unit(unit: Mapping[str, JsonValue]) -> JsonValue:
    model = unit.get("model")
    if not isinstance(model, str) or model.lower() in ("none", ""):
        raise ParameterOutOfRange(
            "alwayson_scripts.ControlNet: a unit needs model, the name or reference of a ControlNet.",
            field="alwayson_scripts",
        )
    control: dict[str, JsonValue] = {"model": model.partition(" [")[0]}
    image = unit.get("image") or unit.get("input_image")
    if isinstance(image, dict):
        image = image.get("image")
    if image:
        control["image"] = image
    module = str(unit.get("module") or "none").lower()
    if module not in MODULES:
        raise UnknownParameter(
            f"alwayson_scripts.ControlNet: module {module[:40]} is not served; send the image that it makes with "
            f"module none, or use one of {', '.join(sorted(MODULES))}.",
            field="alwayson_scripts",
        )
    if (preprocess := MODULES[module]) is not None:
        control["preprocess"] = preprocess
    return control | {ours: unit[name] for name, ours in _WEIGHTS.items() if unit.get(name) is not None}
