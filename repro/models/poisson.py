"""Poisson factorisation of sparse counts by coordinate-ascent variational inference.

A count r_ui ~ Poisson(x_u.y_i) is the sum of K Poisson counts, one a factor. Given the counts, the
expected parts are r_ui phi_uik with phi_uik proportional to x_uk y_ik, where x and y stand for the
geometric means exp(E[log .]) of the factors, and the posterior shape of a gamma variable is

    prior + sum_i r_ui phi_uik = prior + x_uk sum_i r_ui y_ik / (x_u.y_i),

a sum over what was observed only. :func:`shares` makes these sums for every model here; the zeros
of a matrix enter the rates alone, through sums of means. Nothing of users x items is ever formed.

=============  =============================================  ==================================
model          source                                         here
=============  =============================================  ==================================
:func:`pmf`    Gopalan, Hofman and Blei 2015                  the paper's PMF
:func:`ctpf`   Gopalan, Charlin and Blei 2014                 its CTPF, whose words are codewords
:func:`spmf`   Liang, Paisley and Ellis 2014                  its SPMF, for tagging
=============  =============================================  ==================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import scipy.sparse as sp
from scipy.special import gammaln, logsumexp, psi

from repro import kernels
from repro.kernels import (
    LANES,
    add_rows,
    aligned,
    compiled,
    copy_scaled,
    dot_column,
    prefetch,
)

_CHUNKS = 64  # of rows: many, so that no thread waits long for the last
_LEAST = 2**13  # counts in a chunk: fewer are not worth a task
_AHEAD = 8  # counts whose factors are asked for before their turn
_BLOCK = 1024  # rows whose expectations are taken at a time
_FLOOR = np.float32(1e-15)  # of a geometric mean, beside the largest of its row


def shares_slowly(x, y, counts: sp.csr_matrix) -> np.ndarray:
    """Return in float64, one row after the other, what :func:`shares` must give."""
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    out = np.zeros(x.shape)
    for row in range(len(x)):
        found = slice(counts.indptr[row], counts.indptr[row + 1])
        y_row = y[counts.indices[found]]
        out[row] = (counts.data[found] / (y_row @ x[row])) @ y_row
    return out


def shares(x, y, counts: sp.csr_matrix) -> np.ndarray:
    """Return ``sum_i counts[r, i] / (x_r.y_i) y_i`` of every row r, in float32 and on all cores.

    A row of y may be on any scale, and that of a row of x returns when the result is multiplied by
    it. So a geometric mean is best given relative to the largest of its row, where float32 neither
    underflows nor overflows.

    Parameters
    ----------
    x : array, rows x K
        Positive, as is y.
    y : array, columns x K
    counts : csr_matrix, rows x columns

    Returns
    -------
    array of float32, rows x K
    """
    if (len(x), len(y)) != counts.shape or x.shape[1] != y.shape[1]:
        raise ValueError(f"x {x.shape} and y {y.shape} do not fit counts {counts.shape}")
    k = x.shape[1]
    width = k + -k % LANES
    indices = counts.indices.astype(np.int32, copy=False)
    data = counts.data.astype(np.float32, copy=False)
    padded, out = aligned(len(y), width), np.empty((len(x), k), np.float32)

    def pad(begin):
        padded[begin : begin + _BLOCK, :k] = y[begin : begin + _BLOCK]

    def share(rows):
        left, sums = aligned(len(rows), width), aligned(len(rows), width)
        left[:, :k] = x[rows.start : rows.stop]
        indptr = counts.indptr[rows.start : rows.stop + 1]
        room = aligned(LANES, width).ravel(), aligned(1, LANES)[0]
        _share_rows(indptr, indices, data, left, padded, sums, *room)
        out[rows.start : rows.stop] = sums[:, :k]

    kernels.parallel_map(pad, range(0, len(y), _BLOCK))
    work = counts.indptr + 8.0 * np.arange(len(x) + 1)  # a row costs something even when empty
    step = max(work[-1] / _CHUNKS, _LEAST)
    bounds = np.unique([*np.searchsorted(work, np.arange(0, work[-1], step)), len(x)])
    kernels.parallel_map(share, map(range, bounds[:-1], bounds[1:]))
    return out


@compiled(error_model="numpy")
def _share_rows(indptr, indices, counts, x, y, out, g, weights):
    """Add every row's shares to ``out``; ``g`` has the factors of LANES counts at a time."""
    width = y.shape[1]
    for row in range(len(x)):
        for begin in range(indptr[row], indptr[row + 1], LANES):
            n = min(LANES, indptr[row + 1] - begin)
            for i in range(n):
                if begin + i + _AHEAD < len(indices):  # of the next row, at the end of one
                    for c in range(0, width, 16):
                        prefetch(y, indices[begin + i + _AHEAD] * width + c)
                place = indices[begin + i] * width
                copy_scaled(y, place, np.float32(1), width, g, i * width)
            g[n * width :] = 0
            dot_column(g, 0, width, x, row * width, 0, width, weights, 0, 0)
            for i in range(n):
                weights[i] = counts[begin + i] / weights[i]
            weights[n:] = 0
            add_rows(g, 0, width, weights, 0, out[row], width)


