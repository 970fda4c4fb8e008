"""Read the files of all sources; what cannot be read as expected is named, with its line or field.

Nothing read here is trusted: no pickle, parameter-free SQL on databases opened read-only, archives
read in memory and never unpacked, HDF5 in a process of its own, which libhdf5 may abort when a file
is broken. Run as a script, this module is that process.
"""

from __future__ import annotations

import csv
import io
import re
import signal
import sqlite3
import struct
import subprocess
import sys
import zipfile
import zlib
from contextlib import closing, suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import h5py
import numpy as np
import polars as pl

TIMBRE_DIM = 12
# What comes up from a file that cannot be opened or an archive that is damaged or encrypted.
_BROKEN = (OSError, EOFError, LookupError, ValueError, ArithmeticError, RuntimeError,
           struct.error, zlib.error, zipfile.BadZipFile)  # fmt: skip


class BadInput(ValueError):
    """An input is there but is not what it should be; the message names the file and the place."""


def triplets(path: Path) -> pl.DataFrame:
    """Read ``user <TAB> song <TAB> count`` lines, plain or zipped; a count is a positive integer.

    Users and songs are categories: 48 million pairs take 12 bytes each. BadInput names the file and
    the first line that is anything else.
    """
    return _pairs(path, ("user", "song", "count"), "\t", header=False)


def history(path: Path) -> pl.DataFrame:
    """Read a CSV of ``track_id,user_id,playcount``; otherwise as :func:`triplets`."""
    table = _pairs(path, ("track_id", "user_id", "playcount"), ",", header=True)
    return table.select(user="user_id", song="track_id", count="playcount")


def _pairs(path: Path, names: tuple[str, ...], separator: str, header: bool) -> pl.DataFrame:
    count = names[2]
    try:
        with _opened(path) as file:
            head = file.readline() if header else b""
            quoted = re.match(rb'"[^"]*"[,\t]|[^,\t]*[,\t]"', file.readline())
        with _opened(path) as file:
            table = pl.read_csv(
                # An error of the archive must not come up through polars, which would abort.
                file.read() if path.suffix == ".zip" else file,
                has_header=False,
                skip_lines=int(header),
                separator=separator,
                quote_char='"' if quoted else None,
                schema={name: pl.Categorical for name in names} | {count: pl.Int32},
                ignore_errors=True,
            )
    except pl.exceptions.PolarsError:
        table = pl.DataFrame()
    except _BROKEN as error:
        raise BadInput(f"{path}: broken, cut short or not there; {error}") from error
    told = separator.join(names)
    if header and told != head.decode("utf-8-sig", "replace").replace('"', "").rstrip("\r\n"):
        raise BadInput(f"{path}, line 1: expected {told!r}, found {_shown(head)}")
    if table.height and not sum(table.null_count().row(0)) and (table[count] > 0).all():
        return table

    # polars does not tell the line
    name, mark = f"[^{separator}\r\n]+{separator}", '"?' if quoted else ""
    right = re.compile(rf"{name}{name}{mark}0*[1-9][0-9]{{0,8}}{mark}\r?\n?")
    said = separator.replace("\t", " <TAB> ")
    wanted = said.join((*names[:2], "positive integer"))
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            fits = right.fullmatch(line.decode("utf8", "replace").replace("\ufffd", "\n"))
            if not fits and number > header:
                raise BadInput(f"{path}, line {number}: expected {wanted}, found {_shown(line)}")
    raise BadInput(f"{path}: expected lines of {said.join(names)}, found none")


def _opened(path: Path):
    """Open a file, or the one of the same name without its ending in a zip file, for reading."""
    return zipfile.Path(path, path.stem).open("rb") if path.suffix == ".zip" else path.open("rb")


def _shown(line: bytes) -> str:
    return repr(line[:100].decode("utf8", "replace").rstrip("\r\n"))


