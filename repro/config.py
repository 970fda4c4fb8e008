"""Every setting of the reproduction, its value in each profile, and where the value comes from.

The defaults of :class:`Profile` are the paper's; each other profile is the paper's with the listed
changes. ``ISMIR`` is Liang, Zhan and Ellis, ISMIR 2015; ``code`` is the authors' published code
(content_wmf, deep_tagging, stochastic_PMF); ``ours`` marks what no source states.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]  # of the repository


def _setting(default, source: str):
    return field(default=default, metadata={"source": source})


@dataclass(frozen=True)
class World:
    """Size and nature of the synthetic world that :mod:`repro.data.synthetic` writes."""

    users: int = 8_000
    songs: int = 5_000
    artists: int = 1_200
    styles: int = 24
    tags: int = 140
    frames_per_song: int = 120
    songs_per_user: float = 50.0  # mean of a long-tailed distribution
    keys: int = 4  # sounds of a style: with one a linear map of the sound tells it, else a network
    unplayed: int = 4_000  # songs with sound and tags that nobody plays
    language: float = 0.8  # how far listeners keep to a language, which tags tell and sound cannot
    seed: int = 98765  # the world stays the same whatever the seed of split and start


@dataclass(frozen=True)
class Profile:
    """One named choice of data and settings; the defaults are the paper's."""

    name: str
    source: str  # "world" (synthetic), "msd", "subset", "spotify", "lastfm" or "citeulike"
    label: str  # printed on every figure and table made from this data
    item: str = "song"  # what is recommended: "song", "artist" or "article"
    content: str = "timbre"  # "timbre" (frames), "descriptors" (a vector a track) or "words"
    world: World | None = None
    # Suffixes that --full runs; they decide no number of the profile's own.
    companions: tuple[str, ...] = field(default=(), repr=False)

    seed: int = _setting(98765, "code: song shuffle and factorisation seed")

    # who and what is kept
    min_songs_per_user: int = _setting(20, "ISMIR sec. 4.2, DEN")
    min_users_per_song: int = _setting(50, "ISMIR sec. 4.2, DEN")
    sparse_songs_per_user: int = _setting(20, "ISMIR sec. 4.2, SPR keeps users below this")
    sparse_users_per_song: int = _setting(50, "ISMIR sec. 4.2, SPR keeps songs below this")
    cold_fraction: float = _setting(0.05, "ISMIR sec. 4.2: 5% of the DEN songs are out-of-matrix")
    cold_by_artist: bool = _setting(False, "ISMIR sec. 4.2: songs at random; artists leak")
    test_fraction: float = _setting(0.20, "ISMIR sec. 4.2")
    validation_fraction: float = _setting(0.10, "ISMIR sec. 4.2; code: of what the test leaves")

    # vector quantisation
    codewords: int = _setting(1024, "ISMIR sec. 3.1 (J)")
    codebook_tracks: int = _setting(25_000, "code: 24,000 with and 1,000 without hotttnesss")
    codebook_passes: int = _setting(3, "code")
    frames_per_item: int | None = _setting(None, "code: every frame of a track; None means all")
    nearest_codewords: int = _setting(1, "code: each frame counts for its nearest codeword")
    standardise_frames: bool = _setting(False, "code: raw timbre, no whitening")

    # tags and the tag network
    min_songs_per_tag: int = _setting(1000, "code: last.fm tags used at least 1,000 times")
    test_min_tags: int = _setting(20, "ISMIR sec. 4.1: evaluated tracks have 20 tags or more")
    cold_in_codebook: bool = _setting(True, "code: the codebook's sample ignores the cold set")
    other_people: bool = _setting(False, "ours: of lastfm, half the users listen, half give tags")
    watch_fraction: float = _setting(0.1, "ours: tag-training tracks kept to watch the loss")
    hidden: tuple[int, ...] = _setting((1200, 1200, 1200), "ISMIR sec. 3.1")
    dropout: float = _setting(0.5, "thesis sec. 4.3.1")
    learning_rate: float = _setting(0.01, "code: 0.01 or 0.05, the paper's own is not recorded")
    batch_size: int = _setting(100, "ISMIR sec. 3.1")
    epochs: int = _setting(50, "code")
    exposed_epochs: int = _setting(50, "code: of the network that is taught the cold songs' tags")
    scale_input: bool = _setting(False, "code: histograms as they are")
    tag_trials: int = _setting(1, "ours: settings tried for every tagger; one is its source's own")

    # weighted matrix factorisation
    factors: int = _setting(50, "ISMIR sec. 4.2 (K)")
    alpha: float = _setting(2.0, "ISMIR sec. 4.2")
    eps: float = _setting(1e-6, "ISMIR sec. 4.2")
    sweeps: int = _setting(10, "code; not stated in the paper")
    bias: bool = _setting(True, "code: unpenalised column of ones beside h; not in eq. (3)")
    lambda_theta: float = _setting(10.0, "ISMIR sec. 4.2, DEN; where a search sets out")
    lambda_beta: float = _setting(100.0, "ISMIR sec. 4.2, DEN")
    sparse_lambda_theta: float = _setting(0.01, "ISMIR sec. 4.2, SPR; where a search sets out")
    sparse_lambda_beta: float = _setting(1.0, "ISMIR sec. 4.2, SPR")
    trials: int = _setting(1, "ours: settings tried for every system; one is its source's own")

    # evaluation
    recall_at: tuple[int, ...] = _setting((40, 80, 120, 160, 200), "ISMIR sec. 4.3")
    annotate: int = _setting(20, "ISMIR sec. 4.1: 20 tags a song")
    bootstrap: int = _setting(1000, "ours: resamples of the users")

    def _of(self, names: str) -> dict:
        return {name: getattr(self, name) for name in names.split()}

    @property
    def quantisation(self) -> dict:
        """The settings of :func:`repro.models.vq.histograms`."""
        return self._of("frames_per_item seed") | {"nearest": self.nearest_codewords}

    @property
    def network(self) -> dict:
        """The settings of :func:`repro.models.tagnet.train`."""
        return self._of("hidden dropout learning_rate batch_size epochs scale_input seed")

    @property
    def factorisation(self) -> dict:
        """The settings of :func:`repro.models.wmf.fit` that all models share."""
        return self._of("factors sweeps bias seed")

    def ridges(self, subset: str) -> dict[str, float]:
        """The paper's regularisation for ``"DEN"`` or ``"SPR"``; its lambda_W is lambda_theta."""
        theta, beta = self.lambda_theta, self.lambda_beta
        if subset == "SPR":
            theta, beta = self.sparse_lambda_theta, self.sparse_lambda_beta
        return {"lambda_theta": theta, "lambda_beta": beta, "lambda_w": theta}

    def decisive(self) -> str:
        """Everything that decides the profile's results, in writing."""
        ridges = self.ridges("DEN"), self.ridges("SPR")
        return repr((self, self.quantisation, self.network, self.factorisation, *ridges))

    def table(self) -> list[dict]:
        """Return one row per setting: its value here, the paper's if it has one, and its source."""
        rows = []
        for one in (f for f in fields(self) if "source" in f.metadata):
            here, source = str(getattr(self, one.name)), one.metadata["source"]
            paper = "" if source.startswith("ours") else str(one.default)
            rows.append({"setting": one.name, "here": here, "paper": paper, "source": source})
        return rows


