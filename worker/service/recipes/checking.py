"""Whether a recipe's models take what its steps ask of them: the same functions answer that refuse a request.

Nothing is fetched and nothing loaded. At the start only those models are asked of which all is known here; the others
are asked with the first request.
"""

from collections.abc import Iterable, Iterator, Mapping

from worker.catalog.recipes.recipe import MEDIA, Recipe, RecipeError, RecipeInput, RecipeStep
from worker.catalog.recipes.references import MISSING, Filled, InputReference, mentions
from worker.catalog.recipes.schema import sample
from worker.core.errors import WorkerError
from worker.core.finishing import OWN
from worker.core.request import GenerationRequest
from worker.media.detecting import Detector
from worker.service.accepting.acceptance import Acceptor
from worker.service.recipes.filling import Made, detail_of, line_of, step_request
from worker.service.recipes.kinds import fault_of_kinds
from worker.wire.request import ALIASES

# Stands for an image where only a request's words and numbers are looked at.
_ANY_IMAGE = "AAAA"


def check_recipes(recipes: Iterable[Recipe], acceptor: Acceptor) -> None:
    """Check recipes as far as it takes no word from another server. Raises RecipeError, with file and line."""
    for recipe in recipes:
        check_recipe(recipe, acceptor, asks=False)


def check_recipe(recipe: Recipe, acceptor: Acceptor, *, asks: bool) -> None:
    """Check every step of a recipe; with `asks`, servers are asked what its models are. Blocking.

    Raises RecipeError, with file and line; SourceError and its kin where a server does not answer.
    """
    for name in recipe.inputs:
        if name in ALIASES:
            raise recipe.fail(
                ("inputs", name), f"inputs.{name} is another spelling of {ALIASES[name]}; name it so, or otherwise."
            )
    made = {step.name: Made((_ANY_IMAGE,), 0) for step in recipe.steps}
    of_videos: dict[str, bool] = {}
    for step in recipe.steps:
        for values, clause in _samples(recipe, step):
            try:
                request = step_request(step, GenerationRequest(), 0, values, made)
                if step.is_detail and (find := detail_of(step, values, made).find) is not None:
                    Detector(find)
                acceptor.resolver.resolve(request.model)  # an unknown name is known to be one
                if asks or acceptor.is_at_hand(request):
                    of_videos[step.name] = acceptor.resolve(request).makes_video
            except WorkerError as error:
                if error.retryable:  # it may answer later
                    raise
                text = f"steps.{step.name}{clause}: {error.message}"
                raise _placed(recipe, step, error.field, text) from error
    if (fault := fault_of_kinds(recipe, of_videos)) is not None:
        raise recipe.fail(*fault)


def names_in(recipe: Recipe) -> tuple[str, ...]:
    """List the names of all models that a recipe's steps take, adapters, refiners and upscalers too, each once."""
    made = {step.name: Made((_ANY_IMAGE,), 0) for step in recipe.steps}
    names: list[str] = []
    for step in recipe.steps:
        values, _ = next(_samples(recipe, step))
        request = step_request(step, GenerationRequest(), 0, values, made)
        others = (request.refiner, request.upscale)
        names += [step.model, *(adapter.model for adapter in request.adapters)]
        names += [each.model for each in others if each is not None and each.model not in ("", OWN)]
    return tuple(dict.fromkeys(names))


def _placed(recipe: Recipe, step: RecipeStep, field: str | None, text: str) -> RecipeError:
    return recipe.fail(line_of(recipe, step, field), text)


def _samples(recipe: Recipe, step: RecipeStep) -> Iterator[tuple[Mapping[str, Filled], str]]:
    """Yield values of the inputs that a step refers to: usual ones, then each at its bounds, its choices, or left out.

    Each comes with a clause that says which.
    """
    referred = {
        mention.reference.name
        for mention in mentions(dict(step.fields))
        if isinstance(mention.reference, InputReference)
    }
    usual: dict[str, Filled] = {name: _usual(recipe.inputs[name]) for name in referred}
    yield usual, ""
    for name in sorted(referred):
        each = recipe.inputs[name]
        if each.optional and each.default is None:
            yield usual | {name: MISSING}, f", without inputs.{name}"
        for choice in each.choices:
            yield usual | {name: choice}, f", with the choice {choice} of inputs.{name}"
        for word, bound in (("minimum", each.minimum), ("maximum", each.maximum)):
            if bound is not None:
                value = int(bound) if bound.is_integer() else bound
                yield usual | {name: value}, f", at the {word} of inputs.{name}"


def _usual(each: RecipeInput) -> Filled:
    return _ANY_IMAGE if each.type in MEDIA else sample(each)
