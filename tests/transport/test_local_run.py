"""A job of the terminal: its files are saved under a name of the prompt and the seed, and never over another."""

import pytest

from tests.asking import an_answer
from tests.fakes.engine import TRACED, fresh_id
from worker.app.queue import build_door
from worker.core.result import AnswerFile
from worker.transport.local_run import LocalRun, save_files


def job(**payload):
    return {"id": fresh_id(), "input": {"prompt": "x", **payload}}


def at_terminal(context, folder, say=lambda line: None):
    """A handler that saves what it makes."""
    run = LocalRun(folder, say)
    return run.reporting(build_door(context.worker, concurrency=2, encode=run.encode).handle)


async def test_saving_writes_the_images_and_names_them(context, tmp_path):
    said = []
    handler = at_terminal(context, tmp_path / "out", said.append)
    answer = await handler(job(prompt="A red, red Apple!", seed=3, num_images=2, output={"format": "jpeg"}))
    names = [str(tmp_path / "out" / f"a-red-red-apple-{seed}.jpg") for seed in (3, 4)]
    assert answer["images"] == names
    assert "image" not in answer
    assert said == [f"saved {name}" for name in names]
    assert (tmp_path / "out/a-red-red-apple-3.jpg").read_bytes().startswith(b"\xff\xd8\xff")


async def test_a_trace_is_saved_beside_the_images(context, tmp_path):
    said = []
    answer = await at_terminal(context, tmp_path, said.append)(job(seed=3, profile=True))
    assert answer["profile"]["trace_path"] == str(tmp_path / "profile.trace.json.gz")
    assert (tmp_path / "profile.trace.json.gz").read_bytes() == TRACED.trace
    assert said == [f"saved {tmp_path / name}" for name in ("x-3.png", "profile.trace.json.gz")]


async def test_saving_never_overwrites(context, tmp_path):
    handler = at_terminal(context, tmp_path)
    answers = [await handler(job(seed=3)) for _ in range(3)]
    assert len({answer["image"] for answer in answers}) == 3
    assert len([*tmp_path.glob("x-3*.png")]) == 3


async def test_saving_says_what_failed_and_writes_nothing(context, tmp_path):
    said = []
    answer = await at_terminal(context, tmp_path / "out", said.append)(job(widht=3))
    assert said == [f"failed: {answer['error']}"]
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("prompt", ["../../etc/passwd", "", "日本", "x" * 500, "a/b\\c", "\0"])
def test_a_prompt_never_chooses_the_folder(tmp_path, prompt):
    answer = an_answer(AnswerFile("png", b"\0\0\0"), prompt=prompt, seeds=(1,))
    (path,) = save_files(answer, tmp_path)
    assert path.parent == tmp_path
    assert path.is_file()
    assert len(path.name) < 80


async def test_a_video_is_saved_as_an_mp4(tmp_path):
    data = b"\0\0\0\x18ftyp"
    said = []
    made = an_answer(AnswerFile("mp4", data), prompt="A walk", seeds=(3,), num_frames=9, fps=8.0)
    answer = LocalRun(tmp_path, said.append).encode(made)
    assert (tmp_path / "a-walk-3.mp4").read_bytes() == data
    assert answer["video"] == str(tmp_path / "a-walk-3.mp4")
    assert said == [f"saved {tmp_path / 'a-walk-3.mp4'}"]


def test_the_frames_of_videos_are_saved_under_the_seeds_of_their_videos(tmp_path):
    made = an_answer(*[AnswerFile("png", b"frame")] * 4, prompt="walk", seeds=(3, 4), num_frames=2, fps=8.0)
    names = [path.name for path in save_files(made, tmp_path)]
    assert names == ["walk-3.png", "walk-3-1.png", "walk-4.png", "walk-4-1.png"]
