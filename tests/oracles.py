"""Slow ways in float64, written for reading: what the fast ones must give; and a fit's end."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from threadpoolctl import threadpool_limits

from repro.pipeline.run import Checkpoint


@threadpool_limits.wrap(limits=1)
def solve_slowly(fixed, surplus: sp.csr_matrix, ridge: float, prior=None) -> np.ndarray:
    """Solve one row after the other in float64: what :func:`repro.kernels.solve_rows` must give.

    Shapes: ``fixed`` columns x K, ``surplus`` (confidence above one of each play) rows x columns,
    ``prior`` (means, zero when absent) rows x K; float64, rows x K, comes back.
    """
    y, x = np.asarray(fixed, np.float64), np.zeros((surplus.shape[0], np.shape(fixed)[1]))
    for row in range(len(x)):
        s = surplus[[row]].toarray()[0].astype(np.float64)  # 0 where nothing was played
        right = ((1.0 + s) * (s > 0)) @ y
        if prior is not None:
            right = right + ridge * np.asarray(prior[row], np.float64)
        x[row] = np.linalg.solve((y.T * (1.0 + s)) @ y + ridge * np.eye(y.shape[1]), right)
    return x


def ranks_slowly(theta, beta, heldout: sp.csr_matrix, exclude=None) -> np.ndarray:
    """Sort every user's list in float64: what :func:`repro.kernels.heldout_ranks` must give."""
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


def plays_of(lengths, n_items: int, seed: int = 0, most: int = 1) -> sp.csr_matrix:
    """Return plays whose user ``u`` has ``lengths[u]`` items, played 1 to ``most`` times."""
    rng = np.random.default_rng(seed)
    plays = np.zeros((len(lengths), n_items), np.int32)
    for row, length in zip(plays, lengths, strict=True):
        row[rng.choice(n_items, length, replace=False)] = rng.integers(1, most + 1, length)
    return sp.csr_matrix(plays)


def apart(found, expected, terms=0.0) -> float:
    """Return the largest distance of a row from what it should be, relative to its length.

    ``terms`` bounds what the row was summed from: where that cancels, float32 cannot do better.
    """
    length = np.maximum(np.linalg.norm(expected, axis=1), terms)
    return (np.linalg.norm(found - expected, axis=1) / np.where(length > 0, length, 1.0)).max()


class Broken(Checkpoint):
    """A checkpoint after whose ``after``-th state the fit is broken off."""

    def __init__(self, path, after: int):
        super().__init__(path, 0.0)
        self.left = after

    def save(self, state):
        super().save(state)
        self.left -= 1
        if not self.left:
            raise KeyboardInterrupt
