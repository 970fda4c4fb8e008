"""The figures: data in, matplotlib figure out. One colour a system throughout the collection."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

_PALETTE = sns.color_palette("colorblind")
COLOURS = {
    "CF + deep": _PALETTE[0],
    "CF + shallow": _PALETTE[1],
    "WMF + bias": "0.35",
    "WMF": _PALETTE[2],
    "CTR": _PALETTE[3],
    "regression": _PALETTE[4],
    "bag size": _PALETTE[5],
    "neighbours": _PALETTE[6],
    "popularity": _PALETTE[7],
    "CTPF": _PALETTE[8],
    "PMF": _PALETTE[9],
    "mean item": "0.6",
    "random": "0.75",
}


def colour(system: str):
    """Return the fixed colour of a system, by the start of its name."""
    return next((c for name, c in COLOURS.items() if system.startswith(name)), "black")


def style() -> None:
    """Set the collection's look: small sans-serif type, a light grid, no frame."""
    sns.set_theme(
        context="paper",
        style="whitegrid",
        font_scale=0.95,
        rc={"axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.5},
    )


def _panels(n: int, width: float = 3.4, height: float = 2.6, **options):
    return plt.subplots(1, n, figsize=(width * n, height), layout="constrained", **options)


def activity_and_popularity(subsets: dict, item: str) -> Figure:
    """Draw how many users (items) have at least so many items (users), for each subset's plays."""
    fig, axes = _panels(2)
    for (name, plays), line in zip(subsets.items(), ("-", "--", ":"), strict=False):
        for ax, axis in zip(axes, (1, 0), strict=True):
            counts = np.sort(np.diff(plays.tocsr().indptr if axis else plays.tocsc().indptr))
            counts = counts[counts > 0]
            ax.loglog(counts, np.arange(len(counts), 0, -1), line, label=name, drawstyle="steps")
    axes[0].set(xlabel=f"{item}s played, at least", ylabel="users", title="activity")
    axes[1].set(xlabel="listeners, at least", ylabel=f"{item}s", title="popularity")
    axes[0].legend()
    return fig


def codebook(centres: np.ndarray, usage: np.ndarray, labels) -> Figure:
    """Draw the codewords sorted by use, one column each, beside how often each is used."""
    fig, (left, right) = _panels(2, width=4.2)
    order = np.argsort(-usage)
    spread = np.where(centres.std(0) > 0, centres.std(0), 1.0)
    image = ((centres - centres.mean(0)) / spread)[order].T
    mesh = left.imshow(image, aspect="auto", cmap="RdBu_r", vmin=-3, vmax=3, interpolation="none")
    left.set(xlabel="codeword, most used first", yticks=range(len(labels)))
    left.set_yticklabels(labels, fontsize=6)
    left.grid(False)
    fig.colorbar(mesh, ax=left, label="standard deviations", pad=0.02)
    right.plot(np.arange(1, len(usage) + 1), usage[order] / usage.mean(), color="0.3")
    right.axhline(1, color="0.6", lw=0.8, ls="--")
    right.text(len(usage), 1.03, "even use", fontsize=7, color="0.4", ha="right")
    right.set(xlabel="codeword, most used first", ylabel="use over mean use", ylim=(0, None))
    return fig


def example_histograms(histograms: np.ndarray, names) -> Figure:
    """Draw the l1-normalised histogram of a few tracks."""
    fig, axes = plt.subplots(
        len(names),
        1,
        figsize=(7, 0.95 * len(names)),
        sharex=True,
        squeeze=False,
        layout="constrained",
    )
    axes = axes[:, 0]
    for ax, histogram, name in zip(axes, histograms, names, strict=True):
        used = np.flatnonzero(histogram)
        ax.vlines(used, 0, histogram[used], color="0.3", lw=0.8)
        ax.set_title(f"{name}  ({len(used)} codewords)", loc="left", fontsize=7)
        ax.set_ylim(0)
        ax.locator_params(axis="y", nbins=2)
    axes[-1].set(xlabel="codeword", xlim=(-5, histograms.shape[1] + 5))
    fig.supylabel("share of frames", fontsize=8)
    return fig


def learning_curve(curve: pd.DataFrame, floor: float) -> Figure:
    """Draw the tag loss of every epoch beside that of predicting each tag's frequency."""
    fig, ax = _panels(1, width=4.6)
    ax.plot(curve["epoch"], curve["training"], "o-", ms=3, label="training, with dropout")
    ax.plot(curve["epoch"], curve["held out"], "s-", ms=3, label="held out")
    ax.axhline(floor, color="0.5", ls="--", label="tag frequencies alone")
    ax.set(xlabel="epoch", ylabel="loss a song and tag (nats)")
    ax.xaxis.get_major_locator().set_params(integer=True)
    ax.legend()
    return fig


def tags_by_frequency(per_tag: pd.DataFrame, bands: int = 5) -> Figure:
    """Draw each tag's AROC against how many test songs have it.

    The best and the worst told tag of each of ``bands`` bands of frequency are named.
    """
    fig, ax = _panels(1, width=5.4, height=3.2)
    shown = per_tag.dropna(subset=["AROC"])
    ax.scatter(shown["songs"], shown["AROC"], s=9, alpha=0.6, color=COLOURS["CF + deep"], lw=0)
    ax.axhline(0.5, color="0.5", ls="--", lw=0.8)
    edges = np.geomspace(shown["songs"].min(), shown["songs"].max() + 1, bands + 1)
    for _, band in shown.groupby(np.digitize(shown["songs"], edges)):
        for tag, above in ((band["AROC"].idxmax(), True), (band["AROC"].idxmin(), False)):
            ax.annotate(
                str(tag).replace("$", r"\$"),
                band.loc[tag, ["songs", "AROC"]],
                xytext=(0, 3 if above else -8),
                textcoords="offset points",
                fontsize=6.5,
                ha="center",
            )
    ax.set(xscale="log", xlabel="test songs that have the tag", ylabel="AROC")
    ax.margins(y=0.1)
    return fig


def convergence(histories: dict, metric: str = "NDCG") -> Figure:
    """Draw the objective after every half-step and validation ``metric`` after every sweep."""
    fig, (left, right) = _panels(2)
    for system, history in histories.items():
        frame = pd.DataFrame(history)
        steps = frame.dropna(subset=["objective"])
        per_sweep = steps.groupby("sweep")["step"].transform("size")
        time = steps["sweep"] - 1 + (steps.groupby("sweep").cumcount() + 1) / per_sweep
        left.plot(time, steps["objective"], ".-", color=colour(system), label=system)
        checked = frame.dropna(subset=[metric])
        right.plot(checked["sweep"], checked[metric], "o-", ms=3, color=colour(system))
    left.set(xlabel="sweep", ylabel="objective (lower is better)")
    right.set(xlabel="sweep", ylabel=f"validation {metric}")
    left.legend()
    return fig


def trials(frame: pd.DataFrame, metric: str = "NDCG") -> Figure:
    """Draw the validation metric of every trial of every system, the winner marked."""
    values = {system: own for system, own in frame.groupby("system", sort=False)[metric]}
    return _rows_of_dots(
        values,
        f"{metric} of a trial",
        lambda ax, y, own, _: ax.plot(own.max(), y, "o", ms=9, mfc="none", color="black"),
    )


def _rows_of_dots(values: dict, xlabel: str, mark) -> Figure:
    """Draw the values of each system on a line of its own, and what ``mark`` adds to it."""
    fig, ax = _panels(1, width=5.6, height=0.7 + 0.26 * len(values))
    for y, (name, own) in enumerate(values.items()):
        ax.plot(own, np.full(len(own), y), "o", ms=4, alpha=0.5, mew=0, color=colour(name))
        mark(ax, y, own, colour(name))
    ax.set(yticks=range(len(values)), yticklabels=values, xlabel=xlabel)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    return fig


def quarters(frames: list[pd.DataFrame], ylabel: str, titles: list[str]) -> Figure:
    """Draw each system's metric over four groups, one panel a frame of ``tables.by_quarter``."""
    fig, axes = _panels(len(frames), width=4.2, height=3, squeeze=False)
    axes = axes[0]
    for ax, frame, title in zip(axes, frames, titles, strict=True):
        for system in frame:
            ax.plot(range(4), frame[system], "o-", ms=3, color=colour(system), label=system)
        ax.set(xticks=range(4), title=title, ylim=(0, None))
        ax.set_xticklabels(frame.index, rotation=20, ha="right", fontsize=7)
    axes[0].set_ylabel(ylabel)
    axes[-1].legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def map_of(factors, names, labels, listeners, seed: int, named: int = 25) -> Figure:
    """Draw items in two dimensions (t-SNE by cosine), coloured by label, the best known named.

    Factors are taken as departures from their mean.
    """
    place = TSNE(
        metric="cosine",
        init="random",
        perplexity=min(30, (len(factors) - 1) // 3),
        random_state=seed,
    ).fit_transform(np.asarray(factors - np.mean(factors, axis=0), np.float32))
    fig, ax = _panels(1, width=8, height=6)
    shown = [label for label in dict.fromkeys(sorted(labels)) if label]
    for label, tint in [("", "0.8"), *zip(shown, _PALETTE, strict=False)]:
        own = np.asarray(labels) == label
        ax.scatter(*place[own].T, s=14, lw=0, color=tint, label=label or None)
    for i in np.argsort(-np.asarray(listeners), kind="stable")[:named]:
        ax.annotate(
            str(names[i])[:32].replace("$", r"\$"), place[i], fontsize=5.5, ha="center", va="bottom"
        )
    ax.set(xticks=[], yticks=[])
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), title="tag")
    return fig


