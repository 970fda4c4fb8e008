"""The readers on a folder small enough to work out by hand, on broken files, on genuine samples."""

import sqlite3
import zipfile
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import polars as pl
import pytest

from repro import config, datasets, readers, sources

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"
genuine = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no genuine samples in {SAMPLES}")
PROFILE = replace(config.PAPER, min_songs_per_tag=2)

TRIPLETS = """\
u2\tSOB\t3
u1\tSOA\t1
u1\tSOB\t2
u2\tSOBAD\t9
u3\tSOLOST\t4
u1\tSOA\t5
"""
SONGS = [  # track, title, song, artist, artist's name
    ("TRAAB02", "Second take", "SOA", "AR1", "Ann"),
    ("TRAAB01", "First take", "SOA", "AR1", "Ann"),
    ("TRAAB03", "Bee", "SOB", "AR2", "Bob"),
    ("TRAAB04", "Fine audio", "SOBAD", "AR2", "Bob"),
    ("TRAAB05", "Bad audio", "SOBAD", "AR2", "Bob"),
    ("TRAAB06", "Unheard", "SOC", "AR3", "Cid"),
]
TAGGED = [  # track, tag, val
    ("TRAAB01", "Alt Country", 100),
    ("TRAAB03", "Alt Country", 0),
    ("TRAAB03", "alt-country", 0),
    ("TRAAB06", "alt-country", 7),
    ("TRAAB01", "seen live", 100),
    ("TRAAB03", "seen live", 100),
    ("TRAAB03", "R&B", 50),
    ("TRAAB06", "R&B", 50),
    ("TRAAB01", "polka", 50),
]


def write_track(folder, track, frames, artist_name="Ann"):
    path = folder.joinpath(*track[2:5], f"{track}.h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file["analysis/segments_timbre"] = frames
        file["metadata/songs"] = np.array([(artist_name,)], [("artist_name", "S64")])
    return path


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "train_triplets.txt").write_text(TRIPLETS)
    (tmp_path / "tracks_bad_audio.txt").write_text("TRAAB05\n")
    (tmp_path / "artists_train.txt").write_text("AR1\nAR2\n")
    (tmp_path / "artists_test.txt").write_text("AR3\n")
    write_track(tmp_path / "msd", "TRAAB01", np.arange(24.0).reshape(2, 12))
    write_track(tmp_path / "msd", "TRAAB03", np.empty((0, 12)))
    with h5py.File(tmp_path / "msd_summary_file.h5", "w") as file:
        file["metadata/songs"] = np.array([(0.5,), (np.nan,)], [("song_hotttnesss", "f8")])
        file["analysis/songs"] = np.array([("TRAAB06",), ("TRAAB01",)], [("track_id", "S32")])
    with closing(sqlite3.connect(tmp_path / "track_metadata.db")) as db, db:
        db.execute("CREATE TABLE songs (track_id, title, song_id, artist_id, artist_name)")
        db.executemany("INSERT INTO songs VALUES (?, ?, ?, ?, ?)", SONGS)
    tracks, tags = (sorted({row[k] for row in TAGGED}, reverse=True) for k in (0, 1))
    with closing(sqlite3.connect(tmp_path / "lastfm_tags.db")) as db, db:
        db.execute("CREATE TABLE tids (tid TEXT)")
        db.execute("CREATE TABLE tags (tag TEXT)")
        db.execute("CREATE TABLE tid_tag (tid INT, tag INT, val FLOAT)")
        db.executemany("INSERT INTO tids VALUES (?)", [(t,) for t in tracks])
        db.executemany("INSERT INTO tags VALUES (?)", [(t,) for t in tags])
        db.executemany(
            "INSERT INTO tid_tag VALUES (?, ?, ?)",
            [(tracks.index(track) + 1, tags.index(tag) + 1, v) for track, tag, v in TAGGED],
        )
    return tmp_path


def test_plays_follow_the_recipe(folder):
    data = datasets.load(PROFILE, folder)
    plays = {
        (data.user_ids[u], data.item_ids[i]): n
        for u, i, n in zip(*data.plays.nonzero(), data.plays.data, strict=True)
    }
    # SOBAD goes although one of its tracks is fine; a repeated pair adds up
    assert plays == {
        ("u1", "SOA"): 6,
        ("u1", "SOB"): 2,
        ("u2", "SOB"): 3,
        ("u3", "SOLOST"): 4,
    }
    assert data.plays.dtype == np.int32
    assert list(data.item_ids) == ["SOA", "SOB", "SOLOST"]
    assert list(data.item_names) == ["Ann - First take", "Bob - Bee", ""]
    assert list(data.item_artists) == ["AR1", "AR2", ""]
    assert list(data.item_tracks) == ["TRAAB01", "TRAAB03", ""]
    assert data.facts["triplets read"] == 6
    assert data.facts["triplets after bad-audio removal"] == 5
    assert data.facts["songs without a track"] == 1


