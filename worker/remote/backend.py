"""The backend of a gateway: each job goes to the replica that will have it done soonest and cheapest."""

from collections.abc import Sequence

from worker.remote.platforms.platform import Platform


class RemoteBackend:
    """Answers jobs by having them generated elsewhere."""

    def __init__(self, platforms: Sequence[Platform]) -> None:
        self._platforms = platforms
