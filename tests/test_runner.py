"""The runner skips only what is up to date, and leaves nothing that looks finished but is not."""

import errno
import json
import os
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from repro import config
from repro.__main__ import main
from repro.data import files
from repro.pipeline import run, runner
from repro.pipeline.runner import DONE, FAILED, REFUSED

SET_UP = """
import os, signal, sys, time, types
from pathlib import Path
# Importing the real one would make these toys slow.
sys.modules["torch"] = types.SimpleNamespace(get_num_threads=lambda: 1)
from repro.pipeline.run import Run
run = Run("{name}", profile, "cpu")
with open("trace", "a") as trace:
    trace.write("{name}:" + run.profile.name + " ")
"""
FIRST = 'run.save("numbers", x=[1, 2, 3])\nrun.check("three numbers", True)'
SECOND = """
import pandas as pd
total = sum(run.load("numbers").x)
run.save("total", total=total)
run.table(pd.DataFrame({"total": [total]}), "headline", "The total")
"""
THIRD = 'print(run.load("total").total)'
SEEDED = """
if run.profile.name == "smoke+lenient" and not Path("calm").exists():
    raise ValueError("no such luck")
run.save("numbers", x=[run.profile.seed, run.profile.cold_in_codebook])
"""
READER = """
import pandas as pd
from repro.pipeline import run as of_run
of_run.NOTEBOOKS = Path.cwd()  # where the toys are
found = {name: list(c.load("numbers").x) for name, c in run.companions.items()}
run.table(pd.DataFrame(found), "seeds_headline", "All seeds")
"""
POINTS = """
points, grid = run.points("search"), [{"i": i} for i in range(4)]
for point in points.todo(grid):
    with open("computed", "a") as file:
        file.write(str(point["i"]))
    if point["i"] == 2 and not Path("calm").exists():
        END
    points.add(point, {"third": point["i"] / 3, "odd": point["i"] % 2 == 1})
run.save("rows", rows=points.frame(grid).to_csv())
"""


class Project:
    """Toy notebooks, and what was executed of them."""

    def __init__(self, folder, code):
        self.notebooks = folder / "notebooks"
        self.root = folder / "results"
        self.made = self.root / "smoke"
        self.trace = self.notebooks / "trace"
        for name, source in code.items():
            self.edit(name, source)

    def edit(self, name, code, **metadata):
        parameters = {"metadata": {"tags": ["parameters"]}}
        cells = [
            nbformat.v4.new_markdown_cell(f"# {name}\n\n[The first](01_first.ipynb)"),
            nbformat.v4.new_code_cell("profile = None\ndevice = None", **parameters),
            nbformat.v4.new_code_cell(SET_UP.format(name=name)),
            nbformat.v4.new_code_cell(code),
        ]
        notebook = nbformat.v4.new_notebook(cells=cells)
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        notebook.metadata["repro"] = metadata
        self.notebooks.mkdir(exist_ok=True)
        nbformat.write(notebook, self.notebooks / f"{name}.ipynb")

    def run(self, profile="smoke", **options):
        """Run, and return the exit status and the notebooks that were executed."""
        self.trace.write_text("")
        status = runner.main(profile, "cpu", notebooks=self.notebooks, **options)
        return status, [name[:2] for name in self.trace.read_text().split()]

    def companions(self):
        """Return what was executed in the last run, by the suffix of its profile."""
        return [name[:2] + name.partition("smoke")[2] for name in self.trace.read_text().split()]

    def computed(self):
        """Return which points were computed since the last time that this was asked."""
        path = self.notebooks / "computed"
        found = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return found

    def plan(self, device="cpu"):
        pipeline = runner.Pipeline(config.SMOKE, device, self.notebooks, self.root)
        ((_, reasons),) = runner.plan(pipeline, pipeline.all, False, False)
        return {name[:2]: reason for name, reason in reasons.items()}


@pytest.fixture(autouse=True)
def path_to_the_package(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(config.ROOT))