PAPER = Profile("paper", "msd", "Million Song Dataset, Taste Profile, last.fm tags")

_SEEDS = "seed1", "seed2", "seed3", "seed4"
_SMALL = replace(  # what all collections smaller than the paper's have in common
    PAPER,
    cold_fraction=0.10,  # 5% of a few songs would be fewer than Recall@200 ranks
    cold_in_codebook=False,
    min_songs_per_tag=50,
    test_min_tags=5,
    scale_input=True,  # far fewer batches than the paper: see tagnet.train
    tag_trials=3,
    trials=10,
)

DEMO = replace(
    _SMALL,
    name="demo",
    source="world",
    label="synthetic data",
    world=World(),
    companions=_SEEDS,
    codebook_tracks=1_500,
    hidden=(600, 600, 600),  # the paper's 1,200 would take three times as long
    batch_size=25,  # of so few songs; with 100 three layers are not learned to the end
    **dict.fromkeys(("epochs", "exposed_epochs"), 40),  # of 5,000 songs
    tag_trials=2,
    trials=6,
)

SMOKE = replace(
    DEMO,
    name="smoke",
    label="synthetic data, smoke test",
    world=World(500, 400, 60, 6, 28, 30, 20.0, keys=1, unplayed=0),
    companions=("seed1", "lenient"),
    **dict.fromkeys(("min_songs_per_user", "min_users_per_song"), 8),
    **dict.fromkeys(("sparse_songs_per_user", "sparse_users_per_song"), 8),
    cold_fraction=0.20,
    codewords=32,
    codebook_tracks=100,
    min_songs_per_tag=5,
    test_min_tags=2,
    hidden=(64, 64, 64),
    batch_size=100,
    epochs=15,
    exposed_epochs=20,
    learning_rate=0.05,
    trials=1,
    factors=8,
    sweeps=4,
    bootstrap=100,
)

