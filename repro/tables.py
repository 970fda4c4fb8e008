"""The tables: per-user metrics in, a frame that puts the paper's number beside ours out."""

from __future__ import annotations

import numpy as np
import pandas as pd

from repro.metrics import bootstrap

NAMES = {"ndcg": "NDCG", "ndcg_code": "NDCG (code)", "map": "MAP"}


def _name(column: str) -> str:
    return NAMES.get(column, column.replace("recall", "R"))


def ranking(systems: dict, paper: pd.DataFrame | None, resamples: int, seed: int) -> pd.DataFrame:
    """Return one row a system: mean and half-width of the 95% interval of each metric, and users.

    Parameters
    ----------
    systems : dict of str to DataFrame
        Per-user metrics from :func:`repro.metrics.evaluate`; None where a system has no score.
    paper : DataFrame, optional
        The paper's means by system; each follows ours on a row of its own.

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
        rows[system] = {_name(c): f"{stats['mean'][c]:.4f} ± {half[c]:.4f}" for c in columns}
        rows[system]["users"] = f"{len(frame):,}"
    for system in [] if paper is None else paper.index:
        rows[f"paper: {system}"] = {_name(c): f"{v:.4f}" for c, v in paper.loc[system].items()}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("").rename_axis("system")


def means(systems: dict) -> pd.DataFrame:
    """Return the plain means of every system, for :meth:`Run.save` and for further reading."""
    return pd.DataFrame({s: f.mean() for s, f in systems.items() if f is not None}).T


def gain(better: pd.DataFrame, than: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Return the mean paired difference of two systems over their users, with its interval."""
    return bootstrap(better - than, resamples, seed)


def verdict(claim: str, paper: str, stats: pd.Series, *, equal_within=None, same_data=False):
    """Judge one claim of the paper by the interval of our difference.

    Parameters
    ----------
    stats : Series
        ``mean``, ``low``, ``high`` of the difference that the claim says is positive or, with
        ``equal_within``, smaller than that.
    same_data : bool
        Whether the data are the paper's own; only then can a claim be *reproduced*.

    Returns
    -------
    dict with ``claim``, ``paper``, ``ours``, ``verdict``.
    """
    if equal_within is None:
        holds = stats["low"] > 0
    else:
        holds = -equal_within < stats["low"] and stats["high"] < equal_within
    if holds:
        outcome = "reproduced" if same_data else "same ordering"
    else:
        outcome = "not reproduced"
    ours = f"{stats['mean']:+.4f} [{stats['low']:+.4f}, {stats['high']:+.4f}]"
    return {"claim": claim, "paper": paper, "ours": ours, "verdict": outcome}


def neighbours(names, factors, other_names, other_factors, n: int = 3) -> pd.DataFrame:
    """Return, for each row of ``factors``, the names of its ``n`` nearest others by cosine."""

    def unit(x):
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    nearest = np.argsort(-(unit(factors) @ unit(other_factors).T), axis=1, kind="stable")[:, :n]
    columns = [f"neighbour {k + 1}" for k in range(n)]
    return pd.DataFrame(other_names[nearest], index=list(names), columns=columns)
