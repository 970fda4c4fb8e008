"""One synthetic world in the form of every source of songs: the same listening, a whole run."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from folders import in_the_form_of

from repro import config
from repro.config import ROOT
from repro.data import prepare, synthetic


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world") / "files"
    synthetic.write_world(config.SMOKE.world, 1, folder)
    return folder


def listening(data, name):
    """Return users x songs, labelled; ``name`` turns an item's id into its song's."""
    plays = pd.DataFrame(data.plays.toarray(), data.user_ids, [name(i) for i in data.item_ids])
    return plays.loc[plays.any(axis=1)].sort_index(axis=1)


def test_every_source_reads_the_same_listening(world, tmp_path):
    few = {"min_songs_per_tag": 5}
    expected = prepare.load(config.SMOKE, world)
    song_of = dict(zip(expected.item_tracks, expected.item_ids, strict=True))

    folder = in_the_form_of("msd", world, tmp_path / "msd")
    paper = prepare.load(replace(config.PAPER, **few), folder)
    for name in ("user_ids", "item_ids", "item_tracks", "item_names", "vocabulary", "tag_train"):
        assert np.array_equal(getattr(paper, name), getattr(expected, name))
    assert (paper.plays != expected.plays).nnz == (paper.tags != expected.tags).nnz == 0

    folder = in_the_form_of("subset", world, tmp_path / "subset")
    subset = prepare.load(replace(config.SUBSET, **few), folder)
    found, whole = listening(subset, str), listening(expected, str)
    assert 0.7 < found.shape[1] / whole.shape[1] < 0.9
    assert (found == whole.loc[found.index, found.columns]).all(axis=None)

    folder = in_the_form_of("spotify", world, tmp_path / "spotify")
    spotify = prepare.load(replace(config.MSD_SPOTIFY, **few), folder)
    found = listening(spotify, lambda track: song_of.get(track, track))
    shared = found.columns.intersection(whole.columns)
    assert len(shared) > 0.97 * whole.shape[1]  # those whose one track is silent are not there
    users = whole.index.intersection(found.index)
    assert (found.loc[users, shared] == whole.loc[users, shared]).all(axis=None)


# What a profile's own settings need to choose from.
WORLDS = {
    "subset": replace(config.World(), users=6_000, songs=3_000),
    "msd-spotify": replace(config.World(), users=6_000, songs=3_000),
    "paper": replace(config.World(), users=30_000, songs=15_000),
}


def tag_more(folder):
    """Give every tagged track some twenty of fifty more tags, as profile ``paper`` asks for."""
    path, rng = folder / "lastfm_tags.db", np.random.default_rng(0)
    shutil.copy(path, folder / "copy")  # in the place of a link
    (folder / "copy").replace(path)
    with closing(sqlite3.connect(path)) as database, database:
        (tracks,) = database.execute("SELECT MAX(ROWID) FROM tids").fetchone()
        (tags,) = database.execute("SELECT MAX(ROWID) FROM tags").fetchone()
        names = [(f"sound {'abcdefghij'[i % 10]}{'klmno'[i // 10]}",) for i in range(50)]
        database.executemany("INSERT INTO tags VALUES (?)", names)
        given = np.argwhere(rng.random((tracks, 50)) < 0.45) + np.array([1, tags + 1])
        rows = ((*row, 100.0) for row in given.tolist())
        database.executemany("INSERT INTO tid_tag VALUES (?, ?, ?)", rows)


@pytest.mark.long
@pytest.mark.parametrize("name", WORLDS)
def test_a_whole_run_on_files_in_its_form(name, tmp_path):
    source, profile = tmp_path / "files", config.PROFILES[name]
    synthetic.write_world(WORLDS[name], 1, source)
    folder = in_the_form_of(profile.source, source, tmp_path / name)
    if name == "paper":
        tag_more(folder)
    command = [sys.executable, "-m", "repro", "--profile", name, "--data", str(folder)]
    environment = os.environ | {"REPRO_RESULTS": str(tmp_path / "results")}
    subprocess.run(command, env=environment, cwd=ROOT, check=True)
    folder = tmp_path / "results" / name
    assert len(json.loads((folder / "manifest.json").read_text())) == 6
    tables = folder / "06_cold_start_evaluation" / "tables"
    table = pd.read_csv(tables / "out_of_matrix.csv")
    recall = table[table["metric"] == "R@40"].set_index("system")["mean"]
    print(recall)
    assert recall["CF + deep"] > 1.1 * recall["random"]
    assert "synthetic data" in (folder / "README.md").read_text()
