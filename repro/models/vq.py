"""Vector quantisation: a codebook of frames, and a histogram of codewords for every track."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import scipy.sparse as sp
import torch
from numba import types
from numba.extending import intrinsic
from sklearn.cluster import MiniBatchKMeans
from sklearn.feature_extraction.text import TfidfTransformer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from repro import kernels
from repro.kernels import LANES, Vectors, aligned, compiled

_BLOCK_FRAMES = 262_144
_BLOCK_TRACKS = 10_000
_TASK_FRAMES = 16_384
_ROWS = LANES // 2  # frames whose distances to LANES codewords fill the registers


@dataclass(frozen=True)
class Codebook:
    """``centres`` (J x D, float32) in frames shifted by ``offset`` and divided by ``scale`` (D)."""

    centres: np.ndarray
    offset: np.ndarray
    scale: np.ndarray

    def assign(self, frames: np.ndarray, nearest: int = 1) -> np.ndarray:
        """Return each frame's ``nearest`` codewords, n x nearest, the closest first.

        Squared distances are taken in float32 about the mean codeword, so that a common offset of
        frames and codewords costs no digits. Of codewords equally far the first counts.
        """
        if frames.shape[1] != len(self.offset):
            raise ValueError(f"frames have {frames.shape[1]} dimensions, not {len(self.offset)}")
        middle = self.centres.mean(0)
        centres = self.centres - middle
        half = ((centres.astype(np.float64) ** 2).sum(1) / 2).astype(np.float32)
        code = np.empty((len(frames), nearest), np.int64)
        if nearest == 1:
            shift = [np.asarray(v, np.float32) for v in (self.offset, self.scale, middle)]
            tiles, halves = _tiles(centres, half)

            def task(start):
                part = slice(start, start + _TASK_FRAMES)
                _closest(frames[part], *shift, tiles, halves, code[part, 0])

            kernels.parallel_map(task, range(0, len(frames), _TASK_FRAMES))
        else:
            half, matrix = torch.from_numpy(half), torch.from_numpy(centres.T)
            for start in range(0, len(frames), _TASK_FRAMES):
                part = slice(start, start + _TASK_FRAMES)
                x = (frames[part] - self.offset) / self.scale - middle
                x = torch.from_numpy(x.astype(np.float32))
                distance = torch.addmm(half, x, matrix, alpha=-1)
                code[part] = distance.topk(nearest, largest=False).indices
        return code

    def assign_slowly(self, frames: np.ndarray) -> np.ndarray:
        """Return each frame's closest codeword from all distances in float64, n x 1."""
        x = (np.asarray(frames, np.float64) - self.offset) / self.scale
        return ((x[:, None] - self.centres) ** 2).sum(2).argmin(1)[:, None]


