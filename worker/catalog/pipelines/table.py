"""THE TABLE of odd pipeline classes, by name: one row per class. No other module names a class to decide about it.

The rows stand in the modules beside this one. A class without a row is an ordinary one: its name and the signature of
its call say everything.
"""

from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from types import MappingProxyType

from worker.catalog.pipelines.controlled import CONTROLS
from worker.catalog.pipelines.image import IMAGES
from worker.catalog.pipelines.names import frame_grid, frames_per_second, is_video
from worker.catalog.pipelines.video import VIDEOS
from worker.core.pipeline import PipelineRow


def _by_name(rows: tuple[PipelineRow, ...]) -> Mapping[str, PipelineRow]:
    """Index the rows by class. A duplicate is a mistake in the table: it fails when the worker starts."""
    index: dict[str, PipelineRow] = {}
    for row in rows:
        if row.name in index:
            raise ValueError(f"the class {row.name} stands in the table twice")
        index[row.name] = row
    return MappingProxyType(index)


PIPELINES: Mapping[str, PipelineRow] = _by_name((*IMAGES, *VIDEOS, *CONTROLS))
# The class that runs an upscaler's network, which no repository names.
UPSCALE_PIPELINE = next(row.name for row in PIPELINES.values() if not row.denoises)


_added: dict[str, PipelineRow] = {}


def add_rows(rows: tuple[PipelineRow, ...]) -> bool:
    """Have these rows beside the table's, in place of those added before; True if that changes anything."""
    new = {row.name: row for row in rows}
    if new == _added:
        return False
    _added.clear()
    _added.update(new)
    _row.cache_clear()
    return True


def pipeline_row(name: str | None) -> PipelineRow:
    """Return the facts of a class: its row, or an ordinary class's, completed by the facts that its name tells."""
    return _row(name or "")


@lru_cache(maxsize=512)
def _row(name: str) -> PipelineRow:
    row = PIPELINES.get(name) or _added.get(name) or PipelineRow(name)
    return replace(
        row,
        is_video=row.is_video or is_video(name),
        frame_grid=frame_grid(name) or row.frame_grid,
        fps=frames_per_second(name) or row.fps,
    )
