"""The page of what was trained, as the Hub reads it: facts for programs on top, then for people. No caller's words."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from worker.core.training import WORDS, TrainingOptions


def card(
    name: str,
    facts: Mapping[str, str],
    options: TrainingOptions,
    held_out: Sequence[tuple[int, float]],
    samples: Sequence[Path],
) -> str:
    """Return the page of the adapter `name`. `facts` are its file's metadata; samples are named by their file names.

    Samples stand in the folder `samples` beside it. Of the caller's words only the trigger is there.
    """
    kind, tag = _kind(options)
    head = {
        "base_model": facts["ss_sd_model_name"],
        "library_name": "diffusers",
        "tags": [tag, "text-to-image"],
        **({"instance_prompt": options.trigger} if options.trigger else {}),
    }
    how = options.model_dump(mode="json", exclude_defaults=True, exclude={*WORDS})
    lines = [
        "---",
        *(f"{key}: {json.dumps(value)}" for key, value in head.items()),
        "---",
        f"# {name}",
        "",
        f"A {kind} for {facts['ss_sd_model_name']}, after {facts['training.step']} of {options.steps} steps on "
        f"{facts['ss_num_train_images']} images (SHA-256 of the dataset `{facts['training.dataset_sha256']}`).",
        *([f"Its word is `{options.trigger}`."] if options.trigger else []),
        "",
        "| option | |",
        "|---|---|",
        *(f"| `{key}` | {value} |" for key, value in sorted(how.items())),
        *(f"| loss on images held out, step {step} | {loss:.4f} |" for step, loss in held_out[-1:]),
        "",
        *(f"![A sample of this step](samples/{file.name})" for file in samples),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _kind(options: TrainingOptions) -> tuple[str, str]:
    """Return what it is in words, and as a tag of the Hub."""
    match options.method:
        case "embedding":
            return "textual inversion", "textual_inversion"
        case "full":
            return "full fine-tuning", "full-finetune"
        case _:
            return f"{options.method} of rank {options.rank}", "lora"
