"""Requirements have one home, pyproject.toml; scripts, benchmarks and README are what they say."""

import ast
import os
import re
import subprocess
import sys
import tomllib

import pandas as pd
import pytest
import yaml
from packaging.requirements import Requirement

from repro.config import ROOT, named

CONDA_NAMES = {"pytorch": "torch", "matplotlib-base": "matplotlib", "seaborn-base": "seaborn"}


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def required(project):
    lines = project["dependencies"] + project["optional-dependencies"]["test"]
    return {r.name: r.specifier for r in map(Requirement, lines)}


def test_conda_asks_for_the_same(project, required):
    listed = yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))["dependencies"]
    conda = [Requirement(line) for line in listed if isinstance(line, str)]
    conda = {CONDA_NAMES.get(r.name, r.name): r.specifier for r in conda}
    assert str(conda.pop("python")) == project["requires-python"]
    del conda["pip"], conda["setuptools"]  # they install the package itself
    assert conda == required


def test_the_lock_is_complete_and_within_the_ranges(required):
    lines = (ROOT / "requirements.lock").read_text("utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert all(re.fullmatch(r"[\w.]+", pin) for pin in pins.values())  # no local builds, no paths
    for name, specifier in required.items():
        assert specifier.contains(pins[name]), name


def test_everything_imported_is_required(required):
    own = {"repro", "IPython", "ipykernel", "nbclient", "jupyter_client", "pygments"}  # jupyter's
    names, found = {"sklearn": "scikit-learn", "faiss": "faiss-cpu"}, set()
    for path in (ROOT / "repro").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                found.add(node.module.split(".")[0])
    assert {names.get(x, x) for x in found - sys.stdlib_module_names} - own <= set(required)


def test_scripts_are_valid_and_ci_runs_the_test_command():
    for name in ("run_all.sh", ".ci/run"):
        subprocess.run(["bash", "-n", ROOT / name], check=True)
        assert os.access(ROOT / name, os.X_OK)
    assert (ROOT / ".ci" / "run").read_text().splitlines()[-1] == "./run_all.sh test"


def test_without_a_python_the_script_says_what_it_needs(tmp_path):
    script = tmp_path / "run_all.sh"
    script.write_text((ROOT / "run_all.sh").read_text())
    for name in ("requirements.lock", "pyproject.toml"):
        (tmp_path / name).write_text("")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cat", "cksum", "dirname"):
        path = subprocess.run(["bash", "-c", f"type -P {tool}"], capture_output=True, text=True)
        (tools / tool).symlink_to(path.stdout.strip())
    how = {"env": {"PATH": str(tools)}, "capture_output": True, "text": True}
    done = subprocess.run(["/bin/bash", script], **how)
    assert done.returncode != 0 and "needs Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize("command", [["check"], ["format", "--check"]])
def test_ruff_has_no_objection(command):
    command = [sys.executable, "-m", "ruff", *command, ROOT]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_finding_in_the_readme_has_the_numbers_of_the_tables():
    def read(folder, table, *by):
        return pd.read_csv(ROOT / f"results/{folder}/tables/{table}.csv", index_col=[*by] or None)

    lastfm, numbers, wanted = "lastfm/07_seeds", [], []
    for profile in ("lastfm", "demo", "citeulike"):
        seeds = read(f"{profile}/07_seeds", "protocols").groupby("protocol")
        seeds = seeds.agg({"shallow": "mean", "deep": "mean", "gain, %": lambda x: (x > 0).sum()})
        seeds = seeds.drop("paper's") if profile == "demo" else seeds  # whose strict gain counts
        wanted += [f"ahead in {n} of 5" for n in seeds["gain, %"]]
        nine, ten = f"{profile}/09_exposure", f"{profile}/10_hearing"
        kinds, most = ("number|hearing|longer", 0.125) if profile == "lastfm" else ("number", 1.0)
        own = read(nine, "exposure_means", 0, 1)["R@40"][named(profile).exposed_epochs]
        parts = read(nine, "parts", 0)["mean"].abs().filter(regex=kinds)
        corpus = read(ten, "corpus", 0, 1, 2)["mean"]["deep", "codewords"].abs()[:most]
        numbers += [*seeds.shallow, *seeds.deep, own[1.0] - own[0.0], *parts, *corpus]
    numbers += [read(lastfm, "seeds_cold_by_pairs", 0, 1)["mean"]["CF + deep", "R@40"]]
    numbers += [read(lastfm, "seeds_cold", 0, 1)["mean"]["bag size", "R@40"]]
    numbers += [*read(lastfm, "variants_each").groupby("protocol")["deep"].mean()]  # +others
    gain = read(lastfm, "protocols", 0)["gain, %"]["paper's"]
    drawn = pd.concat([read("lastfm/10_hearing", name) for name in ("bags", "corpus")])
    wanted += [f"{(x > 0).sum()} of {len(x)}" for _, x in drawn.groupby("content")["seeds_min"]]
    wanted += [f"{gain.min():.0f} to {gain.max():.0f}%"]
    numbers += [*read(lastfm, "seeds_taught_or_not", 1)["mean"].filter(like="deep")]
    wanted += [f"{x:.3f}" if x < 1 else f"{x:.1f}" for x in numbers]  # or times chance
    finding = " ".join((ROOT / "README.md").read_text("utf-8").partition("\n## ")[0].split())
    assert [number for number in wanted if number not in finding] == []


@pytest.mark.parametrize(
    "names", [("als", "evaluation"), pytest.param((), marks=pytest.mark.long, id="all")]
)
def test_a_small_benchmark_agrees_with_others_or_slow_versions(tmp_path, names):
    command = [sys.executable, "-Wignore", "-m", "benchmarks", *names, "--small", "--out", tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "all agree"
    assert not list(tmp_path.iterdir())  # what is not timed is not kept


def test_the_page_on_speed_shows_the_goals_as_measured():
    measured = (ROOT / "results" / "benchmarks" / "README.md").read_text("utf-8")
    goals = measured.split("## What was aimed at", 1)[1].split("**Missed", 1)[0]
    rows = [line for line in goals.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert "\n".join(rows) in (ROOT / "benchmarks" / "README.md").read_text("utf-8")
