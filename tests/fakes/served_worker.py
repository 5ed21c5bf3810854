"""A worker's process with an engine that pretends, otherwise as an operator starts it. Run as a script.

It does what it is told on its standard input, and answers each line with one of JSON: `turns` measures the turns of
its event loop, `told` says what they came to; `hold` keeps its engine from ending a job, and `go` lets it go on.
"""

import asyncio
import json
import sys
import threading
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import uvicorn

from tests.fakes.engine import FakeEngine
from tests.faults.turns import Turns
from worker.app import build, start
from worker.transport.web.connections import Connections


class Engine(FakeEngine):
    """Forgets what it ran: a thousand jobs would be its own memory, not the worker's."""

    def run(self, batch, emit):
        """Draw, and forget."""
        report = super().run(batch, emit)
        self.ran.clear()
        self.calls.clear()
        return report


class Server(uvicorn.Server):
    """A server whose loop can be measured."""

    async def startup(self, *args: Any, **options: Any) -> None:
        """Listen to what is said, once it serves."""
        await super().startup(*args, **options)
        turns = Turns(asyncio.get_running_loop(), lambda: MET[0])
        threading.Thread(target=hear, args=(turns,), daemon=True).start()
        print("serving", flush=True)


ENGINE = Engine()
MET = [0]


def hear(turns: Turns) -> None:
    """Do what the lines of standard input say."""
    does = {"turns": turns.begin, "told": turns.end, "hold": ENGINE.gate.clear, "go": ENGINE.gate.set}
    for line in sys.stdin:
        print(json.dumps(does[line.strip()]()), flush=True)


def count(enter: Any) -> Any:
    """Return `Connections.enter` that counts."""

    def counted(*args: Any) -> Any:
        MET[0] += 1
        return enter(*args)

    return counted


if __name__ == "__main__":
    Connections.enter = count(Connections.enter)
    uvicorn.Server = Server
    build._diffusers_engine = lambda *_: ENGINE
    start.run()
