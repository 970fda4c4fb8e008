"""A pass of Poisson factorisation compared with an exact sweep of WMF, at a tenth of DEN, K=50."""

from __future__ import annotations

import time

import numpy as np
import scipy.sparse as sp

from . import world
from .als import RIDGE
from .harness import Options, Report, interleave, ratio, spread, times

TURNS = 5  # sweeps or passes in a turn: set-up is shared among them, as in a short fit
WORDS, CODEWORDS = 200, 1024  # different codewords of a song, and of all


def words(songs: int, each: int, codewords: int, seed: int = 0) -> sp.csr_matrix:
    """Return counts of ``each`` distinct codewords a song."""
    rng = np.random.default_rng(seed)
    indices = np.concatenate(
        [np.sort(rng.choice(codewords, each, replace=False)) for _ in range(songs)]
    )
    counts = (1 + rng.poisson(2.0, len(indices))).astype(np.float32)
    return sp.csr_matrix((counts, indices, each * np.arange(songs + 1)), (songs, codewords))


def turns(kind, plays, factors, each, codewords):
    """Exact sweeps of WMF, or passes of PMF or CTPF, as fits of ``TURNS``."""
    from repro.models import poisson, wmf

    counts = world.load(plays, world.SURPLUS if kind == "WMF" else 1.0)
    bags = words(counts.shape[1], each, codewords)
    ridges = {"lambda_theta": RIDGE, "lambda_beta": RIDGE}
    fit = {
        "WMF": lambda: wmf.fit(counts, factors=factors, sweeps=TURNS, **ridges),
        "PMF": lambda: poisson.pmf(counts, factors=factors, passes=TURNS),
        "CTPF": lambda: poisson.ctpf(counts, bags, bags[:1], factors=factors, passes=TURNS),
    }[kind]
    while True:
        began = time.perf_counter()
        model = fit()
        taken = time.perf_counter() - began
        yield {"seconds": [taken / TURNS], "theta": model.theta, "beta": model.beta}


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    den = world.tiny() if options.small else world.den(options.fraction or 0.1)
    each, codewords = (10, 64) if options.small else (WORDS, CODEWORDS)
    given = {"plays": world.save(options.scratch / "plays.npz", den.plays), "factors": 50}
    given |= {"each": each, "codewords": codewords}
    systems = {name: (turns, given | {"kind": name}) for name in ("WMF", "PMF", "CTPF")}
    taken = interleave(systems, options.rounds)
    rows = report.tables["poisson"] = []
    for name, turn in taken.items():
        if not all(np.isfinite(turn[0][x]).all() for x in ("theta", "beta")):
            raise AssertionError(f"{name}: factors are not finite")
        share = ratio(turn, taken["WMF"])
        row = {"system": name} | {f"s a pass, {k}": v for k, v in spread(times(turn)).items()}
        row |= {"times a sweep of WMF": share, "target": "", "reached": ""}
        if name != "WMF" and options.full:
            work = f"{name}, a pass over the data, K=50, in exact sweeps of WMF"
            row |= report.goal(work, share, 1, low=True)
        rows.append(row)
    report.notes.append(
        f"{den.plays.shape[0]:,} users, {den.plays.shape[1]:,} songs, {den.plays.nnz:,} plays; "
        f"CTPF's songs have {each} of {codewords:,} codewords each, so it reads "
        f"{each * den.plays.shape[1]:,} counts more. A turn is a fit of {TURNS}, with its set-up."
    )
