"""The paper's size from end to end: generated DEN, splits, fits, evaluation, in one process.

Each stage is a row, written as soon as it is known.
"""

from __future__ import annotations

import time

import numpy as np

from .harness import Options, Report, Worker, say


def stages(fraction, factors, sweeps, width):
    """Go through all stages, one dict each."""
    from repro.data import subsets
    from repro.evaluation import metrics
    from repro.models import wmf

    from . import world

    def timed(work, *args, **settings):
        began = time.perf_counter()
        result = work(*args, **settings)
        return result, time.perf_counter() - began

    den, took = timed(world.den, fraction, whole=True)
    h, more = timed(world.features, den.genre, width)
    plays = den.plays
    detail = f"{plays.shape[0]:,} users, {plays.shape[1]:,} songs, {plays.nnz:,} pairs, {width} h"
    yield {"stage": "generate", "seconds": took + more, "detail": detail}
    del den

    def split(plays, h):
        users, songs = subsets.dense_subset(plays, 20, 50)
        if len(users) < plays.shape[0] or len(songs) < plays.shape[1]:
            plays, h = plays[users][:, songs], h[songs]
        cold = subsets.cold_items(plays.shape[1], 0.05, seed=0)
        warm = np.setdiff1d(np.arange(plays.shape[1]), cold)
        parts = subsets.split_pairs(plays[:, warm], 0.2, 0.1, seed=0)
        return *parts, plays[:, cold], h[warm], h[cold]

    (train, validation, test, cold, h, h_cold), took = timed(split, plays, h)
    del plays
    lengths = np.diff(train.indptr)
    detail = f"{train.nnz:,} training plays, {np.median(lengths):.0f} of the median user; "
    detail += f"{train.shape[1]:,} songs in-matrix, {cold.shape[1]:,} out"
    yield {"stage": "split", "seconds": took, "detail": detail}
    surplus = wmf.log_surplus(train, 2.0, 1e-6)
    exclude = train + validation
    n_test, n_cold = test.nnz, cold.nnz
    for k in factors:
        stamps = []

        def stamp(theta, beta, stamps=stamps):
            stamps.append(time.perf_counter())
            return {}

        settings = {"factors": k, "lambda_theta": 0.1, "lambda_beta": 0.1, "validate": stamp}
        wmf.fit(surplus, sweeps=3, **settings)
        each = np.diff(stamps)
        yield {
            "stage": f"one exact sweep, K={k}", "seconds": float(np.median(each)),
            "detail": f"of {len(each)}: {each.min():.2f} to {each.max():.2f} s",
        }  # fmt: skip
        stamps.clear()
        model, took = timed(wmf.fit, surplus, h, lambda_w=1.0, sweeps=sweeps, **settings)
        each = np.diff(stamps)
        detail = f"set-up included; a sweep with W {np.median(each):.2f} s, "
        detail += f"{each.min():.2f} to {each.max():.2f} s"
        yield {"stage": f"{sweeps} sweeps with W, K={k}", "seconds": took, "detail": detail}
        beta_cold = wmf.cold_factors(h_cold, model.w)
        for name, beta, held, without, pairs in (
            ("in-matrix", model.beta, test, exclude, n_test),
            ("out-of-matrix", beta_cold, cold, None, n_cold),
        ):
            frame, took = timed(metrics.evaluate, model.theta, beta, held, without)
            recall, chance = frame["R@40"].mean(), min(1, 40 / held.shape[1])
            detail = f"{len(frame):,} users, {pairs:,} pairs; Recall@40 {recall:.4f} (by chance "
            detail += f"{chance:.4f}), NDCG {frame['NDCG'].mean():.4f}"
            yield {"stage": f"evaluation {name}, K={k}", "seconds": took, "detail": detail}


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    fraction, factors = (0.003, (10, 20)) if options.small else (options.fraction or 1.0, (50, 100))
    sweeps, width = 10, 50 if options.small else 1200
    rows = report.tables["paper_shape"] = []
    given = {"fraction": fraction, "factors": factors, "sweeps": sweeps, "width": width}
    found = {}
    goals = {
        "one exact sweep, K=100": (11, 5),
        "10 sweeps with W, K=100": (150, 60),
        "both evaluations, K=100": (240, 120),
    }

    def enter(row):
        found[row["stage"]] = row["seconds"]
        row |= {"target": "", "reached": ""}
        if row["stage"] in goals and options.full:
            work = f"paper shape, {row['stage']}"
            row |= report.goal(work, row["seconds"], *goals[row["stage"]], unit="s", low=True)
        rows.append(row)
        report.save(options.out)
        say(f"  {row['stage']}: {row['seconds']:.2f} s, peak {row['peak GiB']:.2f} GiB")

    with Worker(stages, **given) as worker:
        while turn := worker.turn():
            peak = turn.pop("peak")
            row = {key: turn[key] for key in ("stage", "seconds")} | {"peak GiB": peak}
            enter(row | {"detail": turn["detail"]})
            if "out-of-matrix" in turn["stage"]:
                pair = [turn["stage"].replace("out-of", "in"), turn["stage"]]
                stage = f"both evaluations, {turn['stage'].split(', ')[1]}"
                both = sum(found[name] for name in pair)
                enter({"stage": stage, "seconds": both, "peak GiB": peak, "detail": "their sum"})
    if options.full:
        cells = report.goal("paper shape, peak memory", peak, 8, 4, unit="GiB", low=True)
        rows.append({"stage": "peak memory", "seconds": None, "peak GiB": peak} | cells)
    report.notes.append(
        f"{fraction:g} of DEN. Peak memory is that of the process up to the stage's end, the "
        "generator and all data held included. One run, no rounds."
    )
