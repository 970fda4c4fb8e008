"""Read listening, content and tags, from whatever source, into one shape.

A source is a folder that the user names, holding the files as they are downloaded.

Million Song Dataset (``msd``) and the synthetic world in its formats (``world``)::

    train_triplets.txt (or .zip)  Taste Profile: user <TAB> song <TAB> play count
    msd/A/B/C/TRABC....h5         the tracks, with analysis/segments_timbre
    msd_summary_file.h5           metadata of all tracks, here for song_hotttnesss
    track_metadata.db             SQLite, table `songs`
    lastfm_tags.db                SQLite, tables `tids`, `tags` and `tid_tag`
    tracks_bad_audio.txt          one track id a line
    artists_train.txt, artists_test.txt   one artist id a line

Last.fm (``lastfm``), where an item is an artist::

    hetrec2011-lastfm-2k.zip      as GroupLens ships it; read without extraction
    msd_spotify_tracks.csv.gz (or "Music Info.csv")   descriptors of tracks
    msd_h5/A/B/C/TRABC....h5      MSD tracks, only for content "timbre"
"""

from __future__ import annotations

import hashlib
import re
import sqlite3
import unicodedata
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import polars as pl
from nltk.stem import PorterStemmer
from nltk.tokenize import word_tokenize
from scipy import sparse

from repro.config import Profile

TIMBRE_DIM = 12
# Without key, mode and time_signature: distances between their codes mean nothing.
DESCRIPTORS = (
    *("duration_ms", "danceability", "energy", "loudness", "speechiness"),
    *("acousticness", "instrumentalness", "liveness", "valence", "tempo"),
)

# The authors dropped 216 tags by hand; this is our own rule for the same purpose.
_SAYS_NOTHING_OF_THE_SOUND = re.compile(
    r"""favou?rite | \bfav(e|es|s)?\b | \b(best|greatest?|awesome|amazing|brilliant|excellent)\b
    | \b(fantastic|perfect|genius|masterpiece|wonderful|gorgeous|overrated|underrated)\b
    | ^(good|nice|cool|bad|crap|shit|sucks?)$ | \bgood\ (music|songs?|stuff|shit)\b
    | ^(i\ )?(love[ds]?|like[ds]?|hate[ds]?)(\ (it|this|at\ first.*|this\ song|songs?\ i.*))?$
    | \bi\ (love|like|own|have|know|want)\b | ^my\b | seen\ live | \bcovers?\b | \bsoundtracks?\b
    | \bost\b | \b(18|19|20)\d\d\b | \b\d{2,4}\ ?'?s\b | ^\d+$ | \bstars?$ | \bplaylist\b
    | \b(check|listen)\b | ^(owned|library|ipod|itunes|misc|other|unknown|all)$ | \balbums?\b""",
    re.VERBOSE,
)
_TRIPLET = re.compile(rb"[^\t\r\n]+\t[^\t\r\n]+\t0*[1-9]\d{0,8}\r?\n?")
_stem = PorterStemmer().stem


class BadInput(ValueError):
    """An input is there but is not what it should be; the message names the file."""


@dataclass(frozen=True)
class Source:
    """One input file or folder and where to get it."""

    path: Path
    what: str
    origin: str
    size: str
    licence: str


class MissingData(FileNotFoundError):
    """Input files are absent; the message says for each what it is and where to get it."""

    def __init__(self, sources: list[Source]):
        super().__init__(
            "\n".join(
                f"missing {s.path.name}: {s.what}\n"
                f"  looked for in {s.path.parent.resolve()}\n"
                f"  from {s.origin} ({s.size})\n"
                f"  licence: {s.licence}"
                for s in sources
            )
        )


