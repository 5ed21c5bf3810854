"""A wish in JSON, and what was found for it."""

from collections.abc import Mapping
from typing import TypeVar

import pybase64
from pydantic import BaseModel, JsonValue, ValidationError

from worker.core.discovery import DiscoverRequest, Discovery, Find, Update, Updates
from worker.core.errors import UnknownParameter
from worker.core.golden import GoldenComparison, GoldenImage, GoldenRequest
from worker.core.version import Interval
from worker.wire.texts import utf8
from worker.wire.validation import field_error, with_plain_values
from worker.wire.versions import encode_interval

_GIB = 2**30
_MAX_TAGS = 20
_Request = TypeVar("_Request", DiscoverRequest, GoldenRequest)


def decode_wish(fields: Mapping[str, JsonValue]) -> DiscoverRequest:
    """Read the fields of a wish. Raises UnknownParameter, ParameterOutOfRange."""
    return _decoded(DiscoverRequest, fields)


def decode_golden(fields: Mapping[str, JsonValue]) -> GoldenRequest:
    """Read the fields of a comparison by golden prompts. Raises UnknownParameter, ParameterOutOfRange."""
    return _decoded(GoldenRequest, fields)


def decode_comparison(body: Mapping[str, JsonValue]) -> GoldenComparison:
    """Read a comparison that a worker made. Raises ValueError, with images that are none too."""
    return _Comparison.model_validate(body).comparison()


class _Image(BaseModel):
    prompt: str
    seed: int
    distance: float
    old_s: float
    new_s: float
    image: str

    def golden(self) -> GoldenImage:
        both = pybase64.b64decode(self.image, validate=True)
        return GoldenImage(self.prompt, self.seed, self.distance, self.old_s, self.new_s, both)


class _Comparison(BaseModel):
    model: str
    old: str
    new: str
    prompts: tuple[_Image, ...]
    distance: Interval | None
    slower_s: Interval | None

    def comparison(self) -> GoldenComparison:
        images = tuple(image.golden() for image in self.prompts)
        return GoldenComparison(self.model, self.old, self.new, images, self.distance, self.slower_s)


def _decoded(kind: type[_Request], fields: Mapping[str, JsonValue]) -> _Request:
    names = kind.model_fields
    for name in fields:
        if name not in names:
            text = f"{utf8(name)[:80]} is not a field of this action; it takes {', '.join(names)}."
            raise UnknownParameter(text, field=utf8(name)[:80])
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        refusal = error
    try:
        return kind.model_validate(with_plain_values(fields, refusal))
    except ValidationError as error:
        raise field_error(error) from None


def encode_finding(answer: Discovery | Updates | GoldenComparison) -> dict[str, JsonValue]:
    """Write what was found, what is newer, or how the newer compares."""
    match answer:
        case Discovery():
            return encode_discovery(answer)
        case Updates():
            return encode_updates(answer)
        case GoldenComparison():
            return encode_golden(answer)


def encode_discovery(answer: Discovery) -> dict[str, JsonValue]:
    """Write what was found, the best first, and what was listed and cannot be had or run."""
    return {
        "finds": [_find(find) for find in answer.finds],
        "withheld": [
            {"model": item.reference, "name": item.name, "code": item.code, "reason": item.reason}
            for item in answer.withheld
        ],
        "unseen": answer.unseen,
        "problems": [*answer.problems],
        "age_s": round(answer.age_s),
    }


def _find(find: Find) -> JsonValue:
    listed = find.listed
    return {
        "model": listed.reference,
        "name": listed.name,
        "kind": find.kind,
        "architecture": find.architecture,
        "family": find.family,
        "variant": find.variant,
        "format": find.format,
        "quantization": find.quantization,
        "tasks": [task.value for task in find.tasks],
        "revision": find.revision,
        "size_gb": round(find.size_bytes / _GIB, 3),
        "licence": listed.licence,
        "trigger_words": [*listed.trigger_words],
        "tags": [*listed.tags[:_MAX_TAGS]],
        "downloads": listed.downloads,
        "likes": listed.likes,
        "updated": listed.updated,
        "page": listed.page or None,
        "device": find.device,
        "offload": find.offload,
        "estimated_gb": None if find.estimated_bytes is None else round(find.estimated_bytes / _GIB, 2),
        "expected_s": None if find.seconds is None else round(find.seconds, 2),
        "expected_usd": None if find.usd is None else round(find.usd, 6),
        "paced_by": find.paced_by,
        "goes_with": [*find.goes_with],
        "uses": find.uses,
        "registered": find.registered,
        "allowed": find.allowed,
        "notes": [*find.notes],
    }


def encode_updates(answer: Updates) -> dict[str, JsonValue]:
    """Write what is newer at the sources."""
    return {
        "updates": [_update(update) for update in answer.updates],
        "current": [*answer.current],
        "failed": [{"model": model, "reason": reason} for model, reason in answer.failed],
        "unseen": answer.unseen,
    }


def _update(update: Update) -> JsonValue:
    return {
        "model": update.model,
        "old": update.old,
        "new": update.new,
        "old_gb": round(update.old_bytes / _GIB, 3),
        "new_gb": round(update.new_bytes / _GIB, 3),
        "tensors": {
            "added": update.added,
            "removed": update.removed,
            "reshaped": update.reshaped,
            "some": [*update.tensors],
        },
        "configs": [*update.configs],
        "licence": {"old": update.old_licence, "new": update.new_licence, "changed": update.licence_changed},
        "runs": update.obstacle is None,
        "obstacle": update.obstacle,
        "version": update.version,
    }


def encode_golden(answer: GoldenComparison, *, with_images: bool = True) -> dict[str, JsonValue]:
    """Write what two versions make of the same prompts."""
    return {
        "model": answer.model,
        "old": answer.old,
        "new": answer.new,
        "format": "webp",
        "distance": encode_interval(answer.distance),
        "slower_s": encode_interval(answer.slower_s),
        "prompts": [
            {
                "prompt": image.prompt,
                "seed": image.seed,
                "distance": round(image.distance, 6),
                "old_s": round(image.old_s, 4),
                "new_s": round(image.new_s, 4),
                **({"image": pybase64.b64encode_as_string(image.both)} if with_images else {}),
            }
            for image in answer.images
        ],
    }
