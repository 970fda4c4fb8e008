"""A whole run with companions and studies, small: what ``--full`` makes, and that it resumes."""

import json

import nbformat
import pytest

from repro import runner
from repro.results import ROOT

SUFFIXES = "", "+seed1", "+lenient"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REPRO_RESULTS", str(root))
        assert runner.run("smoke", full=True) == runner.DONE
    return root


@pytest.mark.parametrize("name", ["07_seeds", "08_studies"])
def test_the_checks_print_what_the_notebook_stores(results, name):
    """As nbval compares the other notebooks: these two need runs beside their own."""

    def checks(path):
        cells = nbformat.read(path, as_version=4).cells
        cells = [c for c in cells if "nbval-check-output" in c.metadata.get("tags", [])]
        return ["".join(o.get("text", "") for o in c.outputs) for c in cells]

    stored = checks(ROOT / "notebooks" / f"{name}.ipynb")
    assert stored and stored == checks(results / "smoke" / "notebooks" / f"{name}.ipynb")


def test_every_companion_has_a_report(results):
    for suffix in SUFFIXES:
        folder = results / f"smoke{suffix}"
        made = json.loads((folder / "manifest.json").read_text())
        assert made["profile"] == f"smoke{suffix}"
        assert ("07_seeds" in made["notebooks"]) == (suffix == "")


def test_the_page_of_results_leads_with_the_seeds(results):
    page = (results / "smoke" / "README.md").read_text()
    top = page[: page.index("\n## ")]
    assert "over 2 seeds" in top and "±" in top


def test_nothing_runs_twice(results, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_RESULTS", str(results))
    assert runner.run("smoke", full=True) == runner.DONE
    assert "done:" not in capsys.readouterr().out
