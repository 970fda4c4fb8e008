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
from numba import types
from numba.extending import intrinsic

from repro.kernels import parallel
from repro.kernels.vectors import LANES, Vectors, aligned, compiled

_USERS, _ITEMS = 256, 1024  # of a tile of scores, which stays in cache


def ranks_slowly(theta, beta, heldout: sp.csr_matrix, exclude=None) -> np.ndarray:
    """Sort every user's list in float64: what :func:`heldout_ranks` must give."""
    theta, beta = (np.asarray(x, np.float32).astype(np.float64) for x in (theta, beta))
    ranks = []
    for user in range(heldout.shape[0]):
        listed = np.argsort(-(beta @ theta[user]), kind="stable")
        if exclude is not None:
            listed = listed[~np.isin(listed, exclude[[user]].indices)]
        place = np.empty(len(beta), np.int64)
        place[listed] = np.arange(len(listed))
        ranks.append(place[heldout[[user]].indices])
    return np.concatenate(ranks)


def heldout_ranks(theta, beta, heldout: sp.csr_matrix, exclude=None) -> np.ndarray:
    """Return the rank of every held-out pair in its user's list, by counting, without sorting.

    Blocked float32 products score all items. Where one is too close to a held-out item's to tell,
    both are scored again in float64, so that the order depends on no machine.

    Parameters
    ----------
    theta, beta : arrays, users x K and items x K
        The score of a pair is the product of their float32 values.
    heldout, exclude : csr_matrix, users x items
        No pair may be in both.

    Returns
    -------
    array of int64, one entry for each stored pair of ``heldout``, in its order.

    Raises
    ------
    ValueError
        When shapes do not fit, a score may not be finite, or a pair is both held out and excluded.
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
    length, longest = (np.sqrt(np.einsum("ij,ij->i", x, x, dtype=float)) for x in (theta, beta))
    if not length.max(initial=0) * longest.max(initial=0) < np.finfo(np.float32).max:
        raise ValueError("scores must be finite")
    # By falling length: no product of a tile is larger than with the tile's first item.
    order = np.argsort(-longest, kind="stable").astype(np.int32)
    place = np.empty_like(order)
    place[order] = np.arange(len(order), dtype=np.int32)
    columns, longest = np.ascontiguousarray(beta[order].T), longest[order]
    ranks = np.zeros(held.nnz, np.int64)
    pairs = theta, beta, held.indptr, held.indices, np.empty(held.nnz), ranks
    users = np.flatnonzero(np.diff(held.indptr))

    width = min(_ITEMS, len(beta) + -len(beta) % 64)

    def count(block):
        listed, room = theta[block], aligned(len(block), width)
        taken = np.empty((out.indptr[block + 1] - out.indptr[block]).sum(), np.int32)
        ends = np.empty(len(block), np.int64)
        _start(block, out.indptr, out.indices, place, taken, ends, *pairs)
        for first in range(0, len(beta), _ITEMS):
            n = min(_ITEMS, len(beta) - first)
            np.matmul(listed, columns[:, first : first + n], out=room[:, :n])
            room[:, n:] = -np.inf
            bound = length[block] * longest[first]
            _add_tile(room, first, n, block, bound, order, place, taken, ends, *pairs)

    parallel.over(count, (users[i : i + _USERS] for i in range(0, len(users), _USERS)))
    return ranks


def _pattern(pairs: sp.csr_matrix) -> sp.csr_matrix:
    ones = np.ones(len(pairs.indices), bool)
    return sp.csr_matrix((ones, pairs.indices, pairs.indptr), pairs.shape)


@compiled
def _start(
    users, out_indptr, out_indices, place, taken, ends, theta, beta, indptr, indices, own, _
):
    """Score the users' held-out items; list where the tiles have the excluded ones."""
    end = 0
    for row, user in enumerate(users):
        for entry in range(indptr[user], indptr[user + 1]):
            own[entry] = _exact_score(theta[user], beta[indices[entry]])
        begin, end = end, end + out_indptr[user + 1] - out_indptr[user]
        for spot in range(begin, end):
            taken[spot] = place[out_indices[out_indptr[user] + spot - begin]]
        ends[row] = end


