"""Poisson factorisation of sparse counts by coordinate-ascent variational inference.

A count r_ui ~ Poisson(x_u.y_i) is the sum of K Poisson counts, one a factor. Given the counts, the
expected parts are r_ui phi_uik with phi_uik proportional to x_uk y_ik, where x and y stand for the
geometric means exp(E[log .]) of the factors, and the posterior shape of a gamma variable is

    prior + sum_i r_ui phi_uik = prior + x_uk sum_i r_ui y_ik / (x_u.y_i),

a sum over what was observed only. :func:`shares` makes these sums for every model here; the zeros
of a matrix enter the rates alone, through sums of means. Nothing of users x items is ever formed.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain, pairwise

import numpy as np
import scipy.sparse as sp
from scipy.special import psi

from repro.kernels import compiled, parallel_map
from repro.models import Factors

_CHUNKS = 64  # of rows: many, so that no thread waits long for the last
_LEAST = 2**13  # counts in a chunk: fewer are not worth a task
_BLOCK = 1024  # rows whose expectations are taken at a time
_FLOOR = np.float32(1e-15)  # of a geometric mean, relative to the largest of its row


def shares(x, y, counts: sp.csr_matrix) -> np.ndarray:
    """Return ``sum_i counts[r, i] / (x_r.y_i) y_i`` of every row r, in float32 and on all cores.

    ``x`` (rows x K) and ``y`` (columns x K) are positive. The scale of a row of y cancels, that of
    a row of x returns in x times the result: so geometric means are best given relative to the
    largest of their row, where float32 neither underflows nor overflows.
    """
    if (len(x), len(y)) != counts.shape or x.shape[1] != y.shape[1]:
        raise ValueError(f"x {x.shape} and y {y.shape} do not fit counts {counts.shape}")
    x, y = (np.ascontiguousarray(side, np.float32) for side in (x, y))
    out = np.zeros(x.shape, np.float32)
    work = counts.indptr + 8.0 * np.arange(len(x) + 1)  # a row costs something even when empty
    size = max(work[-1] / _CHUNKS, _LEAST)
    bounds = np.unique([*np.searchsorted(work, np.arange(0, work[-1], size)), len(x)])
    rest = counts.indptr, counts.indices, counts.data, x, y, out
    parallel_map(lambda rows: _share_rows(*rows, *rest), pairwise(bounds))
    return out


# Sums in any order become vector instructions; infinities and NaN keep their meaning.
@compiled(error_model="numpy", fastmath={"reassoc", "contract"})
def _share_rows(first, end, indptr, indices, counts, x, y, out):
    for row in range(first, end):
        for place in range(indptr[row], indptr[row + 1]):
            column, product = indices[place], np.float32(0)
            for k in range(x.shape[1]):
                product += x[row, k] * y[column, k]
            weight = counts[place] / product
            for k in range(x.shape[1]):
                out[row, k] += weight * y[column, k]


class _Gammas:
    """Gamma posteriors of a matrix of factors, rows x K, and what other updates need of them.

    ``mean`` is E[.] and ``total`` its sum over the rows; ``geometric`` is exp(E[log .]) relative
    to the largest of its row, and no less than a floor that any prior outweighs. Rates are sums of
    one part by column and one by row. A ``start`` serves as means before the first update.
    """

    def __init__(self, prior, start: np.ndarray):
        self.prior = np.asarray(prior, np.float32)
        self.mean, self.geometric = start.astype(np.float32), start.astype(np.float32)
        self.shape, self.total = np.zeros_like(self.mean), start.sum(0)

    def update(self, found: np.ndarray, columns, rows=0.0, step_size: float = 1.0) -> None:
        """Move to the posterior of these shares and rates; its shapes only by the step size."""
        columns, rows = columns.astype(np.float32), np.broadcast_to(np.float32(rows), len(found))

        def expect(begin):
            block = slice(begin, begin + _BLOCK)
            shape = self.prior + self.geometric[block] * found[block]
            shape = (1 - step_size) * self.shape[block] + step_size * shape
            rate = columns + rows[block, None]
            log = psi(shape) - np.log(rate)
            log -= log.max(1, keepdims=True)
            self.geometric[block] = np.maximum(np.exp(log), _FLOOR)
            self.shape[block], self.mean[block] = shape, shape / rate
            return self.mean[block].sum(0, dtype=np.float64)

        totals = parallel_map(expect, range(0, len(found), _BLOCK))
        self.total = sum(totals, np.zeros(self.mean.shape[1]))


def _checked(name: str, counts) -> sp.csr_matrix:
    counts = sp.csr_matrix(counts, dtype=np.float32)
    if counts.nnz and not (counts.data.min() >= 0 and np.isfinite(counts.data.max())):
        raise ValueError(f"{name} must be finite counts, none of them negative")
    return counts


def _check(**positive) -> None:
    for name, value in positive.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


def pmf(
    plays, *, factors: int, shape=0.3, rate_shape=0.3, rate_mean=1.0, passes=100, seed=0
) -> Factors:
    """Fit hierarchical Poisson factorisation (Gopalan, Hofman and Blei 2015, arXiv 1311.1704).

    r_ui ~ Poisson(theta_u.beta_i), theta_uk ~ Gamma(a, xi_u), xi_u ~ Gamma(a', a'/b'), and so for
    the items. A pass updates theta, xi, beta, then the items' rates. Theta starts from ones and
    beta from uniform draws about one, which is ours. ``plays`` are counts, users x items;
    ``shape`` is a, and that of beta: the smaller, the sparser; ``rate_shape`` a' and ``rate_mean``
    b': how alike the rates of users, and of items, are, and about what. All 0.3 are the authors'.
    """
    plays = _checked("plays", plays)
    _check(factors=factors, shape=shape, rate_shape=rate_shape, rate_mean=rate_mean, passes=passes)
    start = np.random.default_rng(seed).uniform(0.5, 1.5, (plays.shape[1], factors))
    users, items = _Gammas(shape, np.ones((plays.shape[0], factors))), _Gammas(shape, start)
    rates = {side: np.full(len(side.mean), rate_mean) for side in (users, items)}
    turns = (users, items, plays), (items, users, plays.T.tocsr())
    rate_shapes, hyper = rate_shape + factors * shape, rate_shape / rate_mean
    for _ in range(passes):
        for side, other, counts in turns:
            found = shares(side.geometric, other.geometric, counts)
            side.update(found, other.total, rates[side])
            rates[side] = rate_shapes / (hyper + side.mean.sum(1, dtype=np.float64))
    return Factors(users.mean, items.mean)


def ctpf(
    plays, words, cold_words, *, factors: int, lda=None, shape=0.3, rate=0.3, passes=100, seed=0
) -> Factors:
    """Fit collaborative topic Poisson factorisation (Gopalan, Charlin and Blei 2014).

    w_iv ~ Poisson(theta_i.topic_v) and r_ui ~ Poisson(eta_u.(theta_i + epsilon_i)), every factor
    from Gamma(``shape``, ``rate``). A pass updates users, topics, then both factors of the items.
    Theta starts from LDA, as its authors start it, or from uniform draws about one, as epsilon
    does; the others from ones. Their program can also correct for the length of a document.

    The Factors are E[eta_u], E[theta_i] + E[epsilon_i] and, for cold items, E[theta_i], which comes
    from their words alone, by 20 updates with the topics as they are; that nobody played them is
    not taken as a sign. Their epsilon, at the prior mean, would add a constant to a user's scores.

    Parameters
    ----------
    plays, words, cold_words : csr_matrix of counts, users x items, items x J and cold items x J
    lda : array, items x K, optional
        Topic proportions, whose rows sum to one.
    """
    given = {"plays": plays, "words": words, "cold_words": cold_words}
    plays, words, cold_words = (_checked(name, x) for name, x in given.items())
    if (plays.shape[1], cold_words.shape[1]) != words.shape:
        shapes = f"plays {plays.shape}, words {words.shape} and cold_words {cold_words.shape}"
        raise ValueError(f"{shapes} do not agree on the items or the codewords")
    _check(factors=factors, shape=shape, rate=rate, passes=passes)
    k, start = factors, np.random.default_rng(seed).uniform(0.5, 1.5, (words.shape[0], 2 * factors))
    if lda is not None:
        start[:, :k] = np.maximum(k * lda, 0.01)
    users, topics = (_Gammas(shape, np.ones((n, k))) for n in (plays.shape[0], words.shape[1]))
    items = _Gammas(shape, start)  # theta beside epsilon, since phi compares the two
    theta, both = items.geometric[:, :k], lambda x: x[..., :k] + x[..., k:]
    by_item, by_word = plays.T.tocsr(), words.T.tocsr()
    for _ in range(passes):
        found = shares(users.geometric, both(items.geometric), plays)
        users.update(found, rate + both(items.total))
        topics.update(shares(topics.geometric, theta, by_word), rate + items.total[:k])
        played = shares(both(items.geometric), users.geometric, by_item)
        read = shares(theta, topics.geometric, words)
        rates = rate + np.hstack([topics.total + users.total, users.total])
        items.update(np.hstack([read + played, played]), rates)
    cold = _fit_rows(shape, topics.geometric, cold_words, rate + topics.total)
    return Factors(users.mean, both(items.mean), cold.mean)


def _fit_rows(shape: float, fixed: np.ndarray, counts: sp.csr_matrix, rates) -> _Gammas:
    """Return rows fitted to counts from ones, each of them independent of the others."""
    rows = _Gammas(shape, np.ones((counts.shape[0], fixed.shape[1])))
    for _ in range(20):
        rows.update(shares(rows.geometric, fixed, counts), rates)
    return rows


def spmf(
    counts, tags, *, factors=100, shape=0.1, batch=1000, passes=10, tag_weight=1.0, seed=0
) -> Callable[[sp.csr_matrix], np.ndarray]:
    """Fit Poisson factorisation for tagging, stochastically (Liang, Paisley and Ellis 2014).

    From ``counts`` of codewords (songs x J) and ones for ``tags`` (songs x T) to a function from
    counts alone (m x J) to expected tags (m x T). The columns of both are those of one matrix,
    w_sv ~ Poisson(theta_s.beta_v) with theta_sk ~ Gamma(a, a c) and beta_vk ~ Gamma(a, a), a being
    ``shape``; tags are multiplied by ``tag_weight``, against hundreds of codewords a song (ours). A
    pass takes the songs in a new order. The activations theta of a batch are inferred first; then
    the dictionary beta takes the natural-gradient step, of size (1 + t)^-0.6 at batch t, towards
    all songs being like these.

    Where it differs from the authors' program: t counts on from pass to pass; activations start
    from ones and are updated 20 times, so that a song's do not depend on its neighbours; and
    1 / c, the mean activation, follows the batches by the same steps.
    """
    counts, tags = _checked("counts", counts), _checked("tags", tags)
    if counts.shape[0] != tags.shape[0]:
        raise ValueError(f"counts of {counts.shape[0]} songs, tags of {tags.shape[0]}")
    _check(factors=factors, shape=shape, batch=batch, passes=passes, tag_weight=tag_weight)
    both = sp.hstack([counts, tag_weight * tags], "csr")
    n, words = counts.shape
    rng = np.random.default_rng(seed)
    beta = _Gammas(shape, rng.gamma(100, 1 / 100, (both.shape[1], factors)))
    beta.shape, rates, mean = 100 * beta.mean, np.full(factors, 100.0), 1.0
    orders = (np.array_split(rng.permutation(n), -(-n // batch)) for _ in range(passes))
    for t, part in enumerate(chain.from_iterable(orders), 1):
        size, seen = (1.0 + t) ** -0.6, both[part]
        songs = _fit_rows(shape, beta.geometric, seen, shape / mean + beta.total)
        found = shares(beta.geometric, songs.geometric, seen.T.tocsr()) * (n / len(part))
        rates = (1 - size) * rates + size * (shape + n / len(part) * songs.total)
        mean = (1 - size) * mean + size * float(songs.mean.mean())
        beta.update(found, rates, step_size=size)
    rates = shape / mean + beta.mean[:words].sum(0, dtype=np.float64)
    known, of_tags = beta.geometric[:words], (beta.mean[words:] / tag_weight).T
    return lambda counts: _fit_rows(shape, known, _checked("counts", counts), rates).mean @ of_tags
