"""The tables: frames of numbers, one per column, of which :func:`typeset` alone makes text."""

from __future__ import annotations

from io import StringIO
from itertools import product
from typing import NamedTuple

import numpy as np
import pandas as pd

from repro.evaluation.metrics import bootstrap

# --- what the paper printed (ISMIR 2015, Tables 1 to 4) ------------------------------------------

_PAPER = """
where, system, R@40, R@80, R@120, R@160, R@200, NDCG
DEN in-matrix, PMF,          0.1021, 0.1533, 0.1908, 0.2206, 0.2456, 0.2419
DEN in-matrix, CTPF,         0.1031, 0.1511, 0.1861, 0.2138, 0.2370, 0.2395
DEN in-matrix, WMF,          0.1722, 0.2367, 0.2803, 0.3133, 0.3397, 0.2881
DEN in-matrix, CF + shallow, 0.1724, 0.2368, 0.2803, 0.3131, 0.3396, 0.2883
DEN in-matrix, CF + deep,    0.1722, 0.2365, 0.2800, 0.3129, 0.3394, 0.2882
SPR in-matrix, WMF,          0.1137, 0.1286, 0.1378, 0.1449, 0.1505, 0.1415
SPR in-matrix, CF + shallow, 0.1138, 0.1286, 0.1377, 0.1449, 0.1504, 0.1416
SPR in-matrix, CF + deep,    0.1140, 0.1289, 0.1378, 0.1451, 0.1507, 0.1417
out-of-matrix, CTPF,         0.0256, 0.0700, 0.1440, 0.1869, 0.2086, 0.1271
out-of-matrix, CF + shallow, 0.0503, 0.0894, 0.1218, 0.1514, 0.1778, 0.1429
out-of-matrix, CF + deep,    0.0910, 0.1461, 0.1881, 0.2241, 0.2550, 0.1605
"""
_TAGGING = {"Prec": [0.127, 0.184], "Recall": [0.146, 0.207], "F": [0.136, 0.195]}
_TAGGING |= {"AROC": [0.712, 0.781], "MAP": [0.120, 0.178]}
_ranking = pd.read_csv(StringIO(_PAPER), skipinitialspace=True).set_index("system")
PRINTED = {w: rows.drop(columns="where") for w, rows in _ranking.groupby("where", sort=False)}
PRINTED["tagging"] = pd.DataFrame(_TAGGING, index=pd.Index(["SPMF", "NNet"], name="system"))
CHANCE = 40 / 4871  # of Recall@40 among the paper's out-of-matrix songs


class Claim(NamedTuple):
    """That one system beats another on a metric, or, with ``equal``, that they do not differ."""

    where: str  # a key of PRINTED
    system: str
    than: str
    metric: str
    equal: bool = False


CLAIMS = [
    Claim("tagging", "NNet", "SPMF", "AROC"),
    Claim("DEN in-matrix", "WMF", "PMF", "NDCG"),
    Claim("DEN in-matrix", "PMF", "CTPF", "NDCG"),
    Claim("DEN in-matrix", "CF + shallow", "WMF", "NDCG", equal=True),
    Claim("DEN in-matrix", "CF + deep", "WMF", "NDCG", equal=True),
    Claim("SPR in-matrix", "CF + deep", "WMF", "R@40"),
    Claim("SPR in-matrix", "CF + deep", "WMF", "NDCG"),
    Claim("SPR in-matrix", "CF + deep", "CF + shallow", "R@40"),
    Claim("out-of-matrix", "CF + deep", "CF + shallow", "R@40"),
    Claim("out-of-matrix", "CF + deep", "CF + shallow", "NDCG"),
    Claim("out-of-matrix", "CTPF", "CF + shallow", "R@120"),
]
HEADLINE = "random; neighbours, VQ; regression, VQ, linear; regression, h, linear; CTPF; CTR"
HEADLINE = [*HEADLINE.split("; "), "CF + shallow", "CF + deep", "CF + deep, exposed", "CF + tags"]

# --- results as numbers --------------------------------------------------------------------------


