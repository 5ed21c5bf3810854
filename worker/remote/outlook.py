"""What a job would take on each tier of the fleet: `plan`, as a gateway answers it. As pure as the placement."""

from collections.abc import Mapping, Sequence

from worker.core.answer import TierOutlook
from worker.remote.placement import place, refusals, unfit
from worker.remote.replica import Choice, Needs, ReplicaState


def outlook(
    needs: Needs, replicas: Sequence[ReplicaState], tiers: Mapping[str, int], now: float
) -> tuple[TierOutlook, ...]:
    """Return one line for each tier, the smallest device first.

    `tiers` are those of models.yaml, name -> bytes of one device's memory; those that only replicas name are added,
    and a replica without a tier is one of its own. `now` as in `place`.
    """
    choices = place(needs, replicas, now)
    chosen = _tier_of(choices[0]) if choices else None
    memory: dict[str, int | None] = {replica.tier or replica.name: replica.vram_bytes for replica in replicas}
    memory |= tiers
    lines = []
    for tier, vram_bytes in sorted(memory.items(), key=lambda item: (item[1] or 0, item[0])):
        choice = next((choice for choice in choices if _tier_of(choice) == tier), None)
        if choice is None:
            lines.append(_closed(needs, replicas, tier, vram_bytes))
        else:
            lines.append(_open(choice, vram_bytes, chosen=tier == chosen))
    return tuple(lines)


def _tier_of(choice: Choice) -> str:
    return choice.tier or choice.replica


def _open(choice: Choice, vram_bytes: int | None, *, chosen: bool) -> TierOutlook:
    return TierOutlook(
        tier=_tier_of(choice),
        vram_bytes=vram_bytes,
        fits=True,
        reason=choice.reason,
        chosen=chosen,
        offload=choice.offload,
        nearness=choice.nearness,
        moved_bytes=choice.moved_bytes,
        seconds=choice.seconds,
        usd=choice.usd,
    )


def _closed(needs: Needs, replicas: Sequence[ReplicaState], tier: str, vram_bytes: int | None) -> TierOutlook:
    """A tier of which no replica takes the job now."""
    members = [replica for replica in replicas if (replica.tier or replica.name) == tier]
    if not members:
        empty = unfit(needs, ReplicaState(name=tier, vram_bytes=vram_bytes))
        reason = empty or f"{tier} would hold {needs.model}, and the fleet has no replica of it"
        return TierOutlook(tier, vram_bytes, fits=empty is None, reason=f"{reason}.")
    refused = {item.replica: item for item in refusals(needs, replicas)}
    reasons = [refused[member.name] for member in members]
    fits = not all(item.lasting for item in reasons)
    return TierOutlook(tier, vram_bytes, fits=fits, reason=f"{'; '.join(item.reason for item in reasons)}.")
