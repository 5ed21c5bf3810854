"""The folder of recipes, to which the operator may add from afar: what is to stand there passes every check before."""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from worker.catalog.operator_file import FileError
from worker.catalog.recipes.detail import LOCAL
from worker.catalog.recipes.file import ENDINGS, read_recipe
from worker.catalog.recipes.recipe import Recipe
from worker.core.errors import InvalidRequest, ModelNotFound
from worker.service.accepting.acceptance import Acceptor
from worker.service.limits.pools import Pools
from worker.service.recipes.checking import check_recipe
from worker.store.entries import write_atomically

_LOG = logging.getLogger(__name__)
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the checks say of a recipe's text: its first fault with the line, or the recipe that it is."""

    recipe: Recipe | None = None
    line: int = 0
    problem: str | None = None
    saved: bool = False
    served: bool = False


class RecipeShelf:
    """Reads, checks and writes recipes. `reload` has the files read again by whoever serves them."""

    def __init__(
        self, folder: Callable[[], Path], acceptor: Acceptor, pools: Pools, reload: Callable[[], None]
    ) -> None:
        self._folder = folder
        self._acceptor = acceptor
        self._pools = pools
        self._reload = reload

    async def text(self, name: str) -> str:
        """Return the text of a recipe. Raises InvalidRequest, ModelNotFound."""
        return await self._pools.own.run(self._read, _checked(name))

    async def review(self, name: str, text: str) -> Verdict:
        """Check a text that is to be the recipe `name`; servers are asked what its models are. Raises SourceError."""
        return await self._pools.headers.run(self._review, _checked(name), text)

    async def save(self, name: str, text: str, *, replaces: bool) -> Verdict:
        """Check the text, and write it if it is right. Raises InvalidRequest where another one stands there."""
        verdict = await self.review(name, text)
        if verdict.recipe is None:
            return verdict
        return await self._pools.own.run(self._write, verdict, name, text, replaces)

    def _place(self) -> Path:
        folder = self._folder()
        if folder.is_file():
            raise InvalidRequest("RECIPES names a single file; let the operator name a folder.", field="name")
        return folder

    def _read(self, name: str) -> str:
        for ending in ENDINGS:
            path = self._place() / f"{name}{ending}"
            if path.is_file():
                return path.read_text(encoding="utf-8", errors="replace")
        raise ModelNotFound(f"There is no recipe {name}; GET /models lists those there are.", field="name")

    def _review(self, name: str, text: str) -> Verdict:
        registry, folder = self._acceptor.resolver.registry, self._place()
        try:
            recipe = read_recipe(folder / f"{name}.yaml", text)
            registry.with_recipes({name: recipe})  # a model may have this name
            for find in recipe.detectors:
                if not Path(find.removeprefix(LOCAL)).is_relative_to(folder.resolve()):
                    place = next(("steps", step.name, "detail", "find") for step in recipe.steps if step.is_detail)
                    raise recipe.fail(place, "a detector of a recipe from afar must lie in the folder of recipes.")
            check_recipe(recipe, self._acceptor, asks=True)
        except FileError as error:
            return Verdict(line=error.line, problem=error.sentence)
        return Verdict(recipe)

    def _write(self, verdict: Verdict, name: str, text: str, replaces: bool) -> Verdict:
        folder = self._place()
        others = [folder / f"{name}{ending}" for ending in ENDINGS if (folder / f"{name}{ending}").exists()]
        if others and not replaces:
            raise InvalidRequest(f"There is a recipe {name} already; send replace, or rename this one.", field="name")
        target = others[0] if others else folder / f"{name}.yaml"
        try:
            write_atomically(target, text)
        except OSError as error:
            raise InvalidRequest(f"The folder of recipes cannot be written ({error.strerror}).", field="name") from None
        _LOG.info("the recipe %s is saved", name)
        self._reload()
        now = self._acceptor.resolver.registry.recipe(name)
        served = now is not None and verdict.recipe is not None and now.digest == verdict.recipe.digest
        return replace(verdict, saved=True, served=served)


def _checked(name: str) -> str:
    """Return the name, which becomes that of a file. Raises InvalidRequest."""
    if not _NAME.fullmatch(name):
        raise InvalidRequest("name must be of a-z, 0-9, - and _, a letter first, at most 64.", field="name")
    return name
