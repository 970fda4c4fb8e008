"""A whole run with companions and studies, small: what ``--full`` makes, and that it resumes."""

import json
import re
from urllib.parse import unquote

import nbformat
import numpy as np
import pytest

from repro.__main__ import main
from repro.config import ROOT, named
from repro.data import prepare
from repro.models import tagnet, vq, wmf
from repro.pipeline import runner
from repro.pipeline.run import Store


@pytest.mark.parametrize("name", ["07_seeds", "08_studies", "09_exposure", "10_hearing"])
def test_the_checks_print_what_the_notebook_stores(whole_run, name):
    """As nbval compares the other notebooks: these need runs beside their own."""

    def checks(path):
        cells = nbformat.read(path, as_version=4).cells
        cells = [c for c in cells if "nbval-check-output" in c.metadata.get("tags", [])]
        return ["".join(o.get("text", "") for o in c.outputs) for c in cells]

    stored = checks(ROOT / "notebooks" / f"{name}.ipynb")
    assert stored and stored == checks(whole_run / "smoke" / name / f"{name}.ipynb")


def test_no_page_has_warnings_or_folders_of_this_machine(whole_run):
    pages = sorted((whole_run / "smoke").glob("*/*.ipynb"))
    cells = [cell for page in pages for cell in nbformat.read(page, as_version=4).cells]
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    assert outputs and not [output for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if str(ROOT) in str(output)]


def test_pages_need_no_network_and_every_link_leads_somewhere(whole_run):
    pages = [whole_run / "index.html", *sorted((whole_run / "smoke").rglob("*.html"))]
    assert len(pages) == 12
    for page in pages:
        text = page.read_text("utf-8")
        assert "<script" not in text and "@import" not in text and 'src="http' not in text
        assert not re.search(r"\\[a-z]", "".join(re.findall("<math.*?</math>", text, re.DOTALL)))
        for link in re.findall(r'(?:href|src)="([^"]+)"', text):
            path, _, place = link.partition("#")
            if not link.startswith(("data:", "https:")):
                assert (page.parent / unquote(path)).exists() if path else f'id="{place}"' in text
        assert ("<math" in text and "<details>" in text) or page.stem[:2] != "04"


def test_the_page_of_results_leads_with_the_seeds(whole_run):
    page = (whole_run / "smoke" / "README.md").read_text()
    top = page[: page.index("\n## ")]
    assert "over 2 seeds" in top and "±" in top


@pytest.mark.long
def test_every_companion_has_a_report_and_nothing_runs_twice(results_folder, capsys):
    assert runner.main("smoke", "cpu", full=True) == runner.DONE
    for suffix in ("", "+seed1", "+lenient"):
        made = json.loads((results_folder / f"smoke{suffix}" / "manifest.json").read_text())
        assert made["01_data_prep"]["profile"] == f"smoke{suffix}"
        assert ("07_seeds" in made) == (suffix == "")
    capsys.readouterr()
    assert runner.main("smoke", "cpu", full=True) == runner.DONE
    assert "done:" not in capsys.readouterr().out


@pytest.mark.parametrize("kind", ["shallow", "deep"])
def test_a_new_song_is_scored_from_its_frames_and_artefacts_alone(whole_run, kind):
    """As if a cold track of the run came in afterwards: it gets the score that the run gave it."""
    profile = named("smoke")
    store = Store(profile, whole_run)
    saved = vars(store.load("codebook"))
    book = vq.Codebook(*(saved[name] for name in ("centres", "offset", "scale")))
    net = tagnet.restore(vars(store.load("network")))
    model = store.load(f"DEN CF + {kind}")
    read = prepare.bags(profile, whole_run / "smoke" / "world")
    tracks = store.load("den").cold_tracks
    row = next(i for i, track in enumerate(tracks) if len(read(track)))
    frames = read(tracks[row])
    content = vq.l1_normalise(vq.histograms(lambda song: frames, ["new"], book))
    if kind == "deep":
        content = tagnet.hidden_layer(net, content)
    scores = model.theta @ wmf.cold_factors(content, model.w)[0]
    expected = model.theta @ model.cold[row]
    assert np.ptp(expected) > 0.001 and np.allclose(scores, expected, rtol=1e-4, atol=1e-6)


def test_names_are_recommended_for_from_the_command_line(whole_run, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_RESULTS", str(whole_run))
    den = Store(named("smoke"), whole_run).load("den")
    mine = whole_run / "mine.csv"
    mine.write_text(f'name,count\n"{den.item_names[1]}",3\n')
    asked = ["recommend", f"{den.item_names[0]}x", "--csv", str(mine), "--profile", "smoke"]
    assert main(asked) == runner.DONE
    told = capsys.readouterr().out
    assert all(f"{name} (" in told for name in den.item_names[:2]) and told.count("| name") == 2
    assert any(name in told for name in den.cold_names)
    assert main(["recommend", "--profile", "lastfm"]) == runner.FAILED
    assert "run the earlier notebooks first" in capsys.readouterr().out
    mine.write_text("artist\nA\n")
    assert main(asked) == runner.FAILED
    assert f"{mine}: expected a table with a column name" in capsys.readouterr().out
