"""The reader of answers in parts, as the documents have it."""

import re

from tests.conftest import PROJECT


def documented_reader():
    """Return `put_together` of docs/api.md, as a reader of it would copy it."""
    (code,) = re.findall(
        r"```python\n(.*?)```",
        (PROJECT / "docs/api.md").read_text().split("### Large results")[1].split("\n## ")[0],
        re.S,
    )
    names = {}
    exec(code.split("\nendpoint = ")[0], names)
    return names["put_together"]
