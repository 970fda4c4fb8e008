"""Read the files of all sources; what cannot be read as expected is named, with its line or field.

Nothing read here is trusted: no pickle, parameter-free SQL on databases opened read-only, archives
read in memory and never unpacked, HDF5 in a process apart, which a broken file may make abort.
"""

from __future__ import annotations

import csv
import io
import os
import re
import signal
import sqlite3
import struct
import zipfile
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import polars as pl
from joblib.externals.loky import BrokenProcessPool, get_reusable_executor

TIMBRE_DIM = 12
# What comes up from a file that cannot be opened or an archive that is damaged or encrypted.
_BROKEN = (OSError, EOFError, LookupError, ValueError, ArithmeticError, RuntimeError, struct.error,
           zlib.error, zipfile.BadZipFile, pl.exceptions.PolarsError)  # fmt: skip
_WANTED = {pl.UInt32: "a positive integer", pl.Int32: "an integer", pl.Float64: "a number"}


class BadInput(ValueError):
    """An input is there but is not what it should be; the message names the file and the place."""


def triplets(path: Path) -> pl.DataFrame:
    """Read ``user <TAB> song <TAB> count`` lines, plain or zipped; a count is a positive integer.

    Users and songs are categories: 48 million pairs take 12 bytes each. BadInput names the file and
    the first line that is anything else.
    """
    names = "user", "song", "count"
    return _pairs(path, names, separator="\t", has_header=False, new_columns=names)


def history(path: Path) -> pl.DataFrame:
    """Read a CSV of ``track_id,user_id,playcount``; otherwise as :func:`triplets`."""
    names = "user_id", "track_id", "playcount"
    return _pairs(path, names, columns=names)


def _pairs(path: Path, names: tuple[str, str, str], **form) -> pl.DataFrame:
    kinds = dict(zip(names, (pl.Categorical, pl.Categorical, pl.Int32), strict=True))
    form |= {"schema_overrides": kinds, "ignore_errors": True, "glob": False}
    wanted = f"{', '.join(names)}, a positive integer"
    try:
        # An error of the archive must not come up through polars, which would abort.
        zipped = path.suffix == ".zip"
        table = pl.read_csv(zipfile.Path(path, path.stem).read_bytes() if zipped else path, **form)
        if not table.height:
            raise pl.exceptions.NoDataError("no row")
    except _BROKEN as error:
        why = str(error).partition("\n")[0]
        raise BadInput(f"{path}: expected a whole table of {wanted}; {why}") from error
    wrong = table.select(pl.any_horizontal(pl.all().is_null(), pl.col(names[2]) <= 0)).to_series()
    if wrong.any():
        line = wrong.arg_max() + 1 + form.get("has_header", True)
        found = table.row(wrong.arg_max())
        raise BadInput(f"{path}, line {line}: expected {wanted}, found {found!s:.100}")
    return table.select(user=names[0], song=names[1], count=names[2])


def table(path: Path, columns: dict, member: str = "", encoding: str = "utf8") -> pl.DataFrame:
    """Read some columns of a CSV file, or of a tab-separated member of a zip file.

    ``columns`` gives polars types. BadInput names file, line and column of what is no number where
    one is due, of a UInt32 of 0, and in a member of a missing value, which is null in a CSV file.
    Text that cannot be decoded is replaced.
    """
    where = f"{path}: {member}" if member else f"{path}"
    form = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if member else {}
    found = []
    try:
        content = zipfile.ZipFile(path).read(member) if member else path.read_bytes()
        text = content.decode(encoding, "replace").removeprefix("\ufeff")
        rows = csv.DictReader(io.StringIO(text, ""), **form)
        for row in rows if {*columns} <= {*(rows.fieldnames or ())} else ():
            if None in row or None in row.values():
                raise csv.Error(f"expected {len(rows.fieldnames)} fields, found {row!s:.100}")
            found.append((rows.line_num, *(row[name].strip() or None for name in columns)))
    except csv.Error as error:
        raise BadInput(f"{where}, line {rows.line_num}: {error}") from error
    except _BROKEN as error:
        raise BadInput(f"{where}: broken, cut short or not there; {error}") from error
    if not found:
        raise BadInput(f"{where}: expected columns {', '.join(columns)}, and at least one row")
    texts = {"line": pl.Int64} | dict.fromkeys(columns, pl.String)
    frame = pl.DataFrame(found, texts, orient="row")
    for name, kind in columns.items():
        text, values = frame[name], frame[name].cast(kind, strict=False)
        wrong = values.is_null() & (text.is_not_null() | bool(member))
        wrong |= (values == 0) & (kind == pl.UInt32)
        if wrong.any():
            line, given = frame["line"][wrong.arg_max()], text[wrong.arg_max()] or "none"
            said = f"expected {_WANTED.get(kind, 'a text')} as {name}, found {given[:60]!r}"
            raise BadInput(f"{where}, line {line}: {said}")
        frame = frame.with_columns(values)
    return frame.drop("line")


