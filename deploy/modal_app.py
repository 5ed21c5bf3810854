"""The worker on Modal: a class of containers for each GPU tier, and the gateway in front of them, which has no GPU.

    modal deploy deploy/modal_app.py

What is set in the environment, or in `.env`, when this is deployed is set in the containers too. Scaling is set by
DIFFUSERS_A10G_MAX_CONTAINERS, DIFFUSERS_A10G_SCALEDOWN and DIFFUSERS_A10G_TIMEOUT (seconds), the same for L40S.
"""

import sys
from pathlib import Path
from typing import Any

import modal
import modal.experimental

ROOT = Path(__file__).resolve().parent.parent
if modal.is_local():
    sys.path.insert(0, str(ROOT))  # `modal deploy` puts this file's folder there

from worker.app.registry import build_registry
from worker.app.settings import SettingsError, handed_on, read_settings

APP = "diffusers"
# Where Hugging Face's own programs look, so that what they fetched is used too; the worker's cache is beside it.
CACHE = "/root/.cache/huggingface"

settings = read_settings()
registry = build_registry(settings)
app = modal.App(APP)
models = modal.Volume.from_name("diffusers-models", create_if_missing=True)
image = (
    modal.Image.debian_slim(python_version="3.11")
    .uv_pip_install(
        requirements=[str(ROOT / "requirements.lock")], extra_options="--no-deps --require-hashes", uv_version="0.13.9"
    )
    .env({"HF_HUB_DISABLE_TELEMETRY": "1", "TOKENIZERS_PARALLELISM": "false"})
    .add_local_dir(ROOT / "worker", "/root/worker", ignore=["**/__pycache__"])
    .add_local_dir(ROOT / "models", "/root/models")
    .add_local_file(ROOT / "models.yaml", "/root/models.yaml")
)


def scaling(tier: str) -> dict[str, Any]:
    """Return what Modal is told of a tier's containers. The limits were checked with models.yaml."""
    if (limits := registry.tiers.get(tier)) is None:
        raise SettingsError(f"MODELS_YAML: {settings.models_yaml.name} has no tier {tier}; add it under tiers.")
    return {
        "gpu": tier,
        "max_containers": limits.max_containers,
        "scaledown_window": limits.scaledown_s,
        "timeout": limits.timeout_s,
    }


def container(*, door: bool) -> dict[str, Any]:
    """Return what all containers have: the image, the volume of models and the settings."""
    secrets = [modal.Secret.from_dict({**handed_on(door=door), "VOLUME_DIR": CACHE})]
    return {"image": image, "volumes": {CACHE: models}, "secrets": secrets}


class Backend:
    """A container with one GPU: it loads the model that a job asks for, and unloads the one before."""

    @modal.enter(snap=True)
    def import_engine(self) -> None:
        """Import what takes longest, before Modal takes the snapshot that later containers start from."""
        from worker.app.called import import_engine

        import_engine()

    @modal.enter(snap=False)
    async def begin(self) -> None:
        """Build the worker. No model is loaded before the first job, but those that the settings name."""
        from worker.app.called import CalledWorker

        # Modal starts another container for the jobs that come after.
        self.worker = CalledWorker(read_settings(), on_loss=modal.experimental.stop_fetching_inputs)
        self.worker.begin()

    @modal.method()
    async def generate(self, job: dict[str, Any], updates: modal.Queue | None = None) -> dict[str, Any]:
        """Answer one job, `{"id", "input"}`, in our JSON. Its progress goes to the partition `id` of `updates`."""
        answer: dict[str, Any] = {}
        async for update in self.worker.stream(job):
            if "answer" in update:
                answer = update["answer"]
            elif updates is not None and "progress" in update:
                await updates.put.aio(update, partition=job["id"], partition_ttl=600)
        if answer.get("usage", {}).get("bytes_downloaded"):
            await models.commit.aio()  # a container that is killed has not downloaded in vain
        return answer

    @modal.exit()
    async def end(self) -> None:
        """Give running jobs their time."""
        await self.worker.end()


INPUTS = max(settings.jobs_taken, 4)
"""Jobs that one container takes at once: one is generated while the next ones fetch files and gather to a batch."""


@app.cls(enable_memory_snapshot=True, **scaling("A10G"), **container(door=False))
@modal.concurrent(max_inputs=INPUTS)
class DiffusersBackend_A10G(Backend):  # noqa: N801 -- its name in Modal
    """The tier A10G of models.yaml, with 24 GB."""


@app.cls(enable_memory_snapshot=True, **scaling("L40S"), **container(door=False))
@modal.concurrent(max_inputs=INPUTS)
class DiffusersBackend_L40S(Backend):  # noqa: N801
    """The tier L40S of models.yaml, with 48 GB."""


TIERS = {"A10G": DiffusersBackend_A10G, "L40S": DiffusersBackend_L40S}


@app.function(max_containers=1, **container(door=True))
@modal.concurrent(max_inputs=100)
@modal.asgi_app()
def gateway() -> Any:
    """Return the gateway's HTTP doors. One container: it keeps jobs and answers in its memory."""
    from worker.app.modal_gateway import build_modal_app

    return build_modal_app(read_settings(), TIERS)
