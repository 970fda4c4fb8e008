"""One synthetic world in the form of every source of songs: the same listening, a whole run."""

import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from repro import config
from repro.config import ROOT
from repro.data import prepare, synthetic


def as_subset(world):
    """Leave the audio of four tracks of five, and the listening and tags of all."""
    tree = (world / "msd").rename(world / "MillionSongSubset")
    for path in sorted(tree.glob("?/?/?/*.h5"))[::5]:
        path.unlink()


def as_tables(world):
    """Write two tables beside; descriptors are the means of the first ten coefficients."""
    data, bag = prepare.load(config.SMOKE, world), prepare.bags(config.SMOKE, world)
    tagged, rows = dict(zip(data.tag_tracks, data.tags, strict=True)), []
    for track, name in zip(data.item_tracks, data.item_names, strict=True):
        if len(bag(track)):
            artist, title = name.split(" - ")
            tags = data.vocabulary[tagged[track].indices] if track in tagged else []
            rows.append((track, title, artist, ", ".join(tags), *bag(track)[:, :10].mean(0)))
    names = ["track_id", "name", "artist", "tags", *prepare.DESCRIPTORS]
    pd.DataFrame(rows, columns=names).to_csv(world / "Music Info.csv", index=False)
    plays = data.plays.tocoo()
    columns = data.item_tracks[plays.col], data.user_ids[plays.row], plays.data
    table = dict(zip(("track_id", "user_id", "playcount"), columns, strict=True))
    pd.DataFrame(table).to_csv(world / "User Listening History.csv", index=False)


def as_paper(world):
    """Give every tagged track some twenty of fifty more tags, as profile ``paper`` asks for."""
    with closing(sqlite3.connect(world / "lastfm_tags.db")) as database, database:
        (tracks,) = database.execute("SELECT MAX(ROWID) FROM tids").fetchone()
        (tags,) = database.execute("SELECT MAX(ROWID) FROM tags").fetchone()
        names = [(f"sound {first}{second}",) for first in "abcdefghij" for second in "klmno"]
        database.executemany("INSERT INTO tags VALUES (?)", names)
        given = np.argwhere(np.random.default_rng(0).random((tracks, 50)) < 0.45)
        rows = ((*row, 100.0) for row in (given + np.array([1, tags + 1])).tolist())
        database.executemany("INSERT INTO tid_tag VALUES (?, ?, ?)", rows)


def listening(data, song_of):
    """Return users x songs, labelled; ``song_of`` knows the songs of items that are tracks."""
    songs = [song_of.get(item, item) for item in data.item_ids]
    plays = pd.DataFrame(data.plays.toarray(), data.user_ids, songs)
    return plays.loc[plays.any(axis=1)].sort_index(axis=1)


def test_every_source_reads_the_same_listening(tmp_path):
    world, few = tmp_path / "world", {"min_songs_per_tag": 5}
    synthetic.write_world(config.SMOKE.world, 1, world)
    expected = prepare.load(config.SMOKE, world)
    song_of = dict(zip(expected.item_tracks, expected.item_ids, strict=True))
    whole = listening(expected, song_of)

    paper = prepare.load(replace(config.PAPER, **few), world)
    for name in ("user_ids", "item_ids", "item_tracks", "item_names", "vocabulary", "tag_train"):
        assert np.array_equal(getattr(paper, name), getattr(expected, name))
    assert (paper.plays != expected.plays).nnz == (paper.tags != expected.tags).nnz == 0

    # in the tables are those alone whose one track is not silent
    forms = (as_tables, config.MSD_SPOTIFY, 0.97), (as_subset, config.SUBSET, 0.7)
    for form, profile, least in forms:
        form(world)
        found = listening(prepare.load(replace(profile, **few), world), song_of)
        shared = found.columns.intersection(whole.columns)
        assert least < len(shared) / whole.shape[1] < least + 0.2
        users = whole.index.intersection(found.index)
        assert len(users) > 0.9 * len(whole)
        assert (found.loc[users, shared] == whole.loc[users, shared]).all(axis=None)


@pytest.mark.long
@pytest.mark.parametrize(  # as many songs as a profile's own settings need to choose from
    ("name", "form", "songs"),
    [("subset", as_subset, 3_000), ("msd-spotify", as_tables, 3_000), ("paper", as_paper, 15_000)],
)
def test_a_whole_run_on_files_in_its_form(name, form, songs, tmp_path):
    world = tmp_path / "files"
    sizes = {"users": 2 * songs, "songs": songs, "unplayed": 0}
    synthetic.write_world(replace(config.World(), **sizes, keys=1, language=0.0), 1, world)
    form(world)
    command = [sys.executable, "-m", "repro", "--profile", name, "--data", str(world)]
    environment = os.environ | {"REPRO_RESULTS": str(tmp_path / "results")}
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    folder = tmp_path / "results" / name
    assert len(json.loads((folder / "manifest.json").read_text())) == 6
    table = pd.read_csv(folder / "06_cold_start_evaluation" / "tables" / "out_of_matrix.csv")
    recall = table[table["metric"] == "R@40"].set_index("system")["mean"]
    assert recall["CF + deep"] > 1.1 * recall["random"], recall
    assert "synthetic data" in (folder / "README.md").read_text()
