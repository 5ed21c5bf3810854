"""Names of samplers and schedules: what each says, which fit a model, and what is said about the others."""

import json

import pytest

from worker.catalog.call import Model
from worker.catalog.interface.sampling import FILE, Fit, choose, fit_of
from worker.catalog.samplers import SAMPLERS, UNSERVED, UNSERVED_SCHEDULES, folded, names_of, read_name, unserved
from worker.catalog.schedulers import CLASSES, SCHEDULES
from worker.core.errors import ParameterOutOfRange
from worker.core.job import SchedulerChoice
from worker.core.model import Detection, Kind, ModelSource, ModelSpec, Task


def family(architecture: str) -> Fit:
    spec = ModelSpec(id="model", source=ModelSource(scheme="hf", locator="org/model"), architecture=architecture)
    model = Model.declared(spec)
    return fit_of(model.call(model.tasks[0]))


def repository(pipeline: str, scheduler: str, **facts: object) -> Fit:
    spec = ModelSpec(id="model", source=ModelSource(scheme="hf", locator="org/model"))
    found = Detection(Kind.PIPELINE, "diffusers", pipeline=pipeline, scheduler=scheduler, **facts)  # type: ignore[arg-type]
    return fit_of(Model(spec, found).call(Task.TEXT_TO_IMAGE))


def chosen(fit: Fit, **said: object) -> SchedulerChoice:
    params = {name: said.pop(name) for name in ("timesteps", "sigmas") if name in said}
    found = choose(said, params, fit, "model")  # type: ignore[arg-type]
    assert found is not None
    return found


def refused(fit: Fit, **said: object) -> ParameterOutOfRange:
    with pytest.raises(ParameterOutOfRange) as failure:
        chosen(fit, **said)
    return failure.value


@pytest.mark.parametrize(
    ("name", "cls", "schedule"),
    [
        # A1111
        ("Euler a", "EulerAncestralDiscreteScheduler", None),
        ("DPM++ 2M Karras", "DPMSolverMultistepScheduler", "karras"),
        ("DPM++ 2M SDE Exponential", "DPMSolverMultistepScheduler", "exponential"),
        ("DPM++ SDE Karras", "DPMSolverSDEScheduler", "karras"),
        ("DPM2 a Karras", "KDPM2AncestralDiscreteScheduler", "karras"),
        ("LMS Karras", "LMSDiscreteScheduler", "karras"),
        ("PLMS", "PNDMScheduler", None),
        ("Euler SGM Uniform", "EulerDiscreteScheduler", "sgm_uniform"),
        # ComfyUI, sampler and scheduler in one
        ("dpmpp_2m_sde", "DPMSolverMultistepScheduler", None),
        ("dpmpp_2m_karras", "DPMSolverMultistepScheduler", "karras"),
        ("uni_pc_bh2", "UniPCMultistepScheduler", None),
        ("uni_pc_bh1", "UniPCMultistepScheduler", None),
        ("euler_ancestral_ddim_uniform", "EulerAncestralDiscreteScheduler", "ddim_uniform"),
        # worker-sdxl and Replicate
        ("K_EULER", "EulerDiscreteScheduler", None),
        ("K_EULER_ANCESTRAL", "EulerAncestralDiscreteScheduler", None),
        ("DPMSolverMultistep", "DPMSolverMultistepScheduler", None),
        ("HeunDiscrete", "HeunDiscreteScheduler", None),
        ("KLMS", "LMSDiscreteScheduler", None),
        ("KarrasDPM", "DPMSolverMultistepScheduler", "karras"),
        ("DPM++2MSDE", "DPMSolverMultistepScheduler", None),
        # InvokeAI
        ("dpmpp_2m_sde_k", "DPMSolverMultistepScheduler", "karras"),
        # diffusers
        ("EulerDiscreteScheduler", "EulerDiscreteScheduler", None),
        ("EulerDiscreteScheduler karras", "EulerDiscreteScheduler", "karras"),
    ],
)
def test_a_name_that_people_use_says_class_and_schedule(name: str, cls: str, schedule: str | None) -> None:
    choice = chosen(family("sdxl"), scheduler=name)
    assert (choice.cls, choice.schedule) == (cls, schedule)
    assert choice.parameters.keys() == {"scheduler", *(["schedule"] if schedule else [])}
    assert chosen(family("sdxl"), **choice.parameters) == choice  # what a result says can be sent as it is


