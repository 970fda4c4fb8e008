"""Run systems in turns, each in a process of its own; note the machine; write what was measured."""

from __future__ import annotations

import io
import json
import multiprocessing
import os
import platform
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

import numpy as np

from . import CORES

_SPAWN = multiprocessing.get_context("spawn")


@dataclass
class Options:
    """What the command line asks for; ``scratch`` is a folder that is removed at the end."""

    rounds: int
    small: bool
    fraction: float | None
    out: Path
    scratch: Path

    @property
    def full(self) -> bool:
        """Whether the shapes are those that the goals are for."""
        return not self.small and self.fraction is None


class Absent(Exception):
    """A library that a system needs is not installed."""


def peak_memory() -> float:
    """Return the most memory that this process has held, in GiB."""
    try:  # not getrusage, which on Linux starts from the parent's peak
        status = Path("/proc/self/status").read_text()
        return int(status.split("VmHWM:")[1].split()[0]) / 2**20
    except (OSError, IndexError):
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak / 2 ** (30 if sys.platform == "darwin" else 20)


def _asked(pipe) -> bool:
    try:
        return pipe.recv()
    except EOFError:  # the parent was stopped
        return False


def _serve(pipe, system, arguments):
    turns = system(**arguments)
    while _asked(pipe):
        try:
            pipe.send(next(turns) | {"peak": peak_memory()})
        except StopIteration:
            pipe.send(None)
        except ModuleNotFoundError as error:
            pipe.send({"absent": str(error.name)})
        except Exception as error:
            pipe.send({"failed": f"{type(error).__name__}: {error}"})
    turns.close()


class Worker:
    """A system (a generator function that gives one dict a turn) in a process of its own.

    So no library changes another's threads, and its peak memory is its own.
    """

    def __init__(self, system, environment: dict | None = None, **arguments):
        self.pipe, far = _SPAWN.Pipe()
        self.process = _SPAWN.Process(target=_serve, args=(far, system, arguments))
        before = dict(os.environ)
        os.environ.update(environment or {})
        self.process.start()
        os.environ.clear()
        os.environ.update(before)
        far.close()

    def turn(self, timeout: float | None = None) -> dict | None:
        """Let the system take its next turn, which includes the set-up the first time."""
        self.pipe.send(True)
        if not self.pipe.poll(timeout):
            raise TimeoutError(f"no answer within {timeout:.0f} s")
        try:
            message = self.pipe.recv()
        except EOFError:
            raise RuntimeError("the process died, perhaps for want of memory") from None
        if message and "absent" in message:
            raise Absent(message["absent"])
        if message and "failed" in message:
            raise RuntimeError(message["failed"])
        return message

    def __enter__(self):
        return self

    def __exit__(self, *_):
        try:
            self.pipe.send(False)
            self.process.join(10)
        except OSError:  # it is gone
            pass
        self.process.kill()
        self.process.join()


def interleave(systems: dict, rounds: int) -> dict[str, list[dict]]:
    """Give each system a warm-up turn, then ``rounds`` turns in alternation.

    Parameters
    ----------
    systems : dict
        Name -> (generator function, its arguments).

    Returns
    -------
    dict
        Name -> the turns' dicts, warm-up first. A system whose library is absent is left out.
    """
    workers, turns = {}, {}
    try:
        for name, (system, arguments) in systems.items():
            workers[name] = Worker(system, **arguments)
            try:
                turns[name] = [workers[name].turn()]
                say(f"  {name}: ready")
            except Absent as error:
                say(f"  {name}: left out, {error} is not installed")
                workers.pop(name).__exit__()
        for count in range(rounds):
            for name, worker in workers.items():
                turns[name].append(worker.turn())
            say(f"  round {count + 1} of {rounds}")
    finally:
        for worker in workers.values():
            worker.__exit__()
    return turns


def say(text: str) -> None:
    """Print at once."""
    print(text, flush=True)


def times(turns: list[dict]) -> list[float]:
    """Return each round's median time, the warm-up left out (kept if there is nothing else)."""
    return [float(np.median(turn["seconds"])) for turn in turns[1:] or turns]


