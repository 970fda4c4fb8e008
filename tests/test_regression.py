"""Content regression against planted maps."""

import numpy as np
import pytest

from repro import regression

pytestmark = pytest.mark.filterwarnings("ignore:Stochastic Optimizer")  # small nets, few epochs


def planted(kind, n=400):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((n, 6)) * [1, 100, 0.01, 1, 5, 1] + [0, 3, 1, 0, 0, 0]
    z = (x - x.mean(0)) / x.std(0)
    w = rng.standard_normal((6, 3))
    return x, (z @ w + 2 if kind == "linear" else np.abs(z) @ w) * 0.003  # small, as beta is


def unexplained(model, x, beta, learned):
    """Return the share of the variance of the songs not learned from that is missed."""
    gap = ((model.predict(x[learned:]) - beta[learned:]) ** 2).mean()
    return gap / ((beta[learned:] - beta[:learned].mean(0)) ** 2).mean()


def test_linear_recovers_a_linear_map():
    x, beta = planted("linear")
    model = regression.linear(x[:300], beta[:300])
    assert unexplained(model, x, beta, 300) < 1e-3


def test_linear_of_noise_is_the_mean():
    x, _ = planted("linear")
    beta = np.random.default_rng(2).standard_normal((400, 3)) + 5
    predicted = regression.linear(x[:300], beta[:300]).predict(x[300:])
    assert np.abs(predicted - beta[:300].mean(0)).max() < 0.2


def test_mlp_learns_what_no_line_can():
    x, beta = planted("bent", 1200)
    assert unexplained(regression.linear(x[:1000], beta[:1000]), x, beta, 1000) > 0.9
    assert unexplained(regression.mlp(x[:1000], beta[:1000], 0, 100), x, beta, 1000) < 0.4


@pytest.mark.parametrize("units", [1e-4, 1.0, 1e3])
def test_mlp_predicts_in_the_units_of_the_factors(units):
    x, beta = planted("linear")
    base = regression.mlp(x, beta, 3, units=20).predict(x)
    scaled = regression.mlp(x, beta * units, 3, units=20).predict(x)
    assert np.allclose(scaled / units, base, atol=0.02 * beta.std())
    assert scaled.std() == pytest.approx((beta * units).std(), rel=0.2)


def test_mlp_is_deterministic_from_its_seed():
    x, beta = planted("bent")
    one, two, other = (regression.mlp(x, beta, seed, 20).predict(x) for seed in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_mlp_has_the_asked_hidden_layer():
    x, beta = planted("bent")
    assert [c.shape for c in regression.mlp(x, beta, 0, 70).regressor_[-1].coefs_] == [
        (6, 70),
        (70, 3),
    ]
