"""One search: both sources at once, the most promising entries looked at side by side, an answer in bounded time.

It costs other people's servers requests, so that the operator says who may ask, an answer is kept for an hour, and no
more than two searches run at once, each with eight entries looked at side by side.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from worker.catalog.call import Model
from worker.core.discovery import DiscoverRequest, Discovery, Find, FindKind, Listed, Update, Updates, Withheld
from worker.core.errors import AccessDenied, InvalidRequest, ModelNotFound, Overloaded, SourceUnavailable, WorkerError
from worker.core.model import ModelSource, ModelSpec
from worker.core.turn import current
from worker.service.accepting.likeness import family_of, stem
from worker.service.discovery.aims import Aim, aim_of
from worker.service.discovery.kinds import KINDS
from worker.service.discovery.looking import Looker
from worker.service.discovery.memory import Memory
from worker.service.discovery.ranking import promise, worth
from worker.service.discovery.updates import UpdateSeeker
from worker.service.limits.pools import Pools

SEARCH_S = 30.0
"""How long one search takes at most: what was not looked at by then is counted, and left out."""
_LISTED = 24  # entries of one source's page, for all kinds together
_LOOKED_AT = 3  # entries for each find that is wanted
_AT_ONCE, _SIDE_BY_SIDE = 2, 8
_WITHHELD = 20
_WAIT_S = 20.0
_SCHEMES = {"hf", "civitai"}
_HAD = {AccessDenied.code, ModelNotFound.code}  # what a token or another choice mends is said first


class CivitaiPages(Protocol):
    """CivitAI's search."""

    def search(self, text: str, types: Sequence[str], bases: Sequence[str], limit: int) -> list[Listed]:
        """List models."""
        ...

    def by_hash(self, digest: str) -> Listed | None:
        """Return the version that has a file of this digest."""
        ...


class HubPages(Protocol):
    """The Hub's search."""

    def search(self, text: str, filters: Sequence[str], limit: int) -> list[Listed]:
        """List repositories."""
        ...

    def check_access(self, source: ModelSource) -> None:
        """Raise AccessDenied and its kin unless a repository may be read."""
        ...


@dataclass(frozen=True, slots=True)
class Permit:
    """Who may ask: nobody where it is off, else these keys' names, or everybody where none is named."""

    on: bool = True
    callers: tuple[str, ...] = ()
    offline: bool = False

    def check(self, caller: str | None) -> None:
        """Raise AccessDenied or SourceUnavailable unless `caller` may ask."""
        if not self.on:
            raise AccessDenied("Discovery is switched off on this worker; its operator can set DISCOVERY=true.")
        if self.callers and caller not in self.callers:
            raise AccessDenied("Discovery is for other keys of this worker; its operator names them in DISCOVERY_KEYS.")
        if self.offline:
            sentence = "This worker is offline and cannot ask the sources; unset OFFLINE."
            raise SourceUnavailable(sentence, retryable=False)


@dataclass(frozen=True, slots=True)
class Sources:
    """The two sources."""

    civitai: CivitaiPages
    hub: HubPages


