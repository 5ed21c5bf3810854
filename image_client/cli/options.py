"""Options that several commands share: a dataclass is a group, and each of its fields an option.

A command takes a group as one argument. Every option can be said by a variable too (`IMAGE_CLIENT_…`); nothing else of
the program reads the environment but for the providers' tokens.
"""

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from image_client.alerts import Alerts
from image_client.budget import DEFAULT_MONTH, Budget, Limits
from image_client.client import ImageClient
from image_client.errors import InvalidRequest
from image_client.options import ClientOptions, Fit
from image_client.prices import Price, PriceBook
from image_client.request import OutputFormat
from image_client.spending import SpendingLedger

HOME = Path.home() / ".image-client"


def _variable(name: str) -> str:
    return f"IMAGE_CLIENT_{name.upper()}"


@dataclass(frozen=True, slots=True)
class Sending:
    """Where requests go."""

    provider: Annotated[str, typer.Option(envvar=_variable("provider"), help="Who draws; see `providers`.")] = "mock"
    model: Annotated[str | None, typer.Option(help="As the provider names it; else its default.")] = None
    base_url: Annotated[str | None, typer.Option(envvar=_variable("base_url"), help="Where your own worker is.")] = None
    fallback: Annotated[
        list[str] | None, typer.Option(help="A provider to ask where the first cannot have drawn it; several times.")
    ] = None
    fit: Annotated[str, typer.Option(help="strict: refuse what it cannot do; nearest: adapt, and say how.")] = "strict"
    timeout: Annotated[float | None, typer.Option(help="Seconds to the first byte of an answer, else 10.")] = None
    deadline: Annotated[float, typer.Option(help="Seconds for one image over all, retries included.")] = 600.0

    def options(self) -> ClientOptions:
        """Return how its client behaves."""
        fit: Fit = "nearest" if self.fit == "nearest" else "strict"
        if self.fit not in ("strict", "nearest"):
            raise InvalidRequest(f"--fit is {self.fit}: say strict or nearest.")
        return ClientOptions(fit=fit, first_byte=self.timeout, deadline=self.deadline)

    def connect(self, options: ClientOptions) -> ImageClient:
        """Return a client."""
        return ImageClient(
            self.provider,
            base_url=self.base_url,
            model=self.model,
            fallback=tuple(self.fallback or ()),
            options=options,
        )


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is drawn, besides the prompt."""

    negative_prompt: Annotated[str | None, typer.Option(help="What shall not be seen.")] = None
    width: Annotated[int | None, typer.Option(help="Pixels.")] = None
    height: Annotated[int | None, typer.Option(help="Pixels.")] = None
    seed: Annotated[int | None, typer.Option(help="Of the first image; the others count on.")] = None
    steps: Annotated[int | None, typer.Option(help="num_inference_steps")] = None
    guidance: Annotated[float | None, typer.Option(help="guidance_scale")] = None
    strength: Annotated[float | None, typer.Option(help="How much an edit may change, 0 to 1.")] = None
    output_format: Annotated[str | None, typer.Option("--format", help="png, jpeg or webp.")] = None
    extra: Annotated[list[str] | None, typer.Option(help="name=value, as the provider names it; several times.")] = None

    def as_fields(self) -> dict[str, Any]:
        """Return them under the names of ImageRequest; what was not said is not there."""
        named = {
            "negative_prompt": self.negative_prompt,
            "width": self.width,
            "height": self.height,
            "seed": self.seed,
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance,
            "strength": self.strength,
            "output_format": _format(self.output_format),
            "extra": dict(map(_pair, self.extra or ())) or None,
        }
        return {name: value for name, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Money:
    """What it may cost, and who hears of that."""

    budget: Annotated[float | None, typer.Option(envvar=_variable("budget"), help="Dollars of this session.")] = None
    month_budget: Annotated[
        float, typer.Option(envvar=_variable("month_budget"), help="Dollars of a calendar month, 0 for no limit.")
    ] = float(DEFAULT_MONTH)
    session: Annotated[
        str | None,
        typer.Option(envvar=_variable("session"), help="Name of the session; else the batch's or the day's."),
    ] = None
    prices: Annotated[list[Path] | None, typer.Option(help="A price file of your own; several times.")] = None
    price: Annotated[float | None, typer.Option(min=0, help="Dollars of one image, where no file says it.")] = None
    seconds_per_image: Annotated[
        float | None, typer.Option(min=0, help="For prices by the second, until one was measured here.")
    ] = None
    allow_unknown_price: Annotated[bool, typer.Option(help="Send although no budget can hold.")] = False
    alert_webhook: Annotated[str | None, typer.Option(envvar=_variable("alert_webhook"), help="URL of alerts.")] = None
    alert_command: Annotated[str | None, typer.Option(envvar=_variable("alert_command"), help="Runs at alerts.")] = None
    ledger: Annotated[Path, typer.Option(envvar=_variable("ledger"), help="The file of what was spent.")] = (
        HOME / "spending.sqlite"
    )

    def book(self, sending: Sending | None = None) -> PriceBook:
        """Return the prices that hold."""
        book = PriceBook.load(self.prices or ())
        if self.price is None or sending is None:
            return book
        row = {"provider": sending.provider, "model": sending.model or "*", "unit": "image", "usd": repr(self.price)}
        said = Price.model_validate(row | {"source": "said with --price", "read": datetime.now(UTC).date()})
        return PriceBook((*book.prices, said), book.gpus)

    def limits(self) -> Limits:
        """Return the budgets."""
        return Limits(_dollars(self.budget), _dollars(self.month_budget or None))

    @contextmanager
    def budget_of(self, sending: Sending, session: str) -> Iterator[Budget]:
        """Open the ledger, and hand out the budget of a session on it."""
        with SpendingLedger(self.ledger) as ledger:
            yield Budget(
                ledger,
                self.book(sending),
                self.session or session,
                self.limits(),
                Alerts(self.alert_webhook, self.alert_command),
                self.allow_unknown_price,
                self.seconds_per_image,
            )


def session_of_today() -> str:
    """Return the name of a session that was given none."""
    return f"{datetime.now(UTC):%Y-%m-%d}"


def with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Let typer see the fields of each group that a command takes; the command gets the groups."""
    hints = get_type_hints(command, include_extras=True)
    hints.pop("return", None)
    groups = {name: hint for name, hint in hints.items() if isinstance(hint, type) and is_dataclass(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name not in groups:
            parameters.append(parameter.replace(annotation=hints[name], kind=inspect.Parameter.KEYWORD_ONLY))
            continue
        of_group = get_type_hints(groups[name], include_extras=True)
        parameters += [
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=of_group[field.name]
            )
            for field in fields(groups[name])
        ]

    @functools.wraps(command)
    def run(**values: Any) -> None:
        made = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**values, **made)

    parameters.sort(key=lambda parameter: parameter.name not in hints)  # the command's own come first
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del run.__wrapped__
    return run


def _dollars(amount: float | None) -> Decimal | None:
    return None if amount is None else Decimal(repr(amount))


def _format(text: str | None) -> OutputFormat | None:
    names: dict[str, OutputFormat] = {"png": "png", "jpeg": "jpeg", "jpg": "jpeg", "webp": "webp"}
    if text is not None and text.lower() not in names:
        raise InvalidRequest(f"--format is {text}: say png, jpeg or webp.")
    return None if text is None else names[text.lower()]


def _pair(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidRequest(f"--extra is {text}: say name=value.")
    try:
        return name, json.loads(value)
    except ValueError:
        return name, value
