"""Every failure a caller can see, as one tree.

WorkerError
├ InvalidRequest            the caller's input; names the field, the limit and the fix
│ ├ UnknownParameter        a key the model's schema does not have
│ ├ ParameterOutOfRange     a known key with a value outside its bounds
│ ├ InvalidImage            an input image that cannot be taken
│ ├ ModelNotFound           no such model, or not allowed here
│ ├ UnsupportedModel        recognised, or not, but nothing here can run it
│ ├ UnsafeFormat            a file that could run code when read
│ ├ IncompatibleAdapter     a LoRA that does not fit the model it is asked for
│ └ JobNotFound             no such job, or its answer is no longer kept
├ AccessDenied              gated repository, missing or refused token
│ └ Unauthenticated         no API key, or one that this worker does not know
├ Overloaded                more work than this worker takes now; says when to come back
│ ├ RateLimited             this caller sends too fast
│ └ QuotaExceeded           this caller has used up what the operator grants
├ SourceError               where the weights come from
│ ├ SourceUnavailable       it does not answer, or the worker is offline
│ ├ CorruptFile             what came back, or lies on disk, is damaged
│ └ DiskFull                it would not fit on the volume
├ JobTimeout                the deadline passed
├ JobCancelled              the caller took the job back
├ ResultTooLarge            the answer does not fit the transport, whatever the encoding
└ EngineFailure             the model ran and failed
  ├ OutOfMemory             the device's memory was not enough, after every fallback
  ├ LoadFailed              the weights could not be made into a pipeline
  ├ InvalidOutput           NaN or constant-black pixels
  ├ ShuttingDown            the worker is being stopped; another one can take the job
  ├ Unreachable             no worker behind this gateway can be had, or the one with the job was lost
  └ DeviceLost              the device is unusable: this worker must be replaced

A message is one sentence that names the field, the limit and the fix. It never carries a traceback, a path outside the
volume, a host name or a token. Status numbers live in transport.
"""

from collections.abc import Mapping
from typing import ClassVar, TypeVar

_Error = TypeVar("_Error", bound=BaseException)


class WorkerError(Exception):
    """A failure with a stable `code`; `retryable` says whether the same request may succeed later."""

    code: ClassVar[str] = "internal_error"
    retryable: bool = False  # of the class, unless one failure is said to be otherwise

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        hint: str | None = None,
        details: Mapping[str, object] | None = None,
        retryable: bool | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.hint = hint
        self.details = dict(details or {})
        if retryable is not None:
            self.retryable = retryable


def contained(error: BaseException) -> Exception:
    """Return `error` as an exception that fails one job. SystemExit and its like would end the whole process."""
    return error if isinstance(error, Exception) else RuntimeError(f"{type(error).__name__} was raised by a library")


def without_frames(error: _Error) -> _Error:
    """Return an error that is known by now, and that nobody will ask where it was raised.

    The frames that it came through hold images and files, and are garbage that has to be searched for: they hold the
    error too.
    """
    known: set[int] = set()
    left: list[BaseException | None] = [error]
    while left:
        one = left.pop()
        if one is not None and id(one) not in known:
            known.add(id(one))
            one.__traceback__ = None
            left += (one.__cause__, one.__context__)
    return error


class InvalidRequest(WorkerError):
    """The request cannot be served as it stands; sending it again changes nothing."""

    code = "invalid_request"


class UnknownParameter(InvalidRequest):
    """A key that the model's schema does not have."""

    code = "unknown_parameter"


class ParameterOutOfRange(InvalidRequest):
    """A known key whose value lies outside its bounds."""

    code = "parameter_out_of_range"


class InvalidImage(InvalidRequest):
    """An input image that is damaged, too large or of an unaccepted format."""

    code = "invalid_image"


class ModelNotFound(InvalidRequest):
    """No such model, or the operator does not allow it."""

    code = "model_not_found"


class UnsupportedModel(InvalidRequest):
    """A model, format or task that nothing here can run."""

    code = "unsupported_model"


class UnsafeFormat(InvalidRequest):
    """A file format that can run code when it is read."""

    code = "unsafe_format"


class IncompatibleAdapter(InvalidRequest):
    """An adapter made for another architecture than the model's."""

    code = "incompatible_adapter"


class JobNotFound(InvalidRequest):
    """No job has this id, or its answer is no longer kept."""

    code = "job_not_found"


class AccessDenied(WorkerError):
    """The source wants a licence click or a token that this worker does not have."""

    code = "access_denied"


class Unauthenticated(AccessDenied):
    """No API key was sent where one is needed, or one that this worker does not know."""

    code = "unauthenticated"


class Overloaded(WorkerError):
    """More work than this worker takes now. `details["retry_after_s"]` says when to come back."""

    code = "overloaded"
    retryable = True


class RateLimited(Overloaded):
    """This caller sends requests faster than the operator allows."""

    code = "rate_limited"


class QuotaExceeded(Overloaded):
    """This caller has used up the operator's quota for a day."""

    code = "quota_exceeded"


class SourceError(WorkerError):
    """A failure of the place that the weights come from."""

    code = "source_error"
    retryable = True


class SourceUnavailable(SourceError):
    """The source does not answer, or the worker is offline and has no copy."""

    code = "source_unavailable"


class CorruptFile(SourceError):
    """A file that is truncated, damaged or of another kind than its name."""

    code = "corrupt_file"


class DiskFull(SourceError):
    """The download would not fit on the volume."""

    code = "disk_full"
    retryable = False


class JobTimeout(WorkerError):
    """The job's deadline passed before it was done."""

    code = "job_timeout"
    retryable = True


class JobCancelled(WorkerError):
    """The caller took the job back."""

    code = "job_cancelled"


class ResultTooLarge(WorkerError):
    """The answer does not fit the transport, whatever the encoding."""

    code = "result_too_large"


class EngineFailure(WorkerError):
    """The model ran and failed."""

    code = "engine_failure"
    retryable = True


class OutOfMemory(EngineFailure):
    """The device's memory was not enough, after every fallback was tried."""

    code = "gpu_oom"
    retryable = False


class LoadFailed(EngineFailure):
    """The weights could not be made into a pipeline."""

    code = "load_failed"
    retryable = False


class InvalidOutput(EngineFailure):
    """The pipeline returned NaN or constant-black pixels."""

    code = "invalid_output"
    retryable = False


class ShuttingDown(EngineFailure):
    """The worker is being stopped: it takes no more jobs, and this one could not be finished in time."""

    code = "shutting_down"


class Unreachable(EngineFailure):
    """A gateway has no worker for the job, or lost the one that had it."""

    code = "unreachable"


class DeviceLost(EngineFailure):
    """The device is unusable until the process ends: the worker must be replaced."""

    code = "device_lost"