def recall_curves(systems: dict, resamples: int, seed: int) -> Figure:
    """Draw Recall@M with bootstrap bands; ``systems`` maps a name to its per-user metrics."""
    from repro.evaluation.metrics import bootstrap

    fig, ax = _panels(1, width=5.2, height=3.4)
    lines = ["-", "--", ":", "-."]
    for i, (system, per_user) in enumerate(systems.items()):
        columns = [c for c in per_user if c.startswith("R@")]
        at = [int(c.removeprefix("R@")) for c in columns]
        band = bootstrap(per_user[columns], resamples, seed)
        ax.fill_between(at, band["low"], band["high"], color=colour(system), alpha=0.2, lw=0)
        ax.plot(
            at, band["mean"], lines[i % 4], marker="o", ms=3, color=colour(system), label=system
        )
    ax.set(xlabel="length of the list, M", ylabel="Recall@M", ylim=(0, None), xticks=at)
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    return fig


def dots(values: dict, xlabel: str) -> Figure:
    """Draw the values of each system on a line of its own, their mean as a bar."""

    def mean(ax, y, own, color):
        ax.plot([np.mean(own)] * 2, [y - 0.3, y + 0.3], color=color, lw=2)

    fig = _rows_of_dots(values, xlabel, mean)
    fig.axes[0].set_xlim(0, None)
    return fig