def spread(values) -> dict:
    """Return median, least and greatest of what the rounds gave."""
    return {"median": float(np.median(values)), "min": min(values), "max": max(values)}


def ratio(slow: list[dict], fast: list[dict]) -> float:
    """Return how many times ``fast`` is faster: the median over rounds of the rounds' ratios."""
    return float(np.median(np.divide(times(slow), times(fast))))


def judge(value, least, reach=None, unit: str = "x", low: bool = False) -> dict:
    """Return the cells ``value``, ``unit``, ``target`` and ``reached``; ``low``: less is better."""
    met = [goal is None or (value <= goal if low else value >= goal) for goal in (least, reach)]
    target = f"at {'most' if low else 'least'} {least:g} {unit}"
    target += "" if reach is None else f", reach for {reach:g} {unit}"
    reached = "missed" if not met[0] else "all" if met[1] else "the first"
    return {"value": value, "unit": unit, "target": target, "reached": reached}


def sgemm() -> dict[str, float]:
    """Return the GFLOP/s of large float32 matrix products by NumPy and torch."""
    import torch

    n = 2048
    a = np.random.default_rng(0).standard_normal((n, n), dtype=np.float32)
    t = torch.from_numpy(a)
    rates = {}
    for name, product in (("numpy", lambda: a @ a), ("torch", lambda: t @ t)):
        product()
        best = np.inf
        for _ in range(7):
            began = time.perf_counter()
            product()
            best = min(best, time.perf_counter() - began)
        rates[name] = 2 * n**3 / best / 1e9
    return rates


def conditions() -> dict:
    """Return machine, versions and thread settings."""
    import torch
    from threadpoolctl import threadpool_info

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "absent"

    def first(path, key):
        lines = Path(path).read_text().splitlines() if Path(path).exists() else []
        return next((x.split(":", 1)[1].strip() for x in lines if x.startswith(key)), "unknown")

    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    root = Path(__file__).parent
    names = ["numpy", "scipy", "torch", "numba", "scikit-learn", "pandas", "joblib"]
    names += ["implicit", "lenskit", "cmfrec", "irspack", "faiss-cpu", "ranx"]
    memory = first("/proc/meminfo", "MemTotal").split()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "commit": subprocess.run(git, cwd=root, capture_output=True, text=True).stdout.strip(),
        "processor": first("/proc/cpuinfo", "model name"),
        "cores": CORES,
        "memory in GiB": round(int(memory[0]) / 2**20, 1) if memory[0].isdigit() else "unknown",
        "system": f"{platform.system()} {platform.release()}",
        "GPU": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "Python": platform.python_version(),
        "versions": {name: version(name) for name in names},
        "BLAS": [
            f"{x['internal_api']} {x.get('version')} {x.get('architecture', '')}, "
            f"{x['num_threads']} threads"
            for x in threadpool_info()
        ],
        "torch threads": torch.get_num_threads(),
        "environment": {k: v for k, v in os.environ.items() if "NUM_THREADS" in k},
    }


def state() -> dict:
    """Return what changes while a benchmark runs: load averages and the rate of sgemm."""
    load = [round(x, 2) for x in os.getloadavg()]
    return {"load": load, "sgemm GFLOP/s": {k: round(v, 1) for k, v in sgemm().items()}}


@dataclass
class Report:
    """What one benchmark gives: tables of rows, goals (see :func:`judge`), notes and figures."""

    name: str
    title: str
    tables: dict[str, list[dict]] = field(default_factory=dict)
    goals: list[dict] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    figures: list[str] = field(default_factory=list)
    conditions: dict = field(default_factory=dict)

    def goal(self, work: str, *judged, **how) -> dict:
        """Enter a goal; return the cells ``target`` and ``reached`` for a table's row."""
        cells = judge(*judged, **how)
        self.goals.append({"work": work} | cells)
        return {"target": cells["target"], "reached": cells["reached"]}

    def sgemm(self) -> float:
        """Return the best rate of sgemm before this benchmark and now, in GFLOP/s."""
        before = self.conditions["before"]["sgemm GFLOP/s"].values()
        return max(*before, *sgemm().values())

    def draw(self, figure, stem: str, out: Path) -> None:
        """Write a figure as SVG and PNG."""
        for kind in ("svg", "png"):
            picture = io.BytesIO()
            figure.savefig(picture, format=kind, dpi=150)
            write(out / f"{stem}.{kind}", picture.getvalue())
        self.figures = sorted({*self.figures, stem})

    def save(self, out: Path) -> None:
        """Write JSON and CSV of this benchmark, and the page of all benchmarks in ``out``."""
        import pandas as pd

        text = json.dumps(asdict(self), indent=1, default=lambda x: x.item())
        write(out / f"{self.name}.json", text.encode() + b"\n")
        for name, rows in self.tables.items():
            text = pd.DataFrame(rows).to_csv(index=False, float_format="%.5g", lineterminator="\n")
            write(out / f"{name}.csv", text.encode())
        write(out / "README.md", page(out).encode())


