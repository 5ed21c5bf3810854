"""models.yaml with one entry more or less: every other line, comments included, stays as it was written.

Pure text: nothing is read or written here. Whoever writes the file reads it back with `registry.py` first.
"""

import json
import re
import textwrap
from collections.abc import Mapping

import yaml
from yaml.nodes import MappingNode, Node, ScalarNode

_INDENT = 2


class EditError(ValueError):
    """A file that no entry can be added to or taken from; the message is a sentence with the fix."""


def entry_block(name: str, fields: Mapping[str, str], comment: str = "") -> str:
    """Return an entry as it stands among the models, from the first column on; `comment` stands in its first line."""
    head = f"{name}:{f'  # {_plain(comment)}' if comment else ''}"
    rest = [f"  {key}: {json.dumps(_plain(value), ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join([head, *rest])


def with_entry(text: str, name: str, block: str) -> str:
    """Return `text` with an entry behind the last one of its models.

    Raises EditError for a file whose models stand in braces, or that has one of this name.
    """
    models = _models(text)
    indent, line = _INDENT, None
    if isinstance(models, MappingNode) and models.value:
        if models.flow_style:
            raise EditError(f"its models stand in braces, and are not edited; write this among them:\n{block}")
        if _child(models, name) is not None:
            raise EditError(f"it has a model {name} already; choose another name.")
        indent, line = models.value[0][0].start_mark.column, _last_line(models)
    elif models is not None:
        line = models.start_mark.line
        if isinstance(models, MappingNode):  # models: {}
            text = re.sub(r"^(models:\s*)\{\s*\}", r"\1", text, flags=re.MULTILINE)
    entry = textwrap.indent(block, " " * indent).splitlines()
    lines = text.splitlines()
    if line is None:
        lines += ([""] if lines else []) + ["models:", *entry]
    else:
        lines[line + 1 : line + 1] = entry
    ending = "\r\n" if "\r\n" in text else "\n"
    return ending.join(lines) + ending


def taken_out(text: str, name: str) -> tuple[str, str]:
    """Return `text` without the entry of this name, and the entry. Raises EditError where there is none."""
    models = _models(text)
    found = _child(models, name) if isinstance(models, MappingNode) and not models.flow_style else None
    if found is None:
        raise EditError(f"it has no model {name} on lines of its own.")
    key, value = found
    lines = text.splitlines()
    span = slice(key.start_mark.line, max(key.start_mark.line, _last_line(value)) + 1)
    block = textwrap.dedent("\n".join(lines[span]))
    del lines[span]
    return "\n".join(lines) + "\n", block


def _plain(text: str) -> str:
    """Return a stranger's text as one line of printable characters: it ends no comment and opens no quotes."""
    return "".join(char if char.isprintable() else " " for char in text)[:500].strip()


def _models(text: str) -> Node | None:
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        raise EditError("it is not valid YAML; mend it first.") from None
    if root is None:
        return None
    if not isinstance(root, MappingNode):
        raise EditError("it is no mapping; mend it first.")
    found = _child(root, "models")
    return found[1] if found else None


def _child(node: MappingNode, name: str) -> tuple[Node, Node] | None:
    return next(((key, value) for key, value in node.value if key.value == name), None)


def _last_line(node: Node) -> int:
    """Return the number, from 0, of the last line on which something of a node stands."""
    if isinstance(node, ScalarNode) or getattr(node, "flow_style", False) or not node.value:
        ends_above = node.end_mark.column == 0 and node.end_mark.line > node.start_mark.line  # a block of text
        return int(node.end_mark.line) - ends_above
    last = node.value[-1]
    return _last_line(last[1] if isinstance(node, MappingNode) else last)
