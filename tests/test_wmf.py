"""The factorisation against dense least squares, written from the paper's sentences in float64."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from implicit.cpu.als import AlternatingLeastSquares
from oracles import solve_slowly

from repro import kernels
from repro.models import wmf
from repro.pipeline.run import Checkpoint

ALPHA, EPS = 2.0, 1e-6
RIDGES = {"lambda_theta": 2.0, "lambda_beta": 5.0}


def plays_of(lengths, n_items, seed=0, most=1):
    """Return plays whose user ``u`` has ``lengths[u]`` items, played 1 to ``most`` times."""
    rng = np.random.default_rng(seed)
    plays = np.zeros((len(lengths), n_items), np.int32)
    for row, length in zip(plays, lengths, strict=True):
        row[rng.choice(n_items, length, replace=False)] = rng.integers(1, most + 1, length)
    return sp.csr_matrix(plays)


def rows(fixed, surplus, ridge, mean=None):
    """Solve eq. (1), or (2) with ``mean``, one row at a time over all columns, as least squares."""
    fixed, k = np.asarray(fixed, np.float64), fixed.shape[1]
    surplus = np.asarray(surplus.todense(), np.float64)
    mean = np.zeros((len(surplus), k)) if mean is None else np.asarray(mean, np.float64)
    solved = []
    for row, centre in zip(surplus, mean, strict=True):
        weight = np.sqrt(1.0 + row)  # confidence is 1 where nothing was played
        left = np.vstack([weight[:, None] * fixed, np.sqrt(ridge) * np.eye(k)])
        right = np.concatenate([weight * (row > 0), np.sqrt(ridge) * centre])
        solved.append(np.linalg.lstsq(left, right, rcond=None)[0])
    return np.array(solved)


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


def apart(found, expected, terms=0.0):
    """Return the largest distance of a row from what it should be, relative to its length.

    ``terms`` bounds what the row was summed from: where that cancels, float32 cannot do better.
    """
    length = np.maximum(np.linalg.norm(expected, axis=1), terms)
    return (np.linalg.norm(found - expected, axis=1) / np.where(length > 0, length, 1.0)).max()


def features_of(n, width=6, seed=9):
    return np.random.default_rng(seed).random((n, width)).astype(np.float32)


MANY = [0, 1, 2, 3, 4, 5, 6, 7, 9, 14, 20, 33, 40, 0, 5]
SHAPES = {
    "rows around K": (plays_of(MANY, 40), 5),
    "counts kept": (plays_of(MANY, 40, most=300), 5),
    "one factor": (plays_of(MANY, 40), 1),
    "more factors than users": (plays_of([3, 1, 0, 8], 12), 16),
    "one pair in all": (sp.csr_matrix(([1], ([2], [1])), (4, 3)), 3),
    "rows of several strips": (plays_of([64, 65, 130, 3] + [20] * 26, 200), 7),
    "duplicate users": (sp.vstack([plays_of([4], 9)] * 6 + [plays_of([9], 9)], "csr"), 4),
}


@pytest.mark.parametrize("ridge", [1e-4, 1.0, 100.0])
@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_rows_are_weighted_least_squares(shape, content, ridge):
    plays, k = SHAPES[shape]
    surplus = wmf.log_surplus(plays, ALPHA, EPS, binarise=shape != "counts kept")
    features = features_of(plays.shape[1]) if content else None
    settings = {"factors": k, "lambda_theta": ridge, "lambda_beta": 3 * ridge, "lambda_w": ridge}
    first = wmf.fit(surplus, features, sweeps=1, **settings)
    second = wmf.fit(surplus, features, sweeps=2, **settings)
    mean, terms = None, 0.0
    if content:
        mean = content_mean(features, first.w)
        terms = np.linalg.norm(content_mean(features, np.abs(first.w)), axis=1)
    # The least ridge makes small problems ill-conditioned: over seeds float32 is off by up to 1e-4.
    near = 1e-5 if ridge >= 1 else 2e-4
    assert apart(second.beta, rows(first.theta, surplus.T, 3 * ridge, mean), terms) < near
    assert apart(second.theta, rows(second.beta, surplus, ridge)) < near


def solved(fixed, surplus, ridge, mean=None, start=None, steps=None):
    """Return what the fast solver makes of numpy arrays."""
    fixed, mean, start = (
        None if x is None else torch.from_numpy(np.asarray(x, np.float32))
        for x in (fixed, mean, start)
    )
    rows = kernels.Rows.of(surplus, fixed.shape[1])
    return kernels.solve_rows(fixed, rows, ridge, mean, start, steps).numpy()


def problem(lengths, columns, k, seed):
    """Return fixed factors, surplus and prior means of rows with so many plays each."""
    rng = np.random.default_rng(seed)
    plays = plays_of(lengths, columns, seed, most=9)
    surplus = wmf.log_surplus(plays, ALPHA, EPS, binarise=False)
    return rng.standard_normal((columns, k)), surplus, rng.standard_normal((len(lengths), k))


def limit(fixed, surplus, ridge):
    """Bound what each row is summed from: where that cancels, float32 cannot do better."""
    weight = surplus.copy()
    weight.data = weight.data + 1
    return weight @ np.linalg.norm(fixed, axis=1) / (ridge + np.linalg.eigvalsh(fixed.T @ fixed)[0])


@pytest.mark.parametrize("gpu", [False, True])
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 150), st.integers(1, 14))
@settings(deadline=None, max_examples=40)
def test_rows_of_any_shape_are_solved_as_the_slow_way_does(gpu, seed, k, columns, n_rows):
    lengths = np.random.default_rng(seed).integers(0, columns + 1, n_rows)
    fixed, surplus, mean = problem(lengths, columns, k, seed)
    expected = solve_slowly(fixed, surplus, 2.0, mean)
    with pytest.MonkeyPatch.context() as patch:
        if gpu:
            patch.setattr(kernels, "_on_processor", lambda device: False)
            patch.setattr(kernels, "_BATCH_FLOATS", 64 * k)
        found = solved(fixed, surplus, 2.0, mean)
    assert apart(found, expected, limit(fixed, surplus, 2.0)) < 1e-5
    assert apart(expected, rows(fixed, surplus, 2.0, mean)) < 1e-8


EDGES = [7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129]


@pytest.mark.parametrize("steps", [None, 60])
@pytest.mark.parametrize("prior", [False, True])
@pytest.mark.parametrize("k", [1, 4, *EDGES, 96, 100, 104, 112, 300])
def test_rows_at_the_edges_of_panels_and_vectors(k, prior, steps):
    # Many columns of independent factors: nothing cancels, so each row is held to its own length.
    lengths = [0, 1, *EDGES, k - 1, k, k + 1, 700, *EDGES, 0, 1]
    fixed, surplus, mean = problem(lengths, 4 * k + 700, k, seed=k)
    mean = mean if prior else None
    start = np.zeros((len(lengths), k))
    found = solved(fixed, surplus, 2.0, mean, start, steps)
    assert apart(found, solve_slowly(fixed, surplus, 2.0, mean)) < 1e-5


@pytest.mark.parametrize("k", [49, 100])
def test_what_earlier_rows_left_behind_reaches_no_result(k):
    lengths = [17, 49, 3, 33, 0, 90, 16, 25, 100, 18, 120, 1, 57]
    fixed, surplus, _ = problem(lengths, 900, k, seed=3)
    rows = kernels.Rows.of(surplus, k)
    for order in (np.arange(len(lengths)), np.argsort(lengths), np.arange(len(lengths))[::-1]):
        rows.chunks = [torch.from_numpy(order.copy())]
        found = kernels.solve_rows(torch.from_numpy(fixed.astype(np.float32)), rows, 2.0).numpy()
        assert apart(found, solve_slowly(fixed, surplus, 2.0)) < 1e-5


def test_factors_that_do_not_fit_are_refused():
    fixed, surplus, _ = problem([5], 15, 2, seed=8)
    with pytest.raises(ValueError, match="14 fixed factors for 15 columns"):
        solved(fixed[1:], surplus, 2.0)


def test_a_row_alone_is_solved_to_the_same_bits():
    fixed, surplus, mean = problem([3, 90, 17, 0, 40, 1, 150, 17], 150, 21, seed=8)
    whole = solved(fixed, surplus, 2.0, mean)
    for row in range(8):
        assert np.array_equal(solved(fixed, surplus[row], 2.0, mean[row : row + 1])[0], whole[row])


@pytest.mark.parametrize("threads", [1, 3])
def test_number_of_threads_changes_nothing(threads):
    fixed, surplus, mean = problem([5, 90, 17, 0, 40] * 40, 150, 21, seed=8)
    expected, before = solved(fixed, surplus, 2.0, mean), torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = solved(fixed, surplus, 2.0, mean)
    finally:
        torch.set_num_threads(before)
    assert np.array_equal(found, expected)


def test_steps_of_conjugate_gradients_approach_the_solution():
    fixed, surplus, mean = problem([5, 90, 17, 0, 40, 3] * 4, 150, 21, seed=8)
    expected = solve_slowly(fixed, surplus, 2.0, mean)
    start = np.random.default_rng(1).standard_normal(expected.shape)
    gap = [apart(solved(fixed, surplus, 2.0, mean, start, s), expected) for s in (0, 1, 3, 8, 40)]
    assert gap == sorted(gap, reverse=True)
    assert gap[0] > 0.1 and gap[-1] < 1e-5
    assert apart(solved(fixed, surplus, 2.0, mean, expected, 0), expected) < 1e-5


def test_approximate_fit_ends_near_the_exact_one():
    surplus = wmf.log_surplus(plays_of(MANY * 4, 40), ALPHA, EPS)
    exact, near = (
        wmf.fit(surplus, features_of(40), factors=6, sweeps=15, trace=True, steps=steps, **RIDGES)
        for steps in (None, 3)
    )
    assert near.history[-1]["objective"] == pytest.approx(exact.history[-1]["objective"], rel=0.02)


def test_approximate_solver_on_a_gpu_is_refused(monkeypatch):
    fixed, surplus, mean = problem([5], 15, 2, seed=8)
    monkeypatch.setattr(kernels, "_on_processor", lambda device: False)
    with pytest.raises(ValueError, match="leave steps out on a GPU"):
        solved(fixed, surplus, 2.0, mean, mean, 2)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("ridge", [1e-2, 10.0])
def test_w_is_ridge_regression_and_its_bias_is_free(bias, ridge):
    plays = plays_of([6] * 30, 25)
    features = features_of(25) + 3.0  # far from centred: penalising the bias would show
    settings = {"factors": 4, "lambda_w": ridge, "bias": bias, "sweeps": 2, **RIDGES}
    fitted = wmf.fit(wmf.log_surplus(plays, ALPHA, EPS), features, **settings)
    expected = ridge_map(features, fitted.beta, ridge, bias)
    assert fitted.w.shape == expected.shape == (6 + bias, 4)
    assert np.abs(fitted.w - expected).max() < 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("content", [False, True])
def test_objective_is_the_sum_over_all_pairs(content, bias):
    surplus = wmf.log_surplus(plays_of(MANY, 40, most=50), ALPHA, EPS, binarise=False)
    rng = np.random.default_rng(3)
    theta, beta = rng.standard_normal((15, 4)), rng.standard_normal((40, 4))
    features, w = features_of(40), rng.standard_normal((6 + bias, 4))

    dense = surplus.toarray().astype(np.float64)
    mean = content_mean(features, w) if content else 0.0
    expected = ((1 + dense) * ((dense > 0) - theta @ beta.T) ** 2).sum() / 2
    expected += 2.0 / 2 * (theta**2).sum() + 5.0 / 2 * ((beta - mean) ** 2).sum()
    if content:
        expected += 5.0 * 0.7 / 2 * (w[:6] ** 2).sum()

    tensors = [torch.from_numpy(x.astype(np.float32)) for x in (theta, beta, w)]
    prior = wmf.ContentPrior(features, 0.7, bias) if content else None
    found = wmf.objective(surplus, *tensors[:2], 2.0, 5.0, prior, tensors[2] if content else None)
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("ridge", [1e-3, 10.0])
@pytest.mark.parametrize("content", [False, True])
def test_objective_never_rises(content, ridge):
    surplus = wmf.log_surplus(plays_of(MANY * 4, 40), ALPHA, EPS)
    features = features_of(40) if content else None
    settings = {"lambda_theta": ridge, "lambda_beta": 10 * ridge, "lambda_w": ridge}
    fitted = wmf.fit(surplus, features, factors=6, sweeps=8, trace=True, **settings)
    steps = ["items", "users", "W"] if content else ["items", "users"]
    assert [(row["sweep"], row["step"]) for row in fitted.history] == [
        (sweep, step) for sweep in range(1, 9) for step in steps
    ]
    value = np.array([row["objective"] for row in fitted.history])
    assert (np.diff(value) <= 1e-6 * value[:-1]).all()
    assert value[-1] < 0.9 * value[0]


def test_paper_likelihood_without_the_ridge_on_w_does_rise():
    """Eq. (3) leaves the stationary point of the paper's L: hence the ridge in the objective."""
    surplus = wmf.log_surplus(plays_of(MANY * 4, 40), ALPHA, EPS)
    settings = {"factors": 6, "trace": True, "bias": False, "lambda_w": 50.0, **RIDGES}
    rises = 0
    for sweeps in range(2, 6):
        fitted = wmf.fit(surplus, features_of(40), sweeps=sweeps, **settings)
        before = wmf.fit(surplus, features_of(40), sweeps=sweeps - 1, **settings).w
        users, after = (row["objective"] for row in fitted.history[-2:])
        rises += after - 125 * (fitted.w**2).sum() > users - 125 * (before**2).sum()
    assert rises


