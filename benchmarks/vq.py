"""Vector quantisation of timbre-like frames: 1,024 codewords of 12 dimensions."""

from __future__ import annotations

import time

import numpy as np

from . import world
from .harness import Options, Report, interleave, ratio, spread, times

LEARNING, PASSES, ALL_FRAMES = 19e6, 3, 750e6  # frames of 25,000 tracks, and of a million


def ours(frames, centres):
    """``repro.models.vq``'s assignment, faiss about the mean codeword."""
    from repro.models.vq import Codebook

    x, centres = np.load(frames), np.load(centres)
    dims = centres.shape[1]
    book = Codebook(centres, np.zeros(dims, np.float32), np.ones(dims, np.float32))
    while True:
        began = time.perf_counter()
        code = book.assign(x)
        yield {"seconds": [time.perf_counter() - began], "code": np.ravel(code)}


def sklearn(frames, centres):
    """Scikit-learn's MiniBatchKMeans.predict."""
    from sklearn.cluster import MiniBatchKMeans

    x, centres = np.load(frames), np.load(centres)
    model = MiniBatchKMeans(len(centres), init=centres, n_init=1, max_iter=1, batch_size=1024)
    model.fit(x[: 4 * len(centres)])
    model.cluster_centers_ = centres
    while True:
        began = time.perf_counter()
        code = model.predict(x)
        yield {"seconds": [time.perf_counter() - began], "code": code}


def learn(frames, codewords):
    """``repro.models.vq.learn_codebook``."""
    from repro.models.vq import learn_codebook

    x = np.load(frames)
    began = time.perf_counter()
    book = learn_codebook(x, codewords, passes=PASSES)
    yield {"seconds": [time.perf_counter() - began], "centres": book.centres}


def learn_sklearn(frames, codewords):
    """Scikit-learn's MiniBatchKMeans, as many passes over shuffled frames."""
    from sklearn.cluster import MiniBatchKMeans

    x = np.load(frames)
    began = time.perf_counter()
    model = MiniBatchKMeans(
        codewords,
        batch_size=min(8192, len(x)),
        max_iter=PASSES,
        max_no_improvement=None,
        n_init=1,
        random_state=0,
        compute_labels=False,
    ).fit(x)
    yield {"seconds": [time.perf_counter() - began], "centres": model.cluster_centers_}


def distortion(x, centres, code=None) -> float:
    """Return the mean squared distance to the codewords assigned, or to the nearest."""
    if code is not None:
        return float(((x - centres[code]) ** 2).sum(1, dtype=np.float64).mean())
    x, centres = x.astype(np.float64), centres.astype(np.float64)
    nearest = (centres**2).sum(1) - 2 * x @ centres.T
    return float((nearest.min(1) + (x**2).sum(1)).mean())


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    n, codewords = (20_000, 64) if options.small else (2_000_000, 1024)
    x = world.frames(n + 20_000)
    x, fresh = x[:n], x[n:]
    centres = x[np.random.default_rng(1).choice(n, codewords, replace=False)]
    paths = {"frames": options.scratch / "frames.npy", "centres": options.scratch / "centres.npy"}
    np.save(paths["frames"], x)
    np.save(paths["centres"], centres)
    systems = {"ours": ours, "scikit-learn": sklearn}
    turns = interleave({k: (f, paths) for k, f in systems.items()}, options.rounds)
    exact = distortion(fresh, centres), distortion(fresh, centres, ours_code(fresh, centres))
    np.testing.assert_allclose(*exact, rtol=1e-4)
    base = turns["ours"][0]["code"]
    rows = report.tables["vq"] = []
    for name, turn in turns.items():
        code = turn[0]["code"]
        quality = [distortion(x, centres, c) for c in (code, base)]
        np.testing.assert_allclose(*quality, rtol=1e-4)
        rate = spread([n / seconds / 1e6 for seconds in times(turn)])
        row = {"work": "assignment", "system": name}
        row |= {f"million frames/s, {k}": v for k, v in rate.items()}
        row["agreement"] = f"{100 * np.mean(code == base):.3f}% of codes as ours"
        row["minutes at full size (extrapolated)"] = ALL_FRAMES / rate["median"] / 6e7
        row["times ours"] = ratio(turn, turns["ours"]) if name != "ours" else None
        row |= {"target": "", "reached": ""}
        if name != "ours" and not options.small:
            row |= report.goal(f"VQ assignment against {name}", row["times ours"], 3)
        rows.append(row)
    given = {"frames": paths["frames"], "codewords": codewords}
    learning = {"ours": learn, "scikit-learn's mini-batch k-means": learn_sklearn}
    turns = interleave({k: (f, given) for k, f in learning.items()}, 0)
    quality = {name: distortion(fresh, turn[0]["centres"]) for name, turn in turns.items()}
    for name, turn in turns.items():
        rate = n * PASSES / times(turn)[0] / 1e6
        row = {"work": f"learning, {PASSES} passes", "system": name}
        row |= {f"million frames/s, {k}": rate for k in ("median", "min", "max")}
        row["agreement"] = f"mean squared distance {quality[name]:.1f} on fresh frames"
        row["minutes at full size (extrapolated)"] = LEARNING * PASSES / rate / 6e7
        row["times ours"] = ratio(turn, turns["ours"]) if name != "ours" else None
        row |= {"target": "", "reached": ""}
        if name != "ours" and not options.small:
            work = f"VQ codebook against {name}"
            row |= report.goal(work, row["times ours"], 10)
            worse = quality["ours"] / quality[name]
            report.goal(f"{work}: mean squared distance over its", worse, 1.01, low=True)
        rows.append(row)
    report.notes.append(
        f"{n:,} generated frames, {codewords:,} codewords. Full size, extrapolated: learning from "
        f"{LEARNING / 1e6:.0f} million frames, {PASSES} passes; assignment of "
        f"{ALL_FRAMES / 1e6:.0f} million. Learning was timed once, a pass of a frame counted as a "
        "frame; reading from disk is not included."
    )


def ours_code(x, centres):
    """Return the codes of our assignment, in this process."""
    from repro.models.vq import Codebook

    ones = np.ones(centres.shape[1], np.float32)
    return np.ravel(Codebook(centres, 0 * ones, ones).assign(x))