@dataclass(frozen=True)
class Dataset:
    """Listening and tags; the content is read track by track through :func:`bags`."""

    plays: sparse.csr_matrix  # users x items, int32 play counts
    user_ids: np.ndarray
    item_ids: np.ndarray  # song id, or the normalised name of an artist
    item_names: np.ndarray  # for people: "Artist - Title", or the artist's name as spelt
    item_artists: np.ndarray  # artist id or normalised name; "" when unknown
    item_tracks: np.ndarray  # the track whose audio describes the item; "" when there is none
    tags: sparse.csr_matrix  # tagged tracks x vocabulary, int8, binary
    tag_tracks: np.ndarray  # track ids of the rows of `tags`
    tag_items: np.ndarray  # their items; several tracks can be one song
    vocabulary: np.ndarray
    tag_train: np.ndarray  # bool, rows of `tags`; shares no artist with `tag_test`
    tag_test: np.ndarray
    hotness: np.ndarray  # float32 song_hotttnesss of the rows of `tags`, nan when unknown
    facts: dict[str, int]  # counts at every step of the recipe, in order


# file | what it is | where it comes from | size | licence
_FILES = """
train_triplets.txt | Taste Profile play counts | millionsongdataset.com/tasteprofile | 3 GB, 0.5 GB zipped | MSD terms, research
msd | folder of the MSD's HDF5 tracks, A/B/C/TRABC....h5 | millionsongdataset.com/pages/getting-dataset | 280 GB | MSD terms, research
msd_summary_file.h5 | metadata of all MSD tracks | millionsongdataset.com/pages/getting-dataset | 0.3 GB | MSD terms, research
track_metadata.db | ids and names of all MSD tracks | millionsongdataset.com/pages/getting-dataset | 0.7 GB | MSD terms, research
lastfm_tags.db | last.fm tags of MSD tracks | millionsongdataset.com/lastfm | 0.6 GB | research, non-commercial
tracks_bad_audio.txt | MSD tracks whose audio is wrong | github.com/dawenl/content_wmf, code/ | 0.1 MB | MIT
artists_train.txt | MSD tagging split | github.com/tbertinmahieux/MSongsDB, Tasks_Demos/Tagging/ | 0.8 MB | GPL-3.0
artists_test.txt | MSD tagging split | github.com/tbertinmahieux/MSongsDB, Tasks_Demos/Tagging/ | 0.1 MB | GPL-3.0
hetrec2011-lastfm-2k.zip | HetRec 2011 Last.fm-2k, listening and tags | grouplens.org/datasets/hetrec-2011 | 3 MB | non-commercial
msd_spotify_tracks.csv.gz | track descriptors, or "Music Info.csv" | kaggle.com, "Million Song Dataset + Spotify + Last.fm" | 15 MB | research
msd_h5 | folder of the MSD's HDF5 tracks, A/B/C/TRABC....h5 | millionsongdataset.com/pages/getting-dataset | 0.3 MB a track | MSD terms, research
"""  # noqa: E501
_ABOUT = {name: about for name, *about in (r.split(" | ") for r in _FILES.strip().split("\n"))}
_ALSO_AS = {
    "train_triplets.txt": "train_triplets.txt.zip",
    "msd_spotify_tracks.csv.gz": "Music Info.csv",
}


def _find(root: Path, name: str) -> Path:
    other = root / _ALSO_AS.get(name, name)
    return other if other.exists() and not (root / name).exists() else root / name


def required(profile: Profile, root: Path | str) -> list[Source]:
    """Return every input that `profile` reads from the folder `root`."""
    names = list(_ABOUT)[:8]
    if profile.source == "lastfm":
        content = "msd_h5" if profile.content == "timbre" else "msd_spotify_tracks.csv.gz"
        names = ["hetrec2011-lastfm-2k.zip", content]
    return [Source(_find(Path(root), name), *_ABOUT[name]) for name in names]


def missing(profile: Profile, root: Path | str) -> list[Source]:
    """Return the inputs of :func:`required` that are not there."""
    return [source for source in required(profile, root) if not source.path.exists()]


