"""run_all.sh as people start it: from another folder, by a link, into a pipe; on every Python."""

import os
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def environment():
    """The environment of these tests, as an active one that the script takes."""
    try:
        distribution("repro")
    except PackageNotFoundError:
        pytest.skip("the package is not installed in this environment")
    return os.environ | {"VIRTUAL_ENV": sys.prefix}


@pytest.mark.fault("the script by a link, data in ../music", "the caller's folder is meant")
def test_data_are_looked_for_from_the_callers_folder(environment, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "go").symlink_to(ROOT / "run_all.sh")
    command = ["./go", "--profile", "lastfm", "--data", "../music", "--list"]
    done = subprocess.run(
        command, cwd=tmp_path / "here", env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert str(tmp_path / "music") in done.stdout


@pytest.mark.fault("output into a pipe that closes", "a quiet end")
def test_a_closed_pipe_is_a_quiet_end(environment):
    command = f"'{ROOT / 'run_all.sh'}' --list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True)
    assert done.returncode in (0, 141) and not done.stderr  # 128 + SIGPIPE is bash's own


@pytest.mark.long
@pytest.mark.fault("Python 3.11.0, older than some packages ask for", "the lock serves it")
@pytest.mark.parametrize("version", ["3.11.0", "3.12.0", "3.13.0"])
def test_the_lock_serves_every_python(version, tmp_path):
    """Every pinned package has a wheel for it, and allows it."""
    options = ["--no-deps", "--only-binary=:all:", "--python-version", version]
    options += ["--target", tmp_path, "--dry-run", "-q", "-r", ROOT / "requirements.lock"]
    subprocess.run([sys.executable, "-m", "pip", "install", *options], check=True)
