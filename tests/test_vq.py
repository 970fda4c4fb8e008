"""Codebook and histograms against counting by hand and brute force."""

import os
import subprocess
import sys

import faiss
import numpy as np
import pytest
import scipy.sparse as sp
import torch

from repro.config import ROOT
from repro.models import vq
from repro.pipeline.run import Checkpoint


@pytest.fixture(scope="module")
def tracks():
    """Return frames of some tracks; one has none."""
    rng = np.random.default_rng(0)
    sizes = {"a": 40, "b": 0, "c": 1, "d": 173, "e": 90}
    scale = np.array([1, 50, 7, 0.1, 3])
    return {t: (rng.standard_normal((n, 5)) * scale).astype(np.float32) for t, n in sizes.items()}


@pytest.fixture(scope="module")
def book(tracks):
    return vq.learn_codebook(np.concatenate(list(tracks.values())), 16)


def squared(frames, centres):
    """Return all squared distances in float64."""
    return ((frames.astype(float)[:, None] - centres.astype(float)) ** 2).sum(2)


def plain(centres):
    dims = centres.shape[1]
    return vq.Codebook(centres, np.zeros(dims, np.float32), np.ones(dims, np.float32))


@pytest.mark.parametrize(
    ("n", "codewords", "dims"),
    [(0, 8, 12), (1, 1, 1), (19, 3, 10), (20, 3, 10), (5000, 1024, 12), (2000, 300, 40)],
)
def test_assign_agrees_with_float64_distances(n, codewords, dims):
    rng = np.random.default_rng(n + codewords + dims)
    spread = 60.0 / np.arange(1, dims + 1)
    frames, centres = (
        (rng.standard_normal((size, dims)) * spread + 40).astype(np.float32)
        for size in (n, codewords)
    )
    code = plain(centres).assign(frames)
    assert code.shape == (n, 1)
    distance = squared(frames, centres)
    chosen = np.take_along_axis(distance, code, axis=1).ravel()
    assert (chosen <= distance.min(1, initial=np.inf) + 1e-6 * (spread**2).sum()).all()
    assert (code.ravel() == distance.argmin(1)).mean() > 0.99 if n else True


def test_assign_takes_any_array_of_numbers():
    rng = np.random.default_rng(1)
    book = plain(rng.normal(0, 50, (300, 12)).astype(np.float32))
    frames = rng.normal(0, 50, (1001, 24)).astype(np.float32)[::-1, ::2]
    expected = squared(frames, book.centres).argmin(1)
    for same in (frames, frames.astype(float), np.asfortranarray(frames)):
        assert np.array_equal(book.assign(same).ravel(), expected)


def test_frames_of_other_dimensions_are_refused():
    with pytest.raises(ValueError, match="frames have 11 dimensions, not 12"):
        plain(np.ones((3, 12), np.float32)).assign(np.ones((5, 11)))


@pytest.mark.parametrize("dims", [1, 10, 12])  # those of the profiles; see Codebook.assign
def test_first_of_equal_codewords_counts(dims):
    rng = np.random.default_rng(2)
    once = rng.normal(0, 50, (200, dims)).astype(np.float32)
    frames = np.concatenate([once, rng.normal(0, 50, (300, dims)).astype(np.float32)])
    expected = squared(frames, once).argmin(1)
    code = plain(np.concatenate([once, once, once])).assign(frames).ravel()
    assert np.array_equal(code, expected)
    assert np.array_equal(code[:200], np.arange(200))


