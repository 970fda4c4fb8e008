"""Turn listening, content and tags, from whatever source, into one shape.

The files are those of :mod:`repro.data.files`, read by :mod:`repro.data.raw`. A source is

- ``msd``, and ``world``, the synthetic one in its formats: Taste Profile triplets, MSD tracks with
  timbre, last.fm tags of tracks; ``subset`` is the same for the MSD's 10,000-song subset;
- ``spotify``: play counts, tags and descriptors of MSD tracks, one table each;
- ``lastfm``: HetRec's listening and tags, where an item is an artist, with the descriptors of
  their tracks, or MSD tracks.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
from nltk.stem import PorterStemmer
from nltk.tokenize import word_tokenize
from scipy import sparse

from repro.config import Profile
from repro.data import raw
from repro.data.files import MissingData, find, missing
from repro.data.raw import BadInput

# Without key, mode and time_signature: distances between their codes mean nothing.
DESCRIPTORS = (
    *("duration_ms", "danceability", "energy", "loudness", "speechiness"),
    *("acousticness", "instrumentalness", "liveness", "valence", "tempo"),
)

# The authors dropped 216 tags by hand; this is our own rule for the same purpose.
_NOT_ABOUT_SOUND = re.compile(
    r"""favou?rite | \bfav(e|es|s)?\b | \b(best|greatest?|awesome|amazing|brilliant|excellent)\b
    | \b(fantastic|perfect|genius|masterpiece|wonderful|gorgeous|overrated|underrated)\b
    | ^(good|nice|cool|bad|crap|shit|sucks?)$ | \bgood\ (music|songs?|stuff|shit)\b
    | ^(i\ )?(love[ds]?|like[ds]?|hate[ds]?)(\ (it|this|at\ first.*|this\ song|songs?\ i.*))?$
    | \bi\ (love|like|own|have|know|want)\b | ^my\b | seen\ live | \bcovers?\b | \bsoundtracks?\b
    | \bost\b | \b(18|19|20)\d\d\b | \b\d{2,4}\ ?'?s\b | ^\d+$ | \bstars?$ | \bplaylist\b
    | \b(check|listen)\b | ^(owned|library|ipod|itunes|misc|other|unknown|all)$ | \balbums?\b""",
    re.VERBOSE,
)
_TREES = {"lastfm": "msd_h5", "subset": "MillionSongSubset"}
_stem = PorterStemmer().stem


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
    vocabulary: np.ndarray
    tag_items: np.ndarray  # the items of the rows; several tracks can be one song
    tag_train: np.ndarray  # bool, rows of `tags`; shares no artist with `tag_test`
    tag_test: np.ndarray
    hotness: np.ndarray  # float32 song_hotttnesss of the rows of `tags`, nan when unknown
    facts: dict[str, int]  # counts at every step of the recipe, in order
    broken: dict[str, str]  # tracks left out because their files cannot be read, and why


def load(profile: Profile, root: Path | str) -> Dataset:
    """Read everything but the content; :mod:`repro.data.splits` chooses who and what is kept.

    MissingData names all absent files, BadInput the one that cannot be read and where it fails.
    """
    if absent := missing(profile, root):
        raise MissingData(absent)
    read = {"lastfm": _load_lastfm, "spotify": _load_spotify}.get(profile.source, _load_msd)
    data = read(profile, Path(root))
    if not len(data.vocabulary):
        raise BadInput(
            f"{root}: no tag that says something of the sound is on {profile.min_songs_per_tag} "
            f"tracks or more, which profile {profile.name} asks for"
        )
    for rows, what in (data.tag_train, "train"), (data.tag_test, "test"):
        if not rows.any():
            raise BadInput(f"{root}: no tagged track is among those to {what} tags with")
    return data


class Bags:
    """The function from a track id to its content, float32, shape (frames, D), in own units.

    D is 12 for timbre, 10 for descriptors. A silent track has no frames, and so has one whose file
    cannot be read: one among a million must not stop a run.
    """

    def __init__(self, read: Callable[[str, str], np.ndarray], dims: int):
        self._read, self._none = read, np.empty((0, dims), np.float32)
        self._next: dict[str, str] = {}

    def expect(self, tracks: Iterable[str]) -> None:
        """Say in which order tracks will be asked for, so that the next is read ahead."""
        self._next = dict(pairwise(tracks))

    def __call__(self, track: str) -> np.ndarray:
        """Return the frames of one track."""
        try:
            return self._read(track, self._next.get(track, "")) if track else self._none
        except BadInput:
            return self._none

    def broken(self, silent: Iterable[str], of: int) -> dict[str, str]:
        """Return which of the tracks that gave no frames cannot be read, and why, read again.

        BadInput says when they are more than 20, and more than a tenth of the ``of`` tracks read.
        """
        found = {}
        for track in silent:
            try:
                self._read(track, "")
            except BadInput as error:
                found[track] = str(error)
        _refuse_many(found, of)
        return found


def _refuse_many(broken: dict[str, str], of: int) -> None:
    if len(broken) > max(20, of / 10):
        raise BadInput(
            f"{len(broken):,} of {of:,} tracks cannot be read; one of them: {min(broken.values())}"
        )


def bags(profile: Profile, root: Path | str) -> Bags:
    """Return :class:`Bags` of tracks, or of artists by their key for ``lastfm``'s descriptors."""
    root = Path(root)
    if profile.content == "timbre":
        tree = root / _TREES.get(profile.source, "msd")
        return Bags(lambda track, ahead: raw.timbre(tree, track, ahead), raw.TIMBRE_DIM)
    key = "artist" if profile.source == "lastfm" else "track_id"
    rows = _descriptors(root, key).partition_by(key, as_dict=True, include_key=False)
    frames = {track: table.to_numpy().astype(np.float32) for (track,), table in rows.items()}
    none = np.empty((0, len(DESCRIPTORS)), np.float32)
    return Bags(lambda track, _: frames.get(track, none), len(DESCRIPTORS))