def test_tags_follow_the_recipe(folder):
    data = datasets.load(PROFILE, folder)
    # "seen live" says nothing of the sound, "polka" is rare, a summed value of 0 is no tag
    assert list(data.vocabulary) == ["altcountri", "randb"]
    assert list(data.tag_tracks) == ["TRAAB01", "TRAAB03", "TRAAB06"]
    assert data.tags.toarray().tolist() == [[1, 0], [0, 1], [1, 1]]
    assert list(data.tag_train) == [True, True, False]
    assert list(data.tag_test) == [False, False, True]
    assert np.array_equal(data.hotness, np.float32([np.nan, np.nan, 0.5]), equal_nan=True)


def test_bags_are_the_frames_and_may_be_empty(folder):
    bag = datasets.bags(PROFILE, folder)
    assert np.array_equal(bag("TRAAB01"), np.arange(24).reshape(2, 12))
    assert bag("TRAAB01").dtype == np.float32
    assert bag("TRAAB03").shape == bag("").shape == (0, 12)


def test_broken_tracks_count_as_silent_and_are_listed(folder):
    bag = datasets.bags(PROFILE, folder)
    broken = write_track(folder / "msd", "TRAAB07", np.zeros((2, 12)))
    broken.write_bytes(broken.read_bytes()[:100])
    write_track(folder / "msd", "TRAAB08", np.zeros((2, 5)))
    write_track(folder / "msd", "TRAAB10", np.full((2, 12), np.nan))
    for track in ("TRAAB07", "TRAAB08", "TRAAB09", "TRAAB10"):
        assert bag(track).shape == (0, 12)
        assert f"{track}.h5" in bag.broken[track] and "segments_timbre" in bag.broken[track]
    assert len(bag("TRAAB01")) == 2 and "TRAAB01" not in bag.broken


def test_many_broken_tracks_stop_the_reading(folder):
    bag = datasets.bags(PROFILE, folder)
    with pytest.raises(datasets.BadInput, match=r"21 of 21 tracks cannot be read; the last: .*h5"):
        for number in range(30):
            bag(f"TRNONE{number}")


@pytest.mark.parametrize(
    "line",
    ["u9\tSOA\t0", "u9\tSOA\t-1", "u9\tSOA\t1.5", "u9\tSOA", "u9\tSOA\tmany", "u9\tSOA\t1\t1", ""],
)
def test_malformed_triplet_is_named_with_its_line(folder, line):
    (folder / "train_triplets.txt").write_text(TRIPLETS + line + "\nu9\tSOA\t1\n")
    with pytest.raises(datasets.BadInput, match=r"train_triplets\.txt, line 7: expected user"):
        datasets.load(PROFILE, folder)


def test_triplets_are_read_from_the_zip_as_shipped(folder):
    text = folder / "train_triplets.txt"
    with zipfile.ZipFile(folder / "train_triplets.txt.zip", "w") as archive:
        archive.write(text, text.name)
    before = datasets.load(PROFILE, folder)
    text.unlink()
    after = datasets.load(PROFILE, folder)
    assert (before.plays != after.plays).nnz == 0
    assert list(before.item_ids) == list(after.item_ids)


def test_overlapping_artist_lists_are_refused(folder):
    (folder / "artists_test.txt").write_text("AR3\nAR1\n")
    with pytest.raises(datasets.BadInput, match="AR1"):
        datasets.load(PROFILE, folder)


def test_database_without_the_table_is_named(folder):
    (folder / "lastfm_tags.db").unlink()
    sqlite3.connect(folder / "lastfm_tags.db").close()
    with pytest.raises(datasets.BadInput, match=r"lastfm_tags\.db"):
        datasets.load(PROFILE, folder)


@pytest.mark.parametrize("profile", config.PROFILES.values())
def test_missing_files_are_all_named_with_their_origin(tmp_path, profile):
    missing = sources.missing(profile, tmp_path)
    assert missing == sources.required(profile, tmp_path)
    with pytest.raises(sources.MissingData) as caught:
        datasets.load(profile, tmp_path)
    for source in missing:
        for said in (source.path.name, source.origin, source.size, source.licence, str(tmp_path)):
            assert said in str(caught.value)


