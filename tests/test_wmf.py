"""The factorisation against dense least squares, written from the paper's sentences in float64."""

import numpy as np
import pytest
import scipy.sparse as sp
from implicit.cpu.als import AlternatingLeastSquares
from oracles import Broken, apart, plays_of, solve_slowly

from repro.models import wmf
from repro.pipeline.run import Checkpoint

ALPHA, EPS = 2.0, 1e-6
RIDGES = {"lambda_theta": 2.0, "lambda_beta": 5.0}


def ridge_map(features, beta, ridge, bias):
    """Solve eq. (3); the bias column costs nothing."""
    h, cost = np.asarray(features, np.float64), np.full(features.shape[1], ridge)
    if bias:
        h, cost = np.column_stack([h, np.ones(len(h))]), np.append(cost, 0.0)
    gram = h.T @ h + np.diag(cost)
    return np.linalg.solve(gram, h.T @ np.asarray(beta, np.float64))


def content_mean(features, w):
    h = np.asarray(features, np.float64)
    return np.column_stack([h, np.ones((len(h), len(w) - h.shape[1]))]) @ w


def features_of(n, width=6, seed=9):
    return np.random.default_rng(seed).random((n, width)).astype(np.float32)


MANY = [0, 1, 2, 3, 4, 5, 6, 7, 9, 14, 20, 33, 40, 0, 5]
SURPLUS = wmf.log_surplus(plays_of(MANY * 4, 40), ALPHA, EPS)
SHAPES = {
    "rows around K": (plays_of(MANY, 40), 5),
    "counts kept": (plays_of(MANY, 40, most=300), 5),
    "more factors than users": (plays_of([3, 1, 0, 8], 12), 16),
    "one pair in all": (sp.csr_matrix(([1], ([2], [1])), (4, 3)), 3),
}