def lines(path: Path) -> list[str]:
    """Read one id per line."""
    return path.read_text(encoding="utf8", errors="replace").replace('"', " ").split()


def listed(path: Path, below: int, counted: bool = False) -> pl.DataFrame:
    """Read lines ``n id id ...`` with n ids each, or ``n id:count ...`` where they are ``counted``.

    Returns ``line`` from 0, ``id`` and ``count``, of one where there is none. BadInput names the
    file and the first line that is anything else, or an id that is not ``below`` the given number.
    """
    pair = r" \d{1,9}:[1-9]\d{0,8}" if counted else r" \d{1,9}"
    right, found = re.compile(rf"\d{{1,9}}({pair})*\s*", re.ASCII), []
    for line, text in enumerate(path.read_text("utf8", "replace").splitlines()):
        n, *pairs = text.split() or [""]
        if not right.fullmatch(text) or len(pairs) != int(n):
            wanted = "n and n times id:count" if counted else "n and n ids"
            raise BadInput(f"{path}, line {line + 1}: expected {wanted}, found {text[:100]!r}")
        found += [(line, *map(int, one.split(":")), 1)[:3] for one in pairs]
    largest = max((row[1] for row in found), default=None)
    if largest is None or largest >= below:
        raise BadInput(f"{path}: expected ids below {below}, found {largest}")
    return pl.DataFrame(found, ["line", "id", "count"], orient="row")


def query(path: Path, sql: str, kinds: dict) -> pl.DataFrame:
    """Return the rows of an SQL query, with columns of the given polars types; take no lock.

    Text that is not UTF-8 is read with replacements.
    """
    address = f"{path.resolve().as_uri()}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.text_factory = lambda raw: raw.decode("utf8", "replace")
            return pl.read_database(sql, database, schema_overrides=kinds)
    except (sqlite3.Error, pl.exceptions.PolarsError) as error:
        raise BadInput(f"{path}: not the expected SQLite file; {error}") from error


def place(tree: Path, track: str) -> Path:
    """Return where a track's file is in a tree of MSD tracks."""
    return tree.joinpath(*track[2:5], f"{track}.h5")


def timbre(tree: Path, track: str) -> np.ndarray:
    """Return the frames of a track, float32, shape (frames, 12).

    BadInput is raised when the file is absent or broken, or holds anything else.
    """
    wanted = f"analysis/segments_timbre, shape (frames, {TIMBRE_DIM})"
    return _read_hdf5(_timbre, place(tree, track), wanted)


def metadata(path: Path) -> dict[str, str | float]:
    """Return ids, names and hotttnesss of one track's file; "" for a text that is not there."""
    return _read_hdf5(_metadata, path, "a row in metadata/songs")


def hotness(path: Path) -> pl.DataFrame:
    """Return ``track`` and ``hot`` of the summary file of all tracks."""
    wanted = "metadata/songs with song_hotttnesss, analysis/songs with track_id"
    tracks, hot = _read_hdf5(_hotness, path, wanted)
    tracks = np.char.decode(tracks, "utf8", "replace")
    return pl.DataFrame({"track": tracks, "hot": hot}).unique("track")


def _read_hdf5(reader: Callable, path: Path, wanted: str):
    """Return what one of the readers below finds, in a process that libhdf5 may abort."""
    for _ in range(2):  # whatever else may have ended the process, ends it once
        try:
            process = get_reusable_executor(1, initializer=_keep_quiet)
            return process.submit(_opened_by, reader, str(path)).result()
        except BrokenProcessPool:
            why = "libhdf5 ended the process that read it"
        except Exception as error:  # whatever it is, the file is not as expected
            why = str(error)
            break
    raise BadInput(f"{path}: expected {wanted}; {why}")


def _keep_quiet() -> None:
    """Leave Ctrl-C to the caller, and say nothing as libhdf5 aborts."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def _opened_by(reader: Callable, path: str):
    with h5py.File(path, "r", locking=False) as file:
        return reader(file)


def _timbre(file: h5py.File) -> np.ndarray:
    frames = file["analysis/segments_timbre"][()].astype(np.float32)
    if frames.ndim != 2 or frames.shape[1] != TIMBRE_DIM or not np.isfinite(frames).all():
        raise ValueError(f"found {frames.shape}, or values that are not finite")
    return frames


def _metadata(file: h5py.File) -> dict[str, str | float]:
    row = file["metadata/songs"][0]
    there = row.dtype.names
    names = "song_id", "artist_id", "artist_name", "title"
    texts = {n: row[n].decode("utf8", "replace") if n in there else "" for n in names}
    return texts | {"hot": float(row["song_hotttnesss"]) if "song_hotttnesss" in there else np.nan}


def _hotness(file: h5py.File) -> tuple[np.ndarray, np.ndarray]:
    tracks = file["analysis/songs"].fields("track_id")[()].astype("S32")
    return tracks, file["metadata/songs"].fields("song_hotttnesss")[()].astype(np.float64)
