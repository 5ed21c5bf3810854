"""A job that a provider has taken, as something that can be written down and asked for later."""

from pydantic import BaseModel, ConfigDict


class ProviderJob(BaseModel):
    """Where a job can be asked for; it holds no token and is safe to write into a ledger as JSON.

    `adapted` is how the request was changed to fit the provider.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    provider: str
    job_id: str
    poll_url: str
    request_id: str
    model: str | None = None
    seed: int | None = None
    adapted: tuple[str, ...] = ()