def test_heavy_ridge_on_w_gives_plain_wmf():
    surplus = wmf.log_surplus(plays_of([8] * 30, 25), ALPHA, EPS)
    plain = wmf.fit(surplus, factors=4, sweeps=5, **RIDGES)
    settings = {"factors": 4, "sweeps": 5, "bias": False, **RIDGES}
    heavy = wmf.fit(surplus, features_of(25), lambda_w=1e10, **settings)
    light = wmf.fit(surplus, features_of(25), lambda_w=1e-2, **settings)
    assert apart(heavy.beta, plain.beta) < 1e-5 < 1e-2 < apart(light.beta, plain.beta)


def test_zero_features_give_plain_wmf():
    surplus = wmf.log_surplus(plays_of([8] * 30, 25), ALPHA, EPS)
    plain = wmf.fit(surplus, factors=4, sweeps=5, **RIDGES)
    zero = wmf.fit(surplus, np.zeros((25, 6)), factors=4, sweeps=5, bias=False, **RIDGES)
    assert plain.w is None
    assert not zero.w.any()
    assert np.array_equal(zero.beta, plain.beta)
    assert np.array_equal(zero.theta, plain.theta)


def test_bias_alone_is_the_mean_song():
    surplus = wmf.log_surplus(plays_of([8] * 30, 25), ALPHA, EPS)
    fitted = wmf.fit(surplus, np.zeros((25, 6)), factors=4, sweeps=5, bias=True, **RIDGES)
    assert np.allclose(fitted.w[-1], fitted.beta.mean(0), rtol=1e-5, atol=1e-7)
    assert not fitted.w[:-1].any()


