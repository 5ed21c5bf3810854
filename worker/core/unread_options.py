"""Options of a training that were said and that nothing in it would read: refused by name, before a load."""

from collections.abc import Callable

from worker.core.errors import InvalidRequest
from worker.core.training import TrainingOptions

# An option, whether a training reads it, and what it is for.
_READ: tuple[tuple[str, Callable[[TrainingOptions], bool], str], ...] = (
    ("rank", lambda options: options.field == "loras", "is the size of an adapter, and method {method} has none"),
    ("targets", lambda options: options.field == "loras", "are the layers of an adapter, and method {method} has none"),
    ("vectors", lambda options: options.method == "embedding", "is for method embedding, and the method is {method}"),
    ("like", lambda options: options.method == "embedding", "is for method embedding, and the method is {method}"),
    ("crops", lambda options: options.crop == "random", "is for crop random, and the crop is {crop}"),
    ("mask_floor", lambda options: options.mask != "off", "is for masks, and mask is off"),
    ("class_images", lambda options: options.class_prompt is not None, "is for class_prompt, which is not there"),
    ("class_weight", lambda options: options.class_prompt is not None, "is for class_prompt, which is not there"),
    ("sample_captions", lambda options: not options.samples, "is for a training without samples"),
)


def check_read(options: TrainingOptions) -> None:
    """Raise InvalidRequest for an option that was said, and is for another kind of training than this one."""
    for name, is_read, purpose in _READ:
        if name in options.model_fields_set and not is_read(options):
            reason = purpose.format(method=options.method, crop=options.crop)
            raise InvalidRequest(f"{name} {reason}; leave {name} out.", field=name)
    if options.method == "embedding" and not options.trigger:
        raise InvalidRequest(
            "trigger is the word that method embedding learns; send one, as <mascot>.", field="trigger"
        )
