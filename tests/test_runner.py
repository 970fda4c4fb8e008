"""The runner skips only what is up to date, and leaves nothing that looks finished but is not."""

import json
import signal
import subprocess
import sys
import time

import nbformat
import pytest

from repro import config, results, runner
from repro.runner import DONE, FAILED, REFUSED

SET_UP = """
import sys, time, types
# Importing the real one would make these toys slow.
sys.modules["torch"] = types.SimpleNamespace(get_num_threads=lambda: 1)
from repro.results import Run
run = Run("{name}", profile, "cpu")
with open(run.folder.parent.parent / "trace", "a") as trace:
    trace.write("{name} ")
"""
FIRST = 'run.save("numbers", x=[1, 2, 3])\nrun.check("three numbers", True)'
SECOND = """
import pandas as pd
total = sum(run.load("numbers").x)
run.save("total", total=total)
run.table(pd.DataFrame({"total": [total]}), "headline", "The total")
"""
THIRD = 'print(run.load("total").total)'


def write_notebook(folder, name, code, parameters="profile = None\ndevice = None"):
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(SET_UP.format(name=name)),
        nbformat.v4.new_code_cell(code),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Three toy notebooks, each needing the one before, and what it takes to run them."""
    monkeypatch.setenv("PYTHONPATH", str(results.ROOT))
    return Project(tmp_path)


class Project:
    def __init__(self, folder):
        self.notebooks = folder / "notebooks"
        self.root = folder / "results"
        self.made = self.root / "smoke"
        self.trace = folder / "trace"
        self.code = {"01_first": FIRST, "02_second": SECOND, "03_third": THIRD}
        for name, code in self.code.items():
            write_notebook(self.notebooks, name, code)

    def edit(self, name, code):
        write_notebook(self.notebooks, name, code)

    def run(self, profile="smoke", **options):
        """Run, and return the exit status and the notebooks that were executed."""
        self.trace.write_text("")
        status = runner.run(profile, "cpu", notebooks=self.notebooks, root=self.root, **options)
        return status, [name[:2] for name in self.trace.read_text().split()]

    def plan(self, device="cpu"):
        pipeline = runner.Pipeline(config.SMOKE, device, self.notebooks, self.root)
        return {step[:2]: reason for step, reason in pipeline.plan(pipeline.steps).items()}


def test_a_whole_run_then_nothing_then_each_cause(project, capsys):
    assert project.run() == (DONE, ["01", "02", "03"])
    shown = capsys.readouterr()
    assert "TCP" not in shown.err  # the kernel's own noise goes to a log
    assert "| " in shown.out and "6" in shown.out.splitlines()[-3]  # the headline comes last
    for name in ("notebooks/01_first.ipynb", "html/03_third.html", "README.md", "index.html"):
        assert (project.made / name).exists()
    assert not list(project.made.glob("artifacts/*.partial.ipynb"))
    page = (project.made / "README.md").read_text("utf-8")
    assert "What was found: synthetic data" in page
    assert "The total" in page
    manifest = json.loads((project.made / "manifest.json").read_text("utf-8"))
    assert manifest["notebooks"]["01_first"]["checks"] == ["three numbers"]
    assert str(project.notebooks) not in (project.made / "notebooks/01_first.ipynb").read_text()

    assert project.run() == (DONE, [])
    assert set(project.plan().values()) == {None}
    assert project.plan(device="cuda")["01"] == "settings changed"

    # An output edited by hand is made again; what depends on it is not, for it comes out the same.
    (project.made / "artifacts/numbers.npz").write_bytes(b"edited")
    again = "an earlier notebook runs again"
    changed = "output artifacts/numbers.npz is missing or changed"
    assert project.plan() == {"01": changed, "02": again, "03": again}
    assert project.run() == (DONE, ["01"])
    (project.made / "tables/headline.csv").unlink()
    assert project.plan()["02"] == "output tables/headline.csv is missing or changed"
    assert project.run() == (DONE, ["02"])

    # Changed numbers travel on.
    project.edit("01_first", FIRST.replace("3]", "4]"))
    assert project.plan()["01"] == "code changed"
    assert project.run() == (DONE, ["01", "02", "03"])
    assert "7" in (project.made / "tables/headline.md").read_text()


def test_text_and_stored_outputs_are_not_code(project):
    path = project.notebooks / "01_first.ipynb"
    before = runner.code_digest(path)
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source = "# Better words"
    notebook.cells[1].execution_count = 7
    nbformat.write(notebook, path)
    assert runner.code_digest(path) == before


def test_new_words_reach_the_page_without_a_run(project, capsys):
    project.run()
    path = project.notebooks / "02_second.ipynb"
    notebook = nbformat.read(path, 4)
    notebook.cells[0].source = "# Better words"
    notebook.cells.insert(3, nbformat.v4.new_markdown_cell("And *more* of them."))
    nbformat.write(notebook, path)
    assert project.run() == (DONE, [])
    assert "02_second: text renewed" in capsys.readouterr().out
    page = (project.made / "html/02_second.html").read_text("utf-8")
    assert "Better words" in page and "<em>more</em>" in page
    assert "Better words" in (project.made / "README.md").read_text("utf-8")
    done = nbformat.read(project.made / "notebooks/02_second.ipynb", 4)
    assert sum(cell.cell_type == "code" for cell in done.cells) == 4  # with the injected one
    assert any(cell.get("outputs") for cell in done.cells)
    assert project.run() == (DONE, []) and "renewed" not in capsys.readouterr().out


def test_only_says_what_it_builds_on(project, capsys):
    project.run()
    project.edit("01_first", FIRST.replace("3]", "4]"))
    project.run(only="02")
    assert "01_first is not up to date (code changed)" in capsys.readouterr().out


def test_only_imported_modules_count_as_code(project, monkeypatch, tmp_path):
    package = tmp_path / "copy" / "repro"
    package.mkdir(parents=True)
    for name, source in {
        "__init__": "",
        "results": "from repro.config import PROFILES\nfrom . import helper",
        "helper": "x = 1",
        "config": "",
        "other": "y = 1",
    }.items():
        (package / f"{name}.py").write_text(source)
    monkeypatch.setattr(results, "ROOT", package.parent)
    notebook = project.notebooks / "01_first.ipynb"
    before = runner.code_digest(notebook)
    (package / "other.py").write_text("y = 2")
    (package / "config.py").write_text("z = 2")
    assert runner.code_digest(notebook) == before
    (package / "helper.py").write_text("x = 2")
    assert runner.code_digest(notebook) != before


def test_other_data_or_libraries_make_all_stale(project, monkeypatch):
    step = "01_first"
    pipeline = runner.Pipeline(config.SMOKE, "cpu", project.notebooks, project.root)
    key = pipeline.key(step)
    results.write_json(pipeline.stamp_path(step), {"key": key, "outputs": {}})
    assert pipeline.stale(step) is None
    other = runner.Pipeline(config.SMOKE, "cpu", project.notebooks, project.root, "new data")
    assert other.stale(step) == "data changed"
    monkeypatch.setattr(results, "versions", lambda: {"numpy": "99"})
    assert pipeline.stale(step) == "libraries changed"


def test_a_failure_leaves_nothing_that_looks_finished(project, capsys):
    assert project.run(only="01")[0] == DONE
    project.edit("02_second", SECOND + "\nraise ValueError('no such luck')")
    assert project.run() == (FAILED, ["02"])
    told = capsys.readouterr().out
    assert "FAILED in cell [4]: ValueError: no such luck" in told
    assert "To go on:  ./run_all.sh --profile smoke --device cpu" in told
    for name in (
        "notebooks/02_second.ipynb",
        "html/02_second.html",
        "README.md",
        "tables/headline.md",
    ):
        assert not (project.made / name).exists()
    assert project.plan()["02"] == "new"
    project.edit("02_second", SECOND)
    assert project.run() == (DONE, ["02", "03"])


def test_only_from_and_force(project, capsys):
    assert project.run(first="02") == (REFUSED, [])
    assert "01_first has to run first" in capsys.readouterr().out
    assert project.run(only="1") == (DONE, ["01"])
    assert project.run(first="02") == (DONE, ["02", "03"])
    assert project.run(only="03") == (DONE, [])
    assert project.run(only="03_third", force=True) == (DONE, ["03"])
    assert project.run(first="02", list_only=True, force=True) == (DONE, [])
    assert project.run(only="09") == (REFUSED, [])
    assert "no notebook '09'" in capsys.readouterr().out


def test_kill_in_the_second_notebook_keeps_the_first(project, tmp_path):
    awake = tmp_path / "awake"
    wait = f"from pathlib import Path\nwhile not Path({str(awake)!r}).exists(): time.sleep(0.1)"
    project.edit("02_second", wait + SECOND)
    project.trace.write_text("")
    code = (
        "import sys; from pathlib import Path; from repro import runner;"
        "runner.run('smoke', 'cpu', notebooks=Path(sys.argv[1]), root=Path(sys.argv[2]))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, project.notebooks, project.root], stdout=subprocess.DEVNULL
    )
    wait_until(lambda: "02_second" in project.trace.read_text())
    kernels = children(process.pid)
    assert kernels
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until(lambda: not any(alive(pid) for pid in kernels))  # orphans end by themselves

    assert not (project.made / "notebooks/02_second.ipynb").exists()
    assert project.plan()["01"] is None
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


def test_a_notebook_without_parameters_is_refused(project, capsys):
    write_notebook(project.notebooks, "01_first", FIRST, parameters="profile = None")
    assert project.run() == (REFUSED, [])
    assert "01_first.ipynb needs one cell tagged 'parameters' that sets device" in (
        capsys.readouterr().out
    )


def test_missing_data_is_described_and_stops_all(project, monkeypatch, capsys):
    class File:
        what, path, origin = "listening counts", "/data/plays.txt", "https://example.org"
        size, licence = "1 MB", "research only"

    monkeypatch.setattr(runner, "_missing_data", lambda profile: [File])
    assert project.run() == (REFUSED, [])
    told = capsys.readouterr().out
    for part in (File.what, File.path, File.origin, File.size, File.licence):
        assert part in told


def test_an_unknown_profile_is_refused(project, capsys):
    assert project.run("smokey") == (REFUSED, [])
    assert "unknown profile 'smokey'" in capsys.readouterr().out
