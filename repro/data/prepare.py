"""Turn listening, content and tags, from whatever source, into one shape.

The files are those of :mod:`repro.data.files`, read by :mod:`repro.data.raw`. A source is

- ``msd``, ``world``, synthetic in its formats, and ``subset``, the MSD's of 10,000 songs: Taste
  Profile triplets, MSD tracks with timbre, last.fm tags;
- ``spotify``: play counts, tags and descriptors of MSD tracks, one table each;
- ``lastfm``: HetRec's listening to and tags of artists, with descriptors of their tracks, or with
  MSD tracks;
- ``citeulike``: articles in users' libraries, with their words and tags.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
from nltk.stem import PorterStemmer
from nltk.tokenize import word_tokenize
from scipy import sparse

from repro.config import Profile
from repro.data import raw
from repro.data.files import MissingData, described, find, missing
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
    """Read everything but the content; :mod:`repro.data.subsets` chooses who and what is kept.

    MissingData names all absent files, BadInput the one that cannot be read and where it fails.
    """
    if absent := missing(profile, root):
        raise MissingData("\n".join(map(described, absent)))
    others = {"lastfm": _load_lastfm, "spotify": _load_spotify, "citeulike": _load_citeulike}
    facts, broken = {}, {}
    read = others.get(profile.source, _load_msd)
    (plays, users, ids), tracks, tagged, sides = read(profile, Path(root), facts, broken)
    # Several tracks can be one song. Which speaks for it the paper leaves open: our smallest id.
    items = tracks.unique("item", keep="first", maintain_order=True)
    items = pl.DataFrame({"item": ids}).join(items, on="item", how="left", maintain_order="left")
    if items["track"].null_count() == len(ids):
        raise BadInput(f"{root}: listening and content have no {profile.item} in common")
    facts |= {"users": len(users), f"{profile.item}s": len(ids)}
    facts[f"user-{profile.item} pairs"] = plays.nnz
    facts[f"{profile.item}s without a track"] = items["track"].null_count()

    tags, tag_tracks, vocabulary = _tags(tagged, profile.min_songs_per_tag, facts)
    about = pl.DataFrame({"track": tag_tracks})
    about = about.join(tracks, on="track", how="left", maintain_order="left")
    artists = _strings(about["artist"])
    if not sides:  # four artists of five for training, none on both sides
        every = np.unique(artists)
        train = np.random.default_rng(profile.seed).permutation(len(every)) < int(0.8 * len(every))
        sides = every[train], every[~train]
    sides = [np.isin(artists, side) for side in sides]
    for rows, what in zip(sides, ("train", "test"), strict=True):
        if not rows.any():
            raise BadInput(f"{root}: no track with a frequent tag is among those to {what} with")
        facts[f"tagged tracks for {what}ing"] = int(rows.sum())
    names = (_strings(items[column]) for column in ("name", "artist", "track"))
    tag_items, hot = _strings(about["item"]), about["hot"].cast(pl.Float32).fill_null(np.nan)
    tagging = tags, tag_tracks, vocabulary, tag_items, *sides, hot.to_numpy()
    return Dataset(plays, users, ids, *names, *tagging, facts, broken)


class Bags:
    """The function from a track id to its content, float32, shape (frames, D), in own units.

    D is 12 for timbre, 10 for descriptors, 1 for words. There are no frames of a silent track, nor
    of one whose file cannot be read: one among a million must not stop a run.
    """

    def __init__(self, read: Callable[[str], np.ndarray | None], dims: int):
        self._read, self._none = read, np.empty((0, dims), np.float32)

    def __call__(self, track: str) -> np.ndarray:
        """Return the frames of one track."""
        with suppress(BadInput):
            if track and (found := self._read(track)) is not None:
                return found
        return self._none

    def broken(self, silent: Iterable[str], of: int) -> dict[str, str]:
        """Return which of the tracks that gave no frames cannot be read, and why, read again.

        BadInput says when they are more than 20, and more than a tenth of the ``of`` tracks read.
        """
        return _tried(self._read, silent, of)[1]


def _tried(read: Callable, tracks: Iterable, of: int) -> tuple[dict, dict[str, str]]:
    """Return what is read of each track, and for the others why not."""
    found, broken = {}, {}
    for track in tracks:
        try:
            found[track] = read(track)
        except BadInput as error:
            broken[track] = str(error)
    if len(broken) > max(20, of / 10):
        one = min(broken.values())
        raise BadInput(f"{len(broken):,} of {of:,} tracks cannot be read; one of them: {one}")
    return found, broken


def bags(profile: Profile, root: Path | str) -> Bags:
    """Return :class:`Bags` of tracks, or of artists by their key for ``lastfm``'s descriptors."""
    root = Path(root)
    if profile.content == "timbre":
        tree = root / _TREES.get(profile.source, "msd")
        return Bags(partial(raw.timbre, tree), raw.TIMBRE_DIM)
    if profile.content == "words":  # a word is a frame of one number
        counts, _ = words_of(root)
        bag = [np.repeat(row.indices, row.data)[:, None].astype(np.float32) for row in counts]
        return Bags(lambda track: bag[int(track)], 1)
    table = _descriptors(root, "artist" if profile.source == "lastfm" else "track_id")
    table = table.select("track", *DESCRIPTORS)
    rows = table.partition_by("track", as_dict=True, include_key=False)
    frames = {track: table.to_numpy().astype(np.float32) for (track,), table in rows.items()}
    return Bags(frames.get, len(DESCRIPTORS))


