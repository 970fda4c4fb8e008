"""Tables say what the metrics say; figures carry the data they were given."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
from matplotlib.colors import to_rgb

from repro.evaluation import metrics, paper, plots, tables


@pytest.fixture
def systems():
    """Return the per-user metrics of two systems, the second better by 0.1 for every user."""
    rng = np.random.default_rng(0)
    columns = ["R@40", "R@80", "NDCG", "NDCG (code)", "MAP"]
    worse = pd.DataFrame(rng.uniform(0, 0.8, (1200, 5)), columns=columns)
    return {"CF + shallow": worse, "popularity": None, "CF + deep": worse + 0.1}


@pytest.fixture(autouse=True)
def closed_figures():
    yield
    plt.close("all")


# --- tables


def test_ranking_puts_ours_above_the_papers(systems):
    table = tables.ranking(systems, paper.DEN_OUT_OF_MATRIX[["R@40", "NDCG"]], 50, 0)
    assert list(table.columns) == ["R@40", "R@80", "NDCG", "NDCG (code)", "MAP", "users"]
    ours = ["CF + shallow", "popularity", "CF + deep"]
    assert list(table.index) == [*ours, *map("paper: {}".format, ["CTPF", *ours[::2]])]
    for name in ours[::2]:
        mean, half = table.loc[name, "NDCG"].split("\u00a0±")
        stats = metrics.bootstrap(systems[name], 50, 0).loc["NDCG"]
        assert float(mean) == pytest.approx(systems[name]["NDCG"].mean(), abs=5e-5)
        assert float(half) == pytest.approx((stats["high"] - stats["low"]) / 2, abs=5e-5)
        assert table.loc[name, "users"] == "1,200"
    assert list(table.loc["popularity"]) == ["not defined"] * 5 + [""]
    assert list(table.loc["paper: CF + deep"]) == ["0.0910", "", "0.1605", "", "", ""]


def test_gains_are_paired(systems):
    gains = tables.gains(systems, "CF + shallow", "NDCG", 50, 0)
    assert list(gains.index) == ["CF + deep"]  # not itself, nor what has no score
    assert np.allclose(gains.loc["CF + deep"], 0.1)  # every user gains the same: a point
    assert list(gains.columns) == ["mean", "low", "high"]
    assert np.allclose(tables.gains(systems, "CF + deep", "NDCG", 50, 0), -0.1)


def test_gains_are_of_the_asked_metric(systems):
    systems["CF + deep"]["MAP"] += 0.2
    assert np.allclose(tables.gains(systems, "CF + shallow", "MAP", 50, 0), 0.3)


@pytest.mark.parametrize("claim", paper.CLAIMS, ids=str)
def test_printed_numbers_bear_out_the_claim(claim):
    printed = paper.PRINTED[claim.where][claim.metric]
    gain = printed[claim.system] - printed[claim.than]
    assert abs(gain) <= 0.0003 if claim.equal else gain > 0


def judged(gain, where, system, than, metric, **options):
    """Return the row on one claim when ``gain`` is the difference of each user."""
    other = pd.DataFrame({m: np.full(len(gain), 0.4) for m in ("R@40", "NDCG")})
    better = other.copy()
    better[metric] += gain
    found = {where: {system: better, than: other, "popularity": None}}
    rows = tables.verdicts([found], 300, 0, **options)
    says = [f"{where}: {system} {verb} {than} ({metric})" for verb in ("beats", "equals")]
    (row,) = rows[rows["claim"].isin(says)].iloc
    return row


NOISE = np.random.default_rng(0).normal(size=400)
NOISE -= NOISE.mean()  # of unit spread, so the interval of the mean is some 0.1 to either side


@pytest.mark.parametrize(
    ("gain", "ours", "other"),
    [
        (0.2 + NOISE, "reproduced", "same ordering"),
        (0.05 + NOISE, "not settled", "not settled"),  # zero is within the interval
        (-0.2 + NOISE, "not reproduced", "not reproduced"),
        (np.zeros(400), "not settled", "not settled"),
    ],
)
def test_verdict_on_one_system_beating_another(gain, ours, other):
    of = "out-of-matrix", "CF + deep", "CF + shallow", "R@40"
    assert judged(gain, *of, same_data=True)["verdict"] == ours
    assert judged(gain, *of, same_data=False)["verdict"] == other


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (NOISE / 100, "equal here too"),
        (0.003 + NOISE / 100, "equal here too"),  # a difference, but a small one
        (0.0045 + NOISE / 100, "not settled"),
        (-0.0045 + NOISE / 100, "not settled"),
        (NOISE, "not settled"),  # too uncertain to call equal
        (0.007 + NOISE / 100, "not reproduced"),
        (-0.007 + NOISE / 100, "not reproduced"),
    ],
)
def test_verdict_on_two_systems_being_equal(gain, verdict):
    row = judged(gain, "DEN in-matrix", "CF + deep", "WMF", "NDCG", same_data=False)
    assert row["verdict"] == verdict


def test_verdict_tells_the_papers_difference_and_ours():
    row = judged(0.2 + NOISE, "out-of-matrix", "CF + deep", "CF + shallow", "NDCG", same_data=False)
    assert row["paper"] == "+0.0176"  # .1605 - .1429, Table 3
    mean, low, high = (
        float(x) for x in row["ours"].replace("[", "").strip("]").replace(",", "").split()
    )
    assert mean == pytest.approx(0.2, abs=1e-4)
    assert (low, high) == pytest.approx((0.1, 0.3), abs=0.02)


def test_claim_about_a_system_not_run_is_not_comparable(systems):
    rows = tables.verdicts([{"out-of-matrix": systems}], 20, 0, same_data=True)
    assert len(rows) == sum(claim.where == "out-of-matrix" for claim in paper.CLAIMS)
    (row,) = rows[rows["claim"].str.contains("CTPF")].iloc
    assert (row["verdict"], row["ours"]) == ("not comparable", "not run: CTPF")
    assert (rows["verdict"] == "reproduced").sum() == 2
    rows = tables.verdicts([{"SPR in-matrix": {"WMF": None}}], 20, 0, same_data=True)
    assert set(rows["verdict"]) == {"not comparable"}


def test_neighbours_are_nearest_by_cosine_from_what_all_share():
    shared = np.array([50.0, 70.0])
    others = np.add(shared, [[10.0, 0], [-10, 0], [1, 1], [-1, -1], [0, 0.1], [0, -0.1]])
    names = np.array(["east", "west", "north-east", "south-west", "north", "south"])
    asked = np.add(shared, [[0.1, 0.01], [-5, 6]])
    table = tables.neighbours(["a", "b"], asked, names, others, 2)
    assert list(table.loc["a"]) == ["east", "north-east"]  # however long the factors are
    assert list(table.loc["b"]) == ["north", "west"]
    assert list(table.columns) == ["neighbour 1", "neighbour 2"]


def test_neighbours_of_a_song_without_content_are_defined():
    table = tables.neighbours(["a"], np.full((1, 2), 0.5), np.array(["x", "y"]), np.eye(2), 1)
    assert table.loc["a", "neighbour 1"] == "x"


# --- figures


def drawn(ax):
    """Return the x and y of every line of ``ax``, in order."""
    return [np.column_stack([np.asarray(x, float) for x in line.get_data()]) for line in ax.lines]


def test_one_colour_a_system():
    assert plots.colour("CF + deep, 1 a bag") == plots.colour("CF + deep")
    assert len({to_rgb(plots.colour(name)) for name in plots.COLOURS}) == len(plots.COLOURS)
    assert plots.colour("something else") == "black"


def test_activity_figure_counts_users_with_at_least_so_many():
    dense = (np.random.default_rng(0).random((30, 12)) < 0.3) * 5
    dense[3] = 0
    fig = plots.activity_and_popularity({"all": sp.csr_matrix(dense)}, "song")
    for ax, axis in zip(fig.axes, (1, 0), strict=True):
        counts = (dense > 0).sum(axis)
        (line,) = drawn(ax)
        for x in np.unique(line[:, 0]):
            assert line[line[:, 0] == x, 1].max() == (counts >= x).sum()
        assert set(line[:, 0]) == set(counts[counts > 0])
    assert [ax.get_title() for ax in fig.axes] == ["activity", "popularity"]


def test_codebook_figure_sorts_by_use():
    centres, usage = np.random.default_rng(0).normal(size=(5, 3)), np.array([10, 40, 0, 30, 20])
    fig = plots.codebook(centres, usage, ["a", "b", "c"])
    image = np.asarray(fig.axes[0].images[0].get_array())
    standard = (centres - centres.mean(0)) / centres.std(0)
    assert np.allclose(image, standard[[1, 3, 4, 0, 2]].T)
    assert [t.get_text() for t in fig.axes[0].get_yticklabels()] == ["a", "b", "c"]
    assert np.allclose(drawn(fig.axes[1])[0][:, 1], [2, 1.5, 1, 0.5, 0])


@pytest.mark.parametrize("n", [1, 3])
def test_histogram_figure_has_a_bar_for_each_codeword_used(n):
    histograms = np.array([[0.5, 0, 0.5, 0], [0, 0, 0, 1], [0.25] * 4])[:n]
    fig = plots.example_histograms(histograms, ["x", "y", "z"][:n])
    for ax, histogram in zip(fig.axes, histograms, strict=True):
        heights = {segment[1][0]: segment[1][1] for segment in ax.collections[0].get_segments()}
        assert heights == {k: v for k, v in enumerate(histogram) if v}
    assert "x  (2 codewords)" in fig.axes[0].get_title(loc="left")


def test_learning_curve_figure():
    curve = pd.DataFrame({"epoch": [1, 2, 3], "training": [3.0, 2, 1], "held out": [4.0, 3, 3.5]})
    ax = plots.learning_curve(curve, 2.5).axes[0]
    lines = {line.get_label(): line.get_ydata() for line in ax.lines}
    assert list(lines["training, with dropout"]) == [3, 2, 1]
    assert list(lines["held out"]) == [4, 3, 3.5]
    assert set(lines["tag frequencies alone"]) == {2.5}


def test_tag_figure_names_the_best_and_worst_of_each_band_of_frequency():
    frame = pd.DataFrame(
        {"songs": [100, 90, 80, 2, 0], "AROC": [0.9, 0.5, 0.3, 1.0, np.nan]},
        index=["best", "$mid", "worst", "rare", "none"],
    )
    fig = plots.tags_by_frequency(frame, bands=2)
    fig.canvas.draw()  # a dollar sign would break mathtext
    points = np.asarray(fig.axes[0].collections[0].get_offsets())
    assert np.allclose(points, frame.iloc[:4].to_numpy())
    assert {text.get_text() for text in fig.axes[0].texts} == {"rare", "best", "worst"}


def test_convergence_figure_places_half_steps_within_their_sweep():
    history = []
    for sweep in (1, 2):
        for step, value in zip(("items", "users", "W"), (30, 20, 10), strict=True):
            history.append({"sweep": sweep, "step": step, "objective": value / sweep})
        history.append({"sweep": sweep, "step": "validation", "NDCG": sweep / 10})
    two = [row for row in history if row["step"] != "W"]
    left, right = plots.convergence({"CF + deep": history, "WMF": two}).axes
    deep, plain = drawn(left)
    assert np.allclose(deep[:, 0], np.arange(1, 7) / 3)
    assert np.allclose(deep[:, 1], [30, 20, 10, 15, 10, 5])
    assert np.allclose(plain, [[0.5, 30], [1, 20], [1.5, 15], [2, 10]])
    for line in drawn(right):
        assert np.allclose(line, [[1, 0.1], [2, 0.2]])


def test_trials_figure_marks_the_winner_of_each_system():
    frame = pd.DataFrame(
        {"system": ["CF + deep"] * 3 + ["WMF"] * 2, "NDCG": [0.1, 0.4, 0.3, 0.6, 0.5]}
    )
    ax = plots.trials(frame).axes[0]
    deep, best_deep, plain, best_plain = drawn(ax)
    assert np.allclose(deep, [[0.1, 0], [0.4, 0], [0.3, 0]])
    assert np.allclose([best_deep[0], best_plain[0]], [[0.4, 0], [0.6, 1]])
    assert np.allclose(plain[:, 1], 1)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["CF + deep", "WMF"]


def test_quarters_figure_has_a_line_a_system():
    frame = pd.DataFrame({"WMF": [1.0, 2, 3, 4], "CF + deep": [2.0, 2, 2, 2]}, list("abcd"))
    (ax,) = plots.quarters([frame], "recall", ["items"]).axes
    assert [line[:, 1].tolist() for line in drawn(ax)] == [[1, 2, 3, 4], [2, 2, 2, 2]]
    assert [label.get_text() for label in ax.get_xticklabels()] == list("abcd")


def test_dots_figure_has_a_dot_a_seed_and_a_bar_at_their_mean():
    ax = plots.dots({"WMF": [1.0, 2.0, 6.0]}, "NDCG").axes[0]
    own, bar = drawn(ax)
    assert np.allclose(own[:, 0], [1, 2, 6]) and np.allclose(bar[:, 0], 3)


def test_sweep_and_thinning_figures_draw_every_system():
    swept = pd.DataFrame(
        {
            "system": ["WMF", "WMF", "CF + deep", "CF + deep"],
            "ridge": [1.0, 10, 1, 10],
            "in-matrix": [0.1, 0.2, 0.3, 0.4],
            "out-of-matrix": [np.nan, np.nan, 0.5, 0.6],
        }
    )
    left, right = plots.sweep(swept, "ridge", "ridge").axes
    assert len(left.lines) == 2 and len(right.lines) == 1
    assert np.allclose(drawn(right)[0], [[1, 0.5], [10, 0.6]])
    rows = [
        {"system": system, "share": share, "draw": draw, "NDCG": gain * share + draw / 100}
        for system, gain in (("WMF", 1), ("CTR", 2)) for share in (0.1, 1.0) for draw in range(3)
    ]  # fmt: skip
    left, right = plots.thinning(pd.DataFrame(rows)).axes
    assert np.allclose(drawn(left)[1], [[0.1, 0.21], [1, 2.01]])
    assert np.allclose(drawn(right)[1], [[0.1, 0.1], [1, 1.0]])  # paired by draw


def test_map_names_the_best_known_and_colours_by_label():
    rng = np.random.default_rng(0)
    names = np.array([f"${i}" for i in range(20)])  # a dollar sign would break mathtext
    labels = np.array(["rock", "", "jazz", "rock"] * 5)
    fig = plots.map_of(rng.standard_normal((20, 4)), names, labels, np.arange(20), 0, named=3)
    fig.canvas.draw()
    ax = fig.axes[0]
    assert {text.get_text() for text in ax.texts} == {r"\$19", r"\$18", r"\$17"}
    assert [len(c.get_offsets()) for c in ax.collections] == [5, 5, 10]  # none, jazz, rock


def test_recall_figure_draws_means_and_bands(systems):
    systems.pop("popularity")
    ax = plots.recall_curves(systems, 50, 0).axes[0]
    for line, band, (name, frame) in zip(drawn(ax), ax.collections, systems.items(), strict=True):
        recall = frame[["R@40", "R@80"]]
        assert np.allclose(line, np.column_stack([[40, 80], recall.mean()]))
        edges = metrics.bootstrap(recall, 50, 0).loc["R@40", ["low", "high"]]
        y = band.get_paths()[0].vertices
        assert np.allclose([y[y[:, 0] == 40, 1].min(), y[y[:, 0] == 40, 1].max()], edges)
        assert to_rgb(ax.lines[list(systems).index(name)].get_color()) == plots.colour(name)


def test_interval_figure_labels_each_row_with_its_name():
    frame = pd.DataFrame(
        {"mean": [1.0, 2.0], "low": [0.5, 1.5], "high": [1.2, 3.0]}, index=["first", "second"]
    )
    ax = plots.intervals(frame, "difference").axes[0]
    names = {y: t.get_text() for y, t in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)}
    _, *lines = drawn(ax)  # the first marks zero
    spans, points = lines[::2], lines[1::2]
    for span, ((x, y),) in zip(spans, points, strict=True):
        row = frame.loc[names[y]]
        assert x == row["mean"]
        assert np.allclose(span, [[row["low"], y], [row["high"], y]])
    assert names == {0: "second", 1: "first"}  # the first on top


def test_winners_are_the_best_of_their_group():
    trials = pd.DataFrame(
        {
            "subset": ["A"] * 3 + ["B"] * 2,
            "settings": list("abcde"),
            "NDCG": [0.1, 0.3, 0.2, 0.1, 0.2],
        }
    )
    best = tables.winners(trials, ["subset"])
    assert best["settings"].to_dict() == {"A": "b", "B": "e"}
    assert best["trials"].to_dict() == {"A": 3, "B": 2}


def test_verdict_over_seeds_needs_all_of_them():
    of = "out-of-matrix", "CF + deep", "CF + shallow", "R@40"

    def draw(gain):
        other = pd.DataFrame({m: np.full(len(gain), 0.4) for m in ("R@40", "NDCG")})
        return {of[0]: {"CF + deep": other.add(gain, axis=0), "CF + shallow": other}}

    def verdict(*means):
        found = [draw(mean + NOISE / 100) for mean in means]
        rows = tables.verdicts(found, 200, 0, same_data=False)
        (row,) = rows[rows["claim"].str.contains("R@40")].iloc
        assert row["draws"] == f"{min(means):+.4f} to {max(means):+.4f}"
        return row["verdict"]

    assert verdict(0.1, 0.2, 0.3) == "same ordering"
    assert verdict(0.1, 0.2, -0.01) == "not settled"  # though the interval is far above zero
    assert verdict(-0.1, -0.2, -0.01) == "not reproduced"


def test_draws_are_averaged_and_differences_paired():
    def draw(level):
        frame = pd.DataFrame({"R@40": [level, level + 0.2], "NDCG": [level, level]})
        return {"WMF": frame, "CTR": frame + 0.1}

    table = tables.over_draws([draw(0.1), draw(0.3)], "WMF")
    assert table.loc["WMF", "R@40"] == "0.3000\u00a0±.1414"
    assert table.loc["CTR", "NDCG"] == "0.3000\u00a0±.1414"
    assert table.loc["CTR", "NDCG less WMF"] == "+0.1000 [+0.1000, +0.1000]"
    assert table.loc["CTR", "draws"] == "+0.1000 to +0.1000"
    assert table.loc["WMF", "NDCG less WMF"] == ""
    printed = pd.DataFrame({"NDCG": [0.5]}, index=["PMF"])
    table = tables.over_draws([draw(0.1), draw(0.3)], "WMF", printed)
    assert table.loc["paper: PMF"].to_dict() | {"NDCG": ""} == dict.fromkeys(table, "")
    assert table.loc["paper: PMF", "NDCG"] == "0.5000"
    each = tables.each_draw([draw(0.1), draw(0.3)], [7, 8]).set_index(["system", "seed", "metric"])
    assert each.loc[("CTR", 8, "NDCG"), "mean"] == pytest.approx(0.4) and len(each) == 8


def test_packed_metrics_come_back(systems, tmp_path, monkeypatch):
    from repro.pipeline.run import Run

    monkeypatch.setenv("REPRO_RESULTS", str(tmp_path))
    run = Run("test", "smoke")
    systems.pop("popularity")
    run.save("scores", **tables.packed(systems))
    back = tables.unpacked(run.load("scores"))
    assert list(back) == list(systems)
    for name, frame in systems.items():
        assert np.array_equal(back[name], frame) and list(back[name]) == list(frame)
        assert np.array_equal(back[name].index, frame.index)


def test_quarters_have_equally_many_rows_in_order():
    values = pd.DataFrame({"WMF": np.arange(8.0)})
    table = tables.by_quarter(values, np.array([5, 1, 1, 2, 9, 9, 3, 4]), "songs")
    assert list(table.index) == ["1–1 songs", "2–3 songs", "4–5 songs", "9–9 songs"]
    assert table["WMF"].tolist() == [1.5, 4.5, 3.5, 4.5]


def test_coverage_of_even_and_of_single_minded_lists():
    assert tables.coverage(np.full(10, 7)) == {"covered": 1.0, "half of all places": 0.5}
    alone = tables.coverage(np.array([0, 30, 0, 0]))
    assert alone == {"covered": 0.25, "half of all places": 0.25}


def test_labels_are_the_rarest_of_the_frequent_tags():
    tags = sp.csr_matrix([[1, 1, 0], [1, 0, 0], [1, 0, 1], [1, 1, 0]])
    names = np.array(["rock", "punk", "odd"])
    found = tables.labels(["b", "a", "x", "c"], np.array(list("abcd")), tags, names, 2)
    assert list(found) == ["rock", "punk", "", "rock"]


def test_a_users_page_shows_history_and_stars_what_was_held_out():
    from types import SimpleNamespace

    model = SimpleNamespace(
        theta=np.array([[0.0], [1.0]]),
        beta=np.array([[9.0], [3], [2], [1]]),
        cold=np.array([[1.0], [2]]),
    )
    rows = [[0] * 4, [5, 0, 0, 0]], [[0] * 4, [0, 0, 1, 0]], [[0, 0], [1, 0]]
    train, test, cold = map(sp.csr_matrix, rows)
    table = tables.one_user(
        1, model, train, test, cold, np.array(list("abcd")), np.array(list("xy")), 2
    )
    assert list(table["played"]) == ["a", ""]
    assert list(table["recommended, with plays"]) == ["b", "c *"]
    assert list(table["recommended, without"]) == ["y", "x *"]


def test_headline_counts_in_multiples_of_chance(systems):
    systems.pop("popularity")
    table = tables.headline(systems, "R@40", 0.05, 50, 0)
    mean = systems["CF + deep"]["R@40"].mean()
    assert table.loc["CF + deep", "times chance"] == f"{mean / 0.05:.1f}"
    assert table.loc["CF + deep", "paper: R@40"] == "0.0910"
    assert table.loc["CF + deep", "paper: times chance"] == "11.1"
