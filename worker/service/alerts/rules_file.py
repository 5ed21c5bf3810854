"""Reader of alerts.yaml. Any mistake in it is one sentence, with its line."""

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

from worker.catalog.operator_file import FileError, OperatorFile
from worker.service.alerts.schema import AlertsFile, Email, Rule


class AlertsError(FileError):
    """An alerts.yaml that cannot be used. The message starts with `alerts.yaml:LINE: `."""


def read_rules(path: Path, registered: Callable[[str], str | None], check_webhook: Callable[[str], None]) -> AlertsFile:
    """Read and check an alerts.yaml. Raises AlertsError.

    `registered` returns the id of a model of models.yaml, by whatever name; `check_webhook` raises ValueError.
    """
    return _Reading(path).rules(registered, check_webhook)


class _Reading(OperatorFile):
    """One reading of one alerts.yaml."""

    error = AlertsError
    keys = "rules, webhook and email"
    nested = MappingProxyType({"rules": Rule, "email": Email})

    def rules(self, registered: Callable[[str], str | None], check_webhook: Callable[[str], None]) -> AlertsFile:
        """Return the file, with models by their ids."""
        file = self.parsed(AlertsFile, self.data(), ())
        if file.webhook is not None:
            try:
                check_webhook(file.webhook)
            except ValueError as error:
                raise self.fail(("webhook",), str(error)) from None
        return file.model_copy(
            update={"rules": {name: self.rule(name, rule, file, registered) for name, rule in file.rules.items()}}
        )

    def rule(self, name: str, rule: Rule, file: AlertsFile, registered: Callable[[str], str | None]) -> Rule:
        """Return a rule as it can be evaluated."""
        there = [outlet for outlet in ("webhook", "email") if getattr(file, outlet) is not None]
        for outlet in rule.to if "to" in rule.model_fields_set else ():
            if outlet not in there:
                text = f"rules.{name}.to names {outlet}, which this file does not set; add {outlet}, or leave it out."
                raise self.fail(("rules", name, "to"), text)
        id = None
        if rule.model is not None and (id := registered(rule.model)) is None:
            text = f"rules.{name}.model: {rule.model[:64]} is not in models.yaml; name a model of it, or leave it out."
            raise self.fail(("rules", name, "model"), text)
        return rule.model_copy(update={"model": id, "to": tuple(each for each in rule.to if each in there)})