def ranking(systems: dict, printed: pd.DataFrame | None, resamples: int, seed: int) -> pd.DataFrame:
    """Return every metric of every system with its 95% interval over users, and the paper's mean.

    ``systems`` has per-user metrics by name, as :func:`repro.evaluation.metrics.evaluate` returns
    them, or None where a system has no score. The columns are ``system``, ``metric``, ``mean``,
    ``low``, ``high``, ``users`` and, with the paper's ``printed`` means by system, ``paper``.
    """
    found = {
        system: bootstrap(frame, resamples, seed).assign(users=len(frame))
        for system, frame in systems.items()
        if frame is not None
    }
    metrics = next(iter(found.values())).index
    rows = pd.MultiIndex.from_product([systems, metrics], names=["system", "metric"])
    return with_paper(pd.concat(found).reindex(rows), printed)


def with_paper(ours: pd.DataFrame, printed: pd.DataFrame | None) -> pd.DataFrame:
    """Return numbers indexed by system and metric with those ``printed`` in a column ``paper``.

    What ``printed`` (a row per system, a column per metric) alone has follows at the end.
    """
    if printed is not None:
        paper = printed.rename_axis("system").rename_axis("metric", axis=1).stack().rename("paper")
        order = ours.index.append(paper.index.difference(ours.index, sort=False))
        ours = ours.join(paper, how="outer").reindex(order)
    if "users" in ours:
        ours["users"] = ours["users"].fillna(0).astype(int)
    return ours.reset_index()


