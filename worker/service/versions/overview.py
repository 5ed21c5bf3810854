"""What an operator is told of versions: those there are, what changed, and what was served at a time."""

from collections.abc import Sequence
from datetime import UTC, datetime

from worker.catalog.versions import ModelVersions, Version, content_digest, replay
from worker.core.errors import InvalidRequest
from worker.core.model import ModelSource, ModelSpec
from worker.core.version import ServedThen, VersionFacts, VersionHistory, VersionsOfModel
from worker.service.versions.serving import Versions


def versions_of(versions: Versions, entry: ModelSpec) -> VersionsOfModel:
    """Return the versions of one entry. Blocking."""
    now = versions.of(entry.id)
    digest = content_digest(entry)
    return VersionsOfModel(
        model=entry.id,
        versions=tuple(_facts(now, version) for version in now.versions),
        entry=next((version.name for version in reversed(now.versions) if version.content.entry == digest), None),
        before=now.before.name if now.before else None,
        arms=dict(now.split.arms) if now.split else {},
        paired=now.split.paired if now.split else 0,
        halt=now.split.halt if now.split else None,
        changes=now.changes,
    )


def history_of(versions: Versions, models: Sequence[str], at: str | None, limit: int) -> VersionHistory:
    """Return the newest changes of these models, and what they were served as `at` a time. Raises InvalidRequest."""
    changes = [change for change in versions.history.read() if change.model in models]
    if at is None:
        return VersionHistory(tuple(reversed(changes[-limit:])))
    moment = moment_of(at)
    earlier = [change for change in changes if datetime.fromisoformat(change.at) <= moment]
    then = replay(earlier)
    served = tuple(_served(then.get(model) or ModelVersions(model)) for model in models)
    return VersionHistory(tuple(reversed(earlier[-limit:])), moment.isoformat(), served)


def moment_of(text: str) -> datetime:
    """Read a time: ISO 8601, UTC unless it says otherwise, or a time of today. Raises InvalidRequest."""
    try:
        if len(text) <= 8 and ":" in text:
            text = f"{datetime.now(UTC).date().isoformat()}T{text}"
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise InvalidRequest(
            f"at must be a time, as 14:03 or 2026-11-30T14:03:00+00:00; {text[:40]!r} was sent.", field="at"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _served(model: ModelVersions) -> ServedThen:
    arms = model.split.arms if model.split else {}
    named = {arm: version.name for arm in arms if (version := model.find(arm) or model.stable) is not None}
    return ServedThen(model.model, model.stable.name if model.stable else None, named, dict(arms))


def _facts(model: ModelVersions, version: Version) -> VersionFacts:
    content = version.content
    files = {file.sha256: file.size for source in content.sources for file in source.files.values()}
    return VersionFacts(
        name=version.name,
        aliases=tuple(alias for alias, name in model.aliases.items() if name == version.name),
        at=version.at,
        who=version.who,
        why=version.why,
        source=shown(content.spec.source),
        revision=content.spec.source.revision,
        loras=tuple(lora.model.partition("?")[0].rpartition("/")[2] for lora in content.spec.loras),
        bytes=sum(files.values()),
        digest=content.digest,
    )


def shown(source: ModelSource) -> str:
    """Return where a version's model comes from; of a local one the name alone."""
    return f"file:…/{source.locator.rpartition('/')[2]}" if source.is_local else source.reference.partition("?")[0]
