"""Execute the notebooks in order, skipping what is up to date, and write the page of results.

A notebook is up to date when code, settings, libraries, data and inputs are those of its record
and its outputs are whole. It runs in a folder apart, which takes its name at the end; after an
interruption the points and checkpoints in it serve the next try, if that has the same key.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from itertools import product, takewhile
from pathlib import Path
from textwrap import indent

from repro.config import ROOT, Profile, data_root, named, results_root
from repro.data import files
from repro.pipeline import run

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
# Errors whose message is written for users: a traceback would only hide it.
USER_ERRORS = {"BadInput", "MissingData", "FileNotFoundError", "ValueError", "OSError"}


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(path: Path):
    return json.loads(path.read_text("utf-8"))


@cache  # all notebooks import much the same
def _parsed(code: str) -> tuple[str, list]:
    """Return what code does, without comments and docstrings, and its imports from the package."""
    nodes = list(ast.walk(tree := ast.parse(code)))
    for node in nodes:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            node.value.value = ""
    froms = [n for n in nodes if isinstance(n, ast.ImportFrom) and n.module.startswith("repro")]
    return ast.dump(tree), [[*n.module.split("."), a.name] for n in froms for a in n.names]


def code_digest(notebook: Path, root: Path = ROOT) -> str:
    """Return a digest of a notebook's code and of all it imports but the settings, however far."""
    cells = [cell for cell in _read(notebook)["cells"] if cell["cell_type"] == "code"]
    code = "\n".join("".join(cell["source"]) for cell in cells)
    parsed = {notebook: _parsed(re.sub(r"^[%!].*$", "", code, flags=re.MULTILINE))}  # no magics
    waiting = [notebook]
    while waiting:
        parts = parsed[waiting.pop()][1]
        paths = [root.joinpath(*part[:end]) for part in parts for end in (1, 2, 3)]
        paths = [p / "__init__.py" if p.is_dir() else p.with_suffix(".py") for p in paths]
        found = {path for path in paths if path.exists()} - {root / "repro/config.py", *parsed}
        parsed |= {path: _parsed(path.read_text("utf-8")) for path in found}
        waiting += found
    return _sha(*(parsed[path][0] for path in sorted(parsed)))


@dataclass(frozen=True)
class Pipeline:
    """The ordered notebooks of one folder under one profile."""

    profile: Profile
    device: str  # as asked for: "cpu", "cuda" or "auto"
    notebooks: Path  # the folder of the NN_*.ipynb
    root: Path  # the folder of all results
    data: str = ""  # digest of the raw data, empty for a synthetic world

    @property
    def folder(self) -> Path:
        return self.root / self.profile.name

    @property
    def all(self) -> list[str]:
        return sorted(path.stem for path in self.notebooks.glob("[0-9][0-9]_*.ipynb"))

    @property
    def full(self) -> list[str]:
        """The notebooks that only ``--full`` runs, or ``--only`` by their number."""
        return [name for name in self.all if run.is_full(self.notebooks / f"{name}.ipynb")]

    @property
    def ordinary(self) -> list[str]:
        """The notebooks that run without being asked for."""
        return sorted({*self.all} - {*self.full})

    @property
    def companions(self) -> list[Pipeline]:
        """The pipelines of the same data whose results full notebooks read."""
        names = (f"{self.profile.name}+{suffix}" for suffix in self.profile.companions)
        return [replace(self, profile=named(name)) for name in names]

    def record(self, notebook: str) -> dict | None:
        """Return what a finished notebook is, on what it was run and what it made."""
        path = self.folder / notebook / run.RECORD
        return _read(path) if path.exists() else None

    def key(self, notebook: str) -> dict[str, str]:
        """Return what decides a notebook's results, one digest per possible cause of change."""
        ordinary, full = self.ordinary, notebook in self.full
        earlier = [(self, name) for name in ordinary if name < notebook]
        if full:  # it may say which companions it reads: "seed" for the seeds
            about = _read(self.notebooks / f"{notebook}.ipynb")["metadata"]["repro"]
            start = f"{self.profile.name}+{about.get('companions', '')}"
            those = [c for c in self.companions if c.profile.name.startswith(start)]
            earlier += product(those, ordinary)
        # Figures and pages are for people; notebooks read artefacts, full ones also tables.
        read = ("artifacts/", "tables/") if full else "artifacts/"
        records = [pipeline.record(name) or {"outputs": {}} for pipeline, name in earlier]
        outputs = [f"{path} {sha}" for record in records for path, sha in record["outputs"].items()]
        return {
            "settings": _sha(self.profile.decisive(), self.device),
            "code": code_digest(self.notebooks / f"{notebook}.ipynb"),
            "libraries": _sha(json.dumps(run.versions())),
            "data": self.data,
            "input": _sha(*(line for line in outputs if line.startswith(read))),
        }

    def stale(self, notebook: str) -> str | None:
        """Return why a notebook has to run, or None if it is up to date."""
        if (record := self.record(notebook)) is None:
            return "new"
        for cause, value in self.key(notebook).items():
            if record["key"][cause] != value:
                return f"{cause} changed"
        for name, sha in record["outputs"].items():
            path = self.folder / notebook / name
            if not path.exists() or files.sha256(path) != sha:
                return f"output {name} is missing or changed"
        return None

    def execute(self, notebook: str, afresh: bool = False) -> dict:
        """Execute a notebook, from where a try with the same key ended; return its record."""
        started, key = time.monotonic(), self.key(notebook)  # before the code is edited meanwhile
        folder, partial = self.folder / notebook, self.folder / f"{notebook}.partial"
        kept = partial / run.KEPT
        if afresh or not (kept / "key.json").exists() or _read(kept / "key.json") != key:
            shutil.rmtree(partial, ignore_errors=True)
            files.write_json(kept / "key.json", key)
        parameters = {"profile": self.profile.name, "device": self.device}
        path = partial / f"{notebook}.ipynb"
        _publish(execute(self.notebooks / path.name, path, parameters), path)
        record = {"seconds": round(time.monotonic() - started, 1), "key": key}
        record |= _read(partial / run.RECORD) | {"outputs": _digests(partial)}
        files.write_json(partial / run.RECORD, record)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
        shutil.rmtree(folder / run.KEPT)
        return record

    def renew_text(self, notebook: str) -> bool:
        """Bring the prose of an up-to-date notebook up to date without executing it."""
        import nbformat

        folder = self.folder / notebook
        done = nbformat.read(folder / f"{notebook}.ipynb", as_version=4)
        executed, done.cells = iter([c for c in done.cells if c.cell_type == "code"]), []
        for cell in nbformat.read(self.notebooks / f"{notebook}.ipynb", as_version=4).cells:
            done.cells.append(next(executed) if cell.cell_type == "code" else cell)
            tags = done.cells[-1].metadata.tags = cell.metadata.get("tags", [])
            if "parameters" in tags:
                done.cells.append(next(executed))  # those that papermill injected
        if not _publish(done, folder / f"{notebook}.ipynb"):
            return False
        files.write_json(folder / run.RECORD, self.record(notebook) | {"outputs": _digests(folder)})
        return True