def load(profile: Profile, root: Path | str) -> Dataset:
    """Read everything but the content.

    No activity filter is applied here: that is :mod:`repro.splits`.

    Raises
    ------
    MissingData
        Naming all absent files at once.
    BadInput
        Naming the file that cannot be read as expected and, for triplets, the line.
    """
    if absent := missing(profile, root):
        raise MissingData(absent)
    read = _load_lastfm if profile.source == "lastfm" else _load_msd
    return read(profile, Path(root))


def bags(profile: Profile, root: Path | str) -> Callable[[str], np.ndarray]:
    """Return the function from a track id to its content, float32, shape (frames, D).

    D is 12 for timbre and 10 for descriptors, in the files' own units; no frames give (0, D).

    Raises
    ------
    BadInput
        By the returned function, on a track file that is absent, broken or of another shape.
    """
    root = Path(root)
    if profile.content == "timbre":
        tree = root / ("msd_h5" if profile.source == "lastfm" else "msd")
        return lambda track: _timbre(tree, track)
    rows = _descriptors(root).partition_by("artist", as_dict=True, include_key=False)
    frames = {artist: table.to_numpy().astype(np.float32) for (artist,), table in rows.items()}
    none = np.empty((0, len(DESCRIPTORS)), np.float32)
    return lambda artist: frames.get(artist, none)


def fingerprint(profile: Profile, root: Path | str) -> str:
    """Return a short digest of the inputs' content.

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


# --- Million Song Dataset -----------------------------------------------------------------------


def _load_msd(profile: Profile, root: Path) -> Dataset:
    """Follow the authors' recipe: ISMIR sec. 4.2 for listening, their code for tags."""
    songs = _query(
        root / "track_metadata.db",
        "SELECT track_id, song_id, artist_id, artist_name || ' - ' || title AS name FROM songs",
    ).sort("track_id")

    triplets = _triplets(_find(root, "train_triplets.txt"))
    facts = {"triplets read": triplets.height}
    bad = songs.filter(pl.col("track_id").is_in(_lines(root / "tracks_bad_audio.txt")))
    bad = bad["song_id"].unique().cast(pl.Categorical)
    triplets = triplets.filter(~pl.col("song").is_in(bad.implode()))
    facts["triplets after bad-audio removal"] = triplets.height
    plays, user_ids, item_ids = _matrix(triplets["user"], triplets["song"], triplets["count"])
    del triplets

    # Several tracks can be one song. The paper does not say which one speaks for it: our choice
    # is the smallest id. No song with a bad track is left here.
    items = _beside(item_ids, songs.unique("song_id", keep="first", maintain_order=True), "song_id")
    facts |= {
        "users": len(user_ids),
        "songs": len(item_ids),
        "user-song pairs": plays.nnz,
        "songs without a track": items["track_id"].null_count(),
    }

    tagged = _query(
        root / "lastfm_tags.db",
        "SELECT tids.tid AS track, tags.tag AS tag, CAST(val AS REAL) AS val FROM tid_tag"
        " JOIN tids ON tids.ROWID = tid_tag.tid JOIN tags ON tags.ROWID = tid_tag.tag",
    )
    tags, tag_tracks, vocabulary = _tags(tagged, profile.min_songs_per_tag, facts)
    about = _beside(tag_tracks, songs, "track_id")
    train, test = (_lines(root / f"artists_{part}.txt") for part in ("train", "test"))
    if shared := set(train) & set(test):
        raise BadInput(f"{root}: {min(shared)} is in artists_train.txt and in artists_test.txt")
    tag_train, tag_test = (
        about["artist_id"].is_in(part).fill_null(False).to_numpy() for part in (train, test)
    )
    facts |= {"tagged tracks for training": tag_train.sum(), "for testing": tag_test.sum()}

    return Dataset(
        plays=plays,
        user_ids=user_ids,
        item_ids=item_ids,
        item_names=_strings(items["name"]),
        item_artists=_strings(items["artist_id"]),
        item_tracks=_strings(items["track_id"]),
        tags=tags,
        tag_tracks=tag_tracks,
        tag_items=_strings(about["song_id"]),
        vocabulary=vocabulary,
        tag_train=tag_train,
        tag_test=tag_test,
        hotness=_hotness(root / "msd_summary_file.h5", tag_tracks),
        facts={step: int(count) for step, count in facts.items()},
    )


