"""The versions of models, put together: their history, who changes it, and what of the volume has to stay for them."""

import logging
from dataclasses import dataclass

from worker.app.settings import Settings
from worker.app.stores import build_cache
from worker.catalog.registry import Registry
from worker.core.errors import WorkerError
from worker.service.accepting.resolving import ModelResolver
from worker.service.local.pinning import Pinning
from worker.service.local.provisioning import Provisioner
from worker.service.usage.log import read_jobs
from worker.service.versions.actions import VersionActions, Workers
from worker.service.versions.changes import VersionChanges
from worker.service.versions.halting import Halting
from worker.service.versions.notices import notices
from worker.store.pairs import PairFolder
from worker.store.store import Store

_LOG = logging.getLogger("worker")


@dataclass(frozen=True, slots=True)
class VersionParts:
    """What a worker or a gateway has for the versions of its models."""

    actions: VersionActions
    halting: Halting

    @classmethod
    def of(
        cls,
        settings: Settings,
        store: Store,
        resolver: ModelResolver,
        provisioner: Provisioner,
        pairs: PairFolder,
        workers: Workers = dict,
    ) -> "VersionParts":
        """Build them over the resolver's own versions; `workers` are those behind a gateway, with their volumes."""
        versions = resolver.versions
        changes = VersionChanges(versions, Pinning(store, resolver, provisioner, build_cache(settings).holds))
        actions = VersionActions(
            versions,
            changes,
            lambda: resolver.registry,
            lambda since: read_jobs(settings.usage_dir, since),
            pairs,
            workers,
        )
        return cls(actions, Halting(versions, changes))

    def follow(self, registry: Registry) -> None:
        """Take over the splits of models.yaml, and say what of it is not served. Writes only what is new there.

        Images of pairs that may not be kept any more are removed.
        """
        self.actions.pairs.trim()
        self.actions.versions.history.identify()
        try:
            self.actions.changes.follow({spec.id: spec for spec in registry.models.values() if spec.split})
            for sentence in notices(self.actions.versions, registry):
                _LOG.warning("%s", sentence)
        except WorkerError as error:
            _LOG.error("the versions of models: %s", error.message)
