"""The beginning of a batch: the folder that it gets, or had."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from image_client.ledger import BatchInfo, Ledger, new_id
from image_client.prompts_file import Job


def begin_batch(
    folder: Path,
    jobs: Sequence[Job],
    provider: str,
    model: str | None,
    *,
    fallback: Sequence[str] = (),
    base_url: str | None = None,
    source: str = "",
) -> Ledger:
    """Return the open ledger of a new batch in `folder`, or of the very same one that was begun there earlier.

    Raises LedgerError where the folder holds another batch, or another process has it open.
    """
    digest = hashlib.sha256("".join(job.model_dump_json(exclude_defaults=True) for job in jobs).encode())
    info = BatchInfo(
        id=new_id(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        provider=provider,
        model=model,
        fallback=tuple(fallback),
        base_url=base_url,
        count=len(jobs),
        asked=digest.hexdigest(),
        source=source,
    )
    return Ledger.create(folder, jobs, info)
