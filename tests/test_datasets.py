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


@pytest.mark.parametrize("as_shipped", [False, True])
def test_plays_and_tags_follow_the_recipe(tmp_path, as_shipped):
    folder = write_msd(tmp_path)
    if as_shipped:
        with zipfile.ZipFile(folder / "train_triplets.txt.zip", "w") as archive:
            archive.writestr("train_triplets.txt", TRIPLETS)
        (folder / "train_triplets.txt").unlink()
    data = prepare.load(PROFILE, folder)
    # SOBAD goes although one of its tracks is fine; a repeated pair adds up
    assert data.plays.toarray().tolist() == [[6, 2, 0], [0, 3, 0], [0, 0, 4]]
    assert data.plays.dtype == np.int32
    assert list(data.user_ids) == ["u1", "u2", "u3"]
    assert list(data.item_ids) == ["SOA", "SOB", "SOLOST"]
    assert list(data.item_names) == ["Ann - First take", "Bob - Bee", ""]
    assert list(data.item_artists) == ["AR1", "AR2", ""]
    assert list(data.item_tracks) == ["TRAAB01", "TRAAB03", ""]
    steps = "triplets read", "triplets after bad-audio removal", "songs without a track"
    assert [data.facts[step] for step in steps] == [6, 5, 1]
    # "seen live" says nothing of the sound, "polka" is rare, a summed value of 0 is no tag
    assert list(data.vocabulary) == ["altcountri", "randb"]
    assert list(data.tag_tracks) == ["TRAAB01", "TRAAB03", "TRAAB06"]
    assert data.tags.toarray().tolist() == [[1, 0], [0, 1], [1, 1]]
    assert [*data.tag_train, *data.tag_test] == [True, True, False, False, False, True]
    assert np.array_equal(data.hotness, np.float32([np.nan, np.nan, 0.5]), equal_nan=True)


def test_the_subset_is_what_its_tracks_say(tmp_path):
    profile = replace(config.SUBSET, min_songs_per_tag=2)
    data = prepare.load(profile, write_subset(tmp_path))
    assert list(data.item_ids) == ["SOA", "SOB"]  # SOLOST has no track there; SOBAD is bad
    assert data.plays.toarray().tolist() == [[6, 2], [0, 3]]
    assert list(data.item_names) == ["Ann - First take", "Bob - Bee"]
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
    assert list(data.tag_tracks) == ["TR0", "TR1", "TR2", "TR4"]  # two of each artist
    assert data.tag_train.tolist() in ([True, True, False, False], [False, False, True, True])
    bag = prepare.bags(profile, tmp_path)
    assert bag("TR3").shape == (1, 10) and bag("TR9").shape == (0, 10)


def test_bags_are_the_frames_and_may_be_empty(tmp_path):
    bag = prepare.bags(PROFILE, write_msd(tmp_path))
    assert np.array_equal(bag("TRAAB01"), np.arange(24).reshape(2, 12))
    assert bag("TRAAB01").dtype == np.float32
    assert bag("TRAAB03").shape == bag("").shape == (0, 12)
    tracks = [f"TRNONE{number}" for number in range(21)]
    for few, of in (20, 20), (21, 210):  # TRAAB03 is silent, and whole
        assert list(bag.broken([*tracks[:few], "TRAAB03"], of)) == tracks[:few]
    with pytest.raises(prepare.BadInput, match=r"21 of 209 tracks cannot be read; one.*h5"):
        bag.broken(tracks, 209)


@pytest.mark.parametrize("profile", config.PROFILES.values())
def test_missing_files_are_all_named_with_their_origin(tmp_path, profile):
    missing = files.missing(profile, tmp_path)
    assert missing and missing == files.required(profile, tmp_path)
    with pytest.raises(files.MissingData) as caught:
        prepare.load(profile, tmp_path)
    for source in missing:
        for said in (source.path.name, source.origin, source.size, source.licence, str(tmp_path)):
            assert said in str(caught.value)


def test_the_digest_follows_content_and_not_dates_or_hidden_files(tmp_path):
    folder = write_msd(tmp_path)
    seen = [files.data_digest(PROFILE, folder)]
    (folder / "train_triplets.txt").touch()
    (folder / "msd/A/A/B/._TRAAB01.h5").touch()
    assert files.data_digest(PROFILE, folder) == seen[0]
    (folder / "train_triplets.txt").write_text(TRIPLETS.replace("\t9", "\t8"))
    seen.append(files.data_digest(PROFILE, folder))
    for frames in 2, 900:
        write_track(folder / "msd", "TRABC09", np.ones((frames, 12)))
        seen.append(files.data_digest(PROFILE, folder))
    assert len(set(seen)) == 4


