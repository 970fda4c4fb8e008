"""A whole run with companions and studies, small: what ``--full`` makes, and that it resumes."""

import json

import nbformat
import pytest

from repro.config import ROOT
from repro.pipeline import runner

SUFFIXES = "", "+seed1", "+lenient"


@pytest.mark.parametrize("name", ["07_seeds", "08_studies"])
def test_the_checks_print_what_the_notebook_stores(whole_run, name):
    """As nbval compares the other notebooks: these two need runs beside their own."""

    def checks(path):
        cells = nbformat.read(path, as_version=4).cells
        cells = [c for c in cells if "nbval-check-output" in c.metadata.get("tags", [])]
        return ["".join(o.get("text", "") for o in c.outputs) for c in cells]

    stored = checks(ROOT / "notebooks" / f"{name}.ipynb")
    assert stored and stored == checks(whole_run / "smoke" / name / f"{name}.ipynb")


def test_every_companion_has_a_report(whole_run):
    for suffix in SUFFIXES:
        folder = whole_run / f"smoke{suffix}"
        made = json.loads((folder / "manifest.json").read_text())
        assert made["profile"] == f"smoke{suffix}"
        assert ("07_seeds" in made["notebooks"]) == (suffix == "")


def test_the_page_of_results_leads_with_the_seeds(whole_run):
    page = (whole_run / "smoke" / "README.md").read_text()
    top = page[: page.index("\n## ")]
    assert "over 2 seeds" in top and "±" in top


def test_nothing_runs_twice(whole_run, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_RESULTS", str(whole_run))
    assert runner.main("smoke", full=True) == runner.DONE
    assert "done:" not in capsys.readouterr().out
