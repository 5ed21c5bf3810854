"""What a command shows while it works, and the words in which it refuses."""

import io
import sys
import time

import pytest

from tests.waiting import until
from worker.app.cli.terminal import Terminal
from worker.app.cli.words import spoken
from worker.core.result import Progress


class Screen(io.StringIO):
    """A terminal that remembers all that was written to it."""

    encoding = "utf-8"

    def isatty(self):
        return True


def screen_of(monkeypatch):
    """Called in a test's body: pytest has its own stderr for the fixtures before."""
    screen = Screen()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "60")
    return screen


def wait_for(screen, text):
    until(lambda: text in screen.getvalue(), screen.getvalue)


def test_the_line_is_there_before_there_is_progress_and_leaves_nothing_behind(monkeypatch, capsys):
    screen = screen_of(monkeypatch)
    with Terminal("x") as terminal:
        wait_for(screen, "starting")
        terminal.show(Progress("inference", 2, 4, "demo"))
        wait_for(screen, "drawing demo [==========          ] 2/4")
        terminal.print("a.png")
        written = screen.getvalue()
        terminal.show(Progress("inference", 3, 4, "demo"))
        time.sleep(0.25)  # longer than a frame
    assert screen.getvalue() == written
    assert written.endswith("\r\x1b[K")
    assert capsys.readouterr().out == "a.png\n"


def test_downloads_are_added_up_and_a_line_is_never_wider_than_the_screen(monkeypatch):
    screen = screen_of(monkeypatch)
    with Terminal("x") as terminal:
        for name, done in (("one.safetensors", 3), ("two.safetensors", 4)):
            terminal.show(Progress("download", done << 20, 1000 << 20, name))
        wait_for(screen, "downloading two.safetensors [")
        terminal.show(Progress("load", 0, 0, "a-very-long-name-" * 9))
        wait_for(screen, "loading a-very")
    lines = screen.getvalue().split("\r\x1b[K")
    assert max(map(len, lines)) < 60
    with Terminal("x") as terminal:
        terminal.show(Progress("download", 3 << 20, 1000 << 20, "a"))
        terminal.show(Progress("download", 4 << 20, 500 << 20, "b"))
        wait_for(screen, "] 7/1,500 MiB")


@pytest.mark.parametrize("quiet", [True, False])
def test_neither_a_pipe_nor_quiet_has_a_line(monkeypatch, quiet):
    stream = Screen() if quiet else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with Terminal("x", quiet=quiet) as terminal:
        terminal.show(Progress("inference", 2, 4, "demo"))
        time.sleep(0.25)  # longer than a frame
        terminal.warn("something")
        terminal.fail("all")
    assert stream.getvalue() == ("error: all\n" if quiet else "warning: something\nerror: all\n")


def test_what_others_wrote_cannot_command_the_terminal(capsys):
    Terminal("x").print("a\x1b[2Jb\x07\tc\u00a0ü")
    assert capsys.readouterr().out == "a?[2Jb?\tc\u00a0ü\n"


@pytest.mark.parametrize(
    ("text", "typed", "said"),
    [
        ("num_inference_steps must be 1; 0 was sent.", {}, "--steps must be 1; 0 was given."),
        ("num_inference_steps must be 1.", {"num_inference_steps": "steps"}, "steps must be 1."),
        ("loras[0]: x does not fit.", {}, "--lora: x does not fit."),
        ("loras[2].weight must be 1.", {}, "--lora (number 3).weight must be 1."),
        ("image is required for inpainting; send it as base64, data: URI or https URL.", {},
         "--image is required for inpainting; name a file or an https URL."),
        ("The image is not a mask_image.", {}, "The image is not a --mask."),
        ("output.format gif is not made.", {"output.format": "--output"}, "--output gif is not made."),
        ('x is none; {"action": "models"} lists those there are.', {}, "x is none; `me models` lists those there are."),
        ("The Hub is slow; send the job again in a minute.", {}, "The Hub is slow; try again in a minute."),
        ("Use safetensors, or let the operator set ALLOW_PICKLES.", {}, "Use safetensors, or set ALLOW_PICKLES."),
        ("leave it out; the operator sets HF_TOKEN instead.", {}, "leave it out; set HF_TOKEN instead."),
        ("image_guidance_scale must be 1.", {}, "image_guidance_scale must be 1."),
        ("guidance_scale and strength mean it.", {"guidance_scale": "cfg_scale"}, "cfg_scale and strength mean it."),
    ],
)  # fmt: skip
def test_a_refusal_names_what_was_typed(text, typed, said):
    assert spoken(text, typed, "me") == said
