"""In a world where style drives both sound and listening, the whole chain finds that out."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from repro import config
from repro.data import prepare, subsets, synthetic
from repro.evaluation import metrics
from repro.models import tagnet, vq, wmf

pytestmark = pytest.mark.usefixtures("one_thread")
PROFILE = config.SMOKE
TOP = 10  # the length of the list: a few dozen songs are cold


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Prepare the smoke world as the notebooks do, up to the content of every song."""
    p, root = PROFILE, tmp_path_factory.mktemp("planted") / "world"
    synthetic.write_world(p.world, p.seed, root)
    data, read = prepare.load(p, root), prepare.bags(p, root)

    users, items = subsets.dense_subset(data.plays, p.min_songs_per_user, p.min_users_per_song)
    items = np.random.default_rng(p.seed).permutation(items)
    plays = (data.plays[users][:, items] > 0).astype(np.int32).tocsr()
    cold = subsets.cold_items(len(items), p.cold_fraction, p.seed)
    warm = np.setdiff1d(np.arange(len(items)), cold)
    fractions = p.test_fraction, p.validation_fraction, p.seed
    train, _, _ = subsets.split_pairs(plays[:, warm].tocsr(), *fractions)

    tracks = data.item_tracks[items]
    teach = data.tag_train & ~np.isin(data.tag_tracks, tracks[cold])
    of_tags = data.tag_tracks[teach]
    sample = vq.codebook_tracks(of_tags, data.hotness[teach], p.codebook_tracks, p.seed)
    frames = np.concatenate([read(track) for track in sample])
    book = vq.learn_codebook(frames, p.codewords, p.codebook_passes, p.seed)
    shallow = vq.l1_normalise(vq.histograms(read, tracks, book))
    tagged = vq.l1_normalise(vq.histograms(read, of_tags, book))
    net, _ = tagnet.train(tagged, data.tags[teach], **p.network)
    return SimpleNamespace(
        surplus=wmf.log_surplus(train, p.alpha, p.eps),
        judge=partial(metrics.evaluate, heldout=plays[:, cold].tocsr(), recall_at=(TOP,)),
        warm=warm,
        cold=cold,
        bag_size=np.array([len(read(track)) for track in tracks]),
        shallow=shallow,
        deep=tagnet.hidden_layer(net, shallow),
    )


def gain(world, chance, content):
    """Return what the model fitted with ``content`` is above chance on cold songs."""
    settings = PROFILE.ridges("DEN") | PROFILE.factorisation
    fitted = wmf.fit(world.surplus, content[world.warm], **settings)
    cold = wmf.cold_factors(content[world.cold], fitted.w)
    return world.judge(fitted.theta, cold) - chance


@pytest.fixture(scope="module")
def chance(world):
    """Return the metrics of random scores, each user's mean over many draws."""
    rng = np.random.default_rng(0)
    sizes = (world.surplus.shape[0], 16), (len(world.cold), 16)
    draws = [world.judge(*map(rng.standard_normal, sizes)) for _ in range(30)]
    return sum(draws) / len(draws)


@pytest.mark.parametrize("content", ["shallow", "deep"])
def test_content_beats_chance_and_that_of_other_songs_does_not(world, chance, content):
    content = getattr(world, content)
    found = metrics.bootstrap(gain(world, chance, content), 500, 0)
    assert found.loc[f"R@{TOP}", "low"] > TOP / len(world.cold)  # twice chance at least
    assert found.loc["NDCG", "low"] > 0.05
    # Shuffled among songs, content keeps its values and loses its meaning.
    orders = (np.random.default_rng(seed).permutation(len(content)) for seed in range(8))
    recall = np.array([gain(world, chance, content[x])[f"R@{TOP}"].mean() for x in orders])
    assert abs(recall.mean()) < 3 * recall.std(ddof=1) / np.sqrt(len(recall))
    assert abs(recall).max() < 0.5 * TOP / len(world.cold)


def test_chance_is_what_arithmetic_says_and_bag_size_is_at_chance(world, chance):
    """The length of a song betrays nothing, so content cannot live on it."""
    expected = TOP / len(world.cold)
    assert chance[f"R@{TOP}"].mean() == pytest.approx(expected, rel=0.05)
    assert world.bag_size.std() > 1
    for size in (world.bag_size[world.cold], -world.bag_size[world.cold]):
        found = world.judge(*metrics.same_for_all(size, world.surplus.shape[0])) - chance
        assert abs(found["NDCG"].mean()) < 0.02
        assert abs(found[f"R@{TOP}"].mean()) < 0.4 * expected