def _tiles(centres: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return centres, a tile of LANES after the other, and ||c||^2 / 2, infinite where padded."""
    count, dims = centres.shape
    tiles = -(-count // LANES)
    codewords, halves = aligned(tiles * dims, LANES), np.full(tiles * LANES, np.inf, np.float32)
    halves[:count] = half
    padded = np.pad(centres, ((0, tiles * LANES - count), (0, 0)))
    codewords[:] = padded.reshape(tiles, LANES, dims).swapaxes(1, 2).reshape(-1, LANES)
    return codewords.ravel(), halves


@compiled(error_model="numpy")
def _closest(frames, offset, scale, middle, tiles, halves, code):
    """Write the index of the closest codeword of every frame, _ROWS frames at a time."""
    dims, found = len(offset), np.empty(_ROWS, np.int32)
    minus = np.zeros(_ROWS * dims, np.float32)
    for start in range(0, len(frames), _ROWS):
        n = min(_ROWS, len(frames) - start)
        for i in range(n):
            for d in range(dims):
                minus[i * dims + d] = middle[d] - (frames[start + i, d] - offset[d]) / scale[d]
        _scan(minus, dims, tiles, halves, len(halves), found)
        for i in range(n):
            code[start + i] = found[i]


@intrinsic
def _scan(typing, minus, dims, tiles, halves, count, found):
    """Find the codeword of least ||c||^2 / 2 - x.c, the first of equals, of each of _ROWS -x."""

    def generate(context, builder, signature, args):
        v = Vectors(context, builder, signature, args)
        minus, dims, tiles, halves, count, found = v.args
        frames = [v.times(dims, i) for i in range(_ROWS)]
        best = v.variables([v.broadcast(v.number(np.inf))] * _ROWS)
        owners = v.variables([v.iota] * _ROWS)
        sums = v.variables([v.zero] * _ROWS)
        with v.loop(v.whole(count)) as turn:
            half = v.load(halves, v.times(turn.index, LANES))
            for total in sums:
                builder.store(half, total)
            begin = builder.mul(turn.index, v.times(dims, LANES))
            with v.loop(dims) as d:
                c = v.load(tiles, begin, v.times(d.index, LANES))
                for frame, total in zip(frames, sums, strict=True):
                    v.add_to(total, v.broadcast_at(minus, frame, d.index), c)
            first = v.broadcast(builder.trunc(v.times(turn.index, LANES), v.integer))
            index = builder.add(first, v.iota)
            for total, slot, owner in zip(sums, best, owners, strict=True):
                value, before = builder.load(total), builder.load(slot)
                less = builder.fcmp_ordered("<", value, before)
                builder.store(builder.select(less, value, before), slot)
                builder.store(builder.select(less, index, builder.load(owner)), owner)
        for i, (slot, owner) in enumerate(zip(best, owners, strict=True)):
            value, index, size = builder.load(slot), builder.load(owner), LANES
            while size > 1:  # the better of the two halves of the lanes that are left
                size //= 2
                turned = [(lane + size) % LANES for lane in range(LANES)]
                other, owned = v.shuffle(value, value, turned), v.shuffle(index, index, turned)
                less = builder.fcmp_ordered("<", other, value)
                equal = builder.fcmp_ordered("==", other, value)
                sooner = builder.and_(equal, builder.icmp_signed("<", owned, index))
                less = builder.or_(less, sooner)
                value = builder.select(less, other, value)
                index = builder.select(less, owned, index)
            v.store(v.lane(index, 0), found, i)
        return v.done

    n = types.int64
    return types.void(minus, n, tiles, halves, n, found), generate


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
    if not np.isfinite([frames.min(), frames.max()]).all():
        raise ValueError("frames must be finite")
    dims = frames.shape[1]
    offset, scale = np.zeros(dims, np.float32), np.ones(dims, np.float32)
    if standardise:
        offset = frames.mean(0, dtype=np.float64).astype(np.float32)
        scale = frames.std(0, dtype=np.float64).astype(np.float32)
        scale[scale == 0] = 1.0
        frames = (frames - offset) / scale
    kmeans = MiniBatchKMeans(
        codewords,
        batch_size=min(8192, len(frames)),
        max_iter=passes,
        max_no_improvement=None,
        n_init=1,
        random_state=seed,
        compute_labels=False,
    ).fit(frames)
    return Codebook(kmeans.cluster_centers_.astype(np.float32), offset, scale)


def at_once(name: str, compute: Callable[[], dict]) -> dict:
    """Count, and remember nothing."""
    return compute()


def histograms(
    read_frames: Callable[[str], np.ndarray],
    track_ids: Sequence[str],
    codebook: Codebook,
    frames_per_item: int | None = None,
    nearest: int = 1,
    seed: int = 0,
    progress: Callable[[Sequence[str]], Sequence[str]] = iter,
    keep: Callable[[str, Callable[[], dict]], dict] = at_once,
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
    keep : callable
        From a name and the function that counts so many tracks to what it gives, so that a long
        run can go on where it was: see :meth:`repro.pipeline.run.Run.part`.

    Returns
    -------
    csr_matrix of int32, tracks x J; a track without frames has an empty row.
    """
    ids, seen = iter(progress(track_ids)), 0

    def count(pending):
        code = codebook.assign(np.concatenate(pending), nearest).ravel()
        ends = np.cumsum([0, *(nearest * len(frames) for frames in pending)])
        shape = (len(pending), len(codebook.centres))
        part = sp.csr_matrix((np.ones(len(code), np.int32), code, ends), shape)
        part.sum_duplicates()
        return part

    def block(number):
        nonlocal seen
        rng = np.random.default_rng(seed + number)
        parts, pending, held = [], [], 0
        for track in islice(ids, _BLOCK_TRACKS):
            seen += 1
            frames = read_frames(track)
            if frames_per_item is not None and len(frames) > frames_per_item:
                frames = frames[rng.choice(len(frames), frames_per_item, replace=False)]
            pending.append(frames)
            held += len(frames)
            if held >= _BLOCK_FRAMES:
                parts.append(count(pending))
                pending, held = [], 0
        parts += [count(pending)] if pending else []
        return {"counts": sp.vstack(parts, format="csr")}

    found = []
    for number, begin in enumerate(range(0, len(track_ids), _BLOCK_TRACKS)):
        found.append(keep(f"block {number}", partial(block, number))["counts"])
        end = min(begin + _BLOCK_TRACKS, len(track_ids))
        deque(islice(ids, end - seen), 0)  # it was kept: pass over its tracks
        seen = end
    return sp.vstack(found, format="csr")


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


SCALES = "raw", "root", "tf-idf", "standardised"


def rescale(scale: str, features: np.ndarray, *others: np.ndarray) -> tuple[np.ndarray, ...]:
    """Return features, and ``others`` by what was learned from the first, on another scale.

    ``raw`` leaves them; ``root`` takes the root, after which products compare distributions
    (Hellinger); ``tf-idf`` plays down codewords that most items have; ``standardised`` gives every
    column zero mean and unit variance.
    """
    if scale not in SCALES:
        raise ValueError(f"unknown scale {scale!r}: choose one of {', '.join(SCALES)}")
    transform = {
        "raw": FunctionTransformer(),
        "root": FunctionTransformer(lambda x: np.sqrt(np.maximum(x, 0))),
        "tf-idf": make_pipeline(
            TfidfTransformer(norm="l1"), FunctionTransformer(lambda x: x.toarray())
        ),
        "standardised": StandardScaler(),
    }[scale]
    scaled = [transform.fit_transform(features)]
    scaled += [transform.transform(x) if len(x) else x for x in others]
    return tuple(np.asarray(x, np.float32) for x in scaled)
