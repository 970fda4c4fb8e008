"""How soon the objective falls: exact and approximate solvers, K=100.

The clock runs from the call of the library's fit, with what that sets up, and stands still while
the objective is computed.
"""

from __future__ import annotations

import numpy as np

from . import peers, world
from .harness import Options, Report, interleave, lines, spread

RIDGE, PASSED = 0.1, 10  # the objective to reach is that of CG after so many sweeps


def seconds_to(objective: float, curve) -> float:
    """Return when a curve reaches an objective, linear in its logarithm between two sweeps."""
    seconds, value = np.array(curve).T
    if value.min() > objective:
        return float("nan")
    value = np.minimum.accumulate(value)
    return float(np.interp(-np.log(objective), -np.log(value), seconds))


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    den = world.tiny() if options.small else world.den(options.fraction or 0.1)
    path = world.save(options.scratch / "plays.npz", den.plays)
    factors, sweeps, passed = (20, 4, 2) if options.small else (100, 18, PASSED)
    same = {"plays": path, "factors": factors, "ridge": RIDGE, "sweeps": sweeps}
    same |= {"keep": False, "curve": True}
    few = same | {"sweeps": min(sweeps, 12)}
    systems = {"ours, exact": (peers.ours, same)}
    for steps in (2, 3):
        systems[f"ours, {steps} CG steps"] = (peers.ours, same | {"steps": steps})
    systems["implicit, exact"] = (peers.implicit, few)
    systems["implicit, CG"] = (peers.implicit, same | {"cg": True})
    turns = interleave(systems, options.rounds)
    curves = {name: [turn["curve"] for turn in found] for name, found in turns.items()}
    if "implicit, CG" not in curves:
        return
    pair = [
        np.array(curves[f"{who}, exact"][0])[: few["sweeps"], 1] for who in ("ours", "implicit")
    ]
    np.testing.assert_allclose(*pair, rtol=1e-4)
    taken = {name: [] for name in curves}
    for count in range(1, options.rounds + 1):
        objective = curves["implicit, CG"][count][passed - 1][1]
        for name, found in curves.items():
            taken[name].append(seconds_to(objective, found[count]))
    rows = report.tables["loss_curve"] = []
    for name, seconds in taken.items():
        curve = np.median(curves[name][1:], axis=0)
        row = {"system": name} | {f"s to it, {k}": v for k, v in spread(seconds).items()}
        row["times faster"] = float(np.median(np.divide(taken["implicit, CG"], seconds)))
        row["s a sweep"], row["sweeps"] = float(np.diff(curve[:, 0]).mean()), len(curve)
        row["objective / 1e6 at the end"] = f"{curve[-1, 1] / 1e6:.4f}"
        rows.append(row | {"target": "", "reached": ""})
        if name == "ours, 2 CG steps" and options.full:
            work = f"time to implicit CG's objective after {passed} sweeps, by 2 CG steps"
            rows[-1] |= report.goal(work, row["times faster"], 2, 3)
    report.tables["loss_curve_points"] = [
        {"system": name, "round": count, "sweep": sweep, "seconds": s, "objective": f"{value:.1f}"}
        for name, found in curves.items()
        for count, curve in enumerate(found[1:], 1)
        for sweep, (s, value) in enumerate(curve, 1)
    ]
    report.notes.append(
        f"'It' is the objective of implicit's CG (three steps) after {passed} sweeps, "
        f"{objective / 1e6:.4f} million, drawn as a dashed line; compared with implicit CG. "
        f"K={factors}, ridges {RIDGE}, {den.plays.nnz:,} plays. The figure shows one round."
    )
    series = {name: [(s, v / 1e6) for s, v in found[1]] for name, found in curves.items()}
    figure, (ax,) = lines([series], ["objective / 1e6"], "seconds")
    ends = (
        0.999 * min(points[-1][1] for points in series.values()),
        max(points[1][1] for points in series.values()),
    )
    ax.set(yscale="linear", ylim=ends)  # the first sweep is far above
    ax.axhline(objective / 1e6, color="0.5", lw=0.8, ls="--")
    report.draw(figure, "loss_curve", options.out)
