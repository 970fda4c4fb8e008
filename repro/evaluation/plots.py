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
    """Set the collection's look, whatever the user's own matplotlibrc says.

    Small sans-serif type, a light grid, no frame.
    """
    plt.rcdefaults()
    sns.set_theme(
        context="paper",
        style="whitegrid",
        font_scale=0.95,
        rc={"axes.spines.top": False, "axes.spines.right": False, "grid.linewidth": 0.5},
    )


def _lines(ax, frame: pd.DataFrame, x: str, y: str, **options) -> None:
    """Draw a line per system, dashed differently so that none hides another.

    Where rows of the same system and ``x`` differ (seeds, or the ends of an interval), the line is
    at their median or the given ``estimator``, in a band from the least to the greatest.
    """
    names = frame["system"].unique()
    options = {"errorbar": ("pi", 100), "legend": False, "err_kws": {"lw": 0}} | options
    sns.lineplot(
        frame, x=x, y=y, hue="system", style="system", palette=_palette(frame), ax=ax,
        markers=["o"] * len(names), ms=3.5, mew=0, **options,
    )  # fmt: skip


def _legend_outside(ax, **options) -> None:
    ax.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1), **options)


def _panels(n: int, width: float = 3.4, height: float = 2.6, **options):
    return plt.subplots(1, n, figsize=(width * n, height), layout="constrained", **options)


def activity_and_popularity(subsets: dict, item: str) -> Figure:
    """Draw how many users (items) have at least so many items (users), for each subset's plays."""
    fig, axes = _panels(2)
    for (name, plays), line in zip(subsets.items(), ("-", "--", ":"), strict=False):
        for ax, counts in zip(axes, (plays.getnnz(axis=1), plays.getnnz(axis=0)), strict=True):
            counts = np.sort(counts[counts > 0])
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
    size = (7, 0.95 * len(names))
    fig, axes = plt.subplots(len(names), figsize=size, sharex=True, squeeze=False)
    fig.set_layout_engine("constrained")
    for ax, histogram, name in zip(axes[:, 0], histograms, names, strict=True):
        used = np.flatnonzero(histogram)
        ax.vlines(used, 0, histogram[used], color="0.3", lw=0.8)
        title = f"{name}  ({len(used)} codewords)".replace("$", r"\$")
        ax.set_title(title, loc="left", fontsize=7)
        ax.set_ylim(0)
        ax.locator_params(axis="y", nbins=2)
    axes[-1, 0].set(xlabel="codeword", xlim=(-5, histograms.shape[1] + 5))
    fig.supylabel("share of frames", fontsize=8)
    return fig


def learning_curve(curve: pd.DataFrame, floor: float) -> Figure:
    """Draw the tag loss of every epoch, and that of predicting each tag's frequency."""
    fig, ax = _panels(1, width=4.6)
    ax.plot(curve["epoch"], curve["training"], "o-", ms=3, label="training, with dropout")
    ax.plot(curve["epoch"], curve["held out"], "s-", ms=3, label="held out")
    ax.axhline(floor, color="0.5", ls="--", label="tag frequencies alone")
    ax.set(xlabel="epoch", ylabel="loss per song and tag (nats)", yscale="log")
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter("{x:g}")
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
    history = pd.concat(
        {system: pd.DataFrame(rows) for system, rows in histories.items()}, names=["system"]
    ).reset_index(level="system")
    updates = history.dropna(subset=["objective"])
    within = updates.groupby(["system", "sweep"])["step"]
    updates["time"] = updates["sweep"] - 1 + (within.cumcount() + 1) / within.transform("size")
    _lines(left, updates, "time", "objective", legend="auto")
    left.set(xlabel="sweep", ylabel="objective (lower is better)")
    _lines(right, history.dropna(subset=[metric]), "sweep", metric)
    right.set(xlabel="sweep", ylabel=f"validation {metric}")
    for ax in (left, right):
        ax.xaxis.get_major_locator().set_params(integer=True)
    left.legend(fontsize=7)
    return fig


def trials(frame: pd.DataFrame, metric: str = "NDCG") -> Figure:
    """Draw the validation metric of every trial of every system, the winner in a ring."""
    fig, ax = _strip(frame, metric)
    best = frame.loc[frame.groupby("system", sort=False)[metric].idxmax()]
    ax.plot(best[metric], range(len(best)), "o", ms=9, mfc="none", color="black", clip_on=False)
    ax.set_xlabel(f"{metric} of a trial")
    return fig


def dots(frame: pd.DataFrame, metric: str) -> Figure:
    """Draw a dot per row of every system (one seed each), their mean as a bar."""
    fig, ax = _strip(frame, metric)
    sns.pointplot(
        frame, x=metric, y="system", hue="system", palette=_palette(frame), errorbar=None,
        linestyle="none", marker="|", markersize=16, markeredgewidth=2, ax=ax, legend=False,
    )  # fmt: skip
    ax.set(xlim=(0, None), ylabel="")
    return fig


def _palette(frame: pd.DataFrame) -> dict:
    return {name: colour(name) for name in frame["system"].unique()}


def _strip(frame: pd.DataFrame, metric: str):
    names = frame["system"].unique()
    fig, ax = _panels(1, width=5.6, height=0.7 + 0.26 * len(names))
    sns.stripplot(
        frame, x=metric, y="system", hue="system", palette=_palette(frame), jitter=False,
        size=4, alpha=0.5, ax=ax, legend=False,
    )  # fmt: skip
    ax.set(ylabel="", ylim=(len(names) - 0.4, -0.6))
    ax.margins(x=0.05)
    return fig, ax


