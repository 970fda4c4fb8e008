"""The metrics against lists worked by hand and against a slow version that sorts."""

import math

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import ranks_slowly

from repro.evaluation import metrics


def scored(scores):
    """Return factors whose products are exactly ``scores``."""
    scores = np.atleast_2d(np.asarray(scores, np.float32))
    return scores, np.eye(scores.shape[1], dtype=np.float32)


def pairs(rows, n_items):
    """Return the matrix of users whose items are listed in ``rows``."""
    dense = np.zeros((len(rows), n_items), np.int32)
    for row, items in zip(dense, rows, strict=True):
        row[list(items)] = 1
    return sp.csr_matrix(dense)


def slow(scores, heldout, exclude, recall_at):
    """Sort each user's list and apply the definitions one term at a time."""
    rows = {}
    for user, (score, held) in enumerate(zip(scores, heldout.toarray(), strict=True)):
        out = exclude.toarray()[user] > 0
        listed = sorted((i for i in range(len(score)) if not out[i]), key=lambda i: (-score[i], i))
        relevant = [held[i] > 0 for i in listed]
        n = sum(relevant)
        if n == 0:
            continue
        row = {f"R@{m}": sum(relevant[:m]) / n for m in recall_at}
        for name, discounts in {
            "NDCG": [1 / math.log2(i + 1) for i in range(1, len(listed) + 1)],
            "NDCG (code)": [1.0] + [1 / math.log2(i) for i in range(2, len(listed) + 1)],
        }.items():
            gain = sum(d for d, r in zip(discounts, relevant, strict=True) if r)
            row[name] = gain / sum(discounts[:n])
        at = [i for i, r in enumerate(relevant) if r]
        row["MAP"] = sum(sum(relevant[: i + 1]) / (i + 1) for i in at) / n
        rows[user] = row
    return pd.DataFrame.from_dict(rows, orient="index")


def test_ranks_of_a_list_worked_by_hand():
    # listed: item 2 (9), 0 (7), 4 (5), 3 (1); item 1 (8) is excluded
    theta, beta = scored([7, 8, 9, 1, 5])
    heldout, seen = pairs([[0, 3]], 5), pairs([[1]], 5)
    assert list(metrics.heldout_ranks(theta, beta, heldout, seen)) == [1, 3]
    assert list(metrics.heldout_ranks(theta, beta, heldout)) == [2, 4]


def test_metrics_of_a_list_worked_by_hand():
    # two held-out items at the 2nd and 4th place
    theta, beta = scored([7, 8, 9, 1, 5])
    frame = metrics.evaluate(theta, beta, pairs([[0, 3]], 5), pairs([[1]], 5), (1, 2, 3, 4))
    one = frame.loc[0]
    assert [one[f"R@{m}"] for m in (1, 2, 3, 4)] == [0, 0.5, 0.5, 1]
    # DCG = 1/log2 3 + 1/log2 5 = 0.63093 + 0.43068; ideal 1/log2 2 + 1/log2 3 = 1.63093
    assert one["NDCG"] == pytest.approx(1.06161 / 1.63093, abs=1e-5)
    # the code's discounts are 1, 1, 1/log2 3, 1/log2 4: DCG = 1 + 1/2, ideal 1 + 1
    assert one["NDCG (code)"] == pytest.approx(0.75)
    # precision is 1/2 at the 2nd place and 2/4 at the 4th
    assert one["MAP"] == pytest.approx(0.5)


@st.composite
def rankings(draw):
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n_users, n_items, k = draw(st.tuples(st.integers(1, 9), st.integers(1, 14), st.integers(1, 3)))
    part = rng.choice(3, (n_users, n_items), p=[0.5, 0.25, 0.25])
    part[0, 0] = 1  # at least one pair is held out
    levels = draw(st.integers(1, 4))  # few levels, many ties; small integers, exact products
    theta, beta = (rng.integers(-levels, levels + 1, (n, k)) for n in (n_users, n_items))
    return theta, beta, sp.csr_matrix((part == 1) * 1), sp.csr_matrix((part == 2) * 1)


@given(rankings())
@settings(deadline=None, max_examples=200)
def test_metrics_equal_the_slow_version(ranking):
    theta, beta, heldout, exclude = ranking
    found = metrics.evaluate(theta, beta, heldout, exclude, (1, 3, 10))
    expected = slow(theta @ beta.T, heldout, exclude, (1, 3, 10))
    pd.testing.assert_frame_equal(found, expected, check_names=False, check_index_type=False)


@given(rankings())
@settings(deadline=None, max_examples=50)
def test_ranks_equal_those_of_sorting(ranking):
    assert np.array_equal(metrics.heldout_ranks(*ranking), ranks_slowly(*ranking))


@pytest.mark.parametrize("k", [1, 4, 101])
def test_ranks_are_those_of_sorting_when_neither_users_nor_items_fit_one_block(k):
    rng = np.random.default_rng(1)
    part = rng.choice(3, (900, 1500), p=[0.99, 0.005, 0.005])
    part[5] = 0
    part[6] = 1
    heldout, exclude = (sp.csr_matrix((part == p) * 1) for p in (1, 2))
    theta, beta = rng.standard_normal((900, k)), rng.standard_normal((1500, k))
    beta[700:900] = beta[:200]  # equal items in different tiles
    ranking = theta, beta, heldout, exclude
    assert np.array_equal(metrics.heldout_ranks(*ranking), ranks_slowly(*ranking))


