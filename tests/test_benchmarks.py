"""The benchmarks agree with other software, or with slow versions, on tiny shapes; no timing."""

import subprocess
import sys

import pytest

from repro.config import ROOT


def test_small_run_agrees(tmp_path):
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks"]
    done = subprocess.run(
        [*command, "--small", "--out", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.splitlines()[-1] == "all agree"
    assert not list(tmp_path.iterdir())  # what is not timed is not kept


def test_readme_shows_the_committed_goals():
    command = ["git", "-C", ROOT, "show", "HEAD:results/benchmarks/README.md"]
    shown = subprocess.run(command, capture_output=True, text=True)
    if shown.returncode:
        pytest.skip("no commit to compare with")
    goals = shown.stdout.split("## What was aimed at", 1)[1].split("**Missed", 1)[0]
    rows = [line for line in goals.splitlines() if line.startswith("|")]
    assert len(rows) > 10
    assert "\n".join(rows) in (ROOT / "README.md").read_text("utf-8")
