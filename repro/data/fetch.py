"""Download what can be downloaded, check it, and put it in place whole or not at all.

Only the hosts below are asked, over TLS. A file is written in a folder apart, compared with the
digest that its origin states or, where we know none, with the length that the server states and
with what it should hold; then it takes its place. Its digest is noted, and compared when it is
asked for again.
"""

from __future__ import annotations

import gzip
import json
import re
import shutil
import tarfile
import time
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pooch
import requests

from repro.data import raw as readers
from repro.data.files import Source, described
from repro.pipeline import run as results

HOSTS = {
    "millionsongdataset.com",
    "labrosa.ee.columbia.edu",
    "files.grouplens.org",
    "raw.githubusercontent.com",
}
NOTES = "fetched.json"
_PARTIAL = ".fetching"  # a folder beside the files
_MEMBER = re.compile(r"(?:^|/)([A-Z]/[A-Z]/[A-Z]/TR[A-Z0-9]{16}\.h5)$")
_TRIES, _HOPS = 3, 5
_PATIENCE, _PAUSE = 60.0, 1.0  # seconds without a byte; before the second try


class FetchError(Exception):
    """A file could not be had; the message says which, from where, and why."""


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep other downloads out of a folder; clear away what is half done, before and after."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = folder / f"{_PARTIAL}.lock"
    with results.alone(lock, f"another download is at work in {folder}: wait until it has ended"):
        shutil.rmtree(folder / _PARTIAL, ignore_errors=True)
        try:
            yield
        finally:
            shutil.rmtree(folder / _PARTIAL, ignore_errors=True)


def fetch(source: Source, *, mirror: str = "", progress: bool = True, tries: int = _TRIES) -> bool:
    """Download a file, or a folder as an archive, unless it is there, where it is compared.

    Parameters
    ----------
    source : Source
    mirror : str
        Address of a folder that has the files under their own names, asked in the origin's place;
        of any scheme and host, since it is the user's choice.
    tries : int
        How often an interrupted or broken download is begun again.

    Returns
    -------
    bool
        Whether anything was downloaded.

    Raises
    ------
    FetchError
    """
    if source.path.exists():
        _compare(source)
        return False
    if not source.url:
        raise FetchError(described(source))
    name = source.url.rpartition("/")[2]
    url = f"{mirror.rstrip('/')}/{name}" if mirror else source.url
    archive = source.path.with_name(name)
    with _alone(source.path.parent):
        if not archive.exists():
            _download(url, source, archive, bool(mirror), progress, tries)
        if archive != source.path and not source.path.exists():
            _unpack(archive, source.path)
            archive.unlink()
    return True


def _download(url, source: Source, path: Path, mirrored: bool, progress: bool, tries: int) -> None:
    partial = path.parent / _PARTIAL / path.name
    downloader = pooch.HTTPDownloader(
        progressbar=progress, timeout=_PATIENCE, chunk_size=2**16, allow_redirects=False
    )
    for turn in range(tries):
        partial.unlink(missing_ok=True)
        try:
            address = _final(url, mirrored)
            pooch.retrieve(
                address, source.digest or None, path.name, partial.parent, downloader=downloader
            )
            _check(partial, path.name)
        except (OSError, ValueError) as error:  # requests' errors are of the first kind
            partial.unlink(missing_ok=True)
            status = getattr(getattr(error, "response", None), "status_code", None)
            if turn < tries - 1 and status not in (401, 403, 404, 410):
                time.sleep(2**turn * _PAUSE)
                continue
            raise FetchError(f"{path.name} could not be had from {url}: {error}") from error
        partial.replace(path)
        _note(path, url)
        return


def _final(url: str, mirrored: bool) -> str:
    """Follow redirections, without reading what they lead to, and return the last address."""
    for _ in range(_HOPS):
        if not (mirrored or _trusted(url)):
            raise FetchError(f"{url}: not one of the listed hosts over https; nothing was read")
        with requests.get(url, timeout=_PATIENCE, allow_redirects=False, stream=True) as answer:
            answer.raise_for_status()
            if not answer.is_redirect:
                return url
            url = urljoin(url, answer.headers["location"])
    raise FetchError(f"{url}: more than {_HOPS} redirections")


