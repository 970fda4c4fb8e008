"""Keep every test away from the repository's own results and from the user's settings."""

import matplotlib
import pytest
import torch

from repro.pipeline import runner

matplotlib.use("agg")


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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """Return the folder of all results after ``--full`` of the smoke profile, undisturbed."""
    root = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_RESULTS", str(root))
        assert runner.main("smoke", full=True) == runner.DONE
    return root
