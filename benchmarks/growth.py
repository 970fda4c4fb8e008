"""Time and memory of a sweep against the number of plays, 1/40 to 1/1 of DEN, K=100.

Each point has a process of its own; memory is that process's peak, interpreter, libraries and data
included. A peer stops growing when its next point would take more than two minutes.
"""

from __future__ import annotations

import time

import numpy as np

from . import world
from .als import RIDGE, SYSTEMS
from .harness import Absent, Options, Report, Worker, lines, say, spread

LIMIT = 120.0  # seconds for a point
DRAWN = ["ours", "implicit, exact", "implicit, CG", "LensKit", "cmfrec, Cholesky"]


def point(system, arguments, rounds: int) -> tuple[list[float], float, float]:
    """Return the seconds of each sweep, the peak memory, and what set-up and a turn took."""
    began = time.perf_counter()
    with Worker(system, **arguments) as worker:
        turn = worker.turn(2 * LIMIT)
        took = time.perf_counter() - began
        seconds = turn["seconds"] if took > LIMIT / 10 else []  # else the first warms up
        while len(seconds) < rounds and time.perf_counter() - began < LIMIT / 5:
            turn = worker.turn(2 * LIMIT)
            seconds += turn["seconds"]
    return seconds, turn["peak"], took


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    fractions = (1 / 400, 1 / 200) if options.small else (1 / 40, 1 / 10, 1 / 4, 1.0)
    rows = report.tables["growth"] = []
    last, stopped = {}, {}
    for fraction in fractions:
        plays = world.den(fraction).plays
        path, nnz = world.save(options.scratch / "plays.npz", plays), plays.nnz
        given = {"plays": path, "factors": 20 if options.small else 100, "ridge": RIDGE}
        del plays
        for name in DRAWN:
            if name != "ours" and name in last and last[name] * nnz > LIMIT:
                stopped[name] = f"stops here: more would take over {LIMIT:.0f} s"
            if name in stopped:
                continue
            system, more, _ = SYSTEMS[name]
            try:
                more = given | more | {"sweeps": 2, "keep": False}
                seconds, peak, took = point(system, more, min(options.rounds, 3))
            except Absent as error:
                stopped[name] = f"left out: {error} is not installed"
                continue
            except (RuntimeError, TimeoutError) as error:
                if name == "ours" or options.small:
                    raise
                stopped[name] = f"stops here: {error}"
                continue
            last[name] = took / nnz
            row = {"system": name, "fraction": f"1/{1 / fraction:g}", "plays": nnz}
            row |= {f"s a sweep, {k}": v for k, v in spread(seconds).items()}
            rows.append(row | {"peak GiB": peak})
            say(f"  {name}, {nnz:,} plays: {row['s a sweep, median']:.2f} s, {peak:.2f} GiB")
            report.save(options.out)
    report.notes += [f"{name} {why}." for name, why in stopped.items()]
    mine = [(row["plays"], row["s a sweep, median"]) for row in rows if row["system"] == "ours"]
    plays, seconds = np.array(mine).T
    exponent = np.polyfit(np.log(plays), np.log(seconds), 1)[0]
    off = seconds[-1] / seconds[0] / (plays[-1] / plays[0])
    report.notes.append(
        f"Ours: seconds grow as plays to the power of {exponent:.3f}; a play takes {off:.2f} times "
        "as long at the largest point as at the smallest."
    )
    if not options.small:
        work = "growth from 1/40 to 1/1 of DEN: time per play, off linear by"
        report.goal(work, abs(100 * (off - 1)), 20, unit="%", low=True)
    panels = [
        {
            name + (f" ({stopped[name]})" if name in stopped else ""): [
                (row["plays"], row[column]) for row in rows if row["system"] == name
            ]
            for name in dict.fromkeys(row["system"] for row in rows)
        }
        for column in ("s a sweep, median", "peak GiB")
    ]
    figure, axes = lines(panels, ["seconds a sweep", "GiB, peak of the process"], "plays")
    ends = np.array([plays[0], plays[-1]])
    axes[0].plot(ends, seconds[0] * ends / ends[0], color="0.6", lw=0.8, ls="--")
    axes[0].annotate(
        "in proportion", (ends[1], seconds[0] * ends[1] / ends[0]), (-2, -14),
        textcoords="offset points", fontsize=7, color="0.4", ha="right", va="top",
    )  # fmt: skip
    report.draw(figure, "growth", options.out)
