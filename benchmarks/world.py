"""Generated plays in the shape of DEN: few songs have most listeners, listeners have tastes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.sparse as sp

USERS, SONGS, COLD = 613_682, 92_543, 4_871  # of DEN, songs in-matrix and out-of-matrix
TRAINING = 26_140_824  # pairs
KEPT = 0.95 * 0.8 * 0.9  # share of all pairs that the splits leave for training
GENRES = 40
SURPLUS = float(2.0 * np.log1p(1 / 1e-6))  # alpha log(1 + 1 / eps), of the paper's settings


@dataclass
class World:
    """``plays`` (users x songs, binary, indices sorted) and the ``genre`` of every song."""

    plays: sp.csr_matrix
    genre: np.ndarray


def den(fraction: float, seed: int = 0, whole: bool = False) -> World:
    """Generate users and songs as in DEN's training pairs, or all pairs with the cold songs.

    Parameters
    ----------
    fraction : float
        Of DEN's users and songs; 1 is the paper's size, 0.1 the reference work.
    whole : bool
        Add the songs to be held out, and the pairs that the splits will take away.
    """
    users = round(USERS * fraction)
    if whole:
        return generate(users, round((SONGS + COLD) * fraction), 20, TRAINING / KEPT / USERS, seed)
    return generate(users, round(SONGS * fraction), 18, TRAINING / USERS, seed)


def tiny() -> World:
    """Generate a world for checks, with rows shorter and longer than K."""
    return generate(1500, 400, 18, 40.0)


def generate(users: int, songs: int, shortest: int, mean: float, seed: int = 0) -> World:
    """Generate plays with log-normal lengths of rows and a power law over songs.

    Each user likes four genres, which seven of ten plays come from.

    Parameters
    ----------
    shortest, mean : int, float
        Plays of the least active user, and of the average one.
    """
    from numba import njit  # late: peers import this module, and their memory is measured

    rng = np.random.default_rng(seed)
    tail = rng.lognormal(np.log(13.0), 1.12, users)
    length = shortest + tail * (mean - shortest) / tail.mean()
    length = np.rint(np.clip(length, shortest, max(shortest, songs // 4))).astype(np.int64)
    genre = np.sort(rng.integers(GENRES, size=songs))
    popularity = rng.permutation((np.arange(songs) + 30.0) ** -0.85)
    bound = np.searchsorted(genre, np.arange(GENRES + 1))
    mass = np.concatenate([[0.0], np.cumsum(popularity)])
    name = rng.permutation(songs).astype(np.int32)
    indptr = np.concatenate([[0], np.cumsum(length)])
    indices = njit(cache=True)(_draw)(indptr, mass, mass[bound], name, seed)
    plays = sp.csr_matrix((np.ones(len(indices), np.float32), indices, indptr), (users, songs))
    plays.sort_indices()
    named = np.empty_like(genre)
    named[name] = genre
    return World(plays, named)


def _draw(indptr, mass, bound, name, seed):
    np.random.seed(seed)
    indices = np.empty(indptr[-1], np.int32)
    owner = np.full(len(name), -1)
    liked = np.empty(4, np.int64)
    for user in range(len(indptr) - 1):
        for place in range(4):
            liked[place] = np.random.randint(len(bound) - 1)
        at, tries = indptr[user], 0
        while at < indptr[user + 1]:
            genre = liked[np.random.randint(4)]
            low, high = bound[genre], bound[genre + 1]
            # A fan who knows nearly all of the four genres looks elsewhere in the end.
            if np.random.random() < 0.3 or tries > 20 * (indptr[user + 1] - indptr[user]):
                low, high = 0.0, mass[-1]
            drawn = low + np.random.random() * (high - low)
            song = min(max(np.searchsorted(mass, drawn, side="right") - 1, 0), len(name) - 1)
            tries += 1
            if owner[song] != user:
                owner[song] = user
                indices[at] = name[song]
                at += 1
    return indices


def features(genre: np.ndarray, width: int = 1200, seed: int = 0) -> np.ndarray:
    """Return what a last hidden layer could say of the songs: float32, about half zeros."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((GENRES, width), dtype=np.float32)
    h = np.empty((len(genre), width), np.float32)
    for part in np.array_split(np.arange(len(genre)), max(1, len(genre) // 4096)):
        noise = rng.standard_normal((len(part), width), dtype=np.float32)
        h[part] = np.maximum(centre[genre[part]] + noise, 0)
    return h


def frames(n: int, dims: int = 12, seed: int = 0) -> np.ndarray:
    """Return frames like timbre: correlated mixtures, wide in the first dimensions."""
    rng = np.random.default_rng(seed)
    spread = (120 / np.arange(1, dims + 1) ** 0.8).astype(np.float32)
    centre = rng.standard_normal((64, dims), dtype=np.float32) * spread
    mixing = rng.standard_normal((64, dims, dims), dtype=np.float32) * 0.4 / np.sqrt(dims)
    mixing += 0.5 * np.eye(dims, dtype=np.float32)
    kind = np.sort(rng.integers(64, size=n))
    x = rng.standard_normal((n, dims), dtype=np.float32)
    edges = np.searchsorted(kind, np.arange(65))
    for k in range(64):
        part = x[edges[k] : edges[k + 1]]
        part[:] = centre[k] + part @ mixing[k] * spread
    return rng.permutation(x)


def save(path: Path, plays: sp.csr_matrix) -> Path:
    """Write ``plays`` where :func:`load` finds it."""
    np.savez(path, indptr=plays.indptr, indices=plays.indices, shape=plays.shape)
    return path


def load(path: Path, value: float = 1.0) -> sp.csr_matrix:
    """Return saved plays with ``value`` for each pair, such as :data:`SURPLUS`."""
    with np.load(path) as file:
        data = np.full(len(file["indices"]), value, np.float32)
        return sp.csr_matrix((data, file["indices"], file["indptr"]), tuple(file["shape"]))


def start(users: int, factors: int, seed: int = 0) -> np.ndarray:
    """Return the user factors that ``repro.models.wmf.fit`` starts from."""
    draw = np.random.default_rng(seed).standard_normal((users, factors)) * 0.01
    return draw.astype(np.float32)
