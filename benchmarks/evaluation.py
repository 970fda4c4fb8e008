"""Full-ranking metrics of all users at 1/10 of DEN, K=100.

Ours gives Recall at 40 to 200, untruncated NDCG and MAP at once; implicit's are those of the first
100. The authors' NDCG sorts all songs of each user on one core but for the products, by today's
NumPy and by one without vector instructions beyond its baseline, as in 2015. What is too slow for
all users is timed on the first of them, and its time for all is in proportion.
"""

from __future__ import annotations

import time

import numpy as np
from numpy._core import _multiarray_umath

from . import CORES, world
from .harness import Options, Report, interleave, ratio, spread, times

PLAIN = "authors' NDCG, NumPy without vectors"
NO_VECTORS = {"NPY_DISABLE_CPU_FEATURES": " ".join(_multiarray_umath.__cpu_dispatch__)}


def _read(folder):
    factors = np.load(folder / "theta.npy"), np.load(folder / "beta.npy")
    return *factors, world.load(folder / "held.npz"), world.load(folder / "train.npz")


def ours(folder):
    """``repro.evaluation.metrics.evaluate``."""
    from repro.evaluation import metrics

    theta, beta, held, train = _read(folder)
    while True:
        began = time.perf_counter()
        frame = metrics.evaluate(theta, beta, held, train)
        took = time.perf_counter() - began
        ranks = metrics.heldout_ranks(theta, beta, held, train)
        yield {"seconds": [took], "ndcg": frame["NDCG (code)"].to_numpy(), "ranks": ranks}


def implicit(folder):
    """Implicit's ranking metrics of the first 100."""
    from implicit.cpu.als import AlternatingLeastSquares
    from implicit.evaluation import ranking_metrics_at_k
    from threadpoolctl import threadpool_limits

    theta, beta, held, train = _read(folder)
    with threadpool_limits(1, "blas"):  # it warns otherwise
        model = AlternatingLeastSquares(theta.shape[1])
    model.user_factors, model.item_factors = theta, beta
    while True:
        began = time.perf_counter()
        with threadpool_limits(1, "blas"):
            result = ranking_metrics_at_k(
                model, train, held, K=100, show_progress=False, num_threads=CORES
            )
        yield {"seconds": [time.perf_counter() - began], "map": result["map"]}


def authors(folder, users, batch=500):
    """NDCG by sorting every list, batches of users at a time: a port of the authors' method."""
    theta, beta, held, train = _read(folder)
    total = len(theta)
    theta, held, train = theta[:users], held[:users], train[:users]
    discount = np.concatenate([[1.0], 1.0 / np.log2(np.arange(2, len(beta) + 1))])
    while True:
        began = time.perf_counter()
        result = []
        for start in range(0, users, batch):
            scores = theta[start : start + batch] @ beta.T
            scores[train[start : start + batch].nonzero()] = -np.inf
            rank = np.argsort(np.argsort(-scores, axis=1), axis=1)
            pairs = held[start : start + batch].tocoo()
            gain = discount[rank][pairs.row, pairs.col]
            count = np.bincount(pairs.row, minlength=len(scores))
            ideal = np.cumsum(discount)[count[count > 0] - 1]
            result.append(np.bincount(pairs.row, gain, len(scores))[count > 0] / ideal)
        took = time.perf_counter() - began
        yield {"seconds": [took * total / users], "ndcg": np.concatenate(result)}


def ranx(folder, users):
    """Ranx, given all scores: sorting and its NDCG, Recall and MAP; its input is made unclocked."""
    from ranx import Qrels, Run, evaluate

    theta, beta, held, train = _read(folder)
    total = len(theta)
    scores = theta[:users] @ beta.T
    names = [str(song) for song in range(len(beta))]
    listed, wanted = {}, {}
    for user in range(users):
        mine = held[user].indices
        if len(mine):
            left = np.delete(np.arange(len(beta)), train[user].indices)
            listed[str(user)] = {names[song]: float(scores[user, song]) for song in left}
            wanted[str(user)] = {names[song]: 1 for song in mine}
    while True:
        relevant, run = Qrels(wanted), Run(listed)
        began = time.perf_counter()
        measures = ["ndcg", "map", *(f"recall@{m}" for m in range(40, 201, 40))]
        evaluate(relevant, run, measures, make_comparable=False)
        yield {"seconds": [(time.perf_counter() - began) * total / users]}


