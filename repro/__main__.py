"""Command line: ``python -m repro`` brings the results of a profile up to date."""

import argparse
import os
import sys

from repro import runner
from repro.config import PROFILES


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run, and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Execute the notebooks in order; what is up to date is skipped.",
        epilog="./run_all.sh test runs the tests.",
    )
    parser.add_argument(
        "--profile",
        choices=PROFILES,
        default=os.environ.get("REPRO_PROFILE") or "demo",
        help="data and settings (default: %(default)s)",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--only", metavar="NN", help="this notebook alone")
    part.add_argument("--from", metavar="NN", dest="first", help="this notebook and those after")
    parser.add_argument("--force", action="store_true", help="also what is up to date")
    parser.add_argument("--list", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default=os.environ.get("REPRO_DEVICE") or "auto",
        help="auto takes a GPU if torch sees one (default: %(default)s)",
    )
    parser.add_argument("--data", metavar="DIR", help="folder of the raw data (default: data)")
    given = parser.parse_args(arguments)
    if given.data:
        os.environ["REPRO_DATA"] = os.path.abspath(given.data)
    return runner.run(
        given.profile,
        given.device,
        only=given.only,
        first=given.first,
        force=given.force,
        list_only=given.list,
    )


if __name__ == "__main__":
    sys.exit(main())