def winners(trials: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Return each group's best trial by NDCG, and the number of its trials."""
    groups = trials.groupby(by, sort=False)
    return trials.loc[groups["NDCG"].idxmax()].set_index(by).assign(trials=groups.size())


def gains(systems: dict, than: str, metric: str, resamples: int, seed: int) -> pd.DataFrame:
    """Return, by system, its mean paired difference to ``than`` with a 95% interval."""
    return _paired([systems], than, metric, resamples, seed)[["mean", "low", "high"]]


def _paired(seeds: list[dict], than: str, metric: str, resamples: int, seed: int) -> pd.DataFrame:
    """Return the gains over the rows of all seeds, and how the means of the seeds spread."""
    own = [pd.DataFrame({s: x[metric] for s, x in one.items() if x is not None}) for one in seeds]
    apart = [one.sub(one[than], axis=0).drop(columns=than) for one in own]
    spread = pd.DataFrame([one.mean() for one in apart]).agg([*_SPREAD.values()]).T
    spread = spread.set_axis([*_SPREAD], axis=1).drop(columns="mean")
    return spread.join(bootstrap(pd.concat(apart), resamples, seed)).rename_axis("system")


_SPREAD = {"mean": "mean", "deviation": "std", "seeds_min": "min", "seeds_max": "max"}


def verdicts(
    seeds: list[dict], resamples: int, seed: int, *, same_data: bool, equal_within: float = 0.005
) -> pd.DataFrame:
    """Judge the paper's claims by our paired differences, over one or more seeds.

    A claim holds when the whole 95% interval over users is above zero or, for a claim of equality,
    within ``equal_within`` of it, and so is the mean of every seed. It is then *reproduced* on the
    paper's own data (``same_data``) and *same ordering* or *equal here too* on others. Where
    interval and seeds (for equality the interval alone) are on the other side it is *not
    reproduced*. Between the two the verdict says in how many of the seeds it holds or, where they
    agree, *within noise* or *not shown to be equal*; without our system it is *not comparable*.

    ``seeds`` has a dict for each: from a setting (a key of :data:`PRINTED`, or one with a comma and
    more behind it) to our systems' per-user metrics by name. The columns are ``claim``, ``metric``,
    ``paper`` (the printed difference), ``mean``, ``low`` and ``high`` of ours, ``verdict``, and
    ``seeds_min`` and ``seeds_max``, of the means of the seeds.
    """
    rows = []
    for where, claim in product(seeds[0], CLAIMS):
        if claim.where != where.partition(",")[0]:
            continue
        printed = PRINTED[claim.where][claim.metric]
        words = f"{where}: {claim.system} {'equals' if claim.equal else 'beats'} {claim.than}"
        row = {"claim": words, "metric": claim.metric}
        row["paper"] = printed[claim.system] - printed[claim.than]
        row |= dict.fromkeys(("mean", "low", "high"), np.nan) | {"verdict": "not comparable"}
        row |= dict.fromkeys(("seeds_min", "seeds_max"), np.nan)
        pairs = [{s: one[where].get(s) for s in (claim.system, claim.than)} for one in seeds]
        if not any(frame is None for frame in pairs[0].values()):
            gain = _paired(pairs, claim.than, claim.metric, resamples, seed).iloc[0]
            row |= gain.drop("deviation")
            means = [np.subtract(*(x[s][claim.metric].mean() for s in claim[1:3])) for x in pairs]
            row["verdict"] = _verdict(claim, gain, means, same_data, equal_within)
        rows.append(row)
    return pd.DataFrame(rows)


def _verdict(claim: Claim, gain: pd.Series, means, same_data: bool, equal_within: float) -> str:
    seen = np.append(means, gain[["low", "high"]])
    if claim.equal:
        holds = abs(seen) < equal_within
        fails = gain["low"] > equal_within or gain["high"] < -equal_within
    else:
        holds, fails = seen > 0, (seen < 0).all()
    if holds.all():
        return "reproduced" if same_data else "equal here too" if claim.equal else "same ordering"
    if fails:
        return "not reproduced"
    if 0 < (count := holds[: len(means)].sum()) < len(means):
        return f"{'equal' if claim.equal else 'ahead'} in {count} of {len(means)} seeds"
    return "not shown to be equal" if claim.equal else "within noise"


def over_seeds(
    seeds: list[dict], than: str | None = None, printed=None, resamples: int = 1000, seed: int = 0
) -> pd.DataFrame:
    """Return mean, standard deviation and range over seeds of every metric of every system.

    ``seeds`` has the per-user metrics by system of each seed. A system ``than`` adds the metric
    ``NDCG minus <than>``, paired, with its 95% interval over the users of all seeds. The columns
    are ``system``, ``metric``, ``mean``, ``deviation``, ``seeds_min`` and ``seeds_max``; with
    ``than``, ``low`` and ``high`` of the difference; with ``printed``, the paper's ``paper``.
    """
    each = each_seed(seeds, range(len(seeds)))
    frame = each.groupby(["system", "metric"], sort=False)["mean"].agg(**_SPREAD)
    if than is not None:
        gain = _paired(seeds, than, "NDCG", resamples, seed).assign(metric=f"NDCG minus {than}")
        frame = pd.concat([frame, gain.set_index("metric", append=True)])
    return with_paper(frame, printed)


def each_seed(seeds: list[dict], numbers) -> pd.DataFrame:
    """Return every mean that :func:`over_seeds` averages: one row per system, seed and metric."""
    numbered = zip(numbers, seeds, strict=True)
    means = {(system, n): x.mean() for n, one in numbered for system, x in one.items()}
    return pd.concat(means, names=["system", "seed", "metric"]).rename("mean").reset_index()


def add_chance(frame: pd.DataFrame, metric: str, chance: float) -> pd.DataFrame:
    """Return a :func:`ranking`, or one :func:`over_seeds`, with the metric ``times chance``.

    It is ``metric`` over ``chance``, what random lists have; of the paper's, :data:`CHANCE`.
    """
    times = frame[frame["metric"] == metric].assign(metric="times chance")
    times[times.columns.intersection(["low", "high", *_SPREAD])] /= chance
    printed = PRINTED["out-of-matrix"]["R@40"].reindex(times["system"]).to_numpy()
    return pd.concat([frame, times.assign(paper=printed / CHANCE)], ignore_index=True)


def packed(systems: dict) -> dict[str, np.ndarray]:
    """Return frames of the same rows and columns as arrays for :meth:`Run.save`."""
    frame = next(iter(systems.values()))
    parts = {"systems": [*systems], "rows": frame.index.tolist(), "columns": [*frame]}
    parts["values"] = [one.to_numpy(float) for one in systems.values()]
    return {name: np.array(x) for name, x in parts.items()}


def unpacked(saved) -> dict[str, pd.DataFrame]:
    """Return what :func:`packed` packed, from a loaded artefact."""
    frames = (pd.DataFrame(values, saved.rows, saved.columns) for values in saved.values)
    return dict(zip(map(str, saved.systems), frames, strict=True))


def common_aroc(per_tag: dict) -> dict[str, pd.DataFrame]:
    """Return each tag model's AROC of the tags on which all of them could be judged."""
    aroc = pd.DataFrame({name: frame["AROC"] for name, frame in per_tag.items()}).dropna()
    return {name: aroc[[name]].set_axis(["AROC"], axis=1) for name in aroc}


# --- for the page --------------------------------------------------------------------------------


def typeset(frame: pd.DataFrame, settings=(), signed=()) -> pd.DataFrame:
    """Return a frame as text, for the ``shown`` of :meth:`repro.pipeline.run.Run.table`.

    A mean with an interval becomes one column, a range over seeds another; numbers by system and
    metric become a row per system, best in bold, then the paper's. Columns among ``settings`` are
    written with ``%g`` and ``signed`` ones, which are differences, with sign and four decimals; of
    the others floats have three decimals and whole numbers commas.
    """
    if {"system", "metric", "mean"} <= {*frame}:
        return _by_metric(frame)
    shown = frame.copy().astype(object)
    if frame.index.dtype == float:
        shown.index = [f"{value:g}" for value in frame.index]
    for name in frame:
        style = "{:g}" if name in settings else "{:+.4f}" if name in signed else None
        shown[name] = [_text(style, value) for value in frame[name]]
    if {"low", "high"} <= {*frame}:
        shown["mean"] = [_text(_INTERVAL, *x) for x in frame[["mean", "low", "high"]].to_numpy()]
    if "seeds_min" in frame:
        ends = frame[["seeds_min", "seeds_max"]].to_numpy()
        shown["range over seeds"] = [_text(_RANGE, *x) for x in ends]
    shown = shown.drop(columns=["low", "high", "seeds_min", "seeds_max"], errors="ignore")
    if "paper" in frame:
        shown = shown.rename(columns={"mean": "ours"})
    printed = [name for name in frame if str(name).startswith("paper ")]
    if printed:  # rows of their own, below
        paper = shown[printed].rename(columns=lambda name: name.removeprefix("paper "))
        below = paper.rename(index="paper: {}".format)
        shown = pd.concat([shown.drop(columns=printed), below])
    return shown.rename_axis(frame.index.names)


def _by_metric(frame: pd.DataFrame) -> pd.DataFrame:
    best, over_seeds = frame.groupby("metric")["mean"].max(), "deviation" in frame
    ours, printed = {system: {} for system in frame["system"]}, {}
    for row in frame.to_dict("records"):
        cells, metric, mean = ours[row["system"]], row["metric"], row["mean"]
        style = "{:.1f}" if metric == "times chance" else "{:.3f}"
        low, high = row.get("low", np.nan), row.get("high", np.nan)
        half = row["deviation"] if over_seeds else (high - low) / 2
        text = _text(style if np.isnan(half) else f"{style}\u00a0±{style}", mean, half)
        cells[metric] = f"**{text}**" if mean == best[metric] else text
        if over_seeds and not np.isnan(low):  # only differences have an interval over users
            cells[metric] = _text(_INTERVAL, mean, low, high)
            cells["range over seeds"] = _text(_RANGE, row["seeds_min"], row["seeds_max"])
        if not np.isnan(paper := row.get("paper", np.nan)):
            printed.setdefault(f"paper: {row['system']}", {})[metric] = style.format(paper)
    rows, columns = ours | printed, [*frame["metric"].unique(), "range over seeds"]
    shown = pd.DataFrame([*rows.values()], [*rows], columns).dropna(axis=1, how="all")
    if "users" in frame:
        shown["users"] = frame.groupby("system")["users"].max().map("{:,}".format)
    return shown.fillna("–").rename_axis("system")


_INTERVAL, _RANGE = "{:+.4f} [{:+.4f}, {:+.4f}]", "{:+.4f} to {:+.4f}"


def _text(style: str | None, value, *others) -> str:
    """Return a number, and others that go with it, in a style, or else in that of its kind."""
    if pd.isna(value) or value == "":
        return "–"
    if isinstance(value, bool | np.bool_ | str):
        return str(value)
    whole = isinstance(value, int | np.integer)
    return (style or ("{:,}" if whole else "{:.3f}")).format(value, *others)