def sweep(frame: pd.DataFrame, by: str, xlabel: str) -> Figure:
    """Draw NDCG in-matrix and out-of-matrix of each system along one setting."""
    fig, axes = _panels(2, width=3.8, height=2.8)
    for ax, where in zip(axes, ("in-matrix", "out-of-matrix"), strict=True):
        for system, own in frame.dropna(subset=[where]).groupby("system", sort=False):
            ax.plot(own[by], own[where], "o-", ms=3, color=colour(system), label=system)
        ax.set(xscale="log", xlabel=xlabel, title=where)
    axes[0].set_ylabel("NDCG")
    axes[0].legend(fontsize=7)
    return fig


def thinning(frame: pd.DataFrame, metric: str = "NDCG") -> Figure:
    """Draw each system's metric, and what it has over WMF, by the share of the plays kept."""
    fig, (left, right) = _panels(2, width=4, height=3)
    plain = frame[frame["system"] == "WMF"].set_index(["share", "draw"])[metric]
    for system, own in frame.groupby("system", sort=False):
        values = own.set_index(["share", "draw"])[metric]
        for ax, shown in ((left, values), (right, values - plain)):
            band = shown.groupby("share").agg(["mean", "min", "max"])
            ax.fill_between(band.index, band["min"], band["max"], alpha=0.2, color=colour(system))
            ax.plot(band.index, band["mean"], "o-", ms=3, color=colour(system), label=system)
    left.set(xscale="log", xlabel="share of training plays kept", ylabel=metric)
    right.set(xscale="log", xlabel="share of training plays kept", ylabel=f"{metric} less WMF's")
    left.legend(fontsize=7)
    return fig


def intervals(frame: pd.DataFrame, xlabel: str) -> Figure:
    """Draw a mean and its interval for each row: columns ``mean``, ``low``, ``high``."""
    fig, ax = _panels(1, width=5, height=0.6 + 0.32 * len(frame))
    ax.axvline(0, color="0.5", lw=0.8, ls="--")
    for y, (name, row) in enumerate(frame[::-1].iterrows()):
        ax.plot([row["low"], row["high"]], [y, y], color=colour(name), lw=2)
        ax.plot(row["mean"], y, "o", color=colour(name), ms=5)
    ax.set(yticks=range(len(frame)), yticklabels=frame.index[::-1], xlabel=xlabel)
    ax.set_ylim(-0.6, len(frame) - 0.4)
    ax.grid(axis="y", visible=False)
    return fig