# Each function notes facts and broken tracks, and returns the result of :func:`_matrix` for plays;
# rows (track, item, artist, name, hot), the one that speaks for an item first; rows (track, tag,
# val); the artists whose tags are for training and for testing, or None.


def _load_msd(profile: Profile, root: Path, facts: dict, broken: dict) -> tuple:
    """Follow the authors' recipe: ISMIR sec. 4.2 for listening, their code for tags."""
    if profile.source == "subset":
        songs = _about_tracks(root / _TREES["subset"], facts, broken).filter(pl.col("item") != "")
    else:
        songs = raw.query(
            root / "track_metadata.db",
            "SELECT track_id AS track, song_id AS item, artist_id AS artist,"
            " artist_name || ' - ' || title AS name FROM songs",
            dict.fromkeys(("track", "item", "artist", "name"), pl.String),
        ).sort("track")
        # The tracks' own files have it too, but opening every tagged one would take an hour.
        hot = raw.hotness(root / "msd_summary_file.h5")
        songs = songs.join(hot, on="track", how="left", maintain_order="left")

    path = find("train_triplets.txt.zip", root).path
    triplets = raw.triplets(path)
    facts["triplets read"] = triplets.height
    if profile.source == "subset":
        triplets = triplets.filter(_of(songs["item"]))
        facts["triplets of songs in the subset"] = triplets.height
    bad = songs.filter(pl.col("track").is_in(raw.lines(root / "tracks_bad_audio.txt")))
    triplets = triplets.filter(~_of(bad["item"]))
    facts["triplets after bad-audio removal"] = triplets.height
    plays = _matrix(triplets, path)
    del triplets  # half a gigabyte, before the tags need more

    tagged = raw.query(
        root / "lastfm_tags.db",
        "SELECT tids.tid AS track, CAST(tags.tag AS TEXT) AS tag, CAST(val AS REAL) AS val"
        " FROM tid_tag JOIN tids ON tids.ROWID = tid_tag.tid JOIN tags ON tags.ROWID = tid_tag.tag",
        {"track": pl.String, "tag": pl.String, "val": pl.Float64},
    )
    sides = [raw.lines(root / f"artists_{part}.txt") for part in ("train", "test")]
    if shared := set(sides[0]) & set(sides[1]):
        raise BadInput(f"{root}: {min(shared)} is in artists_train.txt and in artists_test.txt")
    return plays, songs, tagged.drop_nulls().join(songs, on="track", how="semi"), sides


