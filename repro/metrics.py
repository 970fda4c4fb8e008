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
import torch


def heldout_ranks(theta, beta, heldout: sp.csr_matrix, exclude=None, device="cpu") -> np.ndarray:
    """Return the rank of every held-out pair in its user's list, by counting, without sorting.

    Parameters
    ----------
    theta, beta : arrays, users x K and items x K
        The score of a pair is their product.
    heldout, exclude : csr_matrix, users x items
        No pair may be in both.

    Returns
    -------
    array of int64, one entry for each stored pair of ``heldout``, in its order.

    Raises
    ------
    ValueError
        When a score is not finite, or a pair is both held out and excluded.
    """
    heldout = heldout.tocsr()
    if exclude is not None and heldout.multiply(exclude).nnz:
        raise ValueError("a pair is both held out and excluded")
    theta = torch.as_tensor(np.asarray(theta, dtype=np.float32), device=device)
    beta = torch.as_tensor(np.asarray(beta, dtype=np.float32), device=device)
    n_items = len(beta)
    lengths = np.diff(heldout.indptr)
    order = np.argsort(lengths, kind="stable")
    order = order[lengths[order] > 0]
    index = torch.arange(n_items, device=device)
    ranks = np.empty(heldout.nnz, dtype=np.int64)
    block = max(1, 2**22 // max(n_items, 1))
    for users in np.split(order, np.arange(block, len(order), block)) if len(order) else []:
        scores = theta[torch.from_numpy(users).to(device)] @ beta.T
        if not bool(scores.isfinite().all()):
            raise ValueError("scores must be finite")
        if exclude is not None:
            row, col = exclude[users].nonzero()
            scores[torch.from_numpy(row).to(device), torch.from_numpy(col).to(device)] = -np.inf
        for place in range(lengths[users[-1]]):  # users come by rising length: little is wasted
            has = lengths[users] > place
            entry = heldout.indptr[users[has]] + place
            item = torch.from_numpy(heldout.indices[entry].astype(np.int64)).to(device)
            listed = scores[int(np.argmax(has)) :]
            own = listed.gather(1, item[:, None])
            above = (listed > own).sum(1) + ((listed == own) & (index < item[:, None])).sum(1)
            ranks[entry] = above.cpu().numpy()
    return ranks


def per_user(ranks: np.ndarray, heldout: sp.csr_matrix, recall_at=(40, 80, 120, 160, 200)):
    """Return every metric of every user with held-out items.

    Parameters
    ----------
    ranks : array, one for each stored pair of ``heldout``
        From :func:`heldout_ranks`.

    Returns
    -------
    DataFrame, indexed by user: ``recall@M`` for each M, ``ndcg``, ``ndcg_code``, ``map``.
    """
    lengths = np.diff(heldout.indptr)
    user = np.repeat(np.arange(len(lengths)), lengths)
    order = np.lexsort((ranks, user))
    ranks = ranks[order].astype(np.float64)
    place = np.arange(len(ranks)) - np.repeat(heldout.indptr[:-1], lengths)

    def total(values):
        return np.bincount(user, values, len(lengths))

    def paper_gain(rank):
        return 1.0 / np.log2(rank + 2)

    def code_gain(rank):
        return 1.0 / np.log2(np.maximum(rank + 1, 2))

    keep = np.flatnonzero(lengths)
    n = lengths[keep]
    columns = {f"recall@{m}": total(ranks < m)[keep] / n for m in recall_at}
    for name, gain in (("ndcg", paper_gain), ("ndcg_code", code_gain)):
        columns[name] = total(gain(ranks))[keep] / total(gain(place))[keep]
    columns["map"] = total((place + 1) / (ranks + 1))[keep] / n
    return pd.DataFrame(columns, index=pd.Index(keep, name="user"))


def evaluate(theta, beta, heldout, exclude=None, recall_at=(40, 80, 120, 160, 200), device="cpu"):
    """Return the metrics of every user with held-out items; see :func:`per_user`."""
    heldout = heldout.tocsr()
    return per_user(heldout_ranks(theta, beta, heldout, exclude, device), heldout, recall_at)


def validator(heldout, exclude, device="cpu"):
    """Return the function from theta and beta to the mean NDCG and Recall@40 on ``heldout``."""

    def validate(theta, beta) -> dict:
        frame = evaluate(theta, beta, heldout, exclude, (40,), device)
        return frame[["ndcg", "recall@40"]].mean().to_dict()

    return validate


def same_for_all(item_scores, n_users: int):
    """Return factors (K = 1) that give each user the same list, ranked by ``item_scores``."""
    return np.ones((n_users, 1), np.float32), np.asarray(item_scores, np.float32)[:, None]


def bootstrap(per_user: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Return mean and 95% percentile interval of each column over resampled users.

    Give the difference of two systems' frames for a paired interval.

    Returns
    -------
    DataFrame, indexed by column: ``mean``, ``low``, ``high``.
    """
    rng = np.random.default_rng(seed)
    values = per_user.to_numpy()
    n = len(values)
    means = np.stack(
        [np.bincount(rng.integers(n, size=n), minlength=n) @ values / n for _ in range(resamples)]
    )
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    return pd.DataFrame({"mean": values.mean(0), "low": low, "high": high}, index=per_user.columns)
