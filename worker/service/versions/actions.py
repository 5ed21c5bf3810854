"""Every question about versions and every change of them, as actions, pages and commands ask."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from worker.catalog.registry import Registry
from worker.catalog.versions import Split
from worker.core.errors import InvalidRequest, ModelNotFound
from worker.core.job_input import VersionRequest
from worker.core.model import ModelSpec
from worker.core.turn import StopSignal
from worker.core.version import ComparisonReport, PairToJudge, VersionHistory, VersionList
from worker.service.versions.changes import By, VersionChanges
from worker.service.versions.judging import choose, next_pair
from worker.service.versions.overview import history_of, versions_of
from worker.service.versions.pair_report import compare_pairs
from worker.service.versions.report import compare
from worker.service.versions.serving import Versions
from worker.store.pairs import PairFolder

Lines = Iterable[Mapping[str, Any]]
VersionAnswer = VersionList | VersionHistory | ComparisonReport | PairToJudge
Workers = Callable[[], Mapping[str, str | None]]
"""The workers behind a gateway by name, with the ids of their volumes where these are known."""
OPERATOR = "operator"


class VersionActions:
    """Answers an operator. Blocking. `registry` is asked anew each time."""

    def __init__(
        self,
        versions: Versions,
        changes: VersionChanges,
        registry: Callable[[], Registry],
        usage: Callable[[str], Lines],
        pairs: PairFolder,
        workers: Workers = dict,
    ) -> None:
        self.versions = versions
        self.changes = changes
        self._registry = registry
        self._usage = usage
        self.pairs = pairs
        self._workers = workers

    def perform(self, request: VersionRequest, caller: str | None, stop: StopSignal) -> VersionAnswer:
        """Answer one request. Raises ModelNotFound, InvalidRequest, and what a version cannot be served for."""
        match request.action:
            case "versions":
                models = self._entries(request.model)
                told = [versions_of(self.versions, entry) for entry in models]
                return VersionList(tuple(each for each in told if each.versions or request.model))
            case "history":
                names = [entry.id for entry in self._entries(request.model)]
                return history_of(self.versions, names, request.at, request.limit)
        entry, by = self._entry(request.model), By(caller or OPERATOR, request.why)
        match request.action:
            case "report":
                return self._report(entry, request.days)
            case "pairs":
                return next_pair(self.pairs, entry.id)
            case "choose":
                choose(self.pairs, entry.id, request.pair, request.choice, by.who)
                return next_pair(self.pairs, entry.id)
        self._change(entry, request, by, stop)
        return VersionList((versions_of(self.versions, entry),))

    def _change(self, entry: ModelSpec, request: VersionRequest, by: By, stop: StopSignal) -> None:
        self._check_workers(request.action)
        match request.action:
            case "promote":
                if request.version is None:
                    text = "version is missing; name a version, candidate, or entry for what models.yaml has now."
                    raise InvalidRequest(text, field="version")
                self.changes.promote(entry, request.version, request.alias, by, stop)
            case "rollback":
                self.changes.rollback(entry, request.version, by, stop)
            case "split":
                self.changes.split(entry, Split(request.arms, request.halt, request.paired), by, stop)

    def _check_workers(self, action: str) -> None:
        """Check that no worker has another history: it would not know the versions that a gateway names to it."""
        here = self.versions.history.volume_id
        apart = [name for name, volume in self._workers().items() if here and volume and volume != here]
        if apart:
            text = (
                f"{action} does not reach {', '.join(apart[:10])}: other volumes than this gateway's, other versions."
            )
            raise InvalidRequest(f"{text} Give all one VOLUME_DIR, or ask each worker at its own /admin/versions.")

    def _report(self, entry: ModelSpec, days: int) -> ComparisonReport:
        since = (datetime.now(UTC) - timedelta(days=days - 1)).date().isoformat()
        report = compare(self.versions.of(entry.id), self._usage(since), since)
        return replace(report, pairs=compare_pairs(self.pairs.lines(since), entry.id))

    def _entries(self, model: str | None) -> list[ModelSpec]:
        return [self._entry(model)] if model else [*self._registry().models.values()]

    def _entry(self, model: str | None) -> ModelSpec:
        if model is None:
            raise InvalidRequest("model is missing; name one of models.yaml.", field="model")
        entry = self._registry().find(model)
        if entry is None:
            raise ModelNotFound(f"model {model[:120]!r} is not in models.yaml, so it has no versions.", field="model")
        return entry
