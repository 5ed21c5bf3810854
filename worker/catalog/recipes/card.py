"""The page of a recipe on the Hub: what it takes and does, in Markdown under the metadata that the Hub reads."""

import json

from worker.catalog.recipes.recipe import Recipe, RecipeInput
from worker.catalog.recipes.shared import Share

TAG = "imgworker-recipe"


def card(recipe: Recipe, share: Share, file: str) -> str:
    """Return the card of `recipe`, which is shared as `file`. The same recipe gives the same text."""
    references = [source.reference or "" for model in share.models.values() for source in model.sources[:1]]
    bases = sorted({name for name in (_repository(text) for text in references) if name})
    head = ["---", f"pipeline_tag: {recipe.task}", f"tags: {json.dumps([TAG])}"]
    head += [f"base_model: {json.dumps(bases)}"] if bases else []
    lines = [*head, "---", "", f"# {recipe.id}", "", *_tables(recipe)]
    lines += ["", "Its models are pinned, with a digest of every file:", ""]
    for name, model in share.models.items():
        revision = model.sources[0].revision if model.sources else None
        lines.append(f"- `{name}`{f' at `{revision}`' if revision else ', local files'}")
    lines += ["", "There are no weights here, and each model has a licence of its own. To have it served:", ""]
    lines += ["```bash", f"imgworker share import {file} --add", "```", ""]
    return "\n".join(lines)


def _tables(recipe: Recipe) -> list[str]:
    """Return the lines about a recipe's inputs and steps."""
    lines = [_plain(recipe.description), ""] if recipe.description else []
    lines += ["| input | type | values | |", "|---|---|---|---|"]
    for name, each in recipe.inputs.items():
        lines.append(f"| `{name}` | {each.type} | {_plain(bounds(each))} | {_plain(each.description or '')} |")
    lines += ["", "| step | model | |", "|---|---|---|"]
    for step in recipe.steps:
        lines.append(f"| {step.name} | `{_plain(step.model)}` | {'output' if step.name in recipe.outputs else ''} |")
    return lines


def bounds(each: RecipeInput) -> str:
    """Return the values that an input takes, in short, and what it is if it is not sent."""
    values = ", ".join(map(str, each.choices))
    if each.minimum is not None or each.maximum is not None:
        low = "" if each.minimum is None else f"{each.minimum:g}"
        values = f"{low}..{'' if each.maximum is None else f'{each.maximum:g}'}"
    otherwise = "required" if each.is_required else "optional" if each.default is None else f"else {each.default}"
    return f"{values}; {otherwise}" if values else otherwise


def _repository(reference: str) -> str | None:
    """Return the repository on the Hub that a reference names; None for any other source."""
    name = reference.removeprefix("hf:").partition("@")[0].partition("#")[0]
    return name if name.count("/") == 1 and ":" not in name else None


def _plain(text: str) -> str:
    """Return a text that stays in its cell."""
    return " ".join(text.split()).replace("|", "\\|")