def table(path: Path, columns: dict, member: str = "", encoding: str = "utf8") -> pl.DataFrame:
    """Read some columns of a CSV file, or of a tab-separated member of a zip file.

    ``columns`` gives polars types. BadInput names file, line and column of what is no number where
    one is due, of a UInt32 of 0, and in a member of a missing value, which is null in a CSV file.
    Text that cannot be decoded is replaced.
    """
    where = f"{path}: {member}" if member else f"{path}"
    comma, quoting = ("\t", csv.QUOTE_NONE) if member else (",", csv.QUOTE_MINIMAL)
    found, line = [], 1
    try:
        content = zipfile.ZipFile(path).read(member) if member else path.read_bytes()
        text = content.decode(encoding, "replace").removeprefix("\ufeff")
        rows = csv.reader(io.StringIO(text, ""), delimiter=comma, quoting=quoting)
        header = next(rows, [])
        places = [header.index(name) if name in header else None for name in columns]
        for row in rows if None not in places else ():
            if len(row) == len(header):
                found.append((line + 1, *(row[place] or None for place in places)))
            elif row:
                shown = comma.join(row)[:100]
                raise csv.Error(f"expected {len(header)} fields, found {len(row)}, {shown!r}")
            line = rows.line_num
    except csv.Error as error:
        raise BadInput(f"{where}, line {line + 1}: {error}") from error
    except _BROKEN as error:
        raise BadInput(f"{where}: broken, cut short or not there; {error}") from error
    if not found:
        raise BadInput(f"{where}: expected columns {', '.join(columns)}, and at least one row")
    texts = {"line": pl.Int64} | dict.fromkeys(columns, pl.String)
    frame = pl.DataFrame(found, texts, orient="row")
    for name, kind in columns.items():
        text = values = frame[name]
        if kind != pl.String:
            text = text.str.strip_chars().replace("", None)
            values = text.cast(kind, strict=False)
        wrong = values.is_null() & (text.is_not_null() | bool(member))
        wrong |= (values == 0) if kind == pl.UInt32 else False
        if wrong.any():
            wanted = {pl.UInt32: "a positive integer", pl.Int32: "an integer"}.get(kind, "a number")
            line, given = frame["line"][wrong.arg_max()], text[wrong.arg_max()]
            said = f"{wanted} as {name}, found {given[:60]!r}" if given else f"a value as {name}"
            raise BadInput(f"{where}, line {line}: expected {said}")
        frame = frame.with_columns(values)
    return frame.drop("line")


def lines(path: Path, empty: bool = True) -> list[str]:
    """Read one id per line; BadInput when there is none, unless the list may be ``empty``."""
    found = path.read_text(encoding="utf8", errors="replace").replace('"', " ").split()
    if not (found or empty):
        raise BadInput(f"{path}: expected one id a line, found none")
    return found


