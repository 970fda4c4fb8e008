"""Read the files of all sources; what cannot be read as expected is named, with its line or field.

Nothing read here is trusted: no pickle, parameter-free SQL on databases opened read-only, archives
read in memory and never unpacked.
"""

from __future__ import annotations

import gzip
import re
import sqlite3
import struct
import zipfile
import zlib
from contextlib import closing
from pathlib import Path

import h5py
import numpy as np
import polars as pl

TIMBRE_DIM = 12
_INTEGERS = pl.Int32, pl.Int64


class BadInput(ValueError):
    """An input is there but is not what it should be; the message names the file and the place."""


# --- listening ----------------------------------------------------------------------------------


def triplets(path: Path) -> pl.DataFrame:
    """Read ``user <TAB> song <TAB> count`` lines, plain or zipped; a count is a positive integer.

    Returns
    -------
    DataFrame
        ``user``, ``song`` (categories: 48 million pairs then take 12 bytes each), ``count``.

    Raises
    ------
    BadInput
        Naming the file and the first line that is anything else.
    """
    return _pairs(path, ("user", "song", "count"), "\t", header=False)


def history(path: Path) -> pl.DataFrame:
    """Read a CSV of ``track_id,user_id,playcount``; otherwise as :func:`triplets`."""
    table = _pairs(path, ("track_id", "user_id", "playcount"), ",", header=True)
    return table.select(user="user_id", song="track_id", count="playcount")


def _pairs(path: Path, names: tuple, separator: str, header: bool) -> pl.DataFrame:
    kinds = {name: pl.Categorical for name in names} | {names[2]: pl.Int32}
    try:
        with _opened(path) as file:
            table = pl.read_csv(
                # An error of the archive must not come up through polars, which would abort.
                file.read() if path.suffix == ".zip" else file,
                has_header=False,
                skip_lines=int(header),
                separator=separator,
                quote_char=None,
                schema=kinds,
                ignore_errors=True,
            )
        told = not header or _first_line(path) == separator.join(names).encode()
        whole = table.height and not sum(table.null_count().row(0))
        if told and whole and (table[names[2]] > 0).all():
            return table
    except pl.exceptions.PolarsError:
        pass
    except BROKEN as error:
        raise BadInput(f"{path}: broken, cut short or not there; {error}") from error
    _name_line(path, names, separator, header)  # polars does not tell the line
    said = separator.replace("\t", " <TAB> ").join(names)
    raise BadInput(f"{path}: expected lines of {said}, found none")


# What comes up from a file that cannot be opened or an archive that is damaged or encrypted.
BROKEN = (OSError, EOFError, LookupError, ValueError, ArithmeticError, RuntimeError,
          struct.error, zlib.error, zipfile.BadZipFile)  # fmt: skip


def _opened(path: Path):
    """Open a file, or the one of the same name without its ending in a zip file, for reading."""
    if path.suffix == ".zip":
        return zipfile.Path(path, path.stem).open("rb")
    return path.open("rb")


def _first_line(path: Path) -> bytes:
    with _opened(path) as file:
        return file.readline().rstrip(b"\r\n").removeprefix(b"\xef\xbb\xbf")


def _name_line(path: Path, names: tuple, separator: str, header: bool) -> None:
    """Raise an error that names the first line which is not as it should be."""
    shown = separator.replace("\t", " <TAB> ").join((*names[:2], "positive integer"))
    field = f"[^{separator}\r\n]+{separator}".encode()
    right = re.compile(field + field + rb"0*[1-9]\d{0,8}\r?\n?")
    if header and _first_line(path) != separator.join(names).encode():
        raise BadInput(f"{path}, line 1: expected {separator.join(names)!r}, found {_shown(path)}")
    with _opened(path) as file:
        for number, line in enumerate(file, start=1):
            if header and number == 1:
                continue
            try:
                line.decode("utf8")
                fits = right.fullmatch(line)
            except UnicodeDecodeError:
                fits = False
            if not fits:
                found = line[:100].decode("utf8", "replace").rstrip("\r\n")
                raise BadInput(f"{path}, line {number}: expected {shown}, found {found!r}")


def _shown(path: Path) -> str:
    return repr(_first_line(path)[:100].decode("utf8", "replace"))


# --- tables of text -----------------------------------------------------------------------------