def test_heavy_ridge_on_beta_pins_songs_to_their_content():
    surplus = wmf.log_surplus(plays_of([8] * 30, 25), ALPHA, EPS)
    features = features_of(25)
    settings = {"factors": 4, "lambda_theta": 1e3, "lambda_w": 1e-3}
    gaps = []
    for ridge in (1.0, 1e7):
        first = wmf.fit(surplus, features, lambda_beta=ridge, sweeps=1, **settings)
        second = wmf.fit(surplus, features, lambda_beta=ridge, sweeps=2, **settings)
        assert (np.linalg.norm(first.w, axis=1) > 0).all()
        gaps.append(apart(second.beta, content_mean(features, first.w)))
    assert gaps[1] < 1e-4 < 0.1 < gaps[0]


def test_song_without_plays_gets_its_content():
    plays = plays_of([6] * 30, 25).tolil()
    plays[:, 7] = 0
    surplus = wmf.log_surplus(plays.tocsr(), ALPHA, EPS)
    features = features_of(25)
    settings = {"factors": 4, "lambda_theta": 1.0, "lambda_beta": 1e5, "lambda_w": 1e-3}
    first = wmf.fit(surplus, features, sweeps=4, **settings)
    second = wmf.fit(surplus, features, sweeps=5, **settings)
    # Nobody played it, which the zeros count against: pulled in by theta'theta, little at 1e5.
    assert apart(second.beta[7:8], content_mean(features[7:8], first.w)) < 1e-3


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
    theta, beta = model.item_factors, model.user_factors
    objectives = [
        wmf.objective(surplus, torch.from_numpy(t), torch.from_numpy(b), ridge, ridge)
        for t, b in ((ours.theta, ours.beta), (theta, beta))
    ]
    assert objectives[0] == pytest.approx(objectives[1], rel=1e-5)
    assert np.allclose(ours.theta, theta, atol=1e-3 * np.abs(theta).max())


