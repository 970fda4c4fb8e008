"""What a notebook saves comes back, looks the same twice, and lies where it should."""

import html
import json
import shutil
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from repro import config
from repro.data.files import sha256, write_json
from repro.pipeline import report
from repro.pipeline.run import RECORD, Checkpoint, Points, Run, Store

AWKWARD = "A$AP | <b>Ke$ha</b> & Æ"


@pytest.fixture
def run():
    return Run("01_toy", "smoke", "cpu")


def noted(run):
    return json.loads((run.folder / RECORD).read_text("utf-8"))


def test_arrays_strings_and_scalars_come_back(run):
    ids = np.array(["SOAAA", "SÖ", ""])
    run.save("toy", x=np.arange(6.0).reshape(2, 3), ids=ids, k=50, name="deep", on=True, eps=1e-6)
    toy = run.load("toy")
    np.testing.assert_array_equal(toy.x, [[0, 1, 2], [3, 4, 5]])
    assert toy.ids.tolist() == ids.tolist()
    assert (toy.k, toy.name, toy.on, toy.eps) == (50, "deep", True, 1e-6)


def test_sparse_matrices_come_back_by_rows(run):
    matrix = sparse.csc_matrix(np.array([[0, 2, 0], [0, 0, 3]], dtype=np.float32))
    run.save("toy", plays=matrix, empty=sparse.csr_array((4, 5)), other=sparse.coo_array(matrix))
    toy = run.load("toy")
    assert type(toy.plays) is sparse.csr_matrix and toy.plays.dtype == np.float32
    np.testing.assert_array_equal(toy.plays.toarray(), matrix.toarray())
    np.testing.assert_array_equal(toy.other.toarray(), matrix.toarray())
    assert toy.empty.shape == (4, 5)


@pytest.mark.parametrize("value", [np.array(["a", None], dtype=object), None, {"a": 1}])
@pytest.mark.fault("a Python object in an artefact", "refused: nothing is pickled")
def test_python_objects_are_refused(run, value):
    with pytest.raises(TypeError, match="'bad' holds Python objects"):
        run.save("toy", bad=value)
    with pytest.raises(FileNotFoundError, match=r"artifacts/toy.npz is missing: run .* first"):
        run.load("toy")


@pytest.mark.fault("HTML in a name or a tag", "escaped")
def test_a_table_is_numbers_in_csv_and_typeset_on_the_page(run):
    frame = pd.DataFrame({"model": [AWKWARD, "deep"], "recall": [1 / 3, np.nan], "n": [7, 1234]})
    run.table(frame, "toy", "Recall", note="two users")
    tables = run.folder / "tables"
    pd.testing.assert_frame_equal(pd.read_csv(tables / "toy.csv"), frame)  # in full precision
    markdown = (tables / "toy.md").read_text("utf-8")
    row = "| A&#36;AP &#124; &lt;b&gt;Ke&#36;ha&lt;/b&gt; &amp; Æ | 0.333 | 7 |"
    assert row in " ".join(markdown.split())
    assert "synthetic data" in markdown and "two users" in markdown
    latex = (tables / "toy.tex").read_text("utf-8")
    assert r"A\$AP" in latex and "0.333" in latex and r"\begin{tabular}{lrr}" in latex
    run.table(frame, "other", "Recall", shown=pd.DataFrame({"recall": ["**0.33 ±.01**", "–"]}))
    pd.testing.assert_frame_equal(Run("02_later", "smoke", "cpu").read_table("toy"), frame)
    assert "**0.33 ±.01**" in (tables / "other.md").read_text("utf-8")
    assert r"\textbf{0.33 ±.01}" in (tables / "other.tex").read_text("utf-8")
    run.table(frame, "long", "All", shown=False)
    assert {path.name for path in tables.glob("long.*")} == {"long.csv"}
    run.table(pd.DataFrame({"n": [1]}, index=["deep"]), "index", "Counts")
    assert all("deep" in (tables / f"index.{e}").read_text("utf-8") for e in ("csv", "md", "tex"))


def test_formulas_are_typeset_and_names_are_not():
    page = report._html("$x$, A&#36;AP and Ke&#36;ha\n\n$$\\sum_i x_i$$")
    assert page.count("<math") == 2 and "A$AP and Ke$ha" in html.unescape(page)


