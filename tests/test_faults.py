"""Every fault of the raw files, one by one, and what becomes of it: the table in FAULTS.md."""

import ast
import errno
import fcntl
import functools
import os
import re
import sqlite3
import zipfile
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from folders import (
    HISTORY,
    INFO,
    SAMPLES,
    SONGS,
    TAGGED,
    TRIPLETS,
    genuine,
    write_hetrec,
    write_msd,
    write_spotify,
    write_subset,
    write_tags,
    write_track,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repro import config
from repro.data import files, hdf5, prepare, raw, synthetic

PROFILES = {
    "msd": (replace(config.PAPER, min_songs_per_tag=2), write_msd),
    "subset": (replace(config.SUBSET, min_songs_per_tag=1), write_subset),
    "spotify": (replace(config.MSD_SPOTIFY, min_songs_per_tag=2), write_spotify),
    "lastfm": (replace(config.LASTFM, min_songs_per_tag=2), write_hetrec),
}
anew = settings(
    max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
TABLE = Path(__file__).with_name("FAULTS.md")


@dataclass
class Fault:
    """What is done to a folder, and what must follow: an error's message, or a count or state."""

    source: str
    file: str
    what: str
    do: object  # a function of the folder, or the text to put into the file
    error: str = ""
    holds: object = None  # a function of the dataset and the bags, True where no error is due
    so: str = ""


def triplets(what, text, error):
    return Fault("msd", "train_triplets.txt", what, TRIPLETS + text + "\nu9\tSOA\t1\n", error)


def cut(name, keep=0.5):
    def do(folder):
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content[: int(len(content) * keep)])

    return do


def zipped(content, keep=1.0, flip=0):
    def do(folder):
        (folder / "train_triplets.txt").unlink()
        path = folder / "train_triplets.txt.zip"
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(*content)
        damaged = bytearray(path.read_bytes())
        damaged[len(damaged) // 3] ^= flip
        path.write_bytes(damaged[: int(len(damaged) * keep)])

    return do


def sql(name, *statements):
    def do(folder):
        database = sqlite3.connect(folder / name)
        for statement in statements:
            database.execute(statement)
        database.commit()
        database.close()

    return do


def track(frames):
    return lambda folder: write_track(folder / "msd", "TRAAB01", frames)


def h5(name, frames):
    def do(folder):
        with h5py.File(folder / name, "w") as file:
            file["analysis/other"] = frames

    return do


def of_a_mac(folder):
    (folder / "MillionSongSubset/A/.DS_Store").write_bytes(b"Bud1")
    for path in list(folder.glob("MillionSongSubset/?/?/?/*.h5")):
        path.with_name(f"._{path.name}").write_bytes(b"\0\5\x16\7" * 1024)


def no_rows(folder):
    with h5py.File(folder / "MillionSongSubset/A/A/B/TRAAB01.h5", "a") as file:
        kind = file["metadata/songs"].dtype
        del file["metadata/songs"]
        file.create_dataset("metadata/songs", shape=(0,), dtype=kind)


def silent(data, bag):
    return bag("TRAAB01").shape == (0, 12) and "TRAAB01" in bag.broken(["TRAAB01"], 1)


TAB = "expected user <TAB> song <TAB> positive integer"
SKIP = "a track without frames, listed in broken_tracks.csv and counted in the manifest"
TIMBRE = "msd/A/A/B/TRAAB01.h5"
plays = functools.partial(Fault, "msd", "train_triplets.txt")
metadata = functools.partial(Fault, "msd", "track_metadata.db")
tags = functools.partial(Fault, "msd", "lastfm_tags.db")
hetrec = functools.partial(Fault, "lastfm", "hetrec2011-lastfm-2k.zip")
info = functools.partial(Fault, "spotify", "Music Info.csv")
history = functools.partial(Fault, "spotify", "User Listening History.csv")
FAULTS = [
    triplets("a count of zero", "u9\tSOA\t0", rf"train_triplets\.txt, line 7: {TAB}, found 'u9"),
    triplets("a negative count", "u9\tSOA\t-1", f"line 7: {TAB}"),
    triplets("a fractional count", "u9\tSOA\t1.5", f"line 7: {TAB}"),
    triplets("a huge count", "u9\tSOA\t99999999999", f"line 7: {TAB}"),
    triplets("a count that is no number", "u9\tSOA\tnan", f"line 7: {TAB}"),
    triplets("a column missing", "u9\tSOA", f"line 7: {TAB}"),
    triplets("a column too many", "u9\tSOA\t1\t1", f"line 7: {TAB}"),
    triplets("another delimiter", "u9,SOA,1", f"line 7: {TAB}, found 'u9,SOA,1'"),
    triplets("an empty line", "", f"line 7: {TAB}, found ''"),
    plays("an empty file", "", r"train_triplets\.txt: .* found none"),
    plays("bytes that are not UTF-8",
          lambda f: (f / "train_triplets.txt").write_bytes(TRIPLETS.encode() + b"u\xff\tSOA\t1\n"),
          rf"train_triplets\.txt, line 7: {TAB}"),
    plays("counts of a pair that add up beyond 32 bits", TRIPLETS + "u1\tSOA\t999999999\n" * 3,
          "counts of u1 and SOA add up to 3,000,000,003"),
    plays("a pair twice", TRIPLETS, holds=lambda d, bag: d.plays[0, 0] == 6,
          so="the counts add up"),
    plays("a song that no other file knows", TRIPLETS,
          holds=lambda d, bag: d.facts["songs without a track"] == 1 and bag("").shape == (0, 12),
          so="kept for listening, without content; counted in the table of the preparation"),
    plays("a user with one play", "u1\tSOA\t1\nu2\tSOB\t1\n",
          holds=lambda d, bag: d.plays.shape == (2, 2),
          so="kept; DEN and SPR have thresholds of their own, and a user's only pair is for "
          "training"),
    Fault("msd", "train_triplets.txt.zip", "cut short",
          zipped(("train_triplets.txt", TRIPLETS), 0.5),
          r"train_triplets\.txt\.zip: broken, cut short"),
    Fault("msd", "train_triplets.txt.zip", "without the expected member",
          zipped(("other.txt", TRIPLETS)), r"train_triplets\.txt\.zip: broken"),
    *(
        Fault("msd", TIMBRE, what, do, holds=silent, so=SKIP)
        for what, do in {
            "an HDF5 file cut short": cut(TIMBRE),
            "an empty file": lambda f: (f / TIMBRE).write_bytes(b""),
            "absent": lambda f: (f / TIMBRE).unlink(),
            "without segments_timbre": h5(TIMBRE, [1]),
            "frames of another dimension": track(np.ones((3, 5))),
            "frames that are no matrix": track(np.ones(12)),
            "frames that are text": track(np.array([b"x" * 12])),
            "NaN among the frames": track(np.full((3, 12), np.nan)),
            "infinity among the frames": track(np.full((3, 12), np.inf)),
        }.items()
    ),
    Fault("msd", TIMBRE, "no segments", track(np.empty((0, 12))),
          holds=lambda d, bag: bag("TRAAB01").shape == (0, 12) and not bag.broken(["TRAAB01"], 1),
          so="an empty histogram, counted in the table of histograms"),
    Fault("msd", TIMBRE, "one segment", track(np.ones((1, 12))),
          holds=lambda d, bag: bag("TRAAB01").shape == (1, 12), so="read"),
    metadata("an empty file", "", r"metadata\.db: not the expected SQLite file; no such table"),
    metadata("cut short", cut("track_metadata.db"), r"metadata\.db: "),
    metadata("no database", "hello " * 99, "file is not a database"),
    metadata("a column missing",
             sql("track_metadata.db", "ALTER TABLE songs DROP COLUMN artist_id"),
             "no such column"),
    metadata("no row", sql("track_metadata.db", "DELETE FROM songs"),
             "track_metadata.db: holds none of the rows"),
    metadata("a name that is not UTF-8",
             sql("track_metadata.db", "UPDATE songs SET title = CAST(x'46ff' AS TEXT)"),
             holds=lambda d, bag: d.item_names[0] == "Ann - F\ufffd",
             so="read with a replacement mark"),
    tags("cut short", cut("lastfm_tags.db"), r"lastfm_tags\.db: "),
    tags("a table missing", sql("lastfm_tags.db", "DROP TABLE tags"),
         r"lastfm_tags\.db: .*no such table"),
    tags("tags that are numbers, values that are text",
         lambda f: ((f / "lastfm_tags.db").unlink(), write_tags(
             f / "lastfm_tags.db", [*TAGGED, ("TRAAB01", 1984, "much")])),
         holds=lambda d, bag: "1984" not in d.vocabulary,
         so="read; a value that is no number is 0"),
    tags("no tag on tracks enough",
         lambda f: ((f / "lastfm_tags.db").unlink(), write_tags(f / "lastfm_tags.db", TAGGED[-1:])),
         "no tag that says something of the sound is on 2 tracks or more"),
    tags("NULL as a tag or a track",
         sql("lastfm_tags.db", "UPDATE tags SET tag = NULL WHERE tag = 'polka'",
             "UPDATE tids SET tid = NULL WHERE tid = 'TRAAB01'"),
         holds=lambda d, bag: "TRAAB01" not in d.tag_tracks, so="left out"),
    tags("a tag without tracks", sql("lastfm_tags.db", "INSERT INTO tags VALUES ('lonely')"),
         holds=lambda d, bag: "lone" not in d.vocabulary, so="left out"),
    Fault("msd", "msd_summary_file.h5", "cut short", cut("msd_summary_file.h5"),
          r"summary_file\.h5"),
    Fault("msd", "msd_summary_file.h5", "without its tables", h5("msd_summary_file.h5", [1]),
          r"summary_file\.h5: expected metadata/songs"),
    Fault("msd", "artists_train.txt", "an empty file", "", r"artists_train\.txt: expected one id"),
    Fault("msd", "artists_test.txt", "an artist of the other list", "AR3\nAR1\n", "AR1 is in"),
    Fault("msd", "artists_test.txt", "a page in its place", "<html>Please log in</html>",
          "no tagged track is among those to test tags with"),
    Fault("msd", "train_triplets.txt.zip", "a damaged member",
          zipped(("train_triplets.txt", TRIPLETS * 200), flip=255), r"\.zip: broken"),
    Fault("msd", "tracks_bad_audio.txt", "an empty file", "",
          holds=lambda d, bag: d.facts["triplets after bad-audio removal"] == 6,
          so="nothing is bad"),
    Fault("subset", "MillionSongSubset/A/A/B/TRAAB01.h5", "cut short",
          cut("MillionSongSubset/A/A/B/TRAAB01.h5"),
          holds=lambda d, bag: d.facts["tracks that cannot be read"] == 1,
          so="left out, counted in the table of the preparation"),
    plays("ids in quotation marks", re.sub(r"(\w+)\t(\w+)\t", r'"\1"\t"\2"\t', TRIPLETS),
          holds=lambda d, bag: d.plays.nnz == 4 and d.item_ids[0] == "SOA", so="read"),
    plays("numbers in the place of song ids", re.sub(r"SO\w+", "17", TRIPLETS),
          r"\.txt \(1 ids, the first '17'\) and .*\.db \(4 ids, the first 'SOA'\) have no id in"),
    tags("numbers in the place of track ids", sql("lastfm_tags.db", "UPDATE tids SET tid = 17"),
         r"tags\.db \(1 ids, the first '17'\) and .*\.db \(6 ids, .* have no id in common"),
    Fault("subset", "MillionSongSubset", "a Mac's `._TR....h5` beside each track", of_a_mac,
          holds=lambda d, bag: d.facts["tracks read"] == 5 and not d.broken, so="passed over"),
    Fault("subset", "MillionSongSubset/A/A/B/TRAAB01.h5", "a table without rows", no_rows,
          holds=lambda d, bag: list(d.broken) == ["TRAAB01"],
          so="left out, counted in the table of the preparation"),
    Fault("subset", "MillionSongSubset", "few tracks, none readable",
          lambda f: [path.write_bytes(b"") for path in f.glob("MillionSongSubset/?/?/?/*")],
          r"MillionSongSubset: expected tracks .*, found none that can be read; .*TRAAB01\.h5"),
    hetrec("cut short", cut("hetrec2011-lastfm-2k.zip"),
           r"lastfm-2k\.zip: artists\.dat: broken, cut short"),
    hetrec("a column missing", lambda f: write_hetrec(f, user_artists="userID\tartistID\n1\t1\n"),
           r"user_artists\.dat: expected columns userID, artistID, weight"),
    hetrec("a weight of zero",
           lambda f: write_hetrec(f, user_artists="userID\tartistID\tweight\n7\t1\t5\n7\t2\t0\n"),
           r"user_artists\.dat, line 3: expected a positive integer as weight, found '0'"),
    hetrec("an id that is missing",
           lambda f: write_hetrec(f, user_artists="userID\tartistID\tweight\n7\t1\t5\n\t2\t1\n"),
           r"user_artists\.dat, line 3: expected a value as userID"),
    hetrec("bytes that are not UTF-8 in a name",
           lambda f: write_hetrec(f, artists=b"id\tname\n1\tThe Ann\n2\tBob\n3\tC\xffid\n"),
           holds=lambda d, bag: list(d.item_ids) == ["ann", "bob"],
           so="read with a replacement mark, under which it may not meet its content"),
    hetrec("an id that is no number",
           lambda f: write_hetrec(f, artists="id\tname\n1\tAnn\nx\tBob\n"),
           r"artists\.dat, line 3: expected an integer as id, found 'x'"),
    hetrec("another delimiter", lambda f: write_hetrec(f, tags="tagID,tagValue\n1,rock\n"),
           r"tags\.dat: expected columns"),
    Fault("lastfm", "Music Info.csv", "an empty file", "", r"Music Info\.csv: expected columns"),
    info("a number that is none", INFO.replace("0.5,0.5,-8.0", "0.5,0.5,loud", 1),
         r"Music Info\.csv, line 2: expected a number as loudness, found 'loud'"),
    *(
        Fault("spotify", "Music Info.csv", f"{what} among the numbers",
              INFO.replace("0.5,0.5,-8.0", f"{number},0.5,-8.0", 1),
              holds=lambda d, bag: d.facts["tracks with all descriptors"] == 4
              and bag("TR0").shape == (0, 10),
              so="the track is left out, counted in the table of the preparation")
        for what, number in {"NaN": "NaN", "infinity": "-inf", "nothing": "",
                             "a number beyond float32": "1e300"}.items()
    ),
    info("bytes that are not UTF-8 in a name",
         lambda f: (f / "Music Info.csv").write_bytes(INFO.encode().replace(b"Song 1", b"S\xff")),
         holds=lambda d, bag: d.item_names[1] == "ann - S\ufffd",
         so="read with a replacement mark"),
    info("a track that nobody played", INFO,
         holds=lambda d, bag: "TR4" not in d.item_ids and "TR4" in d.tag_tracks,
         so="no item; its tags may teach the network"),
    info("the last row cut short", INFO[:-30],
         r"Music Info\.csv, line 6: expected 14 fields, found 8, 'TR4,Song 4,bob,rock,200000"),
    info("`nan` as a tag", INFO.replace('"rock, jazz"', "nan"),
         holds=lambda d, bag: "TR0" not in d.tag_tracks, so="no tag"),
    info("an inch mark in a title", INFO.replace("Song 1", 'Song 12" mix'),
         holds=lambda d, bag: d.item_names[1] == 'ann - Song 12" mix', so="read as it is"),
    info("a quotation mark that is not closed", INFO.replace("Song 3", '"Song 3'),
         r"Music Info\.csv, line 5: expected 14 fields, found 2, 'TR3,Song 3,cid"),
    history("ids in quotation marks",
            re.sub(r"^(\w+),(\w+)", r'"\1","\2"', HISTORY, flags=re.MULTILINE),
            holds=lambda d, bag: d.plays.sum() == 11, so="read"),
    history("ids of other tracks", HISTORY.replace("TR", "X"),
            r"History\.csv \(4 ids, the first 'X0'\) and .*Info\.csv \(5 ids, .* have no id in"),
    hetrec("artists of other ids",
           lambda f: write_hetrec(f, user_artists="userID\tartistID\tweight\n7\t99\t5\n"),
           r"user_artists\.dat \(1 ids, the first '99'\) and artists\.dat \(3 ids, the first '1'"),
    Fault("lastfm", "Music Info.csv", "other artists", re.sub("ann|bob|cid", "zoe", INFO),
          r"artists\.dat \(3 ids, the first 'ann'\) and .*Info\.csv \(1 ids, the first 'zoe'\)"),
    history("another delimiter", HISTORY.replace(",", ";"),
            "line 1: expected 'track_id,user_id,playcount', found"),
    history("a header of other columns", HISTORY.replace("playcount", "plays"),
            "line 1: expected 'track_id,user_id,playcount'"),
    history("a negative count", HISTORY + "TR1,u3,-2\n",
            r"History\.csv, line 7: expected track_id,user_id,positive int"),
    history("no plays", HISTORY.splitlines()[0] + "\n",
            r"History\.csv: expected lines of .*, found none"),
]  # fmt: skip


@functools.cache
def happens(number, folder):
    """Bring the fault about, see that what must follow does, and return it in words."""
    fault = FAULTS[number]
    profile, write = PROFILES[fault.source]
    folder = folder / str(number)
    folder.mkdir()
    write(folder)
    if callable(fault.do):
        fault.do(folder)
    else:
        (folder / fault.file).write_text(fault.do)
    if not fault.error:
        data, bag = prepare.load(profile, folder), prepare.bags(profile, folder)
        assert fault.holds(data, bag)
        return fault.so
    with pytest.raises(raw.BadInput, match=fault.error) as caught:
        prepare.load(profile, folder)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400 and str(folder) in said
    ours = said.partition("; ")[0]  # what libraries add differs from version to version
    return f"stops: `{ours.replace(f'{folder}/', '').replace(str(folder), 'the folder')}`"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize("number", range(len(FAULTS)), ids=[f"{f.file}: {f.what}" for f in FAULTS])
def test_fault(number, folder):
    assert happens(number, folder)


def marked():
    """Return the faults that tests are marked with: what, what follows, where."""
    found = []
    for path in sorted(TABLE.parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                found.append((node.lineno, *(arg.value for arg in node.args), path.name))
    return [row[1:] for row in sorted(found, key=lambda row: (row[-1], row[0]))]


def test_the_table_says_what_happens(folder):
    rows = ["## Files", "", "| file | fault | what happens |", "|---|---|---|"]
    for number, fault in enumerate(FAULTS):
        follows = happens(number, folder).replace("|", "&#124;")
        rows.append(f"| `{fault.file}` | {fault.what} | {follows} |")
    rows += ["", "## Machine, network, people", ""]
    rows += ["| fault | what happens | test |", "|---|---|---|"]
    rows += [f"| {what} | {follows} | `{where}` |" for what, follows, where in marked()]
    table = "\n".join(rows)
    if os.environ.get("REPRO_RENEW"):
        before = TABLE.read_text("utf-8").partition("<!-- faults -->")[0]
        TABLE.write_text(f"{before}<!-- faults -->\n\n{table}\n", "utf-8")
    assert TABLE.read_text("utf-8").partition("<!-- faults -->")[2].strip() == table


# --- machines


@pytest.mark.fault(
    "an HDF5 file at which libhdf5 aborts its process",
    "named and listed as any broken track; the process that read it is replaced",
)
def test_a_file_that_ends_its_reader_costs_that_file_alone(tmp_path, monkeypatch):
    tracks = "TRAAB01", "TRAAB02", "TRAAB03"
    for track_id in tracks:
        write_track(tmp_path, track_id, np.ones((2, 12)))
    ask = hdf5._Worker.ask

    def abort(worker, question, ahead):
        if "TRAAB02" in str((question, ahead)):
            worker.end()
        return ask(worker, question, ahead)

    monkeypatch.setattr(hdf5._Worker, "ask", abort)
    bag = prepare.Bags(lambda t, ahead: raw.timbre(tmp_path, t, ahead), 12)
    bag.expect(tracks)
    assert [len(bag(t)) for t in tracks] == [2, 0, 2]
    assert "TRAAB02.h5: " in bag.broken(tracks, 3)["TRAAB02"]


@genuine
def test_genuine_files_at_which_libhdf5_aborts():
    for path in SAMPLES.glob("broken_h5/?/?/?/*.h5"):
        with pytest.raises(raw.BadInput, match=f"{path.name}: .*ended by signal 6"):
            raw.metadata(path)


@pytest.mark.long
@genuine
def test_flipped_genuine_files_are_read_or_named(tmp_path):
    paths, rng = sorted(SAMPLES.glob("msd_h5/?/?/?/*.h5")), np.random.default_rng(1)
    for _ in range(20_000):
        path = paths[rng.integers(len(paths))]
        content = np.fromfile(path, np.uint8)
        places = rng.integers(len(content), size=rng.integers(1, 17))
        content[places] = rng.integers(256, size=len(places))
        flipped = raw.place(tmp_path, path.stem)
        flipped.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(flipped)
        for read in (raw.metadata, lambda path: raw.timbre(tmp_path, path.stem)):
            try:
                read(flipped)
            except raw.BadInput as error:
                assert str(flipped) in str(error)


@pytest.mark.parametrize("number", ["ENOLCK", "EOPNOTSUPP", "EIO", "ENOSYS"])
@pytest.mark.fault(
    "a file system that refuses locks", "read without them; ours is then a file with its owner"
)
def test_a_lock_that_is_refused_is_a_file(tmp_path, monkeypatch, number):
    def refuse(*_):
        raise OSError(getattr(errno, number), "refused")

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        with (
            files.exclusive_lock(tmp_path / "lock", "busy"),
            pytest.raises(BlockingIOError, match="busy"),
            files.exclusive_lock(tmp_path / "lock", "busy"),
        ):
            pass


def test_reading_takes_no_lock(tmp_path):
    folder = write_msd(tmp_path)
    with (
        (folder / TIMBRE).open("rb") as file,
        closing(sqlite3.connect(folder / "lastfm_tags.db")) as database,
    ):
        fcntl.flock(file, fcntl.LOCK_EX)
        database.execute("BEGIN EXCLUSIVE")
        assert len(raw.timbre(folder / "msd", "TRAAB01")) == 2
        assert prepare.load(PROFILES["msd"][0], folder).tags.nnz


@pytest.mark.parametrize("place", ["archive/", "../"])
@pytest.mark.fault("files one folder above or below", "missing; the message says where they are")
def test_files_one_folder_away_are_found(tmp_path, place):
    asked = tmp_path / "data"
    asked.mkdir()
    (asked / place).mkdir(exist_ok=True)
    write_spotify(asked / place)
    with pytest.raises(files.MissingData) as caught:
        prepare.load(config.MSD_SPOTIFY, asked)
    assert f"; there is one in {(asked / place).resolve()}\n" in str(caught.value)


def test_hidden_files_do_not_count(tmp_path):
    folder, profile = write_subset(tmp_path), PROFILES["subset"][0]
    before = files.data_digest(profile, folder)
    of_a_mac(folder)
    assert files.data_digest(profile, folder) == before


@pytest.mark.fault("another locale, Turkish for one", "the same synthetic world, to the byte")
def test_a_worlds_databases_know_no_number_of_transactions(tmp_path):
    synthetic.write_world(replace(config.SMOKE.world, users=20, songs=80), 1, tmp_path / "world")
    for name in ("lastfm_tags.db", "track_metadata.db"):
        with (tmp_path / "world" / name).open("rb") as file:
            assert file.read(28)[24:] == bytes(4)  # SQLite counts the changes here


# --- whatever the bytes


@given(content=st.binary(max_size=200))
@anew
@pytest.mark.parametrize("name", ["triplets", "history", "table", "query", "hotness", "timbre",
                                  "zipped", "member"])  # fmt: skip
def test_any_bytes_are_read_or_named(name, content, tmp_path):
    path = tmp_path / {"timbre": "T.h5", "zipped": "file.zip"}.get(name, "file")
    path.write_bytes(content)
    calls = {
        "zipped": lambda: raw.triplets(path),
        "member": lambda: raw.table(path, {"id": raw.pl.Int32}, "a"),
        "table": lambda: raw.table(path, {"id": raw.pl.Int32}),
        "query": lambda: raw.query(path, "SELECT a FROM b", {}),
        "timbre": lambda: raw.timbre(tmp_path, "T"),
    }
    try:
        calls.get(name, lambda: getattr(raw, name)(path))()
    except raw.BadInput as error:
        assert "file" in str(error) or "T.h5" in str(error)


NAMES = st.text(st.characters(codec="utf8", exclude_characters="\t\r\n\0"), min_size=1, max_size=8)


@given(rows=st.lists(st.tuples(NAMES, NAMES, st.integers(1, 10**6)), min_size=1, max_size=30))
@anew
def test_triplets_come_back_as_they_were_written(rows, tmp_path):
    path = tmp_path / "plays.txt"
    path.write_text("".join(f"{u}\t{s}\t{n}\n" for u, s, n in rows), "utf8", newline="")
    table = raw.triplets(path).cast({"user": raw.pl.String, "song": raw.pl.String})
    assert table.rows() == rows


@given(values=st.lists(st.floats(), min_size=10, max_size=10))
@anew
def test_descriptors_are_finite_or_left_out(values, tmp_path):
    text = INFO.splitlines(True)
    (tmp_path / "Music Info.csv").write_text(
        text[0] + f"TR0,Song,ann,rock,{','.join(map(str, values))}\n" + text[2]
    )
    bag = prepare.bags(config.MSD_SPOTIFY, tmp_path)
    with np.errstate(over="ignore"):
        expected = np.array([values], np.float32)
    whole = np.isfinite(expected).all()
    assert np.array_equal(bag("TR0"), expected if whole else np.empty((0, 10)))
    assert len(bag("TR1")) == 1


@given(damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
@anew
def test_a_damaged_zip_is_read_or_named(damage, tmp_path):
    path = tmp_path / "train_triplets.txt.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train_triplets.txt", TRIPLETS * 50)
    content = bytearray(path.read_bytes())
    for place, byte in damage:
        content[place % len(content)] = byte
    path.write_bytes(content)
    try:
        assert raw.triplets(path).height == 6 * 50
    except raw.BadInput as error:
        assert path.name in str(error)


@given(
    rows=st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from(["rock", "Jazz!", "R&B"]),
                  st.floats(-1, 9, allow_nan=False)), max_size=30)
)  # fmt: skip
@anew
def test_tags_are_those_whose_values_add_up_to_more_than_nothing(rows, tmp_path):
    path = tmp_path / "tags.db"
    path.unlink(missing_ok=True)
    write_tags(path, rows or [("a", "rock", 0.0)])
    sql_text = "SELECT tids.tid AS track, tags.tag AS tag, val FROM tid_tag JOIN tids ON" \
        " tids.ROWID = tid_tag.tid JOIN tags ON tags.ROWID = tid_tag.tag"  # fmt: skip
    kinds = {"track": raw.pl.String, "tag": raw.pl.String, "val": raw.pl.Float64}
    matrix, tracks, vocabulary = prepare._tags(raw.query(path, sql_text, kinds), 1, {})
    sums = {}
    for track_id, tag, value in rows:
        key = track_id, prepare.sanitise(tag)
        sums[key] = sums.get(key, 0.0) + value
    found = {(tracks[r], vocabulary[c]) for r, c in zip(*matrix.nonzero(), strict=True)}
    assert found == {key for key, total in sums.items() if total > 0}


def test_an_unknown_profile_or_a_missing_file_is_one_plain_line(tmp_path):
    with pytest.raises(ValueError, match=r"unknown profile 'dmeo': choose one of demo, smoke"):
        config.named("dmeo")
    with pytest.raises(files.MissingData, match=r"missing hetrec2011-lastfm-2k\.zip"):
        prepare.load(config.LASTFM, tmp_path)
    assert len(SONGS) == 6  # what the folders hold