def _about_tracks(tree: Path, facts: dict, broken: dict) -> pl.DataFrame:
    """Return what each track of a tree says of itself, sorted by the tracks' ids."""
    tracks = sorted(path.stem for path in tree.glob("?/?/?/[!.]*.h5"))
    found, unread = _tried(lambda t: raw.metadata(raw.place(tree, t)), tracks, len(tracks))
    broken |= unread
    if not found:
        raise BadInput(f"{tree}: expected tracks A/B/C/TRABC....h5, found none that can be read")
    facts |= {"tracks read": len(found), "tracks that cannot be read": len(broken)}
    about = pl.DataFrame([{"track": track} | about for track, about in found.items()])
    about = about.rename({"song_id": "item", "artist_id": "artist"})
    return about.with_columns(name=pl.col("artist_name") + " - " + pl.col("title"))


def artist_key(name: str) -> str:
    """Return the form under which an artist's names from different sources meet."""
    name = unicodedata.normalize("NFKD", name.lower())
    name = "".join(c for c in name if not unicodedata.combining(c)).replace("&", "and")
    return re.sub(r"\W", "", re.sub(r"^the\s", "", name))


def _load_lastfm(profile: Profile, root: Path, facts: dict, broken: dict) -> tuple:
    """Join HetRec's artists to those with content by their normalised names."""
    path = root / "hetrec2011-lastfm-2k.zip"
    counts = {"userID": pl.Int32, "artistID": pl.Int32, "weight": pl.UInt32}
    given = dict.fromkeys(("userID", "artistID", "tagID"), pl.Int32)
    artists = raw.table(path, {"id": pl.Int32, "name": pl.String}, "artists.dat")
    artists = artists.select("name", artistID="id", item=_keys("name"))
    listening = raw.table(path, counts, "user_artists.dat")
    tagging = raw.table(path, given, "user_taggedartists.dat")
    facts |= {"users read": listening["userID"].n_unique(), "artists read": artists.height}
    facts |= {"user-artist pairs read": listening.height, "tag assignments read": tagging.height}

    people = tagging.group_by("tagID").agg(people=pl.col("userID").n_unique())
    if profile.other_people:
        listening = listening.filter(pl.col("userID") % 2 == 0)
        tagging = tagging.filter(pl.col("userID") % 2 == 1)
    if profile.content == "timbre":
        content = _about_tracks(root / _TREES["lastfm"], facts, broken)
        content = content.select("track", item=_keys("artist_name"))
        # One track an artist, the smallest id: bags must not grow with popularity.
        content = content.unique("item", keep="first", maintain_order=True)
    else:
        content = _descriptors(root, "artist").select("track", item="track").unique()
    linked = artists.filter(pl.col("item") != "").join(content, on="item")
    for table in listening, tagging:
        linked = linked.join(table, on="artistID", how="semi")
    listening = listening.join(linked, on="artistID")
    tagging = tagging.join(linked, on="artistID")
    facts["names of artists with listening, tags and content"] = linked.height
    facts["their tag assignments"] = tagging.height
    # A tag of fewer than five people is a private note.
    tagging = tagging.join(people.filter(pl.col("people") >= 5), on="tagID", how="semi")
    facts["those with tags that five people use"] = tagging.height

    plays = _matrix(listening.select(pl.col("userID").cast(pl.String), "item", "weight"), path)
    # of several spellings, the one that is played most
    spelt = listening.group_by("item", "track", "name").agg(pl.col("weight").sum())
    spelt = spelt.sort("item", "weight", "name", descending=[False, True, False])
    tracks = spelt.unique("item", keep="first", maintain_order=True)
    tracks = tracks.with_columns(artist="item", hot=None)
    names = raw.table(path, {"tagID": pl.Int32, "tagValue": pl.String}, "tags.dat", "cp1252")
    tagged = tagging.join(names, on="tagID").group_by("track", tag="tagValue").agg(val=pl.len())
    return plays, tracks, tagged, None


