"""The synthetic world: what is written is what is read, and the planted truth is there."""

import sqlite3
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from repro import config
from repro.data import prepare, synthetic

WORLD = replace(
    config.SMOKE.world, users=300, unplayed=100, frames_per_song=25, songs_per_user=25.0
)
SMALL = replace(WORLD, users=20, songs=80)
PROFILE = replace(config.SMOKE, world=WORLD, min_songs_per_tag=3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "world"
    synthetic.write_world(WORLD, 1, folder)
    return folder


@pytest.fixture(scope="module")
def data(root):
    return prepare.load(PROFILE, root)


@pytest.fixture(scope="module")
def content(root, data):
    """Return the length of each item's track, its mean frame, and the style its title tells."""
    bag = prepare.bags(PROFILE, root)
    frames = [bag(track) for track in data.item_tracks]
    mean = np.array([f.mean(axis=0) if len(f) else np.full(12, np.nan) for f in frames])
    style = np.array([name.split(" - ")[1].split(" No. ")[0] for name in data.item_names])
    return np.array([len(f) for f in frames]), mean, style


def written(seed, folder):
    synthetic.write_world(SMALL, seed, folder)
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder): path.read_bytes() for path in files}


def test_a_world_is_the_same_for_a_seed_and_kept_replaced_or_refused(tmp_path, monkeypatch):
    first = written(1, tmp_path / "world")
    assert written(1, tmp_path / "again") == first
    (tmp_path / "world" / "mark").touch()
    assert len(written(1, tmp_path / "world")) == len(first) + 1
    other = written(2, tmp_path / "world")
    assert not any(path.name == "mark" for path in other)
    assert all(other.get(path) != content for path, content in first.items() if content)
    (tmp_path / "world" / "world.json").unlink()
    with pytest.raises(FileExistsError, match="name another folder"):
        written(2, tmp_path / "world")
    monkeypatch.setattr(synthetic.h5py, "File", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        written(3, tmp_path / "interrupted")
    assert not (tmp_path / "interrupted").exists()


def test_readers_read_what_was_written(root, data):
    lines = [line.split("\t") for line in (root / "train_triplets.txt").read_text().splitlines()]
    kept = {(user, song): int(n) for user, song, n in lines if song in set(data.item_ids)}
    read = data.plays.tocoo()
    users, items = data.user_ids[read.row], data.item_ids[read.col]
    assert kept == dict(zip(zip(users, items, strict=True), read.data, strict=True))
    assert data.facts["triplets read"] == len(lines) > len(kept)
    assert data.facts["songs without a track"] == 0
    bag = prepare.bags(PROFILE, root)
    lengths = [len(bag(path.stem)) for path in root.glob("msd/?/?/?/*.h5")]
    assert len(lengths) > WORLD.songs and lengths.count(0) >= 1


def test_tags_are_incomplete_clean_and_split_by_artist(root, data):
    assert 0.4 * (WORLD.songs + WORLD.unplayed) < len(data.tag_tracks)
    unplayed = set(data.tag_items) - set(data.item_ids)
    assert 0.5 * WORLD.unplayed < len(unplayed) < WORLD.unplayed
    assert not {"favorit", "seenliv", "awesom", "2000"} & set(data.vocabulary)
    assert data.facts["tags after merging stems"] < data.facts["tags about the sound"]
    assert (data.tag_train ^ data.tag_test).all()
    assert 0.02 < np.isnan(data.hotness).mean() < 0.8
    with closing(sqlite3.connect(root / "track_metadata.db")) as database:
        rows = database.execute("SELECT track_id, song_id, artist_id FROM songs").fetchall()
    about = {track: (song, artist) for track, song, artist in rows}
    song, artist = np.array([about[track] for track in data.tag_tracks]).T
    assert not set(artist[data.tag_train]) & set(artist[data.tag_test])
    assert list(song) == list(data.tag_items)
    second = ~np.isin(data.tag_tracks, data.item_tracks) & np.isin(data.tag_items, data.item_ids)
    assert second.any()  # a cold song must be kept out by its id, not by its one track


def test_timbre_tells_the_style_but_not_perfectly(content):
    length, mean, style = content
    mean, style = mean[length > 0], style[length > 0]
    mean = (mean - mean.mean(axis=0)) / mean.std(axis=0)
    distance = ((mean[:, None] - mean) ** 2).sum(axis=2)
    same = style[:, None] == style
    off_diagonal = ~np.eye(len(style), dtype=bool)
    assert distance[same & off_diagonal].mean() < 0.95 * distance[~same].mean()
    np.fill_diagonal(distance, np.inf)
    right = (style[distance.argmin(axis=1)] == style).mean()
    assert 1.5 * same[off_diagonal].mean() < right < 0.95


def test_listeners_keep_to_styles(data, content):
    heard = data.plays.toarray() > 0
    heard = heard / np.sqrt(np.maximum(heard.sum(axis=0), 1))
    together = heard.T @ heard
    same = content[2][:, None] == content[2]
    np.fill_diagonal(together, np.nan)
    assert np.nanmean(together[same]) > 1.5 * np.nanmean(together[~same])


def test_content_does_not_betray_popularity(data, content):
    length, mean, style = content
    heard = length > 0
    popularity = np.log(np.bincount(data.plays.indices, minlength=len(length)))[heard]
    limit = 4 / np.sqrt(len(popularity))  # four standard errors of a correlation of none
    for feature in (length[heard], *mean[heard].T):
        assert abs(np.corrcoef(feature, popularity)[0, 1]) < limit
    assert len(set(style)) == WORLD.styles
