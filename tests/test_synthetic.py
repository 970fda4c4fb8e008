"""The synthetic world: what is written is what is read, and the planted truth is there."""

import hashlib
import json
import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from repro import config
from repro.data import prepare, splits, synthetic

WORLD = config.World(
    users=300, songs=400, artists=60, styles=6, tags=30, frames_per_song=25, songs_per_user=25.0
)
PROFILE = replace(config.SMOKE, world=WORLD, min_songs_per_tag=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    synthetic.write_world(WORLD, 1, folder)
    return folder


@pytest.fixture(scope="module")
def data(root):
    return prepare.load(PROFILE, root)


def hashes(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).digest() for path in files}


def means(data, root):
    """Return the mean frame of each item's track, and the style that its title tells."""
    bag = prepare.bags(PROFILE, root)
    frames = [bag(track) for track in data.item_tracks]
    kept = np.array([len(f) > 0 for f in frames])
    style = np.array([name.split(" - ")[1].split(" No. ")[0] for name in data.item_names])
    return np.array([f.mean(axis=0) for f in frames if len(f)]), style[kept], kept


def test_same_seed_same_world(root, tmp_path):
    synthetic.write_world(WORLD, 1, tmp_path / "again")
    synthetic.write_world(WORLD, 2, tmp_path / "other")
    assert hashes(tmp_path / "again") == hashes(root)
    assert hashes(tmp_path / "other") != hashes(root)


def test_a_world_is_kept_replaced_or_refused(tmp_path):
    small = replace(WORLD, users=20, songs=80)
    folder = tmp_path / "world"
    synthetic.write_world(small, 1, folder)
    mark = folder / "mark"
    mark.touch()
    synthetic.write_world(small, 1, folder)
    assert mark.exists()
    synthetic.write_world(small, 2, folder)
    assert not mark.exists()
    assert json.loads((folder / "world.json").read_text())["seed"] == 2
    (folder / "world.json").unlink()
    with pytest.raises(FileExistsError, match="name another folder"):
        synthetic.write_world(small, 2, folder)


def test_interrupted_writing_leaves_no_world(tmp_path, monkeypatch):
    monkeypatch.setattr(synthetic, "_write_hdf5", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        synthetic.write_world(replace(WORLD, users=20, songs=80), 1, tmp_path / "world")
    assert not (tmp_path / "world").exists()


def test_readers_read_what_was_written(root, data):
    lines = [line.split("\t") for line in (root / "train_triplets.txt").read_text().splitlines()]
    kept = {(user, song): int(n) for user, song, n in lines if song in set(data.item_ids)}
    read = data.plays.tocoo()
    assert kept == {
        (data.user_ids[u], data.item_ids[i]): n
        for u, i, n in zip(read.row, read.col, read.data, strict=True)
    }
    assert data.facts["triplets read"] == len(lines) > len(kept)
    assert data.facts["songs without a track"] == 0
    bag = prepare.bags(PROFILE, root)
    lengths = np.array([len(bag(p.stem)) for p in root.glob("msd/?/?/?/*.h5")])
    assert len(lengths) > WORLD.songs
    assert (lengths == 0).sum() >= 1


def test_ids_look_like_the_genuine_ones(data):
    assert all(len(user) == 40 and int(user, 16) >= 0 for user in data.user_ids)
    all_ids = {"SO": data.item_ids, "AR": data.item_artists, "TR": data.item_tracks}
    for prefix, ids in all_ids.items():
        assert all(len(i) == 18 and i.startswith(prefix) and i[2:5].isalpha() for i in ids)


def test_tags_are_incomplete_clean_and_split_by_artist(root, data):
    assert 0.4 * WORLD.songs < len(data.tag_tracks) < WORLD.songs
    assert not {"favorit", "seenliv", "awesom", "2000"} & set(data.vocabulary)
    assert data.facts["tags after merging stems"] < data.facts["tags about the sound"]
    assert (data.tag_train ^ data.tag_test).all()
    artist = dict(zip(data.item_tracks, data.item_artists, strict=True))
    of = np.array([artist.get(track, "") for track in data.tag_tracks])
    assert not (set(of[data.tag_train]) & set(of[data.tag_test])) - {""}
    assert 0.02 < np.isnan(data.hotness).mean() < 0.8


def test_activity_and_popularity_have_long_tails(data):
    for counts in (np.diff(data.plays.indptr), np.bincount(data.plays.indices)):
        assert np.percentile(counts, 99) > 3 * np.median(counts)
        assert counts.mean() > 1.1 * np.median(counts)


def test_timbre_tells_the_style_but_not_perfectly(root, data):
    mean, style, _ = means(data, root)
    mean = (mean - mean.mean(axis=0)) / mean.std(axis=0)
    distance = ((mean[:, None] - mean) ** 2).sum(axis=2)
    same = style[:, None] == style
    off_diagonal = ~np.eye(len(style), dtype=bool)
    assert distance[same & off_diagonal].mean() < 0.95 * distance[~same].mean()
    np.fill_diagonal(distance, np.inf)
    right = (style[distance.argmin(axis=1)] == style).mean()
    chance = same[off_diagonal].mean()
    assert 1.5 * chance < right < 0.95


def test_listeners_keep_to_styles(root, data):
    _, style, kept = means(data, root)
    heard = (data.plays[:, kept] > 0).astype(float)
    heard = heard / np.sqrt(np.maximum(heard.multiply(heard).sum(axis=0), 1))
    together = np.asarray((heard.T @ heard).todense())
    same = style[:, None] == style
    np.fill_diagonal(together, np.nan)
    assert np.nanmean(together[same]) > 1.5 * np.nanmean(together[~same])


def test_content_does_not_betray_popularity(root, data):
    mean, style, kept = means(data, root)
    popularity = np.log(np.bincount(data.plays.indices, minlength=len(kept)))[kept]
    bag = prepare.bags(PROFILE, root)
    length = np.array([len(bag(track)) for track in data.item_tracks[kept]])
    limit = 4 / np.sqrt(len(popularity))  # four standard errors of a correlation of none
    for feature in (length, *mean.T):
        assert abs(np.corrcoef(feature, popularity)[0, 1]) < limit
    assert len(set(style)) == WORLD.styles


def test_smoke_world_fills_both_subsets(tmp_path):
    synthetic.write_world(config.SMOKE.world, config.SMOKE.seed, tmp_path / "world")
    smoke, plays = config.SMOKE, prepare.load(config.SMOKE, tmp_path / "world").plays
    dense = splits.dense_subset(plays, smoke.min_songs_per_user, smoke.min_users_per_song)
    sparse = splits.sparse_subset(plays, smoke.sparse_songs_per_user, smoke.sparse_users_per_song)
    assert len(dense[0]) >= 100 and len(dense[1]) >= 100
    assert len(sparse[0]) >= 20 and len(sparse[1]) >= 20


def test_every_tagged_track_is_known_by_its_song(root, data):
    with closing(sqlite3.connect(root / "track_metadata.db")) as database:
        song = dict(database.execute("SELECT track_id, song_id FROM songs"))
    assert [song[track] for track in data.tag_tracks] == list(data.tag_items)
    second = ~np.isin(data.tag_tracks, data.item_tracks) & np.isin(data.tag_items, data.item_ids)
    assert second.any()  # a cold song must be kept out by its id, not by its one track
