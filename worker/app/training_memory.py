"""The memory of what a training learns, from the description of its model, before any weights are there."""

from worker.core.errors import WorkerError
from worker.core.model import DENOISERS
from worker.service.local.provisioning import Provisioner
from worker.service.training.trainings import Order


def learnt_bytes(provisioner: Provisioner, order: Order) -> int | None:
    """Return the bytes of what learns, its gradients and the optimizer's state; None where no config tells. Blocking.

    Raises nothing: why a source cannot be asked is for others to say.
    """
    from worker.training.memory import learnt_bytes as counted

    spec = order.model.spec
    try:
        configs = provisioner.peek(spec.source, spec.variant).configs
    except WorkerError:
        return None
    found = (configs.get(f"{name}/config.json") for name in DENOISERS)
    config = next((each for each in found if each), None)
    return None if config is None else counted(config, order.options)
