"""The subsets and splits against slow versions written from the paper's sentences."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from repro.data import subsets


@st.composite
def play_matrices(draw):
    shape = draw(st.tuples(st.integers(1, 12), st.integers(1, 12)))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = rng.integers(1, 50, shape) * (rng.random(shape) < draw(st.floats(0.05, 0.9)))
    return sparse.csr_matrix(counts.astype(np.int32))


def same_or_refused(subset, name, plays, limits, users, songs):
    if not users:
        with pytest.raises(ValueError, match=f"{name} is empty"):
            subset(plays, *limits)
    else:
        assert [list(kept) for kept in subset(plays, *limits)] == [users, songs]


@given(play_matrices(), st.integers(1, 6), st.integers(1, 6))
def test_the_subsets_are_those_of_slow_versions(plays, songs_per_user, users_per_song):
    heard, limits = plays.toarray() > 0, (songs_per_user, users_per_song)
    songs = [i for i, column in enumerate(heard.T) if sum(column) >= users_per_song]
    users = [u for u, row in enumerate(heard) if sum(row[songs]) >= songs_per_user]
    same_or_refused(subsets.dense_subset, "DEN", plays, limits, users, songs)
    rare = [i for i, column in enumerate(heard.T) if sum(column) < users_per_song]
    users = [u for u, row in enumerate(heard) if 1 <= sum(row[rare]) < songs_per_user]
    songs = [i for i in rare if any(heard[users, i])]
    same_or_refused(subsets.sparse_subset, "SPR", plays, limits, users, songs)


@pytest.mark.parametrize(("n", "fraction", "kept"), [(97_414, 0.05, 92_543), (10, 0.2, 8)])
def test_cold_items_leave_as_many_as_the_authors(n, fraction, kept):
    cold = subsets.cold_items(n, fraction, seed=1)
    assert len(cold) == len(set(cold)) == n - kept
    assert list(cold) == sorted(cold) and cold.min() >= 0 and cold.max() < n
    assert np.array_equal(cold, subsets.cold_items(n, fraction, seed=1))
    assert not np.array_equal(cold, subsets.cold_items(n, fraction, seed=2))


@pytest.mark.fault("a split that would leave one side empty", "refused in one line")
def test_a_fraction_that_leaves_nothing_on_one_side_is_refused():
    for n, fraction in (0, 0.1), (5, 0.0), (1, 0.5):
        with pytest.raises(ValueError, match=f"of {n} items leave"):
            subsets.cold_items(n, fraction, seed=1)


@pytest.mark.fault("a split that would leave a user or a song empty", "the pair stays in training")
@given(play_matrices(), st.floats(0, 0.9), st.floats(0, 0.9), st.integers(0, 99))
@settings(deadline=None)
def test_split_is_a_partition_that_strands_nobody(plays, test_fraction, validation_fraction, seed):
    parts = subsets.split_pairs(plays, test_fraction, validation_fraction, seed)
    dense = [part.toarray() for part in parts]
    assert np.array_equal(sum(dense), plays.toarray())
    assert (sum((part > 0).astype(int) for part in dense) <= 1).all()
    for axis in (0, 1):
        assert np.array_equal((dense[0] > 0).any(axis), (plays.toarray() > 0).any(axis))


def test_split_sizes_are_of_all_and_of_the_rest():
    rng = np.random.default_rng(0)
    plays = sparse.csr_matrix((rng.random((200, 150)) < 0.3).astype(np.int32))
    _, validation, test = subsets.split_pairs(plays, 0.2, 0.1, seed=0)
    held = int(0.2 * plays.nnz)
    assert (test.nnz, validation.nnz) == (held, int(0.1 * (plays.nnz - held)))
    again, other = (subsets.split_pairs(plays, 0.2, 0.1, seed)[2] for seed in (0, 1))
    assert (again != test).nnz == 0 < (other != test).nnz


@given(st.lists(st.integers(0, 8), min_size=1), st.floats(0.05, 0.9), st.integers(0, 9))
def test_cold_artists_come_whole(numbers, fraction, seed):
    artists = np.array([f"AR{n}" if n else "" for n in numbers])
    cold = subsets.cold_artists(artists, fraction, seed)
    warm = np.setdiff1d(np.arange(len(artists)), cold)
    assert not set(artists[cold]) & set(artists[warm]) - {""}
    wanted = len(artists) - int(len(artists) * (1 - fraction))
    largest = max(np.bincount(numbers)[1:].max(initial=1), 1)
    assert wanted <= len(cold) < wanted + largest or len(cold) == len(artists)
    assert np.array_equal(cold, subsets.cold_artists(artists, fraction, seed))


def test_pseudo_cold_items_are_drawn_from_those_not_seen():
    seen = np.arange(50) % 2 == 0
    drawn = subsets.pseudo_cold_items(10, seen, 1)
    assert len(set(drawn)) == 10 and (drawn % 2 == 1).all() and list(drawn) == sorted(drawn)
    assert len(subsets.pseudo_cold_items(40, seen, 1)) == 25  # no more than there are
    assert not np.array_equal(drawn, subsets.pseudo_cold_items(10, seen, 2))