def write(path: Path, content: bytes) -> None:
    """Write a file that takes its name only when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(content)
    os.replace(partial, path)


def markdown(rows: list[dict]) -> str:
    """Return rows as a Markdown table, four digits a number."""
    import pandas as pd

    frame = pd.DataFrame(rows)
    for name in frame:
        frame[name] = [
            "" if x is None or x != x else f"{x:.4g}" if isinstance(x, float) else str(x)
            for x in frame[name]
        ]
    return frame.to_markdown(index=False, disable_numparse=True)


def lines(panels: list[dict], labels: list[str], along: str):
    """Draw panels of series, name -> points (x, y), log-log, and return figure and axes."""
    import matplotlib.pyplot as plt
    import seaborn as sns

    from repro.evaluation import plots

    plots.style()
    size = (max(5.6, 3.8 * len(panels)), 3.9)
    figure, axes = plt.subplots(1, len(panels), figsize=size, layout="constrained", squeeze=False)
    for ax, series, label in zip(axes[0], panels, labels, strict=True):
        for (name, points), colour, marker in zip(
            series.items(), sns.color_palette("colorblind"), "os^DvP*X", strict=False
        ):
            width = 2 if name.startswith("ours") else 1.2
            ax.plot(
                *zip(*points, strict=True), color=colour, marker=marker, ms=4, lw=width, label=name
            )
        ax.set(xscale="log", yscale="log", xlabel=along, ylabel=label)
    figure.legend(*axes[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    return figure, axes[0]


def page(out: Path) -> str:
    """Return the Markdown page of all benchmarks whose JSON is in ``out``."""
    from . import ALL

    reports = [Report(**json.loads(path.read_text())) for path in sorted(out.glob("*.json"))]
    reports.sort(key=lambda report: ALL.index(report.name))
    parts = [
        "# Benchmarks\n\nMade by `python -m benchmarks`. Every table has its own conditions, below "
        "it. Each system ran in a process of its own. Where a table has rounds, the systems took "
        "turns; times are medians over the rounds with the least and the greatest, and a ratio is "
        "the median of the rounds' ratios.\n\n## What was aimed at, and what was reached\n"
    ]
    goals = [goal for report in reports for goal in report.goals]
    if goals:
        parts.append(markdown(goals) + "\n")
        missed = [goal for goal in goals if goal["reached"] == "missed"]
        parts.append(f"**Missed: {len(missed)} of {len(goals)}.**\n")
        parts += [
            f"- {goal['work']}: {goal['value']:.3g} {goal['unit']} (aim: {goal['target']})."
            for goal in missed
        ]
    for report in reports:
        parts.append(f"\n## {report.title}\n")
        for name, rows in report.tables.items():
            if len(rows) <= 60:
                parts.append(markdown(rows) + f"\n\n[{name}.csv]({name}.csv)\n")
            else:
                parts.append(f"[{name}.csv]({name}.csv): {len(rows)} rows\n")
        parts += [f"![{stem}]({stem}.svg)\n" for stem in report.figures]
        parts += [f"- {note}" for note in report.notes]
        lines = json.dumps(report.conditions, indent=1)
        summary = "<summary>Conditions</summary>"
        parts.append(f"\n<details>{summary}\n\n```json\n{lines}\n```\n\n</details>\n")
    return "\n".join(parts)
