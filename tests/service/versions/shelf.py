"""A worker whose model `tiny` has two versions: v1 takes five steps, v2 seven; @stable is v1 and @candidate v2."""

import json
from pathlib import Path

from tests.fakes.engine import ServerContext, make_context


def write_steps(root: Path, steps: int, **more: object) -> None:
    """Have models.yaml say so many steps, and more."""
    path = root / "models.yaml"
    models = json.loads(path.read_text())
    models["models"]["tiny"] |= {"defaults": {"num_inference_steps": steps}, **more}
    path.write_text(json.dumps(models))


async def two_versions(root: Path, **settings: object) -> ServerContext:
    """Return such a worker."""
    context = make_context(root, **settings)
    await context.ask(action="promote", model="tiny", version="entry", why="the first")
    write_steps(root, 7)
    context.worker.reload()
    await context.ask(action="promote", model="tiny", version="entry", alias="candidate")
    return context


def another(root: Path) -> ServerContext:
    """Return another worker of the same volume and models.yaml."""
    written = (root / "models.yaml").read_text()
    context = make_context(root)
    (root / "models.yaml").write_text(written)
    context.worker.reload()
    return context
