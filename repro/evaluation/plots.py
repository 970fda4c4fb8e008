"""The look of the figures, and those of several notebooks: data in, matplotlib figure out."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

_PALETTE = sns.color_palette("colorblind")
_NAMES = (
    "CF + deep; CF + shallow; WMF; CTR; regression; bag size; neighbours; popularity; CTPF; PMF"
)
# "WMF + bias" goes first: the colour is that of the first name with which a system's begins.
COLOURS = {"CF + deep, exposed": "#003f72", "CF + tags": "black"}
COLOURS |= {"WMF + bias": "0.35", "mean item": "0.6", "random": "0.75"}
COLOURS |= dict(zip(_NAMES.split("; "), _PALETTE, strict=True))


def colour(system: str):
    """Return the fixed colour of a system, by the start of its name."""
    return next((c for name, c in COLOURS.items() if system.startswith(name)), "black")


def style() -> None:
    """Set small sans-serif type, a light grid and no frame, whatever matplotlibrc says."""
    plt.rcdefaults()
    look = {"axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.5}
    sns.set_theme(context="paper", style="whitegrid", font_scale=0.95, rc=look)


def panels(n: int, width: float = 3.4, height: float = 2.6, **options):
    """Return a figure of ``n`` panels beside each other, of that size in inches, and its axes."""
    return plt.subplots(1, n, figsize=(width * n, height), layout="constrained", **options)


def lines(ax, frame: pd.DataFrame, x: str, y: str, **options) -> None:
    """Draw a line for each ``system`` of a frame, dashed differently so that none hides another.

    Where rows of the same system and ``x`` differ (seeds, or the ends of an interval), the line is
    at their mean or the given ``estimator``, in a band from the least to the greatest.
    """
    look = {"errorbar": ("pi", 100), "legend": False, "err_kws": {"lw": 0}, "ms": 3.5, "mew": 0}
    look |= {"markers": ["o"] * frame["system"].nunique(), "palette": _palette(frame)}
    sns.lineplot(frame, x=x, y=y, hue="system", style="system", ax=ax, **look | options)


def legend_outside(ax, **options) -> None:
    """Put the legend to the right of the axes."""
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), **options)


def strip(frame: pd.DataFrame, metric: str):
    """Draw a dot for each row of every system, one system below the other; return figure, axes."""
    names = frame["system"].unique()
    fig, ax = panels(1, width=5.6, height=0.7 + 0.26 * len(names))
    look = {"palette": _palette(frame), "jitter": False, "size": 4, "alpha": 0.5, "legend": False}
    sns.stripplot(frame, x=metric, y="system", hue="system", ax=ax, **look)
    ax.set(ylabel="", ylim=(len(names) - 0.4, -0.6))
    ax.margins(x=0.05)
    return fig, ax


def trials(frame: pd.DataFrame, metric: str = "NDCG") -> Figure:
    """Draw the validation metric of every trial of every system, the winner in a ring."""
    fig, ax = strip(frame, metric)
    best = frame.groupby("system", sort=False)[metric].max()
    ax.plot(best, range(len(best)), "o", ms=9, mfc="none", color="black", clip_on=False)
    ax.set_xlabel(f"{metric} of a trial")
    return fig


def _palette(frame: pd.DataFrame) -> dict:
    return {name: colour(name) for name in frame["system"].unique()}


def intervals(frame: pd.DataFrame, xlabel: str) -> Figure:
    """Draw a mean and its interval for each row: columns ``mean``, ``low``, ``high``."""
    fig, ax = panels(1, width=5, height=0.6 + 0.32 * len(frame))
    ax.axvline(0, color="0.5", lw=0.8, ls="--")
    for name, row in frame.iterrows():
        ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        ax.errorbar(row["mean"], [name], xerr=ends, fmt="o", ms=5, elinewidth=2, color=colour(name))
    ax.set(xlabel=xlabel, ylim=(len(frame) - 0.4, -0.6))
    ax.locator_params(axis="x", nbins=6)
    ax.grid(axis="y", visible=False)
    return fig