def _trusted(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme == "https" and parts.hostname in HOSTS


def _compare(source: Source) -> None:
    """Raise FetchError when a file that is there is not the one that was meant or that came."""
    notes = source.path.with_name(NOTES)
    known = json.loads(notes.read_text("utf-8")) if notes.exists() else {}
    noted = known.get(source.path.name)
    expected = source.digest or (noted and f"sha256:{noted['sha256']}")
    if expected and source.path.is_file():
        kind, _, wanted = expected.partition(":")
        found = pooch.file_hash(str(source.path), kind)
        if found != wanted:
            raise FetchError(
                f"{source.path}: expected {kind} {wanted}, found {found}; "
                "take it away to have it downloaded again"
            )


def _check(path: Path, name: str) -> None:
    """Raise BadInput when a file is not of the kind that its name says."""
    if name.endswith(".zip"):
        try:
            with zipfile.ZipFile(path) as archive:
                kind, good = "a zip file", archive.testzip() is None
        except readers.BROKEN as error:
            raise readers.BadInput(f"what came is no whole zip file: {error}") from error
    elif name.endswith(".tar.gz"):
        try:
            kind, good = "a tar.gz file", tarfile.is_tarfile(path)
        except readers.BROKEN as error:
            raise readers.BadInput(f"what came is no whole tar.gz file: {error}") from error
    else:
        start = {".db": b"SQLite format 3\0", ".h5": b"\x89HDF\r\n\x1a\n"}.get(
            Path(name).suffix, b""
        )
        with path.open("rb") as file:
            head = file.read(max(len(start), 64))
        kind = {".db": "an SQLite file", ".h5": "an HDF5 file"}.get(Path(name).suffix, "a list")
        good = head.startswith(start) and bool(head) and not head.lstrip().startswith(b"<")
    if not good:
        raise readers.BadInput(f"what came is not {kind}")


def _unpack(archive: Path, folder: Path) -> None:
    """Put the tracks of a tar.gz file into a folder of their own, A/B/C/TRABC....h5.

    Whatever else the archive holds, and wherever it says its members belong, is passed over.
    """
    partial = folder.parent / _PARTIAL / folder.name
    count = 0
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                found = _MEMBER.search(member.name)
                if found and member.isfile():
                    path = partial / found[1]
                    path.parent.mkdir(parents=True, exist_ok=True)
                    with path.open("wb") as file:
                        shutil.copyfileobj(tar.extractfile(member), file)
                    count += 1
            while tar.fileobj.read(1 << 20):  # to the end, where the archive's checksum is
                pass
        if not count:
            raise readers.BadInput("it holds no track A/B/C/TRABC....h5")
    except (gzip.BadGzipFile, zlib.error, EOFError, tarfile.TarError, readers.BadInput) as error:
        shutil.rmtree(partial, ignore_errors=True)
        archive.unlink()
        raise FetchError(f"{archive} could not be unpacked and is removed: {error}") from error
    partial.rename(folder)


def _note(path: Path, url: str) -> None:
    """Add a file's digest, size and address to the notes in its folder."""
    notes = path.with_name(NOTES)
    known = json.loads(notes.read_text("utf-8")) if notes.exists() else {}
    known[path.name] = {"from": url, "bytes": path.stat().st_size, "sha256": results.digest(path)}
    results.write_json(notes, known)


def listing(sources: list[Source], used_by: dict[str, list[str]]) -> str:
    """Return for each file what it is, its size, licence, address and who needs it."""
    parts = []
    for source in sources:
        state = "there" if source.path.exists() else "missing"
        profiles = ", ".join(used_by[source.path.name]) or "no profile"
        parts.append(
            f"{source.path.name} ({state}): {source.what}\n"
            f"  for {profiles}; {source.size}; licence: {source.licence}\n"
            f"  {source.url or source.how}"
        )
    return "\n".join(parts)
