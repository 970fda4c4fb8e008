"""The files that each profile reads: what they are, where they come from, how to get them.

They lie in one folder under the names that they are downloaded by: over https from a listed host,
or from a mirror that the user names, into a folder apart, checked, and only then put in place.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urljoin

import pooch
import requests
from filelock import FileLock, Timeout

from repro.config import REAL, Profile

HOSTS = (
    *("https://millionsongdataset.com/", "https://labrosa.ee.columbia.edu/"),
    *("https://files.grouplens.org/", "https://raw.githubusercontent.com/"),
)
_MSD = "https://millionsongdataset.com/sites/default/files/"
_TAGGING = "https://raw.githubusercontent.com/tbertinmahieux/MSongsDB/master/Tasks_Demos/Tagging/"
_CITEULIKE = "https://raw.githubusercontent.com/js05212/citeulike-t/master/"
# Sources that read it, "timbre" for lastfm's, | file | what it is | where it comes from | size
# | licence | address, or why there is none | digest, where it is known
_FILES = f"""
msd subset | train_triplets.txt.zip | Taste Profile play counts | millionsongdataset.com/tasteprofile | 0.5 GB, 3 GB unzipped | MSD terms, research | {_MSD}challenge/train_triplets.txt.zip
subset | MillionSongSubset | folder of the 10,000-song subset's HDF5 tracks, A/B/C/TRABC....h5 | millionsongdataset.com/pages/getting-dataset | 1.8 GB, 2.8 GB unpacked | MSD terms, research | https://labrosa.ee.columbia.edu/~dpwe/tmp/millionsongsubset.tar.gz
msd | msd | folder of the MSD's HDF5 tracks, A/B/C/TRABC....h5 | millionsongdataset.com/pages/getting-dataset | 280 GB | MSD terms, research | by hand: copy the tree with the folders A to Z out of the public AWS snapshot that the page names, or ask its holders
msd | msd_summary_file.h5 | metadata of all MSD tracks | millionsongdataset.com/pages/getting-dataset | 0.3 GB | MSD terms, research | {_MSD}AdditionalFiles/msd_summary_file.h5
msd | track_metadata.db | ids and names of all MSD tracks | millionsongdataset.com/pages/getting-dataset | 0.7 GB | MSD terms, research | {_MSD}AdditionalFiles/track_metadata.db
msd subset | lastfm_tags.db | last.fm tags of MSD tracks | millionsongdataset.com/lastfm | 0.6 GB | research, non-commercial | {_MSD}lastfm/lastfm_tags.db
msd subset | tracks_bad_audio.txt | MSD tracks whose audio is wrong | github.com/dawenl/content_wmf, code/ | 0.1 MB | MIT | https://raw.githubusercontent.com/dawenl/content_wmf/master/code/tracks_bad_audio.txt
msd subset | artists_train.txt | MSD tagging split | github.com/tbertinmahieux/MSongsDB, Tasks_Demos/Tagging/ | 0.8 MB | GPL-3.0 | {_TAGGING}artists_train.txt
msd subset | artists_test.txt | MSD tagging split | github.com/tbertinmahieux/MSongsDB, Tasks_Demos/Tagging/ | 0.1 MB | GPL-3.0 | {_TAGGING}artists_test.txt
lastfm timbre | hetrec2011-lastfm-2k.zip | HetRec 2011 Last.fm-2k, listening and tags | grouplens.org/datasets/hetrec-2011 | 3 MB | non-commercial | https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip | md5:296d61afe4e8632b173fc2dd3be20ce2
lastfm spotify | Music Info.csv | names, tags and descriptors of tracks | kaggle.com, "Million Song Dataset + Spotify + Last.fm" | 15 MB | research | by hand: log in to kaggle.com, download "Million Song Dataset + Spotify + Last.fm" and unzip it
spotify | User Listening History.csv | play counts of tracks | kaggle.com, "Million Song Dataset + Spotify + Last.fm" | 0.6 GB | research | by hand: as Music Info.csv, from the same archive
timbre | msd_h5 | folder of some of the MSD's HDF5 tracks, A/B/C/TRABC....h5 | millionsongdataset.com/pages/getting-dataset | 0.3 MB a track | MSD terms, research | by hand: any tracks of the MSD that you have, in its own folders
citeulike | users.dat | citeulike-t: the articles in each user's library | github.com/js05212/citeulike-t | 0.8 MB | none stated; research, cite Wang, Chen and Li 2013 | {_CITEULIKE}users.dat | sha256:02d5d429b2c0362e0ed79f6ef204666b4092563d21493abf4dfb521e8a7078bf
citeulike | mult.dat | citeulike-t: words of each article | github.com/js05212/citeulike-t | 3.7 MB | none stated; research, cite Wang, Chen and Li 2013 | {_CITEULIKE}mult.dat | sha256:5ed81e6fdbf8d475122d4a18d622202571ac80f27be017e194a1957da585283d
citeulike | vocabulary.dat | citeulike-t: the words | github.com/js05212/citeulike-t | 0.2 MB | none stated; research, cite Wang, Chen and Li 2013 | {_CITEULIKE}vocabulary.dat | sha256:d58f0e6ce40da9e57c7ad6bbb2d0f1351730e3ecfcbbdf14eec07d493ce539e1
citeulike | tag-item.dat | citeulike-t: the articles of each tag | github.com/js05212/citeulike-t | 1.7 MB | none stated; research, cite Wang, Chen and Li 2013 | {_CITEULIKE}tag-item.dat | sha256:e2b80fc0e023780b63c00a397a2d0934eff6dbaf8a1b918778698361dae7ce6b
citeulike | tags.dat | citeulike-t: the tags | github.com/js05212/citeulike-t | 0.7 MB | none stated; research, cite Wang, Chen and Li 2013 | {_CITEULIKE}tags.dat | sha256:2f1e6dd94fe216a4453caf67e337c45f73938373b21d2aa3b6d2696387449e76
"""  # noqa: E501
_TABLE = [row.split(" | ") for row in _FILES.strip().split("\n")]
NAMES = [name for _, name, *_ in _TABLE]
_TRACK = re.compile(r"(?:^|/)([A-Z]/[A-Z]/[A-Z]/TR[A-Z0-9]{16}\.h5)$")
_TIMEOUT = 60.0  # seconds without a byte
_STARTS = {".db": b"SQLite format 3\0", ".h5": b"\x89HDF\r\n", ".zip": b"PK", ".gz": b"\x1f\x8b"}


class FetchError(Exception):
    """A file could not be downloaded; the message says which, from where, and why."""


class MissingData(FileNotFoundError):
    """Input files are absent; the message says for each what it is and where to get it."""


@dataclass(frozen=True)
class Source:
    """One input file or folder, and where to get it: a ``url``, or "by hand: " and how.

    ``digest`` is ``algorithm:hex``, empty where the origin's is not known to us.
    """

    path: Path
    what: str
    origin: str
    size: str
    licence: str
    url: str
    digest: str = ""


def described(source: Source) -> str:
    """Return whether a file is there, and what a person needs to know to get it."""
    folder, there = source.path.parent.resolve(), source.path.exists()
    readers = [p.name for p in REAL if source in required(p, source.path.parent)]
    return f"""{"there" if there else "missing"} {source.path.name}: {source.what}
  for {", ".join(readers)}; looked for in {folder}
  from {source.origin} ({source.size})
  licence: {source.licence}
  {source.url}"""


def find(name: str, root: Path | str) -> Source:
    """Return a file by its name in the folder ``root``; one file of a zip may be there unzipped."""
    path = Path(root) / name
    if path.suffix == ".zip" and not path.exists() and path.with_suffix("").is_file():
        path = path.with_suffix("")
    (about,) = (about for _, given, *about in _TABLE if given == name)
    return Source(path, *about)


def required(profile: Profile, root: Path | str) -> list[Source]:
    """Return every input that ``profile`` reads from the folder ``root``."""
    timbre = profile.source == "lastfm" and profile.content == "timbre"
    source = "timbre" if timbre else profile.source.replace("world", "msd")
    return [find(name, root) for readers, name, *_ in _TABLE if source in readers.split()]


def missing(profile: Profile, root: Path | str) -> list[Source]:
    """Return the inputs of :func:`required` that are not there."""
    return [source for source in required(profile, root) if not source.path.exists()]


def data_digest(profile: Profile, root: Path | str) -> str:
    """Return a SHA-256 of the inputs' content, by which people and runs compare what they have.

    Of a file up to 64 MiB it covers all, of a larger one its size and 1,024 blocks spread over it;
    of a tree of tracks the names and sizes. Dates play no part.
    """
    digest = hashlib.sha256()
    for source in required(profile, root):
        for folder in sorted(source.path.glob("?/?/?")):
            # of a million files: twice as fast as glob
            found = (file for file in os.scandir(folder) if not file.name.startswith("."))
            tracks = sorted(f"{file.name} {file.stat().st_size}\n" for file in found)
            digest.update("".join(tracks).encode())
        if source.path.is_file():
            size, block = source.path.stat().st_size, 1 << 16
            digest.update(f"{source.path.name} {size}\n".encode())
            with source.path.open("rb") as file:
                for start in range(0, size, max(block, size // 1024)):
                    file.seek(start)
                    digest.update(file.read(block))
    return digest.hexdigest()


@contextmanager
def write_atomically(path: Path) -> Iterator:
    """Open a temporary binary file that takes the name ``path`` only if the block succeeds."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        with partial.open("wb") as file:
            yield file
        partial.replace(path)
    except OSError as error:
        if error.errno and error.filename is None:  # a full disk does not say of which file
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        partial.unlink(missing_ok=True)


