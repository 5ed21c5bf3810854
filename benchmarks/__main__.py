"""`python -m benchmarks [name …]`: measure, print a table, and write benchmarks/results/<date>.json with --save."""

import argparse
import json
import platform
import sys
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.figures import Figure
from benchmarks.measures import MEASURES


def main() -> int:
    """Run the chosen measures, all by default."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", help=f"from {', '.join(MEASURES)}")
    parser.add_argument("--save", action="store_true", help="write the figures as JSON")
    given = parser.parse_args()
    unknown = set(given.names) - MEASURES.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(MEASURES)}")
    figures: list[Figure] = []
    console = Console()
    for name in given.names or MEASURES:
        # Each in a process of its own: what one leaves in memory slows the next one down.
        with console.status(name), ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
            figures += fresh.submit(MEASURES[name]).result()
    table = Table("measure", "figure", "unit", "median of", "promised", "stretch")
    for figure in figures:
        row = (figure.name, f"{figure.value:.4g}", figure.unit, str(figure.runs), figure.promise)
        table.add_row(*row, "" if figure.stretch is None else f"{figure.stretch:g}")
    console.print(table)
    if given.save:
        folder = Path(__file__).parent / "results"
        folder.mkdir(exist_ok=True)
        path = folder / f"{datetime.now(UTC):%Y-%m-%d}.json"
        machine = {"python": platform.python_version(), "processor": platform.machine()}
        path.write_text(json.dumps({"machine": machine, "figures": [vars(figure) for figure in figures]}, indent=1))
        console.print(f"saved {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
