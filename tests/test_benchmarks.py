"""The benchmarks agree with other software, or with slow versions, on tiny shapes; no timing."""

import subprocess
import sys

import pytest

from repro.config import ROOT


@pytest.mark.parametrize(
    "names", [("als", "evaluation"), pytest.param((), marks=pytest.mark.long, id="all")]
)
def test_small_run_agrees(tmp_path, names):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks", *names]
    done = subprocess.run(
        [*command, "--small", "--out", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "all agree"
    assert not list(tmp_path.iterdir())  # what is not timed is not kept


def test_the_page_on_speed_shows_the_goals_as_measured():
    measured = (ROOT / "results" / "benchmarks" / "README.md").read_text("utf-8")
    goals = measured.split("## What was aimed at", 1)[1].split("**Missed", 1)[0]
    rows = [line for line in goals.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert "\n".join(rows) in (ROOT / "benchmarks" / "README.md").read_text("utf-8")
