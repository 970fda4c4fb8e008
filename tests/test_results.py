"""What a notebook saves comes back, looks the same twice, and is never half written."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from repro import config
from repro.pipeline import report
from repro.pipeline.run import Checkpoint, Run, alone, atomic, digest, write_json

AWKWARD = "A$AP | <b>Ke$ha</b> & Æ"


@pytest.fixture
def run():
    return Run("01_toy", "smoke", "cpu")


def journal(run):
    return json.loads((run.artifacts / "journal" / f"{run.notebook}.json").read_text("utf-8"))


def test_arrays_strings_and_scalars_come_back(run):
    ids = np.array(["SOAAA", "SÖ", ""])
    run.save("toy", x=np.arange(6.0).reshape(2, 3), ids=ids, k=50, name="deep", on=True, eps=1e-6)
    toy = run.load("toy")
    np.testing.assert_array_equal(toy.x, [[0, 1, 2], [3, 4, 5]])
    assert toy.ids.tolist() == ids.tolist()
    assert (toy.k, toy.name, toy.on, toy.eps) == (50, "deep", True, 1e-6)


@pytest.mark.parametrize("kind", ["csr_array", "csc_array", "csr_matrix", "csc_matrix"])
def test_sparse_matrices_come_back_as_they_were(run, kind):
    matrix = getattr(sparse, kind)(np.array([[0, 2, 0], [0, 0, 3]], dtype=np.float32))
    run.save("toy", plays=matrix, empty=sparse.csr_array((4, 5)))
    toy = run.load("toy")
    assert type(toy.plays).__name__ == kind
    assert toy.plays.dtype == np.float32
    np.testing.assert_array_equal(toy.plays.toarray(), matrix.toarray())
    assert toy.empty.shape == (4, 5)


def test_other_sparse_formats_become_rows(run):
    run.save("toy", plays=sparse.coo_array(([1.0], ([0], [2])), shape=(2, 3)))
    np.testing.assert_array_equal(run.load("toy").plays.toarray(), [[0, 0, 1], [0, 0, 0]])


@pytest.mark.parametrize("value", [np.array(["a", None], dtype=object), None, {"a": 1}])
@pytest.mark.fault("a Python object in an artefact", "refused: nothing is pickled")
def test_python_objects_are_refused(run, value):
    with pytest.raises(TypeError, match="'bad' holds Python objects"):
        run.save("toy", bad=value)
    assert not (run.artifacts / "toy.npz").exists()


def test_same_values_same_bytes(run):
    path = run.artifacts / "toy.npz"
    digests = set()
    for _ in range(2):
        run.save("toy", x=np.arange(5), plays=sparse.eye_array(3).tocsr())
        digests.add(digest(path))
    assert len(digests) == 1
    assert journal(run)["outputs"]["artifacts/toy.npz"] == digests.pop()


def test_a_missing_artifact_is_named(run):
    with pytest.raises(FileNotFoundError, match=r"artifact 'nothing' is missing: run .* first"):
        run.load("nothing")


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with pytest.raises(ZeroDivisionError), atomic(path) as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir() if p.is_file()] == ["file"]


def test_a_table_is_written_three_ways(run):
    frame = pd.DataFrame({"model": [AWKWARD, "deep"], "recall": [1 / 3, np.nan], "n": [7, 1234]})
    run.table(frame, "toy", "Recall", note="two users")
    tables = run.folder / "tables"
    back = pd.read_csv(tables / "toy.csv")
    pd.testing.assert_frame_equal(back, frame)  # the full precision, names unharmed
    markdown = (tables / "toy.md").read_text("utf-8")
    row = "| A&#36;AP &#124; &lt;b&gt;Ke&#36;ha&lt;/b&gt; &amp; Æ | 0.333 | 7 |"
    assert row in " ".join(markdown.split())
    assert "synthetic data" in markdown
    assert "two users" in markdown
    latex = (tables / "toy.tex").read_text("utf-8")
    assert r"A\$AP" in latex
    assert "0.333" in latex
    assert r"\begin{tabular}{lrr}" in latex


def test_a_table_shows_its_typeset_form_and_keeps_its_numbers(run):
    frame = pd.DataFrame({"mean": [0.12345]}, index=["deep"]).rename_axis("system")
    run.table(frame, "toy", "Recall", shown=pd.DataFrame({"R@40": ["**0.123 ±.004**"]}))
    tables = run.folder / "tables"
    assert (tables / "toy.csv").read_text("utf-8") == "system,mean\ndeep,0.12345\n"
    assert "**0.123 ±.004**" in (tables / "toy.md").read_text("utf-8")
    assert r"\textbf{0.123 ±.004}" in (tables / "toy.tex").read_text("utf-8")
    run.table(frame, "long", "All of it", shown=False)
    assert [p.name for p in tables.glob("long.*")] == ["long.csv"]


def test_a_table_shows_its_index_if_it_means_something(run, capsys):
    run.table(pd.DataFrame({"n": [1]}, index=["deep"]), "toy", "Counts")
    assert "deep" in (run.folder / "tables" / "toy.md").read_text("utf-8")
    assert "deep" in (run.folder / "tables" / "toy.csv").read_text("utf-8")
    assert "deep" in capsys.readouterr().out


@pytest.mark.fault("HTML in a name or a tag", "escaped")
def test_names_are_escaped_on_the_page(run, capsys):
    run.table(pd.DataFrame({"artist": ["<script>x</script>"]}), "toy", "Names")
    assert "&lt;script&gt;" in capsys.readouterr().out


def test_a_figure_is_the_same_twice_and_closed(run):
    digests = []
    for _ in range(2):
        figure, axes = plt.subplots(figsize=(3, 2))
        axes.plot([1, 3, 2], label="β")
        axes.legend()
        run.figure(figure, "toy", "A line")
        digests.append([digest(run.folder / "figures" / f"toy.{e}") for e in ("png", "pdf")])
    assert digests[0] == digests[1]
    assert plt.get_fignums() == []
    assert journal(run)["shown"][-1] == {"kind": "figure", "name": "toy", "caption": "A line"}


def test_provenance_names_data_and_device(run):
    assert run.provenance == "synthetic data, smoke test · seed 98765 · cpu"
    run.fact(fingerprint="0123456789abcdef", users=np.int64(3))
    later = Run("02_later", "smoke", "cpu")
    assert later.provenance.endswith("cpu · data 0123456789ab")
    assert journal(run)["facts"]["users"] == 3


def test_checks_are_journaled_or_raise(run, capsys):
    run.check("one is one", np.bool_(True))
    with pytest.raises(AssertionError, match="pigs fly"):
        run.check("pigs fly", False)
    assert journal(run)["checks"] == ["one is one"]
    assert capsys.readouterr().out == "ok  one is one\n"


def test_profile_and_device_fall_back_to_the_environment(monkeypatch):
    assert Run("01_toy", device="cpu").profile.name == "demo"
    monkeypatch.setenv("REPRO_PROFILE", "smoke")
    monkeypatch.setenv("REPRO_DEVICE", "cpu")
    run = Run("01_toy")
    assert (run.profile.name, run.device) == ("smoke", "cpu")
    assert run.data == run.artifacts / "world"


def test_an_unknown_profile_lists_the_known():
    with pytest.raises(ValueError, match="unknown profile 'demmo': choose one of demo, smoke"):
        Run("01_toy", "demmo")


@pytest.mark.fault("a GPU asked for where there is none", "refused in one line")
def test_an_absent_gpu_is_said(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="torch sees no GPU"):
        Run("01_toy", "smoke", "cuda")
    assert Run("01_toy", "smoke", "auto").device == "cpu"


def test_a_synthetic_world_in_the_place_of_real_files_is_called_synthetic(tmp_path, monkeypatch):
    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path / "results"))
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
    assert config.named("lastfm+whole").frames_per_item is None
    assert config.named("smoke+artists").cold_by_artist
    for profile in config.PROFILES.values():
        for suffix in profile.companions:
            found = config.named(f"{profile.name}+{suffix}")
            differ = [
                a["setting"] for a, b in zip(found.table(), profile.table(), strict=True) if a != b
            ]
            assert len(differ) == 1


@pytest.mark.parametrize("name", ["demo+seed0", "demo+seed", "demo+", "demo+seed1+lenient"])
def test_an_unknown_companion_lists_the_known(name):
    with pytest.raises(ValueError, match=r"demo alone or with one of \+seed1, .*, \+artists"):
        config.named(name)


def test_a_companion_has_its_own_results_and_its_bases_world(run):
    other = Run("01_toy", "smoke+lenient", "cpu")
    assert other.folder.name == "smoke+lenient"
    assert other.data == run.data
    assert other.provenance == "synthetic data, smoke test +lenient · seed 98765 · cpu"


def test_companions_are_read_once_they_are_finished(run, tmp_path, monkeypatch):
    monkeypatch.setattr("repro.pipeline.run.ROOT", tmp_path)
    for name, metadata in {"01_toy": {}, "02_full": {"repro": {"full": True}}}.items():
        write_json(tmp_path / "notebooks" / f"{name}.ipynb", {"metadata": metadata})
    Run("01_toy", "smoke+seed1", "cpu").save("toy", x=7)
    assert run.companions == {}
    with pytest.raises(
        FileNotFoundError, match=r"smoke\+seed1 lacks 01_toy: .* smoke --full first"
    ):
        run.companion("seed1")
    folder = run.folder.with_name("smoke+seed1")
    write_json(folder / "artifacts" / "stamps" / "01_toy.json", {})
    before = sorted(folder.rglob("*"))
    assert list(run.companions) == ["seed1"]
    found = run.companions["seed1"]
    assert (found.load("toy").x, found.profile.seed) == (7, run.profile.seed + 1)
    assert sorted(folder.rglob("*")) == before  # reading leaves no trace


def test_a_trial_is_kept_for_the_run_of_the_same_key_alone(monkeypatch):
    value = {"x": np.float32(0.1), "y": 1 / 3, "nan": np.nan, "n": np.int64(3), "on": np.True_}

    def trial(key, name="a trial", compute=lambda: value):
        if key:
            monkeypatch.setenv("REPRO_KEY", key)
        return Run("01_toy", "smoke", "cpu").trial(name, compute)

    def never():
        raise AssertionError("computed")

    assert repr(trial(None)) == repr(trial(None))
    with pytest.raises(AssertionError, match="computed"):
        trial("one", compute=never)  # by hand nothing was kept
    first = trial("one")
    assert {type(x) for x in first.values()} == {float, int, bool}
    assert first["x"] == np.float32(0.1)
    assert repr(trial("one", compute=never)) == repr(first)
    for key, name in (("two", "a trial"), ("one", "another")):
        with pytest.raises(AssertionError, match="computed"):
            trial(key, name, compute=never)


@pytest.mark.parametrize("text", ["", "[]", "7", "{}", '{"key": "one"}', '{"key": "one", "resu'])
@pytest.mark.fault("a trial's file that is broken", "computed again")
def test_a_corrupt_trial_counts_for_nothing(run, monkeypatch, text):
    monkeypatch.setenv("REPRO_KEY", "one")
    run.trial("a trial", lambda: {"x": 1})
    (path,) = (run.artifacts / "trials" / "01_toy").iterdir()
    path.write_text(text)
    assert Run("01_toy", "smoke", "cpu").trial("a trial", lambda: {"x": 2}) == {"x": 2}


@pytest.mark.parametrize("value", [None, [1], (1, 2), {"a": 1}, np.arange(3)])
def test_a_trial_is_flat(run, value):
    with pytest.raises(TypeError, match="trial 'bad': 'x' is neither a number nor a string"):
        run.trial("bad", lambda: {"x": value})


def test_two_trials_do_not_share_a_name(run, monkeypatch):
    run.trial("a trial", dict)
    assert run.trial("a trial", dict) == {}  # by hand a cell may be run again
    monkeypatch.setenv("REPRO_KEY", "one")
    with pytest.raises(ValueError, match="two trials are named 'a trial'"):
        run.trial("a trial", dict)


def test_the_page_prefers_the_tables_over_seeds(run):
    for name in ("headline", "seeds_headline", "verdicts"):
        run.table(pd.DataFrame({"n": [1]}), name, f"Caption of {name}")
    made = {name: run.label for name in ("profile", "label", "seed", "device", "threads")}
    made |= {"versions": {}, "data": None, "commit": "", "notebooks": {}}
    write_json(run.folder / "notebooks" / "01_toy.ipynb", {"cells": [{"source": "# Toy"}]})
    head, _, section = report.page(run.folder, made, {"01_toy": journal(run)}, []).partition("##")
    assert "Caption of seeds_headline" in head and "Caption of verdicts" in head
    assert "Caption of headline" in section
    assert "Caption of seeds_headline" not in section and "Caption of verdicts" not in section
    # One that lies there from another run does not count.
    one = journal(run) | {"shown": [s for s in journal(run)["shown"] if s["name"] == "headline"]}
    head, _, _ = report.page(run.folder, made, {"01_toy": one}, []).partition("##")
    assert "Caption of headline" in head and "seeds" not in head


def test_a_readme_gets_the_rows_of_its_tables():
    def table(profile, name):
        return f"**{name}**\n\n| {profile} |\n|:--|\n| \\1 |\n\n<small>note</small>\n"

    text = "a\n<!-- results/demo/tables/headline -->\n| old |\n<!-- end -->\nb\n"
    text += "<!-- results/lastfm+whole/tables/cold_den --><!-- end -->\n"
    filled = report.readme(text, table)
    assert "-->\n\n| demo |\n|:--|\n| \\1 |\n\n<!-- end -->\nb\n" in filled
    assert "| lastfm+whole |" in filled and "note<" not in filled and "| old" not in filled
    assert report.readme(filled, table) == filled
    assert report.readme("no markers", table) == "no markers"
    forgotten = text.replace("<!-- end -->", "", 1)
    with pytest.raises(ValueError, match="no <!-- end --> after it"):
        report.readme(forgotten, table)


def test_a_checkpoint_is_of_one_run_and_due_in_time(run, monkeypatch, tmp_path):
    assert run.checkpoint("fit") is None  # by hand nobody knows what it was computed from
    monkeypatch.setenv("REPRO_KEY", "a" * 64)
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "0")
    state = {"x": np.arange(3.0), "words": sparse.eye(3, format="csr"), "history": "[1, 2]"}
    assert run.checkpoint("fit").load() is None
    run.checkpoint("fit").save(lambda: state)
    found = run.checkpoint("fit").load()
    assert np.array_equal(found["x"], state["x"]) and found["history"] == "[1, 2]"
    assert (found["words"] != state["words"]).nnz == 0
    assert run.checkpoint("other").load() is None
    run.device = "cuda"
    assert run.checkpoint("fit").load() is None
    run.device = "cpu"
    monkeypatch.setenv("REPRO_KEY", "b" * 64)
    assert run.checkpoint("fit").load() is None
    monkeypatch.setenv("REPRO_CHECKPOINT_SECONDS", "60")
    run.checkpoint("fit").save(lambda: pytest.fail("too soon"))


@pytest.mark.fault("a notebook opened by hand while a run is at work", "refused in one line")
def test_a_notebook_by_hand_keeps_out_of_a_run(run, monkeypatch):
    with alone(run.artifacts / "lock", "busy"):
        for profile in ("smoke", "smoke+seed1"):
            with pytest.raises(BlockingIOError, match=r"a run is at work in .*smoke: wait"):
                Run("01_toy", profile, "cpu")
        monkeypatch.setenv("REPRO_KEY", "a" * 64)
        Run("01_toy", "smoke", "cpu")  # the run's own
    monkeypatch.delenv("REPRO_KEY")
    Run("01_toy", "smoke", "cpu")


@pytest.mark.fault("a checkpoint that is broken", "from the beginning")
def test_a_broken_checkpoint_counts_for_nothing(tmp_path):
    path = tmp_path / "kept.npz"
    for content in (b"", b"PK", b"hello" * 99):
        path.write_bytes(content)
        assert Checkpoint(path, 0.0).load() is None


def test_parts_are_computed_once_a_run(run, monkeypatch):
    monkeypatch.setenv("REPRO_KEY", "a" * 64)
    asked = []

    def compute():
        asked.append(1)
        return {"counts": sparse.eye(2, format="csr")}

    for _ in range(2):
        assert run.part("block 0", compute)["counts"].nnz == 2
    assert len(asked) == 1
    monkeypatch.delenv("REPRO_KEY")
    run.part("block 0", compute)
    assert len(asked) == 2
