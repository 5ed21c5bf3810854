"""`python -m worker`, and `imgworker`, which is the same installed as a command."""

import sys
from pathlib import Path


def main() -> None:
    """Run the command that the command line names."""
    from worker.app.cli.commands import app

    app(prog_name="imgworker" if Path(sys.argv[0]).name == "imgworker" else "python -m worker")


if __name__ == "__main__":
    main()
