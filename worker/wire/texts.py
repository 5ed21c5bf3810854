"""Values of a request, fit for an error sentence."""

import json


def utf8(text: str) -> str:
    """Make `text` valid UTF-8: half a surrogate pair becomes a question mark."""
    return text.encode("utf-8", "replace").decode("utf-8")


def kind_of(value: object) -> str:
    """Name the kind of JSON value that `value` is."""
    names = {
        dict: "an object",
        list: "a list",
        str: "a text",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return names.get(type(value), "nothing" if value is None else "something else")


def shown(value: object) -> str:
    """Write `value` as JSON, and no more of it than a sentence can carry."""
    if isinstance(value, str):
        value = utf8(value[:60])
    text = json.dumps(value, ensure_ascii=False, default=str) if not isinstance(value, dict | list) else kind_of(value)
    return text if len(text) <= 40 else f"{text[:37]}…"
