"""Command line: ``python -m repro`` brings the results of a profile up to date."""

import argparse
import os
import signal
import sys
from pathlib import Path

from repro.config import PROFILES, REAL, ROOT, VARIANTS, data_root, results_root
from repro.data import files
from repro.pipeline import runner

TASTE = ROOT / "notebooks" / "11_your_own_taste.ipynb"
_REAL = [profile.name for profile in REAL]


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run, and return the exit status."""
    # SIGTERM ends what is under way as Ctrl-C does, a kernel with it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] in (["fetch"], ["recommend"]):
        return {"fetch": fetch, "recommend": recommend}[arguments[0]](arguments[1:])
    what = "Execute the notebooks in order; what is up to date is skipped."
    also = "./run_all.sh test runs the tests; ./run_all.sh fetch gets data."
    parser = argparse.ArgumentParser(prog="run_all.sh", description=what, epilog=also)
    add, part = parser.add_argument, parser.add_mutually_exclusive_group()
    names = f"data and settings: {', '.join(PROFILES)}; with a suffix one of its companions: "
    names += f"+seed1 and so on, +{', +'.join(VARIANTS)} (default: %(default)s)"
    profile, device = (os.environ.get(f"REPRO_{name}") for name in ("PROFILE", "DEVICE"))
    add("--profile", metavar="NAME", default=profile or "demo", help=names)
    part.add_argument("--only", metavar="NN", help="this notebook alone")
    part.add_argument("--from", metavar="NN", dest="first", help="this notebook and those after")
    whole = "also all companions, and the notebooks that read them"
    part.add_argument("--full", action="store_true", help=whole)
    add("--force", action="store_true", help="also what is up to date")
    add("--list", action="store_true", dest="list_only", help="print the plan and stop")
    which = "auto takes a GPU if torch sees one (default: %(default)s)"
    add("--device", choices=("auto", "cpu", "cuda"), default=device or "auto", help=which)
    add("--data", metavar="DIR", help="folder of the raw data (default: data)")
    given = vars(parser.parse_args(arguments))
    if data := given.pop("data"):
        os.environ["REPRO_DATA"] = os.path.abspath(data)
    return runner.main(**given)


def fetch(arguments: list[str]) -> int:
    """Download the files of profiles, or some by name, and return the exit status."""
    what = "Download and check the files that a profile reads; what is there stays."
    parser = argparse.ArgumentParser(prog="run_all.sh fetch", description=what)
    add, names = parser.add_argument, [*_REAL, *files.NAMES]
    add("names", nargs="*", metavar="NAME", help=f"a file, or of {', '.join(_REAL)}")
    add("--data", metavar="DIR", help="folder to put them in (default: data)")
    add("--mirror", metavar="URL", default="", help="a folder that has the files")
    add("--list", action="store_true", help="describe all files and stop")
    given = parser.parse_args(arguments)
    root = Path(given.data).absolute() if given.data else data_root()
    if given.list or not given.names:
        print(*(files.described(files.find(name, root)) for name in files.NAMES), sep="\n")
        return runner.DONE
    if unknown := [name for name in given.names if name not in names]:
        print(f"unknown {unknown[0]!r}: choose of {', '.join(names)}")
        return runner.REFUSED
    wanted, status = [], runner.DONE
    for name in given.names:
        profile = PROFILES.get(name)
        wanted += files.required(profile, root) if profile else [files.find(name, root)]
    for source in dict.fromkeys(wanted):
        about = "there" if source.path.exists() else f"{source.size}, {source.licence}"
        print(f"{source.path.name}: {about}", flush=True)
        try:
            files.fetch(source, mirror=given.mirror)
        except (files.FetchError, OSError) as error:
            print(error)
            status = runner.FAILED
    return status


def recommend(arguments: list[str]) -> int:
    """Print what the last notebook recommends for some names, and return the exit status."""
    import pandas as pd
    from papermill.exceptions import PapermillExecutionError

    what = "What the model recommends to somebody who likes what is named, by the last notebook."
    parser = argparse.ArgumentParser(prog="run_all.sh recommend", description=what)
    add = parser.add_argument
    add("names", nargs="*", metavar="NAME", help="artists or songs; close names are found")
    add("--csv", metavar="FILE", help="more names: the column name of a table")
    add("--profile", metavar="NAME", default="lastfm", help="its results (default: %(default)s)")
    given = parser.parse_args(arguments)
    try:
        table = pd.read_csv(given.csv, usecols=["name"]) if given.csv else {"name": []}
    except (OSError, ValueError) as error:
        print(f"{given.csv}: expected a table with a column name; {error}")
        return runner.FAILED
    try:
        liked = [*given.names, *table["name"]] or None
        runner.execute(TASTE, None, {"profile": given.profile, "liked": liked})
    except (PapermillExecutionError, OSError) as error:
        print(getattr(error, "evalue", error))
        return runner.FAILED
    tables = results_root() / "scratch" / given.profile / TASTE.stem / "tables"
    for name in ("played", "unplayed"):
        print((tables / f"{name}.md").read_text("utf-8"))
    return runner.DONE


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:  # before any work
        sys.exit(runner.INTERRUPTED)
