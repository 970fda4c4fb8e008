"""Content regression against planted maps, closed forms and the dense error."""

import numpy as np
import pytest
import scipy.sparse as sp

from repro.models import regression

pytestmark = pytest.mark.usefixtures("one_thread")
THETA = np.random.default_rng(9).standard_normal((50, 3)).astype(np.float32)


def planted(kind, n=400):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 6)) * [1, 100, 0.01, 1, 5, 1] + [0, 3, 1, 0, 0, 0]
    z = (x - x.mean(0)) / x.std(0)
    w = rng.standard_normal((6, 3))
    beta = (z @ w + 2 if kind == "linear" else np.abs(z) @ w) * 0.003  # small, as beta is
    return x, beta.astype(np.float32)


def listening(n=400):
    """Return the surplus of random plays of ``n`` items by the users of THETA."""
    rng = np.random.default_rng(4)
    surplus = rng.uniform(1, 30, (len(THETA), n)) * (rng.random((len(THETA), n)) < 0.2)
    surplus[:, 5] = 0  # an item that nobody played
    return sp.csr_matrix(surplus.astype(np.float32))


def fit(x, beta, penalty=1e-3, surplus=None, **settings):
    error = None if surplus is None else regression.quadratic(THETA, surplus)
    return regression.fit(x, beta, error, penalty=penalty, **settings)


def test_linear_mse_is_ridge_regression():
    x, beta = planted("bent")
    z = (x - x.mean(0)) / x.std(0)
    w = np.linalg.solve(z.T @ z + 30 * np.eye(6), z.T @ (beta - beta.mean(0)))
    assert np.allclose(fit(x, beta, 30.0)(x), z @ w + beta.mean(0), atol=1e-6)


def test_linear_wpe_is_at_its_minimum():
    (x, beta), surplus = planted("linear"), listening()
    y = fit(x, beta, 1e-6, surplus=surplus)(x)
    z = np.column_stack([(x - x.mean(0)) / x.std(0), np.ones(len(x))])
    confidence = 1 + surplus.toarray()
    miss = confidence * (THETA.astype(float) @ y.T - (confidence > 1))
    gradient = z.T @ (miss.T @ THETA)
    assert np.abs(gradient).max() < 1e-3 * np.abs(z.T @ (confidence.T @ THETA)).max()


@pytest.mark.parametrize("weighted", [False, True])
def test_network_learns_what_no_line_can(weighted):
    x, beta = planted("bent", 1200)
    odds = 1 / (1 + np.exp(-4 * THETA @ (beta / beta.std()).T))  # plays that follow the factors
    plays = np.random.default_rng(2).random(odds.shape) < odds
    surplus = sp.csr_matrix(9.0 * plays, dtype=np.float32)
    settings = {"epochs": 80, "surplus": surplus[:, :1000] if weighted else None}
    errors, new = [], plays[:, 1000:]
    for units in (0, 200):
        y = fit(x[:1000], beta[:1000], units=units, **settings)(x[1000:])
        dense = (1 + 9 * new) * (new - THETA @ y.T) ** 2
        errors.append((dense if weighted else (y - beta[1000:]) ** 2).mean())
    assert errors[1] < errors[0] * (1 if weighted else 0.5)


def test_network_predicts_in_the_units_of_the_factors():
    x, beta = planted("linear")
    base, *scaled = (fit(x, beta * np.float32(u), units=20)(x) / u for u in (1, 1e-4, 1e3))
    assert np.allclose(scaled, base, atol=0.05 * beta.std())


@pytest.mark.parametrize("surplus", [None, listening()], ids=["MSE", "WPE"])
@pytest.mark.parametrize("units", [0, 20])
def test_the_seed_has_a_say_and_a_constant_feature_none(surplus, units):
    x, beta = planted("bent")
    x[:, 2] = 7.0
    settings, moved = {"surplus": surplus, "units": units, "epochs": 3}, x.copy()
    moved[:, 2] = -1e6
    one, two, other = (fit(x, beta, seed=seed, **settings) for seed in (1, 1, 2))
    assert np.isfinite(one(x)).all() and np.array_equal(one(x), two(moved))
    assert np.array_equal(one(x), other(x)) == (units == 0)
    assert one(x[:0]).shape == (0, 3) and one(x).dtype == np.float32