def _digests(folder: Path) -> dict[str, str]:
    """Return the digest of everything that a notebook made, by its name in the folder."""
    paths = [p for room in ("artifacts", "figures", "tables") for p in (folder / room).glob("*")]
    paths += folder.glob("*.ipynb")
    found = {p.relative_to(folder).as_posix(): p for p in sorted(paths)}
    return {name: files.sha256(p) for name, p in found.items() if name != run.RECORD}


def execute(source: Path, page: Path | None, parameters: dict):
    """Execute a notebook with the interpreter at work; without a ``page`` it is as run by hand."""
    import papermill
    from ipykernel.kernelspec import get_kernel_dict
    from jupyter_client import AsyncKernelManager
    from jupyter_client.kernelspec import KernelSpec
    from nbclient.exceptions import DeadKernelError

    class Kernel(AsyncKernelManager):
        kernel_spec = KernelSpec(**get_kernel_dict())
        transport_encryption = "auto"  # without it a kernel warns on the screen

    how = {"kernel_name": "python3", "language": "python", "kernel_manager_class": Kernel}
    how |= {"cwd": str(source.parent), "start_timeout": 120, "coalesce_streams": True}
    # Shown at once are checks, and bars of what takes long; the page is written at the end.
    how |= {"stdout_file": sys.stdout, "request_save_on_cell_execute": False}
    os.environ |= {"REPRO_KEY": "1"} if page else {}  # the kernel inherits it
    try:
        return papermill.execute_notebook(source, page, parameters, progress_bar=False, **how)
    except DeadKernelError as error:
        why = "its process was ended, as a rule for want of memory"
        raise ChildProcessError(why) from error
    finally:
        os.environ.pop("REPRO_KEY", None)


def _publish(notebook, path: Path) -> bool:
    """Write an executed notebook without what differs in every run; return whether it is new."""
    import nbformat

    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        cell.metadata = {"tags": cell.metadata.get("tags", [])}  # without papermill's times
        if "injected-parameters" in cell.metadata["tags"]:
            cell.id = "injected-parameters"  # else at random
        if cell.cell_type == "markdown":  # links lead from folder to folder
            cell.source = re.sub(r"\]\((\d\d_\w+)\.ipynb", r"](../\1/\1.ipynb", cell.source)
    text = nbformat.writes(notebook) + "\n"
    new = text != path.read_text("utf-8")
    path.write_text(text, "utf-8")
    return new


def choose(pipeline: Pipeline, only: str | None, first: str | None, full: bool) -> list[str]:
    """Return the notebooks that the options select, ``only`` and ``first`` by number or name."""
    names = pipeline.all
    if wanted := only or first:
        found = [i for i, name in enumerate(names) if name.startswith(wanted.zfill(2))]
        if len(found) != 1:
            raise ValueError(f"no notebook {wanted!r}: there are {', '.join(names)}")
        names = names[found[0] :][: 1 if only else None]
    chosen = [name for name in names if only or full or name in pipeline.ordinary]
    if not chosen:
        raise ValueError(f"{', '.join(names)} are for --full, or --only with a number")
    return chosen


