"""The files of a worker's answer, which holds one as `image` and several as `images`; a video's likewise."""

from typing import Any


def files_of(answer: dict[str, Any]) -> list[str]:
    """List an answer's files as their texts, each of which it holds once."""
    names = [name for name in ("image", "images", "video", "videos") if name in answer]
    assert len(names) == 1, names
    found = answer[names[0]]
    assert isinstance(found, list) == names[0].endswith("s"), names
    if isinstance(found, list):
        assert len(found) != 1
        return found
    return [found]
