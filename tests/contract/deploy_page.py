"""The tables of docs/deploy.md, which tests hold against the settings."""

import re

from worker.app.settings import PROJECT_DIR, Settings

SETTINGS = {name.upper(): field for name, field in Settings.model_fields.items()}
DEPLOY_PAGE = (PROJECT_DIR / "docs" / "deploy.md").read_text()


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the table under `heading` of the deployment page, by the name in their first cell."""
    section = DEPLOY_PAGE.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \|(.*)\|$", section, flags=re.MULTILINE)
    assert len(rows) == len({name for name, _ in rows}), f"{heading}: a variable is listed twice"
    return {name: [cell.strip() for cell in rest.split("|")] for name, rest in rows}
