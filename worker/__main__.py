"""`python -m worker`, and `imgworker`, which is the same installed as a command."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command that the command line names, and end the process with its status."""
    from worker.app.interrupt import end_quietly_on_interrupt

    end_quietly_on_interrupt()
    from worker.core import moments

    moments.note("interpreter")
    from worker.app.cli.commands import main as run

    sys.exit(run(sys.argv[1:], "imgworker" if Path(sys.argv[0]).name == "imgworker" else "python -m worker"))


if __name__ == "__main__":
    main()