def quarters(frames: list[pd.DataFrame], metric: str, titles: list[str], than: str) -> Figure:
    """Draw what each system has over ``than`` in four groups.

    One panel per frame of :func:`repro.evaluation.tables.by_quarter`. The systems' own values lie
    so close that only their differences show.
    """
    fig, axes = _panels(len(frames), width=4.2, height=3, squeeze=False)
    for ax, frame, title in zip(axes[0], frames, titles, strict=True):
        names = [f"{low:g}–{high:g}" for low, high in frame[["least", "most"]].to_numpy()]
        apart = frame.drop(columns=["least", "most"]).sub(frame[than], axis=0)
        apart = apart.drop(columns=than).assign(quarter=range(4))
        long = apart.melt("quarter", var_name="system", value_name=metric)
        _lines(ax, long, "quarter", metric, legend="auto" if ax is axes[0, -1] else False)
        ax.axhline(0, color="0.5", lw=0.8)
        ax.set(xticks=range(4), xlabel="", ylabel="", title=title)
        ax.set_xticklabels(names)
    axes[0, 0].set_ylabel(f"{metric} minus that of {than}")
    _legend_outside(axes[0, -1])
    return fig


def map_of(factors, names, labels, listeners, seed: int, named: int = 40) -> Figure:
    """Draw items in two dimensions (t-SNE by cosine), coloured by label.

    Factors are taken as departures from their mean. The ``named`` best known have their names,
    but where these would cover another's.
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
    ax.set(xticks=[], yticks=[])
    _legend_outside(ax, title="tag")
    fig.canvas.draw()  # names are compared where they will stand
    covered = []
    for i in np.argsort(-np.asarray(listeners), kind="stable")[:named]:
        name = str(names[i])[:32].replace("$", r"\$")
        text = ax.annotate(name, place[i], fontsize=6.5, ha="center", va="bottom")
        box = text.get_window_extent()
        if any(box.overlaps(other) for other in covered):
            text.remove()
        else:
            covered.append(box)
    return fig


def recall_curves(ranking: pd.DataFrame) -> Figure:
    """Draw Recall@M by M with its intervals over users, from a frame of ``tables.ranking``."""
    fig, ax = _panels(1, width=5.2, height=3.4)
    recall = ranking[ranking["metric"].str.startswith("R@")]
    recall = recall.assign(M=recall["metric"].str.removeprefix("R@").astype(int))
    # The mean lies between the ends of its interval, so it is the median of the three.
    three = recall.melt(["system", "M"], ["low", "mean", "high"], value_name="recall")
    _lines(ax, three, "M", "recall", estimator="median", legend="auto")
    ax.set(xlabel="length of the list, M", ylabel="R@M", ylim=(0, None))
    ax.set_xticks(recall["M"].unique())
    _legend_outside(ax)
    return fig


def sweep(frame: pd.DataFrame, by: str, xlabel: str) -> Figure:
    """Draw NDCG in-matrix and out-of-matrix of each system along one setting."""
    fig, axes = _panels(2, width=3.8, height=2.8)
    for ax, where in zip(axes, ("in-matrix", "out-of-matrix"), strict=True):
        own = frame.dropna(subset=[where])
        _lines(ax, own, by, where, legend="auto" if where == "in-matrix" else False)
        ax.set(xscale="log", xlabel=xlabel, ylabel="", title=where)
    axes[0].set_ylabel("NDCG")
    axes[0].legend(fontsize=7)
    return fig


def thinning(frame: pd.DataFrame, metric: str = "NDCG") -> Figure:
    """Draw each system's metric, and what it has over WMF, by the share of the plays kept.

    Bands reach from the least to the greatest of the draws of the plays.
    """
    fig, axes = _panels(2, width=4, height=3)
    plain = frame[frame["system"] == "WMF"].set_index(["share", "draw"])[metric]
    of_wmf = plain.loc[pd.MultiIndex.from_frame(frame[["share", "draw"]])].to_numpy()
    apart = frame.assign(**{metric: frame[metric] - of_wmf})
    shares = np.sort(frame["share"].unique())
    for ax, shown in zip(axes, (frame, apart), strict=True):
        _lines(ax, shown, "share", metric, legend="auto" if shown is frame else False)
        ylabel = metric if shown is frame else f"{metric} minus WMF's"
        ax.set(xscale="log", xlabel="share of training plays kept", ylabel=ylabel)
        ax.set_xticks(shares, [f"{share:g}" for share in shares], minor=False)
        ax.minorticks_off()
    axes[0].legend(fontsize=7)
    return fig


def intervals(frame: pd.DataFrame, xlabel: str) -> Figure:
    """Draw a mean and its interval for each row: columns ``mean``, ``low``, ``high``."""
    fig, ax = _panels(1, width=5, height=0.6 + 0.32 * len(frame))
    ax.axvline(0, color="0.5", lw=0.8, ls="--")
    for name, row in frame.iterrows():
        ends = [[row["mean"] - row["low"]], [row["high"] - row["mean"]]]
        ax.errorbar(row["mean"], [name], xerr=ends, fmt="o", ms=5, elinewidth=2, color=colour(name))
    ax.set(xlabel=xlabel, ylim=(len(frame) - 0.4, -0.6))
    ax.locator_params(axis="x", nbins=6)
    ax.grid(axis="y", visible=False)
    return fig
