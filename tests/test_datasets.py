"""The readers on a folder small enough to work out by hand, on broken files, on genuine samples."""

import gzip
import zipfile
from dataclasses import replace

import h5py
import numpy as np
import pytest
from folders import SAMPLES, TRIPLETS, genuine, write_msd, write_spotify, write_subset, write_track

from repro import config
from repro.data import files, prepare, raw

PROFILE = replace(config.PAPER, min_songs_per_tag=2)


@pytest.fixture
def folder(tmp_path):
    return write_msd(tmp_path)


def test_plays_follow_the_recipe(folder):
    data = prepare.load(PROFILE, folder)
    plays = {
        (data.user_ids[u], data.item_ids[i]): n
        for u, i, n in zip(*data.plays.nonzero(), data.plays.data, strict=True)
    }
    # SOBAD goes although one of its tracks is fine; a repeated pair adds up
    assert plays == {("u1", "SOA"): 6, ("u1", "SOB"): 2, ("u2", "SOB"): 3, ("u3", "SOLOST"): 4}
    assert data.plays.dtype == np.int32
    assert list(data.item_ids) == ["SOA", "SOB", "SOLOST"]
    assert list(data.item_names) == ["Ann - First take", "Bob - Bee", ""]
    assert list(data.item_artists) == ["AR1", "AR2", ""]
    assert list(data.item_tracks) == ["TRAAB01", "TRAAB03", ""]
    assert data.facts["triplets read"] == 6
    assert data.facts["triplets after bad-audio removal"] == 5
    assert data.facts["songs without a track"] == 1


def test_tags_follow_the_recipe(folder):
    data = prepare.load(PROFILE, folder)
    # "seen live" says nothing of the sound, "polka" is rare, a summed value of 0 is no tag
    assert list(data.vocabulary) == ["altcountri", "randb"]
    assert list(data.tag_tracks) == ["TRAAB01", "TRAAB03", "TRAAB06"]
    assert data.tags.toarray().tolist() == [[1, 0], [0, 1], [1, 1]]
    assert list(data.tag_train) == [True, True, False]
    assert list(data.tag_test) == [False, False, True]
    assert np.array_equal(data.hotness, np.float32([np.nan, np.nan, 0.5]), equal_nan=True)


def test_the_subset_is_what_its_tracks_say(tmp_path):
    profile = replace(config.SUBSET, min_songs_per_tag=2)
    data = prepare.load(profile, write_subset(tmp_path))
    whole = prepare.load(PROFILE, tmp_path)
    assert list(data.item_ids) == ["SOA", "SOB"]  # SOLOST has no track there; SOBAD is bad
    assert (data.plays != whole.plays[:2, :2]).nnz == 0
    assert list(data.item_names) == list(whole.item_names[:2])
    assert list(data.tag_tracks) == ["TRAAB01", "TRAAB03", "TRAAB06"]
    assert prepare.bags(profile, tmp_path)("TRAAB01").shape == (3, 12)
    assert data.facts["triplets of songs in the subset"] == 5 and data.facts["tracks read"] == 5


def test_tables_of_tracks(tmp_path):
    profile = replace(config.MSD_SPOTIFY, min_songs_per_tag=2)
    data = prepare.load(profile, write_spotify(tmp_path))
    assert list(data.item_ids) == list(data.item_tracks) == ["TR0", "TR1", "TR2", "TR3"]
    assert data.plays.toarray().tolist() == [[1, 2, 0, 0], [3, 0, 1, 4]]
    assert list(data.item_names)[:2] == ["ann - Song 0", "ann - Song 1"]
    assert list(data.vocabulary) == ["jazz", "rock"]
    assert data.tags.toarray().tolist() == [[1, 1], [0, 1], [1, 0], [0, 1]]
    assert list(data.tag_tracks) == ["TR0", "TR1", "TR2", "TR4"]
    artists = dict(TR0="ann", TR1="ann", TR2="bob", TR4="bob")
    taught = {artists[track] for track in data.tag_tracks[data.tag_train]}
    assert not taught & {artists[track] for track in data.tag_tracks[data.tag_test]}
    bag = prepare.bags(profile, tmp_path)
    assert bag("TR3").shape == (1, 10) and bag("TR9").shape == (0, 10)


def test_bags_are_the_frames_and_may_be_empty(folder):
    bag = prepare.bags(PROFILE, folder)
    assert np.array_equal(bag("TRAAB01"), np.arange(24).reshape(2, 12))
    assert bag("TRAAB01").dtype == np.float32
    assert bag("TRAAB03").shape == bag("").shape == (0, 12)


@pytest.mark.parametrize(("broken", "of"), [(20, 20), (21, 210), (21, 209)])
def test_many_broken_tracks_stop_the_run(folder, broken, of):
    bag = prepare.bags(PROFILE, folder)
    tracks = [f"TRNONE{number}" for number in range(broken)]
    if (broken, of) == (21, 209):
        with pytest.raises(prepare.BadInput, match=r"21 of 209 tracks cannot be read; one.*h5"):
            bag.broken(tracks, of)
    else:  # TRAAB03 is silent, and whole
        assert list(bag.broken([*tracks, "TRAAB03"], of)) == tracks


