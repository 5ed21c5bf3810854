"""The schema of alerts.yaml: the rules, and where alerts go."""

from typing import Annotated, Literal, get_args

from pydantic import Field, model_validator

from worker.core.model import Parsed

NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
Outlet = Literal["webhook", "email"]
"""Where an alert goes, beside the log."""
Measured = Literal[
    "error_rate", "queue_s", "cold_starts", "cost_usd", "refused", "denied", "queue_length", "disk_free_gb", "lost"
]
"""What a rule looks at: counted over a window of time, or as it is now."""
OF_NOW: tuple[Measured, ...] = ("queue_length", "disk_free_gb", "lost")
OF_MODELS: tuple[Measured, ...] = ("error_rate", "queue_s", "cold_starts", "cost_usd")
DAY_S = 86_400.0


class Rule(Parsed):
    """One rule as alerts.yaml writes it.

    `over_s` is the window of what is counted. `for_s` is how long it must have been beyond its bound before anybody is
    told, and `until` the value at which it is over: with a distance to the bound, what flutters is told once.
    """

    measure: Measured
    above: float | None = Field(default=None, allow_inf_nan=False)
    below: float | None = Field(default=None, allow_inf_nan=False)
    until: float | None = Field(default=None, allow_inf_nan=False)
    over_s: float = Field(default=300.0, ge=10, le=DAY_S, allow_inf_nan=False)
    for_s: float = Field(default=0.0, ge=0, le=DAY_S, allow_inf_nan=False)
    min_jobs: int = Field(default=5, ge=1, le=100_000)
    model: str | None = Field(default=None, min_length=1, max_length=256)
    to: tuple[Outlet, ...] = get_args(Outlet)

    @property
    def bound(self) -> float:
        """The value beyond which the rule holds."""
        return self.above if self.above is not None else self.below or 0.0

    def beyond(self, value: float) -> bool:
        """True if `value` is beyond the bound."""
        return value > self.bound if self.above is not None else value < self.bound

    def within(self, value: float) -> bool:
        """True if `value` is so far back that an alert is over."""
        end = self.bound if self.until is None else self.until
        return value <= end if self.above is not None else value >= end

    @model_validator(mode="after")
    def _one_bound(self) -> "Rule":
        if (self.above is None) == (self.below is None):
            raise ValueError("must have one of above and below: the bound beyond which somebody is told")
        if self.until is not None and self.beyond(self.until):
            raise ValueError(
                f"has until {self.until:g} beyond its bound {self.bound:g}, so that it would never be over: put it on "
                "the other side"
            )
        if self.measure in OF_NOW and (useless := self.model_fields_set & {"over_s", "min_jobs"}):
            raise ValueError(f"says {sorted(useless)[0]}, and {self.measure} is looked at as it is now: remove it")
        if "min_jobs" in self.model_fields_set and self.measure != "error_rate":
            raise ValueError("says min_jobs, which is of error_rate: remove it")
        if self.model is not None and self.measure not in OF_MODELS:
            raise ValueError(f"says model, and {self.measure} is of the whole worker: remove it")
        return self


class Email(Parsed):
    """Who writes to whom. The server is SMTP_URL's."""

    sender: str = Field(pattern=r"^[^@\s<>,;]{1,64}@[^@\s<>,;]{1,255}$")
    to: tuple[Annotated[str, Field(pattern=r"^[^@\s<>,;]{1,64}@[^@\s<>,;]{1,255}$")], ...] = Field(
        min_length=1, max_length=32
    )


class AlertsFile(Parsed):
    """The whole file. Everything is in the log, too."""

    webhook: str | None = Field(default=None, pattern=r"^https?://[^\s@#]{1,2000}$")
    email: Email | None = None
    rules: dict[Annotated[str, Field(pattern=NAME)], Rule] = Field(min_length=1, max_length=200)
