"""Read HDF5 files in a process of its own, which libhdf5 may abort when a file is broken.

Run as a script, this module is that process: for each line that names a reader and a path it
answers with a line of JSON, an error or an array's type and shape, and the array's bytes.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from contextlib import suppress
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
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen([sys.executable, "-P", __file__], **pipes)
        self._ahead: list[str] | None = None

    def ask(self, question: list[str], ahead: list[str] | None) -> np.ndarray:
        if self._ahead not in (None, question):
            with suppress(BrokenFile):
                self._answer()
        if self._ahead != question:
            self._send(question)
        if ahead:
            self._send(ahead)
        self._ahead = ahead
        return self._answer()

    def _send(self, question: list[str]) -> None:
        self.process.stdin.write(json.dumps(question).encode() + b"\n")
        self.process.stdin.flush()

    def _answer(self) -> np.ndarray:
        kind, shape = json.loads(self.process.stdout.readline())
        if shape is None:
            raise BrokenFile(kind)
        found = np.empty(shape, kind if isinstance(kind, str) else [tuple(f) for f in kind])
        if self.process.stdout.readinto(found.reshape(-1).view(np.uint8)) != found.nbytes:
            raise EOFError("the answer is cut short")
        return found

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
            return _worker.ask([reader, str(path)], [reader, str(ahead)] if ahead else None)
        except BrokenFile:
            raise
        except BaseException as error:  # interrupted, its answer must not be taken for the next
            signalled, _worker, ahead = _worker.end(), None, None
            if not isinstance(error, OSError | ValueError | EOFError):
                raise
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


def _serve() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it ends with its caller, when the pipe closes
    for line in sys.stdin.buffer:
        reader, path = json.loads(line)
        data = b""
        try:
            with h5py.File(path, "r", locking=False) as file:
                found = np.ascontiguousarray(READERS[reader](file))
            kind = found.dtype.descr if found.dtype.names else found.dtype.str
            answer, data = [kind, found.shape], memoryview(found.reshape(-1).view(np.uint8))
        except _NOT_AS_EXPECTED as error:
            answer = [str(error), None]
        sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    _serve()
