"""Read the files of all sources; what cannot be read as expected is named, with its line or field.

Nothing read here is trusted: no pickle, parameter-free SQL on databases opened read-only, archives
read in memory and never unpacked.
"""

from __future__ import annotations

import csv
import io
import re
import sqlite3
import struct
import zipfile
import zlib
from contextlib import closing
from pathlib import Path

import numpy as np
import polars as pl

from repro.data import hdf5
from repro.data.hdf5 import BadInput

TIMBRE_DIM = hdf5.TIMBRE_DIM
# What comes up from a file that cannot be opened or an archive that is damaged or encrypted.
_BROKEN = (OSError, EOFError, LookupError, ValueError, ArithmeticError, RuntimeError,
           struct.error, zlib.error, zipfile.BadZipFile)  # fmt: skip


# --- text ---------------------------------------------------------------------------------------


def triplets(path: Path) -> pl.DataFrame:
    """Read ``user <TAB> song <TAB> count`` lines, plain or zipped; a count is a positive integer.

    Users and songs are categories, so 48 million pairs take 12 bytes each. BadInput names the file
    and the first line that is anything else.
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

    In a column of numbers, whose polars type ``columns`` gives, anything else is an error, as is a
    UInt32 of 0. A missing value is null in a CSV file, and an error in a member. Text that cannot
    be decoded is replaced. BadInput names the file and, where there is one, line and column.
    """
    where = f"{path}: {member}" if member else f"{path}"
    style = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if member else {}
    found, line = [], 1
    try:
        content = zipfile.ZipFile(path).read(member) if member else path.read_bytes()
        text = content.decode(encoding, "replace").removeprefix("\ufeff")
        rows = csv.reader(io.StringIO(text, ""), **style)
        header = next(rows, [])
        places = [header.index(name) if name in header else None for name in columns]
        for row in rows if None not in places else ():
            if len(row) == len(header):
                found.append((line + 1, *(row[place] or None for place in places)))
            elif row:
                shown = repr((style.get("delimiter") or ",").join(row)[:100])
                raise csv.Error(f"expected {len(header)} fields, found {len(row)}, {shown}")
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


# --- HDF5 ---------------------------------------------------------------------------------------


def place(tree: Path, track: str) -> Path:
    """Return where a track's file is in a tree of MSD tracks."""
    return tree.joinpath(*track[2:5], f"{track}.h5")


def timbre(tree: Path, track: str, ahead: str = "") -> np.ndarray:
    """Return the frames of a track, float32, shape (frames, 12), and read the next ``ahead``.

    BadInput is raised when the file is absent or broken, or holds anything else.
    """
    return hdf5.read("timbre", place(tree, track), place(tree, ahead) if ahead else None)


def metadata(path: Path, ahead: Path | None = None) -> dict[str, str | float]:
    """Return ids, names and hotttnesss of one track's file; "" for a text that is not there."""
    return hdf5.read("metadata", path, ahead)


def hotness(path: Path) -> pl.DataFrame:
    """Return ``track`` and ``hot`` of the summary file of all tracks."""
    found = hdf5.read("hotness", path)
    tracks = np.char.decode(found["track"], "utf8", "replace")
    return pl.DataFrame({"track": tracks, "hot": found["hot"]}).unique("track")
