"""Vector quantisation: a codebook of frames, and a histogram of codewords for every track."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice

import faiss
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from sklearn.base import clone
from sklearn.cluster import kmeans_plusplus
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from repro import kernels

_BLOCK_TRACKS = 2_000  # some 70 MB of timbre


@dataclass(frozen=True)
class Codebook:
    """``centres`` (J x D, float32) in frames shifted by ``offset`` and divided by ``scale`` (D)."""

    centres: np.ndarray
    offset: np.ndarray
    scale: np.ndarray

    def assign(self, frames: np.ndarray, nearest: int = 1) -> np.ndarray:
        """Return each frame's ``nearest`` codewords, n x nearest, the closest first.

        Of codewords equally far the first counts, but for rounding.
        """
        if frames.shape[1] != len(self.offset):
            raise ValueError(f"frames have {frames.shape[1]} dimensions, not {len(self.offset)}")
        faiss.omp_set_num_threads(torch.get_num_threads())  # its OpenMP is not torch's
        middle = self.centres.mean(0)  # about it float32 loses few digits to a common offset
        index = faiss.IndexFlatL2(len(middle))
        index.add(self.centres - middle)
        x = np.subtract(frames, self.offset + middle * self.scale, dtype=np.float32)
        x /= self.scale
        _, code = index.search(x, nearest)
        if (code < 0).any():
            raise ValueError("frames must be finite, and codewords as many as are asked for")
        return code


def codebook_tracks(track_ids, hotness, n: int, seed: int) -> np.ndarray:
    """Return the tracks to learn the codebook from: 24 with a hotttnesss for each one without.

    The authors took 24,000 and 1,000. Where either kind is short the other fills its place.
    """
    track_ids, n = np.asarray(track_ids), min(n, len(track_ids))
    order = np.random.default_rng(seed).permutation(len(track_ids))
    hot = np.asarray(hotness, dtype=float)[order] > 0  # NaN is not
    warm, cool = order[hot], order[~hot]
    n_cool = min(len(cool), max(n - len(warm), round(n / 25)))
    return track_ids[np.sort(np.concatenate([warm[: n - n_cool], cool[:n_cool]]))]


def learn_codebook(
    frames: np.ndarray, codewords: int, passes: int = 3, seed: int = 0, standardise: bool = False
) -> Codebook:
    """Learn a codebook from frames, n x D, by k-means.

    k-means++ on 8 frames per codeword, eight iterations on 128, then ``passes`` on all frames: as
    close to them as mini-batch k-means, in a tenth of its time. The authors made 3 passes of
    online Hartigan k-means. ``standardise`` is for frames whose dimensions have different units;
    it is off for Echo Nest timbre, as in the paper. A ValueError says that there are fewer frames
    than codewords, or that a frame is not finite.
    """
    frames = np.asarray(frames, dtype=np.float32)
    if len(frames) < codewords:
        raise ValueError(f"{len(frames)} frames cannot fill {codewords} codewords")
    if not np.isfinite([frames.min(), frames.max()]).all():
        raise ValueError("frames must be finite")
    middle = frames.mean(0, dtype=np.float64).astype(np.float32)
    spread = frames.std(0, dtype=np.float64).astype(np.float32) if standardise else 0.0 * middle
    scale = np.where(spread > 0, spread, np.float32(1.0))
    x = frames - middle
    x /= scale
    some = np.random.default_rng(seed).permutation(len(x))[: 8 * codewords]
    with kernels.one_blas_thread():  # the number of threads must not decide
        centres, _ = kmeans_plusplus(x[some], codewords, random_state=seed, n_local_trials=1)
    faiss.omp_set_num_threads(torch.get_num_threads())
    for iterations, most in ((8, 128), (passes, len(x))):  # of more frames faiss draws a sample
        settings = {"niter": iterations, "max_points_per_centroid": most, "seed": seed}
        settings["min_points_per_centroid"] = 1  # of fewer it warns
        kmeans = faiss.Kmeans(x.shape[1], codewords, **settings)
        kmeans.train(x, init_centroids=centres)
        centres = kmeans.centroids
    offset = middle * standardise
    return Codebook(centres + (middle - offset), offset, scale)


def histograms(
    read, tracks, codebook, frames_per_item=None, nearest=1, seed=0, progress=iter, checkpoint=None
) -> sp.csr_matrix:
    """Count the codewords of every track (tracks x J, int32), a block of tracks at a time.

    ``read`` gives the frames (n x D) of one of the ``tracks``; n may be 0, and its row is empty
    then. At most ``frames_per_item`` are kept, drawn without replacement. A frame counts for its
    ``nearest`` codewords. The paper has 1; more (McFee, Barrington and Lanckriet 2012) blur the
    borders between codewords, which matters where frames are few. ``checkpoint`` makes one of a
    block's name, as :meth:`repro.pipeline.run.Run.checkpoint` does.
    """
    ids, found = iter(progress(tracks)), []
    for number, block in enumerate(iter(lambda: list(islice(ids, _BLOCK_TRACKS)), [])):
        kept = checkpoint and checkpoint(f"block {number}", every=0)
        if not (kept and (state := kept.load())):
            frames = [read(track) for track in block]
            if frames_per_item is not None:
                rng = np.random.default_rng(seed + number)
                frames = [rng.permutation(x)[:frames_per_item] for x in frames]
            code = codebook.assign(np.concatenate(frames), nearest).astype(np.int32)
            state = {"code": torch.from_numpy(code), "lengths": [len(x) for x in frames]}
            if kept:
                kept.save(lambda state=state: state)
        code, ends = state["code"].numpy().ravel(), np.cumsum([0, *state["lengths"]]) * nearest
        parts = np.ones(len(code), np.int32), code, ends
        found.append(sp.csr_matrix(parts, (len(block), len(codebook.centres))))
        found[-1].sum_duplicates()
    return sp.vstack(found, format="csr")


def l1_normalise(counts: sp.csr_matrix) -> np.ndarray:
    """Return histograms that sum to one (ISMIR sec. 3.1), dense float32; empty rows stay zero."""
    total = np.asarray(counts.sum(1), dtype=np.float32).ravel()
    return counts.toarray().astype(np.float32) / np.maximum(total, 1.0)[:, None]


def rows_of(track_ids: np.ndarray, wanted: np.ndarray, counts: sp.csr_matrix) -> sp.csr_matrix:
    """Return the rows of ``counts`` (one per track id) for ``wanted``; unknown ids are empty."""
    row = pd.Index(track_ids).get_indexer(wanted)  # -1 where there is none: the last
    return sp.vstack([counts, sp.csr_matrix((1, counts.shape[1]), dtype=counts.dtype)], "csr")[row]


_TRANSFORMERS = {
    "raw": FunctionTransformer(),
    "root": FunctionTransformer(np.sqrt),
    "tf-idf": TfidfTransformer(norm="l1"),
    "standardised": StandardScaler(),
}
SCALES = tuple(_TRANSFORMERS)


def rescale(scale: str, features: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return features, and ``others`` by what was learned from the first, on another scale.

    ``root`` takes the root, after which products compare distributions (Hellinger); ``tf-idf``
    plays down codewords that most items have; ``standardised`` gives zero mean, unit variance.
    """
    transform = clone(_TRANSFORMERS[scale])
    scaled = [transform.fit_transform(features)]
    scaled += [transform.transform(x) if len(x) else x for x in others]
    return tuple(np.asarray(x.toarray() if sp.issparse(x) else x, np.float32) for x in scaled)
