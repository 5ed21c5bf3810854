"""The routes of one door, noted as its file names them, and built once: when the application takes them.

The framework's own way builds a route for the router, and once more for the application that includes it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter
from fastapi.params import Depends
from fastapi.routing import APIRoute

_Endpoint = Callable[..., Any]


@dataclass(frozen=True, slots=True)
class _Noted:
    """A path and what answers it; no options are those of a WebSocket."""

    path: str
    endpoint: _Endpoint
    options: dict[str, Any] | None


class Door:
    """Paths below `prefix` and what answers them, with options as FastAPI's `APIRouter` takes them."""

    def __init__(
        self,
        *,
        prefix: str = "",
        tags: Sequence[str] = (),
        dependencies: Sequence[Depends] = (),
        route_class: type[APIRoute] = APIRoute,
        include_in_schema: bool = True,
    ) -> None:
        self._prefix = prefix
        self._dependencies = [*dependencies]
        self._options: dict[str, Any] = {
            "tags": [*tags],
            "route_class_override": route_class,
            "include_in_schema": include_in_schema,
        }
        self._noted: list[_Noted | Door] = []

    def get(self, path: str, **options: Any) -> Callable[[_Endpoint], _Endpoint]:
        """Answer GET at `path` by the function that follows."""
        return self._decorator(path, {"methods": ["GET"], **options})

    def post(self, path: str, **options: Any) -> Callable[[_Endpoint], _Endpoint]:
        """Answer POST at `path` by the function that follows."""
        return self._decorator(path, {"methods": ["POST"], **options})

    def websocket(self, path: str) -> Callable[[_Endpoint], _Endpoint]:
        """Answer WebSockets at `path` by the function that follows."""
        return self._decorator(path, None)

    def add(self, path: str, endpoint: _Endpoint, **options: Any) -> None:
        """Answer `path` by `endpoint`; `methods` is among the options."""
        self._noted.append(_Noted(path, endpoint, options))

    def include(self, door: "Door") -> None:
        """Have the routes of another door here, in this place of the order in which routes are tried."""
        self._noted.append(door)

    def open(self, router: APIRouter, guards: Sequence[Depends]) -> None:
        """Build the routes into an application's router; each asks its guards first, then the door's own."""
        for noted in self._noted:
            if isinstance(noted, Door):
                noted.open(router, [*guards, *self._dependencies])
                continue
            path, before = self._prefix + noted.path, [*guards, *self._dependencies]
            if noted.options is None:
                router.add_api_websocket_route(path, noted.endpoint, dependencies=before)
            else:
                own = noted.options
                router.add_api_route(
                    path,
                    noted.endpoint,
                    **{**self._options, **own, "dependencies": [*before, *own.get("dependencies", ())]},
                )

    def _decorator(self, path: str, options: dict[str, Any] | None) -> Callable[[_Endpoint], _Endpoint]:
        def note(endpoint: _Endpoint) -> _Endpoint:
            self._noted.append(_Noted(path, endpoint, options))
            return endpoint

        return note
