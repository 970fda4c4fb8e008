"""The factorisation against dense least squares, written from the paper's sentences in float64."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from implicit.cpu.als import AlternatingLeastSquares
from oracles import apart, plays_of, solve_slowly

from repro.models import Factors, wmf

ALPHA, EPS = 2.0, 1e-6
RIDGES = {"lambda_theta": 2.0, "lambda_beta": 5.0}


def ridge_map(features, beta, ridge, bias):
    """Solve eq. (3); the bias column costs nothing."""
    h, cost = np.asarray(features, np.float64), np.full(features.shape[1], ridge)
    if bias:
        h, cost = np.column_stack([h, np.ones(len(h))]), np.append(cost, 0.0)
    left = np.vstack([h, np.diag(np.sqrt(cost))])
    right = np.vstack([np.asarray(beta, np.float64), np.zeros((h.shape[1], beta.shape[1]))])
    return np.linalg.lstsq(left, right, rcond=None)[0]


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
    "rows of several strips": (plays_of([64, 65, 130, 3] + [20] * 26, 200), 7),
}


@pytest.mark.parametrize("ridge", [1e-4, 1.0])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_sweep_solves_the_equations_of_the_paper(shape, content, ridge):
    plays, k = SHAPES[shape]
    surplus = wmf.log_surplus(plays, ALPHA, EPS, binarise=shape != "counts kept")
    features = features_of(plays.shape[1]) if content else None
    settings = {"factors": k, "lambda_theta": ridge, "lambda_beta": 3 * ridge, "lambda_w": ridge}
    first = wmf.fit(surplus, features, sweeps=1, **settings)
    second = wmf.fit(surplus, features, sweeps=1, start=first, **settings)
    mean, terms = None, 0.0
    if content:
        mean = content_mean(features, first.w)
        terms = np.linalg.norm(content_mean(features, np.abs(first.w)), axis=1)
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


@pytest.mark.parametrize("bias", [None, False, True])
def test_objective_is_the_sum_over_all_pairs(bias):
    surplus = wmf.log_surplus(plays_of(MANY, 40, most=50), ALPHA, EPS, binarise=False)
    rng = np.random.default_rng(3)
    theta, beta = rng.standard_normal((15, 4)), rng.standard_normal((40, 4))
    features, w = features_of(40), rng.standard_normal((6 + bool(bias), 4))
    dense = surplus.toarray().astype(np.float64)
    mean = 0.0 if bias is None else content_mean(features, w)
    expected = ((1 + dense) * ((dense > 0) - theta @ beta.T) ** 2).sum() / 2
    expected += 2.0 / 2 * (theta**2).sum() + 5.0 / 2 * ((beta - mean) ** 2).sum()
    tensors = [torch.from_numpy(x.astype(np.float32)) for x in (theta, beta, w)]
    content = ()
    if bias is not None:
        expected += 5.0 * 0.7 / 2 * (w[:6] ** 2).sum()
        content = wmf.ContentPrior(features, 0.7, bias), tensors[2]
    found = wmf.objective(surplus, *tensors[:2], 2.0, 5.0, *content)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 10.0])
@pytest.mark.parametrize("content", [False, True])
def test_objective_never_rises(content, ridge):
    features = features_of(40) if content else None
    settings = {"lambda_theta": ridge, "lambda_beta": 10 * ridge, "lambda_w": ridge}
    fitted = wmf.fit(SURPLUS, features, factors=6, sweeps=8, trace=True, **settings)
    steps = ["items", "users", "W"] if content else ["items", "users"]
    assert [(row["sweep"], row["step"]) for row in fitted.history] == [
        (sweep, step) for sweep in range(1, 9) for step in steps
    ]
    value = np.array([row["objective"] for row in fitted.history])
    assert (np.diff(value) <= 1e-6 * value[:-1]).all()
    assert value[-1] < 0.9 * value[0]


def test_paper_likelihood_without_the_ridge_on_w_does_rise():
    """Eq. (3) leaves the stationary point of the paper's L: hence the ridge in the objective."""
    settings = {"factors": 6, "trace": True, "bias": False, "lambda_w": 50.0, **RIDGES}
    rises = 0
    for sweeps in range(2, 6):
        before = wmf.fit(SURPLUS, features_of(40), sweeps=sweeps - 1, **settings)
        fitted = wmf.fit(SURPLUS, features_of(40), sweeps=1, start=before, **settings)
        users, after = (row["objective"] for row in fitted.history[-2:])
        rises += after - 125 * (fitted.w**2).sum() > users - 125 * (before.w**2).sum()
    assert rises


