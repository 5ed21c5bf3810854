"""The parameters of a pipeline's `__call__`, read from the installed diffusers' text: nothing is imported or run."""

import ast
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType

from pydantic import JsonValue

from worker.catalog.classes.annotations import Schema, json_schema, union, written
from worker.catalog.classes.modular import ModularInput, modular_inputs
from worker.catalog.classes.source_text import parsed
from worker.catalog.pipelines.table import pipeline_row

# What follows `class ` at the beginning of a line, in bytes: to search for it by a pattern takes ten times as long.
# Bases are read from the syntax tree later; here only the name counts.
_NAME = re.compile(rb"[ \t]*(\w+)[ \t]*[(:]")
_LEFT = re.compile(r"^[^\s#)\]}]", re.MULTILINE)  # a line outside a class, but for what closes its head
_MEMBER = re.compile(r"^(?=    [^\s#)\]}])", re.MULTILINE)  # the lines at which the members of a class begin
# A method's head: on one line, or closed by a line of its own.
_HEAD = re.compile(r"    def \w+\((?:[^\n]*\n(?:     [^\n]*\n|\n)*    \)[^\n]*|[^\n]*):(?=\n)")
_SIZE_STEP = re.compile(r"(?:height|width) % (\d+) != 0")

_WORKER = Path(__file__).resolve().parents[2]

# Never taken from a request: objects that JSON cannot carry, parameters that the worker itself sets or that the common
# fields cover (prompts, images, counts, output), texts that a pipeline would read as a path, names that diffusers marks
# private by a leading underscore, and fields that doors read for themselves.
DENIED = re.compile(
    r"self|args|kwargs|_\w*|action|generator|seed|steps|(.*_)?output_type|return_\w+|debug|fonts|enable_safety_check|.*latents(_.*)?|latent"
    r"|.*embeds.*|.*callback.*|\w+_kwargs|.*ip_adapter.*|\w+_per_(prompt|image)|(\w+_)?batch_size"
    r"|(negative_|neg_)?prompt|images?|\w+_images?|image_(2|latents|file|path)|video|\w+_video|videos"
    r"|masks?|mask_image|(?!use_|input_)\w+_mask(_\d)?|mask_video|audio|audio_(file|codes|latents)|timesteps_\w+|input_tokens"
)


@dataclass(frozen=True, slots=True)
class CallParameter:
    """One parameter of a pipeline's `__call__`. `schema` is its JSON type; None when JSON cannot express it."""

    name: str
    annotation: str
    default: JsonValue
    required: bool
    schema: Schema | None


@lru_cache(maxsize=512)
def call_parameters(class_name: str) -> Mapping[str, CallParameter] | None:
    """Return the `__call__` parameters of a diffusers pipeline in written order; None when there is no such class."""
    inputs = modular_inputs(class_name)
    parameters = (
        _call_parameters(class_name, frozenset()) if inputs is None else {item.name: _of_input(item) for item in inputs}
    )
    return None if parameters is None else MappingProxyType(parameters)


def regenerates_by_strength(class_name: str | None) -> bool:
    """True if `strength` sets how much of the sent image is regenerated: LTX has a denoise_strength for that."""
    signature = call_parameters(class_name or "")
    return signature is None or ("strength" in signature and "denoise_strength" not in signature)


@lru_cache(maxsize=512)
def part_classes(class_name: str, part: str) -> frozenset[str]:
    """Return the classes that a pipeline's `__init__` names for one of its parts; none where it has no such part."""
    method = _method(class_name, "__init__")
    parameter = _read(method.args, {}).get(part) if method else None
    return frozenset(re.findall(r"\w+", parameter.annotation)) - {"None"} if parameter else frozenset()


@lru_cache(maxsize=512)
def needed_parts(class_name: str | None) -> frozenset[str]:
    """Return the components that this class cannot be built without; empty where its source does not show them."""
    method = _method(class_name, "__init__")
    if method is None:
        return frozenset()
    required = method.args.args[1 : len(method.args.args) - len(method.args.defaults)]
    return frozenset(argument.arg for argument in required) - _optional_parts(class_name or "")


@lru_cache(maxsize=512)
def size_step(class_name: str | None) -> int | None:
    """Return the number that `check_inputs` wants a side to be a multiple of, where it is written in digits."""
    method = _method(class_name, "check_inputs")
    steps = [int(digits) for digits in _SIZE_STEP.findall(ast.unparse(method))] if method else []
    return max(steps, default=None)


