"""Write a small synthetic world in the Million Song Dataset's own formats.

A song's mixture of styles, close to its artist's, drives its timbre, its tags and its listeners;
its language, which cannot be heard, drives its tags and its listeners. Popularity, length,
production and having tags at all are drawn apart from both, so content tells what a song is like
but not how popular it is. Every number here is ours; those to play with are in ``World``.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sqlite3
from contextlib import closing
from dataclasses import asdict
from pathlib import Path

import h5py
import numpy as np
import polars as pl

from repro.config import World

_BASES = str.split("rock folk techno jazz metal soul house country punk ambient pop blues")
_MOODS = str.split("dark bright slow wild deep raw")
_FIRST = str.split("Silver Crooked Northern Paper Hollow Golden Distant Electric Velvet Broken")
_SECOND = str.split("Foxes Harbour Engines Gardens Satellites Brothers Mirrors Rivers Parade Owls")
_FORMS = "{} revival", "new {}", "{} classics", "minimal {}", "{} crossover"
_LANGUAGES = str.split("english french spanish german")
_ARTIST_TAGS = ["female vocalists", "male vocalists", "british", "american", "swedish", "duo"]
_JUNK_TAGS = ["favorites", "Favourites", "seen live", "awesome", "2000s", "albums I own"]
_SPELLINGS = str, str.title, lambda tag: tag.replace(" ", "-", 1), str.upper

# Means and standard deviations of the twelve coefficients, rounded from genuine tracks.
_CENTRE = np.array([43, 9, 1, 4, -5, -8, -2, -2, 2, 2, 0, 3])
_SCALE = np.array([9, 66, 60, 46, 38, 34, 29, 25, 24, 20, 19, 19]) / 1.5
_SOUNDS = 4  # kinds of frame that a style, or a key, is made of


def write_world(world: World, seed: int, root: Path | str) -> None:
    """Write the world of `world` and `seed` to the folder `root`, unless it is there already.

    The folder appears only when it is complete; the same arguments give the same content. An
    earlier world is replaced; anything else in its place is an error, FileExistsError.
    """
    root = Path(root)
    made_by = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:16]
    recipe = json.dumps({"world": asdict(world), "seed": seed, "made_by": made_by}, indent=1)
    label = root / "world.json"
    if label.exists():
        if label.read_text() == recipe:
            return
    elif root.exists() and any(root.glob("[!.]*")):
        raise FileExistsError(f"{root} is not empty and not a synthetic world; name another folder")

    partial = root.with_name(f"{root.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _write(world, np.random.default_rng(seed), partial)
    (partial / "world.json").write_text(recipe)
    shutil.rmtree(root, ignore_errors=True)
    partial.rename(root)


def _write(world: World, rng: np.random.Generator, root: Path) -> None:
    n_songs = world.songs + world.unplayed
    artist = np.sort(rng.integers(world.artists, size=n_songs))
    style = _near(rng, rng.dirichlet(np.full(world.styles, 0.1), world.artists)[artist], 30)
    language = rng.integers(len(_LANGUAGES), size=n_songs)
    songs, artists = _ids(rng, "SO", n_songs), _ids(rng, "AR", world.artists)
    numbers = np.arange(world.artists)
    names = [f"{_FIRST[a % 10]} {_SECOND[a // 10 % 10]} {a // 100 + 1}" for a in numbers]
    # a few songs have a second track
    of = np.concatenate([np.arange(n_songs), rng.choice(n_songs, n_songs // 33)])
    columns = {
        "track_id": _ids(rng, "TR", len(of)),
        "title": [f"{_styles(world)[style[s].argmax()].title()} No. {s + 1}" for s in of],
        "song_id": songs[of],
        "artist_id": artists[artist[of]],
        "artist_name": np.array(names)[artist[of]],
    }
    hot = np.where(rng.random(len(of)) < 0.1, 0.0, rng.beta(4, 5, len(of)))
    hot = np.where(rng.random(len(of)) < 0.4, np.nan, hot)
    tracks = pl.DataFrame(columns)

    played = rng.permutation(n_songs)[: world.songs]
    _write_triplets(root, world, rng, songs[played], style[played], language[played])
    heard = _near(rng, style[of], 15)  # tags are of what can be heard, and of language and artist
    _write_tags(root, world, rng, tracks["track_id"], heard, language[of], artist[of])
    kinds = ", ".join(f"{name} TEXT" for name in columns).replace(",", " PRIMARY KEY,", 1)
    _write_sqlite(root / "track_metadata.db", {f"songs ({kinds})": tracks.rows()})
    _write_hdf5(root, tracks.with_columns(song_hotttnesss=hot), _timbre(world, rng, heard))

    tested = rng.permutation(world.artists) < round(0.15 * world.artists)
    bad = rng.choice(columns["track_id"], len(of) // 70, replace=False)
    sides = {"artists_train": artists[~tested], "artists_test": artists[tested]}
    for name, ids in {"tracks_bad_audio": bad, **sides}.items():
        (root / f"{name}.txt").write_text("".join(f"{i}\n" for i in ids))


def _styles(world: World) -> list[str]:
    return [f"{_MOODS[k // 12]} {_BASES[k % 12]}" for k in range(world.styles)]


def _ids(rng: np.random.Generator, prefix: str, n: int) -> np.ndarray:
    letters = rng.choice(list("ABCDEFGHIJKLMNOPQRSTUVWXYZ"), (n, 5))
    return np.array([f"{prefix}{''.join(row)}12{i:09X}" for i, row in enumerate(letters)])


def _near(rng: np.random.Generator, mixtures: np.ndarray, concentration: float) -> np.ndarray:
    """Draw from the Dirichlet around each row; a little of everything keeps it proper."""
    drawn = rng.standard_gamma(concentration * mixtures + 0.02)
    return drawn / drawn.sum(axis=1, keepdims=True)


def _race(rng: np.random.Generator, weights, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Draw ``counts[i]`` distinct columns for row i; ``weights(rows)`` are their odds.

    The columns whose exponential clocks, run at the rate of their weight, ring first are a
    weighted sample without replacement.
    """
    rows, columns = [], []
    for block in np.array_split(np.arange(len(counts)), len(counts) // 500 + 1):
        rates = weights(block).astype(np.float32)
        times = rng.standard_exponential(rates.shape, np.float32) / rates
        most = counts[block].max()
        first = np.argpartition(times, most, axis=1)[:, :most]
        first = np.take_along_axis(first, np.take_along_axis(times, first, 1).argsort(1), 1)
        taken = np.arange(most) < counts[block, None]
        rows.append(block[taken.nonzero()[0]])
        columns.append(first[taken])
    return np.concatenate(rows), np.concatenate(columns)


def _write_triplets(root: Path, world: World, rng, songs, style, language) -> None:
    """Listening: popular songs of the user's few styles, most of them in the user's language."""
    taste = rng.dirichlet(np.full(world.styles, 0.1), world.users)
    speaks = rng.integers(len(_LANGUAGES), size=world.users)
    popularity = rng.lognormal(0, 0.9, len(songs))
    active = world.songs_per_user * rng.lognormal(-0.32, 0.8, world.users)  # of mean 1
    active = np.clip(active.round().astype(int), 5, len(songs) // 4)

    def odds(u):
        foreign = speaks[u][:, None] != language
        return (taste[u] @ style.T + 0.03) ** 2 * popularity * (1 - world.language * foreign)

    user, song = _race(rng, odds, active)
    users = np.array([rng.bytes(20).hex() for _ in range(world.users)])
    plays = pl.DataFrame([users[user], songs[song], rng.geometric(0.35, len(user))])
    plays.write_csv(root / "train_triplets.txt", separator="\t", include_header=False)


def _write_tags(root: Path, world: World, rng, tracks: pl.Series, heard, language, artist) -> None:
    """last.fm tags: few, incomplete, some wrong, spelt as people please."""
    styles = _styles(world)
    named = [*styles, *_BASES[: world.styles], *_MOODS[: -(-world.styles // 12)]]
    named += [form.format(name) for form in _FORMS for name in styles]
    named = named[: world.tags - len(_ARTIST_TAGS) - len(_LANGUAGES)]
    says = np.array([[name in tag or tag in name.split() for tag in named] for name in styles])
    worn = rng.random((world.artists, len(_ARTIST_TAGS))) < 0.25
    by_artist = np.hstack([worn, np.full((world.artists, len(_JUNK_TAGS)), 0.05)])
    liking = rng.lognormal(0, 0.7, len(named) + by_artist.shape[1])

    def odds(t):
        others = np.hstack([heard[t] ** 2 @ says, by_artist[artist[t]]]) * liking
        return np.hstack([others, 2 * np.eye(len(_LANGUAGES))[language[t]]]) + 0.001

    n_tags = (rng.random(len(tracks)) < 0.75) * rng.negative_binomial(3, 0.32, len(tracks))
    track, tag = _race(rng, odds, np.minimum(n_tags, world.tags))
    names = [*named, *_ARTIST_TAGS, *_JUNK_TAGS, *_LANGUAGES]
    spelt = np.array([[spell(name) for spell in _SPELLINGS] for name in names])
    spelling = rng.choice(len(_SPELLINGS), len(tag), p=(0.7, 0.1, 0.15, 0.05))
    raw, raw_tag = np.unique(spelt[tag, spelling], return_inverse=True)
    value = rng.integers(0, 101, len(tag))  # a few zeros, as in the genuine file
    rows = np.column_stack([track + 1, raw_tag + 1, value]).tolist()
    tables = {"tids (tid TEXT)": [(t,) for t in tracks], "tags (tag TEXT)": [(t,) for t in raw]}
    _write_sqlite(root / "lastfm_tags.db", tables | {"tid_tag (tid INT, tag INT, val FLOAT)": rows})


def _write_sqlite(path: Path, tables: dict[str, list[tuple]]) -> None:
    # in memory, so without locks; a transaction of sqlite3's making depends on the locale
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as database:
        database.execute("BEGIN")
        for table, rows in tables.items():
            database.execute(f"CREATE TABLE {table}")
            places = ", ".join("?" * len(rows[0]))
            into = f"INSERT INTO {table.split()[0]} VALUES ({places})"  # noqa: S608 - ours alone
            database.executemany(into, rows)
        database.execute("COMMIT")
        path.write_bytes(database.serialize())


def _timbre(world: World, rng: np.random.Generator, heard: np.ndarray) -> list[np.ndarray]:
    """Timbre: half the frames sound the track's key, half its styles in that key.

    In key k a style sounds as the style k places before it does in key 0: each sound stands for as
    many styles as there are keys, and a linear map, which adds up what single frames say, cannot
    tell which. A production unrelated to all this shifts the frames of a track.
    """
    key = rng.integers(world.keys, size=len(heard))
    place = (np.arange(world.styles) + key[:, None]) % world.styles
    share = np.hstack([np.take_along_axis(heard, place, axis=1), np.eye(world.keys)[key]])
    sounds = rng.normal(0, 0.9, (share.shape[1], _SOUNDS, 12))
    usual = rng.dirichlet(np.ones(_SOUNDS), share.shape[1])
    mixture = (share[:, :, None] * usual).reshape(len(heard), -1)
    production = rng.normal(size=(len(heard), 3)) @ rng.normal(0, 0.3, (3, 12))

    length = rng.lognormal(np.log(world.frames_per_song), 0.25, len(heard)).astype(int)
    length[rng.choice(len(heard), len(heard) // 300 + 1, replace=False)] = 0  # as some genuine ones
    track = np.repeat(np.arange(len(heard)), length)
    reached = mixture.cumsum(axis=1)[:, :-1] / mixture.sum(axis=1, keepdims=True)
    frames = np.empty((len(track), 12))
    for block in np.array_split(np.arange(len(track)), len(track) // 50_000 + 1):
        sound = (rng.random((len(block), 1)) > reached[track[block]]).sum(axis=1)
        frames[block] = sounds.reshape(-1, 12)[sound] + production[track[block]]
    frames = (_CENTRE + _SCALE * (frames + rng.normal(0, 0.6, frames.shape))).round(3)
    frames[:, 0] = frames[:, 0].clip(0, 60)  # loudness
    return np.split(frames, length.cumsum()[:-1])


def _write_hdf5(root: Path, tracks: pl.DataFrame, timbre: list[np.ndarray]) -> None:
    metadata = [(c, "f8" if c == "song_hotttnesss" else "S64") for c in tracks.columns[1:]]
    songs = np.array([row[1:] for row in tracks.rows()], metadata)
    analysis = np.array([(t,) for t in tracks["track_id"]], [("track_id", "S32")])
    with h5py.File(root / "msd_summary_file.h5", "w", locking=False) as file:
        file["metadata/songs"], file["analysis/songs"] = songs, analysis
    for i, (track, frames) in enumerate(zip(tracks["track_id"], timbre, strict=True)):
        folder = root.joinpath("msd", *track[2:5])
        folder.mkdir(parents=True, exist_ok=True)
        with h5py.File(folder / f"{track}.h5", "w", locking=False) as file:
            file["metadata/songs"], file["analysis/songs"] = songs[i : i + 1], analysis[i : i + 1]
            file["analysis/segments_timbre"] = frames
