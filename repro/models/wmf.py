"""Weighted matrix factorisation with an optional content prior, by alternating least squares.

One solver serves plain WMF (Hu, Koren and Volinsky 2008) and the content-aware model of the paper;
without features the prior mean of every song factor is zero.

==========  =======================  =====================================================
paper       here                     shape
==========  =======================  =====================================================
Theta, B    ``theta``, ``beta``      users x K, items x K (rows, where the paper has columns)
W           ``w``, its transpose     F x K, or (F + 1) x K with the bias row last
H           ``features``             items x F
c_ui        ``1 + surplus[u, i]``    the surplus is stored for the observed pairs only
==========  =======================  =====================================================
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import numpy as np
import scipy.sparse as sp
import torch
from scipy.linalg import cho_solve

from repro import kernels
from repro.models import Factors


def log_surplus(plays: sp.csr_matrix, alpha: float, eps: float, binarise: bool = True):
    """Return the confidence above one of each observed pair, ``alpha log(1 + r / eps)``.

    From ``plays`` r (csr_matrix, users x items; a stored zero is an error) to a csr_matrix of
    float32 (ISMIR sec. 3.2, with ``alpha`` 2 and ``eps`` 1e-6). ``binarise`` counts each pair as
    one play, as the paper does, which makes the confidence constant.
    """
    if alpha <= 0 or eps <= 0:
        raise ValueError(f"alpha and eps must be positive, got alpha={alpha}, eps={eps}")
    if plays.nnz and plays.data.min() <= 0:
        raise ValueError("plays must hold positive counts only")
    counts = np.ones(plays.nnz) if binarise else plays.data.astype(np.float64)
    data = (alpha * np.log1p(counts / eps)).astype(np.float32)
    return sp.csr_matrix((data, plays.indices, plays.indptr), shape=plays.shape)


class ContentPrior:
    """The map from features to the prior mean of the song factors, eq. (3), its inverse in float64.

    ``lambda_w`` is the ridge on W. A ``bias`` appends a column of ones to the features (items x F)
    whose row of W is not penalised, as the authors' code does; the paper's eq. (3) has none.
    """

    def __init__(self, features, lambda_w: float, bias: bool):
        self.lambda_w = lambda_w
        h = np.asarray(features, dtype=np.float32)
        self.features = np.column_stack([h, np.ones(len(h), np.float32)]) if bias else h
        self.penalty = np.append(np.ones(h.shape[1]), [0.0] * bias)
        gram = kernels.cross_product(self.features, self.features)
        factor = np.linalg.cholesky(gram + lambda_w * np.diag(self.penalty))
        self._inverse = cho_solve((factor, True), np.eye(len(gram)))

    def solve(self, beta: torch.Tensor, w: torch.Tensor, mean: torch.Tensor) -> torch.Tensor:
        """Return the W of eq. (3) for the song factors ``beta``, from ``w`` with its prior means.

        Its change comes from ``beta - mean``: float32 products do, as sweeps mend one another.
        """
        gap = kernels.cross_product(self.features, (beta - mean).cpu().numpy(), np.float32)
        right = gap - self.lambda_w * self.penalty[:, None] * w.cpu().numpy()
        return w + torch.from_numpy(kernels.multiply_rows(self._inverse, right)).to(w.device)

    def mean(self, w: torch.Tensor) -> torch.Tensor:
        """Return the prior means ``W h_i``, items x K."""
        return torch.from_numpy(kernels.multiply_rows(self.features, w.cpu().numpy())).to(w.device)

    def ridge(self, w: torch.Tensor) -> float:
        """Return lambda_W times the penalised squared norm of W."""
        return self.lambda_w * float(self.penalty @ (w.cpu().double().numpy() ** 2).sum(1))


def cold_factors(features, w: np.ndarray) -> np.ndarray:
    """Return the song factors that content alone gives, ``W h_i`` (out-of-matrix prediction).

    A ``w`` of one row more than there are features carries the bias in its last row.
    """
    n = np.shape(features)[1]
    if len(w) not in (n, n + 1):
        raise ValueError(f"w has {len(w)} rows, the features have {n} columns")
    return np.asarray(features, dtype=np.float32) @ w[:n] + w[n:].sum(0)


def objective(surplus, theta, beta, lambda_theta, lambda_beta, prior=None, w=None) -> float:
    """Return what the sweep minimises: the negative log posterior plus the ridge on W.

    Eq. (3) is exact coordinate descent only when the ridge is ``lambda_beta lambda_W / 2 ||W||^2``;
    the paper's L lacks that term. The factors are tensors, as in :func:`fit`; ``prior`` has
    ``mean(w)``, the prior means of beta: a :class:`ContentPrior`, with its ``w``, or given ones.
    """
    t, b = theta.double(), beta.double()
    total = float(((t.T @ t) * (b.T @ b)).sum())  # the sum of all squared predictions
    pairs = surplus.tocoo()  # and of the observed ones the rest
    blocks = (torch.from_numpy(x).split(2**19) for x in (pairs.row, pairs.col, pairs.data))
    for block in zip(*blocks, strict=True):
        u, i, s = (x.to(theta.device) for x in block)
        p = (theta[u] * beta[i]).sum(1).double()
        total += float(((1.0 + s.double()) * (1.0 - p) ** 2 - p**2).sum())
    total += lambda_theta * float((t**2).sum())
    gap = b if prior is None else b - prior.mean(w).double()
    total += lambda_beta * float((gap**2).sum())
    if w is not None:
        total += lambda_beta * prior.ridge(w)
    return total / 2


def fit(
    surplus: sp.csr_matrix,
    features=None,
    *,
    means=None,
    factors: int,
    lambda_theta: float,
    lambda_beta: float,
    lambda_w: float = 1.0,
    bias: bool = True,
    sweeps: int = 10,
    seed: int = 0,
    device: str = "cpu",
    trace: bool = False,
    validate: Callable[[np.ndarray, np.ndarray], dict] | None = None,
    start: Factors | None = None,
    checkpoint=None,
) -> Factors:
    """Fit WMF, or the content-aware model when ``features`` are given, eqs. (1)-(3).

    A sweep updates items, users, then W, the order of the authors' code. Theta starts from the
    same draw of ``0.01 N(0, 1)`` whatever the features, and W from zero, so that all models make
    the same first step.

    Parameters
    ----------
    surplus : csr_matrix, users x items
        Confidence above one, from :func:`log_surplus`.
    features : array, items x F, optional
    means : array, items x K, optional
        Prior means of the song factors that stay as they are, in place of features: the topic
        proportions of CTR, from which the users are fitted first (Wang and Blei 2011).
    lambda_theta, lambda_beta, lambda_w, bias
        Precisions of the priors; see :class:`ContentPrior` for the last two.
    trace, validate
        What ``history`` records: the objective after every half-step, and the dict that a function
        gives when it is called after every sweep with theta and beta.
    start : Factors, optional
        Where to set out from, in place of that draw and of zeros.
    checkpoint : optional
        Has ``load()``, the state to go on from or None, and ``save(state)``, called after every
        sweep with a function that returns it: see :class:`repro.pipeline.run.Checkpoint`.
    """
    _check(surplus, features, means, factors, lambda_theta, lambda_beta)
    n_users, n_items = surplus.shape
    draw = np.random.default_rng(seed).standard_normal((n_users, factors)) * 0.01
    theta = torch.from_numpy(draw.astype(np.float32)).to(device)
    beta, w, prior = torch.zeros(n_items, factors, device=device), None, None
    by_user = kernels.Rows.of(surplus, factors, device)
    by_item = kernels.Rows.of(surplus.T.tocsr(), factors, device)
    if means is not None:
        fixed = torch.from_numpy(np.array(means, np.float32)).to(device)
        prior = SimpleNamespace(mean=lambda w: fixed)
        theta = kernels.solve_rows(fixed, by_user, lambda_theta)  # CTR sets out from its topics
    elif features is not None:
        prior = ContentPrior(features, lambda_w, bias)
        w = torch.zeros(prior.features.shape[1], factors, device=device)
    if start is not None:
        theta = torch.from_numpy(start.theta).to(device)
        w = None if w is None else torch.from_numpy(start.w).to(device)
    done, history = 0, []
    if checkpoint is not None and (kept := checkpoint.load()) is not None:
        done, history = kept["sweep"], kept["history"]
        theta, beta, w = (x if x is None else x.to(device) for x in kept["factors"])

    def note(step):
        if trace:
            value = objective(surplus, theta, beta, lambda_theta, lambda_beta, prior, w)
            history.append({"sweep": sweep, "step": step, "objective": value})

    def state():
        kept = [x if x is None else x.cpu() for x in (theta, beta, w)]
        return {"sweep": sweep, "history": history, "factors": kept}

    for sweep in range(done + 1, sweeps + 1):
        mean = None if prior is None else prior.mean(w)
        beta = kernels.solve_rows(theta, by_item, lambda_beta, mean)
        note("items")
        theta = kernels.solve_rows(beta, by_user, lambda_theta)
        note("users")
        if w is not None:
            w = prior.solve(beta, w, mean)
            note("W")
        if validate is not None:
            scores = validate(theta.cpu().numpy(), beta.cpu().numpy())
            history.append({"sweep": sweep, "step": "validation", **scores})
        if checkpoint is not None:
            checkpoint.save(state)
    theta, beta, w = (x if x is None else x.cpu().numpy() for x in (theta, beta, w))
    return Factors(theta, beta, w=w, history=history)


def _check(surplus, features, means, factors, lambda_theta, lambda_beta) -> None:
    n_items = surplus.shape[1]
    if features is not None and len(features) != n_items:
        raise ValueError(f"features have {len(features)} rows for {n_items} items")
    if means is not None and (features is not None or np.shape(means) != (n_items, factors)):
        wanted = f"{n_items} items x {factors} factors, without features"
        raise ValueError(f"means must be {wanted}; got {np.shape(means)}")
    if surplus.nnz and surplus.data.min() <= 0:
        raise ValueError("the surplus of every stored pair must be positive")
    if min(lambda_theta, lambda_beta) <= 0:
        raise ValueError("lambda_theta and lambda_beta must be positive")