def test_distance_from_the_origin_costs_no_digits():
    rng = np.random.default_rng(3)
    centres = (rng.normal(0, 1, (500, 12)) + 3000).astype(np.float32)
    frames = (rng.normal(0, 1, (2000, 12)) + 3000).astype(np.float32)
    assert np.array_equal(plain(centres).assign(frames).ravel(), squared(frames, centres).argmin(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [4, 400])
def test_frames_that_are_not_finite_are_refused(bad, n):
    frames = np.ones((n, 12), np.float32)
    frames[2, 3] = bad
    with pytest.raises(ValueError, match="frames must be finite"):
        plain(np.eye(12, dtype=np.float32)).assign(frames)
    with pytest.raises(ValueError, match="frames must be finite"):
        vq.learn_codebook(frames, 2)


def test_threads_change_neither_codebook_nor_codes():
    frames = np.random.default_rng(4).normal(0, 30, (30_000, 12)).astype(np.float32)
    found, before = [], torch.get_num_threads()
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        book = vq.learn_codebook(frames, 100, seed=1)  # more than 256 frames per codeword
        assert faiss.omp_get_max_threads() == threads
        found.append((book.centres, book.assign(frames), book.assign(frames, 3)))
    torch.set_num_threads(before)
    for other in found[1:]:
        assert all(map(np.array_equal, found[0], other))


def test_faiss_and_torch_live_in_one_process():
    """Each brings an OpenMP of its own: no crash, no hang, no wrong result in turns."""
    code = """
import numpy as np, scipy.sparse as sp
from repro.models import tagnet, vq
torch.set_num_threads(2)
rng = np.random.default_rng(0)
frames = rng.standard_normal((20_000, 12), dtype=np.float32)
for _ in range(2):
    book = vq.learn_codebook(frames, 40, seed=1)
    code = book.assign(frames).ravel()
    distance = ((frames[:, None] - book.centres.astype(float)) ** 2).sum(2)
    assert (code == distance.argmin(1)).mean() > 0.999
    x = rng.dirichlet(np.ones(40), 400).astype(np.float32)
    net, curve = tagnet.train(x, sp.csr_matrix((x[:, :9] > 0.03) * 1), hidden=(300,), epochs=2)
    a = torch.from_numpy(frames[:600, :6] @ frames[:6, :6])
    assert np.allclose(a @ a.T, a.numpy().astype(float) @ a.numpy().T.astype(float), atol=1e-3)
print(code.sum(), curve["training"].iloc[-1])
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    printed = []
    for order in ("import faiss, torch", "import torch, faiss"):
        command = [sys.executable, "-c", order + code]
        done = subprocess.run(command, env=environment, timeout=120, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout)
    assert printed[0] == printed[1] != ""


def test_assign_standardises_first():
    centres = np.array([[0.0, 0.0], [1.0, 1.0]], np.float32)
    shifted = vq.Codebook(centres, np.array([10, 0], np.float32), np.array([2, 100], np.float32))
    frames = np.array([[10, 20], [12, 80], [10.8, 10]], np.float32)
    assert list(shifted.assign(frames).ravel()) == [0, 1, 0]
    assert list(vq.Codebook(centres, np.zeros(2), np.ones(2)).assign(frames).ravel()) == [1, 1, 1]


def test_histograms_count_the_codewords_of_each_track(tracks, book):
    counts = vq.histograms(tracks.get, list(tracks), book)
    assert counts.shape == (5, 16)
    assert list(counts.sum(1).A1) == [40, 0, 1, 173, 90]
    for row, frames in zip(counts.toarray(), tracks.values(), strict=True):
        expected = (
            np.bincount(squared(frames, book.centres).argmin(1), minlength=16) if len(frames) else 0
        )
        assert np.array_equal(row, np.zeros(16) + expected)


@pytest.mark.parametrize("block", [1, 2, 5])
def test_blocks_change_nothing(tracks, book, monkeypatch, block):
    whole = vq.histograms(tracks.get, list(tracks), book)
    monkeypatch.setattr(vq, "_BLOCK_TRACKS", block)
    assert np.array_equal(vq.histograms(tracks.get, tracks, book).toarray(), whole.toarray())


def test_frames_per_item_draws_frames_of_that_track_without_repeats():
    # Every frame is its own codeword, so that the histogram names the frames.
    centres = np.arange(20, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    book = vq.Codebook(centres, np.zeros(2, np.float32), np.ones(2, np.float32))
    tracks = {"low": centres[:3], "high": centres[3:], "none": centres[:0]}
    counts = vq.histograms(tracks.get, list(tracks), book, 5, seed=1).toarray()
    assert list(counts.sum(1)) == [3, 5, 0]
    assert counts.max() == 1
    assert counts[0, :3].all() and not counts[1, :3].any()
    again = vq.histograms(tracks.get, list(tracks), book, 5, seed=1).toarray()
    other = vq.histograms(tracks.get, list(tracks), book, 5, seed=2).toarray()
    assert np.array_equal(again, counts) and not np.array_equal(other, counts)


def test_frames_per_item_draws_every_frame_equally_often():
    centres = np.arange(4, dtype=np.float32)[:, None]
    book = vq.Codebook(centres, np.zeros(1, np.float32), np.ones(1, np.float32))
    counts = vq.histograms(lambda track: centres, range(4000), book, 1)
    assert np.allclose(counts.sum(0).A1 / 4000, 0.25, atol=0.03)


def test_histograms_sum_to_one_or_stay_empty(tracks, book):
    counts = vq.histograms(tracks.get, list(tracks), book)
    shares = vq.l1_normalise(counts)
    assert shares.dtype == np.float32
    assert np.allclose(shares.sum(1), [1, 0, 1, 1, 1], atol=1e-6)
    assert np.allclose(shares[3] * 173, counts.toarray()[3])


def test_progress_sees_the_ids(tracks, book):
    seen = []
    vq.histograms(tracks.get, list(tracks), book, progress=lambda ids: seen.extend(ids) or ids)
    assert seen == list(tracks)


def test_units_do_not_matter_when_frames_are_standardised(tracks):
    frames = np.concatenate(list(tracks.values()))
    scale = np.array([1, 1024, 0.125, 1, 8], np.float32)  # powers of two, exact
    codes = [vq.learn_codebook(x, 12, standardise=True).assign(x) for x in (frames, frames * scale)]
    assert np.array_equal(*codes)
    raw = [vq.learn_codebook(x, 12).assign(x) for x in (frames, frames * scale)]
    assert not np.array_equal(*raw)


def test_standardised_frames_have_mean_zero_and_variance_one(tracks):
    frames = np.concatenate(list(tracks.values())) + 4
    frames[:, 2] = 7.0  # a constant dimension divides by nothing
    book = vq.learn_codebook(frames, 12, standardise=True)
    shifted = (frames - book.offset) / book.scale
    assert np.allclose(shifted.mean(0), 0, atol=1e-5)
    assert np.allclose(shifted.std(0), [1, 1, 0, 1, 1], atol=1e-5)
    assert np.isfinite(book.centres).all()


def test_codebook_finds_planted_clusters():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-100, 100, (8, 3))
    kind = rng.integers(8, size=4000)
    frames = truth[kind] + rng.standard_normal((4000, 3))
    book = vq.learn_codebook(frames, 8, seed=1)
    code = book.assign(frames).ravel()
    assert all(len(set(code[kind == k])) == 1 for k in range(8))
    assert np.abs(book.centres[code] - truth[kind]).max() < 0.5


def test_codebook_is_deterministic(tracks):
    frames = np.concatenate(list(tracks.values()))
    one, two, other = (vq.learn_codebook(frames, 12, seed=s).centres for s in (1, 1, 2))
    assert np.array_equal(one, two)
    assert not np.array_equal(one, other)


def test_codebook_refuses_too_few_frames():
    with pytest.raises(ValueError, match="5 frames cannot fill 6 codewords"):
        vq.learn_codebook(np.zeros((5, 3)), 6)


def test_all_frames_teach_the_codebook_not_a_sample_of_them():
    """faiss would draw 256 frames per codeword: each codeword is the mean of all its frames."""
    rng = np.random.default_rng(0)
    kind = rng.integers(4, size=20_000)
    frames = (100.0 * np.eye(4, 3)[kind] + rng.standard_normal((20_000, 3))).astype(np.float32)
    book = vq.learn_codebook(frames, 4, seed=1)
    code = book.assign(frames).ravel()
    means = [frames[code == j].mean(0, dtype=np.float64) for j in range(4)]
    assert np.allclose(book.centres, means, atol=1e-3)


def test_codebook_is_as_good_far_from_the_origin():
    frames = np.random.default_rng(0).normal(0, 1, (5000, 12)).astype(np.float32)
    near, far = (vq.learn_codebook(x, 30).centres for x in (frames, frames + 3000))
    near, far = (squared(frames, c).min(1).mean() for c in (near, far - 3000.0))
    assert far == pytest.approx(near, rel=0.01)


def sample(n_warm, n_cool, n, seed=0):
    hotness = np.r_[
        np.full(n_warm, 0.3), np.zeros(n_cool // 2), np.full(n_cool - n_cool // 2, np.nan)
    ]
    ids = np.array([f"TR{i:05d}" for i in range(n_warm + n_cool)])
    chosen = vq.codebook_tracks(ids, hotness, n, seed)
    assert len(set(chosen)) == len(chosen) and set(chosen) <= set(ids)
    return chosen, int((chosen < f"TR{n_warm:05d}").sum())


@pytest.mark.parametrize(
    ("n_warm", "n_cool", "n", "size", "warm"),
    [
        (2000, 2000, 1000, 1000, 960),  # 24 to 1
        (2000, 2000, 25, 25, 24),
        (2000, 10, 1000, 1000, 990),  # too few without
        (300, 2000, 1000, 1000, 300),  # too few with
        (0, 50, 20, 20, 0),
        (50, 0, 20, 20, 20),
        (30, 20, 1000, 50, 30),  # too few altogether: all
    ],
)
def test_codebook_sample_is_24_to_1_filled_from_the_other_kind(n_warm, n_cool, n, size, warm):
    chosen, found = sample(n_warm, n_cool, n)
    assert (len(chosen), found) == (size, warm)


def test_codebook_sample_is_drawn_by_its_seed():
    one, two, other = (sample(500, 500, 100, seed)[0] for seed in (1, 1, 2))
    assert list(one) == list(two) != list(other)


def test_rows_of_follows_the_asked_order():
    counts = sp.csr_matrix(np.array([[1, 0], [0, 2], [3, 3]], np.int32))
    ids = np.array(["x", "y", "z"])
    picked = vq.rows_of(ids, np.array(["z", "nobody", "x", "z", ""]), counts)
    assert picked.toarray().tolist() == [[3, 3], [0, 0], [1, 0], [3, 3], [0, 0]]
    assert picked.dtype == counts.dtype
    assert vq.rows_of(ids, np.array([], dtype=str), counts).shape == (0, 2)


@pytest.mark.parametrize("nearest", [2, 5])
def test_a_frame_counts_for_its_nearest_codewords(nearest):
    rng = np.random.default_rng(5)
    frames, centres = rng.normal(size=(40, 3)), rng.normal(size=(9, 3)).astype(np.float32)
    book = vq.Codebook(centres, np.zeros(3, np.float32), np.ones(3, np.float32))
    distance = ((frames[:, None] - centres) ** 2).sum(2)
    expected = np.zeros(9, int)
    np.add.at(expected, np.argsort(distance, axis=1)[:, :nearest].ravel(), 1)
    counts = vq.histograms(lambda track: frames, ["a"], book, nearest=nearest)
    assert counts.toarray()[0].tolist() == expected.tolist()
    assert np.isclose(vq.l1_normalise(counts).sum(), 1)


def test_scales_learn_from_the_first_and_apply_to_all():
    rng = np.random.default_rng(6)
    x, other = (vq.l1_normalise(sp.csr_matrix(rng.poisson(0.7, (n, 12)))) for n in (40, 9))
    raw, raw_other = vq.rescale("raw", x, other)
    assert np.array_equal(raw, x) and np.array_equal(raw_other, other)
    root, _ = vq.rescale("root", x, other)
    assert np.allclose(root**2, x)
    standard, standard_other = vq.rescale("standardised", x, other)
    assert np.allclose(standard.mean(0), 0, atol=1e-5) and np.allclose(
        standard.std(0), 1, atol=1e-4
    )
    assert np.allclose(standard_other, (other - x.mean(0)) / x.std(0), atol=1e-4)
    weighted, weighted_other = vq.rescale("tf-idf", x, other)
    idf = np.log((1 + 40) / (1 + (x > 0).sum(0))) + 1
    assert np.allclose(
        weighted, x * idf / np.maximum((x * idf).sum(1, keepdims=True), 1e-9), atol=1e-5
    )
    assert weighted_other.shape == (9, 12)


@pytest.mark.parametrize("at_most", [None, 2])
@pytest.mark.fault("the reading of tracks broken off", "goes on after the last block kept")
def test_counting_goes_on_where_it_was(monkeypatch, at_most, tmp_path):
    monkeypatch.setattr(vq, "_BLOCK_TRACKS", 4)
    rng = np.random.default_rng(5)
    frames = {f"T{i}": rng.standard_normal((i % 5, 3)).astype(np.float32) for i in range(14)}
    book = plain(rng.standard_normal((6, 3)).astype(np.float32))
    asked = []

    def read(track):
        asked.append(track)
        if len(asked) == 10:
            raise KeyboardInterrupt
        return frames[track]

    def checkpoint(name, every):
        return Checkpoint(tmp_path / name, every)

    given = {"frames_per_item": at_most, "seed": 3}
    whole = vq.histograms(frames.get, list(frames), book, **given)
    with pytest.raises(KeyboardInterrupt):
        vq.histograms(read, list(frames), book, checkpoint=checkpoint, **given)
    assert len(list(tmp_path.iterdir())) == 2
    resumed = vq.histograms(read, list(frames), book, checkpoint=checkpoint, **given)
    assert (resumed != whole).nnz == 0 and resumed.shape == whole.shape
    assert resumed.dtype == whole.dtype == np.int32
    assert asked[10:] == list(frames)[8:]  # those of the blocks that were kept were not read again