def check(profile: Profile, root: Path | str, items: int = 200) -> str:
    """Read all but the content, and that of some ``items``; return in writing what was found."""
    data, read = load(profile, root), bags(profile, root)
    tried = data.item_tracks[data.item_tracks != ""]
    tried = tried[:: len(tried) // items + 1]
    broken = read.broken([track for track in tried if not len(read(track))], len(tried))
    found = [f"{count:,} {step}" for step, count in data.facts.items()]
    found.append(f"of {len(tried)} tried, {len(broken)} whose content cannot be read")
    return "\n".join(f"  {line}" for line in [*found, *list(broken.values())[:3]])


# --- Million Song Dataset -----------------------------------------------------------------------


def _load_msd(profile: Profile, root: Path) -> Dataset:
    """Follow the authors' recipe: ISMIR sec. 4.2 for listening, their code for tags."""
    facts, broken = {}, {}
    origin = root / _TREES.get(profile.source, "track_metadata.db")
    songs = _songs(profile, root, facts, broken)
    plays = _plays_of_songs(profile, root, songs, origin, facts)
    # Several tracks can be one song. The paper does not say which one speaks for it: our choice
    # is the smallest id. No song with a bad track is left here.
    first = songs.unique("song_id", keep="first", maintain_order=True)
    items = _left_join(plays[2], first, "song_id")
    facts["songs without a track"] = items["track_id"].null_count()

    tagged = raw.query(
        root / "lastfm_tags.db",
        "SELECT tids.tid AS track, CAST(tags.tag AS TEXT) AS tag, CAST(val AS REAL) AS val"
        " FROM tid_tag"
        " JOIN tids ON tids.ROWID = tid_tag.tid JOIN tags ON tags.ROWID = tid_tag.tag",
        {"track": pl.String, "tag": pl.String, "val": pl.Float64},
    )
    _require_shared(tagged["track"], root / "lastfm_tags.db", songs["track_id"], origin)
    if profile.source == "subset":
        tagged = tagged.filter(pl.col("track").is_in(songs["track_id"].implode()))
    tags = _tags(tagged.drop_nulls(), profile.min_songs_per_tag, facts)
    about = _left_join(tags[1], songs, "track_id")
    if profile.source != "subset":
        # The tracks' own files have it too, but opening every tagged one would take an hour.
        hot = _left_join(tags[1], raw.hotness(root / "msd_summary_file.h5"), "track")["hot"]
        about = about.with_columns(hot=hot)
    artists = [raw.lines(root / f"artists_{part}.txt", empty=False) for part in ("train", "test")]
    if shared := set(artists[0]) & set(artists[1]):
        raise BadInput(f"{root}: {min(shared)} is in artists_train.txt and in artists_test.txt")
    train, test = (about["artist_id"].is_in(a).fill_null(False).to_numpy() for a in artists)
    facts |= {"tagged tracks for training": int(train.sum()), "for testing": int(test.sum())}
    items = items.rename({"artist_id": "artist", "track_id": "track"})
    about = about.select("hot", item="song_id")
    return _dataset(plays, items, tags, about, train, test, facts, broken)


def _songs(profile: Profile, root: Path, facts: dict, broken: dict) -> pl.DataFrame:
    """Return track, song, artist and name of every track, in the order of the track ids."""
    if profile.source != "subset":
        return raw.query(
            root / "track_metadata.db",
            "SELECT track_id, song_id, artist_id, artist_name || ' - ' || title AS name FROM songs",
            dict.fromkeys(("track_id", "song_id", "artist_id", "name"), pl.String),
        ).sort("track_id")
    about = _about_tracks(root / _TREES["subset"], broken)
    facts |= {"tracks read": about.height, "tracks that cannot be read": len(broken)}
    name = pl.col("artist_name") + " - " + pl.col("title")
    return about.filter(pl.col("song_id") != "").with_columns(name=name)


def _plays_of_songs(
    profile: Profile, root: Path, songs: pl.DataFrame, origin: Path, facts: dict
) -> tuple:
    path = find("train_triplets.txt.zip", root).path
    triplets = raw.triplets(path)
    _require_shared(triplets["song"], path, songs["song_id"], origin)
    facts["triplets read"] = triplets.height
    if profile.source == "subset":
        triplets = triplets.filter(_of(songs["song_id"]))
        facts["triplets of songs in the subset"] = triplets.height
    bad = songs.filter(pl.col("track_id").is_in(raw.lines(root / "tracks_bad_audio.txt")))
    triplets = triplets.filter(~_of(bad["song_id"]))
    facts["triplets after bad-audio removal"] = triplets.height
    return _plays(triplets, path, facts)


def _about_tracks(tree: Path, broken: dict) -> pl.DataFrame:
    """Return what each track of a tree says of itself; what cannot be read goes to ``broken``."""
    rows = []
    paths = sorted(tree.glob("?/?/?/[!.]*.h5"), key=lambda path: path.stem)
    for path, ahead in pairwise([*paths, None]):
        try:
            rows.append({"track_id": path.stem} | raw.metadata(path, ahead))
        except BadInput as error:
            broken[path.stem] = str(error)
    _refuse_many(broken, len(paths))
    if not rows:
        why = f" that can be read; one of them: {min(broken.values())}" if broken else ""
        raise BadInput(f"{tree}: expected tracks A/B/C/TRABC....h5, found none{why}")
    return pl.DataFrame(rows)


# --- Last.fm, artist level ----------------------------------------------------------------------


def artist_key(name: str) -> str:
    """Return the form under which an artist's names from different sources meet."""
    name = unicodedata.normalize("NFKD", name.lower())
    name = "".join(c for c in name if not unicodedata.combining(c)).replace("&", "and")
    return re.sub(r"\W", "", re.sub(r"^the\s", "", name))


def _load_lastfm(profile: Profile, root: Path) -> Dataset:
    """Join HetRec's artists to those with content by their normalised names."""
    path = root / "hetrec2011-lastfm-2k.zip"
    names = {"id": pl.Int32, "name": pl.String}
    counts = {"userID": pl.Int32, "artistID": pl.Int32, "weight": pl.UInt32}
    given = dict.fromkeys(("userID", "artistID", "tagID"), pl.Int32)
    artists = raw.table(path, names, "artists.dat").rename({"id": "artistID"})
    artists = artists.with_columns(artist=_keys("name"))
    listening = raw.table(path, counts, "user_artists.dat")
    tagging = raw.table(path, given, "user_taggedartists.dat")
    for name, ids in ("user_artists", listening), ("user_taggedartists", tagging):
        _require_shared(ids["artistID"], f"{path}: {name}.dat", artists["artistID"], "artists.dat")
    facts = {"users read": listening["userID"].n_unique(), "artists read": artists.height}
    facts |= {"user-artist pairs read": listening.height, "tag assignments read": tagging.height}

    broken = {}
    if profile.content == "timbre":
        origin = root / _TREES["lastfm"]
        tracks = _about_tracks(origin, broken)
        facts |= {"tracks read": tracks.height, "tracks that cannot be read": len(broken)}
        content = tracks.select(track="track_id", artist=_keys("artist_name"))
        # One track an artist, the smallest id: bags must not grow with popularity.
        content = content.unique("artist", keep="first", maintain_order=True)
    else:
        origin = root / "Music Info.csv"
        content = _descriptors(root, "artist").select("artist", track="artist").unique()
    _require_shared(artists["artist"], f"{path}: artists.dat", content["artist"], origin)
    linked = artists.filter(pl.col("artist") != "").join(content, on="artist")
    for table in listening, tagging:
        linked = linked.join(table, on="artistID", how="semi")
    listening = listening.join(linked, on="artistID")
    tagging = tagging.join(linked, on="artistID")
    facts["artists with listening, tags and content"] = linked.height
    facts |= {"their users": listening["userID"].n_unique()}
    facts |= {"their user-artist pairs": listening.height, "their tag assignments": tagging.height}

    users = listening["userID"].cast(pl.String)
    plays = _matrix(users, listening["artist"], listening["weight"], path)
    facts |= {"artists after merging homonyms": len(plays[2]), "pairs after merging": plays[0].nnz}
    # of several spellings, the one that is played most
    spelt = listening.group_by("artist", "name").agg(pl.col("weight").sum())
    spelt = spelt.sort("artist", "weight", "name", descending=[False, True, False])
    items = spelt.unique("artist", keep="first", maintain_order=True)
    items = items.join(content, on="artist", maintain_order="left")
    names = raw.table(path, {"tagID": pl.Int32, "tagValue": pl.String}, "tags.dat", "cp1252")
    tagged = tagging.join(names, on="tagID").group_by("track", tag="tagValue").agg(val=pl.len())
    tags = _tags(tagged, profile.min_songs_per_tag, facts)
    train = _tag_train(tags[1], profile.seed)  # a row is an artist
    about = _left_join(tags[1], items, "track").select(item="artist")
    return _dataset(plays, items, tags, about, train, ~train, facts, broken)


# --- tables of tracks with descriptors ----------------------------------------------------------


def _descriptors(root: Path, key: str) -> pl.DataFrame:
    """Return the rows with all descriptors by ``key``: the normalised artist, or the track."""
    columns = {key: pl.String} | dict.fromkeys(DESCRIPTORS, pl.Float64)
    table = raw.table(root / "Music Info.csv", columns)
    table = table.with_columns(artist=_keys(key)) if key == "artist" else table
    finite = pl.all_horizontal(pl.col(name).cast(pl.Float32).is_finite() for name in DESCRIPTORS)
    return table.drop_nulls().filter(finite)


def _load_spotify(profile: Profile, root: Path) -> Dataset:
    """Join play counts of tracks to the tracks' own table; no artist is on both sides of tags."""
    text = dict.fromkeys(("track_id", "name", "artist", "tags"), pl.String)
    tracks = raw.table(root / "Music Info.csv", text).drop_nulls("track_id").sort("track_id")
    facts = {"tracks read": tracks.height}
    tracks = tracks.unique("track_id", keep="first", maintain_order=True)
    complete = _descriptors(root, "track_id")["track_id"]
    tracks = tracks.filter(pl.col("track_id").is_in(complete.implode()))
    facts["tracks with all descriptors"] = tracks.height

    path = root / "User Listening History.csv"
    listening = raw.history(path)
    _require_shared(listening["song"], path, tracks["track_id"], root / "Music Info.csv")
    facts["user-track pairs read"] = listening.height
    listening = listening.filter(_of(tracks["track_id"]))
    facts["pairs of known tracks"] = listening.height
    plays = _plays(listening, path, facts)
    items = _left_join(plays[2], tracks, "track_id").rename({"track_id": "track"})
    items = items.with_columns(name=pl.col("artist") + " - " + pl.col("name"))

    tagged = tracks.select(track="track_id", tag=pl.col("tags").str.split(",")).explode("tag")
    tagged = tagged.with_columns(pl.col("tag").str.strip_chars().str.replace_all("_", " "))
    tagged = tagged.filter(~pl.col("tag").is_in(["", "nan"])).with_columns(val=pl.lit(1.0))
    tags = _tags(tagged, profile.min_songs_per_tag, facts)
    about = _left_join(tags[1], tracks, "track_id").rename({"track_id": "item"})
    train = _tag_train(_strings(about["artist"]), profile.seed)
    return _dataset(plays, items, tags, about, train, ~train, facts, {})


# --- all ----------------------------------------------------------------------------------------


def _dataset(plays, items, tags, about, train, test, facts, broken) -> Dataset:
    """Put together two results of :func:`_matrix` and the rows of their items and tracks."""
    hot = about["hot"] if "hot" in about.columns else pl.repeat(None, about.height, eager=True)
    hot = hot.cast(pl.Float32).fill_null(np.nan).to_numpy()
    names = (_strings(items[column]) for column in ("name", "artist", "track"))
    tag_items = _strings(about["item"])
    return Dataset(*plays, *names, *tags, tag_items, train, test, hot, facts, broken)


def _require_shared(ids: pl.Series, origin, others: pl.Series, other_origin) -> None:
    """Raise BadInput when two files that are joined by their ids have none in common."""
    if not ids.unique().cast(pl.String).is_in(others.cast(pl.String).implode()).any():
        first, other = (
            f"{where} ({column.n_unique():,} ids, the first {column.cast(pl.String).min()!r:.60})"
            for where, column in ((origin, ids), (other_origin, others))
        )
        raise BadInput(f"{first} and {other} have no id in common")


def _of(songs: pl.Series) -> pl.Expr:
    return pl.col("song").is_in(songs.unique().cast(pl.Categorical).implode())


def _plays(listening: pl.DataFrame, origin: Path, facts: dict) -> tuple:
    """Return :func:`_matrix` of users, songs and counts, and note its size."""
    plays = _matrix(listening["user"], listening["song"], listening["count"], origin)
    facts |= {"users": len(plays[1]), "songs": len(plays[2]), "user-song pairs": plays[0].nnz}
    return plays


def _tag_train(artists: np.ndarray, seed: int) -> np.ndarray:
    """Draw four artists of five, and return which rows are theirs."""
    found, number = np.unique(artists, return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(found))
    return order[number] < int(0.8 * len(found))


def sanitise(tag: str) -> str:
    """Return the stem under which spellings of a tag meet (the steps of the authors' code)."""
    stems = " ".join(_stem(word) for word in word_tokenize(tag.lower(), preserve_line=True))
    return re.sub(r"[\W_]", "", re.sub(r"&| n ", "and", stems))


def _tags(tagged: pl.DataFrame, min_tracks: int, facts: dict[str, int]) -> tuple:
    """Turn (track, tag, val) rows into the binary matrix, its tracks and its vocabulary.

    Tags on `min_tracks` tracks or more that say something of the sound are stemmed, equal stems
    merged with their values summed, and a tag is positive where the value is.
    """
    frequent = tagged.group_by("tag").agg(n=pl.col("track").n_unique())
    frequent = frequent.filter(pl.col("n") >= min_tracks)["tag"].to_list()
    plain = {tag: re.sub(r"[-_ ]+", " ", tag.lower()) for tag in frequent}
    stems = {t: sanitise(t) for t in frequent if not _NOT_ABOUT_SOUND.search(plain[t])}
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


def _matrix(rows: pl.Series, columns: pl.Series, values: pl.Series, origin="") -> tuple:
    """Return the matrix and its sorted row and column ids; values of repeated pairs add up."""
    (row_codes, row_ids), (column_codes, column_ids) = _codes(rows), _codes(columns)
    shape = len(row_ids), len(column_ids)
    kind = np.int8 if values.dtype == pl.Int8 else np.int32
    values = values.to_numpy().astype(np.int64)
    matrix = sparse.csr_matrix((values, (row_codes, column_codes)), shape)
    if matrix.nnz and matrix.data.max() > np.iinfo(kind).max:
        pair = matrix.data.argmax()
        row = np.searchsorted(matrix.indptr, pair, side="right") - 1
        raise BadInput(
            f"{origin}: the counts of {row_ids[row]} and {column_ids[matrix.indices[pair]]} "
            f"add up to {matrix.data[pair]:,}, more than {np.iinfo(kind).max:,}"
        )
    return matrix.astype(kind), row_ids, column_ids


def _codes(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the values of `column` among its sorted ids, and the ids."""
    column = column.cast(pl.Categorical)
    ids = pl.DataFrame({"category": column.unique()})
    ids = ids.with_columns(id=pl.col("category").cast(pl.String)).sort("id")
    categories = ids["category"].to_physical().to_numpy()
    position = np.zeros(categories.max(initial=0) + 1, np.int32)
    position[categories] = np.arange(len(categories))
    return position[column.to_physical().to_numpy()], _strings(ids["id"])


def _left_join(ids: np.ndarray, table: pl.DataFrame, key: str) -> pl.DataFrame:
    """Return for each id, in order, its row of `table`, or nulls."""
    return pl.DataFrame({key: ids}).join(table, on=key, how="left", maintain_order="left")


def _strings(column: pl.Series, width: int = 200) -> np.ndarray:
    # numpy gives every string the room of the longest: one endless title would cost gigabytes
    return column.fill_null("").str.slice(0, width).to_numpy().astype(str)


def _keys(column: str) -> pl.Expr:
    return pl.col(column).map_elements(artist_key, return_dtype=pl.String)