@pytest.fixture
def project(tmp_path):
    """Three toy notebooks, each needing the one before, and what it takes to run them."""
    return Project(tmp_path, {"01_first": FIRST, "02_second": SECOND, "03_third": THIRD})


@pytest.fixture
def search(tmp_path):
    """One toy notebook of four points, in whose third something happens the first time."""
    return Project(tmp_path, {"01_search": POINTS.replace("END", "raise ValueError")})


def test_a_whole_run_then_nothing_then_each_cause(project, capsys):
    assert project.run() == (DONE, ["01", "02", "03"])
    shown = capsys.readouterr()
    assert "TCP" not in shown.err  # the kernel's own noise
    assert "| " in shown.out and "6" in shown.out.splitlines()[-3]  # the headline comes last
    made = {path.relative_to(project.made).as_posix() for path in project.made.glob("*/*")}
    for name in ("01_first", "02_second", "03_third"):
        rooms = {f"{name}/{room}" for room in ("artifacts", "figures", "tables")}
        assert {p for p in made if name in p} == rooms | {
            f"{name}/{name}.{e}" for e in ("ipynb", "html")
        }
    assert '<a href="../01_first/01_first.html">' in (
        (project.made / "02_second/02_second.html").read_text()
    )
    page = (project.made / "README.md").read_text("utf-8")
    assert "What was found: synthetic data" in page and "The total" in page
    assert (project.made / "index.html").exists()
    manifest = json.loads((project.made / "manifest.json").read_text("utf-8"))
    assert manifest["01_first"]["checks"] == ["three numbers"]
    assert set(manifest["01_first"]["outputs"]) == {*("artifacts/numbers.npz", "01_first.ipynb")}
    assert str(project.notebooks) not in (project.made / "01_first/01_first.ipynb").read_text()

    assert project.run() == (DONE, [])
    assert set(project.plan().values()) == {None}
    assert project.plan(device="cuda")["01"] == "settings changed"

    # An output edited by hand is made again; what depends on it is not, for it comes out the same.
    (project.made / "01_first/artifacts/numbers.npz").write_bytes(b"edited")
    again = "an earlier notebook runs again"
    changed = "output artifacts/numbers.npz is missing or changed"
    assert project.plan() == {"01": changed, "02": again, "03": again}
    assert project.run() == (DONE, ["01"])
    (project.made / "02_second/tables/headline.csv").unlink()
    assert project.plan()["02"] == "output tables/headline.csv is missing or changed"

    # Changed numbers travel on.
    project.edit("01_first", FIRST.replace("3]", "4]"))
    assert project.plan()["01"] == "code changed"
    assert project.run() == (DONE, ["01", "02", "03"])
    assert "7" in (project.made / "02_second/tables/headline.md").read_text()


def test_new_words_reach_the_page_without_a_run(project, capsys):
    project.run(only="01")
    path = project.notebooks / "01_first.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source = "# Better words"
    more = nbformat.v4.new_markdown_cell("[I](01_first.ipynb), [no](02_x.ipynb)")
    notebook.cells.insert(3, more)
    notebook.cells[1].execution_count = 7
    nbformat.write(notebook, path)
    assert project.run(only="01") == (DONE, [])
    assert "01_first: text renewed" in capsys.readouterr().out
    page = (project.made / "01_first/01_first.html").read_text("utf-8")
    assert "Better words" in page and '<a href="../01_first/01_first.html">I</a>, no<' in page
    assert "Better words" in (project.made / "README.md").read_text("utf-8")
    done = nbformat.read(project.made / "01_first/01_first.ipynb", 4)
    assert sum(cell.cell_type == "code" for cell in done.cells) == 4  # with the injected one
    assert any(cell.get("outputs") for cell in done.cells)
    assert project.run(only="01") == (DONE, []) and "renewed" not in capsys.readouterr().out


