"""Codebook and histograms against counting by hand and brute force."""

import os
import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from oracles import Broken
from scipy.spatial.distance import cdist

from repro.models import tagnet, vq
from repro.pipeline.run import Checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(centres):
    """Return a codebook that takes frames as they are."""
    centres = np.asarray(centres, np.float32)
    return vq.Codebook(centres, np.zeros_like(centres[0]), np.ones_like(centres[0]))


def squared(frames, centres):
    """Return all squared distances in float64."""
    return cdist(frames.astype(float), centres.astype(float), "sqeuclidean")


def normal(*shape, seed=0, spread=1.0):
    return (np.random.default_rng(seed).standard_normal(shape) * spread).astype(np.float32)


@pytest.mark.parametrize(
    ("n", "codewords", "dims", "offset"),
    # faiss has another way from 20 frames on, and takes 4,096 at a time
    [(0, 8, 12, 40), (19, 3, 10, 40), (20, 3, 1, 40), (4100, 1100, 12, 1e5), (2000, 300, 40, 40)],
)
def test_assign_agrees_with_float64_distances(n, codewords, dims, offset):
    spread = 60.0 / np.arange(1, dims + 1)
    frames = normal(n, dims, seed=1, spread=spread) + np.float32(offset)
    centres = normal(codewords, dims, seed=2, spread=spread) + np.float32(offset)
    code = plain(centres).assign(frames, nearest=3)
    assert code.shape == (n, 3)
    distance = squared(frames, centres)
    chosen, least = np.take_along_axis(distance, code, axis=1), np.sort(distance, axis=1)[:, :3]
    assert np.allclose(chosen, least, rtol=0, atol=1e-6 * (spread**2).sum())
    assert n == 0 or (code[:, 0] == distance.argmin(1)).mean() > 0.99
    for same in (frames.astype(float), np.asfortranarray(frames), np.repeat(frames, 2, 1)[:, ::2]):
        assert np.array_equal(plain(centres).assign(same, nearest=3), code)


