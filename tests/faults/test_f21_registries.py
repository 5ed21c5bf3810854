"""F21: a models.yaml with a mistake stops the start with its file and line, and changes nothing in a worker that runs.

What each mistake is told is in tests/catalog/test_registry.py.
"""

import logging
import re

from tests.catalog.test_registry import BROKEN
from worker.app.build import build_worker
from worker.catalog.registry import RegistryError


def test_each_mistake_stops_the_start_with_its_line(settings, tmp_path, figures):
    path = tmp_path / "models.yaml"
    started, unplaced = [], []
    for name, (text, line, _) in BROKEN.items():
        path.write_text(text, encoding="utf-8")
        try:
            build_worker(settings.model_copy(update={"models_yaml": path}))
            started.append(name)
        except RegistryError as error:
            if not str(error).startswith(f"models.yaml:{line}: "):
                unplaced.append((name, str(error)))
    assert (started, unplaced) == ([], [])
    figures("F21", "broken registries", len(BROKEN), at_least=15)
    figures("F21", "broken registries that a worker started with", len(started), at_most=0)
    figures("F21", "broken registries refused without file and line", len(unplaced), at_most=0)


def test_a_mistake_changes_nothing_in_a_worker_that_runs(settings, tmp_path, zoo, caplog, figures):
    path = zoo / "f21.yaml"
    good = 'models:\n  tiny: {source: "file:models/sd1"}\n'
    path.write_text(good, encoding="utf-8")
    worker = build_worker(settings.model_copy(update={"models_yaml": path}))
    kept, changed, unnamed = worker.registry, [], []
    for name, (text, line, _) in BROKEN.items():
        path.write_text(text, encoding="utf-8")
        caplog.clear()
        with caplog.at_level(logging.ERROR, logger="worker"):
            worker.reload()
        if worker.registry is not kept:
            changed.append(name)
        if not re.search(rf"f21\.yaml:{line}: ", caplog.text):
            unnamed.append((name, caplog.text))
    assert (changed, unnamed) == ([], [])
    figures("F21", "broken registries that replaced a good one", len(changed), at_most=0)
    figures("F21", "reloads that did not name file and line", len(unnamed), at_most=0)
    path.write_text(good + '  more: {source: "file:models/sdxl"}\n', encoding="utf-8")
    worker.reload()
    figures("F21", "models after the mistake was mended", len(worker.registry.models), at_least=2, at_most=2)
