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

TIMBRE_DIM = 12


class BadInput(ValueError):
    """An input is there but is not what it should be; the message names the file and the place."""


class _Worker:
    """The process, and the one question that it was asked ahead of time."""

    def __init__(self):
        self._pipe, theirs = Pipe()
        with theirs:
            number = theirs.fileno()
            command = [sys.executable, "-P", __file__, str(number)]
            # quiet, since libhdf5 has something to say as it aborts
            self.process = subprocess.Popen(command, pass_fds=[number], stderr=subprocess.DEVNULL)
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


def read(reader: str, path: Path, ahead: Path | None = None):
    """Return what one of :data:`READERS` finds in a file; BadInput says why there is nothing.

    ``ahead`` is the file that will be asked for next: it is read while the caller works on this
    one.
    """
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
        raise BadInput(f"{path}: expected {READERS[reader][1]}; {found}")
    return found


# --- the other process --------------------------------------------------------------------------


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


# What each reader of a file expects there.
READERS = {
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
                    found = READERS[reader][0](file)
            except Exception as error:  # whatever it is, the file is not as expected
                found = str(error)
            pipe.send(found)