def _descriptors(root: Path, key: str, *others: str) -> pl.DataFrame:
    """Return the rows with all descriptors; ``track`` is the track's id, or the artist's key."""
    columns = dict.fromkeys((key, *others), pl.String) | dict.fromkeys(DESCRIPTORS, pl.Float64)
    table = raw.table(root / "Music Info.csv", columns).drop_nulls([key, *DESCRIPTORS])
    finite = pl.all_horizontal(pl.col(name).cast(pl.Float32).is_finite() for name in DESCRIPTORS)
    track = _keys(key) if key == "artist" else pl.col(key)
    return table.filter(finite).with_columns(track=track)


def _load_spotify(profile: Profile, root: Path, facts: dict, broken: dict) -> tuple:
    """Join play counts of tracks to the tracks' own table."""
    tracks = _descriptors(root, "track_id", "name", "artist", "tags").sort("track")
    tracks = tracks.unique("track", keep="first", maintain_order=True)
    facts["tracks with all descriptors"] = tracks.height
    name = pl.col("artist") + " - " + pl.col("name")
    tracks = tracks.with_columns(item="track", name=name, hot=None)

    path = root / "User Listening History.csv"
    listening = raw.history(path)
    facts["user-track pairs read"] = listening.height
    listening = listening.filter(_of(tracks["track"]))
    facts["pairs of known tracks"] = listening.height

    tagged = tracks.select("track", tag=pl.col("tags").str.split(",")).explode("tag")
    tagged = tagged.with_columns(pl.col("tag").str.strip_chars().str.replace_all("_", " "))
    tagged = tagged.filter(~pl.col("tag").is_in(["", "nan"])).with_columns(val=pl.lit(1.0))
    return _matrix(listening, path), tracks, tagged, None


def _load_citeulike(profile: Profile, root: Path, facts: dict, broken: dict) -> tuple:
    """Join articles, words and tags by their numbers; each article stands for its own artist."""
    counts, words = words_of(root)
    n = counts.shape[0]
    saved, given = (raw.listed(root / f"{name}.dat", n) for name in ("users", "tag-item"))
    tags = pl.Series(raw.lines(root / "tags.dat"), dtype=pl.String)
    if len(tags) <= given["line"].max():
        raise BadInput(f"{root / 'tag-item.dat'}: more lines than tags.dat has tags")
    facts |= {"articles read": n, "article-tag pairs read": given.height}
    # an article's name for people: its number and the three words that it uses most
    most = [row.indices[np.argsort(-row.data, kind="stable")[:3]] for row in counts]
    told = [f"{i} ({', '.join(words[some])})" for i, some in enumerate(most)]
    articles = pl.DataFrame({"item": _article(pl.int_range(n, eager=True)), "name": told})
    articles = articles.with_columns(track="item", artist="item", hot=None)
    plays = saved.select(user=_article(pl.col("line")), item=_article(pl.col("id")), n="count")
    tag = tags.gather(given["line"])
    tagged = given.select(tag=tag, track=_article(pl.col("id")), val=pl.lit(1.0))
    return _matrix(plays, root / "users.dat"), articles, tagged, None


def _article(number):
    return number.cast(pl.String).str.zfill(6)


def words_of(root: Path | str) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return how often each article has each word (csr_matrix, by their numbers), and the words."""
    words = np.array(raw.lines(Path(root) / "vocabulary.dat"))
    read = raw.listed(Path(root) / "mult.dat", len(words), counted=True)
    places = read["line"].to_numpy(), read["id"].to_numpy()
    shape = places[0].max() + 1, len(words)
    return sparse.csr_matrix((read["count"].to_numpy().astype(np.int32), places), shape), words


def frequent_words(
    root: Path | str, tracks: np.ndarray, seen: np.ndarray, n: int
) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Return the counts (tracks x n) of the n words that most of the ``seen`` have, and the words.

    ``tracks`` are ids of articles; ``seen`` (bool) marks those that may choose the words.
    """
    counts, words = words_of(root)
    counts = counts[tracks.astype(int)]
    kept = np.sort(np.argsort(-counts[seen].getnnz(axis=0), kind="stable")[:n])
    return counts[:, kept], words[kept]


