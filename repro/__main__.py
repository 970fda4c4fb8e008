"""Command line: ``python -m repro`` brings the results of a profile up to date."""

import argparse
import os
import sys

from repro.config import PROFILES, VARIANTS
from repro.data import files
from repro.pipeline import report, runner
from repro.pipeline import run as results


def main(arguments: list[str] | None = None) -> int:
    """Parse the arguments, run, and return the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["fetch"]:
        return fetch_data(arguments[1:])
    parser = argparse.ArgumentParser(
        prog="run_all.sh",
        description="Execute the notebooks in order; what is up to date is skipped.",
        epilog="./run_all.sh test runs the tests; ./run_all.sh fetch gets data.",
    )
    parser.add_argument(
        "--profile",
        metavar="NAME",
        default=os.environ.get("REPRO_PROFILE") or "demo",
        help=f"data and settings: {', '.join(PROFILES)}; with a suffix one of its companions: "
        f"+seed1 and so on, +{', +'.join(VARIANTS)} (default: %(default)s)",
    )
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--only", metavar="NN", help="this notebook alone")
    part.add_argument("--from", metavar="NN", dest="first", help="this notebook and those after")
    part.add_argument(
        "--full", action="store_true", help="also all companions, and the notebooks that read them"
    )
    parser.add_argument("--force", action="store_true", help="also what is up to date")
    parser.add_argument("--list", action="store_true", help="print the plan and stop")
    parser.add_argument(
        "--readme", action="store_true", help="put the results into README.md and stop"
    )
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
    if given.readme:
        return write_readme()
    return runner.run(
        given.profile,
        given.device,
        only=given.only,
        first=given.first,
        full=given.full,
        force=given.force,
        list_only=given.list,
    )


def fetch_data(arguments: list[str]) -> int:
    """Download the files of profiles, or some by name, and return the exit status."""
    from repro.data import prepare, raw

    real = [name for name, profile in PROFILES.items() if profile.source != "world"]
    parser = argparse.ArgumentParser(
        prog="run_all.sh fetch",
        description="Download and check the files that a profile reads; what is there stays.",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"a file, or of {', '.join(real)}")
    parser.add_argument("--data", metavar="DIR", help="folder to put them in (default: data)")
    parser.add_argument("--mirror", metavar="URL", default="", help="a folder that has the files")
    parser.add_argument("--offline", action="store_true", help="only say what is missing")
    parser.add_argument("--list", action="store_true", help="describe all files and stop")
    given = parser.parse_args(arguments)
    if given.data:
        os.environ["REPRO_DATA"] = os.path.abspath(given.data)
    root = results.data_root()
    if given.list or not given.names:
        print(*(files.described(files.find(name, root)) for name in files.names()), sep="\n")
        return runner.DONE
    chosen = {}
    for name in given.names:
        if name in real:
            chosen |= {s.path.name: s for s in files.required(PROFILES[name], root)}
        elif name in files.names():
            chosen[name] = files.find(name, root)
        else:
            print(f"unknown {name!r}: choose of {', '.join([*real, *files.names()])}")
            return runner.REFUSED
    status = runner.DONE
    for name, source in chosen.items():
        there = source.path.exists()
        try:
            if given.offline and not there:
                raise files.FetchError(files.described(source))
            print(f"{name}: {'there' if there else f'{source.size}, {source.licence}'}", flush=True)
            with runner.stoppable():
                files.fetch(source, mirror=given.mirror)
        except (files.FetchError, OSError, ValueError) as error:
            print(error)
            status = runner.FAILED
        except KeyboardInterrupt:
            print(f"\nInterrupted at {name}; the same command goes on")
            return runner.INTERRUPTED
    for name in given.names:
        if name not in real or files.missing(PROFILES[name], root):
            continue
        try:
            print(f"{name}: reading it ...", flush=True)
            print(prepare.check(PROFILES[name], root))
        except (raw.BadInput, OSError) as error:
            print(error)
            status = runner.FAILED
    return status


def write_readme() -> int:
    """Bring the tables in README.md up to date with the results, and return the exit status."""

    def table(profile: str, name: str) -> str:
        return (results.results_root() / profile / "tables" / f"{name}.md").read_text("utf-8")

    path = results.ROOT / "README.md"
    try:
        text = report.readme(path.read_text("utf-8"), table)
    except (OSError, ValueError) as error:
        print(f"README.md stays as it is: {error}")
        return runner.REFUSED
    with results.atomic(path) as file:
        file.write(text.encode())
    return runner.DONE


if __name__ == "__main__":
    try:
        sys.exit(main())
    except BrokenPipeError:  # the reader, such as head, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:  # before any work
        sys.exit(runner.INTERRUPTED)
