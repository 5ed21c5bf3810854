"""The tree of blocks that a modular pipeline consists of, read from diffusers' text: which part each needs, and when.

A block is a class. Some blocks run always, some only with an input that starts them; `image`, for one.
"""

import ast
from collections.abc import Iterator
from functools import lru_cache

from worker.catalog.classes.modular_text import block_definition, file_of

_CONDITIONAL = frozenset({"AutoPipelineBlocks", "ConditionalPipelineBlocks"})
_PROMPT = frozenset({"prompt"})


@lru_cache(maxsize=64)
def always_needed(blocks: str) -> frozenset[str]:
    """Return the parts with weights or vocabularies that every call of these blocks uses.

    A block that only rewrites the prompt can be left out, and so can its parts.
    """
    children = _children(blocks)
    if not children:
        return _components(blocks)
    needs = [frozenset() if _rewrites_the_prompt(child) else always_needed(child) for child in children]
    if not _is_conditional(blocks):
        return frozenset().union(_components(blocks), *needs)
    return frozenset.intersection(*needs) if _has_default(blocks) else frozenset()


@lru_cache(maxsize=256)
def needed_with(blocks: str, sent: str) -> frozenset[str]:
    """Return the parts that a call uses where the input `sent` is there, beside those that it always uses.

    Blocks that choose by a condition of their own, and those that only rewrite the prompt, are left out of account.
    """
    if _rewrites_the_prompt(blocks):
        return frozenset()
    children = _children(blocks)
    triggers = _triggers(blocks) if "AutoPipelineBlocks" in _lineage(blocks) else ()
    started = [always_needed(child) for child, trigger in zip(children, triggers, strict=False) if trigger == sent]
    return frozenset().union(*started, *(needed_with(child, sent) for child in children))


def every_component(blocks: str) -> frozenset[str]:
    """Return all parts that some block of the tree uses."""
    return frozenset().union(_components(blocks), *map(every_component, _children(blocks)))


def workflows(blocks: str) -> tuple[frozenset[str], ...]:
    """Return the inputs of every workflow that the blocks name; empty where they name none."""
    value = _attribute(blocks, "_workflow_map")
    found = ast.literal_eval(value) if isinstance(value, ast.Dict) else {}
    spellings = [one for inputs in found.values() for one in (inputs if isinstance(inputs, tuple) else (inputs,))]
    return tuple(dict.fromkeys(frozenset(inputs) for inputs in spellings))


def _rewrites_the_prompt(blocks: str) -> bool:
    children = _children(blocks)
    if children:
        return all(map(_rewrites_the_prompt, children))
    return _names(blocks, "intermediate_outputs", "OutputParam") == _PROMPT


def _has_default(blocks: str) -> bool:
    return None in _triggers(blocks) or _attribute(blocks, "default_block_name") is not None


def _triggers(blocks: str) -> tuple[str | None, ...]:
    value = _attribute(blocks, "block_trigger_inputs")
    return tuple(ast.literal_eval(value)) if isinstance(value, ast.List) else ()


def _is_conditional(blocks: str) -> bool:
    return any(base in _CONDITIONAL for base in _lineage(blocks))


@lru_cache(maxsize=1024)
def _children(blocks: str) -> tuple[str, ...]:
    """Return the classes of the blocks within, from a list or from the module's table of them."""
    value = _attribute(blocks, "block_classes")
    if value is None:
        return ()
    while isinstance(value, ast.Call) and ast.unparse(value.func) == "list":
        value = value.args[0]
    if isinstance(value, ast.Call):  # TABLE.values()
        table = _table(blocks, ast.unparse(value.func).removesuffix(".values"))
        items = [pair.elts[1] for pair in table if isinstance(pair, ast.Tuple)]
    else:
        items = list(value.elts) if isinstance(value, ast.List | ast.Tuple) else []
    return tuple(ast.unparse(item.func if isinstance(item, ast.Call) else item) for item in items)


def _table(blocks: str, name: str) -> list[ast.expr]:
    """Return the pairs of a module's `NAME = InsertableDict([(…, …)])`."""
    owner = next(cls for cls in _lineage(blocks) if (node := block_definition(cls)) and _own(node, "block_classes"))
    for statement in file_of(owner):
        value = statement.value if isinstance(statement, ast.Assign) else None
        if (
            isinstance(statement, ast.Assign)
            and ast.unparse(statement.targets[0]) == name
            and isinstance(value, ast.Call)
        ):
            listed = value.args[0]
            return list(listed.elts) if isinstance(listed, ast.List) else []
    return []


def _components(blocks: str) -> frozenset[str]:
    """Return the parts that a block itself loads; those that it makes of a config it brings along."""
    own = {"loop_expected_components", "expected_components"}
    return frozenset().union(*(_names(blocks, method, "ComponentSpec") for method in own))


def _names(blocks: str, method: str, kind: str) -> frozenset[str]:
    """Return the first arguments of the calls of `kind`, `ComponentSpec("vae", …)` say, in a method of the class."""
    for cls in _lineage(blocks):
        node = block_definition(cls)
        found = (
            [part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == method] if node else []
        )
        if found:
            return frozenset(_first_arguments(found[0], kind))
    return frozenset()


def _first_arguments(method: ast.FunctionDef, kind: str) -> Iterator[str]:
    for node in ast.walk(method):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in (kind, f"{kind}.template"):
            continue
        keywords = {keyword.arg: keyword.value for keyword in node.keywords}
        name = node.args[0] if node.args else keywords.get("name")
        made = keywords.get("default_creation_method")
        if isinstance(name, ast.Constant) and not (made is not None and "from_config" in ast.unparse(made)):
            yield str(name.value)


def _attribute(blocks: str, name: str) -> ast.expr | None:
    for cls in _lineage(blocks):
        node = block_definition(cls)
        value = _own(node, name) if node else None
        if value is not None:
            return value
    return None


def _own(node: ast.ClassDef, name: str) -> ast.expr | None:
    assigned = [part for part in node.body if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == name]
    return assigned[0].value if assigned else None


@lru_cache(maxsize=1024)
def _lineage(blocks: str) -> tuple[str, ...]:
    """Return the class and the classes that it inherits from, nearest first; diffusers' own base classes last."""
    node = block_definition(blocks)
    bases = [ast.unparse(base).rpartition(".")[2] for base in node.bases] if node else []
    return (blocks, *(name for base in bases for name in _lineage(base)))