def test_only_imported_modules_count_as_code(tmp_path):
    sources = {
        "__init__": "",
        "config": "",
        "room/__init__": "",
        "room/one": "from repro.config import PROFILES\nfrom repro import top\n",
        "room/two": "y = 1",
        "top": "from repro.room.deep import x\n",
        "room/deep": '"""Old words."""\nx = 1',
    }
    for name, source in sources.items():
        path = tmp_path / "repro" / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    cell = {"cell_type": "code", "source": ["%magic\n", "from repro.room import one, three\n"]}
    files.write_json(tmp_path / "toy.ipynb", {"cells": [cell]})
    digests = [runner.code_digest(tmp_path / "toy.ipynb", tmp_path)]
    path.write_text('"""New words."""\nx = 1  # and a comment')
    assert runner.code_digest(tmp_path / "toy.ipynb", tmp_path) == digests[0]
    for name in sources:
        (tmp_path / "repro" / f"{name}.py").write_text(f"changed = {name!r}\n" + sources[name])
        digests += [runner.code_digest(tmp_path / "toy.ipynb", tmp_path)]
    changed = [name for name, a, b in zip(sources, digests, digests[1:], strict=False) if a != b]
    assert changed == ["__init__", "room/__init__", "room/one", "top", "room/deep"]


def test_other_data_or_libraries_make_all_stale(project, monkeypatch):
    name = "01_first"
    pipeline = runner.Pipeline(config.SMOKE, "cpu", project.notebooks, project.root)
    record = {"key": pipeline.key(name), "outputs": {}}
    files.write_json(pipeline.folder / name / run.RECORD, record)
    assert pipeline.stale(name) is None
    other = runner.Pipeline(config.SMOKE, "cpu", project.notebooks, project.root, "new data")
    assert other.stale(name) == "data changed"
    monkeypatch.setattr(run, "versions", lambda: {"numpy": "99"})
    assert pipeline.stale(name) == "libraries changed"


@pytest.mark.fault(
    "an error in a notebook", "stops, naming the cell; nothing of that notebook counts as done"
)
def test_a_failure_leaves_nothing_that_looks_finished(project, capsys):
    assert project.run(only="01")[0] == DONE
    project.edit("02_second", SECOND + "\nraise RuntimeError('no such luck')")
    assert project.run() == (FAILED, ["02"])
    told = capsys.readouterr().out
    assert "FAILED in cell [4]: RuntimeError: no such luck" in told and "Traceback" in told
    assert "the same command goes on" in told
    found = {path.name for path in project.made.iterdir()}
    assert found == {"01_first", "02_second.partial", "lock"}
    assert project.plan()["02"] == "new"
    bad = 'from repro.data.raw import BadInput\nraise BadInput("plays.txt, line 7: expected tabs")'
    project.edit("02_second", bad)
    assert project.run() == (FAILED, ["02"])
    told = capsys.readouterr().out
    assert "]: BadInput: plays.txt, line 7: expected tabs\n" in told and "Traceback" not in told
    project.edit("02_second", SECOND)
    assert project.run() == (DONE, ["02", "03"])


def test_only_from_and_force(project, capsys):
    assert project.run(first="02") == (REFUSED, [])
    assert "01_first has to run before 02_second" in capsys.readouterr().out
    assert project.run(only="1") == (DONE, ["01"])
    assert project.run(only="01_first", force=True) == (DONE, ["01"])
    assert project.run(first="02") == (DONE, ["02", "03"])
    assert project.run(first="02", list_only=True, force=True) == (DONE, [])
    assert project.run(only="09") == (REFUSED, [])
    assert "no notebook '09'" in capsys.readouterr().out
    project.edit("01_first", "x = 1\n" + FIRST)
    assert project.run(only="03") == (DONE, [])
    assert "01_first is not up to date (code changed)" in capsys.readouterr().out


