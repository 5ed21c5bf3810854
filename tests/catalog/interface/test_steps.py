"""Parameters of odd classes that depend on the number of steps, or that a step gives a number each."""

import pytest

from tests.catalog.interface.test_schema import T2I, check
from worker.core.errors import ParameterOutOfRange
from worker.core.model import Detection, Kind, Task


@pytest.mark.parametrize(
    ("sent", "field"),
    [
        ({"num_inference_steps": 1}, "mask_encode_strength"),  # its default is half of the steps
        ({"num_inference_steps": 4, "mask_encode_strength": 0.2}, "mask_encode_strength"),
        ({"num_inference_steps": 4, "inpaint_strength": 0.2}, "inpaint_strength"),
        ({"guidance_scale": 1}, "guidance_scale"),
    ],
)
def test_each_of_several_shares_of_the_steps_must_leave_one(sent, field) -> None:
    task = Task.IMAGE_EDITING
    diffedit = Detection(Kind.PIPELINE, "diffusers", "sd1", "StableDiffusionDiffEditPipeline", (task,))
    with pytest.raises(ParameterOutOfRange) as caught:
        check(sent, task=task, detection=diffedit)
    assert caught.value.field == field
    check({"num_inference_steps": 4, "inpaint_strength": 0.25, "guidance_scale": 1.5}, task=task, detection=diffedit)


def test_guidance_of_each_step_has_as_many_numbers_as_there_are_steps() -> None:
    ideogram = Detection(Kind.PIPELINE, "diffusers", None, "Ideogram4Pipeline", (T2I,))
    with pytest.raises(ParameterOutOfRange, match="as many numbers as there are steps, 3; it has 2") as caught:
        check({"num_inference_steps": 3, "guidance_schedule": [7.0, 3.0]}, detection=ideogram)
    assert caught.value.field == "guidance_schedule"
    check({"num_inference_steps": 2, "guidance_schedule": [7.0, 3.0]}, detection=ideogram)