def _triplets(path: Path) -> pl.DataFrame:
    """Read ``user <TAB> song <TAB> count`` lines; a count is a positive integer.

    Raises
    ------
    BadInput
        Naming the file and the first line that is anything else.
    """
    source = zipfile.Path(path, path.stem) if path.suffix == ".zip" else path
    try:
        with source.open("rb") as file:
            table = pl.read_csv(
                file,
                has_header=False,
                separator="\t",
                quote_char=None,
                # categories: 48 million pairs then take 12 bytes each
                schema={"user": pl.Categorical, "song": pl.Categorical, "count": pl.Int32},
                ignore_errors=True,
            )
        if not sum(table.null_count().row(0)) and (table["count"] > 0).all():
            return table
    except pl.exceptions.PolarsError:
        pass
    with source.open("rb") as file:  # polars does not tell the line
        for number, line in enumerate(file, start=1):
            if not _TRIPLET.fullmatch(line):
                found = line[:100].decode("utf8", "replace").rstrip("\r\n")
                raise BadInput(
                    f"{path}, line {number}: expected user <TAB> song <TAB> positive integer, "
                    f"found {found!r}"
                )
    raise BadInput(f"{path}: not a file of user <TAB> song <TAB> count lines")


def _timbre(tree: Path, track: str) -> np.ndarray:
    if not track:
        return np.empty((0, TIMBRE_DIM), np.float32)
    path = tree.joinpath(*track[2:5], f"{track}.h5")
    expected = f"{path}: expected analysis/segments_timbre, shape (frames, {TIMBRE_DIM})"
    try:
        with h5py.File(path, "r") as file:
            frames = file["analysis/segments_timbre"][()].astype(np.float32)
    except (OSError, KeyError) as error:
        raise BadInput(f"{expected}; {error}") from error
    if frames.ndim != 2 or frames.shape[1] != TIMBRE_DIM:
        raise BadInput(f"{expected}, found {frames.shape}")
    return frames


def _hotness(path: Path, tracks: np.ndarray) -> np.ndarray:
    # The tracks' own files have it too, but opening every tagged one would take an hour.
    with h5py.File(path, "r") as file:
        hot = file["metadata/songs"].fields("song_hotttnesss")[()]
        ids = file["analysis/songs"].fields("track_id")[()].astype(str)
    known = pl.DataFrame({"track": ids, "hot": hot}).unique("track")
    found = _beside(tracks, known, "track")["hot"]
    return found.fill_null(np.nan).to_numpy().astype(np.float32)


# --- Last.fm, artist level ----------------------------------------------------------------------


def artist_key(name: str) -> str:
    """Return the form under which an artist's names from different sources meet."""
    name = unicodedata.normalize("NFKD", name.lower())
    name = "".join(c for c in name if not unicodedata.combining(c)).replace("&", "and")
    return re.sub(r"\W", "", re.sub(r"^the\s", "", name))


