"""Other numbers of threads, and a GPU, give what one thread does within the README's tolerance."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from repro.models import tagnet, wmf

TOLERANCE = 1e-3
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
ELSEWHERE = [(2, "cpu"), (3, "cpu"), pytest.param(1, "cuda", marks=gpu)]


@pytest.fixture
def threads():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def apart(found, expected):
    """Return the largest difference, as a share of the expected values' spread."""
    return np.abs(found - expected).max() / expected.std()


@pytest.mark.parametrize(("n", "device"), ELSEWHERE)
def test_factors(threads, n, device):
    rng = np.random.default_rng(0)
    plays = sp.random(300, 200, 0.05, "csr", np.float32, rng, lambda k: rng.integers(1, 9, k))
    h = rng.random((200, 40)).astype(np.float32)

    def fit(n, device):
        threads(n)
        ridges = dict(lambda_theta=1.0, lambda_beta=1.0, lambda_w=1.0)
        return wmf.fit(
            wmf.log_surplus(plays, 2.0, 1e-6), h, factors=12, sweeps=5, device=device, **ridges
        )

    one, other = fit(1, "cpu"), fit(n, device)
    for name in ("theta", "beta", "w"):
        assert apart(getattr(other, name), getattr(one, name)) < TOLERANCE


@pytest.mark.parametrize(("n", "device"), ELSEWHERE)
def test_tag_network(threads, n, device):
    rng = np.random.default_rng(0)
    histograms = rng.dirichlet(np.full(256, 0.1), 1_000).astype(np.float32)
    tags = sp.csr_matrix((histograms[:, :40] > 0.01).astype(np.int8))

    def logits(n, device):
        threads(n)
        # A GPU draws other dropout masks.
        net, _ = tagnet.train(
            histograms, tags, hidden=(300, 300), dropout=0.0, epochs=3, device=device
        )
        return tagnet.predict(net, histograms)

    assert apart(logits(n, device), logits(1, "cpu")) < TOLERANCE
