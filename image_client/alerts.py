"""Who hears when a budget is used up to a threshold: the log, a webhook, a command."""

import json
import logging
import shlex
import subprocess
from dataclasses import dataclass
from decimal import Decimal

import httpx

from image_client.money import shown
from image_client.spending import Crossing

_log = logging.getLogger(__name__)
_WEBHOOK_S, _COMMAND_S = 5.0, 10.0


@dataclass(frozen=True, slots=True)
class Alerts:
    """`webhook` gets the alert as a JSON body by POST; `command` is run without a shell and gets it on its stdin.

    The log hears of every alert. A webhook or command that fails is logged, and keeps nobody from generating.
    """

    webhook: str | None = None
    command: str | None = None

    def tell(self, crossing: Crossing) -> None:
        """Tell everybody of a threshold; takes up to 15 s where they do not answer."""
        body = _body(crossing)
        _log.warning("%s", body["message"])
        if self.webhook is not None:
            try:
                httpx.post(self.webhook, json=body, timeout=_WEBHOOK_S).raise_for_status()
            except (httpx.HTTPError, httpx.InvalidURL) as error:
                _log.warning("The webhook of the budget did not take the alert: %s.", type(error).__name__)
        if self.command is not None:
            _run(self.command, json.dumps(body))


def _run(command: str, body: str) -> None:
    try:
        done = subprocess.run(shlex.split(command), input=body, text=True, timeout=_COMMAND_S, check=False)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        _log.warning("The command of the budget did not run: %s.", type(error).__name__)
        return
    if done.returncode:
        _log.warning("The command of the budget ended with status %d.", done.returncode)


def _body(crossing: Crossing) -> dict[str, str | int | float]:
    limit = crossing.limit
    message = (
        f"{crossing.percent} % of the budget of {limit.scope} {limit.name} are reached: "
        f"{shown(crossing.committed)} of {shown(limit.dollars)} are spent or reserved."
    )
    if crossing.percent >= 100:
        message += " Nothing more is sent until it is raised."
    return {
        "message": message,
        "scope": limit.scope,
        "name": limit.name,
        "percent": crossing.percent,
        "committed_usd": _number(crossing.committed),
        "budget_usd": _number(limit.dollars),
    }


def _number(dollars: Decimal) -> float:
    return float(round(dollars, 6))
