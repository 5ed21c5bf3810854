"""Commands for recipes: check, show and run one file, whether it is served or not."""

from argparse import Namespace
from pathlib import Path

from pydantic import JsonValue

from worker.app.cli.files import media
from worker.app.cli.run import destination_of, finish, parameter
from worker.app.cli.session import failures, open_worker, perform
from worker.app.cli.terminal import Failure, Terminal
from worker.catalog.recipes.card import bounds
from worker.catalog.recipes.file import read_recipe, recipe_files
from worker.catalog.recipes.recipe import Recipe
from worker.catalog.recipes.schema import recipe_schema
from worker.service.recipes.checking import check_recipe


def check(arguments: Namespace, terminal: Terminal) -> None:
    """Ask the models of one recipe, or of all in a folder, whether they take what its steps ask of them."""
    place = place_of(arguments.file)
    for path in recipe_files(place):
        with open_worker(terminal, further={"recipes": path}) as worker:
            (recipe,) = worker.registry.recipes.values()
            check_recipe(recipe, worker.operations.generation.acceptor, asks=True)
        terminal.print(f"{recipe.file}: right; {len(recipe.steps)} steps, of {', '.join(recipe.models)}")


def show(arguments: Namespace, terminal: Terminal) -> None:
    """Say what a recipe takes, and what its steps do."""
    recipe = read(arguments.file, terminal)
    if arguments.json:
        terminal.json(recipe_schema(recipe))
        return
    terminal.print(f"{recipe.id} ({recipe.task}){f': {recipe.description}' if recipe.description else ''}")
    rows = [(name, each.type, bounds(each), each.description or "") for name, each in recipe.inputs.items()]
    terminal.table(("input", "type", "values", ""), rows)
    terminal.table(
        ("step", "model", "fields", ""),
        [
            (
                *(step.name, step.model, ", ".join(name for name in step.fields if name != "model")),
                "output" if step.name in recipe.outputs else "",
            )
            for step in recipe.steps
        ],
    )


def run(arguments: Namespace, terminal: Terminal) -> None:
    """Make a recipe's images and save them."""
    recipe = read(arguments.file, terminal)
    fields: dict[str, JsonValue] = {"model": recipe.id}
    for text in arguments.values:
        name, value = parameter(text, "Input")
        of_image = name in recipe.inputs and recipe.inputs[name].type == "image"
        fields[name] = media(str(value), name) if of_image else value
    typed: dict[str, str] = {name: name for name in (*recipe.inputs, *fields)}
    destination = destination_of(arguments, terminal, fields, typed)
    with open_worker(terminal, unregistered=True, typed=typed, further={"recipes": place_of(arguments.file)}) as worker:
        answer = perform(worker, terminal, fields)
    finish(answer, destination, arguments, terminal)


def read(file: str, terminal: Terminal) -> Recipe:
    """Read the recipe that was typed. Raises Failure."""
    path = place_of(file)
    if path.is_dir():
        raise Failure(f"{file} is a folder; name one of the recipes in it.")
    with failures(terminal):
        return read_recipe(path)


def place_of(file: str) -> Path:
    """Return the path that was typed, where there is something. Raises Failure."""
    path = Path(file).expanduser()
    if not path.exists():
        raise Failure(f"There is no file or folder {file}; check the path.")
    return path
