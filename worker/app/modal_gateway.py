"""The gateway on Modal: the HTTP doors before a class of containers for each tier."""

from collections.abc import Mapping
from typing import Any

from fastapi import FastAPI

from worker.app.gateway import build_gateway
from worker.app.logs import configure_logging
from worker.app.registry import build_registry
from worker.app.server import build_app
from worker.app.settings import Settings
from worker.remote.members import Member
from worker.remote.platforms.modal_class import ModalClass
from worker.remote.replica import ReplicaState

_GIB = 2**30
# Until one was measured.
_COLD_START_S = 30.0


def build_modal_app(settings: Settings, classes: Mapping[str, Any]) -> FastAPI:
    """Build the doors over `classes`, by the tier that each is of. Raises SettingsError, FileError."""
    configure_logging(as_json=settings.logs_json, secrets=settings.secrets)
    tiers = build_registry(settings).tiers
    members = []
    for tier, cls in classes.items():
        limits = tiers[tier]
        facts = ReplicaState(
            name=tier,
            kind="modal",
            tier=tier,
            vram_bytes=limits.vram_gb * _GIB,
            workers=0,
            can_grow=True,
            warm=False,
            cold_start_s=_COLD_START_S,
        )
        members.append(Member(ModalClass(cls, facts), settings.jobs_taken * limits.max_containers))
    return build_app(build_gateway(settings, members))