@pytest.mark.parametrize("items", [1, 63, 64, 65, 1023, 1024, 1025, 2048])
def test_ranks_are_those_of_sorting_at_the_edges_of_a_tile(items):
    rng = np.random.default_rng(items)
    part = rng.choice(3, (30, items), p=[0.6, 0.2, 0.2])
    theta, beta = rng.standard_normal((30, 5)), rng.standard_normal((items, 5))
    beta[-1] = beta[0]
    ranking = theta, beta, *(sp.csr_matrix((part == p) * 1) for p in (1, 2))
    assert np.array_equal(metrics.heldout_ranks(*ranking), ranks_slowly(*ranking))


@pytest.mark.parametrize("change", ["theta", "beta", "k", "exclude"])
def test_shapes_that_do_not_fit_are_refused(change):
    shapes = {"theta": (4, 3), "beta": (6, 3), "exclude": (4, 6)}
    shapes |= {
        "theta": {"theta": (5, 3)},
        "beta": {"beta": (5, 3)},
        "k": {"theta": (4, 2)},
        "exclude": {"exclude": (4, 7)},
    }[change]
    heldout = sp.csr_matrix(np.eye(4, 6))
    theta, beta = np.ones(shapes["theta"]), np.ones(shapes["beta"])
    with pytest.raises(ValueError, match="do not fit"):
        metrics.heldout_ranks(theta, beta, heldout, sp.csr_matrix(shapes["exclude"]))


def test_a_stored_zero_is_a_pair_like_any_other():
    heldout = sp.csr_matrix(([1.0], ([0], [1])), (2, 3))
    exclude = sp.csr_matrix(([0.0], ([0], [1])), (2, 3))
    with pytest.raises(ValueError, match="both held out and excluded"):
        metrics.heldout_ranks(np.ones((2, 1)), np.ones((3, 1)), heldout, exclude)


def test_scores_that_float32_cannot_tell_apart_are_ranked_all_the_same():
    rng = np.random.default_rng(2)
    theta = rng.standard_normal((40, 60)).astype(np.float32)
    beta = np.repeat(rng.standard_normal((1, 60)).astype(np.float32), 1200, axis=0)
    beta = np.nextafter(beta, rng.choice([-np.inf, 0, np.inf], beta.shape).astype(np.float32))
    heldout = sp.csr_matrix((rng.random((40, 1200)) < 0.02) * 1)
    assert len(np.unique(beta @ theta[0])) < len(np.unique(beta @ theta[0].astype(float))) / 2
    found = metrics.heldout_ranks(theta, beta, heldout)
    expected = ranks_slowly(theta, beta, heldout)
    # Sums of float64 differ in their last place with the order, and some of these by no more.
    assert (np.abs(found - expected) <= 1).all() and (found == expected).mean() > 0.99


def test_number_of_threads_changes_no_rank():
    rng = np.random.default_rng(3)
    ranking = rng.standard_normal((700, 9)), rng.standard_normal((600, 9))
    heldout, before = sp.csr_matrix((rng.random((700, 600)) < 0.01) * 1), torch.get_num_threads()
    found = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        found.append(metrics.heldout_ranks(*ranking, heldout))
    torch.set_num_threads(before)
    assert np.array_equal(*found)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e300])
@pytest.mark.parametrize("side", [0, 1])
def test_factors_that_are_not_finite_are_an_error(bad, side):
    factors = [np.ones((1, 2)), np.ones((3, 2))]
    factors[side][0, 1] = bad
    with pytest.raises(ValueError, match="finite"), np.errstate(over="ignore"):
        metrics.evaluate(*factors, pairs([[0]], 3))


def test_bootstrap_interval_is_that_of_the_mean():
    values = np.random.default_rng(0).normal(3.0, 2.0, 2000)
    stats = metrics.bootstrap(pd.DataFrame({"a": values, "b": values + 1}), 2000, 1)
    assert np.allclose(stats["mean"], [values.mean(), values.mean() + 1])
    error = 1.96 * values.std() / math.sqrt(2000)  # normal theory
    assert np.allclose(stats["mean"] - stats["low"], error, rtol=0.08)
    assert np.allclose(stats["high"] - stats["mean"], error, rtol=0.08)


def test_a_user_of_two_seeds_is_no_two_users():
    frame = pd.DataFrame({"a": np.random.default_rng(3).random(60)})
    once, twice = (metrics.bootstrap(pd.concat([frame] * n), 200, 0) for n in (1, 2))
    assert np.allclose(once, twice)
    others = pd.concat([frame, frame.set_axis(np.arange(60, 120))])
    apart = metrics.bootstrap(others, 200, 0).loc["a"]
    assert apart["high"] - apart["low"] < 0.9 * (once["high"] - once["low"])["a"]