def test_triplets_are_read_from_the_zip_as_shipped(folder):
    text = folder / "train_triplets.txt"
    with zipfile.ZipFile(folder / "train_triplets.txt.zip", "w") as archive:
        archive.write(text, text.name)
    before = prepare.load(PROFILE, folder)
    text.unlink()
    after = prepare.load(PROFILE, folder)
    assert (before.plays != after.plays).nnz == 0
    assert list(before.item_ids) == list(after.item_ids)


@pytest.mark.parametrize("profile", config.PROFILES.values())
def test_missing_files_are_all_named_with_their_origin(tmp_path, profile):
    missing = files.missing(profile, tmp_path)
    assert missing == files.required(profile, tmp_path)
    with pytest.raises(files.MissingData) as caught:
        prepare.load(profile, tmp_path)
    for source in missing:
        for said in (source.path.name, source.origin, source.size, source.licence, str(tmp_path)):
            assert said in str(caught.value)


def test_the_digest_follows_content_and_not_dates(folder):
    seen = [files.data_digest(PROFILE, folder)]
    (folder / "train_triplets.txt").touch()
    assert files.data_digest(PROFILE, folder) == seen[0]
    (folder / "train_triplets.txt").write_text(TRIPLETS.replace("\t9", "\t8"))
    seen.append(files.data_digest(PROFILE, folder))
    for track, frames in (("TRAAB01", 2), ("TRABC09", 2), ("TRABC09", 900)):
        write_track(folder / "msd", track, np.ones((frames, 12)))
        seen.append(files.data_digest(PROFILE, folder))
    assert len(set(seen)) == 5


@pytest.mark.parametrize(
    ("spellings", "stem"),
    [
        (["Hip-Hop", "hip hop", "HIPHOP"], "hiphop"),
        (["Rock & Roll", "rock n roll", "Rock and Roll"], "rockandroll"),
        (["Female Vocalists", "female vocalist"], "femalvocalist"),
    ],
)
def test_spellings_meet_in_a_stem(spellings, stem):
    assert {prepare.sanitise(spelling) for spelling in spellings} == {stem}


def test_artist_names_meet_in_a_key():
    names = ["The Beatles", "Sigur Rós", "Simon & Garfunkel", "Thes", "!!!"]
    keys = ["beatles", "sigurros", "simonandgarfunkel", "thes", ""]
    assert [prepare.artist_key(name) for name in names] == keys


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """The genuine files under the names that they are downloaded by."""
    folder = tmp_path_factory.mktemp("samples")
    for name in ("hetrec2011-lastfm-2k.zip", "msd_h5"):
        (folder / name).symlink_to(SAMPLES / name)
    with gzip.open(SAMPLES / "msd_spotify_tracks.csv.gz") as packed:
        (folder / "Music Info.csv").write_bytes(packed.read())
    return folder


@genuine
def test_genuine_triplets():
    table = raw.triplets(SAMPLES / "taste_profile_sample.tsv")
    assert table.height == 7_023
    assert table["user"].n_unique() == 245
    assert table["song"].n_unique() == 5_583


@genuine
def test_genuine_listening_with_descriptors(samples):
    data = prepare.load(config.LASTFM, samples)
    assert list(data.facts.values())[:8] == [
        *(1_892, 17_632, 92_834, 186_479),  # users, artists, pairs, tag assignments
        *(4_261, 1_882, 68_766, 132_158),  # the same of artists with all: artists, users, ...
    ]
    assert data.plays.shape[0] == 1_882 and data.facts["tags that are frequent"] == 585
    assert data.plays.shape[1] == len(set(data.item_ids)) == 4_244
    assert not (data.tag_train & data.tag_test).any() and (data.tag_train | data.tag_test).all()
    bag = prepare.bags(config.LASTFM, samples)
    sizes = [len(bag(track)) for track in data.item_tracks]
    assert min(sizes) > 0 and sum(sizes) == 27_028
    spelt = dict(zip(data.item_ids, data.item_names, strict=True))
    assert spelt["sigurros"] == "Sigur Rós"
    assert bag("sigurros").shape[1] == len(prepare.DESCRIPTORS) == 10


@genuine
def test_genuine_listening_with_timbre(samples):
    data = prepare.load(config.LASTFM_TIMBRE, samples)
    bag = prepare.bags(config.LASTFM_TIMBRE, samples)
    assert len(set(data.item_tracks)) == len(data.item_ids) > 250
    assert set(data.tag_tracks) <= set(data.item_tracks)
    path = min((samples / "msd_h5").glob("?/?/?/*.h5"))
    with h5py.File(path) as file:
        assert np.allclose(bag(path.stem), file["analysis"]["segments_timbre"][:], rtol=1e-6)
    frames = bag(data.item_tracks[0])
    assert frames.shape[1] == 12 and 0 <= np.median(frames[:, 0]) <= 60
