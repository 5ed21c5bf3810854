"""Where a job goes: a pure function of what the job needs and what the replicas have."""

from collections.abc import Sequence

from worker.remote.replica import Choice, Needs, ReplicaState


def place(needs: Needs, replicas: Sequence[ReplicaState], now: float = 0.0) -> tuple[Choice, ...]:
    """Return every replica that can take the job, the best first; nothing where none can.

    `now` is the time on time.monotonic's clock. A replica that rests is never among them.
    """
    choices = [_choice(needs, replica) for replica in replicas if fits(needs, replica) and replica.health != "resting"]
    return tuple(sorted(choices, key=lambda choice: choice.seconds))


def fits(needs: Needs, replica: ReplicaState) -> bool:
    """True if the replica serves the model and its device is large enough, whether or not it is well."""
    if replica.serves is not None and needs.model not in replica.serves:
        return False
    return not (needs.vram_bytes and replica.vram_bytes and needs.vram_bytes > replica.vram_bytes)


def _choice(needs: Needs, replica: ReplicaState) -> Choice:
    resident = needs.model in replica.resident
    missing = 0 if resident else sum(part.size or 0 for part in needs.weights)
    seconds = replica.queue_s + (0 if replica.warm else replica.cold_start_s) + missing / replica.download_bytes_per_s
    seconds += needs.inference_s / replica.speed
    where = "is resident there" if resident else "has to be loaded there"
    usd = seconds * replica.usd_per_second + replica.usd_per_image * needs.images
    return Choice(replica.name, replica.tier, seconds, usd, f"{needs.model} {where}.")
