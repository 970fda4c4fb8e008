"""``python -m benchmarks [NAMES...]``: measure, print, and write under ``results/benchmarks``."""

from __future__ import annotations

import argparse
import tempfile
from importlib import import_module
from pathlib import Path

from . import ALL, harness


def main() -> None:
    """Run the benchmarks that the command line names, all by default."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAMES", help=f"of {', '.join(ALL)}")
    parser.add_argument("--small", action="store_true", help="check on tiny shapes, time nothing")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--fraction", type=float, help="of DEN, for a rehearsal")
    parser.add_argument("--out", type=Path, default=Path("results/benchmarks"))
    given = parser.parse_args()
    if unknown := set(given.names) - set(ALL):
        parser.error(f"no such benchmark: {', '.join(sorted(unknown))}")
    with tempfile.TemporaryDirectory(prefix="benchmarks-") as scratch:
        scratch = Path(scratch)
        out = scratch / "results" if given.small else given.out  # what is not timed is not kept
        rounds = 1 if given.small else given.rounds
        options = harness.Options(rounds, given.small, given.fraction, out, scratch)
        for name in [name for name in ALL if name in given.names or not given.names]:
            module = import_module(f"benchmarks.{name}")
            title = module.__doc__.splitlines()[0].rstrip(".")
            report = harness.Report(
                name, title, conditions=harness.conditions() | {"rounds": rounds}
            )
            harness.say(f"{name}: {title}")
            if given.small:
                module.run(options, report)
            else:
                report.conditions["before"] = harness.state()
                module.run(options, report)
                report.conditions["after"] = harness.state()
            report.save(out)
            for rows in report.tables.values():
                if not given.small and len(rows) <= 60:
                    harness.say("\n" + harness.markdown(rows) + "\n")
    if given.small:
        harness.say("all agree")


if __name__ == "__main__":
    main()