def _load_lastfm(profile: Profile, root: Path) -> Dataset:
    """Join HetRec's artists to those with content by their normalised names."""
    archive = root / "hetrec2011-lastfm-2k.zip"
    artists = _hetrec(archive, "artists.dat").select(
        artistID="id", name="name", artist=_keys(pl.col("name"))
    )
    listening = _hetrec(archive, "user_artists.dat").filter(pl.col("weight") > 0)
    tagging = _hetrec(archive, "user_taggedartists.dat")
    facts = {
        "users read": listening["userID"].n_unique(),
        "artists read": artists.height,
        "user-artist pairs read": listening.height,
        "tag assignments read": tagging.height,
    }

    if profile.content == "timbre":
        content = _artists_of_tracks(root / "msd_h5")
    else:
        content = _descriptors(root).select("artist", track="artist").unique()
    linked = artists.filter(
        pl.col("artist") != "",
        pl.col("artistID").is_in(listening["artistID"].implode()),
        pl.col("artistID").is_in(tagging["artistID"].implode()),
    ).join(content, on="artist")
    listening = listening.join(linked, on="artistID")
    tagging = tagging.join(linked, on="artistID")
    facts |= {
        "artists with listening, tags and content": linked.height,
        "their users": listening["userID"].n_unique(),
        "their user-artist pairs": listening.height,
        "their tag assignments": tagging.height,
    }

    user_column = listening["userID"].cast(pl.String)
    plays, user_ids, item_ids = _matrix(user_column, listening["artist"], listening["weight"])
    facts |= {"artists after merging homonyms": len(item_ids), "pairs after merging": plays.nnz}
    # of several spellings, the one that is played most
    spelt = listening.group_by("artist", "name").agg(pl.col("weight").sum())
    spelt = spelt.sort("artist", "weight", "name", descending=[False, True, False])
    items = spelt.unique("artist", keep="first", maintain_order=True).join(
        content, on="artist", maintain_order="left"
    )

    tag_names = _hetrec(archive, "tags.dat", encoding="cp1252").rename({"tagValue": "tag"})
    tagged = tagging.join(tag_names, on="tagID").group_by("track", "tag").agg(val=pl.len())
    tags, tag_tracks, vocabulary = _tags(tagged, profile.min_songs_per_tag, facts)
    order = np.random.default_rng(profile.seed).permutation(len(tag_tracks))
    tag_train = order < int(0.8 * len(tag_tracks))  # a row is an artist
    return Dataset(
        plays=plays,
        user_ids=user_ids,
        item_ids=item_ids,
        item_names=_strings(items["name"]),
        item_artists=item_ids,
        item_tracks=_strings(items["track"]),
        tags=tags,
        tag_tracks=tag_tracks,
        tag_items=_strings(_beside(tag_tracks, items, "track")["artist"]),
        vocabulary=vocabulary,
        tag_train=tag_train,
        tag_test=~tag_train,
        hotness=np.full(len(tag_tracks), np.nan, np.float32),
        facts=facts,
    )


