"""Everything that can go wrong, as one tree: the three branches say whether a job can have run.

ImageClientError
├─ NotSent                 the job cannot have run: it may be sent again, here or elsewhere, and costs nothing
│  ├─ InvalidRequest       the request makes no sense; nothing was sent
│  │  └─ Unsupported       this provider cannot do it; nothing was sent
│  ├─ AuthenticationFailed
│  ├─ PaymentRequired      no credit
│  ├─ RequestRefused       the provider will not take this request
│  │  └─ ContentRefused    its moderation will not
│  ├─ RateLimited          too much at once; `retry_after` says when
│  └─ ProviderUnavailable  it could not be reached, or is closed for a while
├─ Accepted                the provider has a job: ask by its id (`job`), never send again
│  ├─ NotFinished          it still runs
│  ├─ GenerationFailed     it ran and failed
│  │  └─ ContentFiltered   it ran, and its image was withheld
│  └─ ResultLost           it is done, and its image cannot be had
└─ UnknownOutcome          sent, but not answered: it may have run and may be charged
"""

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from image_client.job import ProviderJob


class ImageClientError(Exception):
    """Any failure; `code` is for programs, `hint` says what to do, `retryable` whether the same call may work later."""

    code: ClassVar[str] = "error"
    retryable: ClassVar[bool] = False
    hint: ClassVar[str] = ""

    def __init__(self, message: str, *, provider: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.provider = provider
        self.status = status
        self.request_id: str | None = None


class NotSent(ImageClientError):
    """The job cannot have run: it may be sent again, here or elsewhere."""

    code = "not_sent"


class InvalidRequest(NotSent):
    """The request makes no sense; nothing was sent."""

    code = "invalid_request"
    hint = "Change the field that the message names."


class Unsupported(InvalidRequest):
    """The provider cannot do this; nothing was sent. `field` names what it cannot."""

    code = "unsupported"
    hint = "Leave the field out, choose another provider, or let fit='nearest' adapt it."

    def __init__(self, message: str, *, field: str, provider: str | None = None) -> None:
        super().__init__(message, provider=provider)
        self.field = field


class AuthenticationFailed(NotSent):
    """The provider does not know the token, or none was given."""

    code = "authentication_failed"
    hint = "Check the API token."


class PaymentRequired(NotSent):
    """The account has no credit."""

    code = "payment_required"
    hint = "Add credit to the account."


class RequestRefused(NotSent):
    """The provider will not take this request, whenever it is sent."""

    code = "request_refused"
    hint = "Change what the provider's message names."


class ContentRefused(RequestRefused):
    """The provider's moderation refuses the request; it costs nothing."""

    code = "content_refused"
    hint = "Change the prompt or the image."


class RateLimited(NotSent):
    """Too much was asked at once; `retry_after` is in seconds, None where the provider does not say."""

    code = "rate_limited"
    retryable = True
    hint = "Send fewer requests at once, or wait."

    def __init__(
        self, message: str, *, retry_after: float | None = None, provider: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message, provider=provider, status=status)
        self.retry_after = retry_after


class ProviderUnavailable(NotSent):
    """The provider could not be reached, or has failed so often that it is left alone for a while."""

    code = "provider_unavailable"
    retryable = True
    hint = "Try again later, or name another provider in fallback."

    def __init__(
        self, message: str, *, retry_after: float | None = None, provider: str | None = None, status: int | None = None
    ) -> None:
        super().__init__(message, provider=provider, status=status)
        self.retry_after = retry_after


class Accepted(ImageClientError):
    """The provider has a job; `job` is what to ask for. It may be charged, and is never sent again."""

    code = "accepted"

    def __init__(self, message: str, *, job: "ProviderJob | None" = None, provider: str | None = None) -> None:
        super().__init__(message, provider=provider)
        self.job = job


class NotFinished(Accepted):
    """The deadline came first; the job still runs. `ImageClient.collect(error.job)` goes on waiting."""

    code = "not_finished"
    retryable = True
    hint = "Collect the job later."


class GenerationFailed(Accepted):
    """The job ran and failed."""

    code = "generation_failed"


class ContentFiltered(GenerationFailed):
    """The job ran, and its image was withheld or blurred; most providers charge for it."""

    code = "content_filtered"
    hint = "Change the prompt or the image."


class ResultLost(Accepted):
    """The job is done, and its image cannot be had: its link has expired, leads somewhere private, or is too large."""

    code = "result_lost"


class UnknownOutcome(ImageClientError):
    """The request was sent and not answered: it may have run and may be charged. It was not sent again."""

    code = "unknown_outcome"
    hint = "Look at the provider's own list of jobs before it is sent again."
