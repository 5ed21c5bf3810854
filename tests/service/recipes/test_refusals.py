"""A wrong recipe stops the start with its file, its line and the fix; nothing is loaded for it."""

import pytest

from tests.fakes.engine import make_context
from worker.catalog.recipes.recipe import RecipeError

RIGHT = """\
description: Drawn, and drawn again.
inputs:
  prompt: {type: text}
  strength: {type: number, minimum: 0.3, maximum: 1, default: 0.5}
steps:
  base:
    model: tiny
    prompt: ${inputs.prompt}
  again:
    model: tiny
    prompt: a ${inputs.prompt}, closer
    image: ${steps.base.image}
    strength: ${inputs.strength}
"""
# What is written in place of what; line and beginning of the refusal.
WRONG = {
    "an unknown key": ("description:", "descripton:", 1, "unknown key descripton; did you mean description?"),
    "no steps": (RIGHT[RIGHT.index("steps:") :], "", 1, "steps is missing; add it."),
    "a step without a model": ("    model: tiny\n    prompt: a", "    prompt: a", 9, "steps.again needs a model;"),
    "an unknown model": (
        "model: tiny\n    prompt: a",
        "model: tyni\n    prompt: a",
        10,
        "steps.again: model 'tyni' is",
    ),
    "a field that no model has": ("    strength: $", "    strenght: $", 13, "steps.again: strenght is not a param"),
    "a field of another task": (
        "    prompt: ${inputs.prompt}\n  again",
        "    prompt: ${inputs.prompt}\n    strength: 0.5\n  again",
        9,
        "steps.base: strength is not a parameter of text-to-image",
    ),
    "a field of the whole request": ("    image: $", "    timeout_s: 5\n    image: $", 12, "timeout_s is of the whole"),
    "an unknown input": ("${inputs.strength}", "${inputs.strenght}", 13, "steps.again.strength: there is no input"),
    "an unknown step": ("${steps.base.image}", "${steps.bass.image}", 12, "steps.again.image: there is no step bass"),
    "no part of a step": ("${steps.base.image}", "${steps.base.picture}", 12, "${steps.base.picture} refers to no"),
    "an expression": ("${inputs.strength}", "${inputs.strength / 2}", 13, "${inputs.strength / 2} refers to noth"),
    "a brace that stays open": ("a ${inputs.prompt}, c", "a ${inputs.prompt, c", 11, "'a ${inputs.prompt, closer'"),
    "a step that begins from itself": ("${steps.base.image}", "${steps.again.image}", 12, "steps.again.image refers"),
    "a circle": (
        "    prompt: ${inputs.prompt}\n",
        "    prompt: ${inputs.prompt}\n    image: ${steps.again.image}\n",
        9,
        "steps.base.image refers to again (line 10), which comes later",
    ),
    "an image as a number": ("${inputs.strength}", "${steps.base.image}", 13, "steps.again.strength takes no image"),
    "a text as an image": ("${steps.base.image}", "${inputs.prompt}", 12, "steps.again.image takes an image, and"),
    "an image inside a text": ("a ${inputs.prompt}, c", "a ${steps.base.image}, c", 11, "steps.again.prompt takes no"),
    "a text as a number": (
        "    strength: $",
        "    eta: ${inputs.prompt}\n    strength: $",
        13,
        "steps.again: eta must",
    ),
    "a number as a prompt": ("prompt: ${inputs.prompt}", "prompt: ${inputs.strength}", 8, "steps.base: prompt"),
    "a bound that no model takes": ("maximum: 1,", "maximum: 2,", 13, "steps.again, at the maximum of inputs.strength"),
    "a default beyond its bounds": ("default: 0.5", "default: 0.1", 4, "inputs.strength.default must be a number"),
    "bounds the wrong way round": ("minimum: 0.3", "minimum: 3", 4, "inputs.strength.minimum is above its maximum"),
    "a number without any value": (
        ", minimum: 0.3, maximum: 1, default: 0.5",
        "",
        4,
        "inputs.strength needs a default",
    ),
    "bounds of a text": ("{type: text}", "{type: text, minimum: 3}", 3, "inputs.prompt.minimum is for numbers"),
    "an unknown type": ("{type: number,", "{type: float,", 4, "inputs.strength.type must"),
    "another type than every request's": ("{type: text}", "{type: number}", 3, "inputs.prompt must be of type text"),
    "an input that every request has": ("  prompt: {", "  seed: {type: integer}\n  prompt: {", 3, "inputs.seed is a"),
    "an input by another spelling": ("strength:", "cfg_scale:", 4, "inputs.cfg_scale is another spelling"),
    "an input that nothing needs": ("  prompt: {", "  size: {type: boolean}\n  prompt: {", 3, "inputs.size is used by"),
    "an unknown output": (
        RIGHT[-30:],
        RIGHT[-30:] + "outputs: [agian]\n",
        14,
        "outputs: there is no step agian; again",
    ),
    "a name with spaces": ("  base:", "  the base:", 6, "'the base' cannot be a name here"),
    "a model that the caller names": ("model: tiny", "model: ${inputs.prompt}", 7, "steps.base.model must be written"),
    "an image with a default": (
        "  prompt: {",
        "  photo: {type: image, default: AAAA}\n  prompt: {",
        3,
        "inputs.photo: an image has no default; make it optional.",
    ),
    "choices that nobody can choose": (
        "  prompt: {",
        "  plain: {type: boolean, choices: [1]}\n  prompt: {",
        3,
        "inputs.plain.choices are texts or numbers, not boolean.",
    ),
    "an output twice": (
        RIGHT[-30:],
        RIGHT[-30:] + "outputs: [again, again]\n",
        14,
        "outputs names again twice; remove one.",
    ),
    "the task of videos": (
        "inputs:",
        "task: text-to-video\ninputs:",
        2,
        "again makes images, and the task is text-to-",
    ),
    "a broken file": ("steps:", "steps: {", 7, "is not valid YAML"),
    "an anchor": ("{type: text}", "&x {type: text}", 3, "anchors (&) and aliases (*) are not allowed"),
}
UNUSED = RIGHT.replace("    image: ${steps.base.image}\n    strength: ${inputs.strength}\n", "").replace(
    "  strength: {type: number, minimum: 0.3, maximum: 1, default: 0.5}\n", ""
)


