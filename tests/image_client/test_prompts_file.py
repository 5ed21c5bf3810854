"""Lists of prompts: what is read, and the line that a mistake stands in."""

import json
import string
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from image_client.errors import InvalidRequest
from image_client.ledger import Ledger
from image_client.prompts_file import Job, read_jobs, repeated
from image_client.starting import begin_batch


def jobs_of(folder: Path, name: str, text: str, **defaults: object) -> list[Job]:
    path = folder / name
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return read_jobs(path, defaults)


def test_the_three_kinds_say_the_same(tmp_path: Path) -> None:
    lists = {
        "a.txt": "a red apple\n\na green pear, ripe\n",
        "a.csv": 'prompt,width,height\na red apple,512,512\n"a green pear, ripe",,\n',
        "a.jsonl": '{"prompt": "a red apple", "width": 512, "height": 512}\n{"prompt": "a green pear, ripe"}\n',
    }
    text, table, lines = (jobs_of(tmp_path, name, content) for name, content in lists.items())
    assert [job.prompt for job in text] == ["a red apple", "a green pear, ripe"]
    assert table == lines
    assert table[0].request().width == 512 and table[1].request().width is None


def test_defaults_hold_where_a_line_is_silent_and_seeds_count_on(tmp_path: Path) -> None:
    text = '{"prompt": "a"}\n{"prompt": "b", "seed": 900, "n": 2}\n{"prompt": "c", "num_inference_steps": 9}\n'
    jobs = jobs_of(tmp_path, "a.jsonl", text, seed=10, num_inference_steps=4, extra={"go": 1})
    assert [(job.prompt, job.fields["seed"]) for job in jobs] == [("a", 10), ("b", 900), ("b", 901), ("c", 13)]
    assert [job.fields["num_inference_steps"] for job in jobs] == [4, 4, 4, 9]
    assert [job.index for job in jobs] == [0, 1, 2, 3] and jobs[0].fields["extra"] == {"go": 1}


def test_images_are_read_beside_the_list_and_may_not_change(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"a cat")
    (job,) = jobs_of(tmp_path, "a.csv", "prompt,image,extra.lora,name\nblue,cat.png,[1],blue cat\n")
    request = job.request()
    assert (request.operation, request.image, request.extra) == ("edit", b"a cat", {"lora": [1]})
    assert Job.model_validate_json(job.model_dump_json()) == job and job.name == "blue cat"
    (tmp_path / "cat.png").write_bytes(b"a dog")
    with pytest.raises(InvalidRequest, match="was changed since the batch began"):
        job.request()


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("a.txt", "\n \n", "holds no prompt"),
        ("a.txt", "\udcff", "is no UTF-8"),
        ("a.doc", "x", "ends in .csv, .jsonl, .txt"),
        ("a.csv", "prompt,width,height\na,wide,1\n", r"a.csv:2: width: "),
        ("a.csv", "prompt,width,height\na,512,\n", "a.csv:2: width and height go together"),
        ("a.csv", "prompt,width\na\n", "a.csv:2: it has not as many cells"),
        ("a.csv", "prompt,promt\na,b\n", "'promt' is no field"),
        ("a.csv", "prompt,image\na,none.png\n", "none.png cannot be read"),
        ("a.csv", "prompt,name\na,../b\n", "name '../b' does not fit"),
        ("a.csv", "prompt,name\na,b\nc,B\n", "'B' stands twice"),
        ("a.csv", "prompt,name\na,0001-x\n", "does not fit"),
        ("a.jsonl", '{"prompt": "a"}\n{"prompt": ', "a.jsonl:2: it is no JSON"),
        ("a.jsonl", "[1]", "a.jsonl:1: it is no JSON object"),
        ("a.jsonl", '{"prompt": ""}\n' * 9, "and 4 more lines"),
    ],
)
def test_a_mistake_is_told_with_its_line(tmp_path: Path, name: str, text: str, reason: str) -> None:
    with pytest.raises(InvalidRequest, match=reason):
        jobs_of(tmp_path, name, text)


def test_repeated_jobs_are_counted(tmp_path: Path) -> None:
    assert repeated(jobs_of(tmp_path, "a.csv", "prompt,seed\na,1\na,1\na,2\na,\na,\n")) == 1


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), min_size=1), min_size=1))
def test_any_prompt_comes_back_as_it_was(tmp_path: Path, prompts: list[str]) -> None:
    prompts = [prompt for prompt in prompts if prompt.strip()] or ["x"]
    jobs = jobs_of(tmp_path, "a.jsonl", "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))
    assert [Job.model_validate_json(job.model_dump_json()).prompt for job in jobs] == prompts
    folder = Path(tempfile.mkdtemp(dir=tmp_path))
    begin_batch(folder, jobs, "mock", None).close()
    with Ledger.open(folder) as ledger:
        assert [record.prompt for record in ledger.records()] == prompts
    if all(set(prompt) <= set(string.printable) for prompt in prompts):
        assert len(jobs_of(tmp_path, "a.txt", "\n".join(prompts))) == len(prompts)