def _hetrec(archive: Path, name: str, encoding: str = "utf8") -> pl.DataFrame:
    try:
        with zipfile.ZipFile(archive) as files:
            table = files.read(name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise BadInput(f"{archive}: expected a zip file that has {name}; {error}") from error
    return pl.read_csv(table, separator="\t", quote_char=None, encoding=encoding)


def _descriptors(root: Path) -> pl.DataFrame:
    """Return the complete rows of the descriptor table, with the artist's normalised name."""
    path = _find(root, "msd_spotify_tracks.csv.gz")
    try:
        table = pl.read_csv(path, columns=["artist", *DESCRIPTORS], infer_schema_length=None)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadInput(f"{path}: expected columns artist, {', '.join(DESCRIPTORS)}") from error
    return table.select(_keys(pl.col("artist")), *DESCRIPTORS).drop_nulls()


def _artists_of_tracks(tree: Path) -> pl.DataFrame:
    """Return one track an artist, the smallest id: bags must not grow with popularity."""
    rows = []
    for path in sorted(tree.glob("?/?/?/*.h5"), key=lambda path: path.stem):
        with h5py.File(path, "r") as file:
            name = file["metadata/songs"].fields("artist_name")[0].decode()
        rows.append((artist_key(name), path.stem))
    table = pl.DataFrame(rows, schema=["artist", "track"], orient="row")
    return table.unique("artist", keep="first", maintain_order=True)


# --- both ---------------------------------------------------------------------------------------


def sanitise(tag: str) -> str:
    """Return the stem under which spellings of a tag meet (the steps of the authors' code)."""
    stems = " ".join(_stem(word) for word in word_tokenize(tag.lower(), preserve_line=True))
    return re.sub(r"[\W_]", "", re.sub(r"&| n ", "and", stems))


def _tags(
    tagged: pl.DataFrame, min_tracks: int, facts: dict[str, int]
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Turn (track, tag, val) rows into the binary matrix, its tracks and its vocabulary.

    Tags on `min_tracks` tracks or more that say something of the sound are stemmed, equal stems
    merged with their values summed, and a tag is positive where the value is. The counts of each
    step are added to `facts`.
    """
    frequent = tagged.group_by("tag").agg(n=pl.col("track").n_unique())
    frequent = frequent.filter(pl.col("n") >= min_tracks)["tag"].to_list()
    plain = {tag: re.sub(r"[-_ ]+", " ", tag.lower()) for tag in frequent}
    stems = {t: sanitise(t) for t in frequent if not _SAYS_NOTHING_OF_THE_SOUND.search(plain[t])}
    merged = (
        tagged.filter(pl.col("tag").is_in(list(stems)))
        .with_columns(stem=pl.col("tag").replace_strict(stems, return_dtype=pl.String))
        .filter(pl.col("stem") != "")
        .group_by("track", "stem")
        .agg(pl.col("val").sum())
        .filter(pl.col("val") > 0)
    )
    ones = pl.repeat(1, merged.height, dtype=pl.Int8, eager=True)
    matrix, tracks, vocabulary = _matrix(merged["track"], merged["stem"], ones)
    facts |= {
        "tags read": tagged["tag"].n_unique(),
        "tags that are frequent": len(frequent),
        "tags about the sound": len(stems),
        "tags after merging stems": len(vocabulary),
        "tracks with a tag read": tagged["track"].n_unique(),
        "tracks with a tag left": len(tracks),
    }
    return matrix, tracks, vocabulary


def _matrix(
    rows: pl.Series, columns: pl.Series, values: pl.Series
) -> tuple[sparse.csr_matrix, np.ndarray, np.ndarray]:
    """Return the matrix and its sorted row and column ids; values of repeated pairs add up."""
    (row_codes, row_ids), (column_codes, column_ids) = _codes(rows), _codes(columns)
    shape = len(row_ids), len(column_ids)
    values = values.to_numpy().astype(np.int8 if values.dtype == pl.Int8 else np.int32)
    return sparse.csr_matrix((values, (row_codes, column_codes)), shape), row_ids, column_ids


def _codes(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the values of `column` among its sorted ids, and the ids."""
    column = column.cast(pl.Categorical)
    ids = pl.DataFrame({"category": column.unique()})
    ids = ids.with_columns(id=pl.col("category").cast(pl.String)).sort("id")
    categories = ids["category"].to_physical().to_numpy()
    position = np.zeros(categories.max(initial=0) + 1, np.int32)
    position[categories] = np.arange(len(categories))
    return position[column.to_physical().to_numpy()], _strings(ids["id"])


def _beside(ids: np.ndarray, table: pl.DataFrame, key: str) -> pl.DataFrame:
    """Return for each id, in order, its row of `table`, or nulls."""
    return pl.DataFrame({key: ids}).join(table, on=key, how="left", maintain_order="left")


def _strings(column: pl.Series, width: int = 200) -> np.ndarray:
    # numpy gives every string the room of the longest: one endless title would cost gigabytes
    return column.fill_null("").str.slice(0, width).to_numpy().astype(str)


def _keys(names: pl.Expr) -> pl.Expr:
    return names.map_elements(artist_key, return_dtype=pl.String)


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf8").split()


def _query(path: Path, sql: str) -> pl.DataFrame:
    with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as database:
        try:
            return pl.read_database(sql, database)
        except sqlite3.Error as error:
            raise BadInput(f"{path}: {error}, in: {sql}") from error
