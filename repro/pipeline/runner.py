"""Execute the notebooks in order, skipping what is up to date, and write the page of results.

A notebook is up to date when its stamp says so: the same code, settings, libraries, data and
inputs as now, and every output still there with the digest it had. Dates decide nothing. A stamp is
written last of all, so that whatever an interruption leaves behind counts as not done.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shlex
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

from repro.config import Profile, named
from repro.data import files
from repro.pipeline import run as results

DONE, FAILED, REFUSED, INTERRUPTED = 0, 1, 2, 130
CAUSES = {
    "settings": "settings changed",
    "code": "code changed",
    "libraries": "libraries changed",
    "data": "data changed",
    "inputs": "input changed",
}
# Errors whose message is written for users: a traceback would only hide it.
TELLING = {"BadInput", "MissingData", "FileNotFoundError", "ValueError", "OSError"}
TELLING |= {"PermissionError", "IsADirectoryError", "NotADirectoryError"}
_BETWEEN = 60  # seconds between two lines of progress in a log


class Refused(Exception):
    """What was asked for cannot be started; the message says why."""


def _sha(*parts: str) -> str:
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _read(path: Path):
    return json.loads(path.read_text("utf-8"))


def _code_cells(notebook: Path) -> list[dict]:
    return [cell for cell in _read(notebook)["cells"] if cell["cell_type"] == "code"]


def _source(cell: dict) -> str:
    source = "".join(cell["source"])
    return re.sub(r"^[%!].*$", "", source, flags=re.MULTILINE)  # magics are not Python


def _imports(source: str) -> set[str]:
    """Return the dotted names of the package's own modules that a Python source imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = ".".join(filter(None, ["repro" if node.level else "", node.module]))
            names += [f"{origin}.{alias.name}" for alias in node.names]
    return {name for name in names if name.startswith("repro.")}


def code_digest(notebook: Path) -> str:
    """Return a digest of a notebook's code cells and of every module they import, however far.

    ``config`` is left out: its values count as settings, each profile's for itself.
    """
    source = "\n".join(_source(cell) for cell in _code_cells(notebook))
    sources, waiting = {}, {"repro.__init__"} | _imports(source)
    while waiting:
        name = waiting.pop()
        path = results.ROOT.joinpath(*name.split(".")).with_suffix(".py")
        if name in sources or name == "repro.config":
            continue
        if not path.exists():  # a function of a module, perhaps
            waiting |= {parent} if (parent := name.rpartition(".")[0]) != "repro" else set()
            continue
        sources[name] = path.read_text("utf-8")
        waiting |= _imports(sources[name])
    return _sha(source, *(sources[name] for name in sorted(sources)))


def _missing_data(profile: Profile) -> list:
    if profile.source == "world":  # its first notebook makes the data
        return []
    return files.missing(profile, results.data_root())


def _data_digest(profile: Profile) -> str:
    if profile.source == "world":
        return ""
    root = results.data_root()
    return files.data_digest(profile, root)