def started(root, text, name="closer.yaml"):
    """Start a worker that serves a recipe of this text."""
    folder = root / "recipes"
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return make_context(root)


def test_the_right_one_starts_from_the_folder_beside_the_registry(tmp_path):
    assert [*started(tmp_path, RIGHT).worker.registry.recipes] == ["closer"]


@pytest.mark.quick_rows(12)
@pytest.mark.parametrize("fault", WRONG)
def test_a_wrong_one_is_refused_with_file_and_line(tmp_path, fault):
    old, new, line, beginning = WRONG[fault]
    text = RIGHT.replace("strength:", "cfg_scale:").replace(".strength", ".cfg_scale") if "spelling" in fault else RIGHT
    assert fault.endswith("spelling") or old in text
    with pytest.raises(RecipeError) as refused:
        started(tmp_path, text.replace(old, new, 1))
    assert str(refused.value).startswith(f"recipes/closer.yaml:{line}: {beginning}")


def test_a_step_that_nothing_needs_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"^recipes/closer.yaml:5: steps.base is used by no step and is no output"):
        started(tmp_path, UNUSED)


def test_a_truth_value_is_no_part_of_a_text(tmp_path):
    text = RIGHT.replace("  prompt: {", "  plain: {type: boolean, default: true}\n  prompt: {")
    with pytest.raises(RecipeError, match=r":12: steps.again.prompt: plain is no text or number; it cannot be part of"):
        started(tmp_path, text.replace(", closer", ", ${inputs.plain}"))


@pytest.mark.parametrize("name", ["The One.yaml", "-one.yaml", "x" * 65 + ".yaml"])
def test_a_file_whose_name_is_no_models_is_refused(tmp_path, name):
    with pytest.raises(RecipeError, match=r":1: .* cannot be a model id; name the file in a-z"):
        started(tmp_path, RIGHT, name)


def test_names_that_are_taken_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"^recipes/small.yaml:1: small already names the model tiny"):
        started(tmp_path, RIGHT, "small.yaml")
    (tmp_path / "recipes/small.yaml").unlink()
    started(tmp_path, RIGHT)
    with pytest.raises(RecipeError, match="closer already; rename one of the two"):
        started(tmp_path, RIGHT, "closer.yml")


def test_a_wrong_recipe_does_not_replace_a_right_one(tmp_path, caplog):
    worker = started(tmp_path, RIGHT).worker
    path = tmp_path / "recipes/closer.yaml"
    path.write_text(RIGHT.replace("strength: ${inputs.strength}", "strenght: ${inputs.strength}"))
    worker.reload()
    assert "recipes/closer.yaml:13: steps.again: strenght" in caplog.text
    assert dict(worker.registry.recipes["closer"].steps[1].fields)["strength"] == "${inputs.strength}"
    path.write_text(RIGHT.replace("closer\n", "nearer\n"))
    worker.reload()
    assert dict(worker.registry.recipes["closer"].steps[1].fields)["prompt"] == "a ${inputs.prompt}, nearer"
