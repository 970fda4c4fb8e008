"""Every fault of the raw files, one by one, and what becomes of it: the table in FAULTS.md."""

import ast
import fcntl
import os
import re
import sqlite3
import zipfile
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import h5py
import numpy as np
import pytest
from folders import HISTORY, INFO, SAMPLES, TAGGED, TRIPLETS, WRITERS, genuine, write_tags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from repro import config
from repro.data import prepare, raw, synthetic

SOURCES = config.PAPER, config.SUBSET, config.MSD_SPOTIFY, config.LASTFM
PROFILES = {profile.source: replace(profile, min_songs_per_tag=2) for profile in SOURCES}
TABLE = Path(__file__).with_name("FAULTS.md")


@dataclass
class Fault:
    """What is done to a file, and what must follow where that is no error."""

    source: str
    file: str
    what: str
    do: object  # what the file shall hold; or a function of its path, with arguments in a tuple
    so: str = ""  # what follows, in words
    holds: object = None  # the same, as a function of the dataset and the bags


def put(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(path):
    put(path, path.read_bytes()[: path.stat().st_size // 2])


def pack(path, name, keep=None):
    path.with_suffix("").unlink(missing_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr(name, TRIPLETS)
    put(path, path.read_bytes()[:keep])


def member(path, name, text):
    WRITERS["lastfm"](path.parent, **{name: text})


def sql(path, statement):
    with closing(sqlite3.connect(path)) as database, database:
        database.execute(statement)


def h5(path, name, values):
    with h5py.File(path, "w") as file:
        file[name] = values


def of_a_mac(tree):
    put(tree / "A/.DS_Store", "Bud1")
    for path in list(tree.glob("?/?/?/*.h5")):
        put(path.with_name(f"._{path.name}"), b"\0\5\x16\7" * 1024)


def silent(data, bag):
    return bag("TRAAB01").shape == (0, 12) and "TRAAB01" in bag.broken(["TRAAB01"], 1)


SKIP = "a track without frames, listed in broken_tracks.csv"
TIMBRE, FRAMES = "msd/A/A/B/TRAAB01.h5", "analysis/segments_timbre"
HEARD = "userID\tartistID\tweight\n7\t1\t5\n"
plays = partial(Fault, "msd", "train_triplets.txt")
archive = partial(Fault, "msd", "train_triplets.txt.zip")
frames = partial(Fault, "msd", TIMBRE)
metadata = partial(Fault, "msd", "track_metadata.db")
tags = partial(Fault, "msd", "lastfm_tags.db")
tree = partial(Fault, "subset", "MillionSongSubset")
hetrec = partial(Fault, "lastfm", "hetrec2011-lastfm-2k.zip")
info = partial(Fault, "spotify", "Music Info.csv")
history = partial(Fault, "spotify", "User Listening History.csv")
FAULTS = [  # errors first, by file; FAULTS.md has their messages
    plays("an empty file", ""),
    plays("a count of zero", TRIPLETS + "u9\tSOA\t0\n"),
    plays("a huge count", TRIPLETS + "u9\tSOA\t99999999999\n"),
    plays("counts of a pair that add up beyond 32 bits", TRIPLETS + "u1\tSOA\t999999999\n" * 3),
    plays("a column missing", TRIPLETS + "u9\tSOA\n"),
    plays("another delimiter", TRIPLETS + "u9,SOA,1\n"),
    plays("bytes that are not UTF-8", TRIPLETS.encode() + b"u\xff\tSOA\t1\n"),
    plays("numbers in the place of song ids", re.sub(r"SO\w+", "17", TRIPLETS)),
    archive("cut short", (pack, "train_triplets.txt", 90)),
    archive("without the expected member", (pack, "other.txt")),
    metadata("an empty file", ""),
    metadata("cut short", cut),
    metadata("a column missing", (sql, "ALTER TABLE songs DROP COLUMN artist_id")),
    metadata("no row", (sql, "DELETE FROM songs")),
    tags("numbers in the place of track ids", (sql, "UPDATE tids SET tid = 17")),
    tags("no tag on tracks enough", (write_tags, TAGGED[-1:])),
    Fault("msd", "msd_summary_file.h5", "without its tables", (h5, "other", [1])),
    Fault("msd", "artists_train.txt", "an empty file", ""),
    Fault("msd", "artists_test.txt", "an artist of the other list", "AR3\nAR1\n"),
    Fault("msd", "artists_test.txt", "a page in its place", "<html>Please log in</html>"),
    tree("few tracks, none readable", lambda tree: [put(p, "") for p in tree.glob("?/?/?/*.h5")]),
    hetrec("cut short", cut),
    hetrec("a column missing", (member, "tags", "tagID\n1\n")),
    hetrec("a weight of zero", (member, "user_artists", HEARD + "7\t2\t0\n")),
    hetrec("an id that is no number", (member, "artists", "id\tname\n1\tAnn\nx\tBob\n")),
    hetrec("artists of other ids", (member, "user_artists", HEARD.replace("\t1", "\t99"))),
    Fault("lastfm", "Music Info.csv", "other artists", re.sub("ann|bob|cid", "zoe", INFO)),
    info("an empty file", ""),
    info("a number that is none", INFO.replace("-8.0", "loud", 1)),
    info("a quotation mark that is not closed", INFO.replace("Song 3", '"Song 3')),
    info("the last row cut short", INFO[:-30]),
    history("no plays", HISTORY.splitlines()[0] + "\n"),
    history("a header of other columns", HISTORY.replace("playcount", "plays")),
    history("a negative count", HISTORY + "TR1,u3,-2\n"),
    history("ids of other tracks", HISTORY.replace("TR", "X")),
    # what is no error
    plays("ids in quotation marks", re.sub(r"(\w+)\t(\w+)\t", r'"\1"\t"\2"\t', TRIPLETS), "read",
          lambda d, bag: d.plays.nnz == 4 and d.item_ids[0] == "SOA"),
    frames("absent", Path.unlink, SKIP, silent),
    frames("cut short", cut, SKIP, silent),
    frames("without segments_timbre", (h5, "analysis/other", [1]), SKIP, silent),
    frames("frames of another dimension", (h5, FRAMES, np.ones((3, 5))), SKIP, silent),
    frames("NaN among the frames", (h5, FRAMES, np.full((3, 12), np.nan)), SKIP, silent),
    metadata("a name that is not UTF-8", (sql, "UPDATE songs SET title = CAST(x'46ff' AS TEXT)"),
             "read with a replacement mark", lambda d, bag: d.item_names[0] == "Ann - F\ufffd"),
    tags("a number as a tag, text as a value", (write_tags, [*TAGGED, ("TRAAB01", 1984, "much")]),
         "read; a value that is no number is 0", lambda d, bag: "1984" not in d.vocabulary),
    tags("NULL as a track", (sql, "UPDATE tids SET tid = NULL WHERE tid = 'TRAAB01'"), "left out",
         lambda d, bag: "TRAAB01" not in d.tag_tracks),
    Fault("subset", f"MillionSongSubset/{TIMBRE[4:]}", "cut short", cut, "left out, counted",
          lambda d, bag: list(d.broken) == ["TRAAB01"]),
    tree("a Mac's `._TR....h5` beside each track", of_a_mac, "passed over",
         lambda d, bag: d.facts["tracks read"] == 5 and not d.broken),
    info("an inch mark in a title", INFO.replace("Song 1", 'Song 12" mix'), "read as it is",
         lambda d, bag: d.item_names[1] == 'ann - Song 12" mix'),
    info("`nan` as a tag", INFO.replace('"rock, jazz"', "nan"), "no tag",
         lambda d, bag: "TR0" not in d.tag_tracks),
]  # fmt: skip


def happens(fault, folder):
    """Bring the fault about, see that what must follow does, and return it in words."""
    folder.mkdir()
    profile, path = PROFILES[fault.source], WRITERS[fault.source](folder) / fault.file
    do, *arguments = fault.do if isinstance(fault.do, tuple) else (fault.do,)
    do(path, *arguments) if callable(do) else put(path, do)
    if fault.holds:
        assert fault.holds(prepare.load(profile, folder), prepare.bags(profile, folder)), fault
        return fault.so
    with pytest.raises(raw.BadInput) as caught:
        prepare.load(profile, folder)
    said = str(caught.value)
    assert "\n" not in said and len(said) < 400 and str(folder) in said
    ours = said.partition("; ")[0]  # what libraries add differs from version to version
    return f"stops: `{ours.replace(f'{folder}/', '').replace(str(folder), 'the folder')}`"


def test_the_table_says_what_happens(tmp_path):
    rows = ["## Files", "", "| file | fault | what happens |", "|---|---|---|"]
    for number, fault in enumerate(FAULTS):
        follows = happens(fault, tmp_path / str(number)).replace("|", "&#124;")
        rows.append(f"| `{fault.file}` | {fault.what} | {follows} |")
    rows += [
        "",
        "## Machine, network, people",
        "",
        "| fault | what happens | test |",
        "|---|---|---|",
    ]
    for path in sorted(TABLE.parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.fault":
                what, follows = (argument.value for argument in node.args)
                rows.append(f"| {what} | {follows} | `{path.name}` |")
    table = "\n".join(rows)
    if os.environ.get("REPRO_RENEW"):
        before = TABLE.read_text("utf-8").partition("<!-- faults -->")[0]
        TABLE.write_text(f"{before}<!-- faults -->\n\n{table}\n", "utf-8")
    assert TABLE.read_text("utf-8").partition("<!-- faults -->")[2].strip() == table


def read_or_named(read, path):
    try:
        return read(path)
    except raw.BadInput as error:
        assert str(path) in str(error)


@pytest.mark.fault("an HDF5 file at which libhdf5 aborts", "listed as broken; all others are read")
def test_a_file_that_ends_its_reader_costs_that_file_alone(tmp_path, monkeypatch):
    tracks = "TRAAB01", "TRAAB03", "TRAAB04"
    WRITERS["subset"](tmp_path)
    read = raw._timbre
    monkeypatch.setattr(
        raw, "_timbre", lambda file: os.abort() if "TRAAB03" in file.filename else read(file)
    )
    bag = prepare.bags(PROFILES["subset"], tmp_path)
    assert [len(bag(t)) for t in tracks] == [3, 0, 3]
    assert "TRAAB03.h5: " in bag.broken(tracks, 3)["TRAAB03"]


@genuine
def test_genuine_files_at_which_libhdf5_aborts():
    for path in SAMPLES.glob("broken_h5/?/?/?/*.h5"):
        with pytest.raises(raw.BadInput, match=f"{path.name}: .*libhdf5 ended"):
            raw.metadata(path)


@pytest.mark.long
@genuine
def test_flipped_genuine_files_are_read_or_named(tmp_path):
    paths, rng = sorted(SAMPLES.glob("msd_h5/?/?/?/*.h5")), np.random.default_rng(1)
    for path in rng.choice(paths, 20_000):
        content = np.fromfile(path, np.uint8)
        places = rng.integers(len(content), size=rng.integers(1, 17))
        content[places] = rng.integers(256, size=len(places))
        flipped = raw.place(tmp_path, path.stem)
        flipped.parent.mkdir(parents=True, exist_ok=True)
        content.tofile(flipped)
        read_or_named(raw.metadata, flipped)
        read_or_named(lambda path: raw.timbre(tmp_path, path.stem), flipped)


def test_reading_takes_no_lock(tmp_path):
    folder = WRITERS["msd"](tmp_path)
    tags = sqlite3.connect(folder / "lastfm_tags.db")
    with (folder / TIMBRE).open("rb") as file, closing(tags) as database:
        fcntl.flock(file, fcntl.LOCK_EX)
        database.execute("BEGIN EXCLUSIVE")
        assert len(raw.timbre(folder / "msd", "TRAAB01")) == 2
        assert prepare.load(PROFILES["msd"], folder).tags.nnz


@pytest.mark.fault("another locale, Turkish for one", "the same synthetic world, to the byte")
def test_a_worlds_databases_know_no_number_of_transactions(tmp_path):
    synthetic.write_world(replace(config.SMOKE.world, users=20, songs=80), 1, tmp_path / "world")
    for path in (tmp_path / "world").glob("*.db"):
        assert path.read_bytes()[24:28] == bytes(4)  # SQLite counts the changes here


anew = settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
READERS = [raw.triplets, raw.history, raw.hotness, raw.metadata]
READERS += [partial(raw.table, columns={"id": raw.pl.Int32}, member=name) for name in ("", "a")]
READERS += [partial(raw.query, sql="SELECT a FROM b", kinds={})]


@pytest.mark.parametrize("read", READERS)
@given(content=st.binary(max_size=200))
@anew
def test_any_bytes_are_read_or_named(read, content, tmp_path):
    put(tmp_path / "file", content)
    read_or_named(read, tmp_path / "file")


ODD = '\t\r\n\0"\ufeff'
NAMES = st.text(st.characters(codec="utf8", exclude_characters=ODD), min_size=1, max_size=8)


@given(rows=st.lists(st.tuples(NAMES, NAMES, st.integers(1, 10**6)), min_size=1, max_size=30))
@anew
def test_triplets_come_back_as_they_were_written(rows, tmp_path):
    path = tmp_path / "plays.txt"
    put(path, "".join(f"{user}\t{song}\t{count}\n" for user, song, count in rows))
    assert raw.triplets(path).cast({"user": raw.pl.String, "song": raw.pl.String}).rows() == rows


@pytest.mark.fault("a descriptor that is missing, NaN or beyond float32", "its track is left out")
@given(values=st.lists(st.none() | st.floats(), min_size=10, max_size=10))
@anew
def test_descriptors_are_finite_or_left_out(values, tmp_path):
    header, _, second, *_ = INFO.splitlines(True)
    first = f"TR0,Song,ann,rock,{','.join('' if v is None else str(v) for v in values)}\n"
    put(tmp_path / "Music Info.csv", header + first + second)
    bag = prepare.bags(config.MSD_SPOTIFY, tmp_path)
    with np.errstate(over="ignore"):
        expected = np.array([values], np.float32)  # None is NaN
    whole = np.isfinite(expected).all()
    assert np.array_equal(bag("TR0"), expected if whole else np.empty((0, 10)))
    assert len(bag("TR1")) == 1


@given(damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), max_size=4))
@anew
def test_a_damaged_zip_is_read_or_named(damage, tmp_path):
    path = tmp_path / "train_triplets.txt.zip"
    pack(path, "train_triplets.txt")
    content = bytearray(path.read_bytes())
    for place, byte in damage:
        content[place % len(content)] = byte
    put(path, bytes(content))
    found = read_or_named(raw.triplets, path)
    assert found is None or found.height == 6


TRACKS, TAGS = (st.sampled_from(s.split()) for s in ("TRAAB01 TRAAB03 TRAAB06", "rock Jazz! R&B"))


@given(rows=st.lists(st.tuples(TRACKS, TAGS, st.floats(-1, 9)), max_size=30))
@settings(anew, max_examples=15)
def test_tags_are_those_whose_values_add_up_to_more_than_nothing(rows, tmp_path):
    rows = [*rows, ("TRAAB01", "polka", 1.0), ("TRAAB06", "polka", 1.0)]  # to train, to test
    if not any(tmp_path.iterdir()):
        WRITERS["msd"](tmp_path)
    write_tags(tmp_path / "lastfm_tags.db", rows)
    data = prepare.load(replace(config.PAPER, min_songs_per_tag=1), tmp_path)
    sums = Counter()
    for track_id, tag, value in rows:
        sums[track_id, prepare.sanitise(tag)] += value
    places = zip(*data.tags.nonzero(), strict=True)
    found = {(data.tag_tracks[r], data.vocabulary[c]) for r, c in places}
    assert found == {key for key, total in sums.items() if total > 0}
