"""A YAML file of the operator's, read strictly: any mistake in it is one sentence, with its line and the fix."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, TypeVar

import yaml
from pydantic import BaseModel, JsonValue, ValidationError
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

MAX_BYTES = 1_000_000
MAX_DEPTH = 12
# Plain texts become numbers as in JSON, without YAML's surprises: `no` stays a word, 12:30 and 010 no numbers.
_INT = re.compile(r"-?(0|[1-9][0-9]{0,17})")
_FLOAT = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.[0-9]+([eE][-+]?[0-9]{1,2})?|[eE][-+]?[0-9]{1,2})")
_WORDS: Mapping[str, JsonValue] = {"": None, "~": None, "null": None, "true": True, "false": False}

_QUICK: type[yaml.SafeLoader] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in a tenth of the time

KeyPath = tuple[str | int, ...]
T = TypeVar("T", bound=BaseModel)


class FileError(ValueError):
    """A file that cannot be used. The message starts with `FILE:LINE: `."""

    def __init__(self, file: str, line: int, sentence: str) -> None:
        super().__init__(f"{file}:{line}: {sentence}")
        self.file = file
        self.line = line
        self.sentence = sentence


class OperatorFile:
    """One reading of one file, with the line of every key and value in it."""

    error: ClassVar[type[FileError]] = FileError
    keys: ClassVar[str] = ""  # at its top, for the sentence about a file that is no mapping
    nested: ClassVar[Mapping[str, type[BaseModel]]] = {}  # what a mapping under this key is read as

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[KeyPath, int] = {}

    def fail(self, place: KeyPath | int, sentence: str) -> FileError:
        """Return the error for a place in the file: a line, or the nearest known line above a key path."""
        return self.error(self.path.name, place if isinstance(place, int) else self.line(place), sentence)

    def line(self, keys: KeyPath) -> int:
        """Return the line of the longest part of a key path that the file has."""
        while keys and keys not in self.lines:
            keys = keys[:-1]
        return self.lines.get(keys, 1)

    def read(self) -> bytes:
        """Return the file's bytes. Raises OSError."""
        return self.path.read_bytes()

    def data(self) -> dict[str, JsonValue]:
        """Return the file as plain data; refuse features of YAML that such a file never needs."""
        try:
            raw = self.read()
        except OSError as error:
            raise self.fail(1, f"cannot be read ({error.strerror or 'unknown reason'}); check the path.") from error
        if len(raw) > MAX_BYTES:
            raise self.fail(1, f"is {len(raw):,} bytes; the limit is {MAX_BYTES:,}: split it or remove entries.")
        try:
            text = raw.decode("utf-8")
            root = self.composed(text)
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            raise self.fail(line, "is not UTF-8 text; save the file as UTF-8.") from error
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            problem = f"is not valid YAML ({error.problem or 'unreadable'}); fix the text here."
            raise self.fail(mark.line + 1 if mark else 1, problem) from error
        except yaml.YAMLError as error:
            raise self.fail(1, "is not valid YAML (a character that YAML does not allow); remove it.") from error
        if not isinstance(root, MappingNode):
            raise self.fail(1, f"must be a mapping with the keys {self.keys}.")
        value = self.value(root, ())
        return value if isinstance(value, dict) else {}

    def composed(self, text: str) -> Node | None:
        """Compose the text, in C where libyaml is; of a mistake in it Python's own reader speaks more clearly."""
        try:
            self.refuse_hostile(text, _QUICK)
            return yaml.compose(text, Loader=_QUICK)
        except yaml.YAMLError:
            self.refuse_hostile(text, yaml.SafeLoader)
            return yaml.compose(text, Loader=yaml.SafeLoader)

    def refuse_hostile(self, text: str, loader: type[yaml.SafeLoader]) -> None:
        """Walk the events before anything is built: the composer itself recurses, and follows aliases."""
        depth = 0
        for event in yaml.parse(text, Loader=loader):
            line = event.start_mark.line + 1 if event.start_mark else 1
            if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) is not None:
                raise self.fail(line, "anchors (&) and aliases (*) are not allowed; write the value out.")
            if isinstance(event, yaml.CollectionStartEvent):
                depth += 1
            elif isinstance(event, yaml.CollectionEndEvent):
                depth -= 1
            if getattr(event, "tag", None) is not None:
                raise self.fail(line, "tags (!) are not allowed; write plain text, numbers, lists and mappings.")
            if depth > MAX_DEPTH:
                raise self.fail(line, f"is nested deeper than {MAX_DEPTH} levels; flatten it.")

    def value(self, node: Node, keys: KeyPath) -> JsonValue:
        """Return a YAML node as plain data, and note its line under `keys`."""
        self.lines.setdefault(keys, node.start_mark.line + 1)
        if isinstance(node, SequenceNode):
            return [self.value(item, (*keys, index)) for index, item in enumerate(node.value)]
        if isinstance(node, MappingNode):
            return self.mapping(node, keys)
        text = str(node.value)
        if not isinstance(node, ScalarNode) or node.style:  # quoted; a plain one has "" or None
            return text
        if _INT.fullmatch(text):
            return int(text)
        return float(text) if _FLOAT.fullmatch(text) else _WORDS.get(text, text)

    def mapping(self, node: MappingNode, keys: KeyPath) -> dict[str, JsonValue]:
        """Return a YAML mapping with text keys, each once."""
        result: dict[str, JsonValue] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if not isinstance(key, ScalarNode) or not key.value:
                raise self.fail(line, "a key must be plain text; quote it if it is.")
            name = str(key.value)
            if name in result:
                first_line = self.lines[(*keys, name)]
                raise self.fail(line, f"{name} is already defined at line {first_line}; remove one of the two.")
            self.lines[(*keys, name)] = line
            result[name] = self.value(value, (*keys, name))
        return result

    def parsed(self, kind: type[T], data: JsonValue, keys: KeyPath) -> T:
        """Parse `data` as `kind`; raise pydantic's first complaint with its line, in our words."""
        try:
            return kind.model_validate_json(json.dumps(data))  # JSON mode: lists become tuples, nothing else is coerced
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            error_path: KeyPath = (*keys, *first["loc"])
            name = ".".join(str(part) for part in error_path) or "the file"
            if first["type"] == "extra_forbidden":
                fields = [str(field) for field in self.fields(kind, first["loc"][:-1])]
                nearest = difflib.get_close_matches(str(error_path[-1]), fields, n=1)
                fix = f"did you mean {nearest[0]}?" if nearest else f"the keys here are {', '.join(fields)}."
                raise self.fail(error_path, f"unknown key {name}; {fix}") from error
            if first["type"] == "missing":
                raise self.fail(error_path, f"{name} is missing; add it.") from error
            value = json.dumps(first["input"], default=str)
            if "://" in value:  # an address may hold a password, or be the secret itself as a webhook's is
                raise self.fail(error_path, f"{name} {reason_of(error)}; an address was written.") from error
            quote = ": put it in quotes" if first["type"] == "string_type" and not value.startswith(("[", "{")) else ""
            raise self.fail(error_path, f"{name} {reason_of(error)}; {value[:64]} was written{quote}.") from error

    def fields(self, kind: type[BaseModel], loc: tuple[int | str, ...]) -> list[str]:
        """Return the keys that a mapping inside `kind` may have."""
        return list((self.nested[str(loc[0])] if loc else kind).model_fields)


def reason_of(error: ValidationError) -> str:
    """Return pydantic's first complaint in our words."""
    text = error.errors(include_url=False)[0]["msg"]
    return re.sub(r"^\w+ should", "must", text)
