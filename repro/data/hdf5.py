"""Read HDF5 files in a process of its own, which libhdf5 may abort when a file is broken.

Run as a script, this module is that process: multiprocessing's would run a caller's script again.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

import h5py
import numpy as np

TEXTS = "song_id", "artist_id", "artist_name", "title"
_NOT_AS_EXPECTED = (OSError, LookupError, ValueError, TypeError, AttributeError, RuntimeError,
                    MemoryError)  # fmt: skip


class BrokenFile(Exception):
    """A file cannot be read as expected; the message is libhdf5's, or says what became of it."""


class _Worker:
    """The process, and the one question that it was asked ahead of time."""

    def __init__(self):
        self._pipe, theirs = Pipe()
        number = theirs.fileno()
        command = [sys.executable, "-P", __file__, str(number)]
        # quiet, since libhdf5 has something to say as it aborts
        self.process = subprocess.Popen(command, pass_fds=[number], stderr=subprocess.DEVNULL)
        theirs.close()
        self._ahead = None

    def ask(self, question: tuple[str, str], ahead: tuple[str, str] | None) -> np.ndarray | str:
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


def read(reader: str, path: Path, ahead: Path | None = None) -> np.ndarray:
    """Return what one of :data:`READERS` finds in a file, or raise BrokenFile.

    ``"timbre"`` gives float32, shape (frames, dimensions); ``"metadata"`` the texts of a track, one
    for each of :data:`TEXTS` and its hotttnesss; ``"hotness"`` rows (track, hot). ``ahead`` is the
    file that will be asked for next: it is read while the caller works on this one.
    """
    global _worker
    for _ in range(2):  # whatever else may have ended the process, ends it once
        _worker = _worker or _Worker()
        try:
            # as strings: a Path takes longer to send
            found = _worker.ask((reader, str(path)), (reader, str(ahead)) if ahead else None)
        except BaseException as error:  # interrupted, its answer must not be taken for the next
            signalled, _worker, ahead = _worker.end(), None, None
            if not isinstance(error, OSError | EOFError):
                raise
            continue
        if isinstance(found, str):
            raise BrokenFile(found)
        return found
    raise BrokenFile(f"libhdf5 was ended by signal {signalled} while it read the file")


# --- the other process --------------------------------------------------------------------------


def _timbre(file: h5py.File) -> np.ndarray:
    return file["analysis/segments_timbre"][()].astype(np.float32)


def _metadata(file: h5py.File) -> np.ndarray:
    row = file["metadata/songs"][0]
    there = row.dtype.names
    texts = [row[name].decode("utf8", "replace") if name in there else "" for name in TEXTS]
    hot = float(row["song_hotttnesss"]) if "song_hotttnesss" in there else np.nan
    return np.array([*texts, str(hot)])


def _hotness(file: h5py.File) -> np.ndarray:
    hot = file["metadata/songs"].fields("song_hotttnesss")[()]
    found = np.empty(len(hot), [("track", "S32"), ("hot", "f8")])
    found["track"], found["hot"] = file["analysis/songs"].fields("track_id")[()], hot
    return found


READERS = {"timbre": _timbre, "metadata": _metadata, "hotness": _hotness}


def _serve(pipe: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its caller, when the pipe closes
    with suppress(EOFError, ConnectionError):
        while True:
            reader, path = pipe.recv()
            try:
                with h5py.File(path, "r", locking=False) as file:
                    found = READERS[reader](file)
            except _NOT_AS_EXPECTED as error:
                found = str(error)
            pipe.send(found)


if __name__ == "__main__":
    _serve(Connection(int(sys.argv[1])))