def map_at(k: int, ranks, held) -> float:
    """Return implicit's MAP of the first ``k`` from the ranks of held-out pairs."""
    values = []
    for first, last in zip(held.indptr, held.indptr[1:], strict=False):
        if last > first:
            rank = np.sort(ranks[first:last])
            precision = np.arange(1, len(rank) + 1) / (rank + 1)
            values.append(precision[rank < k].sum() / min(k, len(rank)))
    return float(np.mean(values))


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    from repro.data import subsets
    from repro.models import wmf

    if options.small:
        plays = world.tiny().plays
        factors, sample, few = 20, 200, 50
    else:
        plays = world.generate(61_368, 9_254, 21, 50.6).plays
        factors, sample, few = 100, 3000, 500
    train, _, held = subsets.split_pairs(plays, 8 / 50.6, 0.0, seed=0)
    folder = options.scratch
    world.save(folder / "train.npz", train)
    world.save(folder / "held.npz", held)
    model = wmf.fit(
        wmf.log_surplus(train, 2.0, 1e-6), factors=factors, lambda_theta=0.1, lambda_beta=0.1,
        sweeps=4,
    )  # fmt: skip
    np.save(folder / "theta.npy", model.theta)
    np.save(folder / "beta.npy", model.beta)
    systems = {
        "ours": (ours, {"folder": folder}),
        "implicit, first 100": (implicit, {"folder": folder}),
        "authors' NDCG": (authors, {"folder": folder, "users": sample}),
        PLAIN: (authors, {"folder": folder, "users": sample, "environment": NO_VECTORS}),
        "ranx": (ranx, {"folder": folder, "users": few}),
    }
    turns = interleave(systems, options.rounds)
    mine, ported = turns["ours"][0], turns["authors' NDCG"][0]["ndcg"]
    np.testing.assert_allclose(mine["ndcg"][: len(ported)], ported, rtol=1e-3, atol=1e-6)
    agreement = {"authors' NDCG": f"mean NDCG {ported.mean():.5f}, ours "
                 f"{mine['ndcg'][: len(ported)].mean():.5f}"}  # fmt: skip
    if "implicit, first 100" in turns:
        pair = map_at(100, mine["ranks"], held), turns["implicit, first 100"][0]["map"]
        np.testing.assert_allclose(*pair, rtol=1e-4)
        agreement["implicit, first 100"] = f"MAP@100 {pair[1]:.6f}, ours {pair[0]:.6f}"
    rows = report.tables["evaluation"] = []
    goals = {"implicit, first 100": (4, 6), "authors' NDCG": (50, 80)}
    for name, turn in turns.items():
        faster = ratio(turn, turns["ours"])
        row = {"system": name} | {f"s for all, {k}": v for k, v in spread(times(turn)).items()}
        timed = {"authors' NDCG": sample, PLAIN: sample, "ranx": few}
        row["users timed"] = timed.get(name, len(model.theta))
        row["times ours"] = faster if name != "ours" else None
        row["agreement"] = agreement.get(name, "")
        row |= {"target": "", "reached": ""}
        if name in goals and not options.small:
            row |= report.goal(f"full-ranking metrics against {name}", faster, *goals[name])
        rows.append(row)
    report.notes.append(
        f"{plays.shape[0]:,} users, {plays.shape[1]:,} songs, {held.nnz:,} held-out and "
        f"{train.nnz:,} excluded pairs, K={factors}. Where fewer users were timed, the seconds for "
        "all are an extrapolation. The authors' NDCG is our port and runs, as theirs, on one core "
        "but for the matrix product; ours uses all cores."
    )
    if not options.small:
        gigaflop = 2e-9 * plays.shape[0] * plays.shape[1] * factors
        least = gigaflop / report.sgemm()
        most = spread(times(turns["authors' NDCG"]))["median"] / least
        report.notes.append(
            f"The products of users and songs alone, {gigaflop:.0f} GFLOP, take {least:.2f} s at "
            f"sgemm's rate: the authors' NDCG, as today's NumPy sorts, takes {most:.0f} times that."
        )