def test_spellings_meet_in_a_key():
    for key, *spellings in (
        ("hiphop", "Hip-Hop", "hip hop", "HIPHOP"),
        ("rockandroll", "Rock & Roll", "rock n roll", "Rock and Roll"),
        ("femalvocalist", "Female Vocalists", "female vocalist"),
    ):
        assert {prepare.sanitise(spelling) for spelling in spellings} == {key}
    names = "The Beatles", "Sigur Rós", "Simon & Garfunkel", "Thes", "!!!"
    keys = "beatles", "sigurros", "simonandgarfunkel", "thes", ""
    assert tuple(map(prepare.artist_key, names)) == keys


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
def test_genuine_listening_with_descriptors(samples):
    table = raw.triplets(SAMPLES / "taste_profile_sample.tsv")
    assert (table.height, table["user"].n_unique(), table["song"].n_unique()) == (7_023, 245, 5_583)
    data, bag = (read(config.LASTFM, samples) for read in (prepare.load, prepare.bags))
    assert list(data.facts.values())[:7] == [
        *(1_892, 17_632, 92_834, 186_479),  # users, artists, pairs, tag assignments
        *(4_261, 132_158),  # names of artists with all, tag assignments
        109_809,  # of tags that five people use
    ]
    assert data.facts["tags that are frequent"] == 362 and data.plays.shape == (1_882, 4_244)
    assert len(set(data.item_ids)) == 4_244
    assert (data.tag_train ^ data.tag_test).all()
    sizes = [len(bag(track)) for track in data.item_tracks]
    assert min(sizes) > 0 and sum(sizes) == 27_028
    assert data.item_names[list(data.item_ids).index("sigurros")] == "Sigur Rós"
    assert bag("sigurros").shape[1] == len(prepare.DESCRIPTORS) == 10


@genuine
def test_genuine_listening_with_timbre(samples):
    data, bag = (read(config.LASTFM_TIMBRE, samples) for read in (prepare.load, prepare.bags))
    assert len(set(data.item_tracks)) == len(data.item_ids) > 250
    assert set(data.tag_tracks) <= set(data.item_tracks)
    track = data.item_tracks[0]
    with h5py.File(raw.place(samples / "msd_h5", track)) as file:
        assert np.allclose(bag(track), file["analysis"]["segments_timbre"][:], rtol=1e-6)
    assert bag(track).shape[1] == 12 and 0 <= np.median(bag(track)[:, 0]) <= 60


# --- citeulike


@pytest.fixture
def library(tmp_path):
    """Four articles, three words, two tags and three users, the last with an empty library."""
    files = {"mult": "2 0:3 2:1\n1 1:2\n0\n1 2:1", "vocabulary": "sparse\nmatrix\njazz"}
    files |= {"users": "2 0 1\n1 3\n0", "tag-item": "3 0 1 3\n1 2", "tags": "networks\nnetwork"}
    for name, text in files.items():
        (tmp_path / f"{name}.dat").write_text(text)
    return tmp_path


CITEULIKE = replace(config.CITEULIKE, min_songs_per_tag=1, seed=1)


def test_articles_words_and_tags_are_joined_by_their_numbers(library):
    data = prepare.load(CITEULIKE, library)
    assert data.plays.toarray().tolist() == [[1, 1, 0], [0, 0, 1]]  # nobody saved article 2
    assert data.item_ids.tolist() == ["000000", "000001", "000003"] == data.item_tracks.tolist()
    assert data.item_names[0] == "0 (sparse, jazz)"
    assert data.vocabulary.tolist() == ["network"]  # one stem
    assert data.tags.toarray().ravel().tolist() == [1, 1, 1, 1] == [1] * len(data.tag_tracks)
    assert (data.tag_train ^ data.tag_test).all()
    tracks = np.array(["000003", "000000", "000002"])
    counts, words = prepare.frequent_words(library, tracks, np.array([True, True, False]), 2)
    assert (counts.toarray().tolist(), list(words)) == (
        [[0, 1], [3, 1], [0, 0]],
        ["sparse", "jazz"],
    )
    read = prepare.bags(CITEULIKE, library)
    assert read("000000").tolist() == [[0], [0], [0], [2]] and read("000002").shape == (0, 1)


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("users", "2 0 1\n2 3\n", r"users.dat, line 2: expected n and n ids, found '2 3'"),
        ("mult", "1 0:0\n", r"mult.dat, line 1: expected n and n times id:count, found '1 0:0'"),
        ("mult", "1 7:1\n", r"mult.dat: expected ids below 3, found 7"),
        ("users", "1 9\n", r"users.dat: expected ids below 4, found 9"),
        ("tags", "network", r"tag-item.dat: more lines than tags.dat has tags"),
        ("tag-item", "", r"tag-item.dat: expected ids below 4, found None"),
    ],
)
@pytest.mark.fault("a library, a list of words or of tags that is not as it should be", "named")
def test_a_wrong_library_is_named(library, name, text, told):
    (library / f"{name}.dat").write_text(text)
    with pytest.raises(raw.BadInput, match=told):
        prepare.load(CITEULIKE, library)