def test_without_weight_on_content_it_is_plain_wmf():
    settings = {"factors": 4, "sweeps": 5, **RIDGES}
    plain = wmf.fit(SURPLUS, **settings)
    heavy, light = (
        wmf.fit(SURPLUS, features_of(40), lambda_w=ridge, bias=False, **settings)
        for ridge in (1e10, 1e-2)
    )
    assert apart(heavy.beta, plain.beta) < 1e-5 < 1e-2 < apart(light.beta, plain.beta)
    zero = wmf.fit(SURPLUS, np.zeros((40, 6)), bias=False, **settings)
    assert plain.w is None and not zero.w.any()
    assert np.array_equal(zero.beta, plain.beta) and np.array_equal(zero.theta, plain.theta)


def test_bias_alone_is_the_mean_song():
    fitted = wmf.fit(SURPLUS, np.zeros((40, 6)), factors=4, sweeps=5, bias=True, **RIDGES)
    assert np.allclose(fitted.w[-1], fitted.beta.mean(0), rtol=1e-5, atol=1e-7)
    assert not fitted.w[:-1].any()


def test_a_heavy_ridge_pins_songs_to_their_content_played_or_not():
    plays = plays_of([6] * 30, 25).tolil()
    plays[:, 7] = 0  # which the zeros of all users count against, little at 1e7
    surplus, features = wmf.log_surplus(plays.tocsr(), ALPHA, EPS), features_of(25)
    settings = {"factors": 4, "lambda_theta": 1e3, "lambda_w": 1e-3, "sweeps": 1}
    gaps = []
    for ridge in (1.0, 1e7):
        first = wmf.fit(surplus, features, lambda_beta=ridge, **settings)
        second = wmf.fit(surplus, features, lambda_beta=ridge, start=first, **settings)
        assert (np.linalg.norm(first.w, axis=1) > 0).all()
        gaps.append(apart(second.beta, content_mean(features, first.w)))
    assert gaps[1] < 1e-4 < 0.1 < gaps[0]


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
    values = [
        wmf.objective(surplus, *map(torch.from_numpy, pair), ridge, ridge)
        for pair in ((ours.theta, ours.beta), theirs)
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-5)
    assert np.allclose(ours.theta, theirs[0], atol=1e-3 * np.abs(theirs[0]).max())


def test_all_models_make_the_same_first_step_from_their_seed():
    models = [None, features_of(40), features_of(40, 3, seed=1) * 100]
    fitted = [wmf.fit(SURPLUS, h, factors=5, sweeps=1, seed=4, **RIDGES) for h in models]
    for other in fitted[1:]:
        assert np.array_equal(other.beta, fitted[0].beta)
        assert np.array_equal(other.theta, fitted[0].theta)
    other = wmf.fit(SURPLUS, factors=5, sweeps=1, seed=5, **RIDGES)
    assert not np.array_equal(other.beta, fitted[0].beta)


def test_cold_factors_are_w_h():
    h, w = features_of(4, 3), features_of(4, 2)
    by_hand = [[sum(h[i, f] * w[f, k] for f in range(3)) for k in range(2)] for i in range(4)]
    assert np.allclose(wmf.cold_factors(h, w[:3]), by_hand)
    assert np.allclose(wmf.cold_factors(h, w), np.array(by_hand) + w[3])
    for width in (2, 5):
        with pytest.raises(ValueError, match=f"w has 4 rows, the features have {width} columns"):
            wmf.cold_factors(features_of(3, width), w)


