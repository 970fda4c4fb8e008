"""Content regression in the manner of van den Oord, Dieleman and Schrauwen (NIPS 2013).

WMF is fitted first, without content; a regression then learns its song factors from content and
predicts factors y_i for songs that nobody has played. It minimises one of their two errors (sec.
4.2), the mean squared one (MSE), sum_i ||beta_i - y_i||^2, or the weighted prediction error (WPE),
sum_ui c_ui (p_ui - theta_u.y_i)^2. Both are, but for a constant, sum_i y_i'A_i y_i - 2 b_i.y_i,
with A_i = I and b_i = beta_i for MSE. For WPE, with s = c - 1 and sums over the users of song i,

    A_i = Theta'Theta + sum s_ui theta_u theta_u',    b_i = sum c_ui theta_u.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import block_diag
from scipy.sparse.linalg import LinearOperator, cg
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from repro import kernels


def quadratic(theta: np.ndarray, surplus: sp.csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Return A (items x K x K; 0.9 GB at the paper's size, K = 50) and b (items x K) of the WPE."""
    by_item = surplus.T.tocsr()
    shared = theta.T @ theta
    a = np.empty((by_item.shape[0], *shared.shape), np.float32)

    def fill(items):
        for item in items:
            plays = slice(by_item.indptr[item], by_item.indptr[item + 1])
            t = theta[by_item.indices[plays]]
            a[item] = shared + (t.T * by_item.data[plays]) @ t

    kernels.parallel_map(fill, np.array_split(np.arange(len(a)), 64))
    return a, ((by_item + (by_item > 0)) @ theta).astype(np.float32)


def fit(
    features, beta, error=None, *, penalty: float, units=0, epochs=10, seed=0, device="cpu"
) -> Callable[[np.ndarray], np.ndarray]:
    """Fit a map from content to song factors: a function from n x F to n x K in float32.

    Parameters
    ----------
    features, beta : array, items x F and items x K
        Content, which is standardised here (a constant column has no say), and WMF's factors.
    error : arrays A and b, optional
        Of the WPE, from :func:`quadratic`; MSE when absent.
    units : int
        Width of one hidden ReLU layer (NIPS 2013 sec. 5.2: 1,000), trained in mini-batches of 256;
        0 for a linear map, which is fitted to the minimum.
    penalty : float
        Ridge on the linear map, the intercept free; weight decay of the network. Errors are divided
        by the mean curvature of A and, for a network, by the variance of beta: a penalty weighs
        alike whatever the loss and the scale of the factors.
    """
    scaler, k = StandardScaler().fit(features), beta.shape[1]
    scale = np.where(scaler.var_ > 0, scaler.scale_, np.inf)

    def standardise(features):
        return ((np.asarray(features) - scaler.mean_) / scale).astype(np.float32)

    x = standardise(features)
    a, b = error or (np.eye(k, dtype=np.float32)[None], beta.astype(np.float32))
    curvature = np.trace(a.mean(0)) / k
    a, b = a / curvature, b / curvature
    if units:
        spread = float(np.sqrt(beta.var(0).mean())) or 1.0  # one each would change the errors
        net = _network(x, a, b / spread, units, penalty, epochs, seed, device)
        return lambda features: spread * net(standardise(features))
    if error:
        w, intercept = _weighted(x, a, b, penalty)
    else:
        model = Ridge(penalty).fit(x, beta)
        w, intercept = model.coef_.T, model.intercept_
    return lambda features: (standardise(features) @ w + intercept).astype(np.float32)


def _weighted(x, a, b, penalty: float) -> tuple[np.ndarray, np.ndarray]:
    """Return W (F x K) and the intercept at the minimum, by conjugate gradients."""
    # The preconditioner is the inverse for A_i that are all as their mean: a dozen steps do.
    values, vectors = np.linalg.eigh((x.T @ x).astype(np.float64))
    values, vectors = np.append(values, len(x)), block_diag(vectors, 1.0)
    x = np.column_stack([x, np.ones(len(x), np.float32)])
    mean_values, mean_vectors = np.linalg.eigh(a.mean(0, dtype=np.float64))
    ridge = np.append(np.full(x.shape[1] - 1, penalty), 0.0)[:, None]
    curvature = np.maximum(values, 0)[:, None] * np.maximum(mean_values, 1e-6) + ridge
    shape = curvature.shape

    def gradient(w):
        y = x @ w.reshape(shape).astype(np.float32)
        return (x.T @ (a @ y[:, :, None])[:, :, 0] + ridge * w.reshape(shape)).ravel()

    def precondition(w):
        turned = (vectors.T @ w.reshape(shape) @ mean_vectors) / curvature
        return (vectors @ turned @ mean_vectors.T).ravel()

    size = (curvature.size, curvature.size)
    operator, inverse = (LinearOperator(size, f, dtype=float) for f in (gradient, precondition))
    w = cg(operator, (x.T @ b).ravel(), M=inverse, rtol=1e-5, maxiter=50)[0].reshape(shape)
    return w[:-1].astype(np.float32), w[-1]


def _network(x, a, b, units: int, penalty: float, epochs: int, seed: int, device: str):
    """Return a function from content to factors: a network on top of the best constant factors."""
    torch.manual_seed(seed)
    k, linear = b.shape[1], torch.nn.Linear
    net = torch.nn.Sequential(linear(x.shape[1], units), torch.nn.ReLU(), linear(units, k))
    net, centre = net.to(device), np.linalg.solve(a.mean(0), b.mean(0))
    optimiser = torch.optim.Adam(net.parameters(), weight_decay=penalty, fused=device == "cpu")
    x, a, b, centre = (torch.from_numpy(part).to(device) for part in (x, a, b, centre))
    a = a.expand(len(b), k, k)
    for _ in range(epochs):
        for batch in torch.randperm(len(x)).to(device).split(256):
            y = centre + net(x[batch])
            error = (y * ((a[batch] @ y[:, :, None])[:, :, 0] - 2 * b[batch])).mean()
            optimiser.zero_grad()
            error.backward()
            optimiser.step()
    return torch.no_grad()(lambda x: (centre + net(torch.from_numpy(x).to(device))).cpu().numpy())
