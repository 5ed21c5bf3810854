"""A watch over the whole test run: a test during which a prompt, a key or an image is written down turns red.

It learns what is private where it comes into a worker (`inside/privacy_entrances.py`), in the tests' own processes and
in the workers that tests start, and looks for it in

* every log record of every logger, at the levels of a worker in production, as both of its formatters write it;
* what is printed to stdout and stderr, here and by workers in processes of their own, and Python's warnings;
* every file that was written below a worker's volume and outputs folders;
* its metrics, and the records that its traces are made of.

Not looked at, each for a reason:

* the words of an earlier module's tests: a text that one test sends another may write (which tests share a process is
  chance), so words are known until their module ends, after a look at all that its tests wrote; keys and images for
  good;
* words that stand in the worker's own source, but for its examples' prompts (`known.py`);
* weights below a volume (`_WEIGHTS`): they are bytes of a download, verified by digest;
* the words of a job in its own images, if it asked for `output.metadata`: that is what it asked for;
* the words of whoever sits at a terminal, in the answer to his own command (`children.py`);
* loggers of the tests' own servers (`_NOT_A_WORKERS`).
"""

import copy
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.watch.children import Children
from tests.watch.inside import privacy_entrances as entrances
from tests.watch.known import Known, Leak

_WEIGHTS = frozenset((".safetensors", ".bin", ".gguf", ".ckpt", ".pt", ".pth", ".part"))
_WEIGHT_FOLDERS = frozenset(("blobs",))
_IMAGES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".gif", ".mp4"))
_MUCH = 1 << 20  # of one file
_NOT_A_WORKERS = ("aiohttp.",)
_WORDS = (entrances.WORDS, entrances.SHOWN_WORDS)
NAME = "privacy watch"


def begin(config: pytest.Config) -> None:
    """Have this run watched from now on."""
    watch = Watch()
    # xdist's first process runs no tests, and speaks with the others through their pipes.
    if hasattr(config, "workerinput") or getattr(config.option, "dist", "no") == "no":
        watch.listen()
    config.pluginmanager.register(watch, NAME)