def main(
    profile: str = "demo",
    device: str = "auto",
    *,
    only: str | None = None,
    first: str | None = None,
    full: bool = False,
    force: bool = False,
    list_only: bool = False,
    notebooks: Path = ROOT / "notebooks",
) -> int:
    """Bring a profile's results up to date and return the exit status.

    ``only`` runs one notebook, ``first`` one and those after it; ``full`` the ordinary ones, those
    of every companion, then the full ones; ``force`` also what is up to date; ``list_only`` prints
    the plan alone. Status 0: all done; 1: a notebook failed; 2: refused at once; 130: interrupted.
    """
    with ExitStack() as held:
        try:
            settings, base = named(profile), profile.partition("+")[0]
            world = settings.source == "world"  # its first notebook makes the data
            missing = [] if world else files.missing(settings, data_root())
            data = "" if world or missing else files.data_digest(settings, data_root())
            pipeline = Pipeline(settings, device, notebooks, results_root(), data)
            chosen = choose(pipeline, only, first, full)
            work = plan(pipeline, chosen, full, force)
            if missing:
                print("", *map(files.described, missing), sep="\n")
                get = f"./run_all.sh fetch {base} --data {shlex.quote(str(data_root()))}"
                print(f"\nWhat can be downloaded:  {get}")
            if list_only or missing:
                return DONE if list_only else REFUSED
            for earlier in takewhile(chosen[0].__ne__, pipeline.ordinary):
                if pipeline.record(earlier) is None:
                    raise ValueError(f"{earlier} has to run before {chosen[0]}")
                if reason := pipeline.stale(earlier):
                    print(f"Note: {earlier} is not up to date ({reason}); it is used as it is")
            lock = pipeline.root / base / "lock"  # companions share it
            busy = f"another run is at work in {lock.parent}: wait until it has ended, or stop it"
            held.enter_context(files.exclusive_lock(lock, busy))
        except (ValueError, OSError) as error:
            print(f"Cannot start: {error}")
            return REFUSED
        return _run_all(work, force)


def plan(pipeline: Pipeline, chosen: list[str], full: bool, force: bool) -> list:
    """Return, and print, what is to run, and why: pairs of a pipeline and its reasons by notebook.

    A reason is None for what is up to date. The parts stand in the order in which they are to run.
    """
    parts = [(pipeline, chosen)]
    if full:
        parts = [(part, part.ordinary) for part in (pipeline, *pipeline.companions)]
        parts += [(pipeline, pipeline.full)]
    work, ran = [], False
    for part, names in parts:
        print(f"Profile {part.profile.name} ({part.profile.label}), device {part.device}")
        reasons, again = {}, ran and part is pipeline
        for name in names:
            record, reason = part.record(name), "forced" if force else part.stale(name)
            reason = reason or ("an earlier notebook runs again" if again else None)
            reasons[name], again = reason, again or reason is not None
            last = f"  (last time {record['seconds']:.0f} s)" if record else ""
            print(f"  {name:<26} {'runs: ' + reason if reason else 'up to date'}{last}")
        work, ran = [*work, (part, reasons)], ran or again
    return work


def _run_all(work: list, force: bool) -> int:
    from papermill.exceptions import PapermillExecutionError

    from repro.pipeline import report

    title, again = "", "What is finished is kept: the same command goes on."
    try:
        for part, reasons in work:
            for name, reason in reasons.items():
                title = f"{part.profile.name} {name}"
                if not reason and part.renew_text(name):
                    print(f"{title}: text renewed")
                # Asked again: an earlier notebook that ran may have made the very same artefacts.
                if not force and part.stale(name) is None:
                    continue
                print(f"{title} ...", flush=True)
                for file in report.FILES:  # they speak of what is about to change
                    (part.folder / file).unlink(missing_ok=True)
                record = part.execute(name, afresh=force)
                used = f"{record['seconds']:.0f} s, {record['peak_mib']:.0f} MiB"
                print(f"{title} done: {used}, {len(record['checks'])} checks passed")
            headline = report.write(part)
        print(f"\nReport: {part.folder / 'index.html'}\n{headline}")  # of the pipeline's own
        return DONE
    except PapermillExecutionError as error:
        print(f"\nFAILED in cell [{error.exec_count}]: {error.ename}: {error.evalue}")
        if error.ename not in USER_ERRORS:
            trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback))
            print(indent("\n".join(trace.splitlines()[-12:]), "    "))
        print(f"The notebook as far as it came: {part.folder / name}.partial/{name}.ipynb\n{again}")
        return FAILED
    except OSError as error:  # a process that was ended, or a full disk, as a rule
        print(f"\nFAILED: {title}: {error}\n{again}")
        return FAILED
    except KeyboardInterrupt:
        print(f"\nInterrupted in {title}. {again}")
        return INTERRUPTED
