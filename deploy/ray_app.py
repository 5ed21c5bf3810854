"""The worker on a Ray cluster, as `serve run` and KubeRay's RayService import it: `deploy.ray_app:app`.

On one machine `python -m worker ray up` does the same. Every tier of models.yaml is a resource of the nodes that have
its GPU: `ray start --resources '{"L40S": 1}'`. What is set in the environment here is set in all replicas.
"""

from worker.app.ray_serve import build_application
from worker.app.settings import read_settings

settings = read_settings()
app = build_application(settings, gpus=0 if settings.device == "cpu" else 1)