class _Gammas:
    """Gamma posteriors of a matrix of factors, rows x K, and what other updates need of them.

    ``mean`` is E[.] and ``total`` its sum over the rows; ``geometric`` is exp(E[log .]) relative
    to the largest of its row, and no less than a floor that any prior outweighs. The posteriors
    have a ``shape`` of their own each, and rates that are sums of one part by column and one by
    row. A ``start`` serves as means before the first update.
    """

    def __init__(self, prior, start: np.ndarray):
        self.prior = np.asarray(prior, np.float32)
        self.mean, self.geometric = start.astype(np.float32), start.astype(np.float32)
        self.shape, self.total = np.zeros_like(self.mean), start.sum(0)

    def update(self, found: np.ndarray, columns, rows=None, step: float = 1.0) -> None:
        """Move to the posterior that the shares ``found`` and the rates lead to.

        With a ``step`` below one the shapes go only so much of the way.
        """
        rows = np.zeros(len(found)) if rows is None else rows
        self.columns, self.rows = columns.astype(np.float32), rows.astype(np.float32)[:, None]

        def expect(begin):
            block = slice(begin, begin + _BLOCK)
            shape = self.prior + self.geometric[block] * found[block]
            if step < 1:
                shape = np.float32(1 - step) * self.shape[block] + np.float32(step) * shape
            rate = self.columns + self.rows[block]
            log = psi(shape) - np.log(rate)
            log -= log.max(1, keepdims=True)
            self.geometric[block] = np.maximum(np.exp(log), _FLOOR)
            self.shape[block], self.mean[block] = shape, shape / rate
            return self.mean[block].sum(0, dtype=np.float64)

        nothing = np.zeros(self.mean.shape[1])
        self.total = sum(kernels.parallel_map(expect, range(0, len(found), _BLOCK)), nothing)

    def bound(self, rate, log_rate) -> float:
        """Return E[log prior - log posterior], given the means of the prior's rate and its log."""
        return _bound(self.prior, rate, log_rate, self.shape, self.columns + self.rows)

    def logs(self) -> np.ndarray:
        """Return E[log .] in float64, rows x K."""
        return psi(self.shape.astype(np.float64)) - np.log(self.columns + self.rows, dtype=float)


def _bound(prior, rate, log_rate, shape, posterior_rate) -> float:
    shape, posterior_rate = np.asarray(shape, float), np.asarray(posterior_rate, float)
    log = psi(shape) - np.log(posterior_rate)
    prior = np.asarray(prior, float)
    terms = prior * log_rate - gammaln(prior) + gammaln(shape) - shape * np.log(posterior_rate)
    terms = terms + (prior - shape) * log + shape - rate * shape / posterior_rate
    return float(terms.sum())


