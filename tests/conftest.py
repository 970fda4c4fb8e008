"""Keep every test away from the repository's own results and from the user's settings."""

import matplotlib
import pytest

matplotlib.use("agg")


@pytest.fixture(autouse=True)
def results_folder(tmp_path, monkeypatch):
    """Point the results at a fresh folder and forget what the user's environment asks for."""
    for name in ("REPRO_PROFILE", "REPRO_DEVICE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "results"))
    return tmp_path / "results"