class Watch:
    """The plugin. One in each process that runs tests; with xdist the first process gathers what came late."""

    def __init__(self) -> None:
        self._known = Known()
        self._heard: list[tuple[str, str, bool]] = []  # where, what, if it is an answer; appended to by any thread
        self._folders: dict[Path, dict[Path, tuple[int, int]]] = {}
        self._marks = Path(tempfile.mkdtemp(prefix="privacy-watch-"))
        self._children = Children(self._marks)
        self._late: list[str] = []
        self._counts = {"lines": 0, "files": 0}
        self._seconds = 0.0
        self._module: Path | None = None  # of the test under way
        self._of_earlier: set[Path] = set()  # folders that tests of earlier modules wrote to

    def listen(self) -> None:
        """Hear this process from now on."""
        entrances.listen(self._tell)
        self._children.begin()
        self._hear_logs()
        self._hear_captures()

    def _tell(self, kind: str, texts: list[str]) -> None:
        for text in texts:
            if kind == entrances.FOLDER:
                self._folders.setdefault(Path(text), {})
                self._of_earlier.discard(Path(text))  # written to again
            elif kind == entrances.SAID:
                self._hear("metrics and traces", text)
            else:
                self._known.add(kind, text)

    def _hear(self, where: str, text: str) -> None:
        self._heard.append((where, text, False))

    # --- listening ---------------------------------------------------------------------------------------------------

    def _hear_logs(self) -> None:
        call_handlers = logging.Logger.callHandlers
        formatted: list[Callable[[logging.LogRecord], str]] = []

        def heard(logger: logging.Logger, record: logging.LogRecord) -> None:
            call_handlers(logger, record)
            if record.name.startswith(_NOT_A_WORKERS):
                return
            began = time.thread_time()
            formatted.extend(_formatters() if not formatted else ())
            own = copy.copy(record)
            for written in formatted:
                try:
                    self._hear(f"log of {record.name}", written(own))
                except (TypeError, ValueError):  # logging prints such a record to stderr, as it is
                    self._hear(f"log of {record.name}", f"{record.msg} {record.args}")
            self._seconds += time.thread_time() - began

        logging.Logger.callHandlers = heard  # type: ignore[method-assign]

    def _hear_captures(self) -> None:
        read = pytest.CaptureFixture.readouterr

        def heard(fixture: Any) -> Any:
            found = read(fixture)
            for name, said in zip(("stdout", "stderr"), found, strict=True):
                if isinstance(said, bytes):
                    said = said.decode("utf-8", "replace")
                self._hear(name, said)
            return found

        pytest.CaptureFixture.readouterr = heard  # type: ignore[method-assign]

    def pytest_configure(self) -> None:
        """Have loggers write what they write in production."""
        from worker.app.logs import QUIET

        logging.getLogger().setLevel(logging.INFO)
        for name in QUIET:
            logging.getLogger(name).setLevel(logging.ERROR)

    def pytest_warning_recorded(self, warning_message: Any, nodeid: str) -> None:
        """Hear a warning, which a worker prints to stderr."""
        self._hear(f"warning of {nodeid}", str(warning_message.message))

    # --- looking -----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Look, once a test's fixtures are gone; what leaked makes an error of its teardown."""
        report = yield
        if call.when == "teardown":
            for name, text in report.sections:
                if "stdout" in name or "stderr" in name:
                    self._hear(name, text)
            tmp_path = getattr(item, "funcargs", {}).get("tmp_path")
            found = self._look(lambda folder: tmp_path is not None and folder.is_relative_to(tmp_path))
            if found and not report.failed:
                report.outcome = "failed"
                report.longrepr = f"{NAME}: this was written down\n" + "\n".join(found)
        return report

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Look at all that the tests of the module before this one wrote, and forget their words."""
        if self._module is not None and self._module != item.path:
            found = self._look(lambda folder: folder not in self._of_earlier)
            self._late += [f"{leak} (by {self._module.name})" for leak in found]
            self._of_earlier.update(self._folders)
            self._known.forget_words()
        self._module = item.path

    def _look(self, is_current: Callable[[Path], bool]) -> list[str]:
        """What leaked since the last time, without telling it. Of the files only those of current folders."""
        began = time.thread_time()
        written = [*self._children.drain(self._tell)]
        heard, self._heard = self._heard, []
        found: dict[str, None] = {}
        for where, text, is_answer in dict.fromkeys([*written, *heard]):
            self._counts["lines"] += text.count("\n") + 1
            leaks = (leak for leak in self._known.leaks(text) if not (is_answer and leak.kind in _WORDS))
            found.update((f"{where}: {leak}", None) for leak in leaks)
        for folder, seen in [*self._folders.items()]:
            if is_current(folder):
                for path in self._changed(folder, seen):
                    self._counts["files"] += 1
                    found.update((f"file {path.relative_to(folder)}: {leak}", None) for leak in self._leaks_in(path))
        self._seconds += time.thread_time() - began
        return [*found]

    def _changed(self, folder: Path, seen: dict[Path, tuple[int, int]]) -> Iterator[Path]:
        for place, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if name not in _WEIGHT_FOLDERS]
            for path in (Path(place, name) for name in names):
                if path.suffix in _WEIGHTS or path.is_symlink():
                    continue
                try:
                    state = path.stat()
                except OSError:  # gone meanwhile
                    continue
                if seen.get(path) != (state.st_mtime_ns, state.st_size):
                    seen[path] = (state.st_mtime_ns, state.st_size)
                    yield path

    def _leaks_in(self, path: Path) -> Iterator[Leak]:
        try:
            with path.open("rb") as file:
                data = file.read(_MUCH)
        except OSError:
            return
        found = self._known.leaks(data.decode("utf-8", "replace"))
        if path.suffix in _IMAGES:  # EXIF writes two bytes a character
            found += self._known.leaks(data.replace(b"\0", b"").decode("utf-8", "replace"))
            found = [leak for leak in found if leak.kind != entrances.SHOWN_WORDS]
        yield from found

    # --- the end -----------------------------------------------------------------------------------------------------

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Look a last time, everywhere: threads and processes may have written after their test."""
        self._late += self._look(lambda folder: True)
        report = {
            "leaks": self._late,
            "said": f"{self._counts['lines']} lines and {self._counts['files']} files of {self._children.workers} "
            f"worker processes and this one, {len(self._known)} private texts, {self._seconds:.1f} s",
        }
        if (output := getattr(session.config, "workeroutput", None)) is not None:
            output[NAME] = report
        elif self._late:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        shutil.rmtree(self._marks, ignore_errors=True)

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what another process found after its last test."""
        report = getattr(node, "workeroutput", {}).get(NAME, {"leaks": [], "said": "nothing: it died"})
        self._late += report["leaks"]
        self._said = [*getattr(self, "_said", ()), f"{node.gateway.id} heard {report['said']}"]

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Say what was heard, and what leaked after the last test."""
        for line in getattr(self, "_said", ()):
            terminalreporter.write_line(f"{NAME}: {line}")
        for leak in self._late:
            terminalreporter.write_line(f"{NAME}: written down between or after tests: {leak}", red=True)


def _formatters() -> list[Callable[[logging.LogRecord], str]]:
    """Both ways in which a worker writes a record. Only once there is one: the module knows what is private."""
    from worker.app.logs import TEXT, JsonFormatter, TextFormatter
    from worker.service.usage.request_id import RequestIdFilter

    add_id = RequestIdFilter()
    text, lines = TextFormatter(TEXT), JsonFormatter()

    def as_text(record: logging.LogRecord) -> str:
        add_id.filter(record)
        return text.format(record)

    def as_json(record: logging.LogRecord) -> str:
        add_id.filter(record)
        return lines.format(record)

    return [as_json, as_text]