def _method(class_name: str | None, name: str) -> ast.FunctionDef | None:
    """Return a method that the class itself defines, from the first file that has it."""
    for path in _files_of(class_name or ""):
        definition = _definition(path, class_name or "")
        for part in definition.body if definition else ():
            if isinstance(part, ast.FunctionDef) and part.name == name:
                return part
    return None


def _optional_parts(class_name: str) -> frozenset[str]:
    for path in _files_of(class_name):
        definition = _definition(path, class_name)
        for part in definition.body if definition else ():
            if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "_optional_components":
                return frozenset(ast.literal_eval(part.value))
    return frozenset()


def known_pipelines() -> frozenset[str]:
    """Return the names of all classes that the installed diffusers' pipelines define; empty without diffusers."""
    return frozenset(_index())


def _call_parameters(class_name: str, visited: frozenset[str]) -> dict[str, CallParameter] | None:
    if class_name in visited:
        return None
    row = pipeline_row(class_name)
    for path in _files_of(class_name):
        definition = _definition(path, class_name)
        if definition is None:
            continue
        methods = {part.name: part for part in definition.body if isinstance(part, ast.FunctionDef)}
        if "__call__" in methods:
            parameters = _read(methods["__call__"].args, _ceilings(definition))
            for name in ("generate_mask", "invert") if row.inverts else ():
                parameters = _read(methods[name].args, {}) | parameters if name in methods else parameters
            return parameters
        for parent in definition.bases:
            inherited = _call_parameters(ast.unparse(parent).rpartition(".")[2], visited | {class_name})
            if inherited is not None:
                return inherited
    return None


def _files_of(class_name: str) -> tuple[Path, ...]:
    """Return the files that may define a class: one that its row names, else diffusers'."""
    row = pipeline_row(class_name)
    return (_WORKER / row.source,) if row.source else _index().get(class_name, ())


@lru_cache(maxsize=1)
def _index() -> Mapping[str, tuple[Path, ...]]:
    """Return the files that define a class, by class name; current code comes before deprecated code."""
    root = _pipelines_folder()
    if root is None:
        return {}
    index: dict[str, tuple[Path, ...]] = {}
    for path in sorted(root.rglob("*.py"), key=lambda file: ("deprecated" in file.parts, str(file))):
        if path.name == "__init__.py":
            continue
        for named in map(_NAME.match, (b"\n" + path.read_bytes()).split(b"\nclass ")[1:]):
            if named is not None:
                name = named[1].decode()
                index[name] = (*index.get(name, ()), path)
    return index


def _pipelines_folder() -> Path | None:
    try:
        spec = importlib.util.find_spec("diffusers")
    except (ImportError, ValueError):
        return None
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "pipelines"
        if folder.is_dir():
            return folder
    return None


def _definition(path: Path, class_name: str) -> ast.ClassDef | None:
    text = path.read_text(encoding="utf-8", errors="replace")
    for part in (_heads_of(_text_of(class_name, text)), text):
        try:
            tree = parsed(part)
        except SyntaxError:
            continue
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and node.name == class_name:
                return node
    return None


def _text_of(class_name: str, text: str) -> str:
    """Return the lines of one class: a file has others beside it, and to parse them takes as long as all the rest."""
    begun = re.search(rf"^class[ \t]+{re.escape(class_name)}[ \t]*[(:]", text, re.MULTILINE)
    if begun is None:
        return ""
    ended = _LEFT.search(text, begun.end())
    part = text[begun.start() : ended.start() if ended else len(text)]
    # A line on the left may be one of a text within the class.
    return "" if any(part.count(quotes) % 2 for quotes in ('"""', "'''")) else part


def _heads_of(text: str) -> str:
    """Return a class without what its methods do, which takes most of the time to parse, but for `check_inputs`."""
    first, *members = _MEMBER.split(text)
    return "".join([first, *(_head_of(member) for member in members)])


def _head_of(member: str) -> str:
    """Return a member of a class as it is, or a method's head alone."""
    head = None if member.startswith("    def check_inputs") else _HEAD.match(member)
    return member if head is None else f"{head[0]} ...\n"


