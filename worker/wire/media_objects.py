"""Images and videos inside objects, as the chat protocols of others send them: `{"url": …}`, `{"b64_json": …}`."""

from pydantic import JsonValue

# The key that holds the image, and those that may stand beside it and change nothing.
_CARRIERS = frozenset(
    {"url", "uri", "image_url", "video_url", "b64_json", "base64", "image_base64", "data", "image", "source"}
)
_BESIDE = frozenset({"type", "detail", "name", "filename", "media_type", "mime_type", "mimeType"})
_WORDS = ("image", "video", "mask", "condition")


def unwrapped(name: str, value: JsonValue) -> JsonValue:
    """Return the value of the field `name` with the texts of images in place of the objects that hold them.

    An adapter's own image is found too. An object of any other form stays as it is.
    """
    if isinstance(value, list):
        return [unwrapped(name, item) for item in value]
    if not isinstance(value, dict):
        return value
    if names_media(name):
        return _text(value) or value
    return {key: unwrapped(key, item) if names_media(key) else item for key, item in value.items()}


def names_media(name: str) -> bool:
    """True of a field that holds an image or a video, by its name."""
    return any(word in name for word in _WORDS)


def _text(value: dict[str, JsonValue]) -> str | None:
    """Return the one text that an object of this kind holds; None for an object of another kind."""
    said = {key: item for key, item in value.items() if item not in (None, "")}
    carriers = said.keys() & _CARRIERS
    if len(carriers) != 1 or not said.keys() <= carriers | _BESIDE:
        return None
    inner = said[carriers.pop()]
    if isinstance(inner, dict):
        return _text(inner)
    return inner if isinstance(inner, str) else None
