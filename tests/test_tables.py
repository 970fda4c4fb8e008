"""Tables hold the numbers that the metrics give; figures carry the data they were given."""

import os
import re
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb

from repro.evaluation import metrics, plots, tables


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


def test_ranking_has_the_papers_number_in_a_column(systems):
    table = tables.ranking(systems, tables.PRINTED["out-of-matrix"][["R@40", "NDCG"]], 50, 0)
    rows = table.set_index(["system", "metric"])
    assert list(table) == ["system", "metric", "mean", "low", "high", "users", "paper"]
    for name in ("CF + shallow", "CF + deep"):
        stats = metrics.bootstrap(systems[name], 50, 0)
        assert np.array_equal(rows.loc[name, ["mean", "low", "high"]].loc[stats.index], stats)
        assert set(rows.loc[name, "users"]) == {1200}
    assert rows.loc[("CF + deep", "R@40"), "paper"] == 0.0910
    assert np.isnan(rows.loc[("CF + deep", "MAP"), "paper"])
    assert rows.loc["popularity", "mean"].isna().all()
    assert rows.loc[("CTPF", "NDCG"), "paper"] == 0.1271  # of the paper alone
    assert rows["users"].dtype == int


def test_typeset_ranking_puts_the_paper_below_and_the_best_in_bold(systems):
    ranked = tables.ranking(systems, tables.PRINTED["out-of-matrix"][["R@40", "NDCG"]], 50, 0)
    shown = tables.typeset(ranked)
    assert list(shown) == ["R@40", "R@80", "NDCG", "NDCG (code)", "MAP", "users"]
    mean, half = re.fullmatch(r"\*\*(\S+)\s±(\S+)\*\*", shown.loc["CF + deep", "NDCG"]).groups()
    stats = metrics.bootstrap(systems["CF + deep"], 50, 0).loc["NDCG"]
    assert float(mean) == pytest.approx(stats["mean"], abs=5e-4)
    assert float(half) == pytest.approx((stats["high"] - stats["low"]) / 2, abs=5e-4)
    assert shown.loc["CF + shallow", "users"] == "1,200"
    assert not shown.loc["CF + shallow", "NDCG"].startswith("*")
    assert list(shown.loc["popularity"])[:5] == ["–"] * 5
    assert list(shown.loc["paper: CF + deep"]) == ["0.091", "–", "0.161", "–", "–", "–"]


def test_typeset_numbers():
    frame = pd.DataFrame(
        {"lambda": [1e7, 0.1], "n": [1234567, 2], "mean": [0.00012, np.nan]}
        | {"low": [-0.1, np.nan], "high": [0.1, np.nan], "edge": ["", "x"]},
        index=[0.5, 1000000.0],
    )
    shown = tables.typeset(frame, settings=["lambda"])
    assert list(shown.index) == ["0.5", "1e+06"]
    assert shown.iloc[0].to_list() == ["1e+07", "1,234,567", "+0.0001 [-0.1000, +0.1000]", "–"]
    assert shown.iloc[1].to_list() == ["0.1", "2", "–", "x"]
    both = pd.DataFrame({"n": [1], "paper n": [2000]}, index=["DEN"])
    assert tables.typeset(both)["n"].to_dict() == {"DEN": "1", "paper: DEN": "2,000"}


DECORATED = re.compile(r"±|\d,\d{3}\b|\d to [-+]?\d|\d%|[-+]\d\S* \[|^\*\*|^\d+[–-]\d")


def test_no_csv_of_a_whole_run_has_typeset_numbers(whole_run):
    files = sorted(whole_run.rglob("tables/*.csv"))
    assert len(files) > 40
    for path in files:
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
        if path.stem in ("settings", "neighbours", "one_user"):  # sources, names
            continue
        for column in frame:
            assert not [cell for cell in frame[column] if DECORATED.search(cell)], (path, column)


def test_gains_are_paired(systems):
    gains = tables.gains(systems, "CF + shallow", "NDCG", 50, 0)
    assert list(gains.index) == ["CF + deep"]  # not itself, nor what has no score
    assert np.allclose(gains.loc["CF + deep"], 0.1)  # every user gains the same: a point
    assert list(gains.columns) == ["mean", "low", "high"]
    assert np.allclose(tables.gains(systems, "CF + deep", "NDCG", 50, 0), -0.1)