def test_all_models_make_the_same_first_step():
    surplus = wmf.log_surplus(plays_of(MANY, 40), ALPHA, EPS)
    models = [None, features_of(40), features_of(40, 3, seed=1) * 100]
    fitted = [wmf.fit(surplus, h, factors=5, sweeps=1, seed=4, **RIDGES) for h in models]
    for other in fitted[1:]:
        assert np.array_equal(other.beta, fitted[0].beta)
        assert np.array_equal(other.theta, fitted[0].theta)
    assert not np.array_equal(wmf.fit(surplus, factors=5, seed=5, **RIDGES).beta, fitted[0].beta)


def test_same_seed_same_factors():
    surplus = wmf.log_surplus(plays_of(MANY, 40), ALPHA, EPS)
    one, two = (wmf.fit(surplus, features_of(40), factors=5, sweeps=3, **RIDGES) for _ in range(2))
    for name in ("theta", "beta", "w"):
        assert np.array_equal(getattr(one, name), getattr(two, name))


def test_cold_factors_are_w_h():
    h, w = features_of(4, 3), features_of(4, 2)
    by_hand = [[sum(h[i, f] * w[f, k] for f in range(3)) for k in range(2)] for i in range(4)]
    assert np.allclose(wmf.cold_factors(h, w[:3]), by_hand)
    assert np.allclose(wmf.cold_factors(h, w), np.array(by_hand) + w[3])