class Finder:
    """Answers wishes. `uses` counts this worker's jobs of the last month by reference; it blocks."""

    def __init__(
        self,
        sources: Sources,
        looker: Looker,
        seeker: UpdateSeeker,
        pools: Pools,
        memory: Memory,
        uses: Callable[[], Counter[str]],
        permit: Permit,
    ) -> None:
        self._sources, self._looker, self._seeker, self._resolver = sources, looker, seeker, looker.resolver
        self._pools, self._memory, self._uses, self._permit = pools, memory, uses, permit
        self._places = asyncio.Semaphore(_AT_ONCE)

    async def discover(self, wish: DiscoverRequest, caller: str | None) -> Discovery:
        """Answer a wish. Raises AccessDenied, InvalidRequest, SourceUnavailable, Overloaded; JobTimeout at the end."""
        self._permit.check(caller)
        place = await self._looker.device.kind_of_device()
        answer = await self._pools.own.run(self._memory.find, wish, place)
        if answer is None:
            await self._take_place()
            try:
                answer = await self._search(wish)
            finally:
                self._places.release()
            if not answer.problems and not answer.unseen:
                await self._pools.own.run(self._memory.keep, wish, place, answer)
        return replace(answer, finds=tuple(self._as_of_now(find) for find in answer.finds))

    async def updates(self, model: str | None, caller: str | None) -> Updates:
        """Say what is newer of a registered model, or of all. Raises as `discover` does, and ModelNotFound."""
        self._permit.check(caller)
        specs = [self._resolver.resolve(model)] if model else self._registered
        await self._take_place()
        try:
            end = time.monotonic() + min(SEARCH_S, current().stop.remaining_s - 1.0)
            gate = asyncio.Semaphore(_SIDE_BY_SIDE)

            async def seek(spec: ModelSpec) -> Update | str | tuple[str, str]:
                async with gate:
                    return await self._seeker.seek(spec)

            seen, unseen = await _until(end, [seek(spec) for spec in specs])
        finally:
            self._places.release()
        return Updates(
            tuple(item for item in seen if isinstance(item, Update)),
            tuple(item for item in seen if isinstance(item, str)),
            tuple(item for item in seen if isinstance(item, tuple)),
            unseen,
        )

    def parse(self, reference: str) -> ModelSource:
        """Read a reference. Raises InvalidRequest."""
        return self._looker.parse(reference)

    async def _take_place(self) -> None:
        try:
            await asyncio.wait_for(self._places.acquire(), min(_WAIT_S, current().stop.remaining_s))
        except TimeoutError:
            raise Overloaded(
                "This worker searches for others now; ask again in half a minute.", details={"retry_after_s": 30}
            ) from None

    async def _search(self, wish: DiscoverRequest) -> Discovery:
        end = time.monotonic() + min(SEARCH_S, current().stop.remaining_s - 1.0)
        aim = aim_of(wish, await self._model(wish.model))
        listed, problems = await self._named(wish, end)
        named = {entry.reference for entry in listed}
        if not named or (wish.hashes and (wish.text or wish.prompt)):
            more, troubles = await self._listed(aim, end)
            listed += [entry for entry in more if entry.reference not in named]
            problems += troubles
        listed = listed[: _LOOKED_AT * wish.limit]
        gate = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def look(entry: Listed) -> Find | Withheld:
            any_kind = entry.reference in named and wish.kind is None
            async with gate:
                return await self._looker.look(entry, replace(aim, kinds=()) if any_kind else aim)

        seen, _ = await _until(end, [look(entry) for entry in listed])
        uses = await self._pools.own.run(self._counted) if seen else Counter[str]()
        finds = sorted(
            (replace(item, uses=uses[stem(item.listed.reference)]) for item in seen if isinstance(item, Find)),
            key=lambda find: (find.listed.reference not in named, -worth(find, aim, uses), find.listed.reference),
        )
        withheld = sorted((item for item in seen if isinstance(item, Withheld)), key=lambda item: item.code not in _HAD)
        return Discovery(
            tuple(finds[: wish.limit]), tuple(withheld[:_WITHHELD]), len(listed) - len(seen), tuple(problems)
        )

    async def _model(self, name: str | None) -> Model | None:
        """Return the model that finds are to go with."""
        if name is None:
            return None
        spec = self._resolver.resolve(name)
        return await self._pools.headers.run(self._resolver.known, spec, place=self._resolver.host_of(name))

    async def _named(self, wish: DiscoverRequest, end: float) -> tuple[list[Listed], list[str]]:
        """Return the entries that a wish names, by a reference or by digests, and who did not answer."""
        if wish.reference is not None:
            return [self._referred(wish.reference)], []
        answers, _ = await _until(end, [self._by_hash(digest) for digest in wish.hashes])
        entries = {answer.reference: answer for answer in answers if isinstance(answer, Listed)}
        return [*entries.values()], [*dict.fromkeys(answer for answer in answers if isinstance(answer, str))]

    async def _by_hash(self, digest: str) -> Listed | str | None:
        try:
            return await self._pools.headers.run(self._sources.civitai.by_hash, digest, place="civitai.com")
        except WorkerError as error:
            return error.message

    def _referred(self, reference: str) -> Listed:
        """Return the entry that a reference names. Raises InvalidRequest for one of no page of these sources."""
        try:
            source = self._looker.parse(reference)
        except InvalidRequest as error:
            error.field = "reference"
            raise
        if source.scheme not in _SCHEMES:
            sentence = "reference names a place that is no page of the Hub or CivitAI; use inspect."
            raise InvalidRequest(sentence, field="reference")
        return Listed(source.reference, source.filename or source.locator, "", gated=source.is_repository)

    async def _listed(self, aim: Aim, end: float) -> tuple[list[Listed], list[str]]:
        """Return what the sources list, the most promising first, and a sentence for each that did not answer."""
        most = max(6, _LISTED // len(aim.kinds))
        asked = [self._page(aim, kind, most, of_hub) for kind in aim.kinds for of_hub in (False, True)]
        pages, late = await _until(end, asked)
        problems = [page for page in pages if isinstance(page, str)]
        if late:
            problems.append("A source did not answer the search in time.")
        entries = {entry.reference: entry for page in pages if not isinstance(page, str) for entry in page}
        problems = [*dict.fromkeys(problems)]
        if problems and not entries:
            raise SourceUnavailable(" ".join(problems))
        return sorted(entries.values(), key=lambda entry: (-promise(entry, aim), entry.reference)), problems

    async def _page(self, aim: Aim, kind: FindKind, most: int, of_hub: bool) -> list[Listed] | str:
        """Return one source's page of one kind, or why there is none."""
        run, row = self._pools.headers.run, KINDS[kind]
        try:
            if of_hub:
                text = aim.hub_text(kind)
                if not row.hub and not text:
                    return []
                return await run(self._sources.hub.search, text, aim.hub_tags(kind), most, place="huggingface.co")
            if not row.civitai:
                return []
            bases = aim.civitai_bases
            return await run(self._sources.civitai.search, aim.text, row.civitai, bases, most, place="civitai.com")
        except WorkerError as error:
            return error.message

    def _counted(self) -> Counter[str]:
        """Count this worker's jobs by the stem of their model's reference, and by its family."""
        counts: Counter[str] = Counter()
        families = {stem(spec.source.reference): family_of(spec.architecture) for spec in self._registered}
        for reference, count in self._uses().items():
            name = stem(reference)
            counts[name] += count
            if family := families.get(name):
                counts[family] += count
        return counts

    @property
    def _registered(self) -> Sequence[ModelSpec]:
        return [*self._resolver.registry.models.values()]

    def _as_of_now(self, find: Find) -> Find:
        """Return a find with what the operator may have changed since: models.yaml, and who may name what."""
        reference = find.listed.reference
        registered = [spec.id for spec in self._registered if stem(spec.source.reference) == stem(reference)]
        try:
            self._resolver.check_allowed(self._looker.parse(reference), "model", [])
        except WorkerError:
            return replace(find, registered=registered[0] if registered else None, allowed=False)
        return replace(find, registered=registered[0] if registered else None, allowed=True)


async def _until(end: float, work: Sequence[Coroutine[Any, Any, Any]]) -> tuple[list[Any], int]:
    """Do all of `work` side by side until `end`; return what came of it, in order, and how much of it was not done."""
    tasks = [asyncio.ensure_future(each) for each in work]
    if not tasks:
        return [], 0
    try:
        await asyncio.wait(tasks, timeout=max(0.0, end - time.monotonic()))
        done = [task.result() for task in tasks if task.done() and not task.cancelled()]
        return done, len(tasks) - len(done)
    finally:
        for task in tasks:
            task.cancel()