def _ceilings(definition: ast.ClassDef) -> dict[str, int | float]:
    """Return the limits that the pipeline's own `check_inputs` enforces: `if max_sequence_length > 512: raise`."""
    checks = [part for part in definition.body if isinstance(part, ast.FunctionDef) and part.name == "check_inputs"]
    ceilings: dict[str, int | float] = {}
    for node in (inner for check in checks for inner in _conditions(check.body)):
        test = _alone(node.test) if isinstance(node.body[0], ast.Raise) else None
        if isinstance(test, ast.Compare) and isinstance(test.left, ast.Name) and isinstance(test.ops[0], ast.Gt):
            limit = test.comparators[0]
            if isinstance(limit, ast.Constant) and isinstance(limit.value, int | float):
                ceilings[test.left.id] = limit.value
    return ceilings


def _conditions(statements: Iterable[ast.stmt]) -> Iterator[ast.If]:
    """Yield each `if` among statements and within them, expressions unvisited."""
    for statement in statements:
        if isinstance(statement, ast.If):
            yield statement
        for name in ("body", "orelse", "finalbody"):
            yield from _conditions(getattr(statement, name, ()))
        for handler in getattr(statement, "handlers", ()):
            yield from _conditions(handler.body)


def _alone(test: ast.expr) -> ast.expr | None:
    """Return a condition without `x is not None and`.

    None where more is left: that is a bound only together with others.
    """
    if not isinstance(test, ast.BoolOp) or isinstance(test.op, ast.Or):
        return test if isinstance(test, ast.Compare) else None
    rest = [part for part in test.values if not (isinstance(part, ast.Compare) and isinstance(part.ops[0], ast.IsNot))]
    return rest[0] if len(rest) == 1 else None


def _read(arguments: ast.arguments, ceilings: Mapping[str, int | float]) -> dict[str, CallParameter]:
    positional = [*arguments.posonlyargs, *arguments.args]
    defaults: list[ast.expr | None] = [None] * (len(positional) - len(arguments.defaults)) + list(arguments.defaults)
    pairs = [*zip(positional, defaults, strict=True), *zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)]
    parameters = {argument.arg: _parameter(argument, default) for argument, default in pairs if argument.arg != "self"}
    for name, limit in ceilings.items():
        if name in parameters and parameters[name].schema in ({"type": "integer"}, {"type": "number"}):
            parameters[name] = replace(parameters[name], schema={**(parameters[name].schema or {}), "maximum": limit})
    return parameters


def _parameter(argument: ast.arg, default: ast.expr | None) -> CallParameter:
    value, literal = _literal(default)
    schema = json_schema(argument.annotation) if argument.annotation else _schema_of(value)
    # Diffusers writes `sigmas: list[float] = None`: a None default makes any type nullable.
    if schema is not None and literal and value is None and default is not None:
        schema = union([schema, {"type": "null"}])
    annotation = "" if argument.annotation is None else written(argument.annotation)
    return CallParameter(argument.arg, annotation, value, default is None, schema)


def _of_input(item: ModularInput) -> CallParameter:
    """Return a modular pipeline's input as a parameter. What its blocks make themselves is never required."""
    try:
        value = ast.literal_eval(item.default) if item.default is not None else None
    except (ValueError, SyntaxError):
        value = item.default  # a text, written without quotes
    default, literal = _as_json(value)
    try:
        node = json_schema(parsed(item.annotation, mode="eval").body)
    except SyntaxError:  # none is written
        node = None
    schema = union([node, {"type": "null"}]) if node is not None else None
    required = not item.optional and (item.annotation.startswith("Image") or item.name.endswith("video"))
    return CallParameter(item.name, item.annotation, default if literal else None, required, schema)


def _schema_of(value: JsonValue) -> Schema | None:
    """Return the type of a default, for the few parameters that are not annotated."""
    name = {bool: "boolean", int: "integer", float: "number", str: "string"}.get(type(value))
    return {"type": name} if name else None


def _literal(node: ast.expr | None) -> tuple[JsonValue, bool]:
    """Return the JSON value of a default, and True if it is a literal."""
    if node is None:
        return None, False
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError):
        return None, False
    return _as_json(value)


def _as_json(value: object) -> tuple[JsonValue, bool]:
    if value is None or isinstance(value, bool | int | float | str):
        return value, True
    if isinstance(value, list | tuple):
        items = [_as_json(item) for item in value]
        return [item for item, _ in items], all(literal for _, literal in items)
    return None, False