def test_kill_in_the_second_notebook_keeps_the_first(project, tmp_path):
    awake = tmp_path / "awake"
    wait = f"while not Path({str(awake)!r}).exists(): time.sleep(0.1)"
    project.edit("02_second", wait + SECOND)
    project.trace.write_text("")
    code = "import sys; from pathlib import Path; from repro.pipeline import runner;"
    code += "runner.main('smoke', 'cpu', notebooks=Path(sys.argv[1]))"
    command = [sys.executable, "-c", code, project.notebooks]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_until(lambda: "02_second" in project.trace.read_text())
    kernels = children(process.pid)
    assert kernels
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in kernels))  # orphans end by themselves

    assert not (project.made / "02_second").exists() and project.plan()["01"] is None
    awake.touch()
    assert project.run() == (DONE, ["02", "03"])


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)


def children(pid):
    listing = subprocess.run(["ps", "-eo", "pid=,ppid="], capture_output=True, text=True).stdout
    pairs = [tuple(map(int, line.split())) for line in listing.splitlines()]
    return [child for child, parent in pairs if parent == pid]


def alive(pid):
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True)
    return bool(state.stdout.strip()) and not state.stdout.startswith("Z")


@pytest.mark.fault(
    "a Jupyter kernel named python3 of another program", "ours is the interpreter at work"
)
def test_other_kernels_named_python3_do_not_matter(project, tmp_path, monkeypatch):
    kernel = tmp_path / "jupyter" / "kernels" / "python3" / "kernel.json"
    kernel.parent.mkdir(parents=True)
    kernel.write_text('{"argv": ["/no/such/python"], "display_name": "x", "language": "python"}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    project.edit("01_first", f"assert sys.executable == {sys.executable!r}\n" + FIRST)
    assert project.run(only="01") == (DONE, ["01"])


@pytest.mark.fault(
    "an input file that is not there", "said before any work, with its origin, size and licence"
)
def test_missing_data_is_described_and_stops_all(project, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_DATA", "/my data")
    assert project.run("lastfm+seed1") == (REFUSED, [])
    told = capsys.readouterr().out
    for part in ("hetrec2011-lastfm-2k.zip", "/my data", "grouplens.org", "3 MB", "licence"):
        assert part in told
    assert "./run_all.sh fetch lastfm --data '/my data'" in told


@pytest.mark.fault("the disk is full while a page is written", "one line; what is finished is kept")
def test_a_full_disk_between_two_cells_is_one_line(project, monkeypatch, capsys):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "a file")

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_publish", full)
        assert project.run(only="01") == (FAILED, ["01"])
    told = capsys.readouterr().out
    assert "\nFAILED: smoke 01_first: [Errno 28] No space left on device" in told
    assert "the same command goes on" in told
    assert project.plan()["01"] == "new" and project.run(only="01") == (DONE, ["01"])


@pytest.mark.fault("an unknown profile", "refused in one line, with those there are")
def test_an_unknown_profile_is_refused(capsys):
    assert main(["--profile", "smokey"]) == REFUSED
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and "unknown profile 'smokey'" in told[0]


def test_full_runs_the_companions_then_what_reads_them(tmp_path, capsys):
    family = Project(tmp_path, {"01_seeded": SEEDED})
    family.edit("02_reader", READER, full=True)
    assert family.run() == (DONE, ["01"])
    assert "Not up to date" not in (family.made / "README.md").read_text("utf-8")
    assert family.run(first="02") == (REFUSED, [])
    assert "02_reader are for --full" in capsys.readouterr().out

    # A companion fails; the same command goes on after it has been mended.
    assert family.run(full=True)[0] == FAILED
    assert family.companions() == ["01+seed1", "01+lenient"]
    told = capsys.readouterr().out
    assert "smoke+lenient 01_seeded ..." in told and "the same command goes on" in told
    (family.notebooks / "calm").touch()
    assert family.run(full=True, list_only=True) == (DONE, [])
    plan = [line for line in capsys.readouterr().out.splitlines() if line]
    assert [line.split("(")[0].strip() for line in plan] == [
        "Profile smoke",
        "01_seeded                  up to date",
        "Profile smoke+seed1",
        "01_seeded                  up to date",
        "Profile smoke+lenient",
        "01_seeded                  runs: new",
        "Profile smoke",
        "02_reader                  runs: new",
    ]
    assert family.run(full=True)[0] == DONE
    assert family.companions() == ["01+lenient", "02"]

    # Each with its own settings, in its own folder; the report's head is over all of them.
    base = config.SMOKE.seed
    table = (family.made / "02_reader/tables/seeds_headline.csv").read_text()
    assert table.split() == ["seed1,lenient", f"{base + 1},{base}", "0,1"]
    assert (family.root / "smoke+lenient" / "README.md").exists()
    assert "All seeds" in capsys.readouterr().out
    assert family.run(full=True) == (DONE, [])
    page = (family.made / "README.md").read_text("utf-8")
    assert "All seeds" in page and "Not up to date" not in page

    # Other numbers in a companion make stale what reads them, and the report says so.
    path = family.root / "smoke+seed1/01_seeded" / run.RECORD
    changed = json.loads(path.read_text())
    changed["outputs"]["artifacts/numbers.npz"] = "other"
    path.write_text(json.dumps(changed))
    assert family.plan() == {"01": None, "02": "input changed"}
    assert family.run() == (DONE, [])
    page = (family.made / "README.md").read_text("utf-8")
    assert "**Not up to date:** 02_reader." in page and "All seeds" not in page.split("\n## ")[0]
    family.edit("02_reader", READER, full=True, companions="lenient")  # no seed counts now
    assert family.run(only="02") == (DONE, ["02"])
    changed["key"]["code"] = changed["outputs"]["artifacts/numbers.npz"] = "another"
    path.write_text(json.dumps(changed))
    assert family.plan()["02"] is None
    family.run(full=True, list_only=True)
    assert "runs: an earlier notebook runs again" in capsys.readouterr().out.splitlines()[-1]


@pytest.mark.parametrize(
    ("end", "told"),
    [
        ("raise ValueError('x')", "ValueError: x"),
        ("os.kill(os.getpid(), signal.SIGKILL)", "its process was ended, as a rule for want of"),
    ],
)
@pytest.mark.fault(
    "a search for settings broken off, or the kernel's process ended",
    "said; what was tried is kept and not computed again",
)
def test_points_survive_an_interruption(search, end, told, capsys):
    search.edit("01_search", POINTS.replace("END", end))
    assert search.run()[0] == FAILED
    assert told in capsys.readouterr().out and search.computed() == "012"
    (search.notebooks / "calm").touch()
    assert search.run()[0] == DONE
    assert search.computed() == "23"
    assert not list(search.made.glob(f"*/{run.KEPT}"))
    if "ValueError" in told:
        rows = search.made / "01_search/artifacts/rows.npz"
        resumed = files.sha256(rows)
        assert "REPRO_KEY" not in os.environ
        assert search.run(force=True)[0] == DONE
        assert search.computed() == "0123" and files.sha256(rows) == resumed


@pytest.mark.fault("finished settings of other code or data", "dropped")
def test_points_of_other_code_are_dropped(search):
    assert search.run()[0] == FAILED
    search.edit("01_search", "changed = 1\n" + POINTS.replace("END", "raise ValueError"))
    assert search.run()[0] == FAILED
    assert search.computed() == "012012"
    search.edit("01_search", "raise ValueError")
    assert search.run()[0] == FAILED
    assert not list(search.made.glob(f"*/{run.KEPT}/*.jsonl"))


def test_the_command_line(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(runner, "main", lambda **given: asked.append(given) or DONE)
    monkeypatch.chdir(tmp_path)
    assert main(["--profile", "lastfm+others", "--device", "cpu", "--data", "music"]) == DONE
    assert config.data_root() == tmp_path / "music"
    assert main(["--full", "--list"]) == DONE
    assert (asked[0]["profile"], asked[0]["device"]) == ("lastfm+others", "cpu")
    options = [(given["full"], given["list_only"]) for given in asked]
    assert options == [(False, False), (True, True)]
    with pytest.raises(SystemExit, match="2"):
        main(["--full", "--only", "02"])
