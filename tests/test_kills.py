"""A small run that is killed again and again ends as an undisturbed one does, to the bit."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from repro.pipeline import run as results

SIGNALS = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
COMMAND = [sys.executable, "-W", "ignore", "-m", "repro", "--profile", "smoke"]


def start(root, log):
    environment = os.environ | {"REPRO_RESULTS": str(root), "REPRO_CHECKPOINT_SECONDS": "0"}
    return subprocess.Popen(COMMAND, env=environment, cwd=results.ROOT, stdout=log, stderr=log)


def digests(root):
    """Return the digest of every artefact, table and figure, by name."""
    folder = root / "smoke"
    made = {}
    for stamp in sorted((folder / "artifacts" / "stamps").glob("0[1-6]*.json")):
        made |= json.loads(stamp.read_text())["outputs"]
    kept = ("artifacts/", "tables/", "figures/")
    return {name: sha for name, sha in made.items() if name.startswith(kept)}


def disturbed(root, kills, seed):
    """Run, killing after random times, until so many kills have hit; then let it end."""
    draw, hit, log = random.Random(seed), {s.name: 0 for s in SIGNALS}, root / "log"
    while sum(hit.values()) < kills:
        with log.open("ab") as file:
            run = start(root, file)
            try:
                run.wait(draw.uniform(0.2, 14.0))
            except subprocess.TimeoutExpired:
                chosen = draw.choice(SIGNALS)
                run.send_signal(chosen)
                run.wait(60)
                hit[chosen.name] += 1
            else:  # it had ended: the next one begins again
                assert run.returncode == 0, log.read_text()[-2000:]
                forget(root, draw)
    with log.open("ab") as file:
        assert start(root, file).wait(600) == 0, log.read_text()[-2000:]
    return hit


def forget(root, draw):
    """Remove what a notebook drawn at random has made, so that there is work again."""
    stamps = sorted((root / "smoke" / "artifacts" / "stamps").glob("0[1-6]*.json"))
    draw.choice(stamps).unlink()


def judge(whole_run, root, kills, seed):
    hit = disturbed(root, kills, seed)
    found, expected = digests(root), digests(whole_run)
    different = sorted(n for n in expected | found if expected.get(n) != found.get(n))
    assert expected and not different
    left = [p for p in (root / "smoke").rglob("*") if "partial" in p.name]
    assert not left, left
    return hit


@pytest.mark.fault(
    "SIGKILL, SIGTERM or Ctrl-C at a random moment, again and again",
    "the same command goes on to an undisturbed run's results, to the bit; nothing partial",
)
def test_a_few_kills(whole_run, tmp_path):
    assert sum(judge(whole_run, tmp_path, 5, 1).values()) == 5


@pytest.mark.long
def test_fifty_kills(whole_run, tmp_path):
    began = time.time()
    hit = judge(whole_run, tmp_path, 50, 2)
    print(f"{hit} in {time.time() - began:.0f} s")
    assert sum(hit.values()) == 50 and min(hit.values()) > 5


@pytest.mark.fault("a second run into the same results", "refused in one line; the first goes on")
def test_a_second_run_is_refused_while_the_first_is_at_work(tmp_path):
    with (tmp_path / "log").open("wb") as log:
        first = start(tmp_path, log)
        try:
            lock = tmp_path / "smoke" / "artifacts" / "lock"
            while not (lock.exists() and "01_data_prep" in (tmp_path / "log").read_text()):
                assert first.poll() is None
                time.sleep(0.1)
            second = subprocess.run(
                COMMAND,
                env=os.environ | {"REPRO_RESULTS": str(tmp_path)},
                cwd=results.ROOT,
                capture_output=True,
                text=True,
            )
        finally:
            first.send_signal(signal.SIGTERM)
            assert first.wait(60) == 130
    assert second.returncode == 2
    assert "another run is at work in" in second.stdout and "Traceback" not in second.stderr
    assert "To go on:  ./run_all.sh --profile smoke" in (tmp_path / "log").read_text()


@pytest.mark.fault(
    "the disk is full", "stops, naming the file; what it had before stays, nothing partial"
)
def test_a_full_disk_is_said_and_leaves_nothing(tmp_path):
    """A limit on the size of a file stands in for the disk: the write fails in the same place."""
    program = (
        "import resource, signal, sys\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "from pathlib import Path\n"
        "from repro.pipeline.run import atomic\n"
        "with atomic(Path(sys.argv[1])) as file:\n"
        "    file.write(bytes(1_000_000))\n"
    )
    path = tmp_path / "out.npz"
    path.write_bytes(b"before")
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.splitlines()[-1].endswith(f"'{path}'")
    assert path.read_bytes() == b"before" and os.listdir(tmp_path) == ["out.npz"]


@pytest.mark.fault("results that cannot be written", "refused before any work")
def test_results_that_cannot_be_written_are_refused(monkeypatch, tmp_path, capsys):
    from repro.pipeline import runner

    in_the_way = tmp_path / "file"
    in_the_way.write_text("")
    assert runner.main("smoke", root=Path(in_the_way)) == runner.REFUSED
    assert "cannot be written" in capsys.readouterr().out