def _observed(counts: sp.csr_matrix, x_logs: np.ndarray, y_logs: np.ndarray) -> float:
    """Return what the counts add to the ELBO, with the phi that maximise it, a block at a time."""
    rows, total = np.repeat(np.arange(counts.shape[0]), np.diff(counts.indptr)), 0.0
    for begin in range(0, counts.nnz, 2**16):
        block = slice(begin, begin + 2**16)
        data = counts.data[block].astype(np.float64)
        log = logsumexp(x_logs[rows[block]] + y_logs[counts.indices[block]], axis=1)
        total += float((data * log - gammaln(data + 1)).sum())
    return total


def _checked(name: str, counts) -> sp.csr_matrix:
    counts = sp.csr_matrix(counts, dtype=np.float32)
    if counts.nnz and not (counts.data.min() >= 0 and np.isfinite(counts.data.max())):
        raise ValueError(f"{name} must be finite counts, none of them negative")
    return counts


def _check_positive(**given) -> None:
    for name, value in given.items():
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value}")


class Poisson(NamedTuple):
    """A fitted model's posterior means in float32; scores are their products.

    ``theta`` is users x K, ``beta`` items x K, ``cold`` cold items x K or None; ``elbo`` has the
    evidence lower bound after every pass when it was asked for.
    """

    theta: np.ndarray
    beta: np.ndarray
    cold: np.ndarray | None
    elbo: list[float]


def pmf(
    plays: sp.csr_matrix,
    *,
    factors: int,
    shape: float = 0.3,
    rate_shape: float = 0.3,
    rate_mean: float = 1.0,
    passes: int = 100,
    seed: int = 0,
    trace: bool = False,
) -> Poisson:
    """Fit hierarchical Poisson factorisation (Gopalan, Hofman and Blei 2015, arXiv 1311.1704).

    r_ui ~ Poisson(theta_u.beta_i), theta_uk ~ Gamma(a, xi_u), xi_u ~ Gamma(a', a'/b'), and so for
    the items. A pass updates theta, xi, beta, then the items' rates. Theta starts from ones and
    beta from uniform draws about one, which is ours.

    Parameters
    ----------
    plays : csr_matrix, users x items
        Counts; the paper has ones.
    factors : int
        K.
    shape : float
        a and c, the shapes of theta and beta: the smaller, the sparser. The authors' is 0.3, as
        are the next two.
    rate_shape, rate_mean : float
        a' = c' and b' = d': how alike the rates of users, and of items, are, and about what.
    trace : bool
        Record the ELBO after every pass.

    Returns
    -------
    Poisson
    """
    plays = _checked("plays", plays)
    _check_positive(factors=factors, shape=shape, rate_shape=rate_shape, rate_mean=rate_mean)
    _check_positive(passes=passes)
    start = np.random.default_rng(seed).uniform(0.5, 1.5, (plays.shape[1], factors))
    users = _Gammas(shape, np.ones((plays.shape[0], factors)))
    items = _Gammas(shape, start)
    rates = {side: np.full(len(side.mean), rate_mean) for side in (users, items)}
    turns = (users, items, plays), (items, users, plays.T.tocsr())
    known, hyper = rate_shape + factors * shape, rate_shape / rate_mean
    elbo = []
    for _ in range(passes):
        for side, other, counts in turns:
            found = shares(side.geometric, other.geometric, counts)
            side.update(found, other.total, rates[side])
            rates[side] = known / (hyper + side.mean.sum(1, dtype=np.float64))
        if trace:
            value = _observed(plays, users.logs(), items.logs()) - users.total @ items.total
            for side, rate in rates.items():
                log_rate = psi(known) - np.log(known / rate)
                value += side.bound(rate[:, None], log_rate[:, None])
                value += _bound(rate_shape, hyper, np.log(hyper), known, known / rate)
            elbo.append(float(value))
    return Poisson(users.mean, items.mean, None, elbo)


