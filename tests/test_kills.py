"""A small run that is killed again and again ends as an undisturbed one does, to the bit."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest

from repro.config import ROOT
from repro.data.files import exclusive_lock, write_atomically
from repro.pipeline import run, runner

SIGNALS = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
COMMAND = [sys.executable, "-W", "ignore", "-m", "repro", "--profile", "smoke", "--device", "cpu"]
RECORDS = f"smoke/0[1-6]*/{run.RECORD}"


def start(root, log):
    environment = os.environ | {"REPRO_RESULTS": str(root), "REPRO_CHECKPOINT_SECONDS": "0"}
    environment["OMP_NUM_THREADS"] = "1"  # as the run that it is compared with
    with log.open("ab") as file:
        return subprocess.Popen(COMMAND, env=environment, cwd=ROOT, stdout=file, stderr=file)


def digests(root):
    """Return the digest of every artefact, table and figure."""
    records = [(path.parts[-3], json.loads(path.read_text())) for path in root.glob(RECORDS)]
    every = [(where, *output) for where, record in records for output in record["outputs"].items()]
    return sorted(output for output in every if "/" in output[1])


def hits(whole_run, root, kills, seed, longest):
    """Return how often each signal has hit a run that ends as the undisturbed one has."""
    draw, hit, log = random.Random(seed), dict.fromkeys(SIGNALS, 0), root / "log"
    while sum(hit.values()) < kills:
        process = start(root, log)
        try:
            process.wait(draw.uniform(0.2, longest))
        except subprocess.TimeoutExpired:
            chosen = draw.choice(SIGNALS)
            process.send_signal(chosen)
            process.wait(60)
            hit[chosen] += 1
        else:  # it had ended: the next one begins again
            assert process.returncode == 0, log.read_text()[-2000:]
            draw.choice(sorted(root.glob(RECORDS))).unlink()
    assert start(root, log).wait(600) == 0, log.read_text()[-2000:]
    assert digests(whole_run) == digests(root) != []
    assert not [*root.glob("smoke/**/*partial*"), *root.glob(f"smoke/*/{run.KEPT}")]
    return hit.values()


@pytest.mark.fault("SIGKILL, SIGTERM or Ctrl-C again and again", "the same results, to the bit")
def test_a_few_kills(whole_run, tmp_path):
    """Of the two notebooks that are longest, the others being done."""
    shutil.copytree(whole_run / "smoke", tmp_path / "smoke")
    for name in ("03_tag_pretraining", "05_baselines"):
        shutil.rmtree(tmp_path / "smoke" / name)
    assert sum(hits(whole_run, tmp_path, 5, 1, longest=9.0)) == 5


@pytest.mark.long
def test_fifty_kills(whole_run, tmp_path):
    hit = hits(whole_run, tmp_path, 50, 2, longest=14.0)
    assert sum(hit) == 50 and min(hit) > 5


@pytest.mark.fault("SIGTERM, from a batch system perhaps", "stops, saying how to go on")
def test_sigterm_stops_a_run_and_its_kernel(tmp_path):
    log = tmp_path / "log"
    process = start(tmp_path, log)
    while "01_data_prep ..." not in log.read_text():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    # Where the signal met an exec, as of a dataclass, Python ends as by SIGINT: 130 to a shell.
    assert process.wait(60) in (130, -signal.SIGINT)
    assert "the same command goes on" in log.read_text()


@pytest.mark.fault("the disk is full", "stops, naming the file; what it had before stays")
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A limit on the size of a file stands in for the disk: the write fails in the same place."""
    path, limits = tmp_path / "out.npz", resource.getrlimit(resource.RLIMIT_FSIZE)
    path.write_bytes(b"before")
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, limits[1]))  # Python ignores SIGXFSZ
    try:
        with pytest.raises(OSError, match=f"'{path}'"), write_atomically(path) as file:
            file.write(bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["out.npz"]


@pytest.mark.fault("a second run into the same results", "refused in one line; the first goes on")
@pytest.mark.fault("results that cannot be written", "refused before any work")
def test_what_cannot_start_is_refused(results_folder, monkeypatch, capsys):
    (results_folder / "smoke").mkdir(parents=True)
    with exclusive_lock(results_folder / "smoke" / "lock", "busy"):
        for profile in ("smoke", "smoke+seed1"):
            assert runner.main(profile, "cpu") == runner.REFUSED
            told = capsys.readouterr().out.splitlines()[-1]
            assert told.startswith("Cannot start: another run is at work in")
    in_the_way = results_folder / "smoke" / "lock"
    monkeypatch.setenv("REPRO_RESULTS", str(in_the_way))
    assert runner.main("smoke") == runner.REFUSED
    assert f"Cannot start: [Errno 20] Not a directory: '{in_the_way}" in capsys.readouterr().out
