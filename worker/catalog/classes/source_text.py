"""Python source text as a syntax tree, from any thread."""

import ast
import threading
from typing import Literal, overload

_PARSING = threading.Lock()


@overload
def parsed(text: str, mode: Literal["exec"] = "exec") -> ast.Module: ...
@overload
def parsed(text: str, mode: Literal["eval"]) -> ast.Expression: ...
def parsed(text: str, mode: Literal["exec", "eval"] = "exec") -> ast.AST:
    """Parse source text, one thread at a time. Raises SyntaxError.

    Python counts the depth of its trees per interpreter. Threads that parse at once can thus end in
    `SystemError: AST constructor recursion depth mismatch`: seen with 3.11.7 and twelve first requests at once.
    """
    with _PARSING:
        return ast.parse(text, mode=mode)