def ctpf(
    plays: sp.csr_matrix,
    words: sp.csr_matrix,
    cold_words: sp.csr_matrix,
    *,
    factors: int,
    shape: float = 0.3,
    rate: float = 0.3,
    passes: int = 100,
    cold_passes: int = 20,
    seed: int = 0,
    trace: bool = False,
) -> Poisson:
    """Fit collaborative topic Poisson factorisation (Gopalan, Charlin and Blei 2014).

    w_iv ~ Poisson(theta_i.topic_v) and r_ui ~ Poisson(eta_u.(theta_i + epsilon_i)), every factor
    from Gamma(``shape``, ``rate``). A pass updates users, topics, then both factors of the items.
    Theta and epsilon start from uniform draws about one, the others from ones; the authors start
    from LDA, and their program can also correct for the length of a document: ours does neither.

    A cold item's theta comes from its words alone, by ``cold_passes`` updates with the topics as
    they are; that nobody played it is not taken as a sign. Its epsilon is at the prior mean, the
    same for all cold items: left out, it adds to a user's scores a constant at most.

    Parameters
    ----------
    plays : csr_matrix, users x items
    words : csr_matrix, items x J
        Codeword counts.
    cold_words : csr_matrix, cold items x J
        Those of items that nobody has played; they change nothing for the others.
    factors : int
        K.
    shape, rate : float
        Of all priors; 0.3 in the authors' program.
    trace : bool
        Record the ELBO after every pass.

    Returns
    -------
    Poisson
        With E[eta_u], E[theta_i] + E[epsilon_i] and, for cold items, E[theta_i].
    """
    plays, words = _checked("plays", plays), _checked("words", words)
    cold_words = _checked("cold_words", cold_words)
    if words.shape[0] != plays.shape[1] or cold_words.shape[1] != words.shape[1]:
        raise ValueError(
            f"plays {plays.shape}, words {words.shape} and cold_words {cold_words.shape} do not "
            "agree on the items or the codewords"
        )
    _check_positive(factors=factors, shape=shape, rate=rate, passes=passes)
    _check_positive(cold_passes=cold_passes)
    k = factors
    start = np.random.default_rng(seed).uniform(0.5, 1.5, (words.shape[0], 2 * k))
    users = _Gammas(shape, np.ones((plays.shape[0], k)))
    topics = _Gammas(shape, np.ones((words.shape[1], k)))
    items = _Gammas(shape, start)  # theta beside epsilon, since phi compares the two
    theta, both = items.geometric[:, :k], lambda x: x[..., :k] + x[..., k:]
    by_item, by_word = plays.T.tocsr(), words.T.tocsr()
    elbo = []
    for _ in range(passes):
        found = shares(users.geometric, both(items.geometric), plays)
        users.update(found, rate + both(items.total))
        topics.update(shares(topics.geometric, theta, by_word), rate + items.total[:k])
        played = shares(both(items.geometric), users.geometric, by_item)
        found = np.hstack([shares(theta, topics.geometric, words) + played, played])
        rates = rate + np.hstack([topics.total + users.total, users.total])
        items.update(found, rates)
        if trace:
            logs = items.logs()
            value = _observed(plays, users.logs(), np.logaddexp(logs[:, :k], logs[:, k:]))
            value += _observed(words, logs[:, :k], topics.logs())
            value -= users.total @ both(items.total) + topics.total @ items.total[:k]
            value += sum(side.bound(rate, np.log(rate)) for side in (users, topics, items))
            elbo.append(float(value))
    cold = _Gammas(shape, np.ones((cold_words.shape[0], k)))
    _settle(cold, topics.geometric, cold_words, rate + topics.total, cold_passes)
    return Poisson(users.mean, both(items.mean), cold.mean, elbo)


def _settle(rows: _Gammas, fixed: np.ndarray, counts: sp.csr_matrix, rates, passes: int) -> None:
    """Update rows alone, each of them independent of the others."""
    for _ in range(passes):
        rows.update(shares(rows.geometric, fixed, counts), rates)


