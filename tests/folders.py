"""Folders of raw files so small that what is in them can be worked out by hand."""

import sqlite3
import zipfile
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import pytest

SAMPLES = Path(__file__).resolve().parents[2] / "shared" / "data"
genuine = pytest.mark.skipif(not SAMPLES.is_dir(), reason=f"no genuine samples in {SAMPLES}")

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
HETREC = {
    "artists.dat": "id\tname\turl\tpictureURL\n1\tThe Ann\tu\tp\n2\tBob\tu\tp\n3\tCid\tu\tp\n",
    "user_artists.dat": "userID\tartistID\tweight\n7\t1\t5\n7\t2\t1\n8\t2\t3\n9\t3\t2\n",
    "user_taggedartists.dat": "userID\tartistID\ttagID\tday\tmonth\tyear\n"
    + "".join(f"{u}\t{a}\t{t}\t1\t1\t2009\n" for u in (7, 8) for a in (1, 2) for t in (1, 2)),
    "tags.dat": "tagID\ttagValue\n1\trock\n2\tjazz\n",
}
INFO = (
    "track_id,name,artist,tags,duration_ms,danceability,energy,loudness,speechiness,"
    "acousticness,instrumentalness,liveness,valence,tempo\n"
)
for number, said in enumerate(['ann,"rock, jazz"', "ann,rock", "bob,jazz", "cid,", "bob,rock"]):
    descriptors = "200000,0.5,0.5,-8.0,0.1,0.2,0.0,0.1,0.4,120.0"
    INFO += f"TR{number},Song {number},{said},{descriptors}\n"
HISTORY = "track_id,user_id,playcount\nTR0,u1,1\nTR1,u1,2\nTR2,u2,1\nTR0,u2,3\nTR3,u2,4\n"


def write_track(folder, track, frames, artist_name="Ann", **more):
    """Write one track's HDF5 file in its place below ``folder``."""
    path = folder.joinpath(*track[2:5], f"{track}.h5")
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"artist_name": artist_name} | more
    with h5py.File(path, "w") as file:
        file["analysis/segments_timbre"] = frames
        file["metadata/songs"] = np.array([tuple(row.values())], [(name, "S64") for name in row])


def write_sqlite(path, **tables):
    """Write tables, each a text of its columns and the rows."""
    path.unlink(missing_ok=True)
    with closing(sqlite3.connect(path)) as database, database:
        for name, (columns, rows) in tables.items():
            database.execute(f"CREATE TABLE {name} ({columns})")
            marks = ", ".join("?" * (columns.count(",") + 1))
            database.executemany(f"INSERT INTO {name} VALUES ({marks})", rows)  # noqa: S608


def write_tags(path, tagged):
    """Write (track, tag, value) rows as ``lastfm_tags.db`` has them."""
    tracks, tags = (sorted({row[k] for row in tagged}, key=str, reverse=True) for k in (0, 1))
    values = [(tracks.index(track) + 1, tags.index(tag) + 1, v) for track, tag, v in tagged]
    tables = {"tids": ("tid TEXT", zip(tracks)), "tags": ("tag TEXT", zip(tags))}
    write_sqlite(path, **tables, tid_tag=("tid INT, tag INT, val FLOAT", values))


def write_msd(folder):
    """Write a Million Song Dataset of six tracks, of which two have audio."""
    (folder / "train_triplets.txt").write_text(TRIPLETS)
    (folder / "tracks_bad_audio.txt").write_text("TRAAB05\n")
    (folder / "artists_train.txt").write_text("AR1\nAR2\n")
    (folder / "artists_test.txt").write_text("AR3\n")
    write_track(folder / "msd", "TRAAB01", np.arange(24.0).reshape(2, 12))
    write_track(folder / "msd", "TRAAB03", np.empty((0, 12)))
    with h5py.File(folder / "msd_summary_file.h5", "w") as file:
        file["metadata/songs"] = np.array([(0.5,), (np.nan,)], [("song_hotttnesss", "f8")])
        file["analysis/songs"] = np.array([("TRAAB06",), ("TRAAB01",)], [("track_id", "S32")])
    columns = "track_id, title, song_id, artist_id, artist_name"
    write_sqlite(folder / "track_metadata.db", songs=(columns, SONGS))
    write_tags(folder / "lastfm_tags.db", TAGGED)
    return folder


def write_subset(folder):
    """Write the same with a tree that says itself what its tracks are."""
    for track, title, song, artist, name in SONGS[1:]:
        about = {"title": title, "song_id": song, "artist_id": artist}
        write_track(folder / "MillionSongSubset", track, np.ones((3, 12)), name, **about)
    return write_msd(folder)


def write_hetrec(folder, **changes):
    """Write HetRec's archive, some members ``changes``, and descriptors of its artists."""
    with zipfile.ZipFile(folder / "hetrec2011-lastfm-2k.zip", "w") as archive:
        for name, text in HETREC.items():
            archive.writestr(name, changes.get(name.removesuffix(".dat"), text))
    (folder / "Music Info.csv").write_text(INFO)
    return folder


def write_spotify(folder):
    """Write the two tables of tracks with descriptors and their listening."""
    (folder / "Music Info.csv").write_text(INFO)
    (folder / "User Listening History.csv").write_text(HISTORY)
    return folder


WRITERS = dict(msd=write_msd, subset=write_subset, lastfm=write_hetrec, spotify=write_spotify)
