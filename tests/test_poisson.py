"""Poisson factorisation against dense updates, whose bound must rise, and planted structure."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.special import gammaln, logsumexp, psi
from scipy.stats import gamma
from sklearn.metrics import roc_auc_score

from repro.models import poisson


def counts_of(rows, columns, seed=0):
    """Return counts with an empty row and an empty column."""
    counts = np.random.default_rng(seed).poisson(0.5, (rows, columns))
    counts[0], counts[:, 1] = 0, 0
    return sp.csr_matrix(counts, dtype=np.float32)


def test_shares_divide_each_count_among_the_factors_whatever_the_threads(monkeypatch):
    counts, found = counts_of(900, 100), []
    # Geometric means relative to the largest of their row, most of them tiny.
    x, y = (np.random.default_rng(n).gamma(0.1, 1, (n, 20)) for n in (900, 100))
    x, y = (np.maximum(z / z.max(1, keepdims=True), 1e-15).astype(np.float32) for z in (x, y))
    phi = x[:, None] * y[None].astype(np.float64)
    of_factors = counts.toarray()[:, :, None] * phi / phi.sum(2, keepdims=True)
    for n in 1, 2, 5:
        monkeypatch.setattr(torch, "get_num_threads", lambda n=n: n)
        found.append((poisson.shares(x, y, counts), poisson.shares(y, x, counts.T.tocsr())))
        np.testing.assert_allclose(x * found[-1][0], of_factors.sum(1), rtol=1e-5)
        np.testing.assert_allclose(y * found[-1][1], of_factors.sum(0), rtol=1e-5)
        assert all(map(np.array_equal, found[-1], found[0]))


def grouped(rows, columns, seed, within=0.5):
    """Return counts of three groups of rows, a third of the columns each; and which are whose."""
    own = np.arange(rows)[:, None] % 3 == np.arange(columns) % 3
    counts = np.random.default_rng(seed).poisson(np.where(own, within, within / 20))
    return sp.csr_matrix(counts, dtype=float), own


class Dense:
    """A matrix of gamma posteriors in float64, all of it written out."""

    def __init__(self, start):
        self.mean, self.log = start, np.log(start)

    def update(self, shape, rate):
        self.mean, self.log = shape / rate, psi(shape) - np.log(rate)
        self.entropy = gamma.entropy(shape, scale=1 / rate).sum()

    def gain(self, shape, rate, log_rate):
        """Return what these add to the bound under a prior: E[log prior - log posterior]."""
        prior = shape * log_rate - gammaln(shape) + (shape - 1) * self.log - rate * self.mean
        return prior.sum() + self.entropy


def parts(counts, x_log, y_log):
    """Return the expected part of each count that each factor has, rows x columns x K."""
    logs = x_log[:, None] + y_log[None]
    return counts[:, :, None] * np.exp(logs - logsumexp(logs, 2, keepdims=True))


def evidence(counts, x_log, y_log, x_mean, y_mean):
    """Return what counts add to the bound when their parts are the expected ones."""
    logs = logsumexp(x_log[:, None] + y_log[None], 2)
    return (counts * logs - gammaln(counts + 1) - x_mean @ y_mean.T).sum()


@pytest.mark.parametrize(("a", "k"), [(0.1, 1), (0.4, 4), (1.0, 17)])
def test_pmf_is_coordinate_ascent_on_the_dense_bound(a, k):
    a1, b1, seed, bound = 0.7, 1.3, 5, []
    plays = counts_of(12, 10)
    start = np.random.default_rng(seed).uniform(0.5, 1.5, (10, k))
    users, items, r = Dense(np.ones((12, k))), Dense(start), plays.toarray()
    xi, eta = Dense(np.full((12, 1), b1)), Dense(np.full((10, 1), b1))
    sides = (users, xi, items, r), (items, eta, users, r.T)
    settings = {"factors": k, "shape": a, "rate_shape": a1, "rate_mean": b1, "seed": seed}
    for passes in range(1, 13):
        for own, rate, other, seen in sides:
            shape = a + parts(seen, own.log, other.log).sum(1)
            own.update(shape, rate.mean + other.mean.sum(0))
            rate.update(a1 + k * a, a1 / b1 + own.mean.sum(1, keepdims=True))
        value = evidence(r, users.log, items.log, users.mean, items.mean)
        for own, rate, *_ in sides:
            value += own.gain(a, rate.mean, rate.log) + rate.gain(a1, a1 / b1, np.log(a1 / b1))
        bound.append(value)
        fitted = poisson.pmf(plays, **settings, passes=passes)
        for found, side in ((fitted.theta, users), (fitted.beta, items)):
            np.testing.assert_allclose(found, side.mean, rtol=1e-4)
    assert np.diff(bound).min() > 0


@pytest.mark.parametrize("a", [0.1, 0.4, 1.0])
def test_ctpf_is_coordinate_ascent_on_the_dense_bound(a):
    k, b, seed, bound = 3, 0.6, 5, []
    plays, words, cold_words = counts_of(12, 10), counts_of(10, 8), counts_of(4, 8)
    r, w, c = plays.toarray(), words.toarray(), cold_words.toarray()
    start = np.random.default_rng(seed).uniform(0.5, 1.5, (10, 2 * k))
    users, topics = Dense(np.ones((12, k))), Dense(np.ones((8, k)))
    theta, epsilon = Dense(start[:, :k]), Dense(start[:, k:])

    def pairs():  # as if of 2K factors, of which users have each of theirs twice
        return np.hstack([users.log, users.log]), np.hstack([theta.log, epsilon.log])

    settings = {"factors": k, "shape": a, "rate": b, "seed": seed}
    for passes in range(1, 13):
        z = parts(r, *pairs()).sum(1)
        users.update(a + z[:, :k] + z[:, k:], b + theta.mean.sum(0) + epsilon.mean.sum(0))
        topics.update(a + parts(w, theta.log, topics.log).sum(0), b + theta.mean.sum(0))
        z, read = parts(r, *pairs()).sum(0), parts(w, theta.log, topics.log).sum(1)
        theta.update(a + z[:, :k] + read, b + users.mean.sum(0) + topics.mean.sum(0))
        epsilon.update(a + z[:, k:], b + users.mean.sum(0))
        liked, cold = theta.mean + epsilon.mean, Dense(np.ones((4, k)))
        value = evidence(r, *pairs(), users.mean, liked)
        value += evidence(w, theta.log, topics.log, theta.mean, topics.mean)
        bound.append(value + sum(x.gain(a, b, np.log(b)) for x in (users, topics, theta, epsilon)))
        for _ in range(20):
            cold.update(a + parts(c, cold.log, topics.log).sum(1), b + topics.mean.sum(0))
        fitted = poisson.ctpf(plays, words, cold_words, **settings, passes=passes)
        np.testing.assert_allclose(fitted.theta, users.mean, rtol=1e-4)
        np.testing.assert_allclose(fitted.beta, liked, rtol=1e-4)
        np.testing.assert_allclose(fitted.cold, cold.mean, rtol=1e-4)
    assert np.diff(bound).min() > 0


def test_planted_groups_are_found():
    (plays, liked), (words, _) = grouped(150, 90, 1), grouped(90, 60, 2, 4.0)
    pmf = poisson.pmf(plays, factors=6, passes=60)
    ctpf = poisson.ctpf(plays, words, grouped(30, 60, 3, 4.0)[0], factors=6, passes=60)
    unseen = plays.toarray() == 0
    for fitted in pmf, ctpf:
        assert roc_auc_score(liked[unseen], (fitted.theta @ fitted.beta.T)[unseen]) > 0.98
    of_cold = grouped(150, 30, 0)[1].ravel()
    assert roc_auc_score(of_cold, (ctpf.theta @ ctpf.cold.T).ravel()) > 0.98


@pytest.mark.parametrize("shape", [1e-3, 100.0])
def test_extreme_priors_and_empty_rows_stay_finite(shape):
    plays = sp.block_diag([grouped(60, 30, 1)[0] * 1e4, np.zeros((2, 3))], "csr")
    words = sp.vstack([grouped(30, 60, 2, 4.0)[0], sp.csr_matrix((3, 60))], "csr")
    settings = {"factors": 20, "shape": shape}
    pmf = poisson.pmf(plays, passes=20, **settings)
    ctpf = poisson.ctpf(plays, words, words[::3], passes=20, **settings)
    tags = poisson.spmf(words, plays.T, batch=10, passes=2, **settings)(words)
    for found in (*pmf.arrays().values(), *ctpf.arrays().values(), tags):
        assert np.isfinite(found).all() and found.min() >= 0


def songs(n, seed):
    """Return codeword counts and tags, a few a song: a planted map from one to the other."""
    rng, base = np.random.default_rng(seed), np.random.default_rng(0)
    style = base.dirichlet(np.full(60, 0.1), 4), base.dirichlet(np.full(12, 0.2), 4)
    mix = rng.dirichlet(np.full(4, 0.1), n)
    counts, tags = rng.poisson(200 * mix @ style[0]), rng.random((n, 12)) < 2 * mix @ style[1]
    return sp.csr_matrix(counts), sp.csr_matrix(tags * 1)


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_spmf_tags_better_than_frequencies(weight):
    (counts, tags), (new, truth) = songs(1500, 1), songs(300, 2)
    settings = {"factors": 10, "batch": 200, "passes": 4, "tag_weight": weight}
    model, again, other = (poisson.spmf(counts, tags, seed=s, **settings) for s in (0, 0, 1))
    rates, truth = model(new), truth.toarray().ravel()
    assert np.array_equal(rates, again(new)) and np.abs(rates - other(new)).max() > 1e-3
    frequent = np.tile(tags.mean(0).A1, 300)
    assert roc_auc_score(truth, rates.ravel()) > roc_auc_score(truth, frequent) + 0.1
    assert rates.mean() == pytest.approx(tags.mean(), rel=0.2)
    np.testing.assert_allclose(model(new[[7, 3]]), rates[[7, 3]], rtol=1e-5)  # each alone


def test_what_does_not_fit_is_refused():
    plays, words = counts_of(60, 30), counts_of(30, 60)
    model = poisson.spmf(words, plays.T, factors=2, passes=1)
    for message, fit in {
        "plays must be finite": lambda: poisson.pmf(-plays, factors=2),
        "words must be finite": lambda: poisson.ctpf(plays, words * np.nan, words, factors=2),
        "shape must be positive": lambda: poisson.pmf(plays, factors=2, shape=np.nan),
        "do not agree": lambda: poisson.ctpf(plays, words[:29], words, factors=2),
        "29 songs": lambda: poisson.spmf(words[:29], plays.T),
        "do not fit counts": lambda: model(words[:, 1:]),
    }.items():
        with pytest.raises(ValueError, match=message):
            fit()
