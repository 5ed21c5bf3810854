"""Fit a request to what a provider can do: refuse it (`strict`), or adapt it and say how (`nearest`)."""

import math
from dataclasses import dataclass, field
from typing import Any

from image_client.errors import Unsupported
from image_client.options import Fit
from image_client.providers.provider import Abilities, Sizes
from image_client.request import ImageRequest

# Fields that a provider may lack, and what is lost without them.
_OPTIONAL = ("negative_prompt", "seed", "num_inference_steps", "guidance_scale", "strength")


@dataclass(slots=True)
class _Fitting:
    """One fitting under way: what changes, and the sentences that say so."""

    provider: str
    fit: Fit
    changes: dict[str, Any] = field(default_factory=dict)
    said: list[str] = field(default_factory=list)

    def change(self, field_name: str, value: Any, problem: str, outcome: str) -> None:
        """Adapt a field, or refuse it."""
        if self.fit == "strict":
            raise Unsupported(f"{self.provider} {problem}.", field=field_name, provider=self.provider)
        self.changes[field_name] = value
        self.said.append(f"{self.provider} {problem}: {outcome}.")


def fitted(
    request: ImageRequest, abilities: Abilities, provider: str, fit: Fit
) -> tuple[ImageRequest, tuple[str, ...]]:
    """Return the request as the provider takes it, and what was adapted.

    Raises Unsupported: with `strict` for anything that it cannot do, with `nearest` for what has nothing near it.
    """
    if request.operation not in abilities.operations:
        can = ", ".join(sorted(abilities.operations))
        raise Unsupported(
            f"{provider} cannot {request.operation} (it can: {can}).", field="operation", provider=provider
        )
    fitting = _Fitting(provider, fit)
    _fit_fields(request, abilities, fitting)
    _fit_numbers(request, abilities, fitting)
    _fit_size(request, abilities, fitting)
    wanted = request.output_format
    if wanted is not None and wanted not in abilities.formats:
        problem = f"does not write {wanted} ({', '.join(abilities.formats) or 'it has no choice of formats'})"
        fitting.change("output_format", None, problem, "its own format comes back")
    if request.n > abilities.most:
        raise Unsupported(
            f"{provider} draws at most {abilities.most} at once; n={request.n}: send several requests.",
            field="n",
            provider=provider,
        )
    return request.model_copy(update=fitting.changes), tuple(fitting.said)


def _fit_fields(request: ImageRequest, abilities: Abilities, fitting: _Fitting) -> None:
    for name in _OPTIONAL:
        if getattr(request, name) is not None and name not in abilities.fields:
            fitting.change(name, None, f"takes no {name} here", "it is left out")


def _fit_numbers(request: ImageRequest, abilities: Abilities, fitting: _Fitting) -> None:
    bounds = {
        "num_inference_steps": abilities.steps,
        "guidance_scale": abilities.guidance,
        "seed": (0, abilities.max_seed),
    }
    for name, (least, most) in bounds.items():
        value = getattr(request, name)
        if value is None or name in fitting.changes or least <= value <= most:
            continue
        near = value % (abilities.max_seed + 1) if name == "seed" else min(max(value, least), most)
        problem = f"takes {name} from {least:g} to {most:g}; {value:g} was asked for"
        fitting.change(name, near, problem, f"it is {near:g}")


def _fit_size(request: ImageRequest, abilities: Abilities, fitting: _Fitting) -> None:
    if request.width is None or request.height is None:
        return
    asked = (request.width, request.height)
    if "size" not in abilities.fields:
        outcome = "the image comes in the provider's own size"
        fitting.change("width", None, f"takes no width and height for {request.operation}", outcome)
        fitting.changes["height"] = None
        return
    width, height = nearest_size(asked, abilities.sizes)
    if (width, height) != asked:
        problem = f"does not draw {asked[0]}x{asked[1]} (nearest: {width}x{height})"
        fitting.change("width", width, problem, f"the image is {width}x{height}")
        fitting.changes["height"] = height


def nearest_size(asked: tuple[int, int], sizes: Sizes) -> tuple[int, int]:
    """Return the size that is nearest in shape, then in pixels."""
    if sizes.named:
        return min(sizes.named.values(), key=lambda size: (_apart(size, asked), abs(size[0] * size[1] - _area(asked))))
    scale = min(1.0, sizes.most / max(asked))  # at its own proportions, down into the bounds
    width, height = (round(side * scale / sizes.step) * sizes.step for side in asked)
    least = math.ceil(sizes.least / sizes.step) * sizes.step
    most = sizes.most // sizes.step * sizes.step
    return min(max(width, least), most), min(max(height, least), most)


def name_of_size(width: int | None, height: int | None, sizes: Sizes) -> str | None:
    """Return the provider's own word for a size of its table."""
    return next((name for name, size in sizes.named.items() if size == (width, height)), None)


def _apart(one: tuple[int, int], other: tuple[int, int]) -> float:
    return round(abs(math.log(one[0] / one[1]) - math.log(other[0] / other[1])), 6)


def _area(size: tuple[int, int]) -> int:
    return size[0] * size[1]
