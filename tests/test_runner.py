"""The runner skips only what is up to date, and leaves nothing that looks finished but is not."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

from repro import config
from repro.__main__ import main
from repro.data.files import Source
from repro.pipeline import run as results
from repro.pipeline import runner
from repro.pipeline.runner import DONE, FAILED, REFUSED

SET_UP = """
import sys, time, types
# Importing the real one would make these toys slow.
sys.modules["torch"] = types.SimpleNamespace(get_num_threads=lambda: 1)
from repro.pipeline.run import Run
run = Run("{name}", profile, "cpu")
with open(run.folder.parent.parent / "trace", "a") as trace:
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
from pathlib import Path
if run.profile.name == "smoke+lenient" and not Path("calm").exists():
    raise ValueError("no such luck")
run.save("numbers", x=[run.profile.seed, run.profile.cold_in_pretraining])
"""
READER = """
from pathlib import Path
import pandas as pd
from repro.pipeline import run as results
results.ROOT = Path.cwd().parent  # where the toys are
found = {name: list(c.load("numbers").x) for name, c in run.companions.items()}
run.table(pd.DataFrame(found), "seeds_headline", "All draws")
"""
TRIALS = """
import os
from pathlib import Path
def compute(i):
    with open("computed", "a") as file:
        file.write(str(i))
    if i == 2 and not Path("calm").exists():
        END
    return {"third": i / 3, "square": i * i, "odd": i % 2 == 1, "name": str(i)}
rows = [run.trial(f"point {i}", lambda: compute(i)) for i in range(4)]
run.save("rows", rows=[repr(row) for row in rows])
"""


def write_notebook(folder, name, code, parameters="profile = None\ndevice = None", **metadata):
    cells = [
        nbformat.v4.new_markdown_cell(f"# {name}"),
        nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(SET_UP.format(name=name)),
        nbformat.v4.new_code_cell(code),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    notebook.metadata["repro"] = metadata
    folder.mkdir(exist_ok=True)
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Three toy notebooks, each needing the one before, and what it takes to run them."""
    monkeypatch.setenv("PYTHONPATH", str(results.ROOT))
    return Project(tmp_path, {"01_first": FIRST, "02_second": SECOND, "03_third": THIRD})


@pytest.fixture
def family(tmp_path, monkeypatch):
    """One toy notebook, and a full one that reads what the first made in the companions."""
    monkeypatch.setenv("PYTHONPATH", str(results.ROOT))
    family = Project(tmp_path, {"01_seeded": SEEDED})
    family.edit("02_reader", READER, full=True)
    return family


@pytest.fixture
def trials(tmp_path, monkeypatch):
    """One toy notebook of four trials, in whose third something happens the first time."""
    monkeypatch.setenv("PYTHONPATH", str(results.ROOT))
    return Project(tmp_path, {"01_trials": TRIALS.replace("END", "raise ValueError")})


class Project:
    def __init__(self, folder, code):
        self.notebooks = folder / "notebooks"
        self.root = folder / "results"
        self.made = self.root / "smoke"
        self.trace = folder / "trace"
        for name, source in code.items():
            self.edit(name, source)

    def edit(self, name, code, **metadata):
        write_notebook(self.notebooks, name, code, **metadata)

    def run(self, profile="smoke", **options):
        """Run, and return the exit status and the notebooks that were executed."""
        self.trace.write_text("")
        status = runner.main(profile, "cpu", notebooks=self.notebooks, root=self.root, **options)
        return status, [name[:2] for name in self.trace.read_text().split()]

    def companions(self):
        """Return what was executed in the last run, by the suffix of its profile."""
        return [name[:2] + name.partition("smoke")[2] for name in self.trace.read_text().split()]

    def computed(self):
        """Return which trials were computed since the last time that this was asked."""
        path = self.notebooks / "computed"
        found = path.read_text() if path.exists() else ""
        path.unlink(missing_ok=True)
        return found

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


@pytest.mark.fault(
    "an error in a notebook", "stops, naming the cell; nothing of that notebook counts as done"
)
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


@pytest.mark.fault("bad input, met in a notebook", "one line, no traceback")
def test_bad_input_is_one_line_without_a_traceback(project, capsys):
    bad = 'from repro.data.raw import BadInput\nraise BadInput("plays.txt, line 7: expected tabs")'
    project.edit("02_second", bad)
    assert project.run() == (FAILED, ["01", "02"])
    told = capsys.readouterr().out
    assert "]: BadInput: plays.txt, line 7: expected tabs\n" in told
    assert "FAILED in cell [" in told and "Traceback" not in told and "raise" not in told


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
        "runner.main('smoke', 'cpu', notebooks=Path(sys.argv[1]), root=Path(sys.argv[2]))"
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


