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
    """Return the rank of every stored pair of ``heldout`` (users x items) in its user's list.

    The score of a pair is the product of the float32 values of ``theta`` (users x K) and ``beta``
    (items x K). A ValueError says that shapes do not fit, that a score may not be finite, or that a
    pair is in ``exclude`` too. Ranks are int64, in the order of the pairs.
    """
    held = heldout.tocsr()
    out = sp.csr_matrix(held.shape) if exclude is None else exclude.tocsr()
    users, items = np.shape(theta), np.shape(beta)
    if users[1] != items[1] or not held.shape == out.shape == (users[0], items[0]):
        sides = f"heldout {held.shape} and exclude {out.shape}"
        raise ValueError(f"theta {users} and beta {items} do not fit {sides}")
    pairs = ((np.ones(x.nnz, bool), x.indices, x.indptr) for x in (held, out))
    one, other = (sp.csr_matrix(stored, held.shape) for stored in pairs)
    if one.multiply(other).nnz:
        raise ValueError("a pair is both held out and excluded")
    with np.errstate(over="ignore"):
        theta, beta = (np.ascontiguousarray(x, dtype=np.float32) for x in (theta, beta))
    return kernels.heldout_ranks(theta, beta, held, out)


def per_user(ranks: np.ndarray, heldout: sp.csr_matrix, recall_at=(40, 80, 120, 160, 200)):
    """Return ``R@M`` for each M, ``NDCG``, ``NDCG (code)`` and ``MAP`` by user with held-out items.

    ``ranks`` has one number for each stored pair of ``heldout``, from :func:`heldout_ranks`.
    """
    lengths = np.diff(heldout.indptr)
    user = np.repeat(np.arange(len(lengths)), lengths)
    ranks = np.sort(user * heldout.shape[1] + ranks) - user * heldout.shape[1]
    place = np.arange(len(ranks)) - np.repeat(heldout.indptr[:-1], lengths)
    keep = np.flatnonzero(lengths)

    def total(values):
        return np.bincount(user, values, len(lengths))[keep]

    n = lengths[keep]
    columns = {f"R@{m}": total(ranks < m) / n for m in recall_at}
    for name, discount in {
        "NDCG": lambda rank: np.log2(rank + 2),
        "NDCG (code)": lambda rank: np.log2(np.maximum(rank + 1, 2)),
    }.items():
        columns[name] = total(1.0 / discount(ranks)) / total(1.0 / discount(place))
    columns["MAP"] = total((place + 1) / (ranks + 1)) / n
    return pd.DataFrame(columns, index=pd.Index(keep, name="user"))


def evaluate(theta, beta, heldout, exclude=None, recall_at=(40, 80, 120, 160, 200)):
    """Return the metrics of every user with held-out items; see :func:`per_user`."""
    heldout = heldout.tocsr()
    return per_user(heldout_ranks(theta, beta, heldout, exclude), heldout, recall_at)


def validator(heldout, exclude):
    """Return the function from theta and beta to the mean NDCG and Recall@40 on ``heldout``."""
    wanted = ["NDCG", "R@40"]
    return lambda *factors: evaluate(*factors, heldout, exclude, (40,))[wanted].mean().to_dict()


def same_for_all(item_scores, n_users: int):
    """Return factors (K = 1) that give each user the same list, ranked by ``item_scores``."""
    return np.ones((n_users, 1), np.float32), np.asarray(item_scores, np.float32)[:, None]


def bootstrap(per_user: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Return ``mean`` and 95% percentile interval, ``low`` to ``high``, of each column over users.

    Give the difference of two systems' frames for a paired interval. Rows of the same index, one
    user in several seeds, are drawn together: they are not independent.
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
