"""Poisson factorisation against dense updates, whose bound must rise, and planted structure."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scipy.special import gammaln, psi
from scipy.stats import gamma
from sklearn.metrics import roc_auc_score

from repro.models import poisson

LENGTHS = [0, 1, 2, 15, 16, 17, 0, 53, 90]


def counts_of(lengths, columns, seed=0):
    """Return counts whose row ``r`` has ``lengths[r]`` of them."""
    rng = np.random.default_rng(seed)
    counts = np.zeros((len(lengths), columns))
    for row, length in zip(counts, lengths, strict=True):
        row[rng.choice(columns, length, replace=False)] = rng.integers(1, 9, length)
    return sp.csr_matrix(counts, dtype=np.float32)


def means(rows, k, seed):
    """Return geometric means relative to the largest of their row, most of them tiny."""
    x = np.random.default_rng(seed).gamma(0.1, 1, (rows, k)) + 1e-30
    return np.maximum(x / x.max(1, keepdims=True), 1e-15).astype(np.float32)


@pytest.mark.parametrize("k", [1, 17, 50])
def test_shares_divide_each_count_among_the_factors(k):
    counts, x, y = counts_of(LENGTHS, 100), means(len(LENGTHS), k, 1), means(100, k, 2)
    phi = x[:, None] * y[None].astype(np.float64)
    of_factors = counts.toarray()[:, :, None] * phi / phi.sum(2, keepdims=True)
    found = poisson.shares(x, y, counts)
    assert found.dtype == np.float32
    np.testing.assert_allclose(x * found, of_factors.sum(1), rtol=1e-5)
    across = y * poisson.shares(y, x, counts.T.tocsr())
    np.testing.assert_allclose(across, of_factors.sum(0), rtol=1e-5)


def test_threads_change_no_bit():
    rng, threads = np.random.default_rng(3), torch.get_num_threads()
    counts = counts_of(rng.integers(0, 90, 900), 100)
    x, y = means(900, 20, 4), means(100, 20, 5)
    words = counts_of(rng.integers(0, 30, 100), 40)
    found = []
    try:
        for n in 1, 2, 5:
            torch.set_num_threads(n)
            fitted = poisson.ctpf(counts, words, words, factors=7, passes=3)
            found.append((poisson.shares(x, y, counts), *fitted.arrays().values()))
    finally:
        torch.set_num_threads(threads)
    for others in found[1:]:
        for one, other in zip(found[0], others, strict=True):
            np.testing.assert_array_equal(one, other)


def blocks(users, items, seed, within=0.4, outside=0.02):
    """Return plays of three groups of users, each of which likes a third of the items."""
    liked = np.arange(users)[:, None] % 3 == np.arange(items) % 3
    odds = np.where(liked, within, outside)
    return sp.csr_matrix((np.random.default_rng(seed).random(odds.shape) < odds) * 1.0), liked


def words_of(items, seed, words=60, mean=4.0):
    """Return codeword counts of items, three groups again, each with words of its own."""
    own = np.arange(items)[:, None] % 3 == np.arange(words) % 3
    rates = np.where(own, mean, mean / 10)
    return sp.csr_matrix(np.random.default_rng(seed).poisson(rates).astype(float))


def entropy(shape, rate):
    return gamma.entropy(shape, scale=1 / rate).sum()


def prior(shape, rate, log_rate, mean, log):
    """Return E[log Gamma(x; shape, rate)]."""
    return (shape * log_rate - gammaln(shape) + (shape - 1) * log - rate * mean).sum()


class Dense:
    """A matrix of gamma posteriors in float64, all of it written out."""

    def __init__(self, start):
        self.mean, self.log = start, np.log(start)

    def update(self, shape, rate):
        self.shape, self.rate = shape, rate * np.ones_like(shape)
        self.mean, self.log = shape / rate, psi(shape) - np.log(rate)
        self.entropy = entropy(self.shape, self.rate)


def parts(counts, x, y):
    """Return the expected part of each count that each factor has, rows x columns x K."""
    phi = np.exp(x.log[:, None] + y.log[None])
    return counts[:, :, None] * phi / phi.sum(2, keepdims=True)


def evidence(counts, parts, logs, rates):
    """Return E[log p(parts) - log q(parts)] of Poisson parts that are multinomial in q."""
    phi = parts / np.maximum(counts, 1)[:, :, None]
    spread = np.where(parts > 0, parts * (logs - np.log(np.where(phi > 0, phi, 1))), 0).sum()
    return spread - rates.sum() - gammaln(counts + 1).sum()


def check_ascent(bound, fits, oracle):
    """Check that each pass raises the bound, and that fits of n passes are where it has led."""
    assert np.diff(bound).min() > 0
    for passes, expected in enumerate(oracle, 1):
        for name, values in fits(passes).arrays().items():
            np.testing.assert_allclose(values, expected[name], rtol=1e-4, err_msg=name)


@pytest.mark.parametrize("a", [0.1, 0.4, 1.0])
def test_pmf_is_coordinate_ascent_on_the_dense_bound(a):
    k, a1, b1, seed = 4, 0.7, 1.3, 5
    plays = counts_of(np.random.default_rng(1).integers(0, 9, 12), 10)
    r = plays.toarray()
    users = Dense(np.ones((12, k)))
    items = Dense(np.random.default_rng(seed).uniform(0.5, 1.5, (10, k)))
    rates, bound, oracle = [np.full(12, b1), np.full(10, b1)], [], []
    settings = {"factors": k, "shape": a, "rate_shape": a1, "rate_mean": b1, "seed": seed}
    for _ in range(12):
        hyper = []
        for side, (own, other, seen) in enumerate([(users, items, r), (items, users, r.T)]):
            shape = a + parts(seen, own, other).sum(1)
            own.update(shape, rates[side][:, None] + other.mean.sum(0))
            up, down = a1 + k * a, a1 / b1 + own.mean.sum(1)
            rates[side] = up / down
            log = psi(up) - np.log(down)
            hyper.append(prior(a, rates[side][:, None], log[:, None], own.mean, own.log))
            hyper.append(prior(a1, a1 / b1, np.log(a1 / b1), up / down, log))
            hyper.append(own.entropy + entropy(up, down))
        logs, rate = users.log[:, None] + items.log[None], users.mean @ items.mean.T
        bound.append(evidence(r, parts(r, users, items), logs, rate) + sum(hyper))
        oracle.append({"theta": users.mean, "beta": items.mean})
    check_ascent(bound, lambda n: poisson.pmf(plays, **settings, passes=n), oracle)


@pytest.mark.parametrize("a", [0.1, 0.4, 1.0])
def test_ctpf_is_coordinate_ascent_on_the_dense_bound(a):
    k, b, seed = 3, 0.6, 5
    plays = counts_of(np.random.default_rng(1).integers(0, 9, 12), 10)
    words = counts_of(np.random.default_rng(2).integers(0, 7, 10), 8)
    cold_words = counts_of([0, 3, 8, 1], 8)
    r, w = plays.toarray(), words.toarray()
    users, topics = Dense(np.ones((12, k))), Dense(np.ones((8, k)))
    start = np.random.default_rng(seed).uniform(0.5, 1.5, (10, 2 * k))
    theta, epsilon = Dense(start[:, :k]), Dense(start[:, k:])

    def both(twice):  # 2K factors of which users have each of theirs twice
        pair, user = Dense(np.ones((10, 2 * k))), Dense(np.ones((12, 2 * k)))
        pair.log = np.hstack([theta.log, epsilon.log])
        user.log = np.hstack([users.log] * 2)
        return parts(twice, user, pair)

    settings = {"factors": k, "shape": a, "rate": b, "seed": seed, "cold_passes": 5}
    bound, oracle = [], []
    for _ in range(12):
        z = both(r).sum(1)
        users.update(a + z[:, :k] + z[:, k:], b + theta.mean.sum(0) + epsilon.mean.sum(0))
        topics.update(a + parts(w, theta, topics).sum(0), b + theta.mean.sum(0))
        z, read = both(r).sum(0), parts(w, theta, topics).sum(1)
        theta.update(a + z[:, :k] + read, b + users.mean.sum(0) + topics.mean.sum(0))
        epsilon.update(a + z[:, k:], b + users.mean.sum(0))
        liked = theta.mean + epsilon.mean
        logs = users.log[:, None] + theta.log[None], users.log[:, None] + epsilon.log[None]
        value = evidence(r, both(r), np.concatenate(logs, 2), users.mean @ liked.T)
        logs = theta.log[:, None] + topics.log[None]
        value += evidence(w, parts(w, theta, topics), logs, theta.mean @ topics.mean.T)
        for own in users, topics, theta, epsilon:
            value += own.entropy + prior(a, b, np.log(b), own.mean, own.log)
        bound.append(value)
        cold = Dense(np.ones((4, k)))
        for _ in range(5):
            read = parts(cold_words.toarray(), cold, topics).sum(1)
            cold.update(a + read, b + topics.mean.sum(0))
        oracle.append({"theta": users.mean, "beta": liked, "cold": cold.mean})
    check_ascent(
        bound, lambda n: poisson.ctpf(plays, words, cold_words, **settings, passes=n), oracle
    )


def test_planted_blocks_are_found():
    plays, liked = blocks(150, 90, 1)
    words, cold_words = words_of(90, 2), words_of(30, 3)
    unseen = plays.toarray() == 0
    for fitted in (
        poisson.pmf(plays, factors=6, passes=60),
        poisson.ctpf(plays, words, cold_words, factors=6, passes=60),
    ):
        scores = fitted.theta @ fitted.beta.T
        assert roc_auc_score(liked[unseen], scores[unseen]) > 0.98
    of_cold = np.arange(150)[:, None] % 3 == np.arange(30) % 3
    assert roc_auc_score(of_cold.ravel(), (fitted.theta @ fitted.cold.T).ravel()) > 0.98


@pytest.mark.parametrize("shape", [1e-3, 0.01, 100.0])
def test_extreme_priors_and_empty_rows_stay_finite(shape):
    plays = sp.csr_matrix(sp.block_diag([blocks(60, 30, 1)[0], np.zeros((2, 3))]))
    plays.data *= 1e4
    words = sp.vstack([words_of(30, 2), sp.csr_matrix((3, 60))], "csr")
    fitted = poisson.pmf(plays, factors=20, shape=shape, passes=20)
    both = poisson.ctpf(plays, words, words[::3], factors=20, shape=shape, passes=20)
    tagger = poisson.spmf(words, plays.T, factors=20, shape=shape, batch=10, passes=2)
    for found in (*fitted.arrays().values(), *both.arrays().values(), tagger.predict(words)):
        assert np.isfinite(found).all() and len(found)
    assert min(fitted.theta.min(), both.cold.min()) >= 0


def test_seed_decides_all():
    plays, words = blocks(60, 30, 1)[0], words_of(30, 2)
    for fit in (
        lambda seed: poisson.pmf(plays, factors=5, passes=4, seed=seed).beta,
        lambda seed: poisson.ctpf(plays, words, words, factors=5, passes=4, seed=seed).cold,
        lambda seed: poisson.spmf(words, plays.T, factors=5, batch=8, seed=seed).predict(words),
    ):
        np.testing.assert_array_equal(fit(0), fit(0))
        assert np.abs(fit(0) - fit(1)).max() > 1e-3


def test_cold_items_change_nothing_and_stand_each_alone():
    plays, words, cold = blocks(60, 30, 1)[0], words_of(30, 2), words_of(40, 3)
    order = np.random.default_rng(0).permutation(40)
    fitted = poisson.ctpf(plays, words, cold, factors=5, passes=5)
    other = poisson.ctpf(plays, words, cold[order[:9]] * 7, factors=5, passes=5)
    turned = poisson.ctpf(plays, words, cold[order], factors=5, passes=5)
    np.testing.assert_array_equal(fitted.theta, other.theta)
    np.testing.assert_array_equal(fitted.beta, other.beta)
    np.testing.assert_array_equal(fitted.cold[order], turned.cold)
    assert np.abs(fitted.cold[order[:9]] - other.cold).max() > 0.1


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
    model = poisson.spmf(counts, tags, **settings)
    rates, truth = model.predict(new), truth.toarray().ravel()
    frequent = np.tile(np.asarray(tags.mean(0)).ravel(), 300)
    assert rates.dtype == np.float32 and rates.shape == (300, 12)
    assert roc_auc_score(truth, rates.ravel()) > roc_auc_score(truth, frequent) + 0.1
    assert rates.mean() == pytest.approx(tags.mean(), rel=0.2)
    np.testing.assert_allclose(model.predict(new[[7, 3]]), rates[[7, 3]], rtol=1e-5)  # each alone


def test_what_does_not_fit_is_refused():
    plays, words = blocks(60, 30, 1)[0], words_of(30, 2)
    for bad in -plays, plays * np.nan, plays * np.inf:
        with pytest.raises(ValueError, match="plays must be finite"):
            poisson.pmf(bad, factors=2)
    with pytest.raises(ValueError, match="do not agree"):
        poisson.ctpf(plays, words[:29], words, factors=2)
    with pytest.raises(ValueError, match="do not agree"):
        poisson.ctpf(plays, words, words[:, 1:], factors=2)
    with pytest.raises(ValueError, match="29 songs"):
        poisson.spmf(words[:29], plays.T)
    with pytest.raises(ValueError, match="do not fit counts"):
        poisson.spmf(words, plays.T, factors=2, passes=1).predict(words[:, 1:])
    for bad in 0, -1, np.nan:
        with pytest.raises(ValueError, match="shape must be positive"):
            poisson.pmf(plays, factors=2, shape=bad)