@pytest.mark.parametrize("n", [4, 400])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_does_not_fit_is_refused(bad, n):
    book, frames = plain(np.eye(12)), np.ones((n, 12), np.float32)
    frames[2, 3] = bad
    for message, call in {
        "frames must be finite, and codewords as many": lambda: book.assign(frames),
        "frames must be finite": lambda: vq.learn_codebook(frames, 2),
        "codewords as many as are asked for": lambda: book.assign(np.ones((5, 12)), 13),
        "frames have 11 dimensions, not 12": lambda: book.assign(np.ones((5, 11))),
        "5 frames cannot fill 6 codewords": lambda: vq.learn_codebook(np.zeros((5, 3)), 6),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


@pytest.mark.parametrize("offset", [0, 3000])
def test_codebook_finds_planted_clusters_and_is_the_mean_of_all_their_frames(offset):
    """faiss would draw 256 frames per codeword."""
    rng = np.random.default_rng(0)
    truth, kind = rng.uniform(-100, 100, (8, 3)) + offset, rng.integers(8, size=20_000)
    frames = (truth[kind] + rng.standard_normal((20_000, 3))).astype(np.float32)
    book = vq.learn_codebook(frames, 8, seed=1)
    code = book.assign(frames).ravel()
    assert all(len(set(code[kind == k])) == 1 for k in range(8)) and len(set(code)) == 8
    assert np.abs(book.centres[code] - truth[kind]).max() < 0.5
    means = [frames[code == j].mean(0, dtype=np.float64) for j in range(8)]
    assert np.allclose(book.centres, means, rtol=0, atol=1e-3)


def test_standardised_frames_have_no_units():
    frames = normal(300, 5, spread=[1, 50, 7, 0.1, 3]) + 4
    frames[:, 2] = 7.0  # a constant dimension divides by nothing
    scaled = frames * np.array([1, 1024, 0.125, 1, 8], np.float32)  # powers of two, exact
    for standardise in (False, True):
        one, other = (vq.learn_codebook(x, 12, standardise=standardise) for x in (frames, scaled))
        assert np.array_equal(one.assign(frames), other.assign(scaled)) == standardise
    shifted = (frames - one.offset) / one.scale
    assert np.allclose(shifted.mean(0), 0, atol=1e-5)
    assert np.allclose(shifted.std(0), [1, 1, 0, 1, 1], atol=1e-5)
    assert np.array_equal(one.assign(frames)[:, 0], squared(shifted, one.centres).argmin(1))


def test_the_seed_decides_the_codebook_and_threads_do_not():
    frames, found = normal(30_000, 12, spread=30), []
    for threads in (3, 2, 1):
        torch.set_num_threads(threads)
        book = vq.learn_codebook(frames, 100, seed=1)  # more than 256 frames per codeword
        found.append((book.centres, book.assign(frames, 3)))
    for other in found[1:]:
        assert all(map(np.array_equal, found[0], other))
    assert not np.array_equal(vq.learn_codebook(frames, 100, seed=2).centres, book.centres)


def in_turns():
    """Let faiss and torch work in turns; return what came out."""
    torch.set_num_threads(2)
    frames, x = normal(20_000, 12), np.random.default_rng(0).dirichlet(np.ones(40), 400)
    for _ in range(2):
        book = vq.learn_codebook(frames, 40, seed=1)
        code = book.assign(frames).ravel()
        tags = sp.csr_matrix((x[:, :9] > 0.03) * 1)
        _, curve = tagnet.train(x.astype(np.float32), tags, hidden=(300,), epochs=2)
    torch.set_num_threads(1)
    return f"{code.sum()} {curve['training'].iloc[-1]}"


def test_faiss_and_torch_live_in_one_process():
    """Each brings an OpenMP of its own: no crash, no hang, no wrong result in turns."""
    # Another process imports them in the order that is not this one's.
    order = sorted(("faiss", "torch"), key=list(sys.modules).index, reverse=True)
    code = f"import {', '.join(order)}, test_vq; print(test_vq.in_turns())"
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.check_output([sys.executable, "-c", code], env=env, timeout=300, text=True)
    assert found.strip() == in_turns()


@pytest.mark.parametrize("nearest", [1, 3])
def test_histograms_count_the_codewords_of_each_track(nearest):
    # More tracks than are read in a block; some have no frames.
    tracks = {f"T{i}": normal(i % 5, 3, seed=i) for i in range(4500)}
    book, seen = plain(normal(9, 3)), []
    settings = {"nearest": nearest, "progress": lambda ids: seen.extend(ids) or ids}
    counts = vq.histograms(tracks.get, list(tracks), book, **settings)
    assert seen == list(tracks) and counts.dtype == np.int32
    expected = np.zeros((4500, 9), int)
    for row, frames in zip(expected, tracks.values(), strict=True):
        code = np.argsort(squared(frames, book.centres), axis=1)[:, :nearest]
        row += np.bincount(code.ravel(), minlength=9)
    assert np.array_equal(counts.toarray(), expected)
    shares = vq.l1_normalise(counts)
    assert shares.dtype == np.float32
    assert np.allclose(shares, expected / np.maximum(expected.sum(1, keepdims=True), 1), atol=1e-6)


def test_frames_per_item_draws_frames_of_that_track_without_repeats():
    # Every frame is its own codeword, so that the histogram names the frames.
    centres = np.arange(20, dtype=np.float32)[:, None]
    frames = centres[:3], centres[3:], centres[:0]

    def draw(seed):
        read = (lambda track: frames[track % 3], range(3000), plain(centres))
        return vq.histograms(*read, frames_per_item=5, seed=seed).toarray()

    counts = draw(1)
    assert np.array_equal(counts.sum(1), [3, 5, 0] * 1000) and counts.max() == 1
    assert counts[::3, :3].all() and not counts[1::3, :3].any()
    assert np.allclose(counts[1::3, 3:].mean(0), 5 / 17, atol=0.06)  # every frame equally often
    assert np.array_equal(draw(1), counts) and not np.array_equal(draw(2), counts)


@pytest.mark.parametrize("at_most", [None, 2])
@pytest.mark.fault("the reading of tracks broken off", "goes on after the last block kept")
def test_counting_goes_on_where_it_was(at_most, tmp_path):
    frames = {f"T{i}": normal(i % 4, 3, seed=i) for i in range(6000)}
    book, asked = plain(normal(6, 3)), []

    def read(track):
        asked.append(track)
        return frames[track]

    def break_off(name, every):  # after the second block
        return Broken(tmp_path / name, after=1 if any(tmp_path.iterdir()) else 2)

    def go_on(name, every):
        return Checkpoint(tmp_path / name, every)

    given = {"frames_per_item": at_most, "seed": 3}
    whole = vq.histograms(frames.get, list(frames), book, **given)
    with pytest.raises(KeyboardInterrupt):
        vq.histograms(read, list(frames), book, checkpoint=break_off, **given)
    resumed = vq.histograms(read, list(frames), book, checkpoint=go_on, **given)
    assert (resumed != whole).nnz == 0 and resumed.shape == whole.shape
    assert resumed.dtype == whole.dtype == np.int32
    assert asked == list(frames)  # each once


@pytest.mark.parametrize(
    ("n_warm", "n_cool", "n", "size", "warm"),
    [
        (2000, 2000, 1000, 1000, 960),  # 24 to 1
        (2000, 10, 1000, 1000, 990),  # too few without
        (300, 2000, 1000, 1000, 300),  # too few with
        (30, 20, 1000, 50, 30),  # too few altogether: all
    ],
)
def test_codebook_sample_is_24_to_1_filled_from_the_other_kind(n_warm, n_cool, n, size, warm):
    ids = np.array([f"TR{i:05d}" for i in range(n_warm + n_cool)])
    hotness = np.repeat([0.3, 0, np.nan], [n_warm, n_cool // 2, n_cool - n_cool // 2])
    chosen, again, other = (list(vq.codebook_tracks(ids, hotness, n, seed)) for seed in (1, 1, 2))
    assert len(chosen) == len(set(chosen)) == size and set(chosen) <= set(ids)
    assert sum(track in ids[:n_warm] for track in chosen) == warm
    assert chosen == again and (chosen != other or size == len(ids))


def test_rows_of_follows_the_asked_order():
    counts = sp.csr_matrix(np.array([[1, 0], [0, 2], [3, 3]], np.int32))
    ids = np.array(["x", "y", "z"])
    picked = vq.rows_of(ids, np.array(["z", "nobody", "x", "z", ""]), counts)
    assert picked.toarray().tolist() == [[3, 3], [0, 0], [1, 0], [3, 3], [0, 0]]
    assert picked.dtype == counts.dtype
    assert vq.rows_of(ids, np.array([], dtype=str), counts).shape == (0, 2)


def test_scales_learn_from_the_first_and_apply_to_all():
    rng = np.random.default_rng(6)
    x, other = (vq.l1_normalise(sp.csr_matrix(rng.poisson(0.7, (n, 12)))) for n in (40, 9))
    idf = np.log((1 + 40) / (1 + (x > 0).sum(0))) + 1
    for scale, by_hand in {
        "raw": lambda z: z,
        "root": np.sqrt,
        "standardised": lambda z: (z - x.mean(0)) / x.std(0),
        "tf-idf": lambda z: z * idf / np.maximum((z * idf).sum(1, keepdims=True), 1e-9),
    }.items():
        for found, given in zip(vq.rescale(scale, x, other), (x, other), strict=True):
            assert np.allclose(found, by_hand(given), atol=1e-4 if scale != "raw" else 0)
    assert vq.rescale("tf-idf", x, x[:0])[1].shape == (0, 12)
