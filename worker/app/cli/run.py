"""The command that generates: what was typed becomes a request, and its files are saved."""

import json
import re
from argparse import Namespace
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from worker.app.cli.files import TypedFiles, exists, media
from worker.app.cli.saving import Destination, check_file, open_file, with_trace_saved
from worker.app.cli.session import failures, open_worker, perform, settings_of
from worker.app.cli.terminal import Failure, Terminal
from worker.app.registry import build_registry
from worker.core.answer import Answer, AnyAnswer
from worker.wire.request import ALIASES
from worker.wire.result import encode_answer, encode_generation

_PLAIN = {  # option -> the request's field
    "num_images": "num_images",
    "seed": "seed",
    "steps": "num_inference_steps",
    "guidance": "guidance_scale",
    "strength": "strength",
}
_TEXTS = {"model": "model", "negative": "negative_prompt", "scheduler": "scheduler"}
_MEDIA = {"mask": "mask_image", "video": "video", "control": "control_image"}
_SHOWN = 10  # operators
WEIGHT = re.compile(r"(?P<model>.+):(?P<weight>-?(\d+|\d*\.\d+))")


def run(arguments: Namespace, terminal: Terminal) -> None:
    """Generate images and save them."""
    settings = settings_of(terminal)
    files = TypedFiles(lambda name: build_registry(settings).find(name) is not None)
    fields, typed = read_fields(arguments)
    destination = destination_of(arguments, terminal, fields, typed)
    trace = None if arguments.profile is None else Path(arguments.profile).expanduser()
    if trace is not None:
        check_file(trace, "--profile")
        fields["profile"], typed["profile"] = True, "--profile"
    with failures(terminal):
        fields = {name: files.placed(name, value) for name, value in fields.items()}
    with open_worker(terminal, unregistered=True, roots=files.roots, typed=typed) as worker:
        answer = perform(worker, terminal, fields)
    if trace is not None and isinstance(answer, Answer):
        answer = with_trace_saved(answer, trace)
        _show_profile(answer, arguments, terminal)
    finish(answer, destination, arguments, terminal)


def destination_of(
    arguments: Namespace,
    terminal: Terminal,
    fields: MutableMapping[str, JsonValue],
    typed: MutableMapping[str, str],
) -> Destination:
    """Return where a command's images go, as --output says, which can be written. Raises Failure."""
    destination = Destination(settings_of(terminal).outputs_dir)
    if arguments.output is not None:
        destination = Destination.named(arguments.output, fields, typed)
    destination.check()
    return destination


def finish(answer: AnyAnswer, destination: Destination, arguments: Namespace, terminal: Terminal) -> None:
    """Save an answer's files and say where, and what there is to be warned of."""
    if not isinstance(answer, Answer):  # --param action=…
        terminal.json(encode_answer(answer))
        return
    for warning in answer.warnings:
        terminal.warn(warning)
    uploaded = [location for file in answer.files if (location := file.url or file.path)]
    saved = [] if uploaded else destination.save(answer)
    places = [*uploaded, *map(str, saved)]
    if arguments.json:
        terminal.json(encode_generation(answer, places))
    else:
        for place in places:
            terminal.print(place)
    if arguments.open:
        open_file(places[0], terminal)


def _show_profile(answer: Answer, arguments: Namespace, terminal: Terminal) -> None:
    """Print where the trace is, and beside the result the operators that took longest."""
    profile = answer.profile
    if profile is None or arguments.json:
        return
    if profile.path is not None:
        terminal.print(profile.path)
    rows = [
        (each.name, f"{each.calls:,}", f"{each.cpu_ms:,.1f}", f"{each.device_ms:,.1f}")
        for each in profile.operators[:_SHOWN]
    ]
    terminal.table(("operator", "calls", "CPU ms", "device ms"), rows, beside=True)


def read_fields(arguments: Namespace) -> tuple[dict[str, JsonValue], dict[str, str]]:
    """Return the fields of a request, and the option that was typed for each. Raises Failure."""
    typed: dict[str, str] = {}
    fields: dict[str, JsonValue] = {} if arguments.prompt is None else {"prompt": arguments.prompt}
    for options, read in ((_TEXTS, str), (_PLAIN, plain_value)):
        for option, field in options.items():
            if (text := getattr(arguments, option)) is not None:
                fields[field], typed[field] = read(text), f"--{option.replace('_', '-')}"
    if arguments.size is not None:
        fields["width"], fields["height"] = _size(arguments.size)
    if arguments.format is not None:
        fields["output"] = {"format": arguments.format}
    fields |= _media_fields(arguments) | _adapter_fields(arguments)
    for text in arguments.param:
        name, value = parameter(text, "--param")
        if name == "output" and isinstance(value, dict) and isinstance(output := fields.get("output"), dict):
            value = {**output, **value}
        fields[name] = value
        typed[ALIASES.get(name, name)] = name
    return fields, typed


def plain_value(text: str) -> JsonValue:
    """Return a number or another JSON value that was typed, else the text."""
    try:
        value: JsonValue = json.loads(text)
    except (ValueError, RecursionError):
        return text
    return value


def _size(text: str) -> tuple[JsonValue, JsonValue]:
    sides = re.fullmatch(r"\s*(\d{1,6})\s*(?:[xX×*,]\s*(\d{1,6})\s*)?", text)
    if sides is None:
        raise Failure(f"--size must be WIDTHxHEIGHT in pixels, as 1024x768, or one number; {text[:40]!r} was given.")
    return int(sides[1]), int(sides[2] or sides[1])


def _media_fields(arguments: Namespace) -> dict[str, JsonValue]:
    fields: dict[str, JsonValue] = {
        field: media(text, f"--{option}")
        for option, field in _MEDIA.items()
        if (text := getattr(arguments, option)) is not None
    }
    if arguments.controlnet is not None:  # the image is the ControlNet's
        fields.pop("control_image", None)
    images = [media(text, "--image") for text in arguments.image or []]
    if images:
        fields |= {"image": images[0]} if len(images) == 1 else {"images": [*images]}
    return fields


def _adapter_fields(arguments: Namespace) -> dict[str, JsonValue]:
    fields: dict[str, Any] = {}
    if arguments.lora:
        fields["loras"] = [_lora(text) for text in arguments.lora]
    if arguments.controlnet is not None:
        fields["controlnets"] = [{"model": arguments.controlnet}]
        if arguments.control is not None:
            fields["controlnets"][0]["image"] = media(arguments.control, "--control")
    if arguments.ip_image and arguments.ip_adapter is None:
        raise Failure("--ip-image needs the IP-Adapter that draws after it; name one with --ip-adapter.")
    if arguments.ip_adapter is not None:
        images = [media(text, "--ip-image") for text in arguments.ip_image or []]
        if not images:
            raise Failure("--ip-adapter needs an image to draw after; name one with --ip-image.")
        fields["ip_adapters"] = [{"model": arguments.ip_adapter, "images": images}]
    return fields


def _lora(text: str) -> dict[str, JsonValue]:
    match = WEIGHT.fullmatch(text)
    if match and "." not in match["weight"] and not exists(Path(match["model"]).expanduser()):
        match = None  # a reference may end in a number, too
    return {"model": match["model"], "weight": float(match["weight"])} if match else {"model": text}


def parameter(text: str, option: str) -> tuple[str, JsonValue]:
    """Split a NAME=VALUE that was typed for `option`. Raises Failure."""
    name, separator, value = text.partition("=")
    if not separator or not name:
        raise Failure(f"{option} {text!r} is not NAME=VALUE.")
    return name, plain_value(value)
