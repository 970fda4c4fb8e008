"""One exact sweep of alternating least squares, songs and users.

All exact systems but cmfrec, which draws its own start, must reach the same objective after three
sweeps, and the users that each solved last must be the solution of their systems in float64.
"""

from __future__ import annotations

import numpy as np
import torch

from repro import kernels
from repro.models import wmf
from tests.oracles import solve_slowly

from . import peers, world
from .harness import Options, Report, interleave, ratio, spread, times

RIDGE = 0.1
H = "features.npy"
SYSTEMS = {  # the times that ours should be faster, where there is a goal
    "ours": (peers.ours, {}, None),
    "ours, with content": (peers.ours, {"features": H}, None),
    "implicit, exact": (peers.implicit, {}, (6, 10)),
    "implicit, CG": (peers.implicit, {"cg": True}, None),
    "LensKit": (peers.lenskit, {}, (3.5,)),
    "cmfrec, Cholesky": (peers.cmfrec, {}, (7,)),
    "irspack, with content": (peers.irspack, {"features": H}, (2,)),
    "authors' method": (peers.authors, {}, (7,)),
}


def useful_operations(plays, factors: int) -> float:
    """Return the operations that an exact sweep cannot do without.

    A row of L plays: its Gram matrix, K x K or L x L, half of it as it is symmetric, and that
    one's Cholesky factor. For each side, the shared Gram matrix (half), and the triangular products
    that whiten the fixed factors and bring the solved ones back.
    """
    total, k = 0.0, float(factors)
    for matrix in (plays, plays.T.tocsr()):
        length = np.diff(matrix.indptr).astype(float)
        dual, primal = length**2 * k + length**3 / 3, length * k**2 + k**3 / 3
        total += np.minimum(dual, primal).sum() + (2 * matrix.shape[1] + matrix.shape[0]) * k**2
    return total


def check(surplus, turn: dict, h, sample: int = 200) -> tuple[float, float]:
    """Return the objective, and the largest error of sampled users over the largest of theta."""
    theta, beta = (np.array(turn[name], np.float32) for name in ("theta", "beta"))
    prior = None if turn["w"] is None else wmf.ContentPrior(h, 1.0, bias=False)
    w = None if turn["w"] is None else torch.from_numpy(np.array(turn["w"]))
    pair = torch.from_numpy(theta), torch.from_numpy(beta)
    value = wmf.objective(surplus, *pair, RIDGE, RIDGE, prior, w)
    users = np.random.default_rng(0).choice(len(theta), min(sample, len(theta)), False)
    error = np.abs(solve_slowly(beta, surplus[users], RIDGE) - theta[users]).max()
    return value, float(error / np.abs(theta).max())


def check_longest(surplus, theta, songs: int) -> float:
    """Return the largest relative error of the songs with most plays, solved once more."""
    rows = surplus.T.tocsr()
    rows = rows[np.argsort(np.diff(rows.indptr))[-songs:]]
    listed = kernels.Rows.of(rows, theta.shape[1])
    found = kernels.solve_rows(torch.from_numpy(theta), listed, RIDGE).numpy()
    expected = solve_slowly(theta, rows, RIDGE)
    error = np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)
    return float(error.max())


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    den = world.tiny() if options.small else world.den(options.fraction or 0.1)
    h = world.features(den.genre, 50 if options.small else 1200)
    np.save(options.scratch / H, h)
    path = world.save(options.scratch / "plays.npz", den.plays)
    surplus = world.load(path, world.SURPLUS)
    rows = report.tables["als"] = []
    for factors in (40,) if options.small else (100, 50):
        given = {"plays": path, "factors": factors, "ridge": RIDGE}
        systems = {}
        for name, (system, more, _) in SYSTEMS.items():
            if "features" in more:
                more = {"features": options.scratch / H}
            systems[name] = system, given | more
        turns = interleave(systems, options.rounds)
        facts = {name: check(surplus, turn[0], h) for name, turn in turns.items()}
        for name, turn in turns.items():
            own = "ours, with content" if "irspack" in name else "ours"
            value, error = facts[name]
            gap = abs(value / facts["ours, with content" if "content" in name else "ours"][0] - 1)
            if "CG" not in name and (error > 1e-4 or (gap > 1e-4 and "cmfrec" not in name)):
                raise AssertionError(f"{name}: another problem, {error=:.0e}, {gap=:.0e}")
            row = {"K": factors, "system": name}
            row |= {f"s a sweep, {k}": v for k, v in spread(times(turn)).items()}
            row["times ours"] = slower = ratio(turn, turns[own])
            row["objective / 1e6 after 3 sweeps"] = f"{value / 1e6:.5f}"
            row["error against float64"] = f"{error:.0e}"
            row |= {"target": "", "reached": ""}
            if options.full and factors == 100 and SYSTEMS[name][2]:
                row |= report.goal(f"exact sweep, K=100, against {name}", slower, *SYSTEMS[name][2])
            elif options.full and factors == 100 and name == "ours, with content":
                work, extra = "content prior's extra cost a sweep, K=100", 100 * (slower - 1)
                row |= report.goal(work, extra, 10, 5, unit="%", low=True)
            rows.append(row)
        worst = check_longest(surplus, np.array(turns["ours"][0]["theta"]), 20)
        if worst > 1e-5:
            raise AssertionError(f"the songs with most plays are off by {worst:.0e}")
        if options.small:
            return
        operations, rate = useful_operations(den.plays, factors) / 1e9, report.sgemm()
        speed = operations / spread(times(turns["ours"]))["median"]
        report.notes.append(
            f"K={factors}: {operations:.1f} GFLOP of useful operations a sweep; ours does "
            f"{speed:.0f} GFLOP/s, {100 * speed / rate:.0f}% of sgemm's {rate:.0f} GFLOP/s. "
            f"The 20 songs with most plays differ by {worst:.0e} of their length from float64."
        )
        if options.full and factors == 100:
            share = 100 * speed / rate
            report.goal("exact sweep, K=100, share of sgemm's rate", share, 30, 60, unit="%")
    report.notes += [
        f"{den.plays.shape[0]:,} users, {den.plays.shape[1]:,} songs, {den.plays.nnz:,} plays; "
        f"confidence {1 + world.SURPLUS:.2f} of a play, both ridges {RIDGE}; float32. With "
        f"content: {h.shape[1]:,} features, lambda_W 1, no bias; irspack is compared with ours "
        "with content, the others with plain ours.",
        "A turn is three sweeps from the same start, of which the last two count; cmfrec's is the "
        "difference of fits of three sweeps and one. The authors' method is our port: NumPy row by "
        "row, one process a core.",
    ]