def test_confidence_of_a_play_is_the_papers():
    plays = sp.csr_matrix([[0, 1, 7], [3, 0, 0]])
    surplus = wmf.log_surplus(plays, 2.0, 1e-6)
    assert np.array_equal(surplus.toarray() > 0, plays.toarray() > 0)
    assert np.allclose(1 + surplus.data, 28.631, atol=5e-4)  # 1 + 2 ln(1 + 1e6)
    assert np.allclose(wmf.log_surplus(plays, 3.0, 1.0).data, 3 * np.log(2))
    counted = wmf.log_surplus(plays, 2.0, 1e-6, binarise=False)
    assert np.allclose(counted.data, 2 * np.log(1 + np.array([1, 7, 3]) * 1e6))
    for alpha, eps in ((0, 1e-6), (2, 0), (-1, 1e-6)):
        with pytest.raises(ValueError, match="must be positive"):
            wmf.log_surplus(plays, alpha, eps)
    plays.data[0] = 0
    with pytest.raises(ValueError, match="positive counts"):
        wmf.log_surplus(plays, 2.0, 1e-6)


def test_fit_refuses_what_does_not_fit():
    def refused(match, *features, surplus=SURPLUS, **settings):
        with pytest.raises(ValueError, match=match):
            wmf.fit(surplus, *features, factors=4, **(RIDGES | settings))

    refused("3 rows for 40 items", features_of(3))
    refused("must be positive", lambda_theta=0.0)
    refused("must be positive", lambda_beta=-1.0)
    refused("40 items x 4 factors", means=np.zeros((40, 3)))
    refused("without features", features_of(40), means=np.zeros((40, 4)))
    stored_zero = sp.csr_matrix(([0.0], ([0], [1])), (2, 3))
    refused("every stored pair must be positive", surplus=stored_zero)


def test_given_means_are_a_prior_that_stays():
    means = features_of(40, 4)
    fitted = wmf.fit(SURPLUS, means=means, factors=4, sweeps=3, trace=True, **RIDGES)
    start = np.random.default_rng(0).standard_normal((SURPLUS.shape[0], 4)) * 0.01
    theta = start.astype(np.float32)
    for _ in range(3):
        beta = solve_slowly(theta, SURPLUS.T.tocsr(), RIDGES["lambda_beta"], means)
        theta = solve_slowly(beta, SURPLUS, RIDGES["lambda_theta"])
    assert np.allclose(fitted.beta, beta, atol=1e-3) and fitted.w is None
    objective = [row["objective"] for row in fitted.history]
    assert (np.diff(objective) <= 1e-6 * np.abs(objective[:-1])).all()
    strong = wmf.fit(SURPLUS, means=means, factors=4, lambda_theta=2.0, lambda_beta=1e8)
    assert np.allclose(strong.beta, means, atol=1e-3)


class Checkpoint:
    """Keeps every state as the pipeline's does: as tensors, numbers and text alone."""

    def __init__(self, path):
        self.path = path

    def load(self):
        return torch.load(self.path, weights_only=True) if self.path.exists() else None

    def save(self, state):
        torch.save(state(), self.path)


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("broken_at", [1, 2, 4])
@pytest.mark.fault(
    "alternating least squares broken off", "goes on after the last sweep kept, to the same bits"
)
def test_a_fit_goes_on_from_its_checkpoint_to_the_same_bits(content, broken_at, tmp_path):
    features = features_of(40) if content else None
    seen = []

    def fit(checkpoint=None, end=99):
        def validate(theta, beta):
            seen.append((theta.copy(), beta.copy()))
            if len(seen) == end:
                raise KeyboardInterrupt
            return {"NDCG": float(np.abs(theta).sum())}

        given = {"factors": 6, "sweeps": 5, "trace": True, "validate": validate, **RIDGES}
        seen.clear()
        return wmf.fit(SURPLUS, features, checkpoint=checkpoint, **given)

    whole = fit()
    checked = [row for row in whole.history if row["step"] == "validation"]
    assert [row["NDCG"] for row in checked] == [np.abs(theta).sum() for theta, _ in seen]
    assert np.array_equal(seen[-1][0], whole.theta) and np.array_equal(seen[-1][1], whole.beta)
    with pytest.raises(KeyboardInterrupt):
        fit(Checkpoint(tmp_path / "kept.pt"), broken_at)
    resumed = fit(Checkpoint(tmp_path / "kept.pt"))
    assert len(seen) == 5 - (broken_at - 1)
    for name in Factors(whole.theta, whole.beta, w=whole.w).arrays():
        assert np.array_equal(getattr(resumed, name), getattr(whole, name))
    assert resumed.history == whole.history