@dataclass(frozen=True)
class Tagger:
    """What :func:`spmf` learned, and songs are tagged with.

    The prior ``shape`` of activations and the posterior ``rates`` (K) that they have when only the
    codewords are known; geometric means of the ``codewords``' factors (J x K), each on its own
    scale, means of the ``tags``' (T x K); ``steps``, the updates of a song's activations.
    """

    shape: float
    rates: np.ndarray
    codewords: np.ndarray
    tags: np.ndarray
    steps: int

    def tags_of(self, counts: sp.csr_matrix) -> np.ndarray:
        """Return the expected counts of tags given those of codewords alone.

        Parameters
        ----------
        counts : csr_matrix, songs x J

        Returns
        -------
        array of float32, songs x T
        """
        counts = _checked("counts", counts)
        songs = _Gammas(self.shape, np.ones((counts.shape[0], len(self.rates))))
        _settle(songs, self.codewords, counts, self.rates, self.steps)
        return songs.mean @ self.tags.T


def spmf(
    counts: sp.csr_matrix,
    tags: sp.csr_matrix,
    *,
    factors: int = 100,
    shape: float = 0.1,
    batch: int = 1000,
    t0: float = 1.0,
    kappa: float = 0.6,
    passes: int = 10,
    steps: int = 20,
    tag_weight: float = 1.0,
    seed: int = 0,
) -> Tagger:
    """Fit Poisson factorisation for tagging, stochastically (Liang, Paisley and Ellis 2014).

    Codewords and tags of a song are the columns of one matrix, w_sv ~ Poisson(theta_s.beta_v) with
    theta_sk ~ Gamma(a, a c) and beta_vk ~ Gamma(b, b). The activations theta of a batch of songs
    are inferred first; then the dictionary beta takes the natural-gradient step, of size
    (t0 + t)^-kappa at batch t, towards what it would be were all songs like these.

    Where it differs from the authors' program: t counts on from pass to pass; activations start
    from ones and are updated a set number of times, so that a song's do not depend on its
    neighbours; and 1 / c, the mean activation, follows the batches by the same steps and stays as
    fitted for songs to be tagged.

    Parameters
    ----------
    counts : csr_matrix, songs x J
        Codeword counts.
    tags : csr_matrix, songs x T
        Ones; the zeros of a song count as well.
    factors : int
        K.
    shape : float
        a and b.
    batch : int
        Songs in a batch.
    t0, kappa : float
        Of the step sizes; kappa between 0.5 and 1 converges.
    passes : int
        Over all songs, in a new order each.
    steps : int
        Updates of a song's activations.
    tag_weight : float
        What tags are multiplied by, against hundreds of codeword counts a song (ours).

    Returns
    -------
    Tagger
    """
    counts, tags = _checked("counts", counts), _checked("tags", tags)
    if counts.shape[0] != tags.shape[0]:
        raise ValueError(f"counts of {counts.shape[0]} songs, tags of {tags.shape[0]}")
    _check_positive(factors=factors, shape=shape, batch=batch, t0=t0, kappa=kappa, steps=steps)
    _check_positive(tag_weight=tag_weight, passes=passes)
    both = sp.hstack([counts, tag_weight * tags], "csr")
    n, words = counts.shape
    rng = np.random.default_rng(seed)
    beta = _Gammas(shape, rng.gamma(100, 1 / 100, (both.shape[1], factors)))
    beta.shape, rates, mean = 100 * beta.mean, np.full(factors, 100.0), 1.0
    batches = [
        part for _ in range(passes) for part in np.array_split(rng.permutation(n), -(-n // batch))
    ]
    for t, part in enumerate(batches, 1):
        step, heard = (t0 + t) ** -kappa, both[part]
        songs = _Gammas(shape, np.ones((len(part), factors)))
        _settle(songs, beta.geometric, heard, shape / mean + beta.total, steps)
        found = shares(beta.geometric, songs.geometric, heard.T.tocsr()) * (n / len(part))
        rates = (1 - step) * rates + step * (shape + n / len(part) * songs.total)
        mean = (1 - step) * mean + step * float(songs.mean.mean())
        beta.update(found, rates, step=step)
    rates = shape / mean + beta.mean[:words].sum(0, dtype=np.float64)
    return Tagger(shape, rates, beta.geometric[:words], beta.mean[words:] / tag_weight, steps)