# --- all ----------------------------------------------------------------------------------------


def _of(songs: pl.Series) -> pl.Expr:
    return pl.col("song").is_in(songs.unique().cast(pl.Categorical).implode())


def sanitise(tag: str) -> str:
    """Return the stem under which spellings of a tag meet (the steps of the authors' code)."""
    stems = " ".join(_stem(word) for word in word_tokenize(tag.lower(), preserve_line=True))
    return re.sub(r"[\W_]", "", re.sub(r"&| n ", "and", stems))


def _tags(tagged: pl.DataFrame, min_tracks: int, facts: dict[str, int]) -> tuple:
    """Turn (track, tag, val) rows into the binary matrix, its tracks and its vocabulary.

    Tags on `min_tracks` tracks or more that say something of the sound are stemmed; the values of
    equal stems add up, and a tag is positive where the sum is.
    """
    frequent = tagged.group_by("tag").agg(n=pl.col("track").n_unique())
    frequent = frequent.filter(pl.col("n") >= min_tracks)["tag"].to_list()
    plain = {tag: re.sub(r"[-_ ]+", " ", tag.lower()) for tag in frequent}
    stems = {t: sanitise(t) for t in frequent if not _NOT_ABOUT_SOUND.search(plain[t])}
    stem = pl.col("tag").replace_strict(stems, default="", return_dtype=pl.String)
    merged = tagged.with_columns(stem=stem).filter(pl.col("stem") != "")
    merged = merged.group_by("track", "stem").agg(pl.col("val").sum()).filter(pl.col("val") > 0)
    matrix, tracks, vocabulary = _matrix(merged.select("track", "stem", pl.lit(1)))
    facts |= {"tags read": tagged["tag"].n_unique(), "tags that are frequent": len(frequent)}
    facts |= {"tags about the sound": len(stems), "tags after merging stems": len(vocabulary)}
    facts["tracks with a tag read"] = tagged["track"].n_unique()
    facts["tracks with a tag left"] = len(tracks)
    return matrix.astype(np.int8), tracks, vocabulary


def _matrix(table: pl.DataFrame, origin: Path | str = "") -> tuple:
    """Turn (row, column, count) into an int32 matrix, its sorted row ids and its column ids.

    Counts of repeated pairs add up; BadInput when a sum is beyond 32 bits.
    """
    (rows, row_ids), (columns, column_ids) = map(_codes, table.get_columns()[:2])
    counts = table.to_series(2).to_numpy().astype(np.int64)
    matrix = sparse.csr_matrix((counts, (rows, columns)), (len(row_ids), len(column_ids)))
    if (most := matrix.data.max(initial=0)) > np.iinfo(np.int32).max:
        raise BadInput(f"{origin}: the counts of a pair add up to {most:,}, more than 32 bits hold")
    return matrix.astype(np.int32), row_ids, column_ids


def _codes(column: pl.Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of the values of `column` among its sorted ids, and the ids."""
    column = column.cast(pl.Categorical)
    ids = column.unique()
    ids = ids.gather(ids.cast(pl.String).arg_sort())
    position = np.zeros((column.to_physical().max() or 0) + 1, np.int32)
    position[ids.to_physical()] = np.arange(len(ids))
    return position[column.to_physical()], _strings(ids.cast(pl.String))


def _strings(column: pl.Series, width: int = 200) -> np.ndarray:
    # numpy gives every string the room of the longest: one endless title would cost gigabytes
    return column.fill_null("").str.slice(0, width).to_numpy().astype(str)


def _keys(column: str) -> pl.Expr:
    return pl.col(column).map_elements(artist_key, return_dtype=pl.String)
