"""Kernels on processors with shorter vectors, and the cache of what was compiled."""

import subprocess
import sys

import numpy as np
import pytest

from repro import kernels
from repro.config import ROOT

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
CASES = "edges or left_behind or slow_way or weighted or conjugate or agrees or equal or tell_apart"


@pytest.mark.skipif(kernels.LANES == 8, reason="this processor's vectors are short anyway")
def test_kernels_are_right_with_short_vectors():
    tests = [ROOT / "tests" / f"test_{name}.py" for name in ("wmf", "metrics", "vq")]
    command = [sys.executable, "-W", "ignore", "-c", NARROW, *tests, "-k", CASES]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "passed" in done.stdout


@pytest.mark.parametrize("rows", [1, 3, 1000])
@pytest.mark.parametrize("columns", [1, 16, 112])
def test_aligned_space_begins_at_a_cache_line(rows, columns):
    space = kernels.aligned(rows, columns)
    assert space.shape == (rows, columns) and space.dtype == np.float32 and not space.any()
    assert space.ctypes.data % 64 == 0 and space.flags.c_contiguous