@pytest.mark.parametrize("width", [1, 2, 5])
def test_cold_factors_refuse_another_width(width):
    with pytest.raises(ValueError, match=f"w has 4 rows, the features have {width} columns"):
        wmf.cold_factors(features_of(3, width), np.ones((4, 2)))


def test_confidence_of_a_play_is_the_papers():
    plays = sp.csr_matrix([[0, 1, 7], [3, 0, 0]])
    surplus = wmf.log_surplus(plays, 2.0, 1e-6)
    assert np.array_equal(surplus.toarray() > 0, plays.toarray() > 0)
    assert np.allclose(1 + surplus.data, 28.631, atol=5e-4)  # 1 + 2 ln(1 + 1e6)
    assert np.allclose(wmf.log_surplus(plays, 3.0, 1.0).data, 3 * np.log(2))
    counted = wmf.log_surplus(plays, 2.0, 1e-6, binarise=False)
    assert np.allclose(counted.data, 2 * np.log(1 + np.array([1, 7, 3]) * 1e6))


@pytest.mark.parametrize(("alpha", "eps"), [(0, 1e-6), (2, 0), (-1, 1e-6)])
def test_confidence_needs_positive_parameters(alpha, eps):
    with pytest.raises(ValueError, match="must be positive"):
        wmf.log_surplus(sp.csr_matrix([[1]]), alpha, eps)


@pytest.mark.parametrize("count", [0, -2])
def test_confidence_refuses_a_stored_pair_without_plays(count):
    with pytest.raises(ValueError, match="positive counts"):
        wmf.log_surplus(sp.csr_matrix(([1, count], ([0, 0], [0, 1])), (1, 2)), 2.0, 1e-6)


def test_fit_refuses_what_does_not_fit():
    surplus = wmf.log_surplus(plays_of([2], 4), ALPHA, EPS)
    with pytest.raises(ValueError, match="3 rows for 4 items"):
        wmf.fit(surplus, features_of(3), factors=2, **RIDGES)
    surplus.data[0] = 0.0
    with pytest.raises(ValueError, match="every stored pair must be positive"):
        wmf.fit(surplus, factors=2, **RIDGES)
    surplus.data[0] = 1.0
    for ridges in ({"lambda_theta": 0.0}, {"lambda_beta": -1.0}):
        with pytest.raises(ValueError, match="must be positive"):
            wmf.fit(surplus, factors=2, **(RIDGES | ridges))