def test_every_name_of_the_table_is_read_with_every_schedule_behind_it() -> None:
    for sampler in SAMPLERS:
        for name in names_of(sampler):
            said = read_name(name)
            assert said is not None and said.sampler is sampler, name
            for schedule in SCHEDULES:
                said = read_name(f"{name} {schedule}")
                assert said is not None and (said.sampler, said.schedule) == (sampler, schedule), name
    assert {cls for sampler in SAMPLERS for cls in sampler.classes.values()} <= CLASSES.keys()
    owners = {(folded(name), sampler.name) for sampler in SAMPLERS for name in names_of(sampler)}
    assert len(owners) == len({name for name, _ in owners})
    assert not {name for name, _ in owners} & {*map(folded, UNSERVED)}


@pytest.mark.parametrize("name", [*UNSERVED, "DPM fast Karras", "Restart"])
def test_a_sampler_that_diffusers_does_not_have_is_refused_with_the_nearest(name: str) -> None:
    nearest = unserved(name)
    assert nearest in {sampler.name for sampler in SAMPLERS}
    error = refused(family("sdxl"), scheduler=name)
    assert f"is none that diffusers has; the nearest to it is {nearest}." in error.message
    assert error.hint == f"Did you mean {nearest}?"


@pytest.mark.parametrize("name", UNSERVED_SCHEDULES)
def test_a_schedule_that_diffusers_does_not_have_is_refused_with_the_nearest(name: str) -> None:
    error = refused(family("sdxl"), scheduler="euler", schedule=name)
    assert (error.field, error.hint) == ("schedule", f"Did you mean {UNSERVED_SCHEDULES[name]}?")


@pytest.mark.parametrize(
    ("architecture", "said", "field", "message"),
    [
        ("flux1", {"scheduler": "ddim"}, "scheduler", "'ddim' does not fit model; choose one of euler"),
        ("flux1", {"scheduler": "EulerDiscreteScheduler"}, "scheduler", "choose one of euler"),
        ("sdxl", {"scheduler": "FlowMatchEulerDiscreteScheduler"}, "scheduler", "choose one of euler"),
        ("sdxl", {"scheduler": "DDIMInverseScheduler"}, "scheduler", "is not known for model; choose one of"),
        ("sdxl", {"scheduler": "karras"}, "scheduler", "send it as schedule"),
        ("sdxl", {"scheduler": "ddim", "schedule": "karras"}, "schedule", "karras is none of DDIMScheduler: it has"),
        (
            "sdxl",
            {"scheduler": "DPM++ 2M Karras", "schedule": "beta"},
            "schedule",
            "says karras and schedule says beta",
        ),
        ("sdxl", {"schedule": "bent"}, "schedule", "'bent' is not known for model; choose one of normal, karras"),
        ("sdxl", {"scheduler": "euler_a", "timesteps": [9, 5]}, "timesteps", "cannot be given to EulerAncestral"),
        ("sdxl", {"sigmas": [1.0, 2.0]}, "sigmas", "must fall from each number to the next"),
        ("sdxl", {"timesteps": [9, 5], "sigmas": [1.0]}, "sigmas", "send one of them"),
        ("sdxl", {"timesteps": [9, 5], "schedule": "karras"}, "timesteps", "are two schedules"),
        ("sdxl", {"timesteps": [1000, 5]}, "timesteps", "begin at 999 at most; 1000 was sent"),
        ("svd", {"scheduler": "ddim"}, "scheduler", "does not fit model; choose one of euler, EulerDiscreteScheduler"),
        ("cogvideox", {"scheduler": "euler"}, "scheduler", "choose one of ddim, dpmpp_2m, CogVideoXDDIMScheduler"),
        ("stable-cascade", {"scheduler": "ddim"}, "scheduler", "choose one of DDPMWuerstchenScheduler"),
        ("flux1", {"scheduler": "dpmpp_2m", "shift": 3.0}, "shift", "shift cannot be given to DPMSolverMultistep"),
    ],
)
def test_what_does_not_fit_is_refused_with_what_does(
    architecture: str, said: dict[str, object], field: str, message: str
) -> None:
    error = refused(family(architecture), **said)
    assert (error.field, message in error.message) == (field, True), error.message


