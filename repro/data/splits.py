"""Who and what is kept, and which pairs are held out (ISMIR sec. 4.2).

Every function takes a users x items play matrix and gives back indices or matrices; ids stay with
the caller, who keeps the out-of-matrix items by id.
"""

from __future__ import annotations

import numpy as np
from scipy import sparse


def _users_per_item(plays: sparse.csr_matrix) -> np.ndarray:
    return np.bincount(plays.indices, minlength=plays.shape[1])


def dense_subset(
    plays: sparse.csr_matrix, min_songs_per_user: int, min_users_per_song: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the users and items of the dense subset, DEN (ISMIR sec. 4.2).

    Rare items go first, then users are counted on what is left. It is a single pass, as in the
    authors' code, not a k-core: a kept item may end a little below its threshold.

    `plays` is users x items, one stored entry for each pair; the thresholds are inclusive. The
    result is sorted row and column indices. ValueError says why when nothing is left.
    """
    items = np.flatnonzero(_users_per_item(plays) >= min_users_per_song)
    songs = np.diff(plays[:, items].indptr)
    users = np.flatnonzero(songs >= min_songs_per_user)
    if not len(users):
        raise ValueError(
            f"DEN is empty: {len(items):,} of {plays.shape[1]:,} items have "
            f"{min_users_per_song} users or more, and none of the {plays.shape[0]:,} users has "
            f"{min_songs_per_user} of these items"
        )
    return users, items


def sparse_subset(
    plays: sparse.csr_matrix, songs_per_user: int, users_per_song: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the users and items of the sparse subset, SPR (ISMIR sec. 4.2).

    Items below `users_per_song` users are kept first, then users with at least one and fewer than
    `songs_per_user` of those items. The order is inferred: the paper's 564,437 SPR users are more
    than all the users outside DEN, which rules out counting users before the items are chosen.

    The thresholds are exclusive upper bounds; items that no kept user played are left out.
    """
    items = np.flatnonzero(_users_per_item(plays) < users_per_song)
    songs = np.diff(plays[:, items].indptr)
    users = np.flatnonzero((songs > 0) & (songs < songs_per_user))
    if not len(users):
        raise ValueError(
            f"SPR is empty: {len(items):,} of {plays.shape[1]:,} items have fewer than "
            f"{users_per_song} users, and no user has between 1 and {songs_per_user - 1} of them"
        )
    return users, items[_users_per_item(plays[users][:, items]) > 0]


def cold_items(n_items: int, fraction: float, seed: int) -> np.ndarray:
    """Draw the out-of-matrix items (ISMIR sec. 4.2: 5% of DEN, here `fraction`).

    ``int(n_items * (1 - fraction))`` items stay in-matrix, which gives the authors' 92,543 of
    97,414. Return sorted indices; ValueError when no item would be cold, or none would stay.
    """
    kept = int(n_items * (1 - fraction))
    if not 0 < kept < n_items:
        raise ValueError(f"{fraction:.0%} of {n_items} items leave {kept} in-matrix")
    return np.sort(np.random.default_rng(seed).permutation(n_items)[kept:])


def cold_artists(artists: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """Draw whole artists until about `fraction` of the items are theirs (ours).

    A song drawn by itself leaves siblings by the same artist in training, which sound alike and
    have the same listeners. `artists` has the artist of each item; one that is unknown (``""``)
    stands for itself. Return sorted indices.
    """
    itself = np.array([f" {i}" for i in range(len(artists))])
    _, artist = np.unique(np.where(artists == "", itself, artists), return_inverse=True)
    drawn = np.random.default_rng(seed).permutation(artist.max(initial=-1) + 1)
    reached = np.bincount(artist)[drawn].cumsum()
    wanted = len(artists) - int(len(artists) * (1 - fraction))
    return np.flatnonzero(np.isin(artist, drawn[: np.searchsorted(reached, wanted) + 1]))


def pseudo_cold_items(n: int, seen: np.ndarray, seed: int) -> np.ndarray:
    """Draw up to `n` in-matrix items that are treated as cold where settings are chosen (ours).

    `seen` (bool) marks the in-matrix items whose tags taught the network. They are left out, or the
    choice would trust features that the network knows by heart. Return sorted indices into it.
    """
    return np.sort(np.random.default_rng(seed).permutation(np.flatnonzero(~seen))[:n])


def split_pairs(
    plays: sparse.csr_matrix, test_fraction: float, validation_fraction: float, seed: int
) -> tuple[sparse.csr_matrix, sparse.csr_matrix, sparse.csr_matrix]:
    """Split the pairs of `plays` at random into training, validation and test.

    `test_fraction` of all pairs are for testing and `validation_fraction` of the others for
    validation (ISMIR sec. 4.2; that it is "of the others" is from the authors' code). A user or
    item whose pairs were all held out gets one of them back. What the authors did about those in
    SPR is not published; their row counts show that something was done.

    The three matrices have the shape of `plays`, no pair in common, and add up to `plays`.
    """
    pairs = plays.tocoo()
    order = np.random.default_rng(seed).permutation(pairs.nnz)
    n_test = int(test_fraction * pairs.nnz)
    n_validation = int(validation_fraction * (pairs.nnz - n_test))
    part = np.zeros(pairs.nnz, dtype=np.int8)
    part[order[:n_test]] = 2
    part[order[n_test : n_test + n_validation]] = 1

    for axis, size in zip((pairs.row, pairs.col), plays.shape, strict=True):
        trained = np.bincount(axis[part == 0], minlength=size) > 0
        stranded = order[~trained[axis[order]]]
        _, first = np.unique(axis[stranded], return_index=True)
        part[stranded[first]] = 0

    train, validation, test = (
        sparse.csr_matrix(
            (pairs.data[part == p], (pairs.row[part == p], pairs.col[part == p])), plays.shape
        )
        for p in range(3)
    )
    return train, validation, test