_DESCRIPTORS = replace(  # one vector per track in place of timbre frames
    _SMALL,
    content="descriptors",
    codewords=128,  # by held-out tag loss, and by NDCG of pseudo-cold artists beside 16, 32, 64
    frames_per_item=1,  # the number of an artist's tracks would betray its popularity
    nearest_codewords=16,  # by held-out tag loss among 1, 4, 8, 16, 32
    standardise_frames=True,  # descriptors have units: dB, ms, beats per minute
    epochs=12,  # of 3,000 artists; later ones raise the held-out loss
)

LASTFM = replace(
    _DESCRIPTORS,
    name="lastfm",
    source="lastfm",
    label="HetRec Last.fm-2k, artist level",
    item="artist",
    companions=(*_SEEDS, "lenient", "others", *(f"others+{seed}" for seed in _SEEDS)),
    **dict.fromkeys(("min_songs_per_user", "sparse_users_per_song"), 5),  # of 49 top artists a user
    min_users_per_song=1,
    min_songs_per_tag=20,
)

LASTFM_TIMBRE = replace(
    LASTFM,
    name="lastfm-timbre",
    label="HetRec Last.fm-2k with MSD timbre, artist level",
    content="timbre",
    companions=(),
    min_songs_per_tag=5,
    test_min_tags=3,
    cold_fraction=0.20,
    frames_per_item=None,  # one track per artist, all its frames
    nearest_codewords=1,
    epochs=50,  # of fewer than 200 tracks
    recall_at=(5, 10, 20, 40),  # of some fifty cold artists
    standardise_frames=False,
)

SUBSET = replace(
    _SMALL,
    name="subset",
    source="subset",
    label="Million Song Dataset subset of 10,000 songs",
    **dict.fromkeys(("min_songs_per_user", "sparse_songs_per_user"), 10),  # of 4,000 played
    **dict.fromkeys(("min_users_per_song", "sparse_users_per_song"), 20),
    codebook_tracks=2_000,
)

MSD_SPOTIFY = replace(
    _DESCRIPTORS,
    name="msd-spotify",
    source="spotify",
    label="MSD tracks with Spotify descriptors",
    companions=("seed1", "artists", "lenient"),
)

CITEULIKE = replace(
    _SMALL,
    name="citeulike",
    source="citeulike",
    label="citeulike-t, articles",
    item="article",
    content="words",  # of title and abstract, in place of codewords
    companions=(*_SEEDS, "lenient"),
    **dict.fromkeys(("min_songs_per_user", "sparse_songs_per_user", "sparse_users_per_song"), 5),
    min_users_per_song=3,
    codewords=2_000,  # words, those of most articles
    hidden=(256, 256, 256),  # the paper's 1,200 would take hours over five seeds
    **dict.fromkeys(("epochs", "exposed_epochs"), 20),  # of 16,000 articles
    tag_trials=2,
    trials=4,
)

REAL = LASTFM, LASTFM_TIMBRE, CITEULIKE, SUBSET, MSD_SPOTIFY, PAPER
PROFILES = {profile.name: profile for profile in (DEMO, SMOKE, *REAL)}
VARIANTS = {
    "artists": {"cold_by_artist": True},
    "lenient": {"cold_in_codebook": True},
    "others": {"other_people": True},
}


def named(name: str) -> Profile:
    """Return a profile or a companion of one: ``base[+<variant>][+seed<k>]``."""
    base, *rest = name.split("+")
    if base not in PROFILES:
        raise ValueError(f"unknown profile {name!r}: choose one of {', '.join(PROFILES)}")
    profile = PROFILES[base]
    if rest and rest[0] in VARIANTS:
        profile = replace(profile, **VARIANTS[rest.pop(0)])
    if rest and re.fullmatch("seed[1-9][0-9]*", rest[0]):
        profile = replace(profile, seed=profile.seed + int(rest.pop(0).removeprefix("seed")))
    if rest:
        there = f"+seed1, +seed2, ..., +{', +'.join(VARIANTS)}"
        raise ValueError(f"unknown profile {name!r}: {base} alone or with one of {there}")
    return replace(profile, name=name, companions=()) if "+" in name else profile


def results_root() -> Path:
    """Return the folder of all results: ``$REPRO_RESULTS``, else ``results`` in the repository."""
    return Path(os.environ.get("REPRO_RESULTS") or ROOT / "results").absolute()


def data_root() -> Path:
    """Return the folder of the raw data: ``$REPRO_DATA``, else ``data`` in the repository."""
    return Path(os.environ.get("REPRO_DATA") or ROOT / "data").absolute()
