"""The processes that tests start: what a worker in one of them writes to its stdout and stderr, and what it was given.

Every process gets `inside/sitecustomize.py` on its path, which tells of a worker's private things through a file. Its
pipes are passed on to the test unchanged, and heard on the way. A process that imports no entrance of a worker (curl,
a client's script) is nobody's log, and is not heard.

Two kinds of output are answers to whoever sits at the terminal, and may repeat his words: the stdout of `python -m
worker …`, and the line in which RunPod's SDK prints the result of a local run. No keys and no images may be in them
but the key that `keys new` makes.
"""

import functools
import itertools
import json
import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from tests.watch.inside.privacy_entrances import Tell

INSIDE = Path(__file__).with_name("inside")
VARIABLE = "PRIVACY_WATCH"
OFF = "off"
"""What a test sets the variable to for a process that nobody shall listen to, since it is meant to leak."""
_MUCH = 1 << 16
_LOCAL_RESULT = "INFO   | Job result: "


class Children:
    """The processes started since `begin`, with their files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._numbers = itertools.count()
        self._children: list[_Child] = []
        self.workers = 0

    def begin(self) -> None:
        """Listen to every process that is started from now on."""
        start = subprocess.Popen.__init__

        @functools.wraps(start)
        def started(popen: Any, args: Any, *rest: Any, **named: Any) -> None:
            environment = dict(os.environ if named.get("env") is None else named["env"])
            if environment.get(VARIABLE) == OFF:
                del environment[VARIABLE]
                start(popen, args, *rest, **named | {"env": environment})
                return
            marks = self._folder / f"{next(self._numbers)}.jsonl"
            path = [str(INSIDE), *filter(None, [environment.get("PYTHONPATH")])]
            environment |= {VARIABLE: str(marks), "PYTHONPATH": os.pathsep.join(path)}
            start(popen, args, *rest, **named | {"env": environment})
            self._children.append(_Child(popen, args, marks))

        subprocess.Popen.__init__ = started  # type: ignore[method-assign]

    def drain(self, tell: Tell) -> Iterator[tuple[str, str, bool]]:
        """Tell what workers were given since the last time; yields where, what they wrote, and if it is an answer."""
        going = []
        for child in self._children:
            over = child.over  # asked first: what is written meanwhile is for the next time
            written = [*child.written()]
            for kind, texts in child.given():
                tell(kind, texts)
            if child.is_worker:
                self.workers += not child.counted
                child.counted = True
                yield from ((child.name, text, is_answer) for text, is_answer in written if text)
            if not over:
                going.append(child)
        self._children[:] = going


class _Child:
    def __init__(self, popen: "subprocess.Popen[Any]", args: Any, marks: Path) -> None:
        words = [args] if isinstance(args, str | bytes | os.PathLike) else [*args]
        self.name = " ".join(Path(os.fsdecode(word)).name[:40] for word in words[:4])
        self.counted = False
        self._popen, self._marks, self._read = popen, marks, 0
        is_command = words[1:3] == ["-m", "worker"] and words[3:4] != ["serve"]
        stdout = None if is_command and words[3:5] == ["keys", "new"] else popen.stdout
        streams = ((stdout, is_command), (popen.stderr, False))
        self._pipes = [_Heard(stream, is_answer) for stream, is_answer in streams if stream is not None]

    @property
    def is_worker(self) -> bool:
        return self._marks.exists()

    @property
    def over(self) -> bool:
        return self._popen.returncode is not None and all(pipe.over for pipe in self._pipes)

    def written(self) -> Iterator[tuple[str, bool]]:
        """What was written since the last time. Kept until the process is seen to be a worker, or is over."""
        for pipe in self._pipes if self.is_worker or self.over else ():
            lines = pipe.take().splitlines()
            results = [line for line in lines if line.startswith(_LOCAL_RESULT)]
            yield "\n".join(results), True
            yield "\n".join(line for line in lines if line not in results), pipe.is_answer

    def given(self) -> Iterator[tuple[str, list[str]]]:
        """What a worker told since the last time."""
        if not self.is_worker:
            return
        with self._marks.open("rb") as file:
            file.seek(self._read)
            for line in file:
                if not line.endswith(b"\n"):  # half of it is not written yet
                    return
                self._read += len(line)
                kind, texts = json.loads(line)
                yield kind, texts


class _Heard:
    """Stands in the pipe between a process and the test that reads from it."""

    def __init__(self, stream: IO[Any], is_answer: bool) -> None:
        self.is_answer = is_answer
        self._data = bytearray()
        self._taken = threading.Lock()
        source = os.dup(stream.fileno())
        reader, self._writer = os.pipe()
        os.dup2(reader, stream.fileno(), inheritable=False)
        os.close(reader)
        self._thread = threading.Thread(target=self._pass_on, args=(source,), name="privacy-watch", daemon=True)
        self._thread.start()

    @property
    def over(self) -> bool:
        return not self._thread.is_alive()

    def take(self) -> str:
        """The whole lines heard since the last time."""
        with self._taken:
            end = len(self._data) if self.over else self._data.rfind(b"\n") + 1
            found = bytes(self._data[:end])
            del self._data[:end]
        return found.decode("utf-8", "replace")

    def _pass_on(self, source: int) -> None:
        try:
            while chunk := os.read(source, _MUCH):
                with self._taken:
                    self._data += chunk
                while chunk:
                    chunk = chunk[os.write(self._writer, chunk) :]
        except OSError:  # the test reads no more: so does the process learn
            pass
        finally:
            os.close(source)
            os.close(self._writer)
