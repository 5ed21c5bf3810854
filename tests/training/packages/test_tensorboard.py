"""Files for TensorBoard, read back by TensorBoard's own reader."""

import base64
import io
import itertools
import json

import pytest
from PIL import Image

from tests.training.test_jobs import FEW, PROMPT, ask, sent
from worker.app.build import build_worker
from worker.training.trainer import Trainer

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.fixture
def accumulated():
    """A function that reads all events below a folder."""
    pytest.importorskip("tensorboardX")
    reader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read(folder):
        events = reader.EventAccumulator(str(folder), purge_orphaned_data=True)
        return events.Reload()

    return read


async def test_what_was_noted_is_read_back_also_after_steps_that_were_taken_again(
    settings, images, accumulated, monkeypatch
):
    worker = build_worker(settings.model_copy(update={"training": "shared"}))
    folder = settings.volume / "trained/seen"
    job = FEW | {"data": sent(images), "name": "seen", "tensorboard": True, "held_out": 0.25, "samples": [PROMPT]}
    job |= {"steps": 4, "save_every": 2}
    step, taken = Trainer.step, itertools.count(1)

    def broken(trainer):
        if next(taken) == 4:
            raise RuntimeError("a crash after three steps")
        return step(trainer)

    monkeypatch.setattr(Trainer, "step", broken)
    with pytest.raises(RuntimeError, match="a crash"):
        await ask(worker, job)
    answer = await ask(worker, job)
    assert (answer["done"], answer["resumed_at"]) == (True, 2)
    events = accumulated(folder / "tensorboard")
    assert set(events.Tags()["scalars"]) == {"loss", "learning_rate", "held_out_loss"}
    lines = [json.loads(line) for line in (folder / "progress.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 3, 4]
    last = {line["step"]: line for line in lines}
    for name in ("loss", "learning_rate"):
        assert [event.step for event in events.Scalars(name)] == [1, 2, 3, 4]
        assert [event.value for event in events.Scalars(name)] == pytest.approx([last[n][name] for n in range(1, 5)])
    assert [event.step for event in events.Scalars("held_out_loss")] == [2, 4]
    assert events.Scalars("held_out_loss")[-1].value == pytest.approx(answer["held_out_loss"])
    shown = events.Images("sample/1")[-1]
    drawn = await ask(worker, {"prompt": PROMPT, "seed": 0, "loras": ["seen"]})
    pixels = [Image.open(io.BytesIO(data)) for data in (shown.encoded_image_string, base64.b64decode(drawn["image"]))]
    assert pixels[0].tobytes() == pixels[1].convert("RGB").tobytes()
    assert not any(PROMPT.encode() in file.read_bytes() for file in (folder / "tensorboard").iterdir())
