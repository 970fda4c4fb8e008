"""Reading files of the real sizes: tables of tracks, the Taste Profile, a tree of HDF5 tracks."""

from __future__ import annotations

import sqlite3
import time
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl

from . import world
from .harness import Options, Report, Worker, say

# users, songs, plays, tracks, tagged tracks, tags, tag pairs
SIZES = {
    "msd-spotify": (962_037, 30_459, 9_711_301, 30_459, 0, 100, 0),
    "paper": (1_019_318, 384_546, 48_373_586, 1_000_000, 505_216, 522_366, 8_598_630),
}
SMALL = {
    "msd-spotify": (900, 200, 20_000, 200, 0, 12, 0),
    "paper": (900, 200, 40_000, 300, 150, 40, 900),
}
LIMITS = {"msd-spotify": (180, 6), "paper": (600, 12)}  # seconds, GiB
_ROWS = 4_000_000  # written at a time


def write_plays(path: Path, plays, songs: np.ndarray, history: bool) -> None:
    """Write triplets or, for ``history``, the CSV with the track first and a header."""
    users = pl.Series([f"{u:040x}" for u in range(plays.shape[0])])
    songs, counts = pl.Series(songs), np.random.default_rng(1).geometric(0.35, plays.nnz)
    user_of = np.repeat(np.arange(plays.shape[0]), np.diff(plays.indptr))
    with path.open("wb") as file:
        if history:
            file.write(b"track_id,user_id,playcount\n")
        for begin in range(0, plays.nnz, _ROWS):
            part = slice(begin, begin + _ROWS)
            columns = [users.gather(user_of[part]), songs.gather(plays.indices[part])]
            columns = columns[::-1] if history else columns
            frame = pl.DataFrame([*columns, pl.Series(counts[part])], schema=["a", "b", "n"])
            frame.write_csv(file, include_header=False, separator="," if history else "\t")


