"""Forms whose names have brackets, as PHP, Rails, axios and OpenAI's client write objects and lists."""

import base64

import httpx
import pytest
from starlette.requests import Request

from tests.transport.web.uploads import ADMITTED
from worker.core.errors import InvalidRequest
from worker.transport.web.forms import read_form
from worker.transport.web.incoming import Incoming


async def form(*texts, files=()):
    parts = [(name, (None, text)) for name, text in texts]
    sent = httpx.Request("POST", "http://x/", files=[*parts, *files])
    scope = ADMITTED | {"method": "POST", "headers": [(k.lower(), v) for k, v in sent.headers.raw]}

    async def receive():
        return {"type": "http.request", "body": sent.read(), "more_body": False}

    return await read_form(Request(scope, receive), Incoming(2**20))


@pytest.mark.parametrize(
    ("texts", "values"),
    [
        ([("output[format]", "webp"), ("output[quality]", "50")], {"output": {"format": "webp", "quality": 50}}),
        (
            [("loras[][model]", "a"), ("loras[][weight]", "0.5"), ("loras[][model]", "b"), ("loras[][weight]", "1")],
            {"loras": [{"model": "a", "weight": 0.5}, {"model": "b", "weight": 1}]},
        ),
        (
            [("loras[1][model]", "b"), ("loras[0][model]", "a"), ("loras[0][weights][unet]", "2")],
            {"loras": [{"model": "a", "weights": {"unet": 2}}, {"model": "b"}]},
        ),
        ([("loras[]", "a"), ("loras[]", "b")], {"loras": ["a", "b"]}),
        ([("sigmas[10]", "0.1"), ("sigmas[2]", "1.0")], {"sigmas": [1.0, 0.1]}),
        ([("loras", '[{"model": "a"}]'), ("seed", "7"), ("empty", " ")], {"loras": [{"model": "a"}], "seed": 7}),
        ([("seed", "1"), ("seed", "2")], {"seed": 2}),
        ([("loras[][name]", "7"), ("source_prompt", "42"), ("model", "1")], None),
        ([("a[b", "x"), ("[c]", "y"), ("d]e", "z")], {"a[b": "x", "[c]": "y", "d]e": "z"}),
        ([("a" + "[b]" * 7, "x"), ("l[99999]", "y")], {"a" + "[b]" * 7: "x", "l[99999]": "y"}),
    ],
)
async def test_names_with_brackets_are_parts_of_objects_and_lists(texts, values):
    read = (await form(*texts)).values(but=())
    assert read == (values or {"loras": [{"name": "7"}], "source_prompt": "42", "model": "1"})


@pytest.mark.parametrize(
    "names", [("output", "output[format]"), ("output[format]", "output"), ("loras[]", "loras[0]"), ("a[b]", "a[]")]
)
async def test_names_that_contradict_each_other_are_refused(names):
    with pytest.raises(InvalidRequest, match="send one of them"):
        await form(*((name, "x") for name in names))


async def test_files_come_in_the_order_of_their_names_and_a_field_without_a_file_is_none():
    sent = [("image[10]", b"c"), ("image[2]", b"b"), ("image[0]", b"a"), ("mask", b"m"), ("control_image[]", b"k")]
    files = [(name, ("a.png", data, "image/png")) for name, data in sent]
    read = await form(files=[*files, ("image", ("", b"", "application/octet-stream"))])
    assert read.files == {"image": [b"a", b"b", b"c"], "mask": [b"m"], "control_image": [b"k"]}


async def test_a_file_inside_an_object_is_its_image():
    read = await form(
        ("controlnets[0][model]", "a"), files=[("controlnets[0][image]", ("a.png", b"data", "image/png"))]
    )
    image = base64.b64encode(b"data").decode()
    assert read.values(but=()) == {"controlnets": [{"model": "a", "image": image}]}