@dataclass(frozen=True)
class Pipeline:
    """The ordered notebooks of one folder under one profile.

    Parameters
    ----------
    profile : Profile
    device : str
        As asked for: ``"cpu"``, ``"cuda"`` or ``"auto"``.
    notebooks : Path
        Folder of the ``NN_*.ipynb``.
    root : Path
        Folder of all results; this pipeline's are in ``root / profile.name``.
    data : str
        Digest of the raw data, empty for a synthetic world.
    """

    profile: Profile
    device: str
    notebooks: Path
    root: Path
    data: str = ""

    @property
    def folder(self) -> Path:
        return self.root / self.profile.name

    @property
    def ordinary(self) -> list[str]:
        """The notebooks that run without being asked for."""
        return [step for step in self._steps if not results.is_full(self.source(step))]

    @property
    def full(self) -> list[str]:
        """The notebooks that only ``--full`` runs, or ``--only`` by their number."""
        return [step for step in self._steps if results.is_full(self.source(step))]

    @property
    def steps(self) -> list[str]:
        """All notebooks in the order in which they run."""
        return self.ordinary + self.full

    @property
    def companions(self) -> list[Pipeline]:
        """The pipelines of the same data whose results full notebooks read."""
        names = [f"{self.profile.name}+{suffix}" for suffix in self.profile.companions]
        return [replace(self, profile=named(name)) for name in names]

    @property
    def _steps(self) -> list[str]:
        return sorted(path.stem for path in self.notebooks.glob("[0-9][0-9]_*.ipynb"))

    def source(self, step: str) -> Path:
        return self.notebooks / f"{step}.ipynb"

    def stamp_path(self, step: str) -> Path:
        return self.folder / "artifacts" / "stamps" / f"{step}.json"

    def stamp(self, step: str) -> dict | None:
        path = self.stamp_path(step)
        return _read(path) if path.exists() else None

    def key(self, step: str) -> dict[str, str]:
        """Return what decides a notebook's results, one digest a possible cause of change."""
        read = [(self, earlier) for earlier in self.steps[: self.steps.index(step)]]
        if step in self.full:
            read += [(other, theirs) for other in self.companions for theirs in other.ordinary]
        inputs = []
        for pipeline, earlier in read:
            outputs = (pipeline.stamp(earlier) or {"outputs": {}})["outputs"]
            inputs += [f"{path} {sha}" for path, sha in sorted(outputs.items())]
        return {
            "settings": _sha(repr(self.profile), *self.profile.derived(), self.device),
            "code": code_digest(self.source(step)),
            "libraries": _sha(json.dumps(results.versions())),
            "data": self.data,
            # Figures and pages are for people; only artefacts are read by later notebooks.
            "inputs": _sha(*(line for line in inputs if line.startswith("artifacts/"))),
        }

    def stale(self, step: str) -> str | None:
        """Return why a notebook has to run, or None if it is up to date."""
        stamp = self.stamp(step)
        if stamp is None:
            return "new"
        key = self.key(step)
        for cause, text in CAUSES.items():
            if stamp["key"][cause] != key[cause]:
                return text
        for name, sha in stamp["outputs"].items():
            path = self.folder / name
            if not path.exists() or results.digest(path) != sha:
                return f"output {name} is missing or changed"
        return None

    def plan(
        self, chosen: list[str], force: bool = False, again: bool = False
    ) -> dict[str, str | None]:
        """Return for each chosen notebook why it will run, None for what is up to date.

        ``again`` says that something before the first of them runs again.
        """
        plan = {}
        for step in chosen:
            reason = "forced" if force else self.stale(step)
            plan[step] = reason or ("an earlier notebook runs again" if again else None)
            again = again or reason is not None
        return plan

    def forget(self, step: str) -> None:
        """Remove all that a notebook made but its trials, and the pages that speak of it."""
        journal = self.folder / "artifacts" / "journal" / f"{step}.json"
        names = [f"notebooks/{step}.ipynb", f"html/{step}.html"]
        names += ["README.md", "index.html", "manifest.json"]
        records = [r for r in (self.stamp_path(step), journal) if r.exists()]
        names += [name for record in records for name in _read(record)["outputs"]]
        # The records go last: they tell a next try what there is to remove.
        for path in (*(self.folder / name for name in names), *records):
            path.unlink(missing_ok=True)

    def execute(self, step: str, afresh: bool = False) -> dict:
        """Execute one notebook, publish it, and return its stamp.

        Trials that an earlier try with the same key has finished are reused, unless ``afresh``.
        """
        import papermill

        started = time.monotonic()
        key = self.key(step)  # before, in case the code is edited meanwhile
        self.forget(step)
        artifacts = self.folder / "artifacts"
        partial = artifacts / f"{step[:2]}.partial.ipynb"
        artifacts.mkdir(parents=True, exist_ok=True)
        whole_key = _sha(json.dumps(key))
        for trial in (artifacts / "trials" / step).glob("*"):
            if afresh or results.kept_trial(trial, whole_key) is None:
                trial.unlink()
        checkpoints = artifacts / "checkpoints" / step
        for kept in checkpoints.glob("*"):
            if afresh or kept.name[:17] != results.checkpoint_name(whole_key)[:17]:
                kept.unlink()
        os.environ["REPRO_KEY"] = whole_key  # the kernel inherits it
        try:
            with _kernel_noise_in(artifacts / "logs" / f"{step}.log"):
                notebook = papermill.execute_notebook(
                    self.source(step),
                    partial,
                    parameters={"profile": self.profile.name, "device": self.device},
                    kernel_name="python3",
                    language="python",
                    cwd=str(self.notebooks),
                    progress_bar=sys.stderr.isatty() and {"desc": step, "leave": False},
                    stdout_file=_Bars(step),
                    coalesce_streams=True,
                    start_timeout=120,
                )
        except BaseException:
            self.forget(step)
            raise
        finally:
            del os.environ["REPRO_KEY"]
        _strip_execution(notebook)
        pages = self._publish(step, notebook)
        partial.unlink()
        shutil.rmtree(checkpoints, ignore_errors=True)
        journal = _read(artifacts / "journal" / f"{step}.json")
        journal["seconds"] = round(time.monotonic() - started, 1)
        stamp = {"key": key, "outputs": journal["outputs"] | pages, "journal": journal}
        results.write_json(self.stamp_path(step), stamp)
        return stamp

    def _publish(self, step: str, notebook) -> dict[str, str]:
        """Write an executed notebook and its page; return their digests by name."""
        import nbformat

        pages = {
            f"notebooks/{step}.ipynb": nbformat.writes(notebook) + "\n",
            f"html/{step}.html": _html(notebook, step),
        }
        for name, text in pages.items():
            with results.atomic(self.folder / name) as file:
                file.write(text.encode())
        return {name: results.digest(self.folder / name) for name in pages}

    def renew_text(self, step: str) -> bool:
        """Bring the prose of an up-to-date notebook's page up to date without executing it."""
        import nbformat

        done = nbformat.read(self.folder / "notebooks" / f"{step}.ipynb", as_version=4)
        executed = iter([cell for cell in done.cells if cell.cell_type == "code"])
        cells = []
        for cell in nbformat.read(self.source(step), as_version=4).cells:
            cells.append(next(executed) if cell.cell_type == "code" else cell)
            if "parameters" in cell.metadata.get("tags", []):
                cells.append(next(executed))  # those that papermill injected
        if [cell.source for cell in cells] == [cell.source for cell in done.cells]:
            return False
        done.cells = cells
        stamp = self.stamp(step)
        stamp["outputs"] |= self._publish(step, done)
        results.write_json(self.stamp_path(step), stamp)
        return True


