"""Vector quantisation: a codebook of frames, and a histogram of codewords for every track."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
import torch
from sklearn.cluster import MiniBatchKMeans

_BLOCK_FRAMES = 65_536


@dataclass(frozen=True)
class Codebook:
    """``centres`` (J x D, float32) in frames shifted by ``offset`` and divided by ``scale`` (D)."""

    centres: np.ndarray
    offset: np.ndarray
    scale: np.ndarray

    def assign(self, frames: np.ndarray, nearest: int = 1) -> np.ndarray:
        """Return each frame's ``nearest`` codewords, n x nearest: least ||c_j||^2 / 2 - x.c_j."""
        x = torch.from_numpy(((frames - self.offset) / self.scale).astype(np.float32))
        centres = torch.from_numpy(self.centres)
        half = (centres**2).sum(1) / 2
        blocks = []
        for block in x.split(4096):
            distance = torch.addmm(half, block, centres.T, alpha=-1)
            if nearest == 1:  # many times faster than a top-k
                blocks.append(distance.argmin(1, keepdim=True))
            else:
                blocks.append(distance.topk(nearest, largest=False).indices)
        return torch.cat(blocks).numpy()


def codebook_tracks(track_ids, hotness, n: int, seed: int) -> np.ndarray:
    """Return the tracks to learn the codebook from: 24 with a hotttnesss for each one without.

    The authors took 24,000 with non-zero ``song_hotttnesss`` and 1,000 without. Where either kind
    is short the other fills its place.
    """
    track_ids = np.asarray(track_ids)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(track_ids))
    hot = np.nan_to_num(np.asarray(hotness, dtype=float))[order] > 0
    warm, cool = order[hot], order[~hot]
    n = min(n, len(track_ids))
    n_cool = min(len(cool), max(n - len(warm), round(n / 25)))
    return track_ids[np.sort(np.concatenate([warm[: n - n_cool], cool[:n_cool]]))]


def learn_codebook(
    frames: np.ndarray, codewords: int, passes: int = 3, seed: int = 0, standardise: bool = False
) -> Codebook:
    """Learn a codebook by mini-batch k-means over shuffled frames.

    The authors used online Hartigan k-means, 3 passes; mini-batch k-means is the same idea from a
    library and takes the same passes.

    Parameters
    ----------
    frames : array, n x D
    codewords : int
        J.
    standardise : bool
        Quantise frames of zero mean and unit variance. Off for Echo Nest timbre, as in the paper;
        on where the dimensions have different units.

    Raises
    ------
    ValueError
        When there are fewer frames than codewords, or a frame is not finite.
    """
    frames = np.asarray(frames, dtype=np.float32)
    if len(frames) < codewords:
        raise ValueError(f"{len(frames)} frames cannot fill {codewords} codewords")
    if not np.isfinite(frames).all():
        raise ValueError("frames must be finite")
    dims = frames.shape[1]
    offset, scale = np.zeros(dims, np.float32), np.ones(dims, np.float32)
    if standardise:
        offset = frames.mean(0, dtype=np.float64).astype(np.float32)
        scale = frames.std(0, dtype=np.float64).astype(np.float32)
        scale[scale == 0] = 1.0
    kmeans = MiniBatchKMeans(
        codewords,
        batch_size=min(8192, len(frames)),
        max_iter=passes,
        max_no_improvement=None,
        n_init=1,
        random_state=seed,
    ).fit((frames - offset) / scale)
    return Codebook(kmeans.cluster_centers_.astype(np.float32), offset, scale)


def histograms(
    read_frames: Callable[[str], np.ndarray],
    track_ids: Sequence[str],
    codebook: Codebook,
    frames_per_item: int | None = None,
    nearest: int = 1,
    seed: int = 0,
    progress: Callable[[Sequence[str]], Sequence[str]] = iter,
) -> sp.csr_matrix:
    """Count the codewords of every track, reading one block of frames at a time.

    Parameters
    ----------
    read_frames : callable
        Track id -> frames (n x D); n may be 0.
    frames_per_item : int, optional
        Keep at most this many frames of each track, drawn without replacement.
    nearest : int
        Codewords that each frame counts for. The paper has 1; more (McFee, Barrington and
        Lanckriet 2012) blur the borders between codewords, which matters where frames are few.
    progress : callable
        Wraps the ids as they are read, for example in a progress bar.

    Returns
    -------
    csr_matrix of int32, tracks x J; a track without frames has an empty row.
    """
    rng = np.random.default_rng(seed)
    parts, pending, held = [], [], 0

    def count():
        code = codebook.assign(np.concatenate(pending), nearest).ravel()
        row = np.repeat(np.arange(len(pending)), [nearest * len(frames) for frames in pending])
        shape = (len(pending), len(codebook.centres))
        parts.append(sp.coo_matrix((np.ones(len(code), np.int32), (row, code)), shape).tocsr())
        pending.clear()

    for track in progress(track_ids):
        frames = read_frames(track)
        if frames_per_item is not None and len(frames) > frames_per_item:
            frames = frames[rng.choice(len(frames), frames_per_item, replace=False)]
        pending.append(frames)
        held += len(frames)
        if held >= _BLOCK_FRAMES:
            count()
            held = 0
    if pending:
        count()
    return sp.vstack(parts, format="csr")


def l1_normalise(counts: sp.csr_matrix) -> np.ndarray:
    """Return histograms that sum to one (ISMIR sec. 3.1), dense float32; empty rows stay zero."""
    total = np.asarray(counts.sum(1), dtype=np.float32).ravel()
    return counts.toarray().astype(np.float32) / np.maximum(total, 1.0)[:, None]


def rows_of(track_ids: np.ndarray, wanted: np.ndarray, counts: sp.csr_matrix) -> sp.csr_matrix:
    """Return the rows of ``counts`` (one a ``track_ids``) for ``wanted``; unknown ids are empty."""
    place = {track: row for row, track in enumerate(track_ids)}
    row = np.array([place.get(track, -1) for track in wanted], dtype=np.int64)
    known = np.flatnonzero(row >= 0)
    pick = sp.csr_matrix(
        (np.ones(len(known), counts.dtype), (known, row[known])),
        shape=(len(row), counts.shape[0]),
    )
    return (pick @ counts).tocsr()