def test_a_figure_is_the_same_twice_and_closed(run):
    digests = []
    for _ in range(2):
        figure, axes = plt.subplots(figsize=(3, 2))
        axes.plot([1, 3, 2], label="β")
        run.figure(figure, "toy", "A line")
        digests.append([sha256(run.folder / "figures" / f"toy.{e}") for e in ("png", "pdf")])
    assert digests[0] == digests[1]
    assert plt.get_fignums() == []
    assert noted(run)["shown"][-1] == {"kind": "figure", "name": "toy", "caption": "A line"}


def test_provenance_names_data_device_and_changes(run, results_folder):
    assert run.provenance == "synthetic data, smoke test · seed 98765 · cpu"
    run.save("data", digest="0123456789abcdef")
    shutil.move(run.folder, results_folder / "smoke/01_toy")  # of another time
    assert Run("02_later", "smoke", "cpu").provenance.endswith("cpu · data 0123456789ab")
    assert Run("01_toy", "smoke", "cpu").provenance.endswith("cpu")
    changed = Run("02_later", replace(config.SMOKE, epochs=1), "cpu")
    assert changed.provenance.endswith("settings changed by hand")


def test_checks_are_noted(run, capsys):
    run.check("one is one", np.bool_(True))
    with pytest.raises(AssertionError, match="pigs fly"):
        run.check("pigs fly", False)
    assert (noted(run)["checks"], noted(run)["seed"]) == (["one is one"], config.SMOKE.seed)
    assert noted(run)["peak_mib"] > 1
    assert capsys.readouterr().out == "ok  one is one\n"


def test_a_set_up_cell_can_run_twice():
    """The cell leaves the profile in the variable that it was named by."""
    profile = "smoke"
    for _ in range(2):
        run = Run("01_toy", profile, "cpu")
        profile = run.profile
    assert run.profile is config.SMOKE and noted(run)["checks"] == []


def test_a_run_by_hand_leaves_what_is_published(results_folder, monkeypatch, capsys):
    monkeypatch.setenv("REPRO_KEY", "1")
    published = Run("01_toy", "smoke", "cpu")
    published.save("toy", x=1)
    published.folder.rename(results_folder / "smoke" / "01_toy")
    monkeypatch.delenv("REPRO_KEY")
    before = {p: p.read_bytes() for p in (results_folder / "smoke").rglob("*") if p.is_file()}
    for profile in ("smoke", replace(config.SMOKE, epochs=1)):
        run = Run("01_toy", profile, "cpu")
        run.banner()
        told = capsys.readouterr().out
        run.save("toy", x=2)
        run.table(pd.DataFrame({"n": [1]}), "toy", "Counts")
        assert run.folder == results_folder / "scratch" / "smoke" / "01_toy"
        assert Run("02_later", "smoke", "cpu").load("toy").x == 2
        assert not told or "Run by hand" in told or "Markdown" in told
    assert Store(config.SMOKE).load("toy").x == 1
    after = {p: p.read_bytes() for p in (results_folder / "smoke").rglob("*") if p.is_file()}
    assert before == after


def test_the_world_is_shared_by_companions_unless_it_is_another(results_folder):
    world = results_folder / "smoke" / "world"
    assert Run("01_toy", "smoke", "cpu").data == world
    other = Run("01_toy", "smoke+lenient", "cpu")
    assert other.data == world and other.folder.parent.name == "smoke+lenient"
    assert other.provenance == "synthetic data, smoke test +lenient · seed 98765 · cpu"
    larger = replace(config.SMOKE, world=replace(config.SMOKE.world, users=600))
    assert Run("01_toy", larger, "cpu").data == results_folder / "scratch" / "smoke" / "world"


@pytest.mark.fault("a GPU asked for where there is none", "refused in one line")
def test_an_absent_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU"):
        Run("01_toy", "smoke", "cuda")
    assert Run("01_toy", "smoke", "auto").device == "cpu"