class _Bars:
    """The file to which papermill copies what cells print: shows their bars, with the time left.

    A terminal shows every one in the same line, a log one a minute.
    """

    def __init__(self, step: str):
        self._step, self._shown = step, time.monotonic()

    def write(self, text: str) -> None:
        bar = text.rpartition("\r")[2].strip()
        if "%|" not in bar:
            return
        if sys.stderr.isatty():
            width = shutil.get_terminal_size().columns - 1
            line = f"{self._step}: {bar}"[:width].ljust(width)
            print(f"\r{line}", end="", file=sys.stderr)
        elif time.monotonic() - self._shown >= _BETWEEN:
            self._shown = time.monotonic()
            print(f"  {self._step}: {bar}", flush=True)

    def flush(self) -> None:
        sys.stderr.flush()


@contextmanager
def _kernel_noise_in(log: Path) -> Iterator[None]:
    """Send what kernels print on stderr to a log, while Python's own stderr stays on the screen."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stderr.flush()
    saved = os.dup(2)
    with os.fdopen(saved, "w", buffering=1) as screen, log.open("wb") as file:
        os.dup2(file.fileno(), 2)
        try:
            with redirect_stderr(screen):
                yield
        finally:
            os.dup2(saved, 2)


def _strip_execution(notebook) -> None:
    """Remove times, machine paths and random ids, which would differ in every run."""
    notebook.metadata.pop("papermill", None)
    for cell in notebook.cells:
        for name in ("papermill", "execution"):
            cell.metadata.pop(name, None)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.id = "injected-parameters"


def _html(notebook, title: str) -> str:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter().from_notebook_node(notebook, {"metadata": {"name": title}})
    return re.sub(r'href="(\d\d_\w+)\.ipynb', r'href="\1.html', page)


def check_parameters(notebook: Path) -> None:
    """Refuse a notebook that the runner could not tell its profile and device."""
    tagged = [
        _source(cell)
        for cell in _code_cells(notebook)
        if "parameters" in cell["metadata"].get("tags", [])
    ]
    for name in ("profile", "device"):
        if len(tagged) != 1 or not re.search(rf"^{name}\b.*=", tagged[0], re.MULTILINE):
            raise Refused(f"{notebook.name} needs one cell tagged 'parameters' that sets {name}")


def choose(steps: list[str], only: str | None, first: str | None) -> list[str]:
    """Return the notebooks that ``--only`` or ``--from`` select, by number or by name."""
    if not steps:
        raise Refused("there are no notebooks to run")

    def number(wanted):
        found = [i for i, step in enumerate(steps) if step.startswith(wanted.zfill(2))]
        if len(found) != 1:
            raise Refused(f"no notebook {wanted!r}: there are {', '.join(steps)}")
        return found[0]

    if only:
        return [steps[number(only)]]
    return steps[number(first) :] if first else steps


def _print_plan(pipeline: Pipeline, plan: dict[str, str | None]) -> None:
    profile = pipeline.profile
    print(f"Profile {profile.name} ({profile.label}), device {pipeline.device}")
    for step, reason in plan.items():
        stamp = pipeline.stamp(step)
        last = f"  (last time {stamp['journal']['seconds']:.0f} s)" if stamp else ""
        print(f"  {step:<26} {'runs: ' + reason if reason else 'up to date'}{last}")


def _print_missing(missing: list) -> None:
    print()
    print(*map(files.described, missing), sep="\n")


def _print_failure(error, partial: Path) -> None:
    trace = re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(error.traceback)).splitlines()
    print(f"\nFAILED in cell [{error.exec_count}]: {error.ename}: {error.evalue}")
    if error.ename not in TELLING:
        print("\n".join("    " + line for line in trace[-12:]))
    print(f"The notebook as far as it came: {partial}")


def run(
    profile: str = "demo",
    device: str = "auto",
    *,
    only: str | None = None,
    first: str | None = None,
    full: bool = False,
    force: bool = False,
    list_only: bool = False,
    notebooks: Path | None = None,
    root: Path | None = None,
) -> int:
    """Bring a profile's results up to date and return the exit status.

    Parameters
    ----------
    profile, device : str
        Name of the profile; ``"cpu"``, ``"cuda"`` or ``"auto"``.
    only, first : str, optional
        Run this notebook alone, or this one and those after it.
    full : bool
        Run all: the ordinary notebooks, those of every companion, then the full ones.
    force : bool
        Run the chosen notebooks even if they are up to date.
    list_only : bool
        Print the plan and stop.
    notebooks, root : Path, optional
        Folder of the notebooks and folder of all results; the repository's own by default.

    Returns
    -------
    int
        0 done, 1 a notebook failed, 2 refused before any work, 130 interrupted.
    """
    notebooks = notebooks or results.ROOT / "notebooks"
    root = root or results.results_root()
    try:
        settings = named(profile)
        missing = _missing_data(settings)
        data = "" if missing else _data_digest(settings)
        pipeline = Pipeline(settings, device, notebooks, root, data)
        chosen = choose(pipeline.steps, only, first)
        if not (only or full):
            chosen = [step for step in chosen if step in pipeline.ordinary]
        if not chosen:
            raise Refused(f"{', '.join(pipeline.full)} are for --full, or --only with a number")
        for step in chosen:
            check_parameters(pipeline.source(step))
    except (Refused, ValueError, OSError) as error:
        print(f"Cannot start: {error}")
        return REFUSED

    parts = [(pipeline, chosen)]
    if full:
        parts = [(part, part.ordinary) for part in (pipeline, *pipeline.companions)]
        parts += [(pipeline, pipeline.full)]
    work, again = [], False
    for part, steps in parts:
        work += [(part, part.plan(steps, force, again and part is pipeline))]
        again = again or any(work[-1][1].values())
    for part, plan in work:
        _print_plan(part, plan)
    if missing:
        _print_missing(missing)
        where = f"{profile.partition('+')[0]} --data {_folder()}"
        print(f"\nWhat can be downloaded:  ./run_all.sh fetch {where}")
    if list_only:
        return DONE
    if missing:
        return REFUSED
    for earlier in takewhile(chosen[0].__ne__, pipeline.ordinary):
        if pipeline.stamp(earlier) is None:
            print(f"Cannot start with {chosen[0]}: {earlier} has to run first")
            return REFUSED
        if reason := pipeline.stale(earlier):
            print(f"Note: {earlier} is not up to date ({reason}); what it made before is used")
    if only and chosen[0] in pipeline.full:
        others = [c.profile.name for c in pipeline.companions if any(c.plan(c.ordinary).values())]
        if others:
            print(f"Note: not up to date, which --full mends: {', '.join(others)}")

    command = _command(pipeline, full or chosen[-1] in pipeline.full)
    try:
        with _alone(root / profile.partition("+")[0] / "artifacts"), stoppable():
            return _run_all(pipeline, work, root, command, force)
    except Refused as error:
        print(f"Cannot start: {error}")
        return REFUSED
    except KeyboardInterrupt:  # between two notebooks
        print(f"\nInterrupted. What is finished is kept. To go on:  {command}")
        return INTERRUPTED


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep every other run out of a profile's results, its companions' included."""
    what = f"another run is at work in {folder.parent}: wait until it has ended, or stop it"
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(results.alone(folder / "lock", what))
        except BlockingIOError as error:
            raise Refused(error) from error
        except OSError as error:
            raise Refused(f"{folder.parent} cannot be written: {error}") from error
        yield