def write_json(path: Path, value) -> None:
    """Write ``value`` as readable JSON, NumPy scalars as plain numbers."""
    with write_atomically(path) as file:
        file.write(json.dumps(value, indent=1, default=lambda x: x.item()).encode() + b"\n")


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file."""
    return pooch.file_hash(str(path))


@contextmanager
def exclusive_lock(path: Path, message: str) -> Iterator[None]:
    """Hold a lock file, or raise BlockingIOError with the message if another process does."""
    try:
        held = FileLock(path).acquire(timeout=0)
    except Timeout:
        raise BlockingIOError(message) from None
    with held:
        yield


def fetch(source: Source, *, mirror: str = "", progress: bool = True) -> bool:
    """Download a file, or a folder as an archive, and return True; or compare what is there.

    ``mirror`` is the address of a folder that has the files under their own names, on any host. It
    is asked in place of the origin. FetchError says why something cannot be had.
    """
    if source.path.exists():
        if not pooch.hashes.hash_matches(source.path, source.digest or None):
            why = f"not the file of {source.digest}; take it away to have it downloaded again"
            raise FetchError(f"{source.path}: {why}")
        return False
    if source.url.startswith("by hand"):
        raise FetchError(described(source))
    folder, archive = source.path.parent, source.path.with_name(source.url.rpartition("/")[2])
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".fetching-", dir=folder) as partial:
        if not archive.exists():
            _download(source, archive, partial, mirror, progress)
        if archive != source.path:
            _unpack(archive, source.path, Path(partial, "tracks"))
    return True


def _download(source: Source, path: Path, partial: str, mirror: str, progress: bool) -> None:
    url = f"{mirror.rstrip('/')}/{path.name}" if mirror else source.url
    known, urls = {path.name: source.digest or None}, {path.name: url}
    cache = pooch.create(partial, "", registry=known, urls=urls, retry_if_failed=2)
    hooks = {} if mirror else {"response": _refuse_elsewhere}
    download = pooch.HTTPDownloader(progress, timeout=_TIMEOUT, chunk_size=2**16, hooks=hooks)
    try:
        found = Path(cache.fetch(path.name, downloader=download))
        with found.open("rb") as file:
            head = file.read(64)
        if not head.startswith(_STARTS.get(path.suffix, b"")) or head.lstrip()[:1] in (b"", b"<"):
            raise FetchError("what came is another kind of file")
    except (FetchError, OSError, ValueError) as error:  # requests' errors are OSErrors
        raise FetchError(f"{path.name} could not be had from {url}: {error}") from error
    found.replace(path)


def _refuse_elsewhere(response: requests.Response, *_, **__) -> None:
    """Raise FetchError before a redirection to a host that is not listed is followed."""
    url = urljoin(response.url, response.headers.get("location", ""))
    if response.is_redirect and not url.startswith(HOSTS):
        raise FetchError(f"sent on to {url}, not one of the listed hosts over https")


def _unpack(archive: Path, folder: Path, partial: Path) -> None:
    """Put the tracks of a tar.gz file into a folder, A/B/C/TRABC....h5, and remove the archive.

    Whatever else the archive holds, and wherever it says its members belong, is passed over.
    """
    try:
        with tarfile.open(archive) as tar:
            for member in tar:
                if (found := _TRACK.search(member.name)) and member.isfile():
                    track = partial / found[1]
                    track.parent.mkdir(parents=True, exist_ok=True)
                    track.write_bytes(tar.extractfile(member).read())
            while tar.fileobj.read(1 << 20):  # to the end, where the archive's checksum is
                pass
        if not partial.exists():
            raise FetchError("it holds no track A/B/C/TRABC....h5")
    except (FetchError, tarfile.TarError, zlib.error, EOFError, gzip.BadGzipFile) as error:
        archive.unlink()
        raise FetchError(f"{archive} could not be unpacked and is removed: {error}") from error
    partial.rename(folder)
    archive.unlink()
