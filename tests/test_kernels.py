"""Rows of alternating least squares against float64, and the vectors that they are made of."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import apart, plays_of, solve_slowly

from repro import kernels
from repro.models import wmf

pytestmark = pytest.mark.usefixtures("one_thread")
EDGES = [7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 129]


def problem(lengths, columns, k, seed):
    """Return fixed factors, surplus and prior means of rows with so many plays each."""
    rng = np.random.default_rng(seed)
    plays = plays_of(lengths, columns, seed, most=9)
    surplus = wmf.log_surplus(plays, 2.0, 1e-6, binarise=False)
    return rng.standard_normal((columns, k)), surplus, rng.standard_normal((len(lengths), k))


def solve(fixed, surplus, ridge, mean=None):
    """Return what the fast solver makes of numpy arrays."""
    rows = kernels.Rows.of(surplus, fixed.shape[1])
    mean = None if mean is None else torch.from_numpy(mean).float()
    return kernels.solve_rows(torch.from_numpy(fixed).float(), rows, ridge, mean).numpy()


@pytest.mark.parametrize("gpu", [False, True])
@given(st.integers(0, 10**6), st.integers(1, 40), st.integers(1, 150), st.integers(1, 14))
@settings(deadline=None, max_examples=12)
def test_rows_of_any_shape_are_weighted_least_squares(gpu, seed, k, columns, n_rows):
    lengths = np.random.default_rng(seed).integers(0, columns + 1, n_rows)
    fixed, surplus, mean = problem(lengths, columns, k, seed)
    expected = solve_slowly(fixed, surplus, 2.0, mean)
    with pytest.MonkeyPatch.context() as patch:
        if gpu:  # its algebra, in several batches
            patch.setattr(kernels, "_on_processor", lambda device: False)
            patch.setattr(kernels, "_BATCH_FLOATS", 64 * k)
        found = solve(fixed, surplus, 2.0, mean)
    # What a row is summed from: where that cancels, float32 cannot do better.
    weight = surplus + (surplus > 0)
    terms = weight @ np.linalg.norm(fixed, axis=1) / (2 + np.linalg.eigvalsh(fixed.T @ fixed)[0])
    assert apart(found, expected, terms) < 1e-5


@pytest.mark.parametrize("k", [1, 8, 15, 17, 49, 64, 100, 112])
def test_rows_at_the_edges_of_panels_and_vectors(k):
    # Many columns of independent factors: nothing cancels, so each row is held to its own length.
    lengths = [0, 1, *EDGES, k - 1, k, k + 1, 400, *EDGES, 0, 1]
    fixed, surplus, mean = problem(lengths, 4 * k + 400, k, seed=k)
    for means in (None, mean):
        found = solve(fixed, surplus, 2.0, means)
        assert apart(found, solve_slowly(fixed, surplus, 2.0, means)) < 1e-5


@pytest.mark.parametrize("k", [49, 100])
def test_what_earlier_rows_left_behind_reaches_no_result(k):
    lengths = [17, 49, 3, 33, 0, 90, 16, 25, 100, 18, 120, 1, 57]
    fixed, surplus, _ = problem(lengths, 900, k, seed=3)
    rows, expected = kernels.Rows.of(surplus, k), solve_slowly(fixed, surplus, 2.0)
    for order in (np.arange(len(lengths)), np.argsort(lengths), np.arange(len(lengths))[::-1]):
        rows.chunks = [torch.from_numpy(order.copy())]
        found = kernels.solve_rows(torch.from_numpy(fixed.astype(np.float32)), rows, 2.0).numpy()
        assert apart(found, expected) < 1e-5


def test_neither_other_rows_nor_threads_change_a_bit():
    fixed, surplus, mean = problem([5, 90, 17, 0, 40, 1, 150, 17] * 9, 150, 21, seed=8)
    whole = solve(fixed, surplus, 2.0, mean)
    for row in range(8):
        assert np.array_equal(solve(fixed, surplus[row], 2.0, mean[row : row + 1])[0], whole[row])
    for threads in (3, 2, 1):
        torch.set_num_threads(threads)
        assert np.array_equal(solve(fixed, surplus, 2.0, mean), whole)


def test_factors_that_do_not_fit_are_refused():
    fixed, surplus, _ = problem([5], 15, 2, seed=8)
    with pytest.raises(ValueError, match="14 fixed factors for 15 columns"):
        solve(fixed[1:], surplus, 2.0)


NARROW = """
import sys, pytest
from llvmlite import binding
features = binding.get_host_cpu_features()
features.update({name: False for name in features if name.startswith("avx512")})
binding.get_host_cpu_features = lambda: features
from repro import kernels
assert kernels.LANES == 8
sys.exit(pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]]))
"""


@pytest.mark.long
@pytest.mark.skipif(kernels.LANES == 8, reason="this processor's vectors are short anyway")
def test_kernels_are_right_with_short_vectors():
    """So they are when both widths share numba's folder: its index tells processors apart."""
    here = Path(__file__).parent
    cases = "edges or left_behind or any_shape or of_sorting or slow_version or tell_apart"
    command = [sys.executable, "-W", "ignore", "-c", NARROW, "-k", cases]
    command += [here / "test_kernels.py", here / "test_metrics.py"]
    assert subprocess.run(command, cwd=here.parent).returncode == 0  # 5 if there was no test