@contextmanager
def stoppable() -> Iterator[None]:
    """Let SIGTERM end what is under way as Ctrl-C does, a kernel with it."""

    def stop(*_):
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _run_all(pipeline: Pipeline, work: list, root: Path, command: str, force: bool) -> int:
    from repro.pipeline import report

    os.environ["REPRO_RESULTS"] = str(root)  # the kernels inherit it
    for part, plan in work:
        renewed = [step for step in plan if not plan[step] and part.renew_text(step)]
        for step in renewed:
            print(f"{part.profile.name} {step}: text renewed")
        status = _run_steps(part, plan, force, command)
        if status != DONE:
            return status
        headline = report.write(part, renew=any(plan.values()) or bool(renewed))
    report.show(pipeline.folder, headline)  # of the last part, which is the pipeline's own
    return DONE


def _command(pipeline: Pipeline, full: bool) -> str:
    command = f"./run_all.sh --profile {pipeline.profile.name}"
    if full:
        command += " --full"
    if pipeline.device != "auto":
        command += f" --device {pipeline.device}"
    if pipeline.profile.source != "world":
        command += f" --data {_folder()}"
    return command


def _folder() -> str:
    return shlex.quote(str(results.data_root()))


def _run_steps(pipeline: Pipeline, plan: dict[str, str | None], force: bool, command: str) -> int:
    from nbclient.exceptions import DeadKernelError
    from papermill.exceptions import PapermillExecutionError

    for step in plan:
        # Asked again: an earlier notebook that ran may have made the very same artefacts.
        if not force and pipeline.stale(step) is None:
            continue
        title = f"{pipeline.profile.name} {step}"
        print(f"{title} ...", flush=True)
        try:
            journal = pipeline.execute(step, afresh=force)["journal"]
        except PapermillExecutionError as error:
            _print_failure(error, pipeline.folder / "artifacts" / f"{step[:2]}.partial.ipynb")
            print(f"What is finished is kept. To go on:  {command}")
            return FAILED
        except DeadKernelError:
            log = pipeline.folder / "artifacts" / "logs" / f"{step}.log"
            print(f"\nFAILED: the kernel of {title} died, perhaps for want of memory. See {log}")
            print(f"What is finished is kept. To go on:  {command}")
            return FAILED
        except OSError as error:  # a full disk, as a rule
            print(f"\nFAILED: {title}: {error}\nWhat is finished is kept. To go on:  {command}")
            return FAILED
        except KeyboardInterrupt:
            print(f"\nInterrupted in {title}. What is finished is kept. To go on:  {command}")
            return INTERRUPTED
        print(
            f"{title} done: {journal['seconds']:.0f} s, {journal['peak_mib']:.0f} MiB, "
            f"{len(journal['checks'])} checks passed"
        )
    return DONE
