"""Keep tests and nbval's notebooks away from published results and from the user's settings."""

import os
import shutil
import tempfile
from pathlib import Path

import matplotlib
import pytest

from repro.pipeline import report, run, runner

matplotlib.use("agg")
# The kernels that nbval starts inherit it, and so does whatever a test starts.
HOME = Path(tempfile.mkdtemp(prefix="repro-tests-"))
os.environ |= {"REPRO_PROFILE": "smoke", "REPRO_DEVICE": "cpu", "REPRO_RESULTS": str(HOME)}
os.environ.setdefault("OMP_NUM_THREADS", "1")  # threads gain nothing on what is small


def pytest_unconfigure():
    """Remove what nbval's notebooks have written."""
    shutil.rmtree(HOME, ignore_errors=True)


@pytest.fixture(autouse=True)
def results_folder(tmp_path, monkeypatch):
    """Point the results at a fresh folder and forget what the user's environment asks for."""
    for name in ("REPRO_PROFILE", "REPRO_DEVICE", "REPRO_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"


@pytest.fixture(scope="module")
def one_thread():
    """Threads gain nothing on what is small, and on a busy machine wait for one another."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """Return the folder of all results after an undisturbed run of the smoke profile.

    Copies of the run stand in for its companions, but for another seed's split, so that the
    notebooks that read these can run. The companions' own runs are tests marked long.
    """
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_RESULTS", str(root))
        patch.setattr(report, "write_pages", lambda folder: None)  # once, at the end
        assert runner.main("smoke", "cpu") == runner.DONE
        for number in ("09", "10"):  # of one seed
            assert runner.main("smoke", "cpu", only=number) == runner.DONE
        assert runner.main("smoke+seed1", "cpu", only="01") == runner.DONE
        for record in root.glob(f"smoke/*/{run.RECORD}"):
            for suffix in ("seed1", "lenient"):
                companion = root / f"smoke+{suffix}" / record.parents[1].name
                if not companion.exists():
                    shutil.copytree(record.parents[1], companion)
        for number in ("07", "08"):
            assert runner.main("smoke", "cpu", only=number) == runner.DONE
    report.write_pages(root / "smoke")
    return root