def listed(path: Path, counted: bool = False) -> pl.DataFrame:
    """Read lines ``n id id ...`` with n ids each, or ``n id:count ...`` where they are ``counted``.

    Returns ``line`` from 0, ``id`` and ``count``, of one where there is none. BadInput names the
    file and the first line that is anything else.
    """
    pair = rb" \d{1,9}:[1-9]\d{0,8}" if counted else rb" \d{1,9}"
    right, rows, lengths = re.compile(rb"\d{1,9}(%b)*\s*" % pair), [], []
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            numbers = line.replace(b":", b" ").split()
            lengths.append((len(numbers) - 1) // (1 + counted))
            if not right.fullmatch(line) or int(numbers[0]) != lengths[-1]:
                wanted = "n and n times id:count" if counted else "n and n ids"
                raise BadInput(f"{path}, line {number}: expected {wanted}, found {_shown(line)}")
            rows.append(np.array(numbers[1:], np.int64).reshape(-1, 1 + counted))
    if not sum(lengths):
        raise BadInput(f"{path}: expected lines of ids, found none")
    of = np.concatenate(rows)
    table = pl.DataFrame({"line": np.repeat(np.arange(len(rows)), lengths), "id": of[:, 0]})
    return table.with_columns(count=pl.Series(of[:, -1]) if counted else pl.lit(1))


def query(path: Path, sql: str, kinds: dict) -> pl.DataFrame:
    """Return the rows of an SQL query, with columns of the given polars types; take no lock.

    Text that is not UTF-8 is read with replacements; BadInput is raised when there is no row.
    """
    address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.text_factory = lambda raw: raw.decode("utf8", "replace")
            found = pl.read_database(sql, database, schema_overrides=kinds)
    except (sqlite3.Error, pl.exceptions.PolarsError) as error:
        raise BadInput(f"{path}: not the expected SQLite file; {error}") from error
    if not found.height:
        raise BadInput(f"{path}: holds none of the rows that are read")
    return found


def place(tree: Path, track: str) -> Path:
    """Return where a track's file is in a tree of MSD tracks."""
    return tree.joinpath(*track[2:5], f"{track}.h5")


def timbre(tree: Path, track: str, ahead: str = "") -> np.ndarray:
    """Return the frames of a track, float32, shape (frames, 12), and read the next ``ahead``.

    BadInput is raised when the file is absent or broken, or holds anything else.
    """
    return _read_hdf5("timbre", place(tree, track), place(tree, ahead) if ahead else None)


def metadata(path: Path, ahead: Path | None = None) -> dict[str, str | float]:
    """Return ids, names and hotttnesss of one track's file; "" for a text that is not there."""
    return _read_hdf5("metadata", path, ahead)


def hotness(path: Path) -> pl.DataFrame:
    """Return ``track`` and ``hot`` of the summary file of all tracks."""
    found = _read_hdf5("hotness", path)
    tracks = np.char.decode(found["track"], "utf8", "replace")
    return pl.DataFrame({"track": tracks, "hot": found["hot"]}).unique("track")


class _Worker:
    """The process that reads, and the one question that it was asked ahead of time."""

    def __init__(self):
        self._pipe, theirs = Pipe()
        with theirs:
            # not of multiprocessing, which would run a caller's script again; and quiet, since
            # libhdf5 has something to say as it aborts
            command = [sys.executable, "-P", __file__, str(theirs.fileno())]
            given = {"pass_fds": [theirs.fileno()], "stderr": subprocess.DEVNULL}
            self.process = subprocess.Popen(command, **given)
        self._ahead = None

    def ask(self, question: tuple[str, str], ahead: tuple[str, str] | None):
        if self._ahead not in (None, question):
            self._pipe.recv()
        if self._ahead != question:
            self._pipe.send(question)
        if ahead:
            self._pipe.send(ahead)
        self._ahead = ahead
        return self._pipe.recv()

    def end(self) -> int:
        self.process.kill()
        return -self.process.wait()


_worker: _Worker | None = None


def _read_hdf5(reader: str, path: Path, ahead: Path | None = None):
    """Return what one of the readers below finds; ``ahead`` is read while the caller works."""
    global _worker
    for _ in range(2):  # whatever else may have ended the process, ends it once
        _worker = _worker or _Worker()
        try:
            # as strings: a Path takes longer to send
            found = _worker.ask((reader, str(path)), (reader, str(ahead)) if ahead else None)
            break
        except BaseException as error:  # interrupted, its answer must not be taken for the next
            found = f"libhdf5 was ended by signal {_worker.end()} while it read the file"
            _worker = ahead = None
            if not isinstance(error, OSError | EOFError):
                raise
    if isinstance(found, str):
        raise BadInput(f"{path}: expected {_READERS[reader][1]}; {found}")
    return found


def _timbre(file: h5py.File) -> np.ndarray:
    frames = file["analysis/segments_timbre"][()].astype(np.float32)
    if frames.ndim != 2 or frames.shape[1] != TIMBRE_DIM:
        raise ValueError(f"found {frames.shape}")
    if not np.isfinite(frames).all():
        raise ValueError("found values that are not finite")
    return frames


def _metadata(file: h5py.File) -> dict[str, str | float]:
    row = file["metadata/songs"][0]
    there = row.dtype.names
    names = "song_id", "artist_id", "artist_name", "title"
    texts = {n: row[n].decode("utf8", "replace") if n in there else "" for n in names}
    return texts | {"hot": float(row["song_hotttnesss"]) if "song_hotttnesss" in there else np.nan}


def _hotness(file: h5py.File) -> np.ndarray:
    hot = file["metadata/songs"].fields("song_hotttnesss")[()]
    tracks = file["analysis/songs"].fields("track_id")[()]
    return np.rec.fromarrays([tracks, hot], dtype=[("track", "S32"), ("hot", "f8")])


_READERS = {
    "timbre": (_timbre, f"analysis/segments_timbre, shape (frames, {TIMBRE_DIM})"),
    "metadata": (_metadata, "a row in metadata/songs"),
    "hotness": (_hotness, "metadata/songs with song_hotttnesss, analysis/songs with track_id"),
}

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its caller, when the pipe closes
    pipe = Connection(int(sys.argv[1]))
    with suppress(EOFError, ConnectionError):
        while True:
            reader, path = pipe.recv()
            try:
                with h5py.File(path, "r", locking=False) as file:
                    found = _READERS[reader][0](file)
            except Exception as error:  # whatever it is, the file is not as expected
                found = str(error)
            pipe.send(found)