def test_bars_of_cells_are_shown_with_their_time_left(project, monkeypatch, capsys):
    monkeypatch.setattr(runner, "_BETWEEN", 0)
    code = "for done in ' 25', ' 75', '100':\n    print(f'\\r{done}%|##| [00:04<00:12]', end='')\n"
    project.edit("01_first", "print('no bar')\n" + code + "    time.sleep(0.3)\n" + FIRST)
    assert project.run(only="01")[0] == runner.DONE
    out = capsys.readouterr().out
    assert "  01_first: 25%|##| [00:04<00:12]\n" in out and "no bar" not in out


def test_a_notebook_without_parameters_is_refused(project, capsys):
    write_notebook(project.notebooks, "01_first", FIRST, parameters="profile = None")
    assert project.run() == (REFUSED, [])
    assert "01_first.ipynb needs one cell tagged 'parameters' that sets device" in (
        capsys.readouterr().out
    )


@pytest.mark.fault(
    "an input file that is not there", "said before any work, with its origin, size and licence"
)
def test_missing_data_is_described_and_stops_all(project, monkeypatch, capsys):
    file = Source(Path("/data/plays.txt"), "counts", "example.org", "1 MB", "research", how="ask")
    monkeypatch.setattr(runner, "_missing_data", lambda profile: [file])
    assert project.run() == (REFUSED, [])
    told = capsys.readouterr().out
    for part in ("plays.txt", "counts", "/data", "example.org", "1 MB", "research", "ask"):
        assert part in told
    assert "./run_all.sh fetch smoke --data" in told
    monkeypatch.setenv("REPRO_DATA", "/my data")
    assert project.run("smoke+seed1") == (REFUSED, [])
    assert "./run_all.sh fetch smoke --data '/my data'" in capsys.readouterr().out


@pytest.mark.fault("the disk is full while a page is written", "one line; what is finished is kept")
def test_a_full_disk_between_two_cells_is_one_line(project, monkeypatch, capsys):
    def full(path, value):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(results, "write_json", full)
        assert project.run(only="01") == (FAILED, ["01"])
    told = capsys.readouterr().out
    assert "\nFAILED: smoke 01_first: [Errno 28] No space left on device" in told
    assert "To go on:  ./run_all.sh --profile smoke --device cpu" in told
    assert project.plan()["01"] == "new" and project.run() == (DONE, ["01", "02", "03"])


@pytest.mark.fault("an unknown profile", "refused in one line, with those there are")
def test_an_unknown_profile_is_refused(project, capsys):
    assert project.run("smokey") == (REFUSED, [])
    assert "unknown profile 'smokey'" in capsys.readouterr().out


def test_full_runs_the_companions_then_what_reads_them(family, capsys):
    assert family.run() == (DONE, ["01"])
    assert "Not up to date" not in (family.made / "README.md").read_text("utf-8")
    assert family.run(first="02") == (REFUSED, [])
    assert "02_reader are for --full" in capsys.readouterr().out

    # A companion fails; the same command goes on after it has been mended.
    assert family.run(full=True)[0] == FAILED
    assert family.companions() == ["01+seed1", "01+lenient"]
    told = capsys.readouterr().out
    assert "smoke+lenient 01_seeded ..." in told
    assert "To go on:  ./run_all.sh --profile smoke --full --device cpu" in told
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
    table = (family.made / "tables/seeds_headline.csv").read_text()
    assert table.split() == ["seed1,lenient", f"{base + 1},{base}", "0,1"]
    assert (family.root / "smoke+lenient" / "README.md").exists()
    assert "All draws" in capsys.readouterr().out

    assert family.run(full=True) == (DONE, [])
    assert family.run() == (DONE, [])
    page = (family.made / "README.md").read_text("utf-8")
    assert "All draws" in page and "Not up to date" not in page

    # Other numbers in a companion make stale what reads them, and the report says so.
    stamp = family.root / "smoke+seed1/artifacts/stamps/01_seeded.json"
    changed = json.loads(stamp.read_text())
    changed["outputs"]["artifacts/numbers.npz"] = "other"
    stamp.write_text(json.dumps(changed))
    assert family.plan() == {"01": None, "02": "input changed"}
    assert family.run() == (DONE, [])
    page = (family.made / "README.md").read_text("utf-8")
    assert "**Not up to date:** 02_reader." in page and "All draws" in page
    assert family.run(only="02") == (DONE, ["02"])
    assert "which --full mends: smoke+seed1" in capsys.readouterr().out


