"""`python -m worker`."""

from worker.cli import app

if __name__ == "__main__":
    app(prog_name="python -m worker")