@pytest.mark.parametrize("claim", tables.CLAIMS, ids=str)
def test_printed_numbers_bear_out_the_claim(claim):
    printed = tables.PRINTED[claim.where][claim.metric]
    gain = printed[claim.system] - printed[claim.than]
    assert abs(gain) <= 0.0003 if claim.equal else gain > 0


def judged(gains, where, system, than, metric, same_data=False):
    """Return the row on one claim when each seed's users differ by one of ``gains``."""
    other = pd.DataFrame({m: np.full(400, 0.4) for m in ("R@40", "NDCG")})
    seeds = [{where: {system: other.add(gain, axis=0), than: other}} for gain in gains]
    rows = tables.verdicts(seeds, 300, 0, same_data=same_data)
    named = rows["claim"].str.contains(f"{system} (?:beats|equals) {than}".replace("+", "[+]"))
    (row,) = rows[named & (rows["metric"] == metric)].iloc
    return row


BEATS = "out-of-matrix", "CF + deep", "CF + shallow", "R@40"
NOISE = np.random.default_rng(0).normal(size=400)
NOISE -= NOISE.mean()  # of unit spread, so the interval of the mean is some 0.1 to either side


@pytest.mark.parametrize(
    ("gain", "ours", "other"),
    [
        (0.2 + NOISE, "reproduced", "same ordering"),
        (0.05 + NOISE, "within noise", "within noise"),  # zero is within the interval
        (-0.2 + NOISE, "not reproduced", "not reproduced"),
        (np.zeros(400), "within noise", "within noise"),
    ],
)
def test_verdict_on_one_system_beating_another(gain, ours, other):
    assert judged([gain], *BEATS, same_data=True)["verdict"] == ours
    assert judged([gain], *BEATS)["verdict"] == other


@pytest.mark.parametrize(
    ("gain", "verdict"),
    [
        (NOISE / 100, "equal here too"),
        (0.003 + NOISE / 100, "equal here too"),  # a difference, but a small one
        (0.0045 + NOISE / 100, "not shown to be equal"),
        (-0.0045 + NOISE / 100, "not shown to be equal"),
        (NOISE, "not shown to be equal"),  # too uncertain
        (0.007 + NOISE / 100, "not reproduced"),
        (-0.007 + NOISE / 100, "not reproduced"),
    ],
)
def test_verdict_on_two_systems_being_equal(gain, verdict):
    row = judged([gain], "DEN in-matrix", "CF + deep", "WMF", "NDCG")
    assert row["verdict"] == verdict


def test_verdict_tells_the_papers_difference_and_ours():
    row = judged([0.2 + NOISE], "out-of-matrix", "CF + deep", "CF + shallow", "NDCG")
    assert row["paper"] == pytest.approx(0.0176)  # .1605 - .1429, Table 3
    assert row["mean"] == pytest.approx(0.2) == row["seeds_min"]
    assert (row["low"], row["high"]) == pytest.approx((0.1, 0.3), abs=0.02)
    shown = tables.typeset(row.to_frame().T.astype({"mean": float}), signed=["paper"])
    assert list(shown) == ["claim", "metric", "paper", "ours", "verdict", "range over seeds"]
    assert shown["paper"].item() == "+0.0176" and shown["ours"].item().startswith("+0.2000 [")


@pytest.mark.parametrize(
    ("means", "verdict"),
    [
        ((0.1, 0.2, 0.3), "same ordering"),
        ((0.1, 0.2, -0.01), "ahead in 2 of 3 seeds"),  # though the interval is far above zero
        ((-0.1, -0.2, -0.01), "not reproduced"),
    ],
)
def test_verdict_over_seeds_needs_all_of_them(means, verdict):
    row = judged([mean + NOISE / 100 for mean in means], *BEATS)
    assert row["verdict"] == verdict
    assert (row["seeds_min"], row["seeds_max"]) == pytest.approx((min(means), max(means)))


def test_claim_about_a_system_not_run_is_not_comparable(systems):
    rows = tables.verdicts([{"out-of-matrix": systems}], 20, 0, same_data=True)
    assert len(rows) == sum(claim.where == "out-of-matrix" for claim in tables.CLAIMS)
    (row,) = rows[rows["claim"].str.contains("CTPF")].iloc
    assert row["verdict"] == "not comparable" and np.isnan(row["mean"])
    assert (rows["verdict"] == "reproduced").sum() == 2


