"""The tables: per-user metrics in, a frame that puts the paper's number beside ours out."""

from __future__ import annotations

from itertools import product

import numpy as np
import pandas as pd
from sklearn.preprocessing import normalize

from repro.evaluation import paper
from repro.evaluation.metrics import bootstrap

HEADLINE = [
    "random",
    "neighbours, VQ",
    "regression, VQ, linear",
    "regression, h, linear",
    "CTPF",
    "CTR",
    "CF + shallow",
    "CF + deep",
]


def ranking(systems: dict, printed: pd.DataFrame | None, resamples: int, seed: int) -> pd.DataFrame:
    """Return one row a system: mean and half-width of the 95% interval of each metric, and users.

    Parameters
    ----------
    systems : dict of str to DataFrame
        Per-user metrics from :func:`repro.evaluation.metrics.evaluate`; None where a system has no score.
    printed : DataFrame, optional
        The paper's means by system, which follow ours on rows of their own.

    Returns
    -------
    DataFrame of str, indexed by system.
    """
    rows = {}
    columns = next(list(frame) for frame in systems.values() if frame is not None)
    for system, frame in systems.items():
        if frame is None:
            rows[system] = {c: "not defined" for c in columns}
            continue
        stats = bootstrap(frame, resamples, seed)
        half = (stats["high"] - stats["low"]) / 2
        rows[system] = {
            c: f"{stats['mean'][c]:.4f}\u00a0±" + f"{half[c]:.4f}".lstrip("0") for c in columns
        }
        rows[system]["users"] = f"{len(frame):,}"
    return _with_printed(rows, printed)