def test_what_reads_the_companions_runs_again_with_them(family, capsys):
    family.run(full=True, list_only=True, force=True)
    assert capsys.readouterr().out.count("runs: forced") == 4
    for name in ("smoke", "smoke+seed1", "smoke+lenient"):
        pipeline = runner.Pipeline(config.named(name), "cpu", family.notebooks, family.root)
        for step in pipeline.steps if name == "smoke" else pipeline.ordinary:
            stamp = {"key": pipeline.key(step), "outputs": {}, "journal": {"seconds": 1}}
            results.write_json(pipeline.stamp_path(step), stamp)
    family.run(full=True, list_only=True)
    assert capsys.readouterr().out.count("up to date") == 4
    (family.root / "smoke+lenient/artifacts/stamps/01_seeded.json").unlink()
    family.run(full=True, list_only=True)
    plan = capsys.readouterr().out.splitlines()
    assert "runs: an earlier notebook runs again" in plan[-1]
    assert sum("up to date" in line for line in plan) == 2


@pytest.mark.parametrize("end", ["raise ValueError", "os._exit(1)"])
@pytest.mark.fault(
    "a search for settings broken off", "what was tried is kept and not computed again"
)
def test_trials_survive_an_interruption(trials, end):
    trials.edit("01_trials", TRIALS.replace("END", end))
    assert trials.run()[0] == FAILED
    assert trials.computed() == "012"
    kept = sorted((trials.made / "artifacts/trials/01_trials").iterdir())
    assert len(kept) == 2
    kept[0].write_text('{"key": "half')  # such a file counts for nothing
    (trials.notebooks / "calm").touch()
    assert trials.run()[0] == DONE
    assert trials.computed() in ("023", "123")
    resumed = results.digest(trials.made / "artifacts/rows.npz")
    assert "REPRO_KEY" not in os.environ
    assert trials.run(force=True)[0] == DONE
    assert trials.computed() == "0123"
    assert results.digest(trials.made / "artifacts/rows.npz") == resumed


@pytest.mark.fault("trials of other code or data", "dropped")
def test_trials_of_other_code_are_dropped(trials):
    assert trials.run()[0] == FAILED
    assert trials.computed() == "012"
    trials.edit("01_trials", "# changed\n" + TRIALS.replace("END", "raise ValueError"))
    assert trials.run()[0] == FAILED
    assert trials.computed() == "012"
    trials.edit("01_trials", "raise ValueError")
    assert trials.run()[0] == FAILED
    assert not list((trials.made / "artifacts/trials/01_trials").iterdir())


def test_the_command_line(monkeypatch, capsys):
    assert main(["--profile", "smoke+none"]) == REFUSED
    told = capsys.readouterr().out.splitlines()
    assert len(told) == 1 and "unknown profile 'smoke+none'" in told[0]
    asked = []
    monkeypatch.setattr(runner, "run", lambda *a, **k: asked.append((a, k)) or DONE)
    assert main(["--profile", "lastfm+whole", "--device", "cpu"]) == DONE
    assert main(["--full"]) == DONE
    assert asked[0][0] == ("lastfm+whole", "cpu")
    assert [given["full"] for _, given in asked] == [False, True]
    with pytest.raises(SystemExit, match="2"):
        main(["--full", "--only", "02"])


def test_the_readme_is_filled_from_the_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(results, "ROOT", tmp_path)
    readme = tmp_path / "README.md"
    readme.write_text("<!-- results/demo/tables/headline -->\n<!-- end -->")
    assert main(["--readme"]) == REFUSED
    assert "README.md stays as it is" in capsys.readouterr().out
    table = tmp_path / "results/demo/tables/headline.md"
    table.parent.mkdir(parents=True)
    table.write_text("**Title**\n\n| a |\n|--:|\n| 1 |\n\n<small>note</small>\n")
    assert main(["--readme"]) == DONE
    assert "\n| a |\n|--:|\n| 1 |\n" in readme.read_text()
    assert "Title" not in readme.read_text()