def test_fingerprint_follows_content_and_not_dates(folder):
    before = sources.fingerprint(PROFILE, folder)
    (folder / "train_triplets.txt").touch()
    assert sources.fingerprint(PROFILE, folder) == before
    (folder / "train_triplets.txt").write_text(TRIPLETS.replace("\t9", "\t8"))
    changed = sources.fingerprint(PROFILE, folder)
    assert changed != before
    write_track(folder / "msd", "TRAAB01", np.ones((2, 12)))
    assert sources.fingerprint(PROFILE, folder) != changed


@pytest.mark.parametrize(
    ("spellings", "stem"),
    [
        (["Hip-Hop", "hip hop", "HIPHOP"], "hiphop"),
        (["Rock & Roll", "rock n roll", "Rock and Roll"], "rockandroll"),
        (["Female Vocalists", "female vocalist"], "femalvocalist"),
    ],
)
def test_spellings_meet_in_a_stem(spellings, stem):
    assert {datasets.sanitise(spelling) for spelling in spellings} == {stem}


def test_artist_names_meet_in_a_key():
    assert datasets.artist_key("The Beatles") == datasets.artist_key("beatles")
    assert datasets.artist_key("Sigur Rós") == datasets.artist_key("sigur ros")
    assert datasets.artist_key("Simon & Garfunkel") == datasets.artist_key("simon and garfunkel")
    assert datasets.artist_key("Thes") != datasets.artist_key("s")
    assert datasets.artist_key("!!!") == ""


@genuine
def test_genuine_triplets():
    table = readers.triplets(SAMPLES / "taste_profile_sample.tsv")
    assert table.height == 7_023
    assert table["user"].n_unique() == 245
    assert table["song"].n_unique() == 5_583


@genuine
def test_genuine_listening_with_descriptors():
    data = datasets.load(config.LASTFM, SAMPLES)
    assert data.facts["users read"] == 1_892
    assert data.facts["artists read"] == 17_632
    assert data.facts["user-artist pairs read"] == 92_834
    assert data.facts["tag assignments read"] == 186_479
    assert data.facts["artists with listening, tags and content"] == 4_261
    assert data.facts["their users"] == data.plays.shape[0] == 1_882
    assert data.facts["their user-artist pairs"] == 68_766
    assert data.facts["their tag assignments"] == 132_158
    assert data.facts["tags that are frequent"] == 585
    assert data.plays.shape[1] == len(set(data.item_ids)) == 4_244
    assert not (data.tag_train & data.tag_test).any() and (data.tag_train | data.tag_test).all()
    bag = datasets.bags(config.LASTFM, SAMPLES)
    sizes = [len(bag(track)) for track in data.item_tracks]
    assert min(sizes) > 0
    assert sum(sizes) == 27_028
    spelt = dict(zip(data.item_ids, data.item_names, strict=True))
    assert spelt["sigurros"] == "Sigur Rós"
    assert bag("sigurros").shape[1] == len(datasets.DESCRIPTORS) == 10


@genuine
def test_genuine_listening_with_timbre():
    data = datasets.load(config.LASTFM_TIMBRE, SAMPLES)
    bag = datasets.bags(config.LASTFM_TIMBRE, SAMPLES)
    assert len(set(data.item_tracks)) == len(data.item_ids) > 250
    assert set(data.tag_tracks) <= set(data.item_tracks)
    path = min((SAMPLES / "msd_h5").glob("?/?/?/*.h5"))
    with h5py.File(path) as file:
        assert np.allclose(bag(path.stem), file["analysis"]["segments_timbre"][:], rtol=1e-6)
    frames = bag(data.item_tracks[0])
    assert frames.shape[1] == 12
    assert 0 <= np.median(frames[:, 0]) <= 60


def test_descriptor_table_under_its_other_name(tmp_path):
    columns = {name: [0.5, 1.5] for name in datasets.DESCRIPTORS}
    pl.DataFrame({"track_id": ["a", "b"], "artist": ["The Ann", "ann"], **columns}).write_csv(
        tmp_path / "Music Info.csv"
    )
    bag = datasets.bags(config.LASTFM, tmp_path)
    assert bag("ann").tolist() == [[0.5] * 10, [1.5] * 10]
    assert bag("bob").shape == (0, 10)