def write_tables(root: Path, size) -> int:
    """Write the two tables of ``msd-spotify``, and return the number of plays."""
    from repro.data.prepare import DESCRIPTORS

    users, songs, n, *_, tags, _ = size
    plays = world.generate(users, songs, 1, n / users).plays
    ids = np.array([f"TR{i:016X}" for i in range(songs)])
    write_plays(root / "User Listening History.csv", plays, ids, history=True)
    rng = np.random.default_rng(2)
    drawn = rng.integers(tags, size=(songs, 4))
    about = {"track_id": ids, "name": [f"Song {i}" for i in range(songs)]}
    about["artist"] = [f"Artist {i}" for i in rng.integers(max(songs // 4, 2), size=songs)]
    about["tags"] = [", ".join(f"style_{t}" for t in sorted(set(row))) for row in drawn]
    about |= {name: rng.random(songs) for name in DESCRIPTORS}
    pl.DataFrame(about).write_csv(root / "Music Info.csv")
    return plays.nnz


def write_msd(root: Path, size) -> int:
    """Write all of the MSD that is read before any track is, and return the number of plays."""
    import h5py

    users, songs, n, tracks, tagged, tags, pairs = size
    plays = world.generate(users, songs, 10 if songs > 1000 else 2, n / users).plays
    ids = np.array([f"SO{i:016X}" for i in range(songs)])
    write_plays(root / "train_triplets.txt", plays, ids, history=False)
    track = [f"TR{i:016X}" for i in range(tracks)]
    artist = [f"AR{i % max(tracks // 22, 2):016X}" for i in range(tracks)]
    rng = np.random.default_rng(3)
    with closing(sqlite3.connect(root / "track_metadata.db")) as database, database:
        database.execute("CREATE TABLE songs (track_id, title, song_id, artist_id, artist_name)")
        rows = zip(
            track, track, map("SO{:016X}".format, range(tracks)), artist, artist, strict=True
        )
        database.executemany("INSERT INTO songs VALUES (?, ?, ?, ?, ?)", rows)
    of = np.sort(rng.integers(tagged, size=pairs)) + 1
    tag = np.minimum(rng.zipf(1.3, pairs), tags)  # a few tags are on most tracks
    with closing(sqlite3.connect(root / "lastfm_tags.db")) as database, database:
        for table in (
            "tids (tid TEXT)",
            "tags (tag TEXT)",
            "tid_tag (tid INT, tag INT, val FLOAT)",
        ):
            database.execute(f"CREATE TABLE {table}")
        database.executemany("INSERT INTO tids VALUES (?)", ((t,) for t in track[:tagged]))
        names = ((f"{'abcdefghij'[t % 10]} style {t:x}",) for t in range(tags))
        database.executemany("INSERT INTO tags VALUES (?)", names)
        rows = zip(of.tolist(), tag.tolist(), [50.0] * pairs, strict=True)
        database.executemany("INSERT INTO tid_tag VALUES (?, ?, ?)", rows)
    with h5py.File(root / "msd_summary_file.h5", "w") as file:
        file["metadata/songs"] = np.array([(0.5,)] * tracks, [("song_hotttnesss", "f8")])
        file["analysis/songs"] = np.array([(t,) for t in track], [("track_id", "S32")])
    (root / "tracks_bad_audio.txt").write_text("".join(f"{t}\n" for t in track[:: tracks // 100]))
    half = sorted(set(artist))
    (root / "artists_train.txt").write_text("\n".join(half[::2]))
    (root / "artists_test.txt").write_text("\n".join(half[1::2]))
    (root / "msd").mkdir(exist_ok=True)
    return plays.nnz


def read_all(profile: str, root, small: bool):
    """Do the long part of notebook 1: read, choose DEN, split it."""
    from repro import config
    from repro.data import prepare, subsets

    chosen = config.PROFILES[profile]
    if small:
        changes = dict.fromkeys(("min_songs_per_user", "min_users_per_song"), 5)
        changes |= dict.fromkeys(("sparse_songs_per_user", "sparse_users_per_song"), 90)
        chosen = replace(chosen, min_songs_per_tag=2, **changes)
    while True:
        began = time.perf_counter()
        data = prepare.load(chosen, root)
        users, items = subsets.dense_subset(
            data.plays, chosen.min_songs_per_user, chosen.min_users_per_song
        )
        den = data.plays[users][:, items]
        parts = subsets.split_pairs(den, 0.2, 0.1, 0)
        seconds = [time.perf_counter() - began]
        yield {
            "seconds": seconds,
            "read": data.facts.get("triplets read", data.facts.get("user-track pairs read")),
            "left": data.plays.nnz,
            "split": sum(part.nnz for part in parts) - den.nnz,
        }


def read_tree(tree):
    """Read all frames of a tree of tracks, as notebook 2 does, and count their codewords."""
    from repro.data.prepare import Bags
    from repro.data.raw import TIMBRE_DIM, timbre
    from repro.models import vq

    tracks = sorted(path.stem for path in Path(tree).glob("?/?/?/*.h5"))
    centres = world.frames(1024)
    book = vq.Codebook(centres, np.zeros(12, np.float32), np.ones(12, np.float32))
    while True:
        bags = Bags(partial(timbre, Path(tree)), TIMBRE_DIM)
        began = time.perf_counter()
        counts = vq.histograms(bags, tracks, book)
        seconds = [time.perf_counter() - began]
        yield {"seconds": seconds, "tracks": len(tracks), "frames": int(counts.sum())}


def write_tracks(tree: Path, n: int) -> Path:
    """Write tracks with frames alone."""
    import h5py

    for i in range(n):
        name = f"TR{'ABCDEFGHIJ'[i % 10]}AA{i:013X}"
        path = tree.joinpath(*name[2:5], f"{name}.h5")
        path.parent.mkdir(parents=True, exist_ok=True)
        with h5py.File(path, "w") as file:
            file["analysis/segments_timbre"] = world.frames(700, seed=i).astype(np.float64)
    return tree


def run(options: Options, report: Report) -> None:
    """Measure; see the module."""
    from repro.config import data_root

    rows = report.tables["preparation"] = []
    sizes = SMALL if options.small else SIZES
    for profile, write in (("msd-spotify", write_tables), ("paper", write_msd)):
        root = options.scratch / profile
        root.mkdir()
        written = write(root, sizes[profile])
        say(f"  {profile}: {written:,} plays written")
        with Worker(read_all, profile=profile, root=root, small=options.small) as worker:
            turn = worker.turn()
        if turn["read"] != written or turn["split"]:
            raise AssertionError(f"{profile}: {turn} of {written:,} plays")
        row = {
            "work": f"{profile}: read, DEN, split",
            "plays": written,
            "seconds": turn["seconds"][0],
        }
        row |= {"peak GiB": turn["peak"], "target": "", "reached": ""}
        if options.full:
            seconds, memory = LIMITS[profile]
            row |= report.goal(
                f"{profile}: {written / 1e6:.1f} M plays prepared", turn["seconds"][0], seconds,
                unit="s", low=True,
            )  # fmt: skip
            work = f"{profile}: peak memory of the preparation"
            report.goal(work, turn["peak"], memory, unit="GiB", low=True)
        rows.append(row)
    tree, kind = data_root() / "msd_h5", "genuine tracks"
    if options.small or not tree.is_dir():
        tree, kind = write_tracks(options.scratch / "tree", 20 if options.small else 400), "our own"
    with Worker(read_tree, tree=tree) as worker:
        worker.turn()
        turns = [worker.turn() for _ in range(options.rounds)]
    rate = turns[0]["tracks"] / float(np.median([t["seconds"][0] for t in turns]))
    report.tables["tracks"] = [
        {
            "files": kind,
            "tracks": turns[0]["tracks"],
            "frames": turns[0]["frames"],
            "tracks a second": rate,
            "hours for 1,000,000 (projected)": 1e6 / rate / 3600,
        }
    ]
    report.notes.append(
        "Generated files in the genuine formats. Preparation: reading everything but the tracks, "
        "the dense subset and its split. Tracks: opening, reading and quantising with 1,024 "
        "codewords, one file after the other, files in the page cache: a disk is slower."
    )