def _with_printed(rows: dict[str, dict], printed: pd.DataFrame | None) -> pd.DataFrame:
    for system in [] if printed is None else printed.index:
        rows[f"paper: {system}"] = {c: f"{v:.4f}" for c, v in printed.loc[system].items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("system")


def winners(trials: pd.DataFrame, by: list[str], metric: str = "NDCG") -> pd.DataFrame:
    """Return each group's best trial and the number of its trials."""
    groups = trials.groupby(by, sort=False)
    best = trials.loc[groups[metric].idxmax()].set_index(by)
    return best.assign(trials=groups.size())


def gains(systems: dict, than: str, metric: str, resamples: int, seed: int) -> pd.DataFrame:
    """Return each other system's mean paired difference to ``than``, with its 95% interval.

    Returns
    -------
    DataFrame, indexed by system: ``mean``, ``low``, ``high``.
    """
    rows = {
        name: bootstrap(frame[[metric]] - systems[than][[metric]], resamples, seed).loc[metric]
        for name, frame in systems.items()
        if frame is not None and name != than
    }
    return pd.DataFrame(rows).T


def verdicts(
    draws: list[dict], resamples: int, seed: int, *, same_data: bool, equal_within: float = 0.005
) -> pd.DataFrame:
    """Judge the paper's claims by our paired differences, over one or more draws of the data.

    A claim holds when the whole 95% interval over users is above zero or, for a claim of equality,
    within ``equal_within`` of it, and so is the mean of every draw. It is then *reproduced* on the
    paper's own data and shows the *same ordering*, or is *equal here too*, on other data. Where
    interval and draws are all on the other side it is *not reproduced*, and between the two it is
    *not settled*. A claim about a system that we have not run is *not comparable*.

    Parameters
    ----------
    draws : list of dict
        One for each draw (seed): setting to our systems' per-user metrics by name. A setting is a
        key of :data:`repro.evaluation.paper.PRINTED`, alone or with a comma and more behind it. The rows of
        all draws count alike.
    same_data : bool
        Whether the data are the paper's own.

    Returns
    -------
    DataFrame: ``claim``, ``paper``, ``ours``, ``verdict``, and with several draws ``draws``, the
    least and greatest of their means.
    """
    rows = []
    for where, claim in product(draws[0], paper.CLAIMS):
        if claim.where != where.partition(",")[0]:
            continue
        printed = paper.PRINTED[claim.where][claim.metric]
        says = f"{claim.system} {'equals' if claim.equal else 'beats'} {claim.than}"
        row = {
            "claim": f"{where}: {says} ({claim.metric})",
            "paper": f"{printed[claim.system] - printed[claim.than]:+.4f}",
        }
        found = [draw[where] for draw in draws]
        absent = [s for s in (claim.system, claim.than) if found[0].get(s) is None]
        if absent:
            rows.append(
                row | {"ours": f"not run: {', '.join(absent)}", "verdict": "not comparable"}
            )
            continue
        each = [f[claim.system][[claim.metric]] - f[claim.than][[claim.metric]] for f in found]
        mean, low, high = bootstrap(pd.concat(each), resamples, seed).iloc[0]
        seen = np.array([low, high, *(float(e.mean().iloc[0]) for e in each)])
        if claim.equal:
            holds, fails = (abs(seen) < equal_within).all(), low > equal_within
            fails = fails or high < -equal_within
        else:
            holds, fails = (seen > 0).all(), (seen < 0).all()
        alike = "equal here too" if claim.equal else "same ordering"
        held = "reproduced" if same_data else alike
        row["ours"] = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
        row["verdict"] = held if holds else "not reproduced" if fails else "not settled"
        if len(draws) > 1:
            row["draws"] = f"{seen[2:].min():+.4f} to {seen[2:].max():+.4f}"
        rows.append(row)
    return pd.DataFrame(rows)


def over_draws(
    draws: list[dict],
    than: str | None = None,
    printed: pd.DataFrame | None = None,
    resamples: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Return mean and standard deviation of every metric over draws (seeds), one row a system.

    Parameters
    ----------
    draws : list of dict
        Per-user metrics by system, one dict a draw.
    than : str, optional
        A system; adds the NDCG less its own, paired: the mean with its 95% interval over the users
        of all draws, and the least and greatest mean of a draw.
    printed : DataFrame, optional
        The paper's means by system, which follow ours on rows of their own.
    """
    rows = {}
    if than is not None:
        ndcg = [pd.DataFrame({s: frame["NDCG"] for s, frame in draw.items()}) for draw in draws]
        apart = [frame.sub(frame[than], axis=0) for frame in ndcg]
        means = pd.DataFrame([frame.mean() for frame in apart])
        interval = bootstrap(pd.concat(apart), resamples, seed)
    for system in draws[0]:
        each = pd.DataFrame([draw[system].mean() for draw in draws])
        mean, deviation = each.mean(), each.std(ddof=1)
        rows[system] = {
            c: f"{mean[c]:.4f}\u00a0±" + f"{deviation[c]:.4f}".lstrip("0") for c in each
        }
        if than not in (None, system):
            stats, seen = interval.loc[system], means[system]
            written = f"{stats['mean']:+.4f} [{stats['low']:+.4f}, {stats['high']:+.4f}]"
            rows[system][f"NDCG less {than}"] = written
            rows[system]["draws"] = f"{seen.min():+.4f} to {seen.max():+.4f}"
    return _with_printed(rows, printed)


def each_draw(draws: list[dict], seeds: list[int]) -> pd.DataFrame:
    """Return every mean that :func:`over_draws` averages: one row a system, draw and metric."""
    rows = [
        {"system": system, "seed": seed, "metric": column, "mean": mean}
        for draw, seed in zip(draws, seeds, strict=True)
        for system, frame in draw.items()
        for column, mean in frame.mean().items()
    ]
    return pd.DataFrame(rows)


def headline(systems: dict, metric: str, chance: float, resamples: int, seed: int) -> pd.DataFrame:
    """Return the ranking of out-of-matrix systems by ``metric`` and NDCG, in multiples of chance.

    Parameters
    ----------
    chance : float
        What ``metric`` is for random lists here; in the paper it was 40 / 4871.
    """
    frame = ranking({s: f[[metric, "NDCG"]] for s, f in systems.items()}, None, resamples, seed)
    return beside_chance(frame, {s: f[metric].mean() for s, f in systems.items()}, chance)


def beside_chance(frame: pd.DataFrame, means: dict, chance: float) -> pd.DataFrame:
    """Return ``frame``, one row a system, with ``means`` in multiples of chance and the paper's."""
    printed = paper.DEN_OUT_OF_MATRIX["R@40"].reindex(list(means))
    mean, frame = pd.Series(means), frame.copy()
    columns = {
        "times chance": (mean / chance, "{:.1f}"),
        "paper: R@40": (printed, "{:.4f}"),
        "paper: times chance": (printed / (40 / 4871), "{:.1f}"),
    }
    for name, (values, style) in columns.items():
        frame[name] = values.map(style.format).where(values.notna(), "")
    return frame


def packed(systems: dict) -> dict[str, np.ndarray]:
    """Return per-user metrics as plain arrays, for :meth:`repro.pipeline.run.Run.save`."""
    frame = next(iter(systems.values()))
    return {
        "users": frame.index.to_numpy(),
        "columns": np.array(list(frame)),
        **{name: frame.to_numpy() for name, frame in systems.items()},
    }


def unpacked(saved) -> dict[str, pd.DataFrame]:
    """Return what :func:`packed` packed, from a loaded artefact."""
    values = dict(vars(saved))
    users, columns = pd.Index(values.pop("users"), name="user"), values.pop("columns")
    return {name: pd.DataFrame(x, users, columns) for name, x in values.items()}


def per_tag(saved) -> dict[str, pd.DataFrame]:
    """Return each tagger's AROC of the tags that all of them could be judged on."""
    columns = {name: x[:, 2] for name, x in vars(saved).items() if "without" not in name}
    aroc = pd.DataFrame(columns).dropna()
    return {name: aroc[[name]].set_axis(["AROC"], axis=1) for name in aroc}


def by_quarter(values: pd.DataFrame, by: np.ndarray, of: str) -> pd.DataFrame:
    """Return the mean of each column over the quarters of the rows, ordered ``by`` a count."""
    quarter = pd.qcut(pd.Series(by, values.index).rank(method="first"), 4, labels=False)
    bounds = pd.Series(by, values.index).groupby(quarter).agg(["min", "max"])
    names = [f"{low:g}–{high:g} {of}" for low, high in bounds.to_numpy()]
    return values.groupby(quarter).mean().set_axis(names)


def coverage(times: np.ndarray) -> dict[str, float]:
    """Return how widely recommendations spread, from the number of lists that have each item."""
    reached = np.sort(times)[::-1].cumsum() / max(times.sum(), 1)
    half = np.searchsorted(reached, 0.5) + 1
    return {"covered": float((times > 0).mean()), "half of all places": half / len(times)}


def labels(ids, tagged_ids, tags, vocabulary, n: int) -> np.ndarray:
    """Return for each id the rarest of its tags that are among the ``n`` most frequent, or ""."""
    row = dict(zip(tagged_ids, range(len(tagged_ids)), strict=True))
    songs = tags.getnnz(axis=0)
    frequent = np.argsort(-songs, kind="stable")[:n]
    found = []
    for one in ids:
        own = tags[row[one]].indices if one in row else []
        own = [tag for tag in frequent[::-1] if tag in own]
        found.append(str(vocabulary[own[0]]) if own else "")
    return np.array(found)


def one_user(user, model, train, test, cold, names, cold_names, n: int) -> pd.DataFrame:
    """Return a user's history and first ``n`` recommendations of items with and without plays.

    A star marks what the user did play: a pair held out for testing.
    """

    def first(scores, listed, played):
        best = np.argsort(-scores, kind="stable")[:n]
        return [f"{listed[i]}{' *' if i in played else ''}" for i in best]

    seen = train[[user]].indices
    scores = model.beta @ model.theta[user]
    scores[seen] = -np.inf
    history = seen[np.argsort(-train[[user]].data, kind="stable")][:n]
    columns = {
        "played": list(names[history]),
        "recommended, with plays": first(scores, names, test[[user]].indices),
        "recommended, without": first(
            model.cold @ model.theta[user], cold_names, cold[[user]].indices
        ),
    }
    return pd.DataFrame({name: pd.Series(x) for name, x in columns.items()}).fillna("")


def neighbours(names, factors, other_names, other_factors, n: int = 3) -> pd.DataFrame:
    """Return, for each row of ``factors``, the names of its ``n`` nearest others by cosine.

    Rows are taken as departures from the mean of the others, which all rows share.
    """
    mean = np.mean(other_factors, axis=0)
    cosine = normalize(factors - mean) @ normalize(other_factors - mean).T
    nearest = np.argsort(-cosine, axis=1, kind="stable")[:, :n]
    columns = [f"neighbour {k + 1}" for k in range(n)]
    return pd.DataFrame(other_names[nearest], index=list(names), columns=columns)
