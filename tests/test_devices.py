"""Other numbers of threads, and a GPU, give what one thread does within the README's tolerance."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from repro.models import tagnet, wmf

TOLERANCE = 1e-3  # as a share of the expected values' spread
gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def factors(device):
    rng = np.random.default_rng(0)
    plays = sp.random(300, 200, 0.05, "csr", np.float32, rng, lambda k: rng.integers(1, 9, k))
    surplus, h = wmf.log_surplus(plays, 2.0, 1e-6), rng.random((200, 40)).astype(np.float32)
    settings = {"lambda_theta": 1.0, "lambda_beta": 1.0, "factors": 12, "sweeps": 5}
    return list(wmf.fit(surplus, h, device=device, **settings).arrays().values())


def logits(device):
    histograms = np.random.default_rng(0).dirichlet(np.full(256, 0.1), 1_000).astype(np.float32)
    tags = sp.csr_matrix((histograms[:, :40] > 0.01).astype(np.int8))
    settings = {"hidden": (300, 300), "dropout": 0.0, "epochs": 3}  # a GPU draws other masks
    net, _ = tagnet.train(histograms, tags, device=device, **settings)
    return [tagnet.predict(net, histograms)]


@pytest.mark.parametrize("fit", [factors, logits])
@pytest.mark.parametrize(
    "elsewhere", [(2, "cpu"), (3, "cpu"), pytest.param((1, "cuda"), marks=gpu)]
)
def test_threads_and_devices_agree(fit, elsewhere, one_thread):
    found = []
    for threads, device in ((1, "cpu"), elsewhere):
        torch.set_num_threads(threads)
        found.append(fit(device))
    for one, other in zip(*found, strict=True):
        assert np.abs(other - one).max() / one.std() < TOLERANCE