def test_the_hint_is_the_same_sampler_of_the_models_kind() -> None:
    assert refused(family("flux1"), scheduler="EulerDiscreteScheduler").hint is not None
    assert "FlowMatchEuler" in str(refused(family("flux1"), scheduler="EulerDiscreteScheduler").hint)


def test_a_model_without_a_row_is_known_by_its_scheduler() -> None:
    diffusion = repository("StableDiffusionPipeline", "DDIMScheduler")
    assert chosen(diffusion, scheduler="euler").cls == "EulerDiscreteScheduler"
    flow = repository("WanPipeline", "UniPCMultistepScheduler", prediction_type="flow_prediction")
    assert chosen(flow, scheduler="euler").cls == "FlowMatchEulerDiscreteScheduler"
    strange = repository("NewPipeline", "NewScheduler")
    assert strange.classes == ("NewScheduler",) and not strange.schedules and not strange.shifting
    assert chosen(strange, scheduler="New").cls == "NewScheduler"
    assert repository("NewPipeline", "FlowMatchEulerDiscreteScheduler").shifting


@pytest.mark.parametrize("own", CLASSES)
def test_a_models_own_scheduler_is_offered_for_every_pipeline_and_by_its_name(own: str) -> None:
    pipelines = [
        name for group in json.loads(FILE.read_text(encoding="utf-8"))["groups"] for name in group["pipelines"]
    ]
    for prediction in (None, "flow_prediction", "edm"):
        for pipeline in (*pipelines, "NewPipeline", "StableVideoDiffusionPipeline", "AmusedPipeline"):
            fit = repository(pipeline, own, prediction_type=prediction)
            assert fit.own == own and own in fit.names, (pipeline, prediction)
            assert chosen(fit, scheduler=own).cls == own


def test_a_pipeline_that_does_not_see_its_scheduler_is_offered_no_other_and_no_schedule() -> None:
    fit = repository("KandinskyV22CombinedPipeline", "DDPMScheduler")
    assert (fit.classes, fit.schedules) == (("DDPMScheduler",), ())
    assert refused(fit, schedule="simple").field == "schedule"


def test_a_model_trained_down_to_zero_signal_keeps_what_begins_there() -> None:
    usual = repository("StableDiffusionPipeline", "DDIMScheduler", prediction_type="v_prediction")
    down = repository("StableDiffusionPipeline", "DDIMScheduler", prediction_type="v_prediction", zero_snr=True)
    assert set(down.classes) < set(usual.classes)
    assert all(CLASSES[name].zero_snr for name in down.classes)
    assert "euler" in down.names and "heun" not in down.names


def test_a_model_in_edms_terms_takes_edms_classes_only() -> None:
    fit = repository("StableDiffusionXLPipeline", "EDMEulerScheduler")
    assert set(fit.classes) == {"EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"}
    assert chosen(fit, scheduler="DPM++ 2M Karras").cls == "EDMDPMSolverMultistepScheduler"


def test_a_schedule_may_be_said_as_uis_say_it() -> None:
    assert chosen(family("sdxl"), scheduler="euler", schedule="SGM Uniform").schedule == "sgm_uniform"
    assert chosen(family("sdxl"), scheduler="euler", schedule="Automatic").schedule is None
    assert chosen(family("flux1"), schedule="beta").parameters == {"schedule": "beta"}


def test_lists_stand_in_a_schema_only_where_a_scheduler_takes_them() -> None:
    assert family("sdxl").takes("timesteps") and family("sdxl").takes("sigmas")
    assert family("flux1").takes("sigmas")
    assert not family("cogvideox").takes("timesteps")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("worker.catalog.interface.sampling.find_spec", lambda name: None)
    error = refused(family("sdxl"), scheduler="DPM++ SDE")
    assert "needs the package torchsde" in error.message
