"""A worker behind the RunPod door, with tiny models and the controls that fit them."""

import itertools
import json

from tests.controls import apart
from tests.images import encoded, gradient, pixels
from tests.zoo.served import zoo_worker
from worker.app.queue import build_door

IMAGE = gradient(64, 64)
PIPELINES = {
    "sd1": "StableDiffusionControlNetPipeline",
    "union": "StableDiffusionXLControlNetUnionPipeline",
    "flux": "FluxControlNetPipeline",
    "t2i": "StableDiffusionAdapterPipeline",
    "xl-t2i": "StableDiffusionXLAdapterPipeline",
}
_ids = itertools.count()


class Shop:
    """A worker behind the RunPod door, with tiny models and the controls that fit them."""

    def __init__(self, root, pipelines=PIPELINES):
        self.root = root
        self.pairs = {name: apart(pipeline, root) for name, pipeline in pipelines.items()}
        self.worker = zoo_worker(root)
        self.door = build_door(self.worker, concurrency=1)
        self._usual = {}

    async def ask(self, name, *controls, **fields):
        """The answer to a job for the model `name`; the controls are its own where they name no other."""
        pair = self.pairs[name]
        size = {"width": 64, "height": 64, "num_inference_steps": 3}
        request = {"prompt": "a red apple", "seed": 7, **size, "model": f"file:{pair.model}", **fields}
        if controls:
            own = {"model": f"file:{pair.control}", "image": encoded(IMAGE)}
            own |= {"mode": "canny"} if name == "union" else {}
            request["controlnets"] = [own | control for control in controls]
        return await self.door.handle({"id": f"control-{next(_ids)}", "input": request})

    async def draw(self, name, *controls, **fields):
        """The image of a job that succeeds."""
        answer = await self.ask(name, *controls, **fields)
        assert "error" not in answer, answer
        return pixels(answer).astype(int)

    async def usual(self, name, *controls):
        """The same, drawn once for all tests."""
        key = (name, json.dumps(controls))
        if key not in self._usual:
            self._usual[key] = await self.draw(name, *controls)
        return self._usual[key]

    async def refused(self, code, said, name, *controls, field="controlnets", **fields):
        """A job that is refused before anything is loaded."""
        before = self.worker.engine.resident_models
        answer = await self.ask(name, *controls, **fields)
        assert answer.get("code") == code, answer
        assert said in answer["error"]
        assert answer["field"] == field
        assert self.worker.engine.resident_models == before
