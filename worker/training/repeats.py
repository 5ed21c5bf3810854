"""How often an image counts: by its line, else by the folder that it is in, as kohya's trainers have it."""

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from worker.core.errors import InvalidRequest
from worker.core.training import MAX_REPEATS

_FOLDER = re.compile(r"(\d{1,3})_.*", re.ASCII)  # a year is none


def repeats_of(name: str, row: Mapping[str, Any]) -> int:
    """Return `repeats` of an image's line, else the number that the nearest folder begins with, as `10_cat`; else 1.

    Raises InvalidRequest for a line that has no whole number between 1 and 1,000 there.
    """
    listed = row.get("repeats")
    if listed is not None:
        if type(listed) is not int or not 1 <= listed <= MAX_REPEATS:
            raise InvalidRequest(
                f"data: repeats of {name[:80]} must be a whole number between 1 and {MAX_REPEATS:,}.", field="data"
            )
        return listed
    numbers = (_FOLDER.fullmatch(folder.name) for folder in PurePosixPath(name).parents)
    return next((int(match[1]) for match in numbers if match is not None and int(match[1])), 1)
