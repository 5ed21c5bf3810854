"""The command that puts a recipe into a repository on the Hub: the file to share, the recipe itself, and a card."""

from argparse import Namespace

from worker.app.cli.hub_repository import check_repository, commit
from worker.app.cli.recipe import place_of
from worker.app.cli.session import settings_of
from worker.app.cli.share import exported
from worker.app.cli.terminal import Terminal
from worker.catalog.recipes.card import card
from worker.catalog.recipes.shared import Share, digest_of, text_of


def publish(arguments: Namespace, terminal: Terminal) -> None:
    """Publish a recipe; again to publish another version of it, which is a commit of its own."""
    settings, repository = settings_of(terminal), arguments.repository
    check_repository(settings, repository)
    recipe, models, text = exported(arguments.recipe, terminal)
    name, own = f"{recipe.id}.share.yaml", text_of(place_of(arguments.recipe))
    share = Share(share=1, name=recipe.id, recipe=own, models=models, digest=digest_of(recipe.id, own, models))
    texts = {name: text, f"{recipe.id}.yaml": own, "README.md": card(recipe, share, name)}
    files = {path: content.encode() for path, content in texts.items()}
    message = f"Recipe {recipe.id}, {recipe.digest[:12]}"
    terminal.print(commit(settings, repository, files, name, message, private=arguments.private))