def test_a_synthetic_world_in_the_place_of_real_files_is_called_synthetic(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_DATA", str(tmp_path))
    real = Run("01_toy", "paper", "cpu")
    assert real.on_the_papers_data and "synthetic" not in real.provenance
    (tmp_path / "world.json").write_text("{}")
    fake = Run("01_toy", "paper", "cpu")
    assert not fake.on_the_papers_data and "synthetic data" in fake.provenance
    assert not Run("01_toy", "lastfm", "cpu").on_the_papers_data


def test_a_companion_differs_in_what_its_name_says():
    assert config.named("demo") is config.DEMO
    other = config.named("demo+seed3")
    assert (other.name, other.seed) == ("demo+seed3", config.DEMO.seed + 3)
    assert (other.world, other.companions) == (config.DEMO.world, ())
    for profile in config.PROFILES.values():
        for suffix in profile.companions:
            found = config.named(f"{profile.name}+{suffix}").table()
            differ = [a for a, b in zip(found, profile.table(), strict=True) if a != b]
            assert len(differ) == 1 + suffix.count("+")


@pytest.mark.parametrize("suffix", ["seed0", "seed", "", "seed1+lenient", "seed1+seed2"])
def test_an_unknown_companion_lists_the_known(suffix):
    with pytest.raises(ValueError, match=r"demo alone or with one of \+seed1, .*, \+artists"):
        config.named(f"demo+{suffix}")


def test_companions_are_read_once_they_are_finished(run, results_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("repro.pipeline.run.NOTEBOOKS", tmp_path)
    for name, metadata in {"01_toy": {}, "02_full": {"repro": {"full": True}}}.items():
        write_json(tmp_path / f"{name}.ipynb", {"metadata": metadata})
    Run("01_toy", "smoke+seed1", "cpu").save("toy", x=7)
    folder = results_folder / "smoke+seed1" / "01_toy"
    shutil.copytree(results_folder / "scratch" / "smoke+seed1" / "01_toy", folder)
    assert list(run.companions) == ["seed1"]
    found = run.companions["seed1"]
    assert (found.load("toy").x, found.profile.seed) == (7, run.profile.seed + 1)
    folder.rename(folder.with_suffix(".partial"))
    assert run.companions == {}


@pytest.mark.fault("a search's table of finished settings cut short", "the cut row computed again")
def test_points_go_on_where_they_were(tmp_path):
    grid = [{"i": i, "where": "DEN"} for i in range(3)]
    path = tmp_path / "points.jsonl"
    path.touch()
    for cut, expected in ((0, [0, 1, 2]), (0, []), (5, [2]), (0, [])):
        path.write_text(path.read_text()[: -cut or None])
        points, done = Points(path), []
        for one in points.todo(grid):
            points.add(one, {"x": np.float32(one["i"]) / 3, "ok": np.True_})
            done.append(one["i"])
        assert done == expected
    frame = Points(path).frame(grid)
    assert frame.columns.tolist() == ["i", "where", "x", "ok"]
    assert frame["x"].tolist() == [float(np.float32(i) / 3) for i in range(3)]


def test_points_and_checkpoints_are_kept_for_the_runner_alone(run, monkeypatch):
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    run.points("search").add({"i": 1}, {"x": 1})
    run.checkpoint("fit").save(lambda: {"x": torch.arange(3)})
    assert list(run.points("search").todo([{"i": 1}]))
    assert run.checkpoint("fit").load() is None
    monkeypatch.setenv("REPRO_KEY", "1")
    run = Run("01_toy", "smoke", "cpu")
    run.points("search").add({"i": 1}, {"x": 1})
    assert not list(run.points("search").todo([{"i": 1}]))
    run.checkpoint("fit, DEN").save(lambda: {"x": torch.arange(3.0), "n": [1, "2"]})
    found = run.checkpoint("fit, DEN").load()
    assert torch.equal(found["x"], torch.arange(3.0)) and found["n"] == [1, "2"]
    assert run.checkpoint("fit DEN").load() is None
    monkeypatch.delenv("REPRO_CHECKPOINT_SECONDS")
    run.checkpoint("fit, DEN").save(lambda: pytest.fail("too soon"))
    run.device = "cuda"
    assert run.checkpoint("fit, DEN").load() is None


@pytest.mark.fault("a checkpoint that is broken", "from the beginning")
@pytest.mark.parametrize("content", [None, b"", b"PK", b"hello" * 99])
def test_a_broken_checkpoint_counts_for_nothing(tmp_path, content):
    path = tmp_path / "kept.pt"
    if content is not None:
        path.write_bytes(content)
    assert Checkpoint(path, 0.0).load() is None