def test_validation_is_seen_after_every_sweep():
    surplus = wmf.log_surplus(plays_of(MANY, 40), ALPHA, EPS)
    seen = []

    def validate(theta, beta):
        seen.append((theta.copy(), beta.copy()))
        return {"NDCG": len(seen)}

    fitted = wmf.fit(surplus, factors=3, sweeps=4, validate=validate, **RIDGES)
    checked = [row for row in fitted.history if row["step"] == "validation"]
    assert [(row["sweep"], row["NDCG"]) for row in checked] == [(1, 1), (2, 2), (3, 3), (4, 4)]
    for sweeps, (theta, beta) in enumerate(seen, 1):
        alone = wmf.fit(surplus, factors=3, sweeps=sweeps, **RIDGES)
        assert np.array_equal(theta, alone.theta) and np.array_equal(beta, alone.beta)


def test_given_means_are_a_prior_that_stays():
    surplus = wmf.log_surplus(plays_of(MANY, 40), ALPHA, EPS)
    means = np.random.default_rng(2).random((40, 4)).astype(np.float32)
    fitted = wmf.fit(surplus, means=means, factors=4, sweeps=3, trace=True, **RIDGES)
    start = np.random.default_rng(0).standard_normal((surplus.shape[0], 4)) * 0.01
    theta = start.astype(np.float32)
    for _ in range(3):
        beta = solve_slowly(theta, surplus.T.tocsr(), RIDGES["lambda_beta"], means)
        theta = solve_slowly(beta, surplus, RIDGES["lambda_theta"])
    assert np.allclose(fitted.beta, beta, atol=1e-3) and fitted.w is None
    objective = [row["objective"] for row in fitted.history]
    assert (np.diff(objective) <= 1e-6 * np.abs(objective[:-1])).all()
    strong = wmf.fit(surplus, means=means, factors=4, lambda_theta=2.0, lambda_beta=1e8)
    assert np.allclose(strong.beta, means, atol=1e-3)


def test_means_of_another_shape_are_refused():
    surplus = wmf.log_surplus(plays_of(MANY, 40), ALPHA, EPS)
    for wrong in (np.zeros((40, 3)), np.zeros((39, 4))):
        with pytest.raises(ValueError, match="40 items x 4 factors"):
            wmf.fit(surplus, means=wrong, factors=4, **RIDGES)
    with pytest.raises(ValueError, match="without features"):
        wmf.fit(surplus, features_of(40), means=np.zeros((40, 4)), factors=4, **RIDGES)


@pytest.mark.parametrize("content", [False, True])
@pytest.mark.parametrize("broken_at", [1, 2, 4])
@pytest.mark.fault(
    "alternating least squares broken off", "goes on after the last sweep kept, to the same bits"
)
def test_a_fit_goes_on_from_its_checkpoint_to_the_same_bits(content, broken_at, tmp_path):
    surplus = wmf.log_surplus(plays_of([5, 9, 2, 17] * 9, 40), ALPHA, EPS)
    features = features_of(40) if content else None

    def fit(checkpoint, end=99):
        seen = []

        def validate(theta, beta):
            seen.append(theta)
            if len(seen) == end:
                raise KeyboardInterrupt
            return {"NDCG": float(np.abs(theta).sum())}

        given = {"factors": 6, "sweeps": 5, "trace": True, "validate": validate, **RIDGES}
        return wmf.fit(surplus, features, checkpoint=checkpoint, **given), len(seen)

    whole, _ = fit(None)
    kept = Checkpoint(tmp_path / "kept.npz", 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit(kept, broken_at)
    resumed, sweeps = fit(Checkpoint(tmp_path / "kept.npz", 0.0))
    assert sweeps == 5 - (broken_at - 1)
    assert np.array_equal(resumed.theta, whole.theta) and np.array_equal(resumed.beta, whole.beta)
    assert whole.w is None or np.array_equal(resumed.w, whole.w)
    assert resumed.history == whole.history
