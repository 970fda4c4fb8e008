"""The tables: per-user metrics in, a frame that puts the paper's number beside ours out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro import paper
from repro.metrics import bootstrap

NAMES = {"ndcg": "NDCG", "ndcg_code": "NDCG (code)", "map": "MAP"}


def _name(column: str) -> str:
    return NAMES.get(column, column.replace("recall", "R"))


def ranking(systems: dict, printed: pd.DataFrame | None, resamples: int, seed: int) -> pd.DataFrame:
    """Return one row a system: mean and half-width of the 95% interval of each metric, and users.

    Parameters
    ----------
    systems : dict of str to DataFrame
        Per-user metrics from :func:`repro.metrics.evaluate`; None where a system has no score.
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
            rows[system] = {_name(c): "not defined" for c in columns}
            continue
        stats = bootstrap(frame, resamples, seed)
        half = (stats["high"] - stats["low"]) / 2
        rows[system] = {
            _name(c): f"{stats['mean'][c]:.4f}\u00a0±" + f"{half[c]:.4f}".lstrip("0")
            for c in columns
        }
        rows[system]["users"] = f"{len(frame):,}"
    for system in [] if printed is None else printed.index:
        rows[f"paper: {system}"] = {_name(c): f"{v:.4f}" for c, v in printed.loc[system].items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("system")


def winners(trials: pd.DataFrame, by: list[str], metric: str = "ndcg") -> pd.DataFrame:
    """Return each group's best trial, and which of its values lie on the edge of the grid."""
    best = trials.loc[trials.groupby(by, sort=False)[metric].idxmax()].set_index(by)

    def edges(row):
        tried = trials.set_index(by).loc[[row.name]]
        names = [n for n in ("lambda_theta", "lambda_beta") if tried[n].nunique() > 1]
        return ", ".join(n for n in names if row[n] in (tried[n].min(), tried[n].max()))

    return best.assign(**{"on the edge": best.apply(edges, axis=1)})


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
    found: dict, resamples: int, seed: int, *, same_data: bool, equal_within: float = 0.005
) -> pd.DataFrame:
    """Judge the paper's claims about the settings in ``found`` by our paired differences.

    A claim holds when the whole 95% interval is above zero or, for a claim of equality, within
    ``equal_within`` of it. It is then *reproduced* on the paper's own data and shows the *same
    ordering* on other data; else it is *not reproduced*. A claim about a system that we have not
    run is *not comparable*.

    Parameters
    ----------
    found : dict
        Setting (a key of :data:`repro.paper.PRINTED`) to our systems' per-user metrics by name.
    same_data : bool
        Whether the data are the paper's own.

    Returns
    -------
    DataFrame: ``claim``, ``paper``, ``ours``, ``verdict``.
    """
    rows = []
    for claim in paper.CLAIMS:
        if claim.where not in found:
            continue
        printed = paper.PRINTED[claim.where][claim.metric]
        systems = found[claim.where]
        absent = [s for s in (claim.system, claim.than) if systems.get(s) is None]
        if absent:
            ours, outcome = f"not run: {', '.join(absent)}", "not comparable"
        else:
            both = {s: systems[s] for s in (claim.system, claim.than)}
            mean, low, high = gains(both, claim.than, claim.metric, resamples, seed).iloc[0]
            ours = f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]"
            holds = (-equal_within < low and high < equal_within) if claim.equal else low > 0
            held = "reproduced" if same_data else "same ordering"
            outcome = held if holds else "not reproduced"
        says = f"{claim.system} {'equals' if claim.equal else 'beats'} {claim.than}"
        rows.append(
            {
                "claim": f"{claim.where}: {says} ({_name(claim.metric)})",
                "paper": f"{printed[claim.system] - printed[claim.than]:+.4f}",
                "ours": ours,
                "verdict": outcome,
            }
        )
    return pd.DataFrame(rows)


def neighbours(names, factors, other_names, other_factors, n: int = 3) -> pd.DataFrame:
    """Return, for each row of ``factors``, the names of its ``n`` nearest others by cosine."""

    def unit(x):
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    nearest = np.argsort(-(unit(factors) @ unit(other_factors).T), axis=1, kind="stable")[:, :n]
    columns = [f"neighbour {k + 1}" for k in range(n)]
    return pd.DataFrame(other_names[nearest], index=list(names), columns=columns)
