"""Ranking metrics over full rankings, per user, and bootstrap intervals over users.

Conventions. A user's ranked list holds every item except those in ``exclude`` (train and
validation). Items of equal score keep the order of their index; item indices are a random order,
so ties favour nobody. A user without held-out items has no score and is left out of the mean; a
user whose score is zero stays in. Ranks count from 0.

Recall@M : held-out items among the first M, over the number of held-out items (ISMIR sec. 4.3).
NDCG : untruncated, gain 1, discount 1 / log2(rank + 2) (ISMIR sec. 4.3).
NDCG (code) : the same with the discount of the authors' code, 1, 1, 1/log2 3, 1/log2 4, ...
MAP : mean of the untruncated average precision.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
import scipy.sparse as sp

from repro import kernels


def heldout_ranks(theta, beta, heldout: sp.csr_matrix, exclude=None) -> np.ndarray:
    """Return the rank of every held-out pair in its user's list, by counting, without sorting.

    Parameters
    ----------
    theta, beta : arrays, users x K and items x K
        The score of a pair is the product of their float32 values.
    heldout, exclude : csr_matrix, users x items
        No pair may be in both.

    Returns
    -------
    array of int64, one entry for each stored pair of ``heldout``, in its order.
    """
    held = heldout.tocsr()
    out = sp.csr_matrix(held.shape) if exclude is None else exclude.tocsr()
    users_k, items_k, pairs = np.shape(theta), np.shape(beta), (len(theta), len(beta))
    if users_k[1] != items_k[1] or not held.shape == out.shape == pairs:
        raise ValueError(
            f"theta {users_k} and beta {items_k} do not fit heldout {held.shape} and "
            f"exclude {out.shape}"
        )
    if _pattern(held).multiply(_pattern(out)).nnz:
        raise ValueError("a pair is both held out and excluded")
    with np.errstate(over="ignore"):
        theta, beta = (np.ascontiguousarray(x, dtype=np.float32) for x in (theta, beta))
    return kernels.heldout_ranks(theta, beta, held, out)


def _pattern(pairs: sp.csr_matrix) -> sp.csr_matrix:
    ones = np.ones(len(pairs.indices), bool)
    return sp.csr_matrix((ones, pairs.indices, pairs.indptr), pairs.shape)


def per_user(ranks: np.ndarray, heldout: sp.csr_matrix, recall_at=(40, 80, 120, 160, 200)):
    """Return every metric of every user with held-out items.

    Parameters
    ----------
    ranks : array, one for each stored pair of ``heldout``
        From :func:`heldout_ranks`.

    Returns
    -------
    DataFrame, indexed by user: ``R@M`` for each M, ``NDCG``, ``NDCG (code)``, ``MAP``.
    """
    lengths = np.diff(heldout.indptr)
    user = np.repeat(np.arange(len(lengths)), lengths)
    ranks = np.sort(user * heldout.shape[1] + ranks) - user * heldout.shape[1]
    place = np.arange(len(ranks)) - np.repeat(heldout.indptr[:-1], lengths)

    def total(values):
        return np.bincount(user, values, len(lengths))

    def paper_gain(rank):
        return 1.0 / np.log2(rank + 2)

    def code_gain(rank):
        return 1.0 / np.log2(np.maximum(rank + 1, 2))

    keep = np.flatnonzero(lengths)
    n = lengths[keep]
    columns = {f"R@{m}": total(ranks < m)[keep] / n for m in recall_at}
    for name, gain in (("NDCG", paper_gain), ("NDCG (code)", code_gain)):
        columns[name] = total(gain(ranks))[keep] / total(gain(place))[keep]
    columns["MAP"] = total((place + 1) / (ranks + 1))[keep] / n
    return pd.DataFrame(columns, index=pd.Index(keep, name="user"))


def evaluate(theta, beta, heldout, exclude=None, recall_at=(40, 80, 120, 160, 200)):
    """Return the metrics of every user with held-out items; see :func:`per_user`."""
    heldout = heldout.tocsr()
    return per_user(heldout_ranks(theta, beta, heldout, exclude), heldout, recall_at)


def validator(heldout, exclude):
    """Return the function from theta and beta to the mean NDCG and Recall@40 on ``heldout``."""

    def validate(theta, beta) -> dict:
        frame = evaluate(theta, beta, heldout, exclude, (40,))
        return frame[["NDCG", "R@40"]].mean().to_dict()

    return validate


def same_for_all(item_scores, n_users: int):
    """Return factors (K = 1) that give each user the same list, ranked by ``item_scores``."""
    return np.ones((n_users, 1), np.float32), np.asarray(item_scores, np.float32)[:, None]


def bootstrap(per_user: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Return mean and 95% percentile interval of each column over resampled users.

    Give the difference of two systems' frames for a paired interval. Rows of the same index, one
    user in several seeds, are drawn together: they are not independent.

    Returns
    -------
    DataFrame, indexed by column: ``mean``, ``low``, ``high``.
    """
    rng = np.random.default_rng(seed)
    sums = per_user.groupby(level=0).sum().to_numpy()
    rows = per_user.groupby(level=0).size().to_numpy()
    n, means = len(sums), []
    for _ in range(resamples):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        means.append(times @ sums / (times @ rows))
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    mean = per_user.to_numpy().mean(0)
    return pd.DataFrame({"mean": mean, "low": low, "high": high}, index=per_user.columns)