@compiled
def _add_tile(
    scores, first, n, users, bound, order, place, taken, ends,
    theta, beta, indptr, indices, own, ranks,
):  # fmt: skip
    """Add to the rank of the users' held-out items the ones of this tile listed above them."""
    end = 0
    for row, user in enumerate(users):
        score = scores[row]
        begin, end = end, ends[row]
        for spot in range(begin, end):
            if first <= taken[spot] < first + n:
                score[taken[spot] - first] = -np.inf
        # A float32 sum of K products is this near, in whatever order it is summed.
        margin = (theta.shape[1] + 4) * 2.0**-24 * bound[row] + 1e-37
        for entry in range(indptr[user], indptr[user + 1]):
            if own[entry] > bound[row] + 2 * margin:
                continue  # nothing here is as high
            low, high = np.float32(own[entry] - margin), np.float32(own[entry] + margin)
            above, near = _count(score, 0, len(score), low, high)
            ranks[entry] += above
            if near - above == (first <= place[indices[entry]] < first + n):
                continue  # but for itself
            for part in range(0, n, 64):
                above, near = _count(score, part, 64, low, high)
                if near == above:
                    continue
                for c in range(part, min(part + 64, n)):
                    item = order[first + c]
                    if low <= score[c] <= high and item != indices[entry]:
                        exact = _exact_score(theta[user], beta[item])
                        equal_first = exact == own[entry] and item < indices[entry]
                        ranks[entry] += exact > own[entry] or equal_first


@compiled
def _count(score, at, n, low, high):
    both = _count_both(score, at, n, low, high)
    return both >> 32, both & 0xFFFFFFFF


@intrinsic
def _count_both(typing, score, at, n, low, high):
    """Count the scores above ``high`` and, in the lower half of the result, from ``low`` on."""

    def generate(context, builder, signature, args):
        v = Vectors(context, builder, signature, args)
        score, at, n, low, high = v.args
        low, high = v.broadcast(low), v.broadcast(high)
        above, near = v.variables([v.none, v.none])
        with v.loop(v.whole(n)) as turn:
            value = v.load(score, at, v.times(turn.index, LANES))
            v.count(above, builder.fcmp_ordered(">", value, high))
            v.count(near, builder.fcmp_ordered(">=", value, low))
        return builder.or_(builder.shl(builder.load(above), v.long(32)), builder.load(near))

    real = types.float32
    return types.int64(score, types.int64, types.int64, real, real), generate


@compiled
def _exact_score(theta, beta):
    """Return a product in float64 whose order of summation is the same everywhere."""
    a = b = c = d = 0.0
    k = len(theta)
    for i in range(0, k - 3, 4):
        a += np.float64(theta[i]) * np.float64(beta[i])
        b += np.float64(theta[i + 1]) * np.float64(beta[i + 1])
        c += np.float64(theta[i + 2]) * np.float64(beta[i + 2])
        d += np.float64(theta[i + 3]) * np.float64(beta[i + 3])
    for i in range(k - k % 4, k):
        a += np.float64(theta[i]) * np.float64(beta[i])
    return (a + b) + (c + d)


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


def recommended(theta, beta, m: int) -> np.ndarray:
    """Return how many users have each item among the first ``m`` of their list of all items."""
    theta, beta = (torch.from_numpy(np.ascontiguousarray(x, np.float32)) for x in (theta, beta))
    m, times = min(m, len(beta)), torch.zeros(len(beta), dtype=torch.int64)
    for block in theta.split(4096):
        first = (block @ beta.T).topk(m, sorted=False).indices
        times += torch.bincount(first.ravel(), minlength=len(beta))
    return times.numpy()


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
    user in several draws of the data, are drawn together: they are not independent.

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
