"""A worker's process whose engine draws its first image and never ends the second. Run as a script."""

import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fakes.engine import FakeEngine
from worker.app import build, start
from worker.service.local import watchdog


class Silent(FakeEngine):
    """Hangs in its second run as a kernel that never returns does: nothing can end its thread."""

    def run(self, batch, emit):
        """Draw the first batch; hang in any other."""
        if self.ran:
            threading.Event().wait()
        return super().run(batch, emit)


if __name__ == "__main__":
    watchdog.GRACE_S = 2.0
    build._diffusers_engine = lambda *_: Silent()
    start.run()