def test_seeds_are_averaged_and_differences_paired():
    def one(level):
        frame = pd.DataFrame({"R@40": [level, level + 0.2], "NDCG": [level, level]})
        return {"WMF": frame, "CTR": frame + 0.1}

    printed = pd.DataFrame({"NDCG": [0.5]}, index=["PMF"])
    table = tables.over_seeds([one(0.1), one(0.3)], "WMF", printed)
    rows = table.set_index(["system", "metric"])
    assert rows.loc[("WMF", "R@40"), ["mean", "deviation"]].to_list() == pytest.approx(
        [0.3, 0.02**0.5]
    )
    assert rows.loc[("WMF", "R@40"), ["seeds_min", "seeds_max"]].to_list() == pytest.approx(
        [0.2, 0.4]
    )
    paired = rows.loc[("CTR", "NDCG minus WMF")].drop(["deviation", "paper"])
    assert paired.to_numpy(float) == pytest.approx(np.full(5, 0.1))
    assert rows.loc[("PMF", "NDCG"), "paper"] == 0.5
    shown = tables.typeset(table)
    assert shown.loc["CTR", "R@40"] == "**0.400\u00a0±0.141**"
    assert shown.loc["CTR", "NDCG minus WMF"] == "+0.1000 [+0.1000, +0.1000]"
    assert shown.loc["CTR", "range over seeds"] == "+0.1000 to +0.1000"
    assert (shown.loc["WMF", "range over seeds"], shown.loc["paper: PMF", "NDCG"]) == ("–", "0.500")


def test_chance_is_the_unit_that_compares_data_sets(systems):
    ranked = tables.ranking(systems, tables.PRINTED["out-of-matrix"][["R@40"]], 50, 0)
    rows = tables.add_chance(ranked, "R@40", 0.05).set_index(["system", "metric"])
    times, recall = (rows.loc[("CF + deep", name)] for name in ("times chance", "R@40"))
    ours = ["mean", "low", "high"]
    assert times[ours].to_numpy(float) == pytest.approx(recall[ours].to_numpy(float) / 0.05)
    assert times["paper"] == pytest.approx(11.08, abs=0.01)


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


# --- figures


def drawn(ax):
    """Return the points of every line of ``ax`` that has any; seaborn adds empty ones."""
    lines = [np.column_stack([np.asarray(x, float) for x in line.get_data()]) for line in ax.lines]
    lines = [line[np.isfinite(line).all(axis=1)] for line in lines]
    return [line for line in lines if len(line)]


def test_one_colour_a_system():
    assert plots.colour("CF + deep, 1 a bag") == plots.colour("CF + deep")
    assert len({to_rgb(plots.colour(name)) for name in plots.COLOURS}) == len(plots.COLOURS)
    assert plots.colour("something else") == "black"


def test_lines_reach_from_the_least_to_the_greatest_about_the_mean():
    rows = [("WMF", 1, 0.1), ("WMF", 1, 0.3), ("WMF", 2, 0.4), ("CTR", 1, 0.5), ("CTR", 2, 0.6)]
    _, ax = plots.panels(1)
    plots.lines(ax, pd.DataFrame(rows, columns=["system", "M", "recall"]), "M", "recall")
    assert [line.tolist() for line in drawn(ax)] == [[[1, 0.2], [2, 0.4]], [[1, 0.5], [2, 0.6]]]
    band = ax.collections[0].get_paths()[0].vertices
    assert sorted({y for x, y in band if x == 1}) == [0.1, 0.3]
    assert to_rgb(ax.lines[0].get_color()) == to_rgb(plots.colour("WMF"))


@pytest.mark.fault("a user's own matplotlibrc", "our figures look the same for everybody")
def test_a_users_matplotlibrc_changes_no_figure(tmp_path):
    rc = "text.usetex: True\nfont.size: 30\nlines.linewidth: 9\n"
    (tmp_path / "matplotlibrc").write_text(rc)
    code = (
        "from matplotlib import rcParams as rc; from repro.evaluation import plots; plots.style();"
    )
    code += "print(rc['text.usetex'], rc['lines.linewidth'], rc['font.size'])"
    command, here = [sys.executable, "-c", code], {**os.environ, "MATPLOTLIBRC": str(tmp_path)}
    theirs = subprocess.run(command, env=here, capture_output=True, text=True, check=True).stdout
    plots.style()
    ours = [plt.rcParams[name] for name in ("text.usetex", "lines.linewidth", "font.size")]
    assert theirs.split() == [str(value) for value in ours]
