"""The files that each profile reads: what they are, where they come from, whether they are there.

A source is a folder that the user names, holding the files under the names that they are
downloaded by; :mod:`repro.data.fetch` puts there what can be downloaded.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from repro.config import Profile

_MSD = "https://millionsongdataset.com/sites/default/files/"
_TAGGING = "https://raw.githubusercontent.com/tbertinmahieux/MSongsDB/master/Tasks_Demos/Tagging/"
# file | what it is | where it comes from | size | licence | address, or why there is none
_FILES = f"""
train_triplets.txt.zip | Taste Profile play counts | millionsongdataset.com/tasteprofile | 0.5 GB, 3 GB unzipped | MSD terms, research | {_MSD}challenge/train_triplets.txt.zip
msd | folder of the MSD's HDF5 tracks, A/B/C/TRABC....h5 | millionsongdataset.com/pages/getting-dataset | 280 GB | MSD terms, research | by hand: copy the tree with the folders A to Z out of the public AWS snapshot that the page names, or ask its holders
msd_summary_file.h5 | metadata of all MSD tracks | millionsongdataset.com/pages/getting-dataset | 0.3 GB | MSD terms, research | {_MSD}AdditionalFiles/msd_summary_file.h5
track_metadata.db | ids and names of all MSD tracks | millionsongdataset.com/pages/getting-dataset | 0.7 GB | MSD terms, research | {_MSD}AdditionalFiles/track_metadata.db
lastfm_tags.db | last.fm tags of MSD tracks | millionsongdataset.com/lastfm | 0.6 GB | research, non-commercial | {_MSD}lastfm/lastfm_tags.db
tracks_bad_audio.txt | MSD tracks whose audio is wrong | github.com/dawenl/content_wmf, code/ | 0.1 MB | MIT | https://raw.githubusercontent.com/dawenl/content_wmf/master/code/tracks_bad_audio.txt
artists_train.txt | MSD tagging split | github.com/tbertinmahieux/MSongsDB, Tasks_Demos/Tagging/ | 0.8 MB | GPL-3.0 | {_TAGGING}artists_train.txt
artists_test.txt | MSD tagging split | github.com/tbertinmahieux/MSongsDB, Tasks_Demos/Tagging/ | 0.1 MB | GPL-3.0 | {_TAGGING}artists_test.txt
MillionSongSubset | folder of the 10,000-song subset's HDF5 tracks, A/B/C/TRABC....h5 | millionsongdataset.com/pages/getting-dataset | 1.8 GB, 2.8 GB unpacked | MSD terms, research | https://labrosa.ee.columbia.edu/~dpwe/tmp/millionsongsubset.tar.gz
hetrec2011-lastfm-2k.zip | HetRec 2011 Last.fm-2k, listening and tags | grouplens.org/datasets/hetrec-2011 | 3 MB | non-commercial | https://files.grouplens.org/datasets/hetrec2011/hetrec2011-lastfm-2k.zip
Music Info.csv | names, tags and descriptors of tracks | kaggle.com, "Million Song Dataset + Spotify + Last.fm" | 15 MB | research | by hand: log in to kaggle.com, download "Million Song Dataset + Spotify + Last.fm" and unzip it
User Listening History.csv | play counts of tracks | kaggle.com, "Million Song Dataset + Spotify + Last.fm" | 0.6 GB | research | by hand: as Music Info.csv, from the same archive
msd_h5 | folder of some of the MSD's HDF5 tracks, A/B/C/TRABC....h5 | millionsongdataset.com/pages/getting-dataset | 0.3 MB a track | MSD terms, research | by hand: any tracks of the MSD that you have, in its own folders
"""  # noqa: E501
_ABOUT = {name: about for name, *about in (r.split(" | ") for r in _FILES.strip().split("\n"))}
_DIGESTS = {"hetrec2011-lastfm-2k.zip": "md5:296d61afe4e8632b173fc2dd3be20ce2"}
_ALSO_AS = {
    "train_triplets.txt.zip": "train_triplets.txt",
    "Music Info.csv": "msd_spotify_tracks.csv.gz",
}
_READ = {
    "msd": list(_ABOUT)[:8],
    "subset": [
        *("train_triplets.txt.zip", "MillionSongSubset", "lastfm_tags.db"),
        *("tracks_bad_audio.txt", "artists_train.txt", "artists_test.txt"),
    ],
    "spotify": ["Music Info.csv", "User Listening History.csv"],
    "lastfm": ["hetrec2011-lastfm-2k.zip", "Music Info.csv"],
    "lastfm, timbre": ["hetrec2011-lastfm-2k.zip", "msd_h5"],
}
_READ["world"] = _READ["msd"]


@dataclass(frozen=True)
class Source:
    """One input file or folder, and where to get it.

    ``url`` is empty where a person has to do it, and ``how`` says what; ``digest`` is
    ``algorithm:hex``, empty where the origin's is not known to us.
    """

    path: Path
    what: str
    origin: str
    size: str
    licence: str
    url: str = ""
    how: str = ""
    digest: str = ""


class MissingData(FileNotFoundError):
    """Input files are absent; the message says for each what it is and where to get it."""

    def __init__(self, sources: list[Source]):
        super().__init__("\n".join(map(described, sources)))


def described(source: Source) -> str:
    """Return what a person needs to know to get a file."""
    how = f"\n  {source.how}" if source.how else ""
    return (
        f"missing {source.path.name}: {source.what}\n"
        f"  looked for in {source.path.parent.resolve()}\n"
        f"  from {source.origin} ({source.size})\n"
        f"  licence: {source.licence}{how}"
    )


def find(name: str, root: Path | str) -> Source:
    """Return a file by its name, in the folder ``root``, under its other name if it has that."""
    path, other = Path(root) / name, Path(root) / _ALSO_AS.get(name, name)
    *about, where = _ABOUT[name]
    how = where.removeprefix("by hand: ") if where.startswith("by hand: ") else ""
    return Source(
        other if other.exists() and not path.exists() else path,
        *about,
        url="" if how else where,
        how=how,
        digest=_DIGESTS.get(name, ""),
    )


def names() -> list[str]:
    """Return the names of all files that some profile reads."""
    return list(_ABOUT)


def required(profile: Profile, root: Path | str) -> list[Source]:
    """Return every input that ``profile`` reads from the folder ``root``."""
    timbre = profile.source == "lastfm" and profile.content == "timbre"
    kind = "lastfm, timbre" if timbre else profile.source
    return [find(name, root) for name in _READ[kind]]


def missing(profile: Profile, root: Path | str) -> list[Source]:
    """Return the inputs of :func:`required` that are not there."""
    return [source for source in required(profile, root) if not source.path.exists()]


def fingerprint(profile: Profile, root: Path | str) -> str:
    """Return a short digest of the inputs' content, by which people compare what they have.

    Of a file up to 64 MiB all of it, of a larger one its size and 1,024 blocks spread over it; of
    a tree of tracks the names and sizes in one in 26 of its folders and 32 of the files. Dates
    play no part.
    """
    digest = hashlib.sha256()
    for source in required(profile, root):
        files = [source.path]
        if source.path.is_dir():
            files = [
                file
                for folder in sorted(source.path.glob("?/?"))
                for leaf in sorted(folder.glob("?"))[:1]
                for file in sorted(leaf.glob("*.h5"))
            ]
            digest.update("".join(f"{f.name} {f.stat().st_size}\n" for f in files).encode())
            files = files[:: len(files) // 32 + 1]
        for path in files:
            size, block = path.stat().st_size, 1 << 16
            digest.update(f"{path.name} {size}\n".encode())
            with path.open("rb") as file:
                for start in range(0, size, max(block, size // 1024)):
                    file.seek(start)
                    digest.update(file.read(block))
    return digest.hexdigest()[:16]


def census(profile: Profile, root: Path | str) -> str:
    """Return a digest of the names and sizes of all tracks, so that not one changes unseen."""
    digest = hashlib.sha256()
    for source in required(profile, root):
        if source.path.is_dir():
            for folder in sorted(source.path.glob("?/?/?")):
                with os.scandir(folder) as files:  # a million files: twice as fast as glob
                    found = sorted(f"{file.name} {file.stat().st_size}\n" for file in files)
                digest.update("".join(found).encode())
    return digest.hexdigest()