@pytest.mark.parametrize("ridge", [1e-4, 1.0])
@pytest.mark.parametrize("content", [None, "features", "means"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sweep_solves_the_equations_of_the_paper(shape, content, ridge):
    plays, k = SHAPES[shape]
    surplus = wmf.log_surplus(plays, ALPHA, EPS, binarise=shape != "counts kept")
    h, n = features_of(plays.shape[1]), features_of(plays.shape[1], k)
    settings = {"factors": k, "lambda_theta": ridge, "lambda_beta": 3 * ridge, "lambda_w": ridge}
    settings |= {None: {}, "features": {"features": h}, "means": {"means": n}}[content]
    first = wmf.fit(surplus, sweeps=1, **settings)
    second = wmf.fit(surplus, sweeps=1, start=first, **settings)
    mean, terms = n if content == "means" else None, 0.0
    if content == "features":
        mean = content_mean(h, first.w)
        terms = np.linalg.norm(content_mean(h, np.abs(first.w)), axis=1)
    # The least ridge makes small problems ill-conditioned: over seeds float32 is off by up to 1e-4.
    near = 1e-5 if ridge >= 1 else 2e-4
    songs = solve_slowly(first.theta, surplus.T.tocsr(), 3 * ridge, mean)
    assert apart(second.beta, songs, terms) < near
    assert apart(second.theta, solve_slowly(second.beta, surplus, ridge)) < near


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ridge", [1e-2, 10.0])
def test_w_is_ridge_regression_and_its_bias_is_free(bias, ridge):
    features = features_of(40) + 3.0  # far from centred: penalising the bias would show
    settings = {"factors": 4, "lambda_w": ridge, "bias": bias, "sweeps": 2, **RIDGES}
    fitted = wmf.fit(SURPLUS, features, **settings)
    expected = ridge_map(features, fitted.beta, ridge, bias)
    assert fitted.w.shape == expected.shape == (6 + bias, 4)
    assert np.abs(fitted.w - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("ridge", [1e-3, 10.0])
@pytest.mark.parametrize("content", ["nothing", "features", "features, bias", "means"])
def test_objective_is_the_sum_over_all_pairs_and_never_rises(content, ridge):
    surplus = wmf.log_surplus(plays_of(MANY * 4, 40, most=50), ALPHA, EPS, binarise=False)
    h, mean, ridges = features_of(40), np.zeros((40, 6)), np.array([1, 10, 7]) * ridge
    settings = dict(zip(("lambda_theta", "lambda_beta", "lambda_w"), ridges, strict=True))
    if content.startswith("features"):
        settings |= {"features": h, "bias": "bias" in content}
    elif content == "means":
        mean = settings["means"] = features_of(40)
    fitted = wmf.fit(surplus, factors=6, sweeps=8, trace=True, **settings)
    steps = ["items", "users", "W"] if "features" in settings else ["items", "users"]
    assert [row["step"] for row in fitted.history] == steps * 8
    assert [row["sweep"] for row in fitted.history] == sorted([*range(1, 9)] * len(steps))
    value = np.array([row["objective"] for row in fitted.history])
    assert (np.diff(value) <= 1e-6 * value[:-1]).all()
    assert value[-1] < 0.98 * value[0]  # CTR sets out from users that fit its topics
    dense, theta, beta = (
        surplus.toarray().astype(float),
        *(x.astype(float) for x in (fitted.theta, fitted.beta)),
    )
    w = np.zeros((6, 6)) if fitted.w is None else fitted.w.astype(float)
    mean = mean if fitted.w is None else content_mean(h, w)
    expected = ((1 + dense) * ((dense > 0) - theta @ beta.T) ** 2).sum()
    expected += ridges[0] * (theta**2).sum() + ridges[1] * ((beta - mean) ** 2).sum()
    expected += ridges[1] * ridges[2] * (w[:6] ** 2).sum()
    assert value[-1] == pytest.approx(expected / 2, rel=1e-6)


@pytest.mark.filterwarnings("ignore")  # implicit's, of thread pools
def test_fit_is_that_of_implicit():
    """The library solves its rows first, so it is given the transposed plays."""
    plays, k, ridge = plays_of([3, 5, 20, 31, 12] * 8, 60, most=9), 7, 4.0
    surplus = wmf.log_surplus(plays, ALPHA, EPS)
    ours = wmf.fit(surplus, factors=k, lambda_theta=ridge, lambda_beta=ridge, sweeps=4, seed=3)
    confidence = (surplus + (surplus > 0)).astype(np.float32).T.tocsr()
    model = AlternatingLeastSquares(k, ridge, use_cg=False, iterations=4, num_threads=1)
    model.user_factors = np.zeros((60, k), np.float32)
    start = np.random.default_rng(3).standard_normal((40, k)) * 0.01
    model.item_factors = start.astype(np.float32)
    model.fit(confidence, show_progress=False)
    theirs = model.item_factors, model.user_factors
    for one, other in zip((ours.theta, ours.beta), theirs, strict=True):
        assert np.allclose(one, other, atol=1e-3 * np.abs(other).max())


def test_all_models_make_the_same_first_step_from_their_seed():
    models = [None, features_of(40), features_of(40, 3, seed=1) * 100]
    first, *others = (wmf.fit(SURPLUS, h, factors=5, sweeps=1, seed=4, **RIDGES) for h in models)
    different = wmf.fit(SURPLUS, factors=5, sweeps=1, seed=5, **RIDGES)
    for name in ("theta", "beta"):
        assert all(np.array_equal(getattr(x, name), getattr(first, name)) for x in others)
        assert not np.array_equal(getattr(different, name), getattr(first, name))


def test_cold_factors_are_w_h():
    h, w = features_of(4, 3), features_of(4, 2)
    by_hand = [[sum(h[i, f] * w[f, k] for f in range(3)) for k in range(2)] for i in range(4)]
    assert np.allclose(wmf.cold_factors(h, w[:3]), by_hand)
    assert np.allclose(wmf.cold_factors(h, w), np.array(by_hand) + w[3])


def test_confidence_of_a_play_is_the_papers():
    plays = sp.csr_matrix([[0, 1, 7], [3, 0, 0]])
    surplus = wmf.log_surplus(plays, 2.0, 1e-6)
    assert np.array_equal(surplus.toarray() > 0, plays.toarray() > 0)
    assert np.allclose(1 + surplus.data, 28.631, atol=5e-4)  # 1 + 2 ln(1 + 1e6)
    assert np.allclose(wmf.log_surplus(plays, 3.0, 1.0).data, 3 * np.log(2))
    counted = wmf.log_surplus(plays, 2.0, 1e-6, binarise=False)
    assert np.allclose(counted.data, 2 * np.log(1 + np.array([1, 7, 3]) * 1e6))


def test_what_does_not_fit_is_refused():
    def fit(*features, surplus=SURPLUS, **settings):
        return lambda: wmf.fit(surplus, *features, factors=4, **(RIDGES | settings))

    h, w, stored_zero = features_of(40), features_of(4, 2), sp.csr_matrix(([0.0], ([0], [1])))
    for message, call in [
        ("3 rows for 40 items", fit(h[:3])),
        ("must be positive", fit(lambda_theta=0.0)),
        ("must be positive", fit(lambda_beta=-1.0)),
        ("40 items x 4 factors", fit(means=np.zeros((40, 3)))),
        ("without features", fit(h, means=np.zeros((40, 4)))),
        ("every stored pair must be positive", fit(surplus=stored_zero)),
        ("positive counts", lambda: wmf.log_surplus(stored_zero, 2.0, 1e-6)),
        ("must be positive, got alpha=0", lambda: wmf.log_surplus(SURPLUS, 0, 1e-6)),
        ("must be positive, .* eps=0", lambda: wmf.log_surplus(SURPLUS, 2, 0)),
        ("w has 4 rows, the features have 2 columns", lambda: wmf.cold_factors(h[:, :2], w)),
    ]:
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.fault(
    "alternating least squares broken off", "goes on after the last sweep kept, to the same bits"
)
def test_a_fit_goes_on_from_its_checkpoint_to_the_same_bits(content, tmp_path):
    kept, seen = tmp_path / "kept.pt", []

    def fit(checkpoint=None):
        def validate(theta, beta):
            seen.append((theta.copy(), beta.copy()))
            return {"NDCG": float(np.abs(theta).sum())}

        settings = {"factors": 6, "sweeps": 5, "trace": True, "validate": validate, **RIDGES}
        features = features_of(40) if content else None
        return wmf.fit(SURPLUS, features, checkpoint=checkpoint, **settings)

    whole = fit()
    checked = [row for row in whole.history if row["step"] == "validation"]
    assert [row["NDCG"] for row in checked] == [np.abs(theta).sum() for theta, _ in seen]
    assert np.array_equal(seen[-1][0], whole.theta) and np.array_equal(seen[-1][1], whole.beta)
    with pytest.raises(KeyboardInterrupt):
        fit(Broken(kept, after=2))
    resumed = fit(Checkpoint(kept, 0.0))
    assert len(seen) == 5 + 5  # no sweep twice
    for name, expected in whole.arrays().items():
        assert np.array_equal(getattr(resumed, name), expected)
    assert resumed.history == whole.history
