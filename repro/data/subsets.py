"""Who and what is kept, DEN and SPR, and which pairs are held out (ISMIR sec. 4.2).

Every function gives back sorted indices, or matrices, of users x items; ids stay with the caller.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


def dense_subset(
    plays: sparse.csr_matrix, min_songs_per_user: int, min_users_per_song: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the users and items of the dense subset, DEN (ISMIR sec. 4.2).

    Rare items go first, then users are counted on what is left: a single pass, as in the authors'
    code, and no k-core. The thresholds are inclusive; ValueError says why nothing is left.
    """
    items = np.flatnonzero(plays.getnnz(axis=0) >= min_users_per_song)
    users = np.flatnonzero(plays[:, items].getnnz(axis=1) >= min_songs_per_user)
    if not len(users):
        which = f"{len(items):,} items that {min_users_per_song} users or more have"
        raise ValueError(f"DEN is empty: no user has {min_songs_per_user} of the {which}")
    return users, items


def sparse_subset(
    plays: sparse.csr_matrix, songs_per_user: int, users_per_song: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the users and items of the sparse subset, SPR (ISMIR sec. 4.2).

    Items below `users_per_song` users, then users with at least one and fewer than
    `songs_per_user` of them, then the items that these played. The order is inferred: the paper's
    564,437 SPR users are more than all outside DEN, so users cannot have been counted first.
    """
    items = np.flatnonzero(plays.getnnz(axis=0) < users_per_song)
    songs = plays[:, items].getnnz(axis=1)
    users = np.flatnonzero((songs > 0) & (songs < songs_per_user))
    if not len(users):
        which = f"{len(items):,} items that fewer than {users_per_song} users have"
        raise ValueError(f"SPR is empty: no user has 1 to {songs_per_user - 1} of the {which}")
    return users, items[plays[users][:, items].getnnz(axis=0) > 0]


def cold_items(n_items: int, fraction: float, seed: int) -> np.ndarray:
    """Draw the out-of-matrix items (ISMIR sec. 4.2: 5% of DEN, here `fraction`).

    ``int(n_items * (1 - fraction))`` stay in-matrix, the authors' 92,543 of 97,414. ValueError
    when no item would be cold, or none would stay.
    """
    kept = int(n_items * (1 - fraction))
    if not 0 < kept < n_items:
        raise ValueError(f"{fraction:.0%} of {n_items} items leave {kept} in-matrix")
    return np.sort(np.random.default_rng(seed).permutation(n_items)[kept:])


def cold_artists(artists: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw whole artists until about `fraction` of the items are theirs (ours).

    A song drawn by itself leaves siblings in training that sound alike and share its listeners.
    `artists` has the artist of each item; an unknown one (``""``) stands for itself.
    """
    itself = np.array([f" {i}" for i in range(len(artists))])
    _, artist = np.unique(np.where(artists == "", itself, artists), return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(artist.max(initial=-1) + 1)
    reached = np.bincount(artist)[drawn].cumsum()
    wanted = len(artists) - int(len(artists) * (1 - fraction))
    return np.flatnonzero(np.isin(artist, drawn[: np.searchsorted(reached, wanted) + 1]))


def pseudo_cold_items(n: int, seen: np.ndarray, seed: int) -> np.ndarray:
    """Draw up to `n` in-matrix items that are treated as cold where settings are chosen (ours).

    Not the `seen` ones (bool, of the in-matrix items), whose tags taught the network: the choice
    would trust features that it knows by heart.
    """
    return np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(~seen))[:n])


def split_pairs(
    plays: sparse.csr_matrix, test_fraction: float, validation_fraction: float, seed: int
) -> list[sparse.csr_matrix]:
    """Split the pairs of `plays` at random into training, validation and test matrices.

    `test_fraction` of all pairs are for testing and `validation_fraction` of the others for
    validation (ISMIR sec. 4.2 and the authors' code). A user or item whose pairs were all held out
    gets one of them back; the authors' row counts in SPR show that something of the kind was done.
    """
    order = np.random.default_rng(seed).permutation(plays.nnz)
    n_test = int(test_fraction * plays.nnz)
    n_held = n_test + int(validation_fraction * (plays.nnz - n_test))
    part = np.zeros(plays.nnz, np.int8)
    part[order[:n_held]] = 1
    part[order[:n_test]] = 2
    for of, size in zip(plays.tocoo().coords, plays.shape, strict=True):
        trained = np.bincount(of[part == 0], minlength=size) > 0
        stranded = order[~trained[of[order]]]
        _, first = np.unique(of[stranded], return_index=True)
        part[stranded[first]] = 0
    parts = [plays.copy() for _ in range(3)]
    for number, matrix in enumerate(parts):
        matrix.data[part != number] = 0
        matrix.eliminate_zeros()
    return parts
