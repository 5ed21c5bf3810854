"""Questions that only a worker can answer: passed on to the one that would do a job for the model soonest."""

import time
from collections.abc import Mapping

from pydantic import JsonValue

from worker.core.call import KnownModel
from worker.core.errors import Unreachable, UnsupportedModel, WorkerError
from worker.core.result import Emit, ignore_progress
from worker.core.turn import current
from worker.remote.members import Member, Members
from worker.remote.needs import NeedsReader
from worker.remote.placement import place, refusals
from worker.remote.platforms.platform import LostSight, NotTaken
from worker.remote.platforms.question import Question

Fields = Mapping[str, JsonValue]
_OF_ADMINS = "Such actions are for admin keys: `key` of a worker in fleet.yaml has to name one of its admin keys."


class Asker:
    """Passes questions on. No breaker counts what becomes of them: a key that may generate need not be an admin's."""

    def __init__(self, members: Members, needs: NeedsReader) -> None:
        self.members = members
        self.needs = needs

    async def ask(self, model: KnownModel, fields: Fields, id: str, emit: Emit) -> tuple[str, Fields]:
        """Have one worker answer, and return its name and the answer.

        Raises UnsupportedModel where no worker could run the model, Unreachable, and the worker's own WorkerError.
        """
        await self.needs.learn_of(model)
        needs = self.needs.of_model(model, self.members.seconds_for(model.spec.id))
        states = self.members.states()
        choices = [choice for choice in place(needs, states, time.monotonic()) if not choice.is_hosted]
        failure: WorkerError | None = None
        for choice in choices:
            try:
                answer = await self._ask(self.members.all[choice.replica], fields, id, emit)
            except NotTaken as refusal:
                failure = failure or refusal.error
                continue
            self.members.all[choice.replica].has_answered(model.spec.id)
            await self.members.observe()
            return choice.replica, answer
        if failure is not None:
            raise _explained(failure)
        reasons = "; ".join(item.reason for item in refusals(needs, states)) or "none has a device of its own"
        raise UnsupportedModel(f"No worker behind this gateway can run {needs.model}: {reasons}.", field="model")

    async def ask_holders(self, model: str, fields: Fields, id: str) -> list[Fields]:
        """Have each worker answer that has `model`, an id of models.yaml, on its device. Raises as `ask` does."""
        states = [state for state in self.members.states() if model in state.resident and state.kind == "http"]
        answers = []
        for member in [self.members.all[state.name] for state in states]:
            try:
                answers.append(await self._ask(member, fields, id, ignore_progress))
            except NotTaken as refusal:
                raise _explained(refusal.error) from None
            member.has_let_go_of(model)
        await self.members.observe()
        return answers

    async def _ask(self, member: Member, fields: Fields, id: str, emit: Emit) -> Fields:
        question = Question(id, fields, current().stop)
        try:
            return await member.platform.ask(question, f"{id[:80]}-{member.name}", emit)
        except LostSight as lost:
            raise lost.error from None


def _explained(error: WorkerError) -> WorkerError:
    if isinstance(error, Unreachable) and "key" in error.message:
        error.hint = _OF_ADMINS
    return error
