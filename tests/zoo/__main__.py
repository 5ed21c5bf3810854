"""`python -m tests.zoo plain | worker`: run the whole zoo and say what runs; --only X, --report FILE."""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.zoo import RECIPES
from tests.zoo.plain import Outcome, quiet, run_plain
from tests.zoo.recipe import Recipe
from tests.zoo.served import ServedZoo

Run = Callable[[Recipe, Path], Outcome]


def main() -> int:
    """Run what the arguments ask for; the exit status is 1 when something failed that should run."""
    parser = argparse.ArgumentParser(prog="python -m tests.zoo", description=__doc__)
    parser.add_argument("by", choices=("plain", "worker"), help="plain diffusers alone, or the worker beside it")
    parser.add_argument("--only", action="append", metavar="TEXT", help="only classes whose name holds TEXT")
    parser.add_argument("--report", type=Path, help="JSON of all outcomes; what it holds already is not run again")
    parser.add_argument("--keep", type=Path, help="save the repositories below this folder and leave them there")
    options = parser.parse_args()
    logging.getLogger("worker").setLevel(logging.CRITICAL)
    quiet()
    chosen = [r for r in RECIPES if not options.only or any(text in r.pipeline for text in options.only)]
    known = _read(options.report)
    with tempfile.TemporaryDirectory(prefix="zoo-") as scratch:
        root = (options.keep or Path(scratch)).resolve()
        plain = _each(chosen, "plain", run_plain, known, root, options)
        if options.by == "plain":
            return _tell_plain(chosen, plain)
        served = ServedZoo(root)
        return _tell_worker(plain, _each(chosen, "worker", served.run, known, root, options))


def _each(
    chosen: list[Recipe],
    by: str,
    run: Run,
    known: dict[str, dict[str, dict]],
    root: Path,
    options: argparse.Namespace,
) -> list[Outcome]:
    outcomes = []
    for number, recipe in enumerate(chosen, 1):
        done = known.setdefault(by, {})
        if recipe.pipeline not in done:
            done[recipe.pipeline] = run(recipe, root / recipe.pipeline).as_json()
            if options.report:
                options.report.write_text(json.dumps(known, indent=1))
        outcome = Outcome(**done[recipe.pipeline])
        verdict = "ran   " if outcome.ran else "FAILED"
        notes = " flat" if outcome.flat else ""
        text = f"{'x'.join(map(str, outcome.shape))}{notes}" if outcome.ran else f"{outcome.stage}: {outcome.error}"
        head = f"{by} {number:3}/{len(chosen)} {verdict} {outcome.seconds:6.2f} s {outcome.megabytes:5.2f} MB"
        print(f"{head} {recipe.pipeline:52} {text}", flush=True)
        outcomes.append(outcome)
    return outcomes


def _tell_plain(chosen: list[Recipe], outcomes: list[Outcome]) -> int:
    ran = [outcome for outcome in outcomes if outcome.ran]
    print(f"\nplain diffusers runs {len(ran)} of {len(outcomes)} in {sum(o.seconds for o in outcomes):.0f} s")
    wrong = 0
    for recipe, outcome in zip(chosen, outcomes, strict=True):
        reason = recipe.broken or (f"needs {', '.join(outcome.missing)}" if outcome.missing else None)
        if reason and not outcome.ran:
            print(f"  does not run, as known: {recipe.pipeline}: {reason}")
        elif reason or not outcome.ran:
            wrong += 1
            print(f"  UNEXPECTED: {recipe.pipeline}: {outcome.error or f'runs, though: {reason}'}")
    return int(wrong > 0)


def _tell_worker(plain: list[Outcome], served: list[Outcome]) -> int:
    both = [(p, s) for p, s in zip(plain, served, strict=True) if p.ran]
    runs = sum(s.ran for _, s in both)
    print(f"\nthe worker runs {runs} of {len(both)} that plain diffusers runs ({100 * runs / max(len(both), 1):.1f} %)")
    for _, outcome in both:
        if not outcome.ran:
            print(f"  {outcome.pipeline}: {outcome.error}")
    return int(runs < 0.95 * len(both))


def _read(report: Path | None) -> dict[str, dict[str, dict]]:
    return json.loads(report.read_text()) if report and report.exists() else {}


if __name__ == "__main__":
    sys.exit(main())
