"""Weighted matrix factorisation by this project and by others, all on the same problem.

Each function is a system: it sets up, then gives one dict for each turn of ``sweeps`` sweeps, with
the ``seconds`` of those after the first. Songs are solved before users, from the same start, so
that all exact systems must agree; a library that solves its rows first is given the transposed
plays for that. ``keep`` also gives the factors. Everything is imported late: a process times one
library.
"""

from __future__ import annotations

import time

import numpy as np
import scipy.sparse as sp

from . import CORES, world


class _Clock:
    """The ends of sweeps, in seconds since it was made."""

    def __init__(self):
        self.began, self.seconds = time.perf_counter(), []

    def note(self, *_) -> dict:
        self.seconds.append(time.perf_counter() - self.began)
        return {}

    def turn(self, theta, beta, keep: bool, w=None) -> dict:
        found = {"seconds": np.diff(self.seconds).tolist()}
        return found | ({"theta": theta, "beta": beta, "w": w} if keep else {})


def ours(plays, factors, ridge, sweeps=3, keep=True, features=None):
    """``repro.models.wmf``, content-aware with ``features`` (a file)."""
    from repro.models import wmf

    surplus = world.load(plays, world.SURPLUS)
    h = None if features is None else np.load(features)
    while True:
        clock = _Clock()
        model = wmf.fit(
            surplus, h, factors=factors, lambda_theta=ridge, lambda_beta=ridge, lambda_w=1.0,
            bias=False, sweeps=sweeps, validate=clock.note,
        )  # fmt: skip
        yield clock.turn(model.theta, model.beta, keep, model.w)


def implicit(plays, factors, ridge, sweeps=3, keep=True, cg=False):
    """Implicit's AlternatingLeastSquares, by Cholesky or by its three CG steps."""
    from implicit.cpu.als import AlternatingLeastSquares
    from threadpoolctl import threadpool_limits

    confidence = world.load(plays, 1 + world.SURPLUS).T.tocsr()
    songs, users = confidence.shape
    while True:
        with threadpool_limits(1, "blas"):  # as it asks for
            model = AlternatingLeastSquares(
                factors, ridge, use_cg=cg, iterations=sweeps, num_threads=CORES
            )
            model.user_factors = np.zeros((songs, factors), np.float32)
            model.item_factors = world.start(users, factors)
            clock = _Clock()
            model.fit(confidence, show_progress=False, callback=clock.note)
        yield clock.turn(model.item_factors, model.user_factors, keep)


def lenskit(plays, factors, ridge, sweeps=3, keep=True):
    """LensKit's ImplicitMF, which has Cholesky only."""
    import pandas as pd
    from lenskit.als import ImplicitMFScorer
    from lenskit.data import from_interactions_df
    from lenskit.training import TrainingOptions

    pairs = world.load(plays).tocoo()
    users, songs = pairs.shape
    frame = pd.DataFrame({"user_id": pairs.row, "item_id": pairs.col})
    del pairs
    data = from_interactions_df(frame, users=range(users), items=range(songs))
    del frame
    scorer = ImplicitMFScorer(embedding_size=factors, regularization=ridge, weight=world.SURPLUS)
    trainer = scorer.create_trainer(data, TrainingOptions(rng=0))
    while True:
        scorer.user_embeddings[:] = world.start(users, factors)
        clock = _Clock()
        for sweep in range(sweeps):
            trainer.als_half_epoch(sweep, trainer.i_ctx)
            trainer.als_half_epoch(sweep, trainer.u_ctx)
            clock.note()
        yield clock.turn(scorer.user_embeddings, scorer.item_embeddings, keep)


def cmfrec(plays, factors, ridge, sweeps=3, keep=True):
    """Time cmfrec's CMF_implicit by Cholesky, as the difference of a long and a short fit.

    It draws its own start, so its objective differs from the others' before convergence.
    """
    from cmfrec import CMF_implicit

    surplus = world.load(plays, world.SURPLUS).tocoo()
    while True:
        clock = _Clock()
        for count in (1, sweeps):
            model = CMF_implicit(
                k=factors, lambda_=ridge, alpha=1.0, use_cg=False, niter=count, use_float=True,
                precompute_for_predictions=False, produce_dicts=False, nthreads=CORES,
            ).fit(surplus)  # fmt: skip
            clock.note()
        short, both = clock.seconds
        found = clock.turn(model.A_, model.B_, keep)
        yield found | {"seconds": [(both - 2 * short) / (sweeps - 1)]}


def irspack(plays, factors, ridge, sweeps=3, keep=True, features=None):
    """Irspack's iALS by Cholesky, feature-aware with ``features`` (a file)."""
    from irspack.recommenders.ials import IALSTrainer, LossType, SolverType

    surplus = world.load(plays, world.SURPLUS).T.tocsr()
    songs, users = surplus.shape
    h = sp.csr_matrix((songs, 0), dtype=np.float32) if features is None else np.load(features)
    while True:
        trainer = IALSTrainer(
            surplus, factors, alpha0=1.0, reg=ridge, nu=0.0, init_std=0.01,
            solver_type=SolverType.CHOLESKY, loss_type=LossType.ORIGINAL, max_cg_steps=3,
            ialspp_subspace_dimension=64, random_seed=0, n_threads=CORES,
            prediction_time_max_cg_steps=5, prediction_time_ialspp_iteration=7,
            user_features=h, lambda_user_feature=ridge,  # ridge times a lambda_W of 1
        )  # fmt: skip
        core = trainer.core_trainer
        core.item = world.start(users, factors)
        clock = _Clock()
        for _ in range(sweeps):
            trainer.run_epoch()
            clock.note()
        yield clock.turn(core.item, core.user, keep, core.user_feature_weight)


def _solve_rows(y, matrix, shared):
    x = np.empty((matrix.shape[0], y.shape[1]), np.float32)
    for row in range(len(x)):
        plays = slice(matrix.indptr[row], matrix.indptr[row + 1])
        rated, weight = y[matrix.indices[plays]], matrix.data[plays]
        gram = rated.T @ (rated * weight[:, None])
        x[row] = np.linalg.solve(shared + gram, rated.T @ (weight + 1))
    return x


def authors(plays, factors, ridge, sweeps=3, keep=True, batch=1000):
    """Solve row by row in NumPy, batches of rows over processes: a port of the authors' method."""
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor

    surplus = world.load(plays, world.SURPLUS)
    sides = [
        [matrix[row : row + batch] for row in range(0, matrix.shape[0], batch)]
        for matrix in (surplus.T.tocsr(), surplus)
    ]

    def half(pool, y, batches):
        shared = y.T @ y + ridge * np.eye(factors, dtype=np.float32)
        return np.concatenate(pool(delayed(_solve_rows)(y, rows, shared) for rows in batches))

    try:
        with Parallel(n_jobs=CORES) as pool:
            while True:
                theta = world.start(surplus.shape[0], factors)
                clock = _Clock()
                for _ in range(sweeps):
                    beta = half(pool, theta, sides[0])
                    theta = half(pool, beta, sides[1])
                    clock.note()
                yield clock.turn(theta, beta, keep)
    finally:  # or its processes would outlive this one by minutes
        get_reusable_executor().shutdown(wait=True)