def table(path: Path, columns: dict, *, separator: str = ",", encoding: str = "utf8", member=""):
    """Read some columns of a table of text: a file, plain or gzipped, or a member of a zip file.

    Parameters
    ----------
    columns : dict of str to polars type
        A number that is missing is null; one that is not a number is an error, as is an integer
        that is not.
    encoding : str
        Of ``utf8`` what cannot be decoded is replaced: a name more or less stops nobody.

    Raises
    ------
    BadInput
        Naming the file and, where there is one, line and column.
    """
    where = f"{path}: {member}" if member else f"{path}"
    try:
        content = _content(path, member)
        raw = pl.read_csv(
            content,
            columns=list(columns),
            separator=separator,
            quote_char='"' if separator == "," else None,
            encoding="utf8-lossy" if encoding == "utf8" else encoding,
            infer_schema=False,
        )
    except BROKEN as error:
        raise BadInput(f"{where}: broken, cut short or not there; {error}") from error
    except pl.exceptions.PolarsError as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise BadInput(f"{where}: expected columns {', '.join(columns)}; {said}") from error
    if not raw.height:
        raise BadInput(f"{where}: expected columns {', '.join(columns)}, found no row")
    numbers = {name: kind for name, kind in columns.items() if kind != pl.String}
    read = raw.with_columns(pl.col(n).str.strip_chars().cast(k, strict=False) for n, k in
                            numbers.items())  # fmt: skip
    for name, kind in numbers.items():
        given = raw[name].is_not_null() & (raw[name].str.strip_chars() != "")
        wrong = (read[name].is_null() & given).arg_true()
        if len(wrong):
            wanted = "an integer" if kind in _INTEGERS else "a number"
            found = raw[name][wrong[0]][:60]
            raise BadInput(
                f"{where}, line {wrong[0] + 2}: expected {wanted} as {name}, found {found!r}"
            )
    return read


def _content(path: Path, member: str) -> bytes:
    if member:
        with zipfile.ZipFile(path) as files:
            return files.read(member)
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def lines(path: Path, empty: bool = True) -> list[str]:
    """Read one id a line.

    Raises
    ------
    BadInput
        When there is none, unless the list may be ``empty``.
    """
    found = path.read_text(encoding="utf8", errors="replace").split()
    if not (found or empty):
        raise BadInput(f"{path}: expected one id a line, found none")
    return found


def query(path: Path, sql: str, kinds: dict) -> pl.DataFrame:
    """Return what an SQL query finds in an SQLite file, opened for reading alone.

    Parameters
    ----------
    kinds : dict of str to polars type
        Of the columns. Text that is not UTF-8 is read with replacements.
    """
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
            database.text_factory = lambda raw: raw.decode("utf8", "replace")
            found = pl.read_database(sql, database, schema_overrides=kinds)
    except (sqlite3.Error, pl.exceptions.PolarsError) as error:
        raise BadInput(f"{path}: not the expected SQLite file; {error}") from error
    if not found.height:
        raise BadInput(f"{path}: holds none of the rows that are read")
    return found


# --- HDF5 ---------------------------------------------------------------------------------------

_NOT_HDF5 = OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError


def place(tree: Path, track: str) -> Path:
    """Return where a track's file is in a tree of MSD tracks."""
    return tree.joinpath(*track[2:5], f"{track}.h5")


def timbre(tree: Path, track: str) -> np.ndarray:
    """Return the frames of a track, float32, shape (frames, 12).

    Raises
    ------
    BadInput
        When the file is absent or broken, or holds anything else.
    """
    path = place(tree, track)
    expected = f"{path}: expected analysis/segments_timbre, shape (frames, {TIMBRE_DIM})"
    try:
        with h5py.File(path, "r") as file:
            frames = file["analysis/segments_timbre"][()]
        frames = frames.astype(np.float32)
    except _NOT_HDF5 as error:
        raise BadInput(f"{expected}; {error}") from error
    if frames.ndim != 2 or frames.shape[1] != TIMBRE_DIM:
        raise BadInput(f"{expected}, found {frames.shape}")
    if not np.isfinite(frames).all():
        raise BadInput(f"{path}: analysis/segments_timbre has values that are not finite")
    return frames


def metadata(path: Path) -> dict[str, str | float]:
    """Return ids, names and hotttnesss of one track's file; "" for a text that is not there."""
    texts = "song_id", "artist_id", "artist_name", "title"
    try:
        with h5py.File(path, "r") as file:
            row = file["metadata/songs"][0]
            there = [name for name in texts if name in row.dtype.names]
            found = dict.fromkeys(texts, "")
            found |= {name: row[name].decode("utf8", "replace") for name in there}
            hot = float(row["song_hotttnesss"]) if "song_hotttnesss" in row.dtype.names else np.nan
    except _NOT_HDF5 as error:
        raise BadInput(f"{path}: expected metadata/songs; {error}") from error
    return found | {"hot": hot}


def hotness(path: Path) -> pl.DataFrame:
    """Return ``track`` and ``hot`` of the summary file of all tracks."""
    try:
        with h5py.File(path, "r") as file:
            hot = file["metadata/songs"].fields("song_hotttnesss")[()]
            ids = file["analysis/songs"].fields("track_id")[()].astype(str)
        return pl.DataFrame({"track": ids, "hot": hot.astype(float)}).unique("track")
    except (*_NOT_HDF5, pl.exceptions.PolarsError) as error:
        wanted = "metadata/songs with song_hotttnesss, analysis/songs with track_id"
        raise BadInput(f"{path}: expected {wanted}; {error}") from error
